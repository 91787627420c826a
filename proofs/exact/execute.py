"""Running a unit: a program for a number of steps from a state over a shard, with a state root at every checkpoint.

The result is a function of program, state, data, seed and steps alone. Where it stopped and resumed, how many threads
it had, who watched: none of it changes a bit, and tests hold it to that.

Memory: the state that a step reads and the one that it makes; while a checkpoint is handed out, its copy as well. Roots
are made as the checkpoints come, so nothing grows with the number of steps but 32 bytes for each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from proofs.exact.overflow import Overflow
from proofs.exact.plan import Plan
from proofs.exact.program import Program
from proofs.exact.settings import Settings
from proofs.exact.state import State, state_root
from proofs.exact.tensor import ExactTensor
from proofs.exact.tensor_type import INT64_MAX, TensorType
from proofs.results import checkpoint_count, overflow_root


class ExecutionError(ValueError):
    """Inputs that aren't what the program declares, or a checkpoint that can't be resumed from."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is. The first step of a run is left out of the throughput: it makes kernels ready as well."""

    step: int
    """Steps done, those of earlier runs of the unit included."""
    steps: int
    steps_per_s: float | None
    """Checkpoints and callbacks included; None until the second step of this run is done."""

    @property
    def left_s(self) -> float | None:
        return None if self.steps_per_s is None else (self.steps - self.step) / self.steps_per_s


class LiveState(Mapping[str, ExactTensor]):
    """The state after the step just done, where the plan keeps it, and how far the run is.

    A view: the next step may write over it. What is to outlast the callback must be copied (`copy`).
    """

    __slots__ = ("_tensors", "progress")

    def __init__(self, tensors: Mapping[str, ExactTensor], progress: Progress) -> None:
        self._tensors = tensors
        self.progress = progress

    def __getitem__(self, name: str) -> ExactTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def copy(self) -> dict[str, ExactTensor]:
        """The same state in memory of its own."""
        return {name: tensor.copy() for name, tensor in self._tensors.items()}


OnStep = Callable[[int, LiveState], None]
OnCheckpoint = Callable[[int, State, tuple[bytes, ...]], None]


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


class Overflowed(Exception):  # noqa: N818 — not an error of the run: it is how this unit ends, on every machine
    """The step after `step` met a CHECK whose operand was out of bounds: the unit ends in the OVERFLOW state.

    `operation` is the CHECK's place in `program.ops`, `element` the place in row-major order, `value` what was there.
    `state` is the last good state, the one after `step` steps; `checkpoint_roots` are those up to it.
    """

    def __init__(self, step: int, cause: Overflow, state: State, checkpoint_roots: tuple[bytes, ...]) -> None:
        if cause.operation is None:
            raise ValueError("an overflow that does not say of which operation")
        super().__init__(
            f"step {step + 1}: operation {cause.operation} allows no {cause.value} (element {cause.element})"
        )
        self.step = step
        self.operation = cause.operation
        self.element = cause.element
        self.value = cause.value
        self.state = state
        self.checkpoint_roots = checkpoint_roots

    @property
    def root(self) -> bytes:
        """The OVERFLOW state's root (docs/protocol.md section 1). Hashes the last good state."""
        return overflow_root(
            state_root=state_root(self.state),
            step=self.step,
            operation=self.operation,
            element=self.element,
            value=self.value,
        )

    def committed_roots(self, steps: int, checkpoint_interval: int) -> tuple[bytes, ...]:
        """The unit's checkpoint roots: OVERFLOW absorbs, so every checkpoint that was not reached has its root."""
        missing = checkpoint_count(steps, checkpoint_interval) - len(self.checkpoint_roots)
        return self.checkpoint_roots + (self.root,) * missing


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
    settings: Settings | None = None,
    plan: Plan | None = None,
) -> UnitRun:
    """Run `program` for `steps` steps in all, from `state`, which is the one after `start_step` steps.

    `seed` is 63 bits (results.unit_seed). After each step `on_step(steps done, live state)`, a view that is good until
    it returns; after every `checkpoint_interval` steps and after the last one `on_checkpoint(steps done, state, roots
    so far)` with a state of its own, before which nothing of that checkpoint exists. `checkpoint_roots` are those up to
    `start_step`, the input state's first; left out at the start. `stop()` is asked after every step but the last.
    `plan`, made of this program, saves making one; no two runs may share it at the same time. `settings` are its.

    Raises ExecutionError before the first step if names, types, seed or the resumption don't fit (a state to resume
    from that is a checkpoint must have that checkpoint's root, so one flipped bit is found), Stopped if stopped,
    Overflowed if a CHECK failed.
    """
    count = checkpoint_count(steps, checkpoint_interval)
    _check_types("state", state, program.state_types)
    _check_types("data", data, program.data_types)
    if not 0 <= seed <= INT64_MAX:
        raise ExecutionError(f"seed {seed} is not of 63 bits")
    current = {name: state[name] for name in program.state_types}
    roots = _resumed_roots(current, start_step, steps, checkpoint_interval, checkpoint_roots)
    if start_step == steps:
        return UnitRun(roots, current)
    plan = plan or Plan.of(program, settings or Settings())
    bound = plan.bind(dict(data), seed)
    clock = _Clock(start_step, steps)
    for done in range(start_step + 1, steps + 1):
        try:
            # From the second step on the state is ours: what callbacks saw was good until they returned.
            current = plan.run(current, bound, consume=done > start_step + 1)
        except Overflow as cause:
            raise Overflowed(done - 1, cause, _own(current), roots) from cause
        if on_step is not None:
            on_step(done, LiveState(current, clock.progress(done)))
        if done % checkpoint_interval == 0 or done == steps:
            roots = (*roots, state_root(current, plan.settings.threads))
            if on_checkpoint is not None:
                on_checkpoint(done, _own(current), roots)
        if done < steps and stop is not None and stop():
            raise Stopped(done, _own(current), roots)
    assert len(roots) == count
    return UnitRun(roots, _own(current))


class _Clock:
    """Time since the first step of a run was done."""

    def __init__(self, start_step: int, steps: int) -> None:
        self._first = start_step + 1
        self._steps = steps
        self._since_s: float | None = None

    def progress(self, done: int) -> Progress:
        now_s = time.perf_counter()
        if self._since_s is None:
            self._since_s = now_s
            return Progress(done, self._steps, None)
        return Progress(done, self._steps, (done - self._first) / max(now_s - self._since_s, 1e-9))


def _own(state: State) -> dict[str, ExactTensor]:
    return {name: tensor.copy() for name, tensor in state.items()}


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
    if at_end or start_step % interval == 0:
        found = state_root(state)
        if found != roots[-1]:
            raise ExecutionError(
                f"the state to resume from is not the one of the checkpoint at step {start_step}:"
                f" its root is {found.hex()[:16]}, the checkpoint's {roots[-1].hex()[:16]}"
            )
    return tuple(roots)
