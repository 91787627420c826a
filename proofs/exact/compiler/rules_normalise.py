"""Rules for LayerNorm, RMSNorm and GroupNorm, forward and backward, as one algorithm on rows of n numbers.

    xhat = (x - mean) * rstd,   rstd = 1 / sqrt(mean((x - mean)^2) + eps)        (RMSNorm: without the mean)
    dx   = rstd * (g - mean(g) - xhat * mean(g * xhat)),   g = gradient times weight

One root and one division per row. |xhat| <= sqrt(n) whatever x is, so xhat needs no calibration: it gets as many
fraction bits as leave room for that. The backward pass computes it again rather than keep it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler import arithmetic
from proofs.exact.compiler.formats import NumberFormat
from proofs.exact.compiler.lowering import Lowering, rule

aten = torch.ops.aten

XHAT_BITS = 31
"""Forward: times a weight of 32 bits it leaves room for the bias."""
XHAT_BACKWARD_FRAC = 13
"""Backward, at most: xhat only weighs gradients there. Their sums over some thousand rows fit without rounding."""
GRADIENT_BITS = 30
"""Backward: three such numbers are added within 32 bits."""
SHARED_HEADROOM = 6
"""Gradient and weight each have headroom over calibration; bits of it that their product does without."""
FLOAT32_EPSILON = 2.0**-23
"""What RMSNorm takes for eps if none is given."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Numbers minus the mean of those normalised together, along `axes`; statistics keep these axes, of length 1.
    Without `mean` nothing was subtracted.
    """

    values: Handle
    axes: tuple[int, ...]
    mean: Handle | None
    rstd: Handle

    @property
    def length(self) -> int:
        return math.prod(self.values.shape[axis] for axis in self.axes)


def standardised(
    lo: Lowering, x: Handle, axes: tuple[int, ...], eps: float, rstd_form: NumberFormat, *, centred: bool = True
) -> Rows:
    b = lo.b
    mean = arithmetic.mean(b, x, axes, keepdim=True) if centred else None
    away = x if mean is None else arithmetic.sub(b, x, mean, x.frac)
    square = arithmetic.mean(b, arithmetic.mul(b, away, away), axes, keepdim=True)
    deviation = arithmetic.sqrt(b, arithmetic.add_constant(b, square, eps))
    rstd = arithmetic.to(b, arithmetic.divide(b, b.constant(1), deviation, rstd_form.frac), rstd_form)
    return Rows(away, axes, mean, rstd)


def normalised(lo: Lowering, rows: Rows, most_frac: int = arithmetic.ROOM) -> Handle:
    """xhat, within ±2 sqrt(n), which rounding cannot leave: the saturation tells the range analysis so."""
    whole_bits = 2 + (rows.length - 1).bit_length() // 2
    frac = min(XHAT_BITS - 1 - whole_bits, most_frac)
    product = arithmetic.mul(lo.b, rows.values, rows.rstd)
    return arithmetic.to(lo.b, product, NumberFormat(frac, frac + whole_bits + 1))


def affine(lo: Lowering, x: Handle, weight: Handle | None, bias: Handle | None) -> Handle:
    y = x if weight is None else arithmetic.mul(lo.b, x, weight)
    return y if bias is None else arithmetic.add(lo.b, y, bias, lo.format.frac)


def weighted_gradient(lo: Lowering, grad: Handle, weight: Handle | None) -> Handle:
    """grad * weight in GRADIENT_BITS."""
    b = lo.b
    product = grad if weight is None else arithmetic.mul(b, grad, weight)
    shared = SHARED_HEADROOM if weight is not None else 0
    places = max(0, arithmetic.size(product) - (GRADIENT_BITS - 1) - shared)
    return arithmetic.to(b, product, NumberFormat(product.frac - places, GRADIENT_BITS))


def input_gradient(lo: Lowering, grad: Handle, rows: Rows, xhat: Handle) -> Handle:
    """dx, of a gradient that the weight has multiplied already."""
    b, form = lo.b, NumberFormat(grad.frac, GRADIENT_BITS)
    along = arithmetic.mean(b, arithmetic.mul(b, grad, xhat), rows.axes, keepdim=True)
    # Neither mean is longer than the gradients themselves; the analysis cannot know.
    part = arithmetic.to(b, arithmetic.mul(b, xhat, along), form)
    if rows.mean is not None:
        grad = b.sub(grad, arithmetic.to(b, arithmetic.mean(b, grad, rows.axes, keepdim=True), form))
    return arithmetic.mul(b, b.sub(grad, part), rows.rstd)


def _rows_of(lo: Lowering, x: Handle, normalized_shape: Sequence[int]) -> Handle:
    """[..., n]: the normalised axes as one."""
    kept = x.shape[: len(x.shape) - len(normalized_shape)]
    return lo.b.reshape(x, (*kept, math.prod(normalized_shape)))


def _per_row(lo: Lowering, x: Handle, kept: int) -> Handle:
    """A statistic of shape [..., 1, 1] as [..., 1]."""
    return lo.b.reshape(x, (*x.shape[:kept], 1))


def _flat(lo: Lowering, x: Handle | None) -> Handle | None:
    return None if x is None else lo.b.reshape(x, (math.prod(x.shape),))


# LayerNorm and RMSNorm


@rule(aten.native_layer_norm.default)
def layer_norm(
    lo: Lowering, x: Handle, normalized_shape: Sequence[int], weight: Handle | None, bias: Handle | None, eps: float
) -> tuple[Handle, Handle, Handle]:
    b, kept = lo.b, len(x.shape) - len(normalized_shape)
    rows = standardised(lo, _rows_of(lo, x, normalized_shape), (kept,), eps, lo.formats.of(lo.node, 2))
    out = affine(lo, normalised(lo, rows), _flat(lo, weight), _flat(lo, bias))
    assert rows.mean is not None
    statistic = (*x.shape[:kept], *(1,) * len(normalized_shape))
    return b.reshape(out, x.shape), b.reshape(rows.mean, statistic), b.reshape(rows.rstd, statistic)


@rule(aten.native_layer_norm_backward.default)
def layer_norm_backward(
    lo: Lowering,
    grad: Handle,
    x: Handle,
    normalized_shape: Sequence[int],
    mean: Handle,
    rstd: Handle,
    weight: Handle | None,
    bias: Handle | None,
    output_mask: Sequence[bool],
) -> tuple[Handle | None, Handle | None, Handle | None]:
    return _layer_backward(lo, grad, x, normalized_shape, mean, rstd, weight, output_mask)


@rule(aten._fused_rms_norm.default)
def rms_norm(
    lo: Lowering, x: Handle, normalized_shape: Sequence[int], weight: Handle | None, eps: float | None
) -> tuple[Handle, Handle]:
    b, kept = lo.b, len(x.shape) - len(normalized_shape)
    small = FLOAT32_EPSILON if eps is None else eps
    form = lo.formats.of(lo.node, 1)
    rows = standardised(lo, _rows_of(lo, x, normalized_shape), (kept,), small, form, centred=False)
    out = affine(lo, normalised(lo, rows), _flat(lo, weight), None)
    return b.reshape(out, x.shape), b.reshape(rows.rstd, (*x.shape[:kept], *(1,) * len(normalized_shape)))


@rule(aten._fused_rms_norm_backward.default)
def rms_norm_backward(
    lo: Lowering,
    grad: Handle,
    x: Handle,
    normalized_shape: Sequence[int],
    rstd: Handle,
    weight: Handle | None,
    output_mask: Sequence[bool],
) -> tuple[Handle | None, Handle | None]:
    dx, dw, _ = _layer_backward(lo, grad, x, normalized_shape, None, rstd, weight, (*output_mask, False))
    return dx, dw


def _layer_backward(
    lo: Lowering,
    grad: Handle,
    x: Handle,
    normalized_shape: Sequence[int],
    mean: Handle | None,
    rstd: Handle,
    weight: Handle | None,
    output_mask: Sequence[bool],
) -> tuple[Handle | None, Handle | None, Handle | None]:
    b, kept = lo.b, len(x.shape) - len(normalized_shape)
    grad_rows = _rows_of(lo, grad, normalized_shape)
    centre = None if mean is None else _per_row(lo, mean, kept)
    values = _rows_of(lo, x, normalized_shape)
    values = values if centre is None else arithmetic.sub(b, values, centre, values.frac)
    rows = Rows(values, (kept,), centre, _per_row(lo, rstd, kept))
    xhat = normalised(lo, rows, XHAT_BACKWARD_FRAC)
    outer = list(range(kept))
    dx = dw = db = None
    if output_mask[0]:
        dx = b.reshape(input_gradient(lo, weighted_gradient(lo, grad_rows, _flat(lo, weight)), rows, xhat), x.shape)
    if output_mask[1]:
        dw = b.reshape(_summed(lo, arithmetic.mul(b, grad_rows, xhat), outer), tuple(normalized_shape))
    if output_mask[2]:
        db = b.reshape(_summed(lo, grad_rows, outer), tuple(normalized_shape))
    return dx, dw, db


def _summed(lo: Lowering, x: Handle, axes: list[int]) -> Handle:
    return arithmetic.total(lo.b, x, axes, keepdim=False) if axes else x


# GroupNorm


@rule(aten.native_group_norm.default)
def group_norm(
    lo: Lowering,
    x: Handle,
    weight: Handle | None,
    bias: Handle | None,
    n: int,
    channels: int,
    pixels: int,
    groups: int,
    eps: float,
) -> tuple[Handle, Handle, Handle]:
    """[n, channels, ...]: the channels of a group and all their pixels are one row."""
    b = lo.b
    grouped = b.reshape(x, (n, groups, channels // groups * pixels))
    rows = standardised(lo, grouped, (2,), eps, lo.formats.of(lo.node, 2))
    xhat = b.reshape(normalised(lo, rows), (n, channels, pixels))
    out = affine(lo, xhat, _by_channel(lo, weight), _by_channel(lo, bias))
    assert rows.mean is not None
    return b.reshape(out, x.shape), b.reshape(rows.mean, (n, groups)), b.reshape(rows.rstd, (n, groups))


@rule(aten.native_group_norm_backward.default)
def group_norm_backward(
    lo: Lowering,
    grad: Handle,
    x: Handle,
    mean: Handle,
    rstd: Handle,
    weight: Handle | None,
    n: int,
    channels: int,
    pixels: int,
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Handle | None, Handle | None, Handle | None]:
    b = lo.b
    grouped, by_channel = (n, groups, channels // groups * pixels), (n, channels, pixels)
    centre = b.reshape(mean, (n, groups, 1))
    values = b.reshape(x, grouped)
    rows = Rows(arithmetic.sub(b, values, centre, values.frac), (2,), centre, b.reshape(rstd, (n, groups, 1)))
    xhat = normalised(lo, rows, XHAT_BACKWARD_FRAC)
    grad_pixels = b.reshape(grad, by_channel)
    dx = dw = db = None
    if output_mask[0]:
        weighted = b.reshape(weighted_gradient(lo, grad_pixels, _by_channel(lo, weight)), grouped)
        dx = b.reshape(input_gradient(lo, weighted, rows, xhat), x.shape)
    if output_mask[1]:
        dw = arithmetic.total(b, arithmetic.mul(b, grad_pixels, b.reshape(xhat, by_channel)), [0, 2], keepdim=False)
    if output_mask[2]:
        db = arithmetic.total(b, grad_pixels, [0, 2], keepdim=False)
    return dx, dw, db


def _by_channel(lo: Lowering, x: Handle | None) -> Handle | None:
    return None if x is None else lo.b.reshape(x, (x.shape[0], 1))
