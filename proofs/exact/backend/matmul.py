"""Matrix products that are exact by construction: a · bᵀ on float64 BLAS, on int64, and on int8 slices.

A kernel may compute a product only if its static bound says that every partial sum, in any order, is an integer that
the kernel's accumulator holds (`admits`). Then tile sizes, threads and the order of summation cannot change a bit.

| Kernel | Operands | Bound | Result |
|---|---|---|---|
| float64 | float64 | k * max|a b| < 2^53 | float64 |
| int64 | int64 | k * max|a b| < 2^63 | int64 |
| int8 | 1 to 3 int8 slices each | k * 2^14 * min(p, q) < 2^31 | p q planes of int32, to be shifted and added |

A bound says nothing of a library that is wrong (saturating int8 instructions; `torch._int_mm` of torch 2.13 with
k = 1), so no kernel is used on a shape before it has answered a question of that shape: matmul_choice.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod

import torch
from torch import Tensor

from proofs.exact.ranges import ValueInfo
from proofs.exact.tensor_type import INT64_MAX

FLOAT64_EXACT = 2**53
INT32_MAX = 2**31 - 1
SLICE_BITS = 8
MAX_SLICES = 3
LEAST_INT8_K = 2
"""`torch._int_mm` of torch 2.13 on a CPU gives wrong numbers for every product with k = 1 and n > 1."""


class Kernel(StrEnum):
    FLOAT64 = "float64"
    INT64 = "int64"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class Product:
    """One MATMUL_NT, a [..., m, k] by b [..., n, k]: its sides (`batch` products of m x n x k) and what is known of the
    elements of its operands.
    """

    batch: int
    m: int
    n: int
    k: int
    a_lo: int
    a_hi: int
    b_lo: int
    b_hi: int

    @classmethod
    def of(cls, a: ValueInfo, b: ValueInfo) -> Product:
        return cls(prod(a.shape[:-2]), a.shape[-2], b.shape[-2], a.shape[-1], a.lo, a.hi, b.lo, b.hi)

    @property
    def bound(self) -> int:
        """No partial sum, taken in any order, exceeds this magnitude."""
        corners = (self.a_lo * self.b_lo, self.a_lo * self.b_hi, self.a_hi * self.b_lo, self.a_hi * self.b_hi)
        return self.k * max(map(abs, corners))

    @property
    def macs(self) -> int:
        return self.batch * self.m * self.n * self.k

    @property
    def slices(self) -> tuple[int, int] | None:
        """How many int8 slices a and b need; None where one needs more than three."""
        a, b = slices_for(self.a_lo, self.a_hi), slices_for(self.b_lo, self.b_hi)
        return None if a is None or b is None else (a, b)


def admits(kernel: Kernel, product: Product) -> bool:
    """Whether operands and every partial sum of the product are integers that the kernel represents."""
    if kernel is Kernel.INT64:
        return product.bound <= INT64_MAX
    if kernel is Kernel.FLOAT64:
        widest = max(abs(end) for end in (product.a_lo, product.a_hi, product.b_lo, product.b_hi))
        return product.bound < FLOAT64_EXACT and widest < FLOAT64_EXACT
    slices = product.slices
    # Planes of equal shift may be added in int32 by whoever sums them: min(p, q) of them at most.
    return slices is not None and product.k >= LEAST_INT8_K and product.k * 2**14 * min(slices) <= INT32_MAX


def slices_for(lo: int, hi: int) -> int | None:
    """The least number of int8 slices whose sum of s_i * 2^(8 i), every s_i in -128..127, reaches all of lo..hi."""
    for count in range(1, MAX_SLICES + 1):
        ones = sum(1 << SLICE_BITS * i for i in range(count))  # 1, 257, 65793
        if -128 * ones <= lo and hi <= 127 * ones:
            return count
    return None


def slices_of(x: Tensor, count: int) -> tuple[Tensor, ...]:
    """int8 tensors s_0, s_1, ... (lowest first) of x's shape with x = sum of s_i * 2^(8 i).

    `x` is any integer tensor whose elements need at most `count` slices (`slices_for`).
    """
    slices = []
    rest = x
    for i in range(count):
        low = rest.to(torch.int8)  # the low 8 bits, as a signed number
        slices.append(low)
        if i + 1 < count:
            rest = (rest.to(torch.int64) - low) >> SLICE_BITS
    return tuple(slices)


def multiply(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """a · bᵀ of two float64 or two int64 tensors, [..., m, k] by [..., n, k], any strides. `out` is contiguous."""
    return torch.matmul(a, b.mT, out=out)


def multiply_slices(a: Sequence[Tensor], b: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """Every product of a slice of `a` [..., m, k] by one of `b` [..., n, k]: int32 [p * q, ..., m, n].

    Plane i * q + j is a_i · b_jᵀ and counts 2^(8 (i + j)) times: `plane_shifts`. Slices may have any strides; `out` is
    contiguous. Exact where `admits(Kernel.INT8, ...)`.
    """
    batch, m, n = a[0].shape[:-2], a[0].shape[-2], b[0].shape[-2]
    if out is None:
        out = torch.empty((len(a) * len(b), *batch, m, n), dtype=torch.int32)
    planes = out.view(len(a), len(b), -1, m, n)
    flat_a = [x.reshape(-1, *x.shape[-2:]) for x in a]
    flat_b = [x.reshape(-1, *x.shape[-2:]).mT for x in b]
    for i, x in enumerate(flat_a):
        for j, y in enumerate(flat_b):
            for one in range(x.shape[0]):
                torch._int_mm(x[one], y[one], out=planes[i, j, one])
    return out


def plane_shifts(p: int, q: int) -> tuple[int, ...]:
    """By how many bits each plane of `multiply_slices` is shifted left before all are added."""
    return tuple(SLICE_BITS * (i + j) for i in range(p) for j in range(q))


def sum_planes(planes: Tensor, shifts: Sequence[int]) -> Tensor:
    """The product itself, int64. Sums on the way may wrap: the result, which fits, is the same modulo 2^64."""
    total = planes[0].to(torch.int64)
    for plane, shift in zip(planes[1:], shifts[1:], strict=True):
        total.add_(plane, alpha=1 << shift)
    return total


def matmul_nt(kernel: Kernel, a: Tensor, b: Tensor, product: Product) -> Tensor:
    """a · bᵀ by one kernel with every conversion it needs: int64 [..., m, k] by [..., n, k] -> int64 [..., m, n].

    Raises ValueError if the kernel cannot hold the product's sums.
    """
    if not admits(kernel, product):
        raise ValueError(f"{kernel} cannot hold sums up to {product.bound} of {product}")
    if kernel is Kernel.FLOAT64:
        return multiply(a.to(torch.float64), b.to(torch.float64)).to(torch.int64)
    if kernel is Kernel.INT64:
        return multiply(a, b)
    slices = product.slices
    assert slices is not None
    p, q = slices
    return sum_planes(multiply_slices(slices_of(a, p), slices_of(b, q)), plane_shifts(p, q))
