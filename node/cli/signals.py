"""Ctrl+C, in three steps: the first asks the work to stop, the second stops at once, and so does waiting too long.

Stopping at once is safe: agents keep everything that matters on disk or on the chain (`kill -9` is tested), so the only
loss is the work since the last checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from node.cli.output import INTERRUPTED, Output

STOP_GRACE_S = 5.0
"""From the first signal until the process leaves, finished or not."""


class StopRequest:
    """`event` is set once a stop was asked for; `exit_code` is what the process should then return.

    130 after SIGINT; 0 after SIGTERM, which is how a service manager asks for an orderly stop.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.signal: int | None = None

    @property
    def exit_code(self) -> int:
        return INTERRUPTED if self.signal == signal.SIGINT else 0


@contextmanager
def stop_on_signals(out: Output, *, grace_s: float = STOP_GRACE_S) -> Iterator[StopRequest]:
    """Turns SIGINT and SIGTERM into a StopRequest while the block runs. Main thread only."""
    request = StopRequest()
    finished = threading.Event()

    def leave_at_once() -> None:
        os._exit(INTERRUPTED)  # no clean-up on purpose: what must not be lost is on disk already

    def watch() -> None:
        if not finished.wait(grace_s):
            out.warn(f"still busy after {grace_s:g} s: leaving; work since the last checkpoint will be done again")
            leave_at_once()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.event.is_set():
            leave_at_once()
        request.signal = number
        request.event.set()
        out.note("finishing the step and saving; once more stops at once")
        threading.Thread(target=watch, name="stop-grace", daemon=True).start()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        finished.set()
        for number, handler in previous.items():
            signal.signal(number, handler)
