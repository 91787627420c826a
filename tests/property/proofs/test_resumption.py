"""However often a unit is killed and resumed from what was kept, it ends in the same roots as one that ran through."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proofs.exact.execute import Stopped, UnitRun, run_unit
from proofs.exact.initialise import zeros
from proofs.exact.state import State, decode_state, encode_state
from tests.support.programs import linear_regression, regression_data

PROGRAM, DATA = linear_regression(), regression_data()
START = {name: zeros(type_) for name, type_ in PROGRAM.state_types.items()}


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1, 12),
    interval=st.integers(1, 14),
    stops=st.sets(st.integers(1, 11)),
)
def test_stopping_anywhere_and_resuming_changes_nothing(seed: int, steps: int, interval: int, stops: set[int]) -> None:
    whole = run_unit(PROGRAM, START, DATA, seed, steps, interval)
    broken = run_in_pieces(seed, steps, interval, stops)
    assert broken.checkpoint_roots == whole.checkpoint_roots
    assert broken.final_state == whole.final_state


def run_in_pieces(seed: int, steps: int, interval: int, stops: set[int]) -> UnitRun:
    """Stopped after each of these steps, and resumed from bytes."""
    done, kept = 0, encode_state(START)
    roots: tuple[bytes, ...] = ()
    while True:
        here: list[int] = []

        def count(step: int, _: State, here: list[int] = here) -> None:
            here.append(step)

        def asked(here: list[int] = here) -> bool:
            return here[-1] in stops

        try:
            return run_unit(
                PROGRAM, decode_state(kept), DATA, seed, steps, interval,
                start_step=done, checkpoint_roots=roots, on_step=count, stop=asked,
            )  # fmt: skip
        except Stopped as stopped:
            done, kept, roots = stopped.step, encode_state(stopped.state), stopped.checkpoint_roots


@settings(max_examples=40)
@given(seed=st.integers(0, 2**63 - 1), steps=st.integers(1, 12), interval=st.integers(1, 14), data=st.data())
def test_a_crash_loses_nothing_before_the_last_checkpoint(
    seed: int, steps: int, interval: int, data: st.DataObject
) -> None:
    disk: list[tuple[int, bytes, tuple[bytes, ...]]] = []
    whole = run_unit(
        PROGRAM, START, DATA, seed, steps, interval,
        on_checkpoint=lambda step, state, roots: disk.append((step, encode_state(state), roots)),
    )  # fmt: skip
    step, kept, roots = data.draw(st.sampled_from(disk))
    resumed = run_unit(
        PROGRAM, decode_state(kept), DATA, seed, steps, interval, start_step=step, checkpoint_roots=roots
    )
    assert resumed.checkpoint_roots == whole.checkpoint_roots and resumed.final_state == whole.final_state
