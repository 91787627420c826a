"""What each operation means, on Python integers: the executable specification.

Kernels, golden vectors and (in Solidity) element checks are all compared with this file. It is written to be read
against the formula, not to be fast. Shapes are already known to fit: proofs/exact/ranges.py refuses the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from proofs.exact import permutation


@dataclass(frozen=True, slots=True)
class IntArray:
    """Python integers in row-major order."""

    shape: tuple[int, ...]
    values: tuple[int, ...]

    def at(self, *index: int) -> int:
        place = 0
        for side, i in zip(self.shape, index, strict=True):
            place = place * side + i
        return self.values[place]

    def map(self, values: Sequence[int]) -> IntArray:
        """The same shape with other values."""
        return IntArray(self.shape, tuple(values))


def indices(shape: tuple[int, ...]) -> Sequence[tuple[int, ...]]:
    """Every index of a shape, in row-major order."""
    return list(product(*(range(side) for side in shape)))


def matmul_nt(a: IntArray, b: IntArray) -> IntArray:
    """[m, k], [n, k] -> [m, n]: out[i, j] = sum_k a[i, k] * b[j, k]."""
    (m, k), (n, _) = a.shape, b.shape
    dots = (sum(a.at(i, x) * b.at(j, x) for x in range(k)) for i in range(m) for j in range(n))
    return IntArray((m, n), tuple(dots))


def transpose(a: IntArray) -> IntArray:
    """[m, n] -> [n, m]."""
    m, n = a.shape
    return IntArray((n, m), tuple(a.at(i, j) for j in range(n) for i in range(m)))


def add(a: IntArray, b: IntArray) -> IntArray:
    return a.map([x + y for x, y in zip(a.values, b.values, strict=True)])


def sub(a: IntArray, b: IntArray) -> IntArray:
    return a.map([x - y for x, y in zip(a.values, b.values, strict=True)])


def mul(a: IntArray, b: IntArray) -> IntArray:
    return a.map([x * y for x, y in zip(a.values, b.values, strict=True)])


def rescale(a: IntArray, shift: int, bits: int) -> IntArray:
    """Divide by 2^shift, halves rounded up, and saturate to `bits`. Python's >> is a floor, below zero as well."""
    half = 1 << shift >> 1
    lo, hi = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return a.map([min(max((x + half) >> shift, lo), hi) for x in a.values])


def clamp(a: IntArray, lo: int, hi: int) -> IntArray:
    return a.map([min(max(x, lo), hi) for x in a.values])


def relu(a: IntArray) -> IntArray:
    return a.map([max(x, 0) for x in a.values])


def positive(a: IntArray) -> IntArray:
    """1 where x > 0, else 0."""
    return a.map([int(x > 0) for x in a.values])


def lookup(index: IntArray, table: IntArray) -> IntArray:
    """table[x] for every element x of the index, whatever its shape."""
    return index.map([table.values[x] for x in index.values])


def reduce_sum(a: IntArray, axis: int) -> IntArray:
    """Sum along an axis, which stays with length 1."""
    return _reduce(a, axis, sum)


def reduce_max(a: IntArray, axis: int) -> IntArray:
    """Greatest element along an axis, which stays with length 1."""
    return _reduce(a, axis, max)


def _reduce(a: IntArray, axis: int, fold: object) -> IntArray:
    assert callable(fold)
    shape = (*a.shape[:axis], 1, *a.shape[axis + 1 :])
    lines = ([a.at(*i[:axis], x, *i[axis + 1 :]) for x in range(a.shape[axis])] for i in indices(shape))
    return IntArray(shape, tuple(fold(line) for line in lines))


def div_floor(a: IntArray, b: IntArray) -> IntArray:
    """The greatest q with q * y <= x, for y >= 1."""
    return a.map([x // y for x, y in zip(a.values, b.values, strict=True)])


def broadcast(a: IntArray, *shape: int) -> IntArray:
    """Repeat along every axis of length 1 up to the shape, which has the same number of axes."""
    places = (tuple(0 if side == 1 else i for side, i in zip(a.shape, index, strict=True)) for index in indices(shape))
    return IntArray(shape, tuple(a.at(*place) for place in places))


def reshape(a: IntArray, *shape: int) -> IntArray:
    """The same elements in the same row-major order."""
    return IntArray(shape, a.values)


def gather(a: IntArray, index: IntArray) -> IntArray:
    """[n, ...], [b] -> [b, ...]: rows of `a`, in the order of the index."""
    size = math.prod(a.shape[1:])
    rows = (a.values[row * size : (row + 1) * size] for row in index.values)
    return IntArray((*index.shape, *a.shape[1:]), tuple(value for row in rows for value in row))


def one_hot(a: IntArray, classes: int) -> IntArray:
    """[...] -> [..., classes]: 1 at place x, else 0. All zeros for x outside 0..classes-1."""
    return IntArray((*a.shape, classes), tuple(int(x == c) for x in a.values for c in range(classes)))


def permute(seed: IntArray, t: IntArray, n: int, batch: int) -> IntArray:
    """Two scalars -> [batch]: which of n samples step t takes (proofs/exact/permutation.py)."""
    return IntArray((batch,), tuple(permutation.batch_indices(seed.values[0], t.values[0], n, batch)))
