"""Locks between processes (and threads): a file that is locked as long as somebody holds it.

The kernel drops the lock when its holder dies, so a `kill -9` leaves nothing to clean up.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import StateError

_POLL_S = 0.02


@contextmanager
def hold(path: Path, *, timeout_s: float, busy: str, hint: str) -> Iterator[None]:
    """Holds the lock of `path`, waiting at most `timeout_s` for it; 0 means: now or not at all.

    Every call opens the file anew, so two threads of one process exclude each other as two processes do.
    Raises `StateError` S-20 that says `busy` and `hint` if somebody else keeps it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise StateError(busy, code="S-20", hint=hint) from None
                time.sleep(_POLL_S)
        yield
    finally:
        os.close(descriptor)


def identity(directory: Path, chain_id: int, address: str, role: str) -> Path:
    """The lock file that stands for one key in one role on one chain."""
    return directory / "locks" / f"{chain_id}-{address.lower()}-{role}.lock"


@contextmanager
def sole_agent(directory: Path, chain_id: int, address: str, role: str) -> Iterator[None]:
    """For the life of an agent: no second agent of the same role runs with this key out of `directory`.

    Raises `StateError` S-20 at once if one does. Commands of a person with the same key are not affected: they only
    take the short lock around a nonce (`protocol.sender`).
    """
    with hold(
        identity(directory, chain_id, address, role),
        timeout_s=0,
        busy=f"another {role} agent is running with key {address} on chain {chain_id}",
        hint="stop the other one first, or give this one an operator key and a data directory of its own",
    ):
        yield
