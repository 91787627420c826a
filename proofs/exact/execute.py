"""Running a unit: a program for a number of steps from a state over a shard, with a state root at every checkpoint.

The result is a function of program, state, data, seed and steps alone. Where it stopped and resumed, how many threads
it had, who watched: none of it changes a bit, and tests hold it to that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from proofs.exact.plan import Plan
from proofs.exact.program import Program
from proofs.exact.state import State, state_root
from proofs.exact.tensor_type import INT64_MAX, TensorType
from proofs.results import checkpoint_count

OnStep = Callable[[int, State], None]
OnCheckpoint = Callable[[int, State, tuple[bytes, ...]], None]


class ExecutionError(ValueError):
    """Inputs that aren't what the program declares, or a checkpoint that can't be resumed from."""


@dataclass(frozen=True, slots=True)
class UnitRun:
    """State roots (the input state's first, the final state's last) and the state after the last step."""

    checkpoint_roots: tuple[bytes, ...]
    final_state: State


class Stopped(Exception):  # noqa: N818 — not an error: the caller asked for it
    """`stop` returned True after `step` steps. Resume with start_step=step, this state and these roots."""

    def __init__(self, step: int, state: State, checkpoint_roots: tuple[bytes, ...]) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step
        self.state = state
        self.checkpoint_roots = checkpoint_roots


def run_unit(
    program: Program,
    state: State,
    data: State,
    seed: int,
    steps: int,
    checkpoint_interval: int,
    *,
    start_step: int = 0,
    checkpoint_roots: Sequence[bytes] = (),
    on_step: OnStep | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    stop: Callable[[], bool] | None = None,
) -> UnitRun:
    """Run `program` for `steps` steps in all, from `state`, which is the one after `start_step` steps.

    `seed` is 63 bits (results.unit_seed). After each step `on_step(steps done, state)`; after every
    `checkpoint_interval` steps and after the last one `on_checkpoint(steps done, state, roots so far)`, before which
    nothing of that checkpoint exists. Callbacks get states that nobody writes to again. `checkpoint_roots` are those
    up to `start_step`, the input state's first; left out at the start. `stop()` is asked after every step but the last.

    Raises ExecutionError before the first step if names, types, seed or the resumption don't fit; Stopped if stopped.
    """
    count = checkpoint_count(steps, checkpoint_interval)
    _check_types("state", state, program.state_types)
    _check_types("data", data, program.data_types)
    if not 0 <= seed <= INT64_MAX:
        raise ExecutionError(f"seed {seed} is not of 63 bits")
    current = {name: state[name] for name in program.state_types}
    roots = _resumed_roots(current, start_step, steps, checkpoint_interval, checkpoint_roots)
    plan = Plan.of(program)
    bound = plan.bind(dict(data), seed)
    for done in range(start_step + 1, steps + 1):
        current = plan.run(current, bound)
        if on_step is not None:
            on_step(done, current)
        if done % checkpoint_interval == 0 or done == steps:
            roots = (*roots, state_root(current))
            if on_checkpoint is not None:
                on_checkpoint(done, current, roots)
        if done < steps and stop is not None and stop():
            raise Stopped(done, current, roots)
    assert len(roots) == count
    return UnitRun(roots, current)


def _check_types(what: str, given: State, wanted: Mapping[str, TensorType]) -> None:
    if given.keys() != wanted.keys():
        raise ExecutionError(f"{what} has tensors {sorted(given)}, the program wants {sorted(wanted)}")
    for name, type_ in wanted.items():
        if given[name].type != type_:
            raise ExecutionError(f"{what} {name!r} is {given[name].type}, the program wants {type_}")


def _resumed_roots(
    state: State, start_step: int, steps: int, interval: int, roots: Sequence[bytes]
) -> tuple[bytes, ...]:
    """The checkpoint roots at `start_step`; where that is a checkpoint itself, the state must be the one it names."""
    if not 0 <= start_step <= steps:
        raise ExecutionError(f"can't start at step {start_step} of {steps}")
    if start_step == 0 and not roots:
        return (state_root(state),)
    at_end = start_step == steps
    expected = checkpoint_count(steps, interval) if at_end else 1 + start_step // interval
    if len(roots) != expected:
        raise ExecutionError(f"{len(roots)} checkpoint roots at step {start_step}: there should be {expected}")
    if (at_end or start_step % interval == 0) and state_root(state) != roots[-1]:
        raise ExecutionError(f"the state to resume from is not the one of the checkpoint at step {start_step}")
    return tuple(roots)
