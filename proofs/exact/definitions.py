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
from proofs.exact.overflow import Overflow
from proofs.exact.permutation import mix64


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
    """[..., m, k], [..., n, k] -> [..., m, n]: out[.., i, j] = sum_k a[.., i, k] * b[.., j, k]."""
    *leading, m, k = a.shape
    shape = (*leading, m, b.shape[-2])
    rows = ((index[:-1], (*index[:-2], index[-1])) for index in indices(shape))
    return IntArray(shape, tuple(sum(a.at(*i, x) * b.at(*j, x) for x in range(k)) for i, j in rows))


def transpose(a: IntArray, *axes: int) -> IntArray:
    """Axis i of the result is axis axes[i] of `a`, for a permutation of all axes."""
    shape = tuple(a.shape[axis] for axis in axes)
    place = [axes.index(axis) for axis in range(len(axes))]
    return IntArray(shape, tuple(a.at(*(index[i] for i in place)) for index in indices(shape)))


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


def gather(a: IntArray, index: IntArray, axis: int) -> IntArray:
    """[.., n, ..], [b] -> [.., b, ..]: out[.., i, ..] = a[.., index[i], ..], at this axis."""
    shape = (*a.shape[:axis], *index.shape, *a.shape[axis + 1 :])
    chosen = (a.at(*i[:axis], index.at(i[axis]), *i[axis + 1 :]) for i in indices(shape))
    return IntArray(shape, tuple(chosen))


def one_hot(a: IntArray, classes: int) -> IntArray:
    """[...] -> [..., classes]: 1 at place x, else 0. All zeros for x outside 0..classes-1."""
    return IntArray((*a.shape, classes), tuple(int(x == c) for x in a.values for c in range(classes)))


def permute(seed: IntArray, t: IntArray, n: int, batch: int) -> IntArray:
    """Two scalars -> [batch]: which of n samples step t takes (proofs/exact/permutation.py)."""
    return IntArray((batch,), tuple(permutation.batch_indices(seed.values[0], t.values[0], n, batch)))


def scatter_add(a: IntArray, index: IntArray, size: int) -> IntArray:
    """[..., n], [n] -> [..., size]: out[.., j] = sum of a[.., i] over all i with index[i] = j; 0 for none."""
    shape = (*a.shape[:-1], size)
    members: list[list[int]] = [[] for _ in range(size)]
    for i, j in enumerate(index.values):
        members[j].append(i)
    return IntArray(shape, tuple(sum(a.at(*place[:-1], i) for i in members[place[-1]]) for place in indices(shape)))


def slice_(a: IntArray, axis: int, start: int, stop: int) -> IntArray:
    """a[.., start:stop, ..] at this axis."""
    shape = (*a.shape[:axis], stop - start, *a.shape[axis + 1 :])
    return IntArray(shape, tuple(a.at(*i[:axis], start + i[axis], *i[axis + 1 :]) for i in indices(shape)))


def concat(a: IntArray, b: IntArray, axis: int) -> IntArray:
    """`a`, then `b`, along this axis."""
    length = a.shape[axis]
    shape = (*a.shape[:axis], length + b.shape[axis], *a.shape[axis + 1 :])
    values = (
        a.at(*i) if i[axis] < length else b.at(*i[:axis], i[axis] - length, *i[axis + 1 :]) for i in indices(shape)
    )
    return IntArray(shape, tuple(values))


def select(condition: IntArray, a: IntArray, b: IntArray) -> IntArray:
    """x where the condition is 1, y where it is 0."""
    triples = zip(condition.values, a.values, b.values, strict=True)
    return a.map([x if c == 1 else y for c, x, y in triples])


def isqrt(a: IntArray) -> IntArray:
    """The greatest r with r * r <= x, for x >= 0."""
    return a.map([math.isqrt(x) for x in a.values])


def random(seed: IntArray, t: IntArray, stream: int, bits: int, *shape: int) -> IntArray:
    """Two scalars -> uniform integers in 0..2^bits - 1: a counter mixed under a key of seed, step and stream.

    key = mix64(mix64(mix64(seed) + t) xor mix64(stream)); element i is the top `bits` bits of mix64(key + i), all on
    64-bit words. As splitmix64 is used in proofs/exact/initialise.py: it mixes; it does not keep secrets.
    """
    key = random_key(seed.values[0], t.values[0], stream)
    return IntArray(shape, tuple(mix64(key + i) >> (64 - bits) for i in range(math.prod(shape))))


def random_key(seed: int, t: int, stream: int) -> int:
    """What the counter of `random` is added to."""
    return mix64(mix64(mix64(seed) + t) ^ mix64(stream))


def check(a: IntArray, lo: int, hi: int) -> IntArray:
    """`a` itself. Raises Overflow at the first element outside lo..hi."""
    for element, x in enumerate(a.values):
        if not lo <= x <= hi:
            raise Overflow(element, x)
    return a
