"""Which kernel computes a matrix product, and in which layouts it takes and leaves its planes.

    kernel = choose(a, b, settings)       the quickest here of those that are exact for this product
    kernel.run(a_planes, b_planes, out)   planes in the layouts kernel.a, kernel.b, kernel.out; `out` is overwritten
    kernel.integers(a, b)                 the same on int64 tensors, with every conversion

A kernel is offered only if its static bound holds (matmul_kernels.py) and it has answered a question of this very shape
in this process (matmul_choice.py): none of the choices made here can change a bit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proofs.exact.backend import amx_support, matmul_choice
from proofs.exact.backend.layouts import (
    Float64,
    Layout,
    Plain,
    Slices,
    integers_of,
    plain_bits,
    plane_dtypes,
    planes_of,
)
from proofs.exact.backend.layouts import (
    Product as ProductPlanes,
)
from proofs.exact.backend.matmul_kernels import (
    Planes,
    Product,
    fits_float64,
    fits_int8,
    fits_int64,
    multiply,
    multiply_slices,
    plane_shifts,
)
from proofs.exact.ranges import ValueInfo

if TYPE_CHECKING:
    from proofs.exact.settings import Settings

Run = Callable[[Planes, Planes, Planes], None]

SPARE_BYTES = 2**24
"""Scratch memory that counts for nothing. A product may take as much again as its operands at 64 bits: thousands of
tiny products, each of which fills a pair of tiles, would take hundreds of times that."""
VIEW_BYTES = 600
"""Of a tensor, however small."""


@dataclass(frozen=True, slots=True)
class MatmulKernel:
    """A way to compute [..., m, k] by [..., n, k]: the layouts of its operands and of its result, and the function.

    `run` may be given strided or transposed planes; those of one value have equal strides. Planes of `out` are
    contiguous and written in full. It may be called from one thread at a time.
    """

    name: str
    a: Layout
    b: Layout
    out: Layout
    run: Run
    scratch_bytes: int = 0
    """What a run takes beside its planes, and may keep for the next."""

    def empty(self, shape: tuple[int, ...]) -> Planes:
        """Fresh planes for a result of this shape."""
        return tuple(torch.empty(shape, dtype=dtype) for dtype in plane_dtypes(self.out))

    def integers(self, a: Tensor, b: Tensor) -> Tensor:
        """a · bᵀ of any integer tensors within the product's intervals: int64 [..., m, n]."""
        out = self.empty((*a.shape[:-1], b.shape[-2]))
        self.run(planes_of(a, self.a), planes_of(b, self.b), out)
        return integers_of(out, self.out)


def kernels_for(product: Product, threads: int) -> dict[str, MatmulKernel]:
    """Every kernel whose static bound admits this product, by name. Says nothing of whether it works here."""
    kernels = {}
    if fits_int64(product):
        kernels["int64"] = MatmulKernel("int64", Plain(64), Plain(64), Plain(64), multiply)
    if fits_float64(product):
        kernels["float64"] = MatmulKernel("float64", Float64(), Float64(), Float64(), multiply)
    if fits_int8(product) and product.slices is not None:
        p, q = product.slices
        spare = SPARE_BYTES + 8 * (product.a.elements + product.b.elements)
        views = (p + q + p * q) * product.batch * VIEW_BYTES
        if views <= spare:
            out: Layout = ProductPlanes(plane_shifts(p, q))
            kernels["int8"] = MatmulKernel("int8", Slices(p), Slices(q), out, multiply_slices, views)
        a, b = (Plain(plain_bits(info.lo, info.hi)) for info in (product.a, product.b))
        tiles = sum(amx_support.packed_bytes((p, q), product.batch, product.m, product.n, product.k))
        if max(a.bits, b.bits) <= 16 and max(p, q) <= 2 and tiles <= spare and amx_support.usable():
            out = Plain(max(32, plain_bits(-product.bound, product.bound)))
            kernels["amx"] = MatmulKernel("amx", a, b, out, partial(amx_support.multiply, (p, q), threads), tiles)
    return kernels


def choose(
    a: ValueInfo, b: ValueInfo, settings: Settings, allowance: matmul_choice.Allowance | None = None
) -> MatmulKernel:
    """The kernel for a [..., m, k] by b [..., n, k]: `settings.matmul` names it, or measures ("auto"), as long as the
    allowance lasts (by default a fresh one).

    A named kernel that cannot hold this product, or fails its known answers here, gives way to float64, and that to
    int64. "int8" means slices on whichever unit multiplies them, AMX or `torch._int_mm`.
    """
    if not isinstance(settings.matmul, str):
        return settings.matmul(a, b, settings)
    product = Product(a, b)
    kernels = kernels_for(product, settings.threads)
    if settings.matmul == "auto":
        return matmul_choice.quickest(product, kernels, settings.threads, allowance or matmul_choice.Allowance())
    preferred = ("amx", "int8") if settings.matmul == "int8" else (settings.matmul,)
    order = [kernels[name] for name in (*preferred, "float64", "int64") if name in kernels]
    return matmul_choice.first_trusted(product, order, kernels)
