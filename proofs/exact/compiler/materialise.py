"""Constants and tables of a folded graph as integers of the program."""

from __future__ import annotations

import math

import torch

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.compiler.interpret import MASK, is_mask
from proofs.exact.tensor_type import MAX_BITS, bits_for

TABLE_BITS = 32
"""What depends on the step alone has 31 significant bits at its greatest."""
MAX_DYADIC_FRAC = 20
MAX_EXPONENT = 120
"""Constants lie within 2^±120; fold.py refuses others."""


def constant(b: ProgramBuilder, value: torch.Tensor, mask_exponent: int) -> Handle:
    """A folded constant. Axes along which it repeats are broadcast; -inf and its stand-ins are -2^mask_exponent."""
    small = compact(value)
    integers, frac = integers_of(small, mask_exponent)
    handle = b.constant(integers, frac=frac, shape=tuple(small.shape))
    return b.broadcast(handle, tuple(value.shape))


def table(b: ProgramBuilder, index: Handle, values: torch.Tensor, shape: tuple[int, ...]) -> Handle:
    """The scalar of this step: values[index]. One constant where it is the same in every step."""
    integers, frac = integers_of(values, 0)
    if len(set(integers)) == 1:
        handle = b.constant(integers[0], frac=frac)
    else:
        index = b.clamp(index, 0, len(integers) - 1)
        handle = b.lookup(index, b.constant(integers, frac=frac))
    return b.reshape(handle, shape)


def number_of(value: torch.Tensor) -> float | None:
    """The one number that a floating-point constant is made of; None if it has several, or is not finite."""
    if not value.is_floating_point():
        return None
    small = compact(value)
    return float(small) if small.numel() == 1 and -MASK < float(small) < math.inf else None


def compact(value: torch.Tensor) -> torch.Tensor:
    """With length 1 along every axis on which nothing changes."""
    for axis in range(value.dim()):
        first = value.narrow(axis, 0, 1)
        if value.shape[axis] > 1 and (value.stride(axis) == 0 or bool((value == first).all())):
            value = first
    return value


def integers_of(value: torch.Tensor, mask_exponent: int) -> tuple[list[int], int]:
    """Row-major integers and their frac: exact for integers, booleans and short dyadic fractions; else 31 bits at the
    greatest magnitude, rounded to nearest."""
    if not value.is_floating_point():
        return [int(entry) for entry in value.reshape(-1).tolist()], 0
    numbers = value.to(torch.float64).reshape(-1)
    masked = is_mask(numbers)
    finite = numbers.masked_fill(masked, 0.0)
    greatest = float(finite.abs().max())
    exponent = min(max(math.frexp(greatest)[1], -MAX_EXPONENT), MAX_EXPONENT)
    frac = TABLE_BITS - 1 - exponent
    for short in range(min(MAX_DYADIC_FRAC, frac) + 1):
        scaled = finite * 2.0**short
        if bool((scaled == scaled.round()).all()):
            frac = short
            break
    scaled = (finite * 2.0**frac).round()
    integers = [int(entry) for entry in scaled.tolist()]
    if bool(masked.any()):
        least = -(1 << max(mask_exponent + frac, 0))
        if bits_for(least, 0) > MAX_BITS - 1:
            raise ValueError("a mask of -inf beside numbers that are too fine for it: use 0 beside -inf")
        integers = [least if hidden else entry for hidden, entry in zip(masked.tolist(), integers, strict=True)]
    return integers, frac
