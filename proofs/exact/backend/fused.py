"""A program made ready to run as few kernels on narrow integers: groups generated, products chosen, memory placed.

Everything is decided once, from the program alone. A plan owns one arena and reuses it every step, so it serves one
caller at a time.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from proofs.exact.backend import codegen, jit
from proofs.exact.backend.arena import Placement, place
from proofs.exact.backend.graph import Kind, MatmulLayouts, Node, constant_layout
from proofs.exact.backend.groups import Group
from proofs.exact.backend.layouts import Layout, Plain
from proofs.exact.backend.matmul import SPARE_BYTES, MatmulKernel, choose
from proofs.exact.backend.matmul_choice import Allowance
from proofs.exact.backend.memory import OutputPool, Slot, aligned_block, planes_in
from proofs.exact.backend.schedule import schedule, storage_of
from proofs.exact.backend.steps import KernelStep, LibraryStep, MatmulStep, Operand, Step, whole_operand
from proofs.exact.kernels import KERNELS
from proofs.exact.known_answers import trusted_kernels
from proofs.exact.opcodes import Opcode
from proofs.exact.program import InputKind, Program
from proofs.exact.ranges import ValueInfo
from proofs.exact.settings import Settings
from proofs.exact.tensor import DTYPES as WIDTH_DTYPES
from proofs.exact.tensor import ExactTensor

MOST_OPERATIONS = 100_000
MOST_KERNELS = 10_000
PLANNING_S = 120.0
"""Anybody may write a program: beyond these it runs on the torch kernels. Kernels compiled until then are kept on disk,
so a plan that ran out of time gets further when it is made again."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Planes of what stays the same from step to step: data and seed."""

    frame: dict[Slot, tuple[Tensor, ...]]


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Threads for every plan of the process: idle ones cost nothing, and plans come and go."""
    return ThreadPoolExecutor(count, "kernel")


class FusedPlan:
    """`run` computes one step. Raises RuntimeError where code cannot be generated on this machine."""

    def __init__(
        self, program: Program, settings: Settings, fusable: frozenset[Opcode], most_bytes: int | None = None
    ) -> None:
        """`most_bytes` is what the plan may hold besides the states, data and constants."""
        latest = time.monotonic() + PLANNING_S
        if len(program.ops) > MOST_OPERATIONS:
            raise RuntimeError(f"{len(program.ops)} operations are too many to group: at most {MOST_OPERATIONS}")
        self._program = program
        self._kernels: dict[tuple[ValueInfo, ValueInfo], MatmulKernel] = {}
        self._settings = settings
        self._choose_products()
        self._schedule = schedule(program, self._layouts, fusable)
        kernels = sum(group.fused for group in self._schedule.groups)
        if kernels > MOST_KERNELS:
            raise RuntimeError(f"{kernels} kernels would take too long to compile: at most {MOST_KERNELS}")
        placement: Placement[Slot] = place(self._schedule.needs)
        scratch = max((kernel.scratch_bytes for kernel in self._kernels.values()), default=0)
        held = placement.bytes_ + max(0, scratch - SPARE_BYTES)
        if most_bytes is not None and held > most_bytes:
            raise RuntimeError(f"fused kernels would hold {held} bytes at once, more than {most_bytes}")
        self._arena = aligned_block(placement.bytes_)
        self._static: dict[Slot, tuple[Tensor, ...]] = {}
        infos = self._schedule.graph.infos
        for slot, offset in placement.offsets.items():
            self._static[slot] = planes_in(self._arena, offset, slot.layout, infos[slot.base].elements)
        for number, constant in enumerate(program.constants, start=len(program.inputs)):
            layout = constant_layout(constant.info)
            values = torch.from_numpy(constant.array().astype(f"i{layout.bits // 8}"))
            self._static[Slot(number, layout)] = (values.reshape(-1),)
        self._flag = torch.zeros(1, dtype=torch.int32)
        self._pools = {
            slot: OutputPool(type_.shape, WIDTH_DTYPES[type_.width])
            for slot, type_ in zip(self._schedule.output_slots, program.state_types.values(), strict=True)
            if slot.base >= program.first_op
        }
        self._threads = settings.threads
        self._pool = _workers(settings.threads - 1) if settings.threads > 1 else None
        self.steps: list[Step] = []
        for group in self._schedule.groups:
            if time.monotonic() > latest:
                raise RuntimeError(f"after {PLANNING_S} s {len(self.steps)} of {kernels} kernels were ready")
            self.steps.append(self._step(group))

    @property
    def arena_bytes(self) -> int:
        return self._arena.numel()

    def bind(self, fixed: Mapping[str, ExactTensor], seed: int) -> Bound:
        """Data and seed of a unit."""
        frame: dict[Slot, tuple[Tensor, ...]] = {}
        for number, given in enumerate(self._program.inputs):
            slot = Slot(number, Plain(8 * given.type.width))
            if given.kind is InputKind.DATA:
                frame[slot] = (fixed[given.name].values.reshape(-1),)
            elif given.kind is InputKind.SEED:
                frame[slot] = (torch.tensor([seed], dtype=torch.int64),)
        return Bound(frame)

    def run(
        self, state: Mapping[str, ExactTensor], bound: Bound, *, consume: bool = False
    ) -> dict[str, ExactTensor] | None:
        """The state after one step; None if a CHECK failed, which only the torch kernels can locate. With `consume`
        the memory of `state` is ours."""
        program = self._program
        frame = self._static | bound.frame
        for number, (name, type_) in enumerate(program.state_types.items()):  # state inputs come first, in this order
            frame[Slot(number, Plain(8 * type_.width))] = (state[name].values.reshape(-1),)
        consume = consume and len({tensor.values.data_ptr() for tensor in state.values()}) == len(state)
        outputs = {}
        for slot, pool in self._pools.items():
            replaced = self._schedule.in_place.get(slot)
            if replaced is None:
                outputs[slot] = pool.take()
            else:
                old = Slot(replaced, slot.layout)
                outputs[slot] = frame[old][0] if consume else pool.take().reshape(-1).copy_(frame[old][0])
                frame[old] = (outputs[slot],)
            frame[slot] = (outputs[slot].reshape(-1),)
        for step in self.steps:
            step.run(frame)
        if self._flag.item():
            self._flag.zero_()
            return None
        result = {}
        for (name, type_), slot in zip(program.state_types.items(), self._schedule.output_slots, strict=True):
            values = outputs[slot] if slot in outputs else frame[slot][0].reshape(type_.shape)
            result[name] = ExactTensor.proven(type_, values.reshape(type_.shape))
        return result

    def _layouts(self, a: ValueInfo, b: ValueInfo) -> MatmulLayouts:
        kernel = self._kernel(a, b)
        return MatmulLayouts(kernel.a, kernel.b, kernel.out)

    def _choose_products(self) -> None:
        """Where most is to be multiplied first: measuring ends when its time is used up."""
        work: dict[tuple[ValueInfo, ValueInfo], int] = {}
        for number, op in self._program.numbered_ops():
            if op.opcode is Opcode.MATMUL_NT:
                a, b = (self._program.values[operand] for operand in op.operands)
                work[a, b] = work.get((a, b), 0) + a.shape[-1] * self._program.values[number].elements
        allowance = Allowance()
        for a, b in sorted(work, key=lambda pair: -work[pair]):
            self._kernels[a, b] = choose(a, b, self._settings, allowance)

    def _kernel(self, a: ValueInfo, b: ValueInfo) -> MatmulKernel:
        return self._kernels[a, b]

    def _step(self, group: Group) -> Step:
        step: KernelStep | MatmulStep | LibraryStep
        (node, *_) = group.nodes
        if node.kind is Kind.FUSED:
            step = self._kernel_step(group)
        elif node.kind is Kind.MATMUL:
            step = self._matmul_step(node)
        else:
            operands = tuple(self._operand(node, index) for index in range(len(node.operands)))
            kernel = trusted_kernels()[node.opcode]
            result = whole_operand(Slot(node.number, self._schedule.stores[node.number][0]), node.info.shape)
            step = LibraryStep(node, operands, result, kernel, kernel is KERNELS[node.opcode])
        step.prepare(self._static)
        return step

    def _operand(self, node: Node, index: int, layout: Layout | None = None) -> Operand:
        view = node.operands[index]
        wanted = self._schedule.read_layout(view.base) if layout is None else layout
        return Operand(Slot(view.base, wanted), view, node.infos[index].shape)

    def _matmul_step(self, node: Node) -> MatmulStep:
        kernel = self._kernel(*node.infos)
        operands = (
            self._operand(node, 0, kernel.a),
            self._operand(node, 1, kernel.b),
            whole_operand(Slot(node.number, kernel.out), node.info.shape),
        )
        a, b, out = (operand.slot in self._static for operand in operands)
        return MatmulStep(kernel.run, operands, (a, b, out))

    def _kernel_step(self, group: Group) -> KernelStep:
        source = codegen.generate(group, storage_of(self._schedule, group))
        function = jit.compiler().function(source.symbol, source.text)
        slots = tuple(
            (Slot(-1 if parameter.base is None else parameter.base, parameter.layout), parameter.plane)
            for parameter in source.parameters
        )
        moving = tuple(
            place
            for place, (parameter, (slot, _)) in enumerate(zip(source.parameters, slots, strict=True))
            if parameter.base is not None and slot not in self._static
        )
        return KernelStep(function, source, slots, moving, self._flag, group.size, self._threads, self._pool)
