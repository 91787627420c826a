"""Threads that train and fetch while the agent's own thread watches the chain.

torch and the network release the interpreter, so a thread is enough; its kernels are pinned by `node.threads`. A job is
asked to stop between two steps and saves before it ends. What a thread knows that the disk does not is its progress and
the reason for a failure, both of which a restart may lose.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from node.naming import name_of
from protocol.errors import AvenueError

KeyT = TypeVar("KeyT", bound=Hashable)

FIRST_PAUSE_S = 1.0
LAST_PAUSE_S = 60.0
FORGET_AFTER_S = 600.0

log = structlog.get_logger(__name__)

Stop = Callable[[], bool]
Job = Callable[[Stop], None]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job is. `loss` in nats, None if the state carries none."""

    step: int
    steps: int
    loss: float | None
    steps_per_s: float | None = None
    """Checkpoints included; None until two steps were done."""
    left_s: float | None = None


class Cooldown(Generic[KeyT]):
    """What failed is left alone for 1, 2, 4 .. 60 s (monotonic clock), so that nothing is retried in a spin."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[KeyT, tuple[float, float]] = {}

    def failed(self, key: KeyT) -> float:
        """Notes a failure. Returns the pause, s."""
        now = self._clock()
        self._until = {k: v for k, v in self._until.items() if now < v[0] + FORGET_AFTER_S}
        _, pause = self._until.get(key, (0.0, FIRST_PAUSE_S / 2))
        pause = min(2 * pause, LAST_PAUSE_S)
        self._until[key] = (now + pause, pause)
        return pause

    def succeeded(self, key: KeyT) -> None:
        self._until.pop(key, None)

    def holds(self, key: KeyT) -> bool:
        return self._clock() < self._until.get(key, (0.0, 0.0))[0]


class Workshop(Generic[KeyT]):
    """Jobs by key, one thread each. All methods may be called from any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._threads: dict[KeyT, threading.Thread] = {}
        self._stops: dict[KeyT, threading.Event] = {}
        self._failures: Cooldown[KeyT] = Cooldown()
        self._progress: dict[KeyT, Progress] = {}
        self.done = threading.Event()
        """Set whenever a job ends: the agent need not wait for its next tick."""

    def start(self, key: KeyT, job: Job) -> None:
        """Runs `job` in a thread unless one with this key is running or failed a moment ago."""
        with self._lock:
            if key in self._threads or self._failures.holds(key):
                return
            stop = threading.Event()
            thread = threading.Thread(target=self._run, args=(key, job, stop), name=f"{self._name} {key}", daemon=True)
            self._threads[key], self._stops[key] = thread, stop
            thread.start()

    def report(self, key: KeyT, at: Progress) -> None:
        self._progress[key] = at

    @property
    def running(self) -> frozenset[KeyT]:
        with self._lock:
            return frozenset(self._threads)

    @property
    def progress(self) -> dict[KeyT, Progress]:
        """Of the running jobs."""
        with self._lock:
            return {key: self._progress[key] for key in self._threads if key in self._progress}

    def failed(self, key: KeyT) -> bool:
        """Whether the job failed a moment ago."""
        with self._lock:
            return self._failures.holds(key)

    def stop(self, key: KeyT) -> None:
        """Asks one job to end; does not wait."""
        with self._lock:
            if key in self._stops:
                self._stops[key].set()

    def stop_all(self, timeout_s: float) -> bool:
        """Asks every job to end and waits. Returns whether all did."""
        with self._lock:
            threads = list(self._threads.values())
            for stop in self._stops.values():
                stop.set()
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _run(self, key: KeyT, job: Job, stop: threading.Event) -> None:
        failure: Exception | None = None
        try:
            job(stop.is_set)
        except (AvenueError, ValueError, OSError, RuntimeError, MemoryError) as error:
            # RuntimeError and MemoryError are how torch says that a task is too large for this machine.
            failure = error
        except Exception as error:
            log.exception(f"{self._name} has a bug", job=name_of(key))
            failure = error
        finally:
            with self._lock:
                del self._threads[key], self._stops[key]
                self._progress.pop(key, None)
                if failure is None:
                    self._failures.succeeded(key)
                else:
                    pause_s = self._failures.failed(key)
                    log.warning(f"{self._name} failed", job=name_of(key), why=str(failure), again_in_s=pause_s)
            self.done.set()
