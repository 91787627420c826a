"""One block of memory for everything that a step computes: each value gets a place for as long as somebody reads it."""

from __future__ import annotations

import heapq
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


MOST_COMPARED = 4096
"""Needs up to which each is compared with all others, which packs tighter and takes time by the square."""


def place(needs: Mapping[Key, Need]) -> Placement[Key]:
    """Best fit: needs whose times overlap do not overlap in memory. The largest are placed first, or, where there are
    very many, the earliest."""
    return _largest_first(needs) if len(needs) <= MOST_COMPARED else _earliest_first(needs)


def _largest_first(needs: Mapping[Key, Need]) -> Placement[Key]:
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


def _earliest_first(needs: Mapping[Key, Need]) -> Placement[Key]:
    """As a running program would: take on the first write, give back after the last read. Blocks are kept by size, one
    list for each, and not merged."""
    free: dict[int, list[int]] = {}
    ending: list[tuple[int, int, int]] = []
    offsets: dict[Key, int] = {}
    total = 0
    for key in sorted(needs, key=lambda key: needs[key].first):
        need = needs[key]
        while ending and ending[0][0] < need.first:
            _, size, start = heapq.heappop(ending)
            free.setdefault(size, []).append(start)
        size = rounded(need.bytes_)
        if free.get(size):
            start = free[size].pop()
        else:
            start = total
            total += size
        offsets[key] = start
        heapq.heappush(ending, (need.last, size, start))
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
