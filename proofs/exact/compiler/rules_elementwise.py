"""Rules for arithmetic element by element: sums, products, quotients, powers, roots, signs and bounds.

A result is left at whatever scale is exact or cheap; the driver rounds it once to the node's format. Integers and truth
values (frac 0) stay integers.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler import arithmetic
from proofs.exact.compiler.formats import NumberFormat
from proofs.exact.compiler.lowering import Lowering, rule

aten = torch.ops.aten

Operand = Handle | int | float
"""What an ATen overload takes in place of a tensor: make_fx passes Python scalars through."""

MAX_POWER = 16
BASE_BITS = 32
"""Of what is raised to a power."""
QUOTIENT_GUARD_BITS = 6
QUOTIENT_FRAC = 20
BOUND_FRAC = 20
"""Of a fraction that bounds integers."""
LIMIT = 1 << 60


def is_floating(lo: Lowering) -> bool:
    """Whether the node in hand holds real numbers (and is settled), not integers or truth values."""
    return bool(lo.node.meta["val"].dtype.is_floating_point)


def real_number(lo: Lowering, value: float) -> Fraction:
    """A finite Python scalar, exactly."""
    if not math.isfinite(value):
        raise lo.unsupported(f"a constant {value}", "use a finite number; masks may be -inf in masked_fill and where")
    return Fraction(value)


def number(lo: Lowering, x: Operand) -> Handle:
    """A scalar as a handle."""
    return x if isinstance(x, Handle) else arithmetic.constant(lo.b, real_number(lo, x))


def precision(lo: Lowering) -> int | None:
    """The fraction bits that the node in hand will keep; None for integers."""
    return lo.format.frac if is_floating(lo) else None


# Sums and products


@rule(aten.add.Tensor, aten.add.Scalar)
def add(lo: Lowering, x: Operand, y: Operand, *, alpha: float = 1) -> Handle:
    return _add(lo, x, y, real_number(lo, alpha))


@rule(aten.sub.Tensor, aten.sub.Scalar)
def sub(lo: Lowering, x: Operand, y: Operand, *, alpha: float = 1) -> Handle:
    return _add(lo, x, y, -real_number(lo, alpha))


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def rsub(lo: Lowering, x: Operand, y: Operand, *, alpha: float = 1) -> Handle:
    return _add(lo, y, x, -real_number(lo, alpha))


def _add(lo: Lowering, x: Operand, y: Operand, alpha: Fraction) -> Handle:
    """x + alpha * y."""
    b, frac = lo.b, precision(lo)
    if lo.node.meta["val"].dtype is torch.bool:
        return b.clamp(b.add(number(lo, x), number(lo, y)), 0, 1)  # PyTorch: of truth values, the sum is `or`
    if not isinstance(y, Handle):
        return arithmetic.add_constant(b, number(lo, x), alpha * real_number(lo, y), frac)
    if not isinstance(x, Handle):
        return arithmetic.add_constant(b, _times(lo, y, alpha), real_number(lo, x), frac)
    if alpha < 0:
        return arithmetic.sub(b, x, _times(lo, y, -alpha), frac)
    y = _times(lo, y, alpha)
    if _holds_squares(lo):
        x, y = _rounded_up(lo, x, y.frac), _rounded_up(lo, y, x.frac)
    return arithmetic.add(b, x, y, frac)


def _holds_squares(lo: Lowering) -> bool:
    """Whether the node in hand is a square, or a sum or state fed by squares."""
    return is_floating(lo) and lo.format.bits > lo.options.wide.bits


def _rounded_up(lo: Lowering, x: Handle, frac: int) -> Handle:
    """`x` such that rounding it to 2^-frac to nearest, later, gives the next number above.

    A moving average of squares, v + (1 - b) (g^2 - v), would stand still while (1 - b) g^2 is below half a unit, far
    below g^2; rounded up it gets there, if by a unit a step. Adam then errs towards shorter steps.
    """
    places = x.frac - frac
    if not 1 < places < arithmetic.ROOM - 1 or arithmetic.size(x) > arithmetic.ROOM - 1:
        return x
    return lo.b.add(x, lo.b.constant((1 << (places - 1)) - 1, frac=x.frac))


def _times(lo: Lowering, x: Handle, factor: Fraction) -> Handle:
    if not is_floating(lo) and factor.denominator == 1 and factor != 1:
        return lo.b.mul(x, lo.b.constant(int(factor)))
    return arithmetic.scale(lo.b, x, factor)


@rule(aten.mul.Tensor, aten.mul.Scalar)
def mul(lo: Lowering, x: Operand, y: Operand) -> Handle:
    if isinstance(x, Handle) and isinstance(y, Handle):
        return arithmetic.mul(lo.b, x, y)
    if isinstance(x, Handle):
        assert not isinstance(y, Handle)
        return _times(lo, x, real_number(lo, y))
    return _times(lo, number(lo, y), real_number(lo, x))


@rule(aten.neg.default)
def neg(lo: Lowering, x: Handle) -> Handle:
    return arithmetic.negate(lo.b, x)


@rule(aten.addcmul.default)
def addcmul(lo: Lowering, x: Handle, y: Handle, z: Handle, *, value: float = 1) -> Handle:
    """x + value * y * z."""
    return _add(lo, x, arithmetic.mul(lo.b, y, z), real_number(lo, value))


@rule(aten.addcdiv.default)
def addcdiv(lo: Lowering, x: Handle, y: Handle, z: Handle, *, value: float = 1) -> Handle:
    """x + value * y / z. The quotient keeps what it can show in the result, and some guard bits; it saturates
    where the result would.
    """
    factor, form = real_number(lo, value), lo.format
    exponent = math.frexp(float(abs(factor)))[1]
    frac = max(form.frac + exponent + QUOTIENT_GUARD_BITS, QUOTIENT_FRAC)
    share = quotient(lo, y, z, frac)
    bits = max(form.bits - form.frac + share.frac - exponent + 2, 2)
    if factor and share.bits > bits:
        share = lo.b.saturate(share, bits=bits)
    return _add(lo, x, share, factor)


@rule(aten.lerp.Scalar, aten.lerp.Tensor)
def lerp(lo: Lowering, start: Handle, end: Handle, weight: Operand) -> Handle:
    """start + weight * (end - start); from the other end for a weight above 1/2, as PyTorch does."""
    b, frac = lo.b, lo.format.frac
    way = arithmetic.sub(b, end, start)
    if isinstance(weight, Handle):
        return arithmetic.add(b, start, arithmetic.mul(b, way, weight), frac)
    share = real_number(lo, weight)
    if abs(share) < Fraction(1, 2):
        if not _holds_squares(lo):
            return arithmetic.add(b, start, arithmetic.scale(b, way, share), frac)
        # Also what the product has no room for is rounded up.
        lacking = arithmetic.size(way) + arithmetic.SIGNIFICANT - arithmetic.ROOM
        way = arithmetic.drop(b, _rounded_up(lo, way, way.frac - lacking), lacking)
        return arithmetic.add(b, start, _rounded_up(lo, arithmetic.scale(b, way, share), start.frac), frac)
    return arithmetic.sub(b, end, arithmetic.scale(b, way, 1 - share), frac)


# Quotients, powers, roots


@rule(aten.div.Tensor, aten.div.Scalar)
def div(lo: Lowering, x: Operand, y: Operand) -> Handle:
    if not isinstance(y, Handle):
        divisor = real_number(lo, y)
        if divisor == 0:
            raise lo.unsupported("a division by the constant 0", "divide by something else")
        return arithmetic.scale(lo.b, number(lo, x), 1 / divisor)
    return quotient(lo, number(lo, x), y, lo.format.frac)


@rule(aten.reciprocal.default)
def reciprocal(lo: Lowering, x: Handle) -> Handle:
    return quotient(lo, lo.b.constant(1), x, lo.format.frac)


def quotient(lo: Lowering, x: Handle, y: Handle, frac: int) -> Handle:
    """x / y to about 2^-frac. A divisor of 0 counts as the least positive number of its scale."""
    b = lo.b
    if y.hi == y.lo and y.lo != 0:
        return arithmetic.scale(b, x, 1 / (Fraction(y.lo) * Fraction(2) ** -y.frac))
    if y.lo < 0:
        negative = b.positive(arithmetic.negate(b, y))
        x = b.select(negative, arithmetic.negate(b, x), x)
        y = arithmetic.absolute(b, y)
    y = b.clamp(y, 1, max(1, y.hi)) if y.lo < 1 else y
    if arithmetic.elements(y) < arithmetic.elements(x):
        # One division per row, if its result then keeps enough digits over the whole interval of the divisor.
        room = arithmetic.ROOM - arithmetic.size(x)
        if room - (y.hi.bit_length() - y.lo.bit_length()) > arithmetic.SIGNIFICANT + 2:
            return b.mul(x, arithmetic.reciprocal(b, y, room=room))
    return arithmetic.divide(b, x, y, frac)


@rule(aten.sqrt.default)
def sqrt(lo: Lowering, x: Handle) -> Handle:
    return root(lo, x)


@rule(aten.rsqrt.default)
def rsqrt(lo: Lowering, x: Handle) -> Handle:
    return arithmetic.divide(lo.b, lo.b.constant(1), root(lo, x), lo.format.frac)


def root(lo: Lowering, x: Handle) -> Handle:
    """The root of x, or of one unit of its scale where x has rounded to less.

    Adam divides a first moment by the root of a second one. Where a gradient is so small that its square rounds to 0
    and itself does not, a root of 0 would make a step as large as formats admit (measured: 23 times the learning rate
    in a LoRA adapter's first step); the root of one unit makes one of at most about the learning rate.
    """
    x = lo.b.clamp(x, 1, max(1, x.hi)) if x.lo < 1 else x
    return arithmetic.sqrt(lo.b, x)


@rule(aten.square.default)
def square(lo: Lowering, x: Handle) -> Handle:
    return arithmetic.mul(lo.b, x, x)


@rule(aten.pow.Tensor_Scalar)
def power(lo: Lowering, x: Handle, exponent: float) -> Handle:
    doubled = real_number(lo, exponent) * 2
    if doubled.denominator != 1 or abs(doubled) > 2 * MAX_POWER:
        raise lo.unsupported(f"a power of {exponent}", "use a whole or half power up to 16, or exp and log")
    base = root(lo, x) if doubled % 2 else x
    times = abs(int(doubled)) if doubled % 2 else abs(int(doubled)) // 2
    if times == 0:
        return lo.b.broadcast(lo.b.constant(1), x.shape)
    if doubled < 0:
        # Inverted first, and saturated where its power would be: a power of the divisor would have lost its low end.
        exponent = -(-(lo.format.bits - lo.format.frac) // times) + 1
        inverse = NumberFormat(BASE_BITS - 1 - exponent, BASE_BITS)
        base = arithmetic.to(lo.b, quotient(lo, lo.b.constant(1), base, inverse.frac), inverse)
    return _whole_power(lo, base, times)


def _whole_power(lo: Lowering, x: Handle, times: int) -> Handle:
    if times == 1:
        return x
    half = _whole_power(lo, x, times // 2)
    even = arithmetic.mul(lo.b, half, half)
    return arithmetic.mul(lo.b, even, x) if times % 2 else even


@rule(aten.xlogy.Tensor)
def xlogy(lo: Lowering, x: Handle, y: Handle) -> Handle:
    """x ln y, and 0 where x is 0: the logarithm of 0 is finite here."""
    return arithmetic.mul(lo.b, x, arithmetic.log(lo.b, y))


# Sign, size, bounds


def whole_below(value: float, frac: int, *, up: bool = False) -> int:
    """floor(value * 2^frac), or with `up` its ceiling, within ±2^60; infinities are the ends."""
    if math.isinf(value):
        return LIMIT if value > 0 else -LIMIT
    scaled = Fraction(value) * Fraction(2) ** frac
    return min(max(math.ceil(scaled) if up else math.floor(scaled), -LIMIT), LIMIT)


@rule(aten.abs.default, exact=True)
def absolute(lo: Lowering, x: Handle) -> Handle:
    return arithmetic.absolute(lo.b, x)


@rule(aten.sign.default, aten.sgn.default, exact=True)
def sign(lo: Lowering, x: Handle) -> Handle:
    """-1, 0 or 1."""
    b = lo.b
    return b.sub(b.positive(x), b.positive(arithmetic.negate(b, x)))


@rule(aten.clamp.default, exact=True)
def clamp(lo: Lowering, x: Handle, least: float | None = None, most: float | None = None) -> Handle:
    if x.frac == 0 and any(end is not None and end % 1 for end in (least, most)):
        x = lo.b.widen(x, frac=BOUND_FRAC)  # integers, bounded by a fraction
    low = x.lo if least is None else whole_below(least, x.frac)
    high = x.hi if most is None else whole_below(most, x.frac)
    if low <= x.lo and x.hi <= high:
        return x
    return lo.b.clamp(x, min(low, high), high)  # PyTorch: where they cross, the maximum wins


@rule(aten.clamp_min.default, exact=True)
def clamp_min(lo: Lowering, x: Handle, least: float) -> Handle:
    return clamp(lo, x, least)


@rule(aten.clamp_max.default, exact=True)
def clamp_max(lo: Lowering, x: Handle, most: float) -> Handle:
    return clamp(lo, x, None, most)


@rule(aten.maximum.default, aten.clamp_min.Tensor)
def maximum(lo: Lowering, x: Handle, y: Handle) -> Handle:
    x, y = arithmetic.align(lo.b, x, y)
    return lo.b.select(lo.b.positive(lo.b.sub(x, y)), x, y)


@rule(aten.minimum.default, aten.clamp_max.Tensor)
def minimum(lo: Lowering, x: Handle, y: Handle) -> Handle:
    x, y = arithmetic.align(lo.b, x, y)
    return lo.b.select(lo.b.positive(lo.b.sub(x, y)), y, x)


@rule(aten.clamp.Tensor)
def clamp_tensor(lo: Lowering, x: Handle, least: Handle | None = None, most: Handle | None = None) -> Handle:
    x = x if least is None else maximum(lo, x, least)
    return x if most is None else minimum(lo, x, most)
