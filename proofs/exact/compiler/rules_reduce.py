"""Rules for sums, means, extremes, variances and norms over axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler import arithmetic
from proofs.exact.compiler.lowering import Lowering, rule

aten = torch.ops.aten

Axes = int | Sequence[int] | None


def axes_of(x: Handle, dim: Axes) -> list[int]:
    """The axes that an ATen `dim` names, from the front; None and [] are all."""
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return list(range(len(x.shape)))
    return sorted({axis % max(1, len(x.shape)) for axis in ([dim] if isinstance(dim, int) else dim)})


def _of_scalar(x: Handle) -> bool:
    return len(x.shape) == 0


@rule(aten.sum.default, aten.sum.dim_IntList)
def total(lo: Lowering, x: Handle, dim: Axes = None, keepdim: bool = False, **_: Any) -> Handle:
    return x if _of_scalar(x) else arithmetic.total(lo.b, x, axes_of(x, dim), keepdim=keepdim)


@rule(aten.mean.default, aten.mean.dim)
def mean(lo: Lowering, x: Handle, dim: Axes = None, keepdim: bool = False, **_: Any) -> Handle:
    return x if _of_scalar(x) else arithmetic.mean(lo.b, x, axes_of(x, dim), keepdim=keepdim)


@rule(aten.amax.default, exact=True)
def amax(lo: Lowering, x: Handle, dim: Axes = None, keepdim: bool = False) -> Handle:
    return x if _of_scalar(x) else arithmetic.greatest(lo.b, x, axes_of(x, dim), keepdim=keepdim)


@rule(aten.max.default, exact=True)
def max_of_all(lo: Lowering, x: Handle) -> Handle:
    return amax(lo, x)


@rule(aten.amin.default, exact=True)
def amin(lo: Lowering, x: Handle, dim: Axes = None, keepdim: bool = False) -> Handle:
    return arithmetic.negate(lo.b, amax(lo, arithmetic.negate(lo.b, x), dim, keepdim))


@rule(aten.min.default, exact=True)
def min_of_all(lo: Lowering, x: Handle) -> Handle:
    return amin(lo, x)


@rule(aten.var.correction)
def variance(
    lo: Lowering, x: Handle, dim: Axes = None, *, correction: float | None = None, keepdim: bool = False
) -> Handle:
    """Mean square distance from the mean, over count - correction (1 if not given)."""
    b, axes = lo.b, axes_of(x, dim)
    count = math.prod(x.shape[axis] for axis in axes)
    kept = Fraction(count) - Fraction(1 if correction is None else correction)
    if kept <= 0:
        raise lo.unsupported(f"the variance of {count} numbers with correction {correction}", "use correction=0")
    away = arithmetic.sub(b, x, arithmetic.mean(b, x, axes, keepdim=True), x.frac)
    squares = arithmetic.total(b, arithmetic.mul(b, away, away), axes, keepdim=keepdim)
    return arithmetic.scale(b, squares, 1 / kept, significant=28)


@rule(aten.linalg_vector_norm.default)
def vector_norm(lo: Lowering, x: Handle, order: float = 2, dim: Axes = None, keepdim: bool = False, **_: Any) -> Handle:
    b, axes = lo.b, axes_of(x, dim)
    if order == 2:
        if _of_scalar(x):
            return arithmetic.absolute(b, x)
        return arithmetic.sqrt(b, arithmetic.total(b, arithmetic.mul(b, x, x), axes, keepdim=keepdim))
    size = arithmetic.absolute(b, x)
    if order == math.inf:
        return amax(lo, size, axes, keepdim)
    if order == 1:
        return total(lo, size, axes, keepdim)
    raise lo.unsupported(f"a vector norm of order {order}", "use order 1, 2 or inf")
