"""Memory of a plan: values that live at one time never overlap, outputs that somebody holds are never written again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proofs.exact import plan
from proofs.exact.backend import arena, fused, steps
from proofs.exact.backend.arena import ALIGNMENT, Need, place
from proofs.exact.backend.memory import OutputPool
from proofs.exact.builder import ProgramBuilder
from proofs.exact.known_answers import noise, to_torch
from proofs.exact.overflow import Overflow
from proofs.exact.plan import Plan, peak_bytes
from proofs.exact.settings import Settings
from proofs.exact.tensor import ExactTensor, TensorType
from tests.support.programs import mlp, mlp_data, mlp_state

NEEDS = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 10)), min_size=1, max_size=30)


@given(NEEDS, st.sampled_from([0, 4096]))
def test_needs_that_overlap_in_time_do_not_overlap_in_memory(
    drawn: list[tuple[int, int, int]], most_compared: int
) -> None:
    needs = {i: Need(bytes_, first, first + length) for i, (bytes_, first, length) in enumerate(drawn)}
    with patch.object(arena, "MOST_COMPARED", most_compared):
        placed = place(needs)
    for i, one in needs.items():
        assert placed.offsets[i] % ALIGNMENT == 0
        assert placed.offsets[i] + one.bytes_ <= placed.bytes_
        for j, two in needs.items():
            together = i < j and one.first <= two.last and two.first <= one.last
            apart = (
                placed.offsets[i] + one.bytes_ <= placed.offsets[j]
                or placed.offsets[j] + two.bytes_ <= placed.offsets[i]
            )
            assert apart or not together


def test_values_that_follow_each_other_share_memory() -> None:
    needs = {i: Need(1000, i, i + 1) for i in range(50)}
    assert place(needs).bytes_ == 2 * 1024


def test_an_output_is_not_written_while_a_view_of_it_lives() -> None:
    pool = OutputPool((4,), torch.int32)
    first = pool.take()
    kept = first.reshape(2, 2).numpy()
    kept[:] = 7
    del first
    for _ in range(5):
        other = pool.take()
        other.fill_(1)
    assert kept.tolist() == [[7, 7], [7, 7]]


def test_an_output_that_nobody_holds_is_used_again() -> None:
    pool = OutputPool((4,), torch.int32)
    places = set()
    held = pool.take()
    for _ in range(10):
        following = pool.take()
        places.add(following.data_ptr())
        held = following
    assert held.shape == (4,)
    assert len(places) == 2


def test_states_that_a_caller_keeps_stay_as_they_were() -> None:
    program, data = mlp(samples=12, widths=(5, 4, 3), batch=4), mlp_data(12, 5, 3)
    made = Plan.of(program)
    bound = made.bind(data, 9)
    states = [mlp_state(program)]
    copies = []
    for _ in range(4):
        states.append(made.run(states[-1], bound))
        copies.append({name: tensor.copy() for name, tensor in states[-1].items()})
    assert states[1:] == copies
    assert len({tensor.values.data_ptr() for state in states[1:] for tensor in state.values()}) == 4 * len(states[0])


def swapping(b: ProgramBuilder) -> None:
    """Each state becomes a function of the other: the same element of both is read before either is written."""
    p, q = (b.state(name, TensorType((3, 50), 20)) for name in "pq")
    b.update("p", b.saturate(b.add(q, p), bits=20))
    b.update("q", b.saturate(b.sub(p, b.mul(q, b.constant(3))), bits=20))


def reading_across(b: ProgramBuilder) -> None:
    """One state's new value needs elements of the other that lie elsewhere."""
    p, q = (b.state(name, TensorType((30, 30), 20)) for name in "pq")
    b.update("p", b.saturate(b.add(b.transpose(p), q), bits=20))
    b.update("q", b.saturate(b.sub(b.transpose(p), q), bits=20))


@pytest.mark.parametrize("body", [swapping, reading_across], ids=lambda body: body.__name__)
def test_a_state_that_is_given_up_may_be_written_over_and_the_result_is_the_same(
    body: Callable[[ProgramBuilder], None],
) -> None:
    b = ProgramBuilder()
    body(b)
    program = b.build()
    start = {
        name: ExactTensor(type_, to_torch(noise(type_.shape, type_.lo, type_.hi, salt)))
        for salt, (name, type_) in enumerate(program.state_types.items())
    }
    made = Plan.of(program)
    bound = made.bind({}, 0)
    kept, given_up = start, {name: tensor.copy() for name, tensor in start.items()}
    for _ in range(3):
        kept = made.run(kept, bound)
        given_up = made.run(given_up, bound, consume=True)
        assert given_up == kept


def test_giving_up_the_state_needs_no_second_one() -> None:
    program, data = mlp(samples=12, widths=(5, 4, 3), batch=4), mlp_data(12, 5, 3)
    made = Plan.of(program)
    bound = made.bind(data, 9)
    before = made.run(mlp_state(program), bound)
    places = {name: tensor.values.data_ptr() for name, tensor in before.items()}
    after = made.run(before, bound, consume=True)
    assert {name: tensor.values.data_ptr() for name, tensor in after.items()} == places


def test_states_that_share_memory_are_not_written_over() -> None:
    b = ProgramBuilder()
    for name in "pq":
        b.update(name, b.saturate(b.add(b.state(name, TensorType((9,), 8)), b.constant(1)), bits=8))
    shared = ExactTensor(TensorType((9,), 8), torch.zeros(9, dtype=torch.int8))
    made = Plan.of(b.build())
    after = made.run({"p": shared, "q": shared}, made.bind({}, 0), consume=True)
    assert after["p"].values.tolist() == after["q"].values.tolist() == [1] * 9


def test_a_failed_check_leaves_the_state_as_it_was() -> None:
    b = ProgramBuilder()
    p = b.state("p", TensorType((9,), 20))
    b.update("p", b.check(b.add(p, b.constant(1)), -1000, 1000))
    made = Plan.of(b.build())
    state = {"p": ExactTensor(TensorType((9,), 20), torch.arange(9) + 996)}
    with pytest.raises(Overflow):
        made.run(state, made.bind({}, 0), consume=True)
    assert state["p"].values.tolist() == list(range(996, 1005))


def test_the_bound_on_memory_covers_the_arena_and_the_states() -> None:
    program = mlp(samples=64, widths=(16, 32, 32, 8), batch=16)
    made = Plan.of(program).fused
    assert made is not None
    states = 2 * sum(type_.nbytes for type_ in program.state_types.values())
    assert made.arena_bytes + states <= peak_bytes(program)


def test_the_bound_on_memory_counts_all_of_what_a_slice_keeps() -> None:
    """Ten values of a megabyte, of each of which one element is kept until all of them are there."""
    b = ProgramBuilder()
    t = b.state("t", TensorType((), 8))
    b.update("t", t)
    kept = [
        b.slice(
            b.random(t, stream=stream, bits=32, shape=(2**17,)),
            0,
            5,
            6,
        )
        for stream in range(10)
    ]
    total = kept[0]
    for one in kept[1:]:
        total = b.concat(total, one, axis=0)
    b.state("out", total.info.type)
    b.update("out", total)
    assert peak_bytes(b.build()) > 10 * 2**20


@pytest.mark.parametrize("limit", ["MOST_OPERATIONS", "MOST_KERNELS"])
def test_a_program_too_large_to_plan_runs_on_the_torch_kernels(
    limit: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused, limit, 3)
    made = Plan.of(mlp(samples=12, widths=(5, 4, 3), batch=4))
    assert made.fused is None
    assert "at most 3" in caplog.text


def test_a_program_that_takes_too_long_to_plan_runs_on_the_torch_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """9,000 kernels with a division each would compile for seven minutes."""
    program = mlp(samples=12, widths=(5, 4, 3), batch=4)
    Plan.of(program)
    monkeypatch.setattr(fused, "PLANNING_S", 0.0)
    assert Plan.of(program).fused is None
    assert "after 0.0 s 0 of" in caplog.text


def test_an_interrupted_step_waits_for_the_threads_that_still_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control-C reaches the thread that waits; the others must not be left with memory that is about to be freed."""
    monkeypatch.setattr(steps, "LEAST_SHARE", 1)
    b = ProgramBuilder()
    p = b.state("p", TensorType((4, 50), 8))
    b.update("p", b.saturate(b.add(p, b.constant(1)), bits=8))
    made = Plan.of(b.build(), Settings(threads=2))
    assert made.fused is not None
    (step,) = made.fused.steps
    assert isinstance(step, steps.KernelStep)
    interrupted, finished = threading.Event(), threading.Event()

    def share(address: int, begin: int, end: int) -> None:
        if begin == 0:
            interrupted.set()
            raise KeyboardInterrupt
        interrupted.wait(10)
        for _ in range(20):
            torch.zeros(10_000)
        finished.set()

    step.function = share
    state = {"p": ExactTensor(TensorType((4, 50), 8), torch.zeros(4, 50, dtype=torch.int8))}
    with pytest.raises(KeyboardInterrupt):
        made.run(state, made.bind({}, 0))
    assert finished.is_set()


def test_threads_share_a_reduction_only_where_copies_of_its_result_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 threads had 63 copies of it, which no bound on memory counts."""
    monkeypatch.setattr(steps, "LEAST_SHARE", 1)
    b = ProgramBuilder()
    p = b.state("p", TensorType((4, 50), 8))
    b.update("p", p)
    b.update("sum", b.add(b.state("sum", TensorType((1, 50), 12)), b.constant(0)))
    b.state("total", TensorType((1, 50), 10))
    b.update("total", b.reduce_sum(p, axis=0))
    program = b.build()
    state = {name: ExactTensor(type_, torch.ones(type_.shape).int()) for name, type_ in program.state_types.items()}
    made = Plan.of(program, Settings(threads=2))
    shared = []
    original = steps.KernelStep._run_shared

    def spy(step: steps.KernelStep, *rest: Any) -> None:
        shared.append(len(step.source.folds))
        original(step, *rest)

    monkeypatch.setattr(steps.KernelStep, "_run_shared", spy)
    first = made.run(state, made.bind({}, 0))
    assert 1 in shared
    shared.clear()
    monkeypatch.setattr(steps, "MOST_COPIED", 100)
    assert made.run(state, made.bind({}, 0)) == first
    assert 1 not in shared


def test_a_plan_that_would_hold_more_than_its_bound_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "step_bytes", lambda _: 100)
    assert Plan.of(mlp(samples=12, widths=(5, 4, 3), batch=4)).fused is None
