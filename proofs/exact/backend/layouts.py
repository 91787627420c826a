"""In which forms a value lies in memory, and what stands between the forms.

The same integers can be stored as narrow integers, as int8 slices that a product takes, as float64, or as the partial
planes that a product leaves. Whoever reads or writes an element converts on the way (backend/codegen.py), so that no
form costs a pass of its own. A layout says nothing about strides: planes are handed around as torch tensors, which may
be transposed or strided views of a buffer.

    Plain(bits)       one plane of int8, int16, int32 or int64: v itself
    Float64()         one plane of float64: v itself, |v| < 2^53
    Slices(count)     `count` planes of int8: v = sum of plane[i] * 256^i, every digit signed, -128..127
    Product(shifts)   one plane of int32 for each shift: v = sum of plane[i] * 2^shifts[i]; not yet added up

Products (backend/matmul.py) name the layout they want of each operand and the one they yield:

    choose(a, b, settings) -> MatmulKernel; kernel.a, kernel.b, kernel.out are layouts
    kernel.run(a, b, out): each a tuple of tensors, one for each plane, [..., m, k], [..., n, k] -> [..., m, n]
        Operand planes may be strided or transposed; those of one value have equal strides and lie at equal distances.
        `out` is contiguous and written in full: nothing is allocated for the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from proofs.exact.ranges import ValueInfo
from proofs.exact.tensor_type import bits_for

DTYPES: Final = {8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


@dataclass(frozen=True, slots=True)
class Plain:
    """Two's complement integers of 8, 16, 32 or 64 bits."""

    bits: int


@dataclass(frozen=True, slots=True)
class Float64:
    """Whole numbers below 2^53 in double precision."""


@dataclass(frozen=True, slots=True)
class Slices:
    """Signed base-256 digits, least first, each an int8 plane."""

    count: int


@dataclass(frozen=True, slots=True)
class Product:
    """int32 planes that a sliced product left, to be shifted and added by whoever reads them."""

    shifts: tuple[int, ...]


Layout = Plain | Float64 | Slices | Product


def plane_dtypes(layout: Layout) -> tuple[torch.dtype, ...]:
    """The element type of each plane."""
    match layout:
        case Plain(bits):
            return (DTYPES[bits],)
        case Float64():
            return (torch.float64,)
        case Slices(count):
            return (torch.int8,) * count
        case Product(shifts):
            return (torch.int32,) * len(shifts)


def element_bytes(layout: Layout) -> int:
    """Bytes of one element, all planes together."""
    return sum(dtype.itemsize for dtype in plane_dtypes(layout))


def plain_bits(lo: int, hi: int) -> int:
    """The narrowest of 8, 16, 32, 64 bits that holds every integer of lo..hi."""
    needed = bits_for(lo, hi)
    return next(bits for bits in (8, 16, 32, 64) if bits >= needed)


def plain_for(info: ValueInfo) -> Plain:
    """The narrowest plain layout of a value."""
    return Plain(plain_bits(info.lo, info.hi))


def slice_range(count: int) -> tuple[int, int]:
    """What `count` signed digits hold: 1: -128..127, 2: -32896..32639, 3: -8421504..8355711."""
    ones = (256**count - 1) // 255
    return -128 * ones, 127 * ones


def slices_for(info: ValueInfo) -> int | None:
    """The least number of slices (at most 3) that hold the value; None if none do."""
    for count in (1, 2, 3):
        lo, hi = slice_range(count)
        if lo <= info.lo and info.hi <= hi:
            return count
    return None


def planes_of(values: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, ...]:
    """Integers stored anew in a layout, the plain way; contiguous. A Product has no canonical planes: ValueError."""
    wide = values.to(torch.int64)
    match layout:
        case Plain(bits):
            return (wide.to(DTYPES[bits]).contiguous(),)
        case Float64():
            return (wide.to(torch.float64).contiguous(),)
        case Slices(count):
            planes = []
            for _ in range(count):
                digit = ((wide + 128) & 255) - 128
                planes.append(digit.to(torch.int8).contiguous())
                wide = (wide - digit) >> 8
            return tuple(planes)
        case Product():
            raise ValueError("only a product makes Product planes")


def integers_of(planes: tuple[torch.Tensor, ...], layout: Layout) -> torch.Tensor:
    """The int64 values that planes stand for."""
    match layout:
        case Plain() | Float64():
            return planes[0].to(torch.int64)
        case Slices(count):
            shifts = tuple(8 * place for place in range(count))
        case Product(shifts):
            pass
    total = planes[0].to(torch.int64) << shifts[0]
    for plane, shift in zip(planes[1:], shifts[1:], strict=True):
        total += plane.to(torch.int64) << shift
    return total
