"""A program made ready to run: a kernel for each operation, and when each value's memory is free again.

Everything here is decided once, before the first step, from the program alone. Nothing in it can change a result: only
which of several equal kernels computes it, and where it is stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from proofs.exact.kernels import MAY_REUSE, Buffer, Call, Kernel, fits_float64, matmul_float64, may_alias
from proofs.exact.known_answers import float64_matmul_is_exact, trusted_kernels
from proofs.exact.opcodes import Opcode
from proofs.exact.overflow import Overflow
from proofs.exact.program import InputKind, Op, Program
from proofs.exact.settings import Settings
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
class Plan:
    """`run` computes one step. Reusable for any number of steps and units of the same program."""

    program: Program
    instructions: tuple[Instruction, ...]
    constants: tuple[Buffer, ...]

    @classmethod
    def of(cls, program: Program, settings: Settings | None = None) -> Plan:
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
        constants = tuple(
            Buffer(torch.tensor(constant.values, dtype=torch.int64).reshape(constant.type.shape))
            for constant in program.constants
        )
        return cls(program, tuple(instructions), constants)

    def bind(self, fixed: dict[str, ExactTensor], seed: int) -> dict[int, Buffer]:
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

    def run(self, state: dict[str, ExactTensor], bound: dict[int, Buffer]) -> dict[str, ExactTensor]:
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


def peak_bytes(program: Program) -> int:
    """An upper bound of what one step holds at once: inputs, constants, and the values that are still to be read."""
    sizes = [8 * prod(value.shape) for value in program.values]
    lives = Lives(program)
    held = sum(sizes[: program.first_op])
    peak = held
    for number, _ in program.numbered_ops():
        held += sizes[number]
        peak = max(peak, held)
        held -= sum(sizes[dead] for dead in lives.dead_after(number))
    return peak


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
