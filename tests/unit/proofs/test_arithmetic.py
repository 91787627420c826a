"""Real-number arithmetic on handles against float64 and Fractions: every stated error bound is measured here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import pytest
import torch

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.compiler import arithmetic, tables
from proofs.exact.compiler.arithmetic import ratio
from proofs.exact.compiler.formats import NumberFormat
from proofs.exact.compiler.tables import Table
from proofs.exact.definitions import IntArray
from proofs.exact.reference import reference_step
from proofs.exact.tensor_type import TensorType

Given = tuple[list[int], int, int]
"""Integers, bits, frac."""
Compute = Callable[..., Handle]


def evaluate(compute: Compute, *inputs: Given) -> tuple[list[Fraction], Handle]:
    """What the operations give, as exact rationals, by the definitions alone; and the handle."""
    b = ProgramBuilder()
    handles, data = [], {}
    for place, (values, bits, frac) in enumerate(inputs):
        handles.append(b.data(f"x{place}", TensorType((len(values),), bits, frac)))
        data[f"x{place}"] = IntArray((len(values),), tuple(values))
    out = compute(b, *handles)
    b.state("out", TensorType(out.shape, out.bits, out.frac))
    b.update("out", out)
    result = reference_step(b.build(), {"out": IntArray(out.shape, (0,) * math.prod(out.shape))}, data, 0)["out"]
    return [Fraction(value) / Fraction(2) ** out.frac for value in result.values], out


def real(values: list[int], frac: int) -> list[Fraction]:
    return [Fraction(value) / Fraction(2) ** frac for value in values]


def extremes(bits: int) -> list[int]:
    greatest = (1 << (bits - 1)) - 1
    return [0, 1, -1, 2, -2, 3, greatest, -greatest - 1, greatest - 1, greatest // 3, -greatest // 7, 1 << (bits // 2)]


def worst(results: list[Fraction], expected: Sequence[Fraction | float]) -> float:
    return float(max(abs(result - Fraction(value)) for result, value in zip(results, expected, strict=True)))


# Constants


@pytest.mark.parametrize("value", [1, -1, 0.5, 3, 0.1, 1 / 3, 0.999, -0.9999, 1e-8, 12345.678, 2.0**-60, 0.75])
def test_constants_keep_twenty_bits_of_themselves_and_of_their_distance_to_one(value: float) -> None:
    n, k = ratio(value)
    held = Fraction(n) / Fraction(2) ** k
    assert abs(held - Fraction(value)) <= abs(Fraction(value)) * Fraction(2) ** -20
    if 0.5 < abs(value) < 1:
        distance = 1 - abs(Fraction(value))
        assert abs((1 - abs(held)) - distance) <= distance * Fraction(2) ** -20


def test_short_dyadic_constants_are_exact() -> None:
    for value in (0.0, 1.0, -0.375, 1024.0, 0.015625, 1000.0):
        n, k = ratio(value)
        assert Fraction(n) / Fraction(2) ** k == Fraction(value)


# Scales


@pytest.mark.parametrize(
    "form", [NumberFormat(10, 16), NumberFormat(30, 32), NumberFormat(-4, 12), NumberFormat(50, 8)]
)
@pytest.mark.parametrize("frac", [-20, 0, 10, 20, 60, 90])
def test_any_number_goes_to_any_format_saturating(form: NumberFormat, frac: int) -> None:
    values = extremes(40)
    results, handle = evaluate(lambda b, x: arithmetic.to(b, x, form), (values, 40, frac))
    assert handle.frac == form.frac and handle.bits <= form.bits
    unit, own = Fraction(2) ** -form.frac, Fraction(2) ** -frac
    least, greatest = -(1 << (form.bits - 1)) * unit, ((1 << (form.bits - 1)) - 1) * unit
    for result, value in zip(results, real(values, frac), strict=True):
        clipped = min(max(value, least), greatest)
        # A widened number saturates to the last of its own steps.
        slack = unit / 2 if least <= value <= greatest else max(unit / 2, own if own < greatest else 0)
        assert abs(result - clipped) <= slack


def test_a_sum_of_very_different_scales_keeps_the_coarse_part_exactly() -> None:
    x, y = extremes(32), list(reversed(extremes(32)))
    for fine in (24, 40, 60, 90):
        results, handle = evaluate(arithmetic.add, (x, 32, 10), (y, 32, fine))
        expected = [p + q for p, q in zip(real(x, 10), real(y, fine), strict=True)]
        assert worst(results, expected) <= 2.0 ** (-handle.frac - 1) * (handle.frac < fine)
        assert handle.frac >= min(fine, 38)


def test_a_sum_rounds_what_the_format_would_not_show() -> None:
    x, y = extremes(32), list(reversed(extremes(32)))
    results, handle = evaluate(lambda b, p, q: arithmetic.add(b, p, q, 20), (x, 32, 24), (y, 32, 45))
    expected = [p + q for p, q in zip(real(x, 24), real(y, 45), strict=True)]
    assert handle.frac == 24 and worst(results, expected) <= 2.0**-25


# Products


@pytest.mark.parametrize("bits, other", [(32, 32), (52, 32), (52, 52), (16, 62), (62, 20)])
def test_products_lose_only_what_62_bits_lack(bits: int, other: int) -> None:
    x, y = extremes(bits), list(reversed(extremes(other)))
    results, _ = evaluate(arithmetic.mul, (x, bits, 20), (y, other, 30))
    lost = max(0, bits + other - 2 - arithmetic.ROOM)
    for result, p, q in zip(results, real(x, 20), real(y, 30), strict=True):
        coarse = (abs(p) * Fraction(2) ** (other - 30) + abs(q) * Fraction(2) ** (bits - 20)) * Fraction(2) ** -30
        assert abs(result - p * q) <= coarse * bool(lost)


@pytest.mark.parametrize("factor", [0.9, 0.999, 0.9999, 0.1, 1 / 256, 3.7, -0.3, 1 / 3e6, 1, -1, 0])
@pytest.mark.parametrize("bits", [16, 32, 52, 62])
def test_scaling_is_right_to_twenty_bits(factor: float, bits: int) -> None:
    x = extremes(bits)
    results, handle = evaluate(lambda b, p: arithmetic.scale(b, p, factor), (x, bits, 20))
    for result, value in zip(results, real(x, 20), strict=True):
        relative = abs(value * Fraction(factor)) * Fraction(2) ** -20
        rounding = Fraction(2) ** (bits - 43 - 20) * abs(Fraction(factor)) if bits > 42 else 0
        assert abs(result - value * Fraction(factor)) <= relative + rounding + Fraction(2) ** (-handle.frac - 1)


def test_a_moving_average_forgets_at_its_own_rate() -> None:
    """0.999 x keeps 20 bits of 0.001: after a thousand steps e^-1 is left, to 2^-15."""
    b = ProgramBuilder()
    form = NumberFormat(40, 52)
    state = b.state("out", TensorType((1,), 52, 40))
    b.update("out", arithmetic.to(b, arithmetic.scale(b, state, 0.999), form))
    program = b.build()
    value = {"out": IntArray((1,), (1 << 50,))}
    for _ in range(1000):
        value = reference_step(program, value, {}, 0)
    assert value["out"].values[0] / 2**50 == pytest.approx(0.999**1000, rel=2**-15)


# Quotients and roots


@pytest.mark.parametrize("x_bits, y_bits, x_frac, y_frac", [(32, 32, 24, 20), (32, 16, 30, 0), (20, 40, 10, 30)])
def test_division_rounds_to_nearest(x_bits: int, y_bits: int, x_frac: int, y_frac: int) -> None:
    x = [value for value in extremes(x_bits) for _ in range(4)]
    y = [min(max(1, abs(value)), (1 << (y_bits - 1)) - 1) for value in extremes(y_bits) * 4]
    results, handle = evaluate(lambda b, p, q: arithmetic.divide(b, p, q, 16), (x, x_bits, x_frac), (y, y_bits, y_frac))
    expected = [p / q for p, q in zip(real(x, x_frac), real(y, y_frac), strict=True)]
    # The divisor gives way first where room lacks: relative to it, not to the last place.
    rough = Fraction(2) ** -(arithmetic.DIVISOR_ROOM - 1) * (y_bits > arithmetic.DIVISOR_ROOM)
    for result, value, divisor in zip(results, expected, y, strict=True):
        if rough and divisor < 1 << 24:
            continue
        assert abs(result - value) <= Fraction(2) ** (-handle.frac - 1) + abs(value) * rough * (1 << 16)
    assert handle.frac >= 8


def test_a_divisor_of_zero_counts_as_the_least_positive() -> None:
    results, _ = evaluate(lambda b, x, y: arithmetic.divide(b, x, y, 8), ([3, 3], 8, 0), ([0, 1], 8, 4))
    assert results[0] == results[1] == 48


@pytest.mark.parametrize("bits, frac", [(32, 20), (52, 45), (52, 46), (8, 0), (62, 61)])
def test_roots_have_thirty_bits(bits: int, frac: int) -> None:
    x = [abs(value) % (1 << (bits - 1)) for value in extremes(bits)]
    results, handle = evaluate(arithmetic.sqrt, (x, bits, frac))
    for result, value in zip(results, real(x, frac), strict=True):
        assert float(result) == pytest.approx(math.sqrt(value), abs=2.0**-handle.frac)
    assert handle.hi >= 1 << 29


def test_the_root_of_a_negative_number_is_zero() -> None:
    assert evaluate(arithmetic.sqrt, ([-5, 16], 8, 0))[0] == [0, 4]


# Sums along axes


@pytest.mark.parametrize("axes", [[0], [1], [2], [0, 1], [1, 2], [0, 2], [0, 1, 2], []])
@pytest.mark.parametrize("keepdim", [True, False])
def test_sums_over_any_axes_are_exact(axes: list[int], keepdim: bool) -> None:
    x = torch.randint(-(2**31), 2**31, (3, 4, 5), generator=torch.Generator().manual_seed(1))

    def compute(b: ProgramBuilder, flat: Handle) -> Handle:
        return arithmetic.total(b, b.reshape(flat, (3, 4, 5)), axes, keepdim=keepdim)

    results, handle = evaluate(compute, (x.flatten().tolist(), 32, 0))
    expected = x.sum(dim=axes or [0, 1, 2], keepdim=keepdim)
    assert handle.shape == tuple(expected.shape)
    assert [int(value) for value in results] == expected.flatten().tolist()


def test_a_sum_that_would_not_fit_loses_low_bits_only() -> None:
    x = [(1 << 61) - 1] * 16
    results, handle = evaluate(lambda b, p: arithmetic.total(b, p, [0], keepdim=False), (x, 62, 0))
    assert handle.hi < 1 << 62
    assert float(results[0]) == pytest.approx(16 * 2.0**61, rel=2**-50)


# Tables


def _grid(lo: float, hi: float, frac: int, count: int = 3001) -> list[int]:
    step = (hi - lo) / (count - 1)
    return [round((lo + i * step) * 2**frac) for i in range(count)]


def _normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _gelu_slope(x: float) -> float:
    return _normal_cdf(x) + x * math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh(x: float) -> float:
    return (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def _gelu_tanh_slope(x: float) -> float:
    inner = math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x * x)
    return _gelu_tanh(x) + 2 * x * _gelu_tanh(x) * (1 - _gelu_tanh(x)) * inner


TABLES: list[tuple[Callable[[], Table], Callable[[float], float], float, float]] = [
    (tables.tanh, math.tanh, -12, 12),
    (tables.sigmoid, _sigmoid, -30, 30),
    (tables.silu_slope, lambda x: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))), -60, 60),
    (tables.normal_cdf, _normal_cdf, -12, 12),
    (tables.gelu_slope, _gelu_slope, -12, 12),
    (tables.gelu_tanh_factor, _gelu_tanh, -12, 12),
    (tables.gelu_tanh_slope, _gelu_tanh_slope, -12, 12),
    (tables.softplus_rest, lambda x: math.log1p(math.exp(-x)), 0, 16),
    (tables.log_table, math.log, 0.5, 1),
]


@pytest.mark.parametrize("table, function, lo, hi", TABLES, ids=[entry[0].__name__ for entry in TABLES])
def test_tables_keep_their_stated_error(
    table: Callable[[], Table], function: Callable[[float], float], lo: float, hi: float
) -> None:
    x = _grid(lo, hi, 25)
    results, _ = evaluate(lambda b, p: arithmetic.smooth(b, p, table()), (x, 32, 25))
    error = worst(results, [function(value / 2**25) for value in x])
    assert error <= table().error
    assert error > table().error / 16, "the stated error is far from the truth"


@pytest.mark.parametrize(
    "table, ends", [(tables.tanh, (-1, 1)), (tables.normal_cdf, (0, 1)), (tables.gelu_slope, (0, 1))]
)
def test_tables_end_on_their_asymptotes(table: Callable[[], Table], ends: tuple[int, int]) -> None:
    results, _ = evaluate(lambda b, p: arithmetic.smooth(b, p, table()), ([-(2**31), 2**31 - 1], 32, 20))
    assert results[0] == ends[0] and abs(results[1] - ends[1]) < Fraction(2) ** -29


def test_table_entries_are_correctly_rounded() -> None:
    """Also those that float64 cannot decide: sqrt(1/2) at frac 60 is beyond its digits."""
    assert tables.rounded(lambda m, x: m.sqrt(x), 1, 1, 60) == (math.isqrt(2 * 4**60) + 1) // 2
    ties = [tables.rounded(lambda m, x: x, numerator, 4, 3) for numerator in (1, 3, -1, -3)]
    assert ties == [1, 2, 0, -1]  # halves up


@pytest.mark.parametrize("frac", [-6, 0, 4, 8, 12, 20, 24, 26, 30])
def test_exponentials_are_right_to_eighteen_bits_down_to_the_last(frac: int) -> None:
    span = min(30.0, 2.0 ** (37 - frac) - 1)
    x = sorted({min(0, value) for value in _grid(-span, 0, frac, 2001)})
    results, _ = evaluate(arithmetic.exp, (x, 38, frac))
    for result, value in zip(results, real(x, frac), strict=True):
        expected = math.exp(value)
        assert abs(float(result) - expected) <= expected * 2.0**-18 + 2.0**-30
    assert results[-1] == 1


def test_exponentials_of_masked_numbers_are_exactly_zero() -> None:
    assert evaluate(arithmetic.exp, ([-(2**31), -23 * 2**20], 32, 20))[0] == [0, 0]


@pytest.mark.parametrize("bits, frac", [(32, 20), (40, 0), (20, -5), (52, 50), (3, 0)])
def test_logarithms_of_any_scale(bits: int, frac: int) -> None:
    greatest = (1 << (bits - 1)) - 1
    x = sorted({max(1, round(greatest ** (i / 400))) for i in range(401)} | {1, greatest})
    results, _ = evaluate(arithmetic.log, (x, bits, frac))
    assert worst(results, [math.log(value) for value in real(x, frac)]) < 2.0**-23
