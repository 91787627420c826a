"""Rules for activation functions and their derivatives, and for exp and log.

A function that grows is its argument times a bounded factor from a table, so it is right at both ends.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler import arithmetic, tables
from proofs.exact.compiler.lowering import Lowering, rule
from proofs.exact.compiler.rules_elementwise import clamp, real_number

aten = torch.ops.aten

FACTOR_FRAC = 30
"""Scale of a factor within ±1, such as a derivative."""


# Piecewise linear


@rule(aten.relu.default, exact=True)
def relu(lo: Lowering, x: Handle) -> Handle:
    return lo.b.relu(x)


@rule(aten.threshold_backward.default, exact=True)
def threshold_backward(lo: Lowering, grad: Handle, x: Handle, threshold: float) -> Handle:
    if threshold != 0:
        raise lo.unsupported(f"a threshold of {threshold}", "use relu")
    return lo.b.select(lo.b.positive(x), grad, lo.b.constant(0, frac=grad.frac))


@rule(aten.hardtanh.default, exact=True)
def hardtanh(lo: Lowering, x: Handle, least: float = -1, most: float = 1) -> Handle:
    return clamp(lo, x, least, most)


@rule(aten.leaky_relu.default)
def leaky_relu(lo: Lowering, x: Handle, negative_slope: float = 0.01) -> Handle:
    return _sloped(lo, x, x, negative_slope)


@rule(aten.leaky_relu_backward.default)
def leaky_relu_backward(lo: Lowering, grad: Handle, x: Handle, negative_slope: float, self_is_result: bool) -> Handle:
    return _sloped(lo, grad, x, negative_slope)


def _sloped(lo: Lowering, value: Handle, x: Handle, slope: float) -> Handle:
    """value where x > 0, else slope * value."""
    b = lo.b
    scaled = arithmetic.scale(b, value, real_number(lo, slope))
    return b.select(b.positive(x), *arithmetic.align(b, value, scaled, lo.format.frac))


# By table


@rule(aten.tanh.default)
def tanh(lo: Lowering, x: Handle) -> Handle:
    return arithmetic.smooth(lo.b, x, tables.tanh())


@rule(aten.tanh_backward.default)
def tanh_backward(lo: Lowering, grad: Handle, result: Handle) -> Handle:
    """grad * (1 - tanh^2)."""
    b = lo.b
    square = arithmetic.mul(b, result, result)
    square = arithmetic.drop(b, square, square.frac - FACTOR_FRAC)
    return arithmetic.mul(b, grad, b.sub(arithmetic.constant(b, 1, square), square))


@rule(aten.sigmoid.default)
def sigmoid(lo: Lowering, x: Handle) -> Handle:
    return arithmetic.smooth(lo.b, x, tables.sigmoid())


@rule(aten.sigmoid_backward.default)
def sigmoid_backward(lo: Lowering, grad: Handle, result: Handle) -> Handle:
    """grad * s * (1 - s)."""
    b = lo.b
    slope = arithmetic.mul(b, result, b.sub(arithmetic.constant(b, 1, result), result))
    return arithmetic.mul(b, grad, arithmetic.drop(b, slope, slope.frac - FACTOR_FRAC))


@rule(aten.silu.default)
def silu(lo: Lowering, x: Handle) -> Handle:
    return arithmetic.mul(lo.b, x, arithmetic.smooth(lo.b, x, tables.sigmoid()))


@rule(aten.silu_backward.default)
def silu_backward(lo: Lowering, grad: Handle, x: Handle) -> Handle:
    return arithmetic.mul(lo.b, grad, arithmetic.smooth(lo.b, x, tables.silu_slope()))


@rule(aten.gelu.default)
def gelu(lo: Lowering, x: Handle, *, approximate: str = "none") -> Handle:
    table = tables.normal_cdf() if approximate == "none" else tables.gelu_tanh_factor()
    return arithmetic.mul(lo.b, x, arithmetic.smooth(lo.b, x, table))


@rule(aten.gelu_backward.default)
def gelu_backward(lo: Lowering, grad: Handle, x: Handle, *, approximate: str = "none") -> Handle:
    table = tables.gelu_slope() if approximate == "none" else tables.gelu_tanh_slope()
    return arithmetic.mul(lo.b, grad, arithmetic.smooth(lo.b, x, table))


@rule(aten.softplus.default)
def softplus(lo: Lowering, x: Handle, beta: float = 1, threshold: float = 20) -> Handle:
    """ln(1 + e^(beta x)) / beta. PyTorch's threshold, past which it takes x, differs by less than the table's error."""
    b, steepness = lo.b, real_number(lo, beta)
    if steepness <= 0 or threshold < 16:
        raise lo.unsupported(f"softplus with beta {beta} and threshold {threshold}", "use beta > 0, threshold >= 16")
    z = arithmetic.scale(b, x, steepness)
    rest = arithmetic.smooth(b, arithmetic.absolute(b, z), tables.softplus_rest())
    return arithmetic.scale(b, arithmetic.add(b, b.relu(z), rest), 1 / steepness)


@rule(aten.softplus_backward.default)
def softplus_backward(lo: Lowering, grad: Handle, x: Handle, beta: float, threshold: float) -> Handle:
    z = arithmetic.scale(lo.b, x, real_number(lo, beta))
    return arithmetic.mul(lo.b, grad, arithmetic.smooth(lo.b, z, tables.sigmoid()))


@rule(aten.elu.default)
def elu(lo: Lowering, x: Handle, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Handle:
    """scale * (x if x > 0 else alpha * (e^(input_scale x) - 1))."""
    b = lo.b
    below = arithmetic.exp(b, arithmetic.scale(b, x, real_number(lo, input_scale)))
    below = b.sub(below, arithmetic.constant(b, 1, below))
    below = arithmetic.scale(b, below, real_number(lo, alpha) * real_number(lo, scale))
    above = arithmetic.scale(b, x, real_number(lo, scale))
    return b.select(b.positive(x), *arithmetic.align(b, above, below, lo.format.frac))


# Exponentials and logarithms


@rule(aten.exp.default)
def exp(lo: Lowering, x: Handle) -> Handle:
    """e^x as 2^k e^(x - k ln 2), where 2^k is the end of the node's format: the argument is never positive below it."""
    b = lo.b
    k = lo.format.bits - 1 - lo.format.frac
    end = Fraction(math.log(2)) * k
    scaled = arithmetic.exp(b, arithmetic.add_constant(b, x, -end, tables.EXP_X_FRAC))
    return arithmetic.relabel(b, scaled, -k)


@rule(aten.log.default)
def log(lo: Lowering, x: Handle) -> Handle:
    return arithmetic.log(lo.b, x)


@rule(aten.log2.default)
def log2(lo: Lowering, x: Handle) -> Handle:
    return arithmetic.scale(lo.b, arithmetic.log(lo.b, x), 1 / math.log(2), significant=24)


@rule(aten.log1p.default)
def log1p(lo: Lowering, x: Handle) -> Handle:
    return arithmetic.log(lo.b, arithmetic.add_constant(lo.b, x, 1))
