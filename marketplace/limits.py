"""Rate limits: a token bucket per name (a network address, a sender). Simple, in memory, forgotten by a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from protocol.errors import UnreachableError

_MAX_NAMES = 50_000


class TooManyRequestsError(UnreachableError):
    """The server is there, but not for you right now. `retry_after_s` says when."""

    default_code = "N-32"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message, hint=f"try again in {max(1, round(retry_after_s))} s")
        self.retry_after_s = retry_after_s


class RateLimiter:
    """Each name may act `per_minute` times a minute, in bursts of as many."""

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = float(per_minute)
        self._per_s = per_minute / 60
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # name -> (tokens left, as of)

    def take(self, name: str) -> None:
        """Raises TooManyRequestsError when the name has used up its share."""
        now = self._clock()
        with self._lock:
            tokens, as_of = self._buckets.pop(name, (self._capacity, now))
            tokens = min(self._capacity, tokens + (now - as_of) * self._per_s)
            allowed = tokens >= 1
            self._buckets[name] = (tokens - 1 if allowed else tokens, now)
            if len(self._buckets) > _MAX_NAMES:  # the one that acted longest ago has the fullest bucket
                del self._buckets[next(iter(self._buckets))]
        if not allowed:
            raise TooManyRequestsError(f"{name} sends too fast", (1 - tokens) / self._per_s)
