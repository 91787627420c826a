"""Matrix products that are exact by construction: a · bᵀ on float64 BLAS, on int64, and on int8 slices.

A kernel may compute a product only if its static bound says that every partial sum, in any order, is an integer that
the kernel's accumulator holds (`fits_...`). Then tile sizes, threads and the order of summation cannot change a bit.

| Kernel | Operands | Bound | Result |
|---|---|---|---|
| float64 | float64 | k * max|a b| < 2^53 | float64 |
| int64 | int64 | k * max|a b| < 2^63 | int64 |
| int8 | 1 to 3 int8 slices each | k * 2^14 * min(p, q) < 2^31 | p q planes of int32, to be shifted and added |

A bound says nothing of a library that is wrong (saturating int8 instructions; `torch._int_mm` of torch 2.13 with
k = 1), so no kernel is used on a shape before it has answered a question of that shape: matmul_choice.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch

from proofs.exact.backend.layouts import slices_for
from proofs.exact.ranges import ValueInfo
from proofs.exact.tensor_type import INT64_MAX

FLOAT64_EXACT = 2**53
INT32_MAX = 2**31 - 1
Planes = tuple[torch.Tensor, ...]
SLICE_BITS = 8
LEAST_INT8_K = 2
"""`torch._int_mm` of torch 2.13 on a CPU gives wrong numbers for every product with k = 1 and n > 1."""


@dataclass(frozen=True, slots=True)
class Product:
    """One MATMUL_NT: what is known of its operands, a [..., m, k] and b [..., n, k]."""

    a: ValueInfo
    b: ValueInfo

    @property
    def batch(self) -> int:
        """How many products of m x n x k."""
        return prod(self.a.shape[:-2])

    @property
    def m(self) -> int:
        return self.a.shape[-2]

    @property
    def n(self) -> int:
        return self.b.shape[-2]

    @property
    def k(self) -> int:
        return self.a.shape[-1]

    @property
    def bound(self) -> int:
        """No partial sum, taken in any order, exceeds this magnitude."""
        return self.k * max(abs(x * y) for x in (self.a.lo, self.a.hi) for y in (self.b.lo, self.b.hi))

    @property
    def slices(self) -> tuple[int, int] | None:
        """How many int8 slices a and b need; None where one needs more than three."""
        p, q = slices_for(self.a), slices_for(self.b)
        return None if p is None or q is None else (p, q)


def fits_int64(product: Product) -> bool:
    """Always true of a program that the range analysis has passed."""
    return product.bound <= INT64_MAX


def fits_float64(product: Product) -> bool:
    """Whether operands and every partial sum are integers that float64 holds."""
    widest = max(product.a.greatest_magnitude, product.b.greatest_magnitude)
    return product.bound < FLOAT64_EXACT and widest < FLOAT64_EXACT


def fits_int8(product: Product) -> bool:
    """Whether both operands are a few int8 slices, and planes of equal shift hold in int32 even added together (there
    are min(p, q) of them).
    """
    slices = product.slices
    return slices is not None and product.k >= LEAST_INT8_K and product.k * 2**14 * min(slices) <= INT32_MAX


def multiply(a: Planes, b: Planes, out: Planes) -> None:
    """a · bᵀ of two float64 or two int64 planes, [..., m, k] by [..., n, k], any strides."""
    torch.matmul(a[0], b[0].mT, out=out[0])


def multiply_slices(a: Planes, b: Planes, out: Planes) -> None:
    """Every product of a slice of a [..., m, k] by one of b [..., n, k]: int32 planes [..., m, n].

    Plane i * q + j is a_i · b_jᵀ and counts 2^(8 (i + j)) times (`plane_shifts`). Operands have any strides, planes of
    `out` are contiguous. Exact where `fits_int8`.
    """
    left = [plane.reshape(-1, *plane.shape[-2:]).unbind() for plane in a]
    right = [plane.reshape(-1, *plane.shape[-2:]).mT.unbind() for plane in b]
    sums = iter(out)
    for xs in left:
        for ys in right:
            plane = next(sums)
            for x, y, z in zip(xs, ys, plane.view(-1, *plane.shape[-2:]), strict=True):
                torch._int_mm(x, y, out=z)


def plane_shifts(p: int, q: int) -> tuple[int, ...]:
    """By how many bits each plane of `multiply_slices` is shifted left before all are added."""
    return tuple(SLICE_BITS * (i + j) for i in range(p) for j in range(q))
