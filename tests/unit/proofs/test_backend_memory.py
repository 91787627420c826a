"""Memory of a plan: values that live at one time never overlap, outputs that somebody holds are never written again."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proofs.exact import plan
from proofs.exact.backend import arena, fused
from proofs.exact.backend.arena import ALIGNMENT, Need, place
from proofs.exact.backend.memory import OutputPool
from proofs.exact.plan import Plan, peak_bytes
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


def test_the_bound_on_memory_covers_the_arena_and_the_states() -> None:
    program = mlp(samples=64, widths=(16, 32, 32, 8), batch=16)
    made = Plan.of(program).fused
    assert made is not None
    states = 2 * sum(type_.nbytes for type_ in program.state_types.values())
    assert made.arena_bytes + states <= peak_bytes(program)


@pytest.mark.parametrize("limit", ["MOST_OPERATIONS", "MOST_KERNELS"])
def test_a_program_too_large_to_plan_runs_on_the_torch_kernels(
    limit: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fused, limit, 3)
    made = Plan.of(mlp(samples=12, widths=(5, 4, 3), batch=4))
    assert made.fused is None
    assert "at most 3" in caplog.text


def test_a_plan_that_would_hold_more_than_its_bound_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "step_bytes", lambda _: 100)
    assert Plan.of(mlp(samples=12, widths=(5, 4, 3), batch=4)).fused is None
