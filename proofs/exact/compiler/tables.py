"""Tables of smooth functions: correctly rounded entries, and a stated greatest error of what is read from them.

A table holds the function at grid points 2^-step_bits apart and the slope of the secant across each point's cell. Read
by `arithmetic.smooth` (nearest point plus slope times distance) the error is at most h^2/8 |f''| for a grid of step h,
plus rounding: `error` states their sum, and tests/unit/proofs/test_arithmetic.py measures it. Tables are for bounded
functions. What grows is composed of a bounded factor, so that the ends are right for any x, however large: gelu(x) =
x * Phi(x) (Hendrycks & Gimpel 2016), silu(x) = x * sigmoid(x).

An entry is computed in float64; where that falls within 2^-10 of a tie, mpmath decides with 100 bits. So tables are the
same on every machine, although no proof rests on that: they are part of the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import mpmath

Function = Callable[[Any, Any], Any]
"""f(m, x): written once, for m = math (float64) and m = mpmath."""

TIE_WINDOW = 2.0**-10
DOUBLE_DECIDES = 2.0**32
"""Below this float64 is right to 2^-19 of an entry's unit, far inside the window around a tie."""
EXACT_BITS = 100


@dataclass(frozen=True, slots=True)
class Table:
    """x is read at 2^-x_frac within `x_bits`; entry i belongs to x = (i - offset) * 2^-step_bits."""

    x_frac: int
    x_bits: int
    step_bits: int
    offset: int
    frac: int
    slope_frac: int
    values: tuple[int, ...]
    slopes: tuple[int, ...]
    error: float


def rounded(function: Function, numerator: int, denominator_bits: int, frac: int) -> int:
    """function(numerator * 2^-denominator_bits) * 2^frac to the nearest integer, correctly rounded."""
    estimate = math.ldexp(float(function(math, math.ldexp(numerator, -denominator_bits))), frac)
    if abs(estimate) < DOUBLE_DECIDES and abs(estimate - math.floor(estimate) - 0.5) > TIE_WINDOW:
        return math.floor(estimate + 0.5)
    with mpmath.workprec(EXACT_BITS):
        exact = function(mpmath, mpmath.ldexp(numerator, -denominator_bits))
        return int(mpmath.floor(mpmath.ldexp(exact, frac) + 0.5))


def _tabulate(
    function: Function,
    *,
    first: int,
    last: int,
    step_bits: int,
    x_frac: int,
    x_bits: int,
    error: float,
    ends: tuple[float, float] | None,
    frac: int = 30,
    slope_frac: int = 16,
) -> Table:
    """Grid points first..last, in steps. `ends` are the asymptotes, which the outermost entries are made to hold."""
    values = [rounded(function, point, step_bits, frac) for point in range(first, last + 1)]

    def secant(m: ModuleType, x: Any) -> Any:
        half = math.ldexp(1.0, -step_bits - 1)
        return (function(m, x + half) - function(m, x - half)) / (2 * half)

    slopes = [rounded(secant, point, step_bits, slope_frac) for point in range(first, last + 1)]
    if ends is not None:
        values[0], values[-1] = (round(end * 2**frac) for end in ends)
        slopes[0] = slopes[-1] = 0
    return Table(x_frac, x_bits, step_bits, -first, frac, slope_frac, tuple(values), tuple(slopes), error)


def _symmetric(function: Function, reach_bits: int, step_bits: int, ends: tuple[float, float], error: float) -> Table:
    """Over ±2^reach_bits."""
    last, bits = 1 << (reach_bits + step_bits), reach_bits + X_FRAC + 1
    return _tabulate(
        function, first=-last, last=last, step_bits=step_bits, x_frac=X_FRAC, x_bits=bits, error=error, ends=ends
    )


X_FRAC = 20


@lru_cache(maxsize=1)
def tanh() -> Table:
    """Over ±8: tanh(8) is 1 - 2.3e-7."""
    return _symmetric(lambda m, x: m.tanh(x), 3, 8, (-1, 1), 2.0**-18.5)


def _sigmoid(m: Any, x: Any) -> Any:
    return 1 / (1 + m.exp(-x))


@lru_cache(maxsize=1)
def sigmoid() -> Table:
    """Over ±16: sigmoid(-16) is 1.2e-7."""
    return _symmetric(_sigmoid, 4, 7, (0, 1), 2.0**-19)


@lru_cache(maxsize=1)
def silu_slope() -> Table:
    """Derivative of x sigmoid(x), over ±32, where it is within 4.1e-13 of 0 or 1."""

    def slope(m: Any, x: Any) -> Any:
        s = _sigmoid(m, x)
        return s * (1 + x * (1 - s))

    return _symmetric(slope, 5, 7, (0, 1), 2.0**-18)


def _normal_cdf(m: Any, x: Any) -> Any:
    return m.erfc(-x / m.sqrt(2)) / 2


def _normal_density(m: Any, x: Any) -> Any:
    return m.exp(-x * x / 2) / m.sqrt(2 * m.pi)


@lru_cache(maxsize=1)
def normal_cdf() -> Table:
    """Over ±8: Phi(-8) is 6e-16."""
    return _symmetric(_normal_cdf, 3, 8, (0, 1), 2.0**-19)


@lru_cache(maxsize=1)
def gelu_slope() -> Table:
    """Derivative of x Phi(x)."""
    return _symmetric(lambda m, x: _normal_cdf(m, x) + x * _normal_density(m, x), 3, 8, (0, 1), 2.0**-18)


def _gelu_tanh_inner(m: Any, x: Any) -> Any:
    return m.sqrt(2 / m.pi) * (x + GELU_CUBIC * x * x * x)


GELU_CUBIC = 0.044715
"""Of the tanh form (Hendrycks & Gimpel 2016, section 2)."""


@lru_cache(maxsize=1)
def gelu_tanh_factor() -> Table:
    return _symmetric(lambda m, x: (1 + m.tanh(_gelu_tanh_inner(m, x))) / 2, 3, 8, (0, 1), 2.0**-19)


@lru_cache(maxsize=1)
def gelu_tanh_slope() -> Table:
    def slope(m: Any, x: Any) -> Any:
        t = m.tanh(_gelu_tanh_inner(m, x))
        inner_slope = m.sqrt(2 / m.pi) * (1 + 3 * GELU_CUBIC * x * x)
        return (1 + t) / 2 + x * (1 - t * t) * inner_slope / 2

    return _symmetric(slope, 3, 8, (0, 1), 2.0**-18)


@lru_cache(maxsize=1)
def softplus_rest() -> Table:
    """ln(1 + e^-|x|), what softplus(x) exceeds relu(x) by, for |x| up to 16."""
    last = 16 << 8
    return _tabulate(
        lambda m, x: m.log(1 + m.exp(-x)),
        first=0,
        last=last,
        step_bits=8,
        x_frac=X_FRAC,
        x_bits=X_FRAC + 5,
        error=2.0**-19,
        ends=None,
    )


# Exponential and logarithm, read by arithmetic.exp and arithmetic.log

EXP_FRAC = 30
EXP_STEP_BITS = 8
"""Between grid points e^-r is taken as 1 - r: r <= 2^-9, so that is off by at most r^2/2 = 2^-19 of itself."""
EXP_END = 22
"""e^-22 is below half of 2^-30."""
EXP_X_FRAC = 24


@lru_cache(maxsize=1)
def exp_table() -> tuple[int, ...]:
    """e^-(i / 256) at frac 30 for i = 0 .. 22 * 256: exactly 1 to exactly 0."""
    return tuple(rounded(lambda m, x: m.exp(-x), i, EXP_STEP_BITS, EXP_FRAC) for i in range((EXP_END << 8) + 1))


LOG_X_FRAC = 26


@lru_cache(maxsize=1)
def log_table() -> Table:
    """ln over [1/2, 1]."""
    return _tabulate(
        lambda m, x: m.log(x),
        first=1 << 11,
        last=1 << 12,
        step_bits=12,
        x_frac=LOG_X_FRAC,
        x_bits=LOG_X_FRAC + 2,
        error=2.0**-24,
        ends=None,
    )
