"""Static range analysis: what is known of every value of a program before it runs.

Each rule takes what is known of the operands and returns what is known of the result, or raises RangeError. They are
interval arithmetic on Python integers, so they hold for every input that the declared types admit: a program that
passes can't overflow 64 bits, index outside a table or divide by zero, whatever the data. Nothing is ever sampled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from proofs.exact.permutation import MAX_SAMPLES
from proofs.exact.tensor_type import (
    INT64_MAX,
    INT64_MIN,
    MAX_BITS,
    MAX_FRAC,
    TensorError,
    TensorType,
    bits_for,
    check_shape,
)

MAX_RANDOM_BITS = 32
"""Of an element of RANDOM: more than any comparison with a probability needs, and half of what is mixed."""


class RangeError(TensorError):
    """Operands that don't fit each other or the operation, or a result that could overflow. Names the ranges."""


@dataclass(frozen=True, slots=True)
class ValueInfo:
    """Shape, scale, and the least and greatest element that any run can produce (lo <= hi, both within 64 bits)."""

    shape: tuple[int, ...]
    frac: int
    lo: int
    hi: int
    constant: bool = False
    """Written in the program itself: what a table must be."""
    repeats: int | None = None
    """No number occurs more often than this among the elements; None if that is not known (of any but a constant)."""

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if not INT64_MIN <= self.lo <= self.hi <= INT64_MAX:
            bits = bits_for(self.lo, self.hi)
            raise RangeError(f"a result in {self.lo}..{self.hi} needs {bits} bits; there are {MAX_BITS}")
        if abs(self.frac) > MAX_FRAC:
            raise RangeError(f"a result of scale 2^{-self.frac}: frac is within ±{MAX_FRAC}")

    @classmethod
    def of(cls, type_: TensorType) -> ValueInfo:
        """All that a type says."""
        return cls(type_.shape, type_.frac, type_.lo, type_.hi)

    @property
    def bits(self) -> int:
        """Least bits that hold every element."""
        return bits_for(self.lo, self.hi)

    @property
    def type(self) -> TensorType:
        return TensorType(self.shape, self.bits, self.frac)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def greatest_magnitude(self) -> int:
        return max(abs(self.lo), abs(self.hi))

    def __str__(self) -> str:
        return f"{list(self.shape)} in {self.lo}..{self.hi} * 2^{-self.frac}"


def matmul_bound(a: ValueInfo, b: ValueInfo) -> int:
    """No partial sum of a matrix product, taken in any order, exceeds this magnitude."""
    lo, hi = _product_range(a, b)
    return a.shape[-1] * max(abs(lo), abs(hi))


def matmul_nt(a: ValueInfo, b: ValueInfo) -> ValueInfo:
    ranks = len(a.shape) == len(b.shape) and 2 <= len(a.shape) <= 4
    _require(ranks and a.shape[:-2] == b.shape[:-2], f"needs two matrices, or equal batches of them, has {a} and {b}")
    length = a.shape[-1]
    _require(length == b.shape[-1], f"rows of different lengths: {a} and {b}")
    bound = matmul_bound(a, b)
    _require(bound <= INT64_MAX, f"sums of {length} products of {a} and {b} need {bits_for(-bound, bound)} bits")
    lo, hi = _product_range(a, b)
    return ValueInfo((*a.shape[:-1], b.shape[-2]), a.frac + b.frac, length * lo, length * hi)


def transpose(a: ValueInfo, *axes: int) -> ValueInfo:
    _require(sorted(axes) == list(range(len(a.shape))), f"{list(axes)} is no order of all axes of {a}")
    return ValueInfo(tuple(a.shape[axis] for axis in axes), a.frac, a.lo, a.hi)


def add(a: ValueInfo, b: ValueInfo) -> ValueInfo:
    _same_shape_and_scale(a, b)
    return ValueInfo(a.shape, a.frac, a.lo + b.lo, a.hi + b.hi)


def sub(a: ValueInfo, b: ValueInfo) -> ValueInfo:
    _same_shape_and_scale(a, b)
    return ValueInfo(a.shape, a.frac, a.lo - b.hi, a.hi - b.lo)


def mul(a: ValueInfo, b: ValueInfo) -> ValueInfo:
    _require(a.shape == b.shape, f"different shapes: {a} and {b}")
    return ValueInfo(a.shape, a.frac + b.frac, *_product_range(a, b))


def square(a: ValueInfo) -> ValueInfo:
    """`mul` of a value with itself: intervals alone would not show that it is >= 0."""
    ends = a.lo * a.lo, a.hi * a.hi
    return ValueInfo(a.shape, 2 * a.frac, 0 if a.lo <= 0 <= a.hi else min(ends), max(ends))


def rescale(a: ValueInfo, shift: int, bits: int) -> ValueInfo:
    _require(0 <= shift <= 62, f"a shift by {shift} bits: 0 to 62")
    _require(1 <= bits <= MAX_BITS, f"a result of {bits} bits: 1 to {MAX_BITS}")
    lo, hi = rescaled_range(a, shift)
    least, greatest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    return ValueInfo(a.shape, a.frac - shift, _clip(lo, least, greatest), _clip(hi, least, greatest))


def rescaled_range(a: ValueInfo, shift: int) -> tuple[int, int]:
    """Range after the rounding shift, before saturation."""
    half = 1 << shift >> 1
    _require(a.hi + half <= INT64_MAX, f"rounding {a} by {shift} bits overflows 64 bits")
    return (a.lo + half) >> shift, (a.hi + half) >> shift


def clamp(a: ValueInfo, lo: int, hi: int) -> ValueInfo:
    _require(lo <= hi, f"an empty range {lo}..{hi}")
    return ValueInfo(a.shape, a.frac, _clip(a.lo, lo, hi), _clip(a.hi, lo, hi))


def relu(a: ValueInfo) -> ValueInfo:
    return ValueInfo(a.shape, a.frac, max(a.lo, 0), max(a.hi, 0))


def positive(a: ValueInfo) -> ValueInfo:
    return ValueInfo(a.shape, 0, int(a.lo > 0), int(a.hi > 0))


def lookup(index: ValueInfo, table: ValueInfo) -> ValueInfo:
    _require(table.constant and len(table.shape) == 1, f"the table must be a constant with one axis, is {table}")
    entries = table.shape[0]
    _require(index.lo >= 0 and index.hi < entries, f"index {index} leaves the table of {entries}; clamp it")
    return ValueInfo(index.shape, table.frac, table.lo, table.hi)


def reduce_sum(a: ValueInfo, axis: int) -> ValueInfo:
    shape, length = _along(a, axis, 1)
    return ValueInfo(shape, a.frac, length * a.lo, length * a.hi)


def reduce_max(a: ValueInfo, axis: int) -> ValueInfo:
    shape, _ = _along(a, axis, 1)
    return ValueInfo(shape, a.frac, a.lo, a.hi)


def div_floor(a: ValueInfo, b: ValueInfo) -> ValueInfo:
    _require(a.shape == b.shape, f"different shapes: {a} and {b}")
    _require(b.lo >= 1, f"the divisor {b} can be zero or negative; clamp it")
    quotients = [x // y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    return ValueInfo(a.shape, a.frac - b.frac, min(quotients), max(quotients))


def broadcast(a: ValueInfo, *shape: int) -> ValueInfo:
    check_shape(shape)
    fits = len(shape) == len(a.shape) and all(new == old or old == 1 for new, old in zip(shape, a.shape, strict=True))
    _require(fits, f"{a} does not broadcast to {list(shape)}")
    return ValueInfo(shape, a.frac, a.lo, a.hi)


def reshape(a: ValueInfo, *shape: int) -> ValueInfo:
    check_shape(shape)
    _require(math.prod(shape) == a.elements, f"{a} has another number of elements than {list(shape)}")
    return ValueInfo(shape, a.frac, a.lo, a.hi)


def gather(a: ValueInfo, index: ValueInfo, axis: int) -> ValueInfo:
    shape, length = _along(a, axis, math.prod(index.shape))
    _require_indices(index, length)
    return ValueInfo(shape, a.frac, a.lo, a.hi)


def scatter_add(a: ValueInfo, index: ValueInfo, size: int) -> ValueInfo:
    """An element is the sum of 0 to `most` others, where a constant index shows how many it can be. Partial sums,
    in any order, lie in the same range."""
    shape, length = _along(a, len(a.shape) - 1, size)
    _require(index.shape == (length,), f"one index for each of the {length} elements of a row, has {index}")
    _require_indices(index, size)
    most = length if index.repeats is None else index.repeats
    if size == 1:
        return ValueInfo(shape, a.frac, length * a.lo, length * a.hi)
    return ValueInfo(shape, a.frac, min(0, most * a.lo), max(0, most * a.hi))


def slice_(a: ValueInfo, axis: int, start: int, stop: int) -> ValueInfo:
    shape, length = _along(a, axis, stop - start)
    _require(0 <= start < stop <= length, f"{start}..{stop} is no stretch of an axis of {length}")
    return ValueInfo(shape, a.frac, a.lo, a.hi)


def concat(a: ValueInfo, b: ValueInfo, axis: int) -> ValueInfo:
    _require(a.frac == b.frac, f"different scales: {a} and {b}; rescale one")
    _require(len(a.shape) == len(b.shape), f"different numbers of axes: {a} and {b}")
    _along(a, axis, 1)
    shape, _ = _along(a, axis, a.shape[axis] + b.shape[axis])
    others_equal = a.shape[:axis] == b.shape[:axis] and a.shape[axis + 1 :] == b.shape[axis + 1 :]
    _require(others_equal, f"{a} and {b} differ beside axis {axis}")
    return ValueInfo(shape, a.frac, min(a.lo, b.lo), max(a.hi, b.hi))


def select(condition: ValueInfo, a: ValueInfo, b: ValueInfo) -> ValueInfo:
    whole = condition.frac == 0 and condition.lo >= 0 and condition.hi <= 1
    _require(whole, f"the condition is 0 or 1, not {condition}")
    _require(condition.shape == a.shape, f"different shapes: {condition} and {a}")
    _same_shape_and_scale(a, b)
    possible = [value for value, known in ((a, condition.hi == 1), (b, condition.lo == 0)) if known]
    return ValueInfo(a.shape, a.frac, min(value.lo for value in possible), max(value.hi for value in possible))


def isqrt(a: ValueInfo) -> ValueInfo:
    _require(a.lo >= 0, f"{a} can be negative; clamp it")
    _require(a.frac % 2 == 0, f"the root of {a} has half of its fraction bits, which are odd; widen it by one")
    return ValueInfo(a.shape, a.frac // 2, math.isqrt(a.lo), math.isqrt(a.hi))


def random(seed: ValueInfo, t: ValueInfo, stream: int, bits: int, *shape: int) -> ValueInfo:
    _require_scalars(seed, t)
    _require(stream >= 0, f"stream {stream}: 0 or more")
    _require(1 <= bits <= MAX_RANDOM_BITS, f"{bits} random bits: 1 to {MAX_RANDOM_BITS}")
    return ValueInfo(shape, 0, 0, (1 << bits) - 1)


def check(a: ValueInfo, lo: int, hi: int) -> ValueInfo:
    _require(lo <= hi, f"an empty range {lo}..{hi}")
    _require(lo <= a.hi and a.lo <= hi, f"no element of {a} is ever in {lo}..{hi}")
    return ValueInfo(a.shape, a.frac, max(a.lo, lo), min(a.hi, hi))


def one_hot(a: ValueInfo, classes: int) -> ValueInfo:
    _require(a.frac == 0, f"classes are whole numbers, not {a}")
    return ValueInfo((*a.shape, classes), 0, 0, 1)


def permute(seed: ValueInfo, t: ValueInfo, n: int, batch: int) -> ValueInfo:
    _require_scalars(seed, t)
    _require(1 <= n <= MAX_SAMPLES, f"{n} samples: 1 to {MAX_SAMPLES}")
    _require(batch >= 1, f"a batch of {batch}")
    _require((t.greatest_magnitude + 1) * batch <= INT64_MAX, f"step {t} times a batch of {batch} overflows 64 bits")
    return ValueInfo((batch,), 0, 0, n - 1)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RangeError(message)


def _require_scalars(seed: ValueInfo, t: ValueInfo) -> None:
    whole = seed.shape == t.shape == () and seed.frac == t.frac == 0
    _require(whole, f"seed and step are whole scalars, not {seed} and {t}")


def _require_indices(index: ValueInfo, length: int) -> None:
    _require(len(index.shape) == 1 and index.frac == 0, f"indices are a list of whole numbers, not {index}")
    _require(index.lo >= 0 and index.hi < length, f"index {index} leaves the {length} places; clamp it")


def _clip(value: int, lo: int, hi: int) -> int:
    return min(max(value, lo), hi)


def _product_range(a: ValueInfo, b: ValueInfo) -> tuple[int, int]:
    corners = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    return min(corners), max(corners)


def _same_shape_and_scale(a: ValueInfo, b: ValueInfo) -> None:
    _require(a.shape == b.shape, f"different shapes: {a} and {b}")
    _require(a.frac == b.frac, f"different scales: {a} and {b}; rescale one")


def _along(a: ValueInfo, axis: int, length: int) -> tuple[tuple[int, ...], int]:
    """The shape with another length of this axis, and the length that it has."""
    _require(0 <= axis < len(a.shape), f"{a} has no axis {axis}")
    return (*a.shape[:axis], length, *a.shape[axis + 1 :]), a.shape[axis]
