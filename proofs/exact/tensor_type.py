"""What a tensor is before it has values: its shape, the bound on its elements and their scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

MAX_RANK = 6
MAX_BITS = 64
MAX_FRAC = 255
MAX_ELEMENTS = 2**30
"""More than any one tensor of a task that a volunteer's machine can hold (8 GiB at 64 bits)."""

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class TensorError(ValueError):
    """A tensor type that cannot be, or values that don't fit theirs."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape (row-major, every side >= 1; `()` is a scalar), `bits` and `frac`.

    Every element v satisfies -2^(bits-1) <= v < 2^(bits-1) and means v * 2^-frac. Raises TensorError if the rank
    exceeds 6, bits are not in 1..64, |frac| > 255, a side is < 1 or there are more than 2^30 elements.
    """

    shape: tuple[int, ...]
    bits: int
    frac: int = 0

    def __post_init__(self) -> None:
        check_shape(self.shape)
        if not 1 <= self.bits <= MAX_BITS:
            raise TensorError(f"{self.bits} bits: an element has 1 to {MAX_BITS}")
        if abs(self.frac) > MAX_FRAC:
            raise TensorError(f"a scale of 2^{-self.frac}: frac is within ±{MAX_FRAC}")

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def lo(self) -> int:
        """Least value that an element may have."""
        return -(1 << (self.bits - 1))

    @property
    def hi(self) -> int:
        """Greatest value that an element may have."""
        return (1 << (self.bits - 1)) - 1

    @property
    def width(self) -> int:
        """Bytes of an element in its canonical form: the least of 1, 2, 4, 8 that holds `bits`."""
        return next(width for width in (1, 2, 4, 8) if 8 * width >= self.bits)

    @property
    def nbytes(self) -> int:
        return self.elements * self.width

    def __str__(self) -> str:
        return f"int{self.bits}[{', '.join(map(str, self.shape))}] * 2^{-self.frac}"


def check_shape(shape: tuple[int, ...]) -> None:
    """Raises TensorError unless this can be the shape of a tensor."""
    if len(shape) > MAX_RANK:
        raise TensorError(f"shape {shape}: at most {MAX_RANK} axes")
    if any(side < 1 for side in shape):
        raise TensorError(f"shape {shape}: a tensor without elements")
    if math.prod(shape) > MAX_ELEMENTS:
        raise TensorError(f"shape {shape}: more than {MAX_ELEMENTS} elements")


def bits_for(lo: int, hi: int) -> int:
    """Least `bits` whose range holds lo..hi: bits_for(0, 0) = 1, bits_for(0, 255) = 9. May exceed 64."""
    return 1 + max((value if value >= 0 else ~value).bit_length() for value in (lo, hi))
