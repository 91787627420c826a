"""Rules for comparisons, truth values, choices by them, and changes of dtype: exact, but for a choice's format."""

from __future__ import annotations

from typing import Any

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler import arithmetic
from proofs.exact.compiler.formats import NumberFormat
from proofs.exact.compiler.lowering import Lowering, rule
from proofs.exact.compiler.rules_elementwise import Operand, is_floating, number, whole_below

aten = torch.ops.aten


# Comparisons and truth values


def greater(lo: Lowering, x: Operand, y: Operand) -> Handle:
    """1 where x > y, else 0: exact, also against a constant that the scale of the other side cannot hold."""
    b = lo.b
    if not isinstance(y, Handle):
        x = number(lo, x)
        return b.positive(b.sub(x, b.constant(whole_below(y, x.frac), frac=x.frac)))
    if not isinstance(x, Handle):
        return b.positive(b.sub(b.constant(whole_below(x, y.frac, up=True), frac=y.frac), y))
    return b.positive(b.sub(*arithmetic.align(b, x, y)))


def complement(lo: Lowering, truth: Handle) -> Handle:
    return lo.b.sub(lo.b.constant(1), truth)


@rule(aten.gt.Scalar, aten.gt.Tensor, exact=True)
def gt(lo: Lowering, x: Operand, y: Operand) -> Handle:
    return greater(lo, x, y)


@rule(aten.lt.Scalar, aten.lt.Tensor, exact=True)
def lt(lo: Lowering, x: Operand, y: Operand) -> Handle:
    return greater(lo, y, x)


@rule(aten.ge.Scalar, aten.ge.Tensor, exact=True)
def ge(lo: Lowering, x: Operand, y: Operand) -> Handle:
    return complement(lo, greater(lo, y, x))


@rule(aten.le.Scalar, aten.le.Tensor, exact=True)
def le(lo: Lowering, x: Operand, y: Operand) -> Handle:
    return complement(lo, greater(lo, x, y))


@rule(aten.ne.Scalar, aten.ne.Tensor, exact=True)
def ne(lo: Lowering, x: Operand, y: Operand) -> Handle:
    b = lo.b
    return b.clamp(b.add(greater(lo, x, y), greater(lo, y, x)), 0, 1)


@rule(aten.eq.Scalar, aten.eq.Tensor, exact=True)
def eq(lo: Lowering, x: Operand, y: Operand) -> Handle:
    return complement(lo, ne(lo, x, y))


@rule(aten.logical_not.default, exact=True)
def logical_not(lo: Lowering, x: Handle) -> Handle:
    return complement(lo, truth_of(lo, x))


@rule(aten.bitwise_not.default, exact=True)
def bitwise_not(lo: Lowering, x: Handle) -> Handle:
    """Of a truth value its opposite; of an integer n, -1 - n."""
    return logical_not(lo, x) if lo.node.meta["val"].dtype is torch.bool else lo.b.sub(lo.b.constant(-1), x)


@rule(aten.logical_and.default, aten.bitwise_and.Tensor, exact=True)
def logical_and(lo: Lowering, x: Handle, y: Handle) -> Handle:
    return lo.b.mul(truth_of(lo, x), truth_of(lo, y))


@rule(aten.logical_or.default, aten.bitwise_or.Tensor, exact=True)
def logical_or(lo: Lowering, x: Handle, y: Handle) -> Handle:
    return lo.b.clamp(lo.b.add(truth_of(lo, x), truth_of(lo, y)), 0, 1)


@rule(aten.logical_xor.default, aten.bitwise_xor.Tensor, exact=True)
def logical_xor(lo: Lowering, x: Handle, y: Handle) -> Handle:
    return ne(lo, truth_of(lo, x), truth_of(lo, y))


def truth_of(lo: Lowering, x: Handle) -> Handle:
    """A handle of 0 and 1; refuses the bitwise operations on other integers, which share these rules."""
    if x.frac != 0 or x.lo < 0 or x.hi > 1:
        raise lo.unsupported("a logical operation on numbers that are not 0 or 1", "compare first: x != 0")
    return x


@rule(aten.isnan.default, exact=True)
def isnan(lo: Lowering, x: Handle) -> Handle:
    """No integer is."""
    return lo.b.broadcast(lo.b.constant(0), x.shape)


# Choices


@rule(aten.where.self, aten.where.ScalarSelf, aten.where.ScalarOther, aten.where.Scalar)
def where(lo: Lowering, condition: Handle, x: Operand, y: Operand) -> Handle:
    return lo.b.select(condition, *_choices(lo, x, y))


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(lo: Lowering, x: Handle, mask: Handle, value: Operand) -> Handle:
    return lo.b.select(mask, *_choices(lo, value, x))


def _choices(lo: Lowering, x: Operand, y: Operand) -> tuple[Handle, Handle]:
    """Both in the node's format; -inf is its least value, inf its greatest."""
    if not is_floating(lo):
        return number(lo, x), number(lo, y)
    return _in_format(lo, x), _in_format(lo, y)


def _in_format(lo: Lowering, x: Operand) -> Handle:
    if isinstance(x, Handle):
        return arithmetic.to(lo.b, x, lo.format)
    form = lo.format
    whole = min(max(whole_below(x, form.frac), -(1 << (form.bits - 1))), (1 << (form.bits - 1)) - 1)
    return lo.b.constant(whole, frac=form.frac)


@rule(aten.copy.default, exact=True)
def copy(lo: Lowering, target: Handle, source: Handle) -> Handle:
    """`source` in the shape of what it overwrites."""
    return lo.b.broadcast(source, target.shape)


@rule(aten._to_copy.default, aten.to.dtype, exact=True)
def to_copy(lo: Lowering, x: Handle, *_: Any, **__: Any) -> Handle:
    """A change of dtype: real numbers all have the same arithmetic here; to integers they are cut off towards 0."""
    dtype = lo.node.meta["val"].dtype
    if dtype is torch.bool:
        return x if x.frac == 0 and x.lo >= 0 and x.hi <= 1 else ne(lo, x, 0)
    if dtype.is_floating_point or x.frac == 0:
        return x
    b = lo.b
    size = arithmetic.absolute(b, x)
    whole = (
        b.div_floor(size, b.constant(1 << x.frac, frac=x.frac))
        if x.frac > 0
        else arithmetic.to(b, size, NumberFormat(0, arithmetic.ROOM))
    )
    return b.select(b.positive(x), whole, arithmetic.negate(b, whole))
