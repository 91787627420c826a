"""Tests wait on conditions, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable

_TIMEOUT_S = 30.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns as soon as `condition()` is true. Raises `AssertionError` if it is not within half a minute."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
