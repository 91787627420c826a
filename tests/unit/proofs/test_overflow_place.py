"""A step overflows in one place, whatever the order in which a backend computes: the first failing CHECK, its first
failing element."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.known_answers import from_torch
from proofs.exact.opcodes import Opcode
from proofs.exact.overflow import Overflow
from proofs.exact.plan import Plan
from proofs.exact.program import Program
from proofs.exact.reference import reference_step
from proofs.exact.settings import Settings
from proofs.exact.tensor import ExactTensor, TensorType

TYPE = TensorType((4, 5), 16)
Body = Callable[[ProgramBuilder, Handle], Handle]


def program_of(body: Body) -> Program:
    b = ProgramBuilder()
    m = b.state("m", TYPE)
    b.update("m", b.saturate(body(b, m), bits=16))
    return b.build()


def ends(program: Program, values: torch.Tensor) -> list[Overflow | None]:
    """How one step ends: by the reference, the torch kernels and the fused backend."""
    state = {"m": ExactTensor(TYPE, values)}
    steps: list[Callable[[], object]] = [lambda: reference_step(program, {"m": from_torch(values)}, {}, 0)]
    for settings in (Settings(fuse=False), Settings()):
        plan = Plan.of(program, settings)
        steps.append(lambda plan=plan: plan.run(state, plan.bind({}, 0)))  # type: ignore[misc]
    found: list[Overflow | None] = []
    for step in steps:
        try:
            step()
        except Overflow as overflow:
            found.append(overflow)
        else:
            found.append(None)
    return found


def place(program: Program, nth: int = 0) -> int:
    """Of the nth CHECK among the operations."""
    return [number for number, op in enumerate(program.ops) if op.opcode is Opcode.CHECK][nth]


VALUES = torch.arange(20).reshape(4, 5) * 100 - 1000


def test_the_first_failing_element_in_row_major_order_is_named() -> None:
    program = program_of(lambda b, m: b.check(m, -1000, 250))
    assert ends(program, VALUES) == [Overflow(13, 300, place(program))] * 3


def test_order_is_that_of_the_checked_view_not_of_its_memory() -> None:
    program = program_of(lambda b, m: b.transpose(b.check(b.transpose(m), -1000, 250)))
    assert ends(program, VALUES) == [Overflow(3, 500, place(program))] * 3


def test_of_two_failing_checks_the_first_operation_is_named() -> None:
    def body(b: ProgramBuilder, m: Handle) -> Handle:
        late = b.check(b.mul(b.reduce_sum(b.mul(m, m), 0), b.constant(3)), 0, 5)
        early = b.check(m, -5, 5)
        return b.add(early, late)

    program = program_of(body)
    assert place(program, 0) < place(program, 1)
    assert ends(program, VALUES) == [Overflow(0, 3 * 1_500_000, place(program))] * 3


def test_what_depends_on_a_failed_check_does_not_hide_it() -> None:
    def body(b: ProgramBuilder, m: Handle) -> Handle:
        index = b.check(b.reshape(b.slice(m, 0, 1, 2), (5,)), 0, 4)
        return b.gather(m, index, axis=1)

    program = program_of(body)
    assert ends(program, VALUES) == [Overflow(0, -500, place(program))] * 3
    inside = VALUES.clone()
    inside[1] = torch.tensor([4, 0, 0, 2, 3])
    assert ends(program, inside) == [None] * 3


def test_a_check_that_nothing_reads_ends_the_step_too() -> None:
    def body(b: ProgramBuilder, m: Handle) -> Handle:
        b.check(b.reduce_max(m, 1), -1000, 899)
        return m

    program = program_of(body)
    assert ends(program, VALUES) == [Overflow(3, 900, place(program))] * 3
    assert ends(program, VALUES.clamp(max=899)) == [None] * 3


@pytest.mark.parametrize(("lo", "hi"), [(-1000, 900), (-(2**62), 2**62), (-1000, 2**40)])
def test_a_check_on_its_bounds_passes(lo: int, hi: int) -> None:
    assert ends(program_of(lambda b, m: b.check(b.mul(m, b.constant(1)), lo, hi)), VALUES) == [None] * 3
