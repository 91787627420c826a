"""How fast this machine runs a program: what a node promises with its stake rests on it.

Steps and checkpoints are timed apart. A task says itself how often a checkpoint is due, and one that asks for a large
state on disk after every step spends its time there, not in the program.
"""

from __future__ import annotations

import time
from contextlib import suppress

from node.compute.desk import Checkpoint, Desk
from node.compute.view import Speed
from node.threads import run_settings
from proofs.exact.execute import LiveState, Overflowed, Stopped, run_unit
from proofs.exact.program import Program
from proofs.exact.state import State, encode_state, state_root
from proofs.results import unit_seed
from protocol.errors import StateError
from protocol.types import TaskSpec

WARM_UP_STEPS = 1
MEASURED_STEPS = 3


class Stopwatch:
    """Times steps and checkpoints as they end."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._steps: list[float] = []
        self._checkpoints: list[float] = []

    def step(self) -> None:
        self._steps.append(self._lap())

    def checkpoint(self) -> None:
        self._checkpoints.append(self._lap())

    @property
    def speed(self) -> Speed | None:
        """The mean of what was timed, the first step left out if there are others; None before there is one of each."""
        steps = self._steps[WARM_UP_STEPS:] or self._steps
        if not steps or not self._checkpoints:
            return None
        return Speed(sum(steps) / len(steps), sum(self._checkpoints) / len(self._checkpoints))

    def _lap(self) -> float:
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def measure(desk: Desk, program: Program, state: State, data: State, spec: TaskSpec) -> Speed:
    """A few steps on the real input and one checkpoint to the disk. A program so slow that a unit of it cannot be
    computed within the task's window costs no more than that window and the step that runs when it ends.

    Raises StateError S-49 if the program overflows before a step of it could be timed.
    """
    steps = WARM_UP_STEPS + MEASURED_STEPS
    over = time.perf_counter() + spec.compute_window_s
    watch = Stopwatch()

    def too_slow() -> bool:
        return time.perf_counter() > over

    def rehearse(done: int, reached: State) -> None:
        desk.rehearse(spec.task_id, Checkpoint(done, (state_root(reached),), encode_state(reached)))
        watch.checkpoint()

    def on_step(done: int, reached: LiveState) -> None:
        watch.step()
        if done == steps or too_slow():
            rehearse(done, reached)

    with suppress(Stopped):
        try:
            seed = unit_seed(spec.seed, 0)
            run_unit(program, state, data, seed, steps, steps, on_step=on_step, stop=too_slow, settings=run_settings())
        except Overflowed as over:
            if over.step == 0:
                raise StateError(
                    f"the program overflows in its first step: {over}",
                    code="S-49",
                    hint="nobody can finish a unit of this task; leave it",
                ) from over
            rehearse(over.step, over.state)
    speed = watch.speed
    assert speed is not None, "one step at least was run, and the last one is followed by a checkpoint"
    return speed


def measure_average(desk: Desk, state: State, spec: TaskSpec) -> Speed:
    """An average is a matter of hashing, decoding and writing states: one checkpoint stands for each."""
    started = time.perf_counter()
    desk.rehearse(spec.task_id, Checkpoint(1, (state_root(state),), encode_state(state)))
    taken_s = time.perf_counter() - started
    return Speed(taken_s, taken_s)
