"""Where this machine keeps what it can make again: compiled kernels, timings."""

from __future__ import annotations

import os
from pathlib import Path


def cache_home() -> Path | None:
    """The folder of all caches; None for a user without a home, as in a container with any user's id."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "avenue"
    except RuntimeError:
        return None
