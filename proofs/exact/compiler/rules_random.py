"""Rules for randomness: dropout, and whatever else draws uniform or Bernoulli numbers.

Every draw of a step is one RANDOM operation with a stream of its own: a function of the unit's seed, the step and the
place in the tensor. So a mask is the same in the forward and the backward pass (it is one value), other in every step,
and the same on every machine. A probability is rounded to 2^-24.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler.arithmetic import scale, to
from proofs.exact.compiler.formats import NumberFormat
from proofs.exact.compiler.lowering import Lowering, rule
from proofs.exact.compiler.rules_shape import result_shape

aten = torch.ops.aten

BITS = 24
"""Of a draw: as many as float32's own uniform numbers have."""


def uniform(lo: Lowering, shape: tuple[int, ...]) -> Handle:
    """Integers in 0..2^24-1, from a stream of their own."""
    return lo.b.random(lo.t, stream=lo.stream(), bits=BITS, shape=shape)


def drawn(lo: Lowering, shape: tuple[int, ...], probability: float) -> Handle:
    """1 with this probability, else 0."""
    threshold = round(probability * 2**BITS)
    if threshold <= 0 or threshold >= 2**BITS:
        return lo.b.broadcast(lo.b.constant(int(threshold > 0)), shape)
    return lo.b.positive(lo.b.sub(lo.b.constant(threshold), uniform(lo, shape)))


@rule(aten.native_dropout.default)
def native_dropout(lo: Lowering, x: Handle, p: float, train: bool | None) -> tuple[Handle, Handle]:
    if train is False or p == 0:
        return x, lo.b.broadcast(lo.b.constant(1), x.shape)
    kept = drawn(lo, x.shape, 1 - p)
    return scale(lo.b, lo.b.mul(x, kept), 1 / (1 - p) if p < 1 else 0), kept


@rule(aten.native_dropout_backward.default)
def native_dropout_backward(lo: Lowering, gradient: Handle, mask: Handle, factor: float) -> Handle:
    return scale(lo.b, lo.b.mul(gradient, mask), factor)


@rule(aten.dropout.default)
def dropout(lo: Lowering, x: Handle, p: float, train: bool) -> Handle:
    return native_dropout(lo, x, p, train)[0]


@rule(aten.bernoulli.p, aten.bernoulli_.float, exact=True)
def bernoulli_p(lo: Lowering, x: Handle, p: float = 0.5, *, generator: object = None) -> Handle:
    return drawn(lo, result_shape(lo), p)


@rule(aten.bernoulli.default, exact=True)
def bernoulli(lo: Lowering, probabilities: Handle, *, generator: object = None) -> Handle:
    threshold = to(lo.b, probabilities, NumberFormat(BITS, BITS + 2))
    draw = lo.b.mul(uniform(lo, probabilities.shape), lo.b.constant(1, frac=BITS))
    return lo.b.positive(lo.b.sub(threshold, draw))


@rule(aten.rand.default, exact=True)
def rand(lo: Lowering, size: Sequence[int], **_: object) -> Handle:
    return lo.b.mul(uniform(lo, tuple(size)), lo.b.constant(1, frac=BITS))


@rule(aten.rand_like.default, exact=True)
def rand_like(lo: Lowering, x: Handle, **_: object) -> Handle:
    return rand(lo, x.shape)
