"""Static range analysis: what is known of every value of a program before it runs.

Each rule takes what is known of the operands and returns what is known of the result, or raises RangeError. They are
interval arithmetic on Python integers, so they hold for every input that the declared types admit: a program that
passes can't overflow 64 bits, index outside a table or divide by zero, whatever the data. Nothing is ever sampled.
"""

from __future__ import annotations

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
    def greatest_magnitude(self) -> int:
        return max(abs(self.lo), abs(self.hi))

    def __str__(self) -> str:
        return f"{list(self.shape)} in {self.lo}..{self.hi} * 2^{-self.frac}"


def matmul_bound(a: ValueInfo, b: ValueInfo) -> int:
    """No partial sum of a matrix product, taken in any order, exceeds this magnitude."""
    lo, hi = _product_range(a, b)
    return a.shape[1] * max(abs(lo), abs(hi))


def matmul_nt(a: ValueInfo, b: ValueInfo) -> ValueInfo:
    _require(len(a.shape) == len(b.shape) == 2, f"needs two matrices, has {a} and {b}")
    _require(a.shape[1] == b.shape[1], f"rows of different lengths: {a} and {b}")
    bound = matmul_bound(a, b)
    _require(bound <= INT64_MAX, f"sums of {a.shape[1]} products of {a} and {b} need {bits_for(-bound, bound)} bits")
    lo, hi = _product_range(a, b)
    return ValueInfo((a.shape[0], b.shape[0]), a.frac + b.frac, a.shape[1] * lo, a.shape[1] * hi)


def transpose(a: ValueInfo) -> ValueInfo:
    _require(len(a.shape) == 2, f"needs a matrix, has {a}")
    return ValueInfo(a.shape[::-1], a.frac, a.lo, a.hi)


def add(a: ValueInfo, b: ValueInfo) -> ValueInfo:
    _same_shape_and_scale(a, b)
    return ValueInfo(a.shape, a.frac, a.lo + b.lo, a.hi + b.hi)


def sub(a: ValueInfo, b: ValueInfo) -> ValueInfo:
    _same_shape_and_scale(a, b)
    return ValueInfo(a.shape, a.frac, a.lo - b.hi, a.hi - b.lo)


def mul(a: ValueInfo, b: ValueInfo) -> ValueInfo:
    _require(a.shape == b.shape, f"different shapes: {a} and {b}")
    return ValueInfo(a.shape, a.frac + b.frac, *_product_range(a, b))


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
    shape, length = _reduced(a, axis)
    return ValueInfo(shape, a.frac, length * a.lo, length * a.hi)


def reduce_max(a: ValueInfo, axis: int) -> ValueInfo:
    shape, _ = _reduced(a, axis)
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
    result = ValueInfo(shape, a.frac, a.lo, a.hi)
    _require(result.type.elements == a.type.elements, f"{a} has another number of elements than {list(shape)}")
    return result


def gather(a: ValueInfo, index: ValueInfo) -> ValueInfo:
    _require(len(a.shape) >= 1 and len(index.shape) == 1, f"needs rows and a list of indices, has {a} and {index}")
    _require(index.frac == 0, f"indices are whole numbers, not {index}")
    _require(index.lo >= 0 and index.hi < a.shape[0], f"index {index} leaves the {a.shape[0]} rows; clamp it")
    return ValueInfo((*index.shape, *a.shape[1:]), a.frac, a.lo, a.hi)


def one_hot(a: ValueInfo, classes: int) -> ValueInfo:
    _require(a.frac == 0, f"classes are whole numbers, not {a}")
    return ValueInfo((*a.shape, classes), 0, 0, 1)


def permute(seed: ValueInfo, t: ValueInfo, n: int, batch: int) -> ValueInfo:
    whole = seed.shape == t.shape == () and seed.frac == t.frac == 0
    _require(whole, f"seed and step are whole scalars, not {seed} and {t}")
    _require(1 <= n <= MAX_SAMPLES, f"{n} samples: 1 to {MAX_SAMPLES}")
    _require(batch >= 1, f"a batch of {batch}")
    _require((t.greatest_magnitude + 1) * batch <= INT64_MAX, f"step {t} times a batch of {batch} overflows 64 bits")
    return ValueInfo((batch,), 0, 0, n - 1)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise RangeError(message)


def _clip(value: int, lo: int, hi: int) -> int:
    return min(max(value, lo), hi)


def _product_range(a: ValueInfo, b: ValueInfo) -> tuple[int, int]:
    corners = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    return min(corners), max(corners)


def _same_shape_and_scale(a: ValueInfo, b: ValueInfo) -> None:
    _require(a.shape == b.shape, f"different shapes: {a} and {b}")
    _require(a.frac == b.frac, f"different scales: {a} and {b}; rescale one")


def _reduced(a: ValueInfo, axis: int) -> tuple[tuple[int, ...], int]:
    _require(0 <= axis < len(a.shape), f"{a} has no axis {axis}")
    return (*a.shape[:axis], 1, *a.shape[axis + 1 :]), a.shape[axis]
