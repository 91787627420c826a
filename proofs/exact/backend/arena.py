"""One block of memory for everything that a step computes: each value gets a place for as long as somebody reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key")

ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vector."""


@dataclass(frozen=True, slots=True)
class Need:
    """`bytes_` from the time of the first write to the time of the last read, both included."""

    bytes_: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Placement(Generic[Key]):
    """Where each need begins, and how large the block has to be."""

    offsets: Mapping[Key, int]
    bytes_: int


def place(needs: Mapping[Key, Need]) -> Placement[Key]:
    """Best fit, the largest first: needs whose times overlap do not overlap in memory."""
    order = sorted(needs, key=lambda key: (-needs[key].bytes_, needs[key].first))
    placed: list[tuple[int, int, Need]] = []
    offsets: dict[Key, int] = {}
    total = 0
    for key in order:
        need = needs[key]
        size = rounded(need.bytes_)
        taken = sorted(
            (start, end) for start, end, other in placed if other.first <= need.last and need.first <= other.last
        )
        start = _best_gap(taken, size)
        offsets[key] = start
        placed.append((start, start + size, need))
        total = max(total, start + size)
    return Placement(offsets, total)


def _best_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """The start of the smallest gap that is large enough, or the end of all."""
    best: tuple[int, int] | None = None
    free = 0
    for start, end in taken:
        if start - free >= size and (best is None or start - free < best[0]):
            best = (start - free, free)
        free = max(free, end)
    return free if best is None else best[1]


def rounded(bytes_: int) -> int:
    """Up to a whole number of cache lines."""
    return -(-bytes_ // ALIGNMENT) * ALIGNMENT
