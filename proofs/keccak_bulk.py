"""Keccak-256 of many short messages, compiled by numba: about 0.5 us a permutation, where a call per hash costs 20 us.

Imported only by `proofs.hashing`, and only when there is enough to hash, because importing numba takes half a second.
The signature is explicit and the result cached on disk, so the first use in a process loads instead of compiling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit, types

if TYPE_CHECKING:
    from numpy.typing import NDArray

RATE_BYTES = 136
RATE_WORDS = 17

ROUND_CONSTANTS = np.array(
    [
        0x0000000000000001, 0x0000000000008082, 0x800000000000808A, 0x8000000080008000,
        0x000000000000808B, 0x0000000080000001, 0x8000000080008081, 0x8000000000008009,
        0x000000000000008A, 0x0000000000000088, 0x0000000080008009, 0x000000008000000A,
        0x000000008000808B, 0x800000000000008B, 0x8000000000008089, 0x8000000000008003,
        0x8000000000008002, 0x8000000000000080, 0x000000000000800A, 0x800000008000000A,
        0x8000000080008081, 0x8000000000008080, 0x0000000080000001, 0x8000000080008008,
    ],
    dtype=np.uint64,
)  # fmt: skip

# Lane (x, y) of the state is word x + 5 y. `SOURCE[i]` is the lane that rho and pi move to place i, rotated by
# `ROTATION[i]` bits.
_OFFSETS = ((0, 36, 3, 41, 18), (1, 44, 10, 45, 2), (62, 6, 43, 15, 61), (28, 55, 25, 21, 56), (27, 20, 39, 8, 14))
SOURCE = np.zeros(25, dtype=np.int64)
ROTATION = np.zeros(25, dtype=np.uint64)
for _x in range(5):
    for _y in range(5):
        _target = _y + 5 * ((2 * _x + 3 * _y) % 5)
        SOURCE[_target] = _x + 5 * _y
        ROTATION[_target] = _OFFSETS[_x][_y]


@njit(inline="always")
def _rotate_left(word: Any, bits: Any) -> Any:
    return (word << bits) | (word >> ((np.uint64(64) - bits) & np.uint64(63)))


@njit("void(uint64[::1], uint64[::1], uint64[::1])", cache=True, nogil=True)
def _permute(a: Any, b: Any, c: Any) -> None:
    """Keccak-f[1600] on `a` in place; `b` (25 words) and `c` (5 words) are scratch."""
    for round_constant in ROUND_CONSTANTS:
        for x in range(5):
            c[x] = a[x] ^ a[x + 5] ^ a[x + 10] ^ a[x + 15] ^ a[x + 20]
        for x in range(5):
            parity = c[(x + 4) % 5] ^ _rotate_left(c[(x + 1) % 5], np.uint64(1))
            for y in range(5):
                a[x + 5 * y] ^= parity
        for i in range(25):
            b[i] = _rotate_left(a[SOURCE[i]], ROTATION[i])
        for y in range(5):
            for x in range(5):
                a[x + 5 * y] = b[x + 5 * y] ^ ((~b[(x + 1) % 5 + 5 * y]) & b[(x + 2) % 5 + 5 * y])
        a[0] ^= round_constant


# Read-only, so that bytes are taken without a copy; numba passes writable arrays there too.
_BYTES = types.Array(types.uint8, 1, "C", readonly=True)


@njit(types.void(_BYTES, types.int64, types.uint8, types.uint8[:, ::1]), cache=True, nogil=True)
def hash_chunks(buffer: NDArray[np.uint8], chunk: int, prefix: int, out: NDArray[np.uint8]) -> None:
    """out[i] = keccak256(prefix byte || i-th `chunk` bytes of `buffer`); the last chunk may be shorter.

    `out` has ceil(len(buffer) / chunk) rows of 32 bytes.
    """
    scratch = np.zeros((chunk + 1) // RATE_BYTES * RATE_BYTES + RATE_BYTES, dtype=np.uint8)
    words = scratch.view(np.uint64)
    a = np.zeros(25, dtype=np.uint64)
    b = np.zeros(25, dtype=np.uint64)
    c = np.zeros(5, dtype=np.uint64)
    digest = a.view(np.uint8)
    for row in range(out.shape[0]):
        start = row * chunk
        length = min(chunk, buffer.shape[0] - start)
        blocks = (length + 1) // RATE_BYTES + 1
        scratch[0] = prefix
        scratch[1 : length + 1] = buffer[start : start + length]
        scratch[length + 1 : blocks * RATE_BYTES] = 0
        scratch[length + 1] = 0x01
        scratch[blocks * RATE_BYTES - 1] |= 0x80
        a[:] = 0
        for block in range(blocks):
            for i in range(RATE_WORDS):
                a[i] ^= words[block * RATE_WORDS + i]
            _permute(a, b, c)
        out[row, :] = digest[:32]
