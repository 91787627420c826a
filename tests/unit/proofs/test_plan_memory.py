"""Where the executor may write over a dead value, and where that would be wrong: no condition can be removed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.execute import run_unit
from proofs.exact.known_answers import from_torch
from proofs.exact.opcodes import Opcode
from proofs.exact.reference import reference_step
from proofs.exact.settings import Settings
from proofs.exact.tensor import ExactTensor, TensorType
from proofs.exact.unfused import UnfusedPlan

SHAPING = ("reshape", "broadcast")
SQUARE = TensorType((3, 3), 16)
Body = Callable[[ProgramBuilder, Handle], Handle]


def fresh(b: ProgramBuilder, m: Handle) -> Handle:
    """A value that an operation of this step owns."""
    return b.add(m, b.constant(5))


def twice(b: ProgramBuilder, m: Handle) -> Handle:
    x = fresh(b, m)
    return b.add(x, x)


def with_its_transpose(b: ProgramBuilder, m: Handle) -> Handle:
    x = fresh(b, m)
    return b.sub(x, b.transpose(x))


def while_a_view_lives_on(b: ProgramBuilder, m: Handle) -> Handle:
    x = fresh(b, m)
    view = b.transpose(x)
    doubled = b.mul(x, b.constant(2))
    return b.add(doubled, view)


def through_a_rescale_by_nothing(b: ProgramBuilder, m: Handle) -> Handle:
    x = fresh(b, m)
    same = b._op(Opcode.RESCALE, x, attributes=(0, 60))  # the builder's own methods would leave it out
    doubled = b.mul(same, b.constant(2))
    return b.add(doubled, x)


def over_a_repeated_row(b: ProgramBuilder, m: Handle) -> Handle:
    row = b.reduce_sum(fresh(b, m), axis=0)
    return b.add(b.broadcast(row, (3, 3)), b.constant(1))


def over_a_state(b: ProgramBuilder, m: Handle) -> Handle:
    return b.add(b.relu(b.transpose(m)), m)


def over_a_constant(b: ProgramBuilder, m: Handle) -> Handle:
    table = b.constant(list(range(9)), shape=(3, 3))
    return b.add(b.mul(b.reshape(table, (3, 3)), b.constant(3)), m)


def a_scalar_from_a_table(b: ProgramBuilder, m: Handle) -> Handle:
    top = b.clamp(b.reshape(b.reduce_max(b.reduce_max(m, 0), 1), ()), 0, 3)
    found = b.mul(b.lookup(top, b.constant([4, 3, 2, 1])), b.constant(10))
    return b.add(m, found)


BODIES = (
    twice,
    with_its_transpose,
    while_a_view_lives_on,
    through_a_rescale_by_nothing,
    over_a_repeated_row,
    over_a_state,
    over_a_constant,
    a_scalar_from_a_table,
)


@pytest.mark.parametrize("settings", [Settings(), Settings(fuse=False)], ids=["fused", "torch"])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_writing_over_dead_values_changes_no_result(body: Body, settings: Settings) -> None:
    b = ProgramBuilder()
    m = b.state("m", SQUARE)
    b.update("m", b.saturate(body(b, m), bits=16))
    program = b.build()
    start = {"m": ExactTensor(SQUARE, torch.arange(-4, 5).reshape(3, 3) ** 3)}
    seen: list[dict[str, object]] = []
    run_unit(
        program,
        start,
        {},
        0,
        3,
        3,
        on_step=lambda _, after: seen.append({"m": from_torch(after["m"].values)}),
        settings=settings,
    )
    wanted = {"m": from_torch(start["m"].values)}
    for after in seen:
        wanted = reference_step(program, wanted, {}, 0)
        assert after == wanted


def test_a_chain_of_elementwise_operations_allocates_once() -> None:
    b = ProgramBuilder()
    m = b.state("m", SQUARE)
    x = b.relu(b.mul(b.add(m, b.constant(1)), b.constant(3)))
    b.update("m", b.rescale(x, frac=0, bits=16))
    reused = [step.call.reuse for step in UnfusedPlan.of(b.build()).instructions if step.kernel.__name__ not in SHAPING]
    assert reused == [None, 0, 0, 0]
