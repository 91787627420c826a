"""The batch order compiled by numba: 128 indices in about 15 us. The definition is in proofs/exact/permutation.py."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from proofs.exact.permutation import ROUNDS


@njit("uint64(uint64)", cache=True, nogil=True)
def _mix64(word: Any) -> Any:
    z = word + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@njit("void(uint64, int64, int64, uint64, int64[::1])", cache=True, nogil=True)
def fill_indices(seed: Any, first: Any, n: Any, half: Any, out: Any) -> None:
    """out[i] = the sample at position first + i; `half` = half_bits(n)."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    base = _mix64(seed)
    for i in range(out.shape[0]):
        position = first + i
        key = _mix64(base ^ np.uint64(position // n))
        index = np.uint64(position % n)
        while True:
            left = index >> half
            right = index & mask
            for round_ in range(ROUNDS):
                mixed = _mix64(key ^ (np.uint64(round_) << np.uint64(32) | right))
                left, right = right, left ^ (mixed & mask)
            index = left << half | right
            if index < np.uint64(n):
                break
        out[i] = np.int64(index)
