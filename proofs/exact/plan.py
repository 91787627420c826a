"""A program made ready to run: the one door to whatever computes its steps.

    plan = Plan.of(program, settings)
    bound = plan.bind(data, seed)
    state = plan.run(state, bound)

Everything is decided once, before the first step, from the program alone: which operations one kernel computes, in
which form each value lies in memory, and for how long. None of it can change a result. Where code cannot be generated
(no llvmlite, a CPU that LLVM does not know) the torch kernels run instead, one operation at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from proofs.exact.backend.layouts import slices_for
from proofs.exact.kernels import Buffer
from proofs.exact.opcodes import Opcode
from proofs.exact.program import Op, Program
from proofs.exact.settings import Settings
from proofs.exact.tensor import ExactTensor
from proofs.exact.unfused import Instruction, Lives, UnfusedPlan

if TYPE_CHECKING:
    from proofs.exact.backend.fused import Bound as FusedBound
    from proofs.exact.backend.fused import FusedPlan

__all__ = ["Bound", "Instruction", "Lives", "Plan", "Settings", "peak_bytes"]

log = logging.getLogger(__name__)

LEAST_BYTES = 1024
"""Added for each value: its planes, nine at most, lie on cache lines of their own."""
WORKING_COPIES = {Opcode.ISQRT: 4, Opcode.RANDOM: 5, Opcode.CHECK: 3}
"""Of the result at 64 bits, which a torch kernel makes on the way; a CHECK where it fails."""


@dataclass(frozen=True, eq=False)
class Bound:
    """What stays the same during a unit: its data and its seed."""

    fixed: Mapping[str, ExactTensor]
    seed: int
    fused: FusedBound | None

    def unfused(self, plan: UnfusedPlan) -> dict[int, Buffer]:
        """The same for the torch kernels."""
        return plan.bind(self.fixed, self.seed)


@dataclass(frozen=True, eq=False)
class Plan:
    """`run` computes one step. Reusable for any number of steps and units of the same program, one run at a time: the
    memory of a step's values belongs to the plan."""

    program: Program
    settings: Settings
    fused: FusedPlan | None

    @classmethod
    def of(cls, program: Program, settings: Settings | None = None) -> Plan:
        settings = settings or Settings()
        return cls(program, settings, _fused(program, settings) if settings.fuse else None)

    @cached_property
    def unfused(self) -> UnfusedPlan:
        """The same program on the torch kernels."""
        return UnfusedPlan.of(self.program)

    def bind(self, fixed: Mapping[str, ExactTensor], seed: int) -> Bound:
        """What the steps of a unit share."""
        return Bound(fixed, seed, None if self.fused is None else self.fused.bind(fixed, seed))

    def run(self, state: Mapping[str, ExactTensor], bound: Bound, *, consume: bool = False) -> dict[str, ExactTensor]:
        """The state after one step. Writes neither to `state` and `bound`, nor later to what it returns while anybody
        holds it. With `consume` the caller gives `state` up: its memory may be that of the result, which saves a state
        of memory and the copying of it. Raises Overflow if a CHECK fails, and then `state` is as it was.
        """
        if self.fused is not None:
            assert bound.fused is not None, "bound by a plan with other settings"
            after = self.fused.run(state, bound.fused, consume=consume)
            if after is not None:
                return after
        return self.unfused.run(state, bound.unfused(self.unfused))


def _fused(program: Program, settings: Settings) -> FusedPlan | None:
    try:
        from proofs.exact.backend.fused import FusedPlan
        from proofs.exact.backend.trust import trusted_opcodes

        return FusedPlan(program, settings, trusted_opcodes(), most_bytes=step_bytes(program))
    except (ImportError, OSError, RuntimeError) as error:
        log.warning("no fused kernels on this machine, running torch's, several times slower: %s", error)
        return None


def peak_bytes(program: Program) -> int:
    """An upper bound of what one step holds at once: state before and after, data, constants, and the values that are
    still to be read. It is what the torch kernels hold; a fused plan that would hold more is not made."""
    return step_bytes(program) + sum(8 * value.elements for value in program.values[: program.first_op])


def step_bytes(program: Program) -> int:
    """The values that a step makes, those held at once: int64 each, or the planes of an int8-sliced product."""
    sizes = [8 * value.elements + LEAST_BYTES for value in program.values]
    for number, op in program.numbered_ops():
        if op.opcode is Opcode.MATMUL_NT:
            slices = [slices_for(program.values[operand]) or 0 for operand in op.operands]
            sizes[number] = max(8, 4 * slices[0] * slices[1]) * program.values[number].elements + LEAST_BYTES
    lives = Lives(program)
    held = peak = 0
    ending: dict[int, int] = {}
    for number, op in program.numbered_ops():
        held += sizes[number]
        peak = max(peak, held + working_bytes(program, number, op))
        # A view keeps all of what it shows a part of, and counts itself: fused kernels may store it anew.
        last = max(number, lives.group_last_read[number] if lives.group[number] == number else lives.last_read[number])
        ending[last] = ending.get(last, 0) + sizes[number]
        held -= ending.pop(number, 0)
    return peak


def working_bytes(program: Program, number: int, op: Op) -> int:
    """What an operation's torch kernel takes beside operands and result while it runs."""
    if op.opcode is Opcode.MATMUL_NT:
        return 8 * sum(program.values[value].elements for value in (*op.operands, number))
    return 8 * WORKING_COPIES.get(op.opcode, 0) * program.values[number].elements
