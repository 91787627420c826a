"""Rules for BatchNorm (and InstanceNorm, which PyTorch makes of it): the algorithm of rules_normalise by channel.

A training step standardises by the batch's own mean and variance. Running statistics are refused: PyTorch's operation
writes them in place without saying so in its schema, so that a traced step would lose them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler import arithmetic
from proofs.exact.compiler.lowering import Lowering, rule
from proofs.exact.compiler.rules_normalise import (
    XHAT_BACKWARD_FRAC,
    Rows,
    affine,
    input_gradient,
    normalised,
    standardised,
    weighted_gradient,
)

aten = torch.ops.aten

BATCH_AND_PIXELS = (0, 2)


def _pixels(lo: Lowering, x: Handle) -> Handle:
    """[n, channels, pixels]."""
    return lo.b.reshape(x, (*x.shape[:2], math.prod(x.shape[2:])))


def _by_channel(lo: Lowering, x: Handle | None) -> Handle | None:
    """A number for each channel, beside [n, channels, pixels]."""
    return None if x is None else lo.b.reshape(x, (x.shape[0], 1))


def _statistic(lo: Lowering, x: Handle) -> Handle:
    return lo.b.reshape(x, (1, x.shape[0], 1))


@rule(aten.native_batch_norm.default)
def batch_norm(
    lo: Lowering,
    x: Handle,
    weight: Handle | None,
    bias: Handle | None,
    running_mean: Handle | None,
    running_var: Handle | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Handle, Handle, Handle]:
    """[n, channels, ...] and the mean and inverse deviation of each channel."""
    if running_mean is not None:
        raise lo.unsupported(
            "BatchNorm with running statistics, which it writes in place",
            "BatchNorm(..., track_running_stats=False), or GroupNorm",
        )
    return _forward(lo, x, weight, bias, training, eps)


@rule(aten._native_batch_norm_legit.no_stats)
def batch_norm_without_statistics(
    lo: Lowering, x: Handle, weight: Handle | None, bias: Handle | None, training: bool, momentum: float, eps: float
) -> tuple[Handle, Handle, Handle]:
    return _forward(lo, x, weight, bias, training, eps)


def _forward(
    lo: Lowering, x: Handle, weight: Handle | None, bias: Handle | None, training: bool, eps: float
) -> tuple[Handle, Handle, Handle]:
    if not training:
        raise lo.unsupported("BatchNorm in evaluation mode", "call the module in training mode, or use GroupNorm")
    b = lo.b
    rows = standardised(lo, _pixels(lo, x), BATCH_AND_PIXELS, eps, lo.formats.of(lo.node, 2))
    y = affine(lo, normalised(lo, rows), _by_channel(lo, weight), _by_channel(lo, bias))
    assert rows.mean is not None
    channels = (x.shape[1],)
    return b.reshape(y, x.shape), b.reshape(rows.mean, channels), b.reshape(rows.rstd, channels)


@rule(aten.native_batch_norm_backward.default)
def batch_norm_backward(
    lo: Lowering,
    grad: Handle,
    x: Handle,
    weight: Handle | None,
    running_mean: Handle | None,
    running_var: Handle | None,
    save_mean: Handle | None,
    save_invstd: Handle | None,
    train: bool,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Handle | None, Handle | None, Handle | None]:
    if not train or save_mean is None or save_invstd is None:
        raise lo.unsupported("a gradient through BatchNorm in evaluation mode", "call the module in training mode")
    b = lo.b
    pixels, grad_pixels, mean = _pixels(lo, x), _pixels(lo, grad), _statistic(lo, save_mean)
    values = arithmetic.sub(b, pixels, mean, pixels.frac)
    rows = Rows(values, BATCH_AND_PIXELS, mean, _statistic(lo, save_invstd))
    xhat = normalised(lo, rows, XHAT_BACKWARD_FRAC)
    dx = dw = db = None
    if output_mask[0]:
        weighted = weighted_gradient(lo, grad_pixels, _by_channel(lo, weight))
        dx = b.reshape(input_gradient(lo, weighted, rows, xhat), x.shape)
    if output_mask[1]:
        dw = arithmetic.total(b, arithmetic.mul(b, grad_pixels, xhat), BATCH_AND_PIXELS, keepdim=False)
    if output_mask[2]:
        db = arithmetic.total(b, grad_pixels, BATCH_AND_PIXELS, keepdim=False)
    return dx, dw, db
