"""A program made ready to run as few kernels on narrow integers: groups generated, products chosen, memory placed.

Everything is decided once, from the program alone. A plan owns one arena and reuses it every step, so it serves one
caller at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor

from proofs.exact.backend import codegen, jit
from proofs.exact.backend.arena import Need, Placement, place
from proofs.exact.backend.graph import Graph, Kind, MatmulLayouts, Node, build, constant_layout, folded_layout
from proofs.exact.backend.groups import Group, group_nodes
from proofs.exact.backend.layouts import Float64, Layout, Plain, Product, Slices, plain_for
from proofs.exact.backend.matmul import MatmulKernel, choose
from proofs.exact.backend.memory import OutputPool, Slot, aligned_block, planes_in, stored_bytes
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
"""Anybody may write a program: beyond these, a minute or two of planning, it runs on the torch kernels."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """What runs in which order, in which layouts, and where in the arena."""

    graph: Graph
    groups: tuple[Group, ...]
    stores: Mapping[int, tuple[Layout, ...]]
    """For each stored value the layouts in which it lies, widest choice first."""
    needs: Mapping[Slot, Need]
    in_place: Mapping[Slot, int]
    """Outputs that are written over the state tensor (its input's number) that they replace, if a caller lets us."""

    def read_layout(self, base: int) -> Layout:
        """The layout from which generated code reads a value."""
        return min(self.stores[base], key=_reading_cost)

    @property
    def output_slots(self) -> tuple[Slot, ...]:
        """In the order of the state tensors."""
        types = self.graph.program.state_types.values()
        return tuple(Slot(base, Plain(8 * type_.width)) for base, type_ in zip(self.graph.outputs, types, strict=True))


def _reading_cost(layout: Layout) -> tuple[int, int]:
    match layout:
        case Plain(bits):
            return (0, bits)
        case Slices(count):
            return (1, count)
        case Float64():
            return (2, 0)
        case Product(shifts):
            return (3, len(shifts))


def schedule(
    program: Program, layouts: Callable[[ValueInfo, ValueInfo], MatmulLayouts], fusable: frozenset[Opcode]
) -> Schedule:
    """The order, the layouts and the lifetimes of a program's values."""
    graph = build(program, layouts, fusable)
    groups = group_nodes(graph)
    stores: dict[int, tuple[Layout, ...]] = {}
    for number, given in enumerate(program.inputs):
        stores[number] = (Plain(8 * given.type.width),)
    for number, constant in enumerate(program.constants, start=len(program.inputs)):
        stores[number] = (constant_layout(constant.info),)
    of = {node.number: index for index, group in enumerate(groups) for node in group.nodes}
    last_read: dict[int, int] = {}
    read_elsewhere: set[int] = set()
    for index, group in enumerate(groups):
        for node in group.nodes:
            for view in node.operands:
                last_read[view.base] = index
                if of.get(view.base) != index:
                    read_elsewhere.add(view.base)
    for node in graph.nodes.values():
        wanted = set(graph.stores.get(node.number, ()))
        if node.number in read_elsewhere or node.number in graph.outputs:
            wanted = wanted or {plain_for(node.info)}
        if node.fold is not None:
            in_memory = node.number in read_elsewhere or node.number in graph.outputs
            wanted = {folded_layout(node.info)} if in_memory or not groups[of[node.number]].in_row(node) else set()
        stores[node.number] = tuple(sorted(wanted, key=_reading_cost))
    outputs = set(zip(graph.outputs, (Plain(8 * t.width) for t in program.state_types.values()), strict=True))
    needs = {}
    for number, placed in stores.items():
        if number < program.first_op:
            continue
        for layout in placed:
            if (number, layout) not in outputs:
                made = of[number]
                size = stored_bytes(layout, graph.nodes[number].info.elements)
                needs[Slot(number, layout)] = Need(size, made, max(made, last_read.get(number, made)))
    return Schedule(graph, tuple(groups), stores, needs, outputs_in_place(graph, groups, of, last_read))


def outputs_in_place(
    graph: Graph, groups: Sequence[Group], of: Mapping[int, int], last_read: Mapping[int, int]
) -> dict[Slot, int]:
    """New state tensors whose kernel is the last to read the old one, each element just before it writes it. None in
    a program with a CHECK: if that fails, the old state must still be there."""
    if any(node.opcode is Opcode.CHECK for node in graph.nodes.values()):
        return {}
    found = {}
    for given, (base, type_) in enumerate(zip(graph.outputs, graph.program.state_types.values(), strict=True)):
        if base not in of or graph.outputs.count(base) > 1 or given in graph.outputs:
            continue
        group = groups[of[base]]
        node = graph.nodes[base]
        if not group.fused or group.row is not None or node.fold is not None or last_read.get(given, -1) > of[base]:
            continue
        views = [view for other in group.nodes for view in other.operands if view.base == given]
        if group.size == type_.elements and all(view.is_whole and view.size == group.size for view in views):
            found[Slot(base, Plain(8 * type_.width))] = given
    return found


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
        if len(program.ops) > MOST_OPERATIONS:
            raise RuntimeError(f"{len(program.ops)} operations are too many to group: at most {MOST_OPERATIONS}")
        self._program = program
        self._kernels: dict[tuple[ValueInfo, ValueInfo], MatmulKernel] = {}
        self._settings = settings
        self._schedule = schedule(program, self._layouts, fusable)
        kernels = sum(group.fused for group in self._schedule.groups)
        if kernels > MOST_KERNELS:
            raise RuntimeError(f"{kernels} kernels would take too long to compile: at most {MOST_KERNELS}")
        placement: Placement[Slot] = place(self._schedule.needs)
        if most_bytes is not None and placement.bytes_ > most_bytes:
            raise RuntimeError(f"fused kernels would hold {placement.bytes_} bytes at once, more than {most_bytes}")
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
        self.steps: list[Step] = [self._step(group) for group in self._schedule.groups]

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

    def _kernel(self, a: ValueInfo, b: ValueInfo) -> MatmulKernel:
        if (a, b) not in self._kernels:
            self._kernels[a, b] = choose(a, b, self._settings)
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


def storage_of(plan: Schedule, group: Group) -> codegen.Storage:
    """Where the values of a group lie."""
    program, graph = plan.graph.program, plan.graph
    made = {node.number for node in group.nodes}
    reads = {
        view.base: plan.read_layout(view.base)
        for node in group.nodes
        for view in node.operands
        if view.base not in made
    }
    constants = {
        number: constant.bounds[0]
        for number, constant in enumerate(program.constants, start=len(program.inputs))
        if number in reads and constant.type.elements == 1
    }
    bounds = {
        base: graph.nodes[base].infos[0].shape[-1] * 2**14
        for base, layout in reads.items()
        if isinstance(layout, Product)
    }
    writes = {node.number: plan.stores[node.number] for node in group.nodes}
    in_place = {slot: given for slot, given in plan.in_place.items() if slot.base in made}
    return codegen.Storage(graph.infos, reads, writes, constants, bounds, in_place)


def moved_bytes(plan: Schedule, group: Group) -> int:
    """What a group reads and writes, for people who look for the slow ones."""
    total = 0
    for node in group.nodes:
        total += sum(stored_bytes(layout, node.info.elements) for layout in plan.stores[node.number])
        for view in node.operands:
            if view.base in plan.stores and all(other.number != view.base for other in group.nodes):
                total += stored_bytes(plan.read_layout(view.base), prod(plan.graph.infos[view.base].shape))
    return total
