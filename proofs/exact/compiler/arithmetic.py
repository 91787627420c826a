"""Real-number arithmetic on handles: scales are aligned, products given room, ratios made integer.

Every function returns a handle whose interval the builder has proved; none can overflow, because whatever would not fit
63 bits is first rounded to fewer (`fit`). Results carry as much precision as is free; the lowering's `settle` decides
what of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.compiler.formats import NumberFormat


def fit(b: ProgramBuilder, x: Handle, bits: int) -> Handle:
    """`x` with its low bits rounded off until it has at most `bits`. Never saturates."""
    raise NotImplementedError


def to(b: ProgramBuilder, x: Handle, form: NumberFormat) -> Handle:
    """`x` in exactly this format: rounded or widened, saturated."""
    raise NotImplementedError


def constant(b: ProgramBuilder, value: float | Fraction, like: Handle | None = None) -> Handle:
    """A scalar of 20 significant bits, or exactly where it is a short dyadic; with `like`, at that handle's scale."""
    raise NotImplementedError


def add(b: ProgramBuilder, x: Handle, y: Handle) -> Handle:
    raise NotImplementedError


def sub(b: ProgramBuilder, x: Handle, y: Handle) -> Handle:
    raise NotImplementedError


def mul(b: ProgramBuilder, x: Handle, y: Handle) -> Handle:
    raise NotImplementedError


def scale(b: ProgramBuilder, x: Handle, factor: float | Fraction) -> Handle:
    """x * factor for a constant; powers of two cost nothing, factors in (1/2, 1) keep the digits of 1 - factor."""
    raise NotImplementedError


def divide(b: ProgramBuilder, x: Handle, y: Handle, frac: int) -> Handle:
    """x / y at scale 2^-frac, rounded to nearest. y >= 0 must be known; y = 0 counts as its least positive value."""
    raise NotImplementedError


def sqrt(b: ProgramBuilder, x: Handle) -> Handle:
    """floor of the root; x >= 0 (negative values, which rounding can make, count as 0)."""
    raise NotImplementedError


def total(b: ProgramBuilder, x: Handle, axes: Sequence[int], *, keepdim: bool) -> Handle:
    """Sum over axes, low bits rounded off first only if the sum would need more than 62 bits."""
    raise NotImplementedError


def smooth(
    b: ProgramBuilder, x: Handle, function: Callable[[float], float], lo: float, hi: float, *, step_bits: int, frac: int
) -> Handle:
    """function(x) by a table over lo..hi in steps of 2^-step_bits with linear interpolation; x is clamped to lo..hi."""
    raise NotImplementedError


def exp(b: ProgramBuilder, x: Handle, frac: int) -> Handle:
    """e^x at scale 2^-frac for x <= 0: product of two tables, relative error below 2^-18 down to the last bit."""
    raise NotImplementedError
