"""Rules for softmax, log-softmax and the negative log likelihood, forward and backward.

Exponentials have 30 fraction bits and their sum is exact, so probability minus label is right to about 2^-24 before the
node's format rounds it. A mask of -inf is the least number of its format: 22 or more below the row's maximum the
exponential is exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler import arithmetic, tables
from proofs.exact.compiler.formats import NumberFormat
from proofs.exact.compiler.lowering import Lowering, data_source, rule
from proofs.exact.compiler.rules_elementwise import quotient

aten = torch.ops.aten

PROBABILITY = NumberFormat(30, 31)
"""Below 1 by 2^-30 at most, so that a product with 32 bits has room for a sum."""

NONE, MEAN, SUM = 0, 1, 2
"""`reduction` of ATen's losses."""


def _rows(lo: Lowering, x: Handle, axis: int) -> tuple[Handle, Handle, Handle]:
    """The greatest of each row; exponentials of how far the others are below it; their sum, in which the greatest is
    exactly 1."""
    b = lo.b
    top = b.reduce_max(x, axis)
    exponentials = arithmetic.decay(b, b.sub(top, x))
    total = arithmetic.total(b, exponentials, [axis], keepdim=True)
    one = arithmetic.constant(b, 1, total).lo
    return top, exponentials, b.clamp(total, one, max(one, total.hi))


@rule(aten._softmax.default)
def softmax(lo: Lowering, x: Handle, dim: int, half_to_float: bool = False) -> Handle:
    if not x.shape:
        return lo.b.constant(1)
    _, exponentials, total = _rows(lo, x, dim % len(x.shape))
    room = arithmetic.ROOM - arithmetic.size(exponentials)
    shares = lo.b.mul(exponentials, arithmetic.reciprocal(lo.b, total, room=room))
    return arithmetic.to(lo.b, shares, PROBABILITY)


@rule(aten._log_softmax.default)
def log_softmax(lo: Lowering, x: Handle, dim: int, half_to_float: bool = False) -> Handle:
    if not x.shape:
        return lo.b.constant(0)
    top, _, total = _rows(lo, x, dim % len(x.shape))
    return arithmetic.sub(lo.b, x, arithmetic.add(lo.b, top, arithmetic.log(lo.b, total)), lo.format.frac)


@rule(aten._softmax_backward_data.default)
def softmax_backward(lo: Lowering, grad: Handle, result: Handle, dim: int, input_dtype: torch.dtype) -> Handle:
    """p * (grad - sum(grad * p))."""
    b = lo.b
    if not grad.shape:
        return b.constant(0)
    common = arithmetic.total(b, arithmetic.mul(b, grad, result), [dim], keepdim=True)
    # An average of the gradients with weights p is no longer than they are; the analysis cannot know.
    common = arithmetic.to(b, common, NumberFormat(grad.frac, grad.bits))
    return arithmetic.mul(b, b.sub(grad, common), result)


@rule(aten._log_softmax_backward_data.default)
def log_softmax_backward(lo: Lowering, grad: Handle, result: Handle, dim: int, input_dtype: torch.dtype) -> Handle:
    """grad - e^result * sum(grad)."""
    b = lo.b
    if not grad.shape:
        return b.constant(0)
    common = arithmetic.total(b, grad, [dim], keepdim=True)
    common = arithmetic.fit(b, common, arithmetic.ROOM - 2 - tables.EXP_FRAC)
    return arithmetic.sub(b, grad, arithmetic.mul(b, arithmetic.exp(b, result), common), lo.format.frac)


# Negative log likelihood

SHARE = NumberFormat(30, 32)
"""Of a label's weight in the weight of all."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """`mask` [n, c, ...] is 1 at each label that counts, else 0. `weights` [n, 1, ...] are those of the labels,
    None where each is 1. `count` is the weight of all; a constant if it is known.
    """

    mask: Handle
    weights: Handle | None
    count: Handle


@rule(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def nll_loss(
    lo: Lowering, x: Handle, target: Handle, weight: Handle | None, reduction: int, ignore_index: int
) -> tuple[Handle, Handle]:
    """[n, c, ...] and labels [n, ...]: minus what stands at the labels, summed or averaged; and the weight of all."""
    b, axis = lo.b, _class_axis(x)
    chosen = _chosen(lo, x, target, weight, ignore_index)
    at_labels = arithmetic.negate(b, arithmetic.total(b, b.mul(x, chosen.mask), [axis], keepdim=True))
    if chosen.weights is not None:
        at_labels = arithmetic.mul(b, at_labels, _shares(lo, chosen) if reduction == MEAN else chosen.weights)
    if reduction == NONE:
        return b.reshape(at_labels, target.shape), b.constant(0)
    loss = arithmetic.total(b, at_labels, [], keepdim=False)
    if reduction == MEAN and chosen.weights is None:
        loss = quotient(lo, loss, chosen.count, max(lo.format.frac, tables.EXP_X_FRAC))
    return loss, chosen.count


@rule(aten.nll_loss_backward.default, aten.nll_loss2d_backward.default)
def nll_loss_backward(
    lo: Lowering,
    grad: Handle,
    x: Handle,
    target: Handle,
    weight: Handle | None,
    reduction: int,
    ignore_index: int,
    total_weight: Handle,
) -> Handle:
    """-grad / (weight of all) at the labels, 0 elsewhere."""
    b, axis = lo.b, _class_axis(x)
    chosen = _chosen(lo, x, target, weight, ignore_index)
    if reduction == NONE and grad.shape:
        grad = b.reshape(grad, (*grad.shape[:axis], 1, *grad.shape[axis:]))
    if chosen.weights is not None:
        grad = arithmetic.mul(b, grad, _shares(lo, chosen) if reduction == MEAN else chosen.weights)
    elif reduction == MEAN:
        grad = quotient(lo, grad, chosen.count, lo.format.frac)
    # Rounded while it is a scalar or one per row; times 0 or 1 there is nothing left to round.
    return b.mul(lo.settle(arithmetic.negate(b, grad)), chosen.mask)


def _class_axis(x: Handle) -> int:
    return 0 if len(x.shape) == 1 else 1


def _shares(lo: Lowering, chosen: Chosen) -> Handle:
    assert chosen.weights is not None
    return arithmetic.to(lo.b, arithmetic.divide(lo.b, chosen.weights, chosen.count, SHARE.frac), SHARE)


def _chosen(lo: Lowering, x: Handle, target: Handle, weight: Handle | None, ignore_index: int) -> Chosen:
    b, axis = lo.b, _class_axis(x)
    classes = x.shape[axis]
    labels = _labels(lo, target, ignore_index, classes)
    mask = b.one_hot(labels, classes)
    if 0 <= ignore_index < classes:
        mask = b.mul(mask, b.constant([int(label != ignore_index) for label in range(classes)]))
    rank = len(x.shape)
    order = (*range(axis), rank - 1, *range(axis, rank - 1))
    placed = mask if order == tuple(range(rank)) else b.transpose(mask, order)
    if weight is not None:
        weights = arithmetic.total(b, arithmetic.mul(b, mask, weight), [rank - 1], keepdim=False)
        count = arithmetic.total(b, weights, [], keepdim=False) if weights.shape else weights
        count = b.clamp(count, 1, max(1, count.hi))
        return Chosen(placed, b.reshape(weights, (*x.shape[:axis], 1, *x.shape[axis + 1 :])), count)
    if labels.lo >= 0 and labels.hi < classes and not labels.lo <= ignore_index <= labels.hi:
        return Chosen(placed, None, b.constant(arithmetic.elements(target)))
    count = arithmetic.total(b, mask, [], keepdim=False)
    return Chosen(placed, None, b.clamp(count, 1, max(1, count.hi)))


def _labels(lo: Lowering, target: Handle, ignore_index: int, classes: int) -> Handle:
    """Labels proved or checked to be classes. Only a shard whose example has ignored labels may hold others: a label
    out of range is an error of the data, not a wish. Labels that the step computes are 0 in one-hot where they are out
    of range, which is to be ignored.
    """
    source = data_source(target)
    if source is None:
        return target
    examples = [leaf.example for leaf in lo.formats.leaves.values() if leaf.name == source]
    ignored = target.lo <= ignore_index <= target.hi and any(bool((x == ignore_index).any()) for x in examples)
    if ignored and not 0 <= ignore_index < classes:
        return lo.bounded(target, min(ignore_index, 0), max(ignore_index, classes - 1))
    return lo.bounded(target, 0, classes - 1)
