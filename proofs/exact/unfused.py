"""A program run one torch kernel after the other, on int64: the second implementation beside the fused backend.

It is what runs where code cannot be generated, what a user gets who does not trust generated code (`fuse=False`), and
what finds the element at which a CHECK failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from proofs.exact.kernels import MAY_REUSE, Buffer, Call, Kernel, fits_float64, matmul_float64, may_alias
from proofs.exact.known_answers import float64_matmul_is_exact, trusted_kernels
from proofs.exact.opcodes import Opcode
from proofs.exact.overflow import Overflow
from proofs.exact.program import InputKind, Op, Program
from proofs.exact.tensor import ExactTensor


@dataclass(frozen=True, slots=True)
class Instruction:
    """Run `kernel` on the numbered values, store the result under `number`, then let go of the values in `dead`."""

    number: int
    kernel: Kernel
    call: Call
    operands: tuple[int, ...]
    dead: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class UnfusedPlan:
    """`run` computes one step. Reusable for any number of steps and units of the same program."""

    program: Program
    instructions: tuple[Instruction, ...]
    constants: tuple[Buffer, ...]

    @classmethod
    def of(cls, program: Program) -> UnfusedPlan:
        lives = Lives(program)
        kernels = trusted_kernels()
        instructions = []
        for number, op in program.numbered_ops():
            infos = tuple(program.values[operand] for operand in op.operands)
            kernel = kernels[op.opcode]
            if op.opcode is Opcode.MATMUL_NT and fits_float64(*infos) and float64_matmul_is_exact():
                kernel = matmul_float64
            call = Call(op.attributes, infos, program.values[number], lives.reusable(number, op))
            instructions.append(Instruction(number, kernel, call, op.operands, lives.dead_after(number)))
        constants = tuple(Buffer(torch.from_numpy(constant.array().astype(np.int64))) for constant in program.constants)
        return cls(program, tuple(instructions), constants)

    def bind(self, fixed: Mapping[str, ExactTensor], seed: int) -> dict[int, Buffer]:
        """Buffers of everything that stays the same from step to step: data, seed, constants. By value number."""
        bound: dict[int, Buffer] = {}
        for number, given in enumerate(self.program.inputs):
            if given.kind is InputKind.DATA:
                bound[number] = Buffer(fixed[given.name].values.to(torch.int64))
            elif given.kind is InputKind.SEED:
                bound[number] = Buffer(torch.tensor(seed, dtype=torch.int64))
        for number, constant in enumerate(self.constants, start=len(self.program.inputs)):
            bound[number] = constant
        return bound

    def run(self, state: Mapping[str, ExactTensor], bound: dict[int, Buffer]) -> dict[str, ExactTensor]:
        """The state after one step. Reads `state` and `bound`, writes to neither."""
        values = dict(bound)
        types = self.program.state_types
        for number, name in enumerate(types):  # state inputs come first, in this order
            values[number] = Buffer(state[name].values.to(torch.int64))
        for step in self.instructions:
            try:
                values[step.number] = step.kernel([values[operand] for operand in step.operands], step.call)
            except Overflow as overflow:
                raise overflow.at(step.number - self.program.first_op) from overflow
            for number in step.dead:
                del values[number]
        outputs = zip(types.items(), self.program.outputs, strict=True)
        return {name: ExactTensor.proven(type_, values[number].int64) for (name, type_), number in outputs}


class Lives:
    """Which values share memory, who owns it, and after which operation nobody reads it."""

    def __init__(self, program: Program) -> None:
        self.first_op = program.first_op
        self.group = list(range(len(program.values)))
        self.repeated = [False] * len(program.values)
        self.last_read = [-1] * len(program.values)
        for number, op in program.numbered_ops():
            if may_alias(op.opcode, program.values[op.operands[0]], op.attributes):
                self.group[number] = self.group[op.operands[0]]
                self.repeated[number] = op.opcode is Opcode.BROADCAST or self.repeated[op.operands[0]]
            for operand in op.operands:
                self.last_read[operand] = number
        for number in program.outputs:
            self.last_read[number] = len(program.values)
        self.group_last_read = [-1] * len(program.values)
        for number, last in enumerate(self.last_read):
            root = self.group[number]
            self.group_last_read[root] = max(self.group_last_read[root], last)
        self._dead: dict[int, list[int]] = {}
        for number in range(self.first_op, len(program.values)):
            # A value that nothing reads is let go as soon as it is made.
            self._dead.setdefault(max(self.last_read[number], number), []).append(number)

    def dead_after(self, number: int) -> tuple[int, ...]:
        """Operation results that nothing reads after operation `number`."""
        return tuple(self._dead.get(number, ()))

    def reusable(self, number: int, op: Op) -> int | None:
        """An operand whose memory the result may overwrite: made by an operation of this step (never an input or a
        constant), not a repeated view, read by nothing later under any of its names and by this operation under one.
        """
        if op.opcode not in MAY_REUSE:
            return None
        for place, operand in enumerate(op.operands):
            root = self.group[operand]
            dies_here = self.group_last_read[root] == number
            other_views = any(self.group[other] == root and other != operand for other in op.operands)
            if root >= self.first_op and dies_here and not self.repeated[operand] and not other_views:
                return place
        return None
