"""Real-number arithmetic on handles: scales are aligned, products given room, ratios made integer.

Every function returns a handle whose interval the builder has proved; none can overflow, because whatever would leave
±2^62 is first rounded to fewer digits (`fit`). Results carry as much precision as is free; the lowering's `settle`
decides what of it is kept, so a product or a sum followed by `settle` is rounded once. All rounding is to nearest,
halves up; a root is a floor of 31 significant bits.

Two habits keep programs fast. What has to be aligned, trimmed or rescaled is whichever operand has fewer elements (a
bias, a row's mean). And a scale that only has to be *called* something else is folded into the label of a constant that
is multiplied anyway.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from proofs.exact import ranges
from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.compiler import tables
from proofs.exact.compiler.formats import NumberFormat
from proofs.exact.compiler.tables import Table
from proofs.exact.tensor_type import bits_for

ROOM = 62
"""Every value stays within ±2^62, so that the half which a rounding adds still fits 64 bits."""
SIGNIFICANT = 20
"""Significant bits of a constant factor: its relative error is below 2^-20. Times a 32-bit value it fits 52 bits."""
SPARE_SIGNIFICANT = 24
"""What is left of the smaller operand of a product, at least, before the larger one is trimmed."""
FAST_DIVIDEND = 52
"""A dividend within ±2^52 is a float64, so that one division decides; worth a few bits of the quotient."""
FAST_SLACK = 8
"""How many: of 25 bits that a calibrated quotient has, 17 are left at worst."""
DIVISOR_ROOM = 34
"""Twice the divisor and the digits it adds to the dividend have to fit as well."""
MAX_ADDED_FRAC = 120
"""Scales finer than this are rounded off at once: nothing that training needs is below 2^-120."""


def size(x: Handle) -> int:
    """The least n with |x| <= 2^n for every element."""
    return max(0, x.info.greatest_magnitude - 1).bit_length()


def elements(x: Handle) -> int:
    return math.prod(x.shape)


# Scales


def drop(b: ProgramBuilder, x: Handle, places: int) -> Handle:
    """`x` without its lowest `places` bits, rounded to nearest. Never saturates."""
    while places > 0:
        shift = min(places, ROOM)
        x = b.rescale(x, frac=x.frac - shift, bits=bits_for(*ranges.rescaled_range(x.info, shift)))
        places -= shift
    return x


def fit(b: ProgramBuilder, x: Handle, room: int) -> Handle:
    """`x` with its low bits rounded off until |x| <= 2^room. Never saturates."""
    return drop(b, x, size(x) - room)


def relabel(b: ProgramBuilder, x: Handle, places: int) -> Handle:
    """x * 2^-places: the same integers, called by another scale."""
    return x if places == 0 else b.mul(x, b.constant(1, frac=places))


def to(b: ProgramBuilder, x: Handle, form: NumberFormat) -> Handle:
    """`x` in exactly this format: rounded or widened, saturated. Saturation of a widened value is to the last of its
    own steps that fits."""
    least, greatest = -(1 << (form.bits - 1)), (1 << (form.bits - 1)) - 1
    if x.frac > form.frac:
        x = drop(b, x, x.frac - form.frac - ROOM)
        return b.rescale(x, frac=form.frac, bits=form.bits)
    places = form.frac - x.frac
    # Past `bits` more places, any number but 0 saturates, so 2^bits stands for whatever 2^places would be.
    factor = 1 << min(places, form.bits)
    x = _within(b, x, min(-1, -((-least) // factor)), max(1, greatest // factor))
    if places:
        x = b.mul(x, b.constant(factor, frac=places))
    return x if x.lo >= least and x.hi <= greatest else b.saturate(x, bits=form.bits)


def _within(b: ProgramBuilder, x: Handle, lo: int, hi: int) -> Handle:
    return x if x.lo >= lo and x.hi <= hi else b.clamp(x, lo, hi)


# Constants


def ratio(value: float | Fraction, significant: int = SIGNIFICANT) -> tuple[int, int]:
    """Integers (n, k) with n * 2^-k the value to this many significant bits, n odd or 0; exact for a short dyadic.

    The complement of a factor in (1/2, 1) is what is kept to so many bits: 0.999 as 1 - 0.001.
    """
    exact = Fraction(value)
    if exact == 0:
        return 0, 0
    if Fraction(1, 2) < abs(exact) < 1:
        n, k = ratio(1 - abs(exact), significant)
        n = (1 << k) - n
    else:
        magnitude = abs(exact)
        k = significant - _exponent(magnitude)
        n = math.floor(magnitude * Fraction(2) ** k + Fraction(1, 2))
        while n % 2 == 0:
            n, k = n // 2, k - 1
    return (n if exact > 0 else -n), k


def _exponent(magnitude: Fraction) -> int:
    """The least e with magnitude < 2^e, or one more."""
    return magnitude.numerator.bit_length() - magnitude.denominator.bit_length() + 1


def constant(b: ProgramBuilder, value: float | Fraction, like: Handle | None = None) -> Handle:
    """A scalar of 20 significant bits or more, exact where it is a short dyadic; with `like`, rounded to that handle's
    scale, within ±2^61."""
    if like is None:
        n, k = ratio(value)
        return b.constant(n, frac=k)
    return b.constant(_at(value, like.frac), frac=like.frac)


def _at(value: float | Fraction, frac: int) -> int:
    n = math.floor(Fraction(value) * Fraction(2) ** frac + Fraction(1, 2))
    return min(max(n, -(1 << (ROOM - 1))), 1 << (ROOM - 1))


# Sums


def add(b: ProgramBuilder, x: Handle, y: Handle, frac: int | None = None) -> Handle:
    """x + y. With `frac`, digits below 2^-frac may be rounded off where that is cheaper; without, none are while they
    fit."""
    return b.add(*align(b, x, y, frac))


def sub(b: ProgramBuilder, x: Handle, y: Handle, frac: int | None = None) -> Handle:
    """x - y, like `add`."""
    return b.sub(*align(b, x, y, frac))


def add_constant(b: ProgramBuilder, x: Handle, value: float | Fraction, frac: int | None = None) -> Handle:
    """x + value, where the constant is rounded to the scale of `x` or, if finer, to 2^-frac."""
    wanted = max(x.frac, x.frac if frac is None else frac)
    return add(b, x, b.constant(_at(value, wanted), frac=wanted), wanted)


def align(b: ProgramBuilder, x: Handle, y: Handle, frac: int | None = None) -> tuple[Handle, Handle]:
    """Both at one scale, with room for their sum and difference."""
    fine, coarse = (x, y) if x.frac >= y.frac else (y, x)
    common = fine.frac
    if frac is not None and frac <= coarse.frac and elements(fine) <= elements(coarse):
        common = coarse.frac
    limit = ROOM - 1
    common = min(common, *(limit - size(z) + z.frac for z in (x, y) if z.info.greatest_magnitude > 0), fine.frac)
    return _at_scale(b, x, common), _at_scale(b, y, common)


def _at_scale(b: ProgramBuilder, x: Handle, frac: int) -> Handle:
    if x.frac >= frac:
        return drop(b, x, x.frac - frac)
    if x.info.greatest_magnitude == 0:
        return b.mul(x, b.constant(1, frac=frac - x.frac))
    return b.widen(x, frac=frac)


def total(b: ProgramBuilder, x: Handle, axes: Sequence[int], *, keepdim: bool) -> Handle:
    """Sum over axes, low bits rounded off first only if the sum could exceed 2^61. No axes: all of them."""
    rank = len(x.shape)
    chosen = sorted({axis % rank for axis in axes}) if axes else list(range(rank))
    x = fit(b, x, ROOM - 1 - _log2_up(math.prod(x.shape[axis] for axis in chosen)))
    return _reduce(b, x, chosen, keepdim, b.reduce_sum)


def greatest(b: ProgramBuilder, x: Handle, axes: Sequence[int], *, keepdim: bool) -> Handle:
    """Greatest element over axes. No axes: all of them."""
    rank = len(x.shape)
    chosen = sorted({axis % rank for axis in axes}) if axes else list(range(rank))
    return _reduce(b, x, chosen, keepdim, b.reduce_max)


def _reduce(b: ProgramBuilder, x: Handle, axes: list[int], keepdim: bool, reduce: object) -> Handle:
    """Runs of adjacent axes are merged and reduced as one, the last run first: rows, then columns."""
    assert callable(reduce)
    kept = tuple(1 if axis in axes else side for axis, side in enumerate(x.shape))
    shape = x.shape
    # A sum of everything is a sum of row sums: the rows stay in the iteration space of whoever made them.
    whole = len(axes) == len(shape)
    runs: list[list[int]] = []
    for axis in axes:
        adjacent = bool(runs) and runs[-1][-1] == axis - 1 and not (whole and axis == len(shape) - 1)
        if adjacent:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    for run in reversed(runs):
        start, stop = run[0], run[-1] + 1
        if len(run) > 1:
            x = b.reshape(x, (*x.shape[:start], math.prod(shape[start:stop]), *x.shape[stop:]))
        x = reduce(x, start)
        if len(run) > 1:
            x = b.reshape(x, (*x.shape[:start], *(1,) * len(run), *x.shape[start + 1 :]))
    final = kept if keepdim else tuple(side for axis, side in enumerate(x.shape) if axis not in axes)
    return x if x.shape == final else b.reshape(x, final)


def mean(b: ProgramBuilder, x: Handle, axes: Sequence[int], *, keepdim: bool) -> Handle:
    rank = len(x.shape)
    count = math.prod(x.shape[axis % rank] for axis in axes) if axes else elements(x)
    return scale(b, total(b, x, axes, keepdim=keepdim), Fraction(1, count), significant=28)


def _log2_up(n: int) -> int:
    return (n - 1).bit_length()


# Products


def mul(b: ProgramBuilder, x: Handle, y: Handle) -> Handle:
    """x * y, exact up to 62 bits; beyond, low bits are rounded off the operand that is cheaper or longer."""
    excess = size(x) + size(y) - ROOM
    if excess > 0 and x is y:
        x = y = fit(b, x, ROOM // 2)
    elif excess > 0:
        small, large = (x, y) if elements(x) < elements(y) else (y, x)
        if elements(small) < elements(large):
            spared = max(SPARE_SIGNIFICANT, size(small) - excess)
            trimmed_small, trimmed_large = spared, ROOM - min(size(small), spared)
        else:
            # Equal sizes: the longer one gives way first, then both alike.
            shorter = min(size(small), size(large))
            trimmed = max(ROOM - shorter, ROOM // 2)
            trimmed_small = min(size(small), trimmed)
            trimmed_large = ROOM - trimmed_small
        small, large = fit(b, small, trimmed_small), fit(b, large, trimmed_large)
        x, y = small, large
    if x.frac + y.frac > MAX_ADDED_FRAC:
        finer, other = (x, y) if x.frac >= y.frac else (y, x)
        x, y = drop(b, finer, x.frac + y.frac - MAX_ADDED_FRAC), other
    return b.mul(x, y)


def scale(b: ProgramBuilder, x: Handle, factor: float | Fraction, *, significant: int = SIGNIFICANT) -> Handle:
    """x * factor for a constant: one multiplication, of a power of two by the scale's label alone.

    A factor c in (1/2, 1) keeps 20 digits of 1 - c; if then the product had no room, it is x - (1 - c) x.
    """
    if factor == 1:
        return x
    n, k = ratio(factor, significant)
    if size(x) + (abs(n) - 1).bit_length() <= ROOM or n == 0:
        return b.mul(x, b.constant(n, frac=k))
    exact = Fraction(factor)
    if Fraction(1, 2) < exact < 1:
        return sub(b, x, scale(b, x, 1 - exact, significant=significant), x.frac)
    n, k = ratio(factor, min(significant, SIGNIFICANT))
    return b.mul(fit(b, x, ROOM - (abs(n) - 1).bit_length()), b.constant(n, frac=k))


def negate(b: ProgramBuilder, x: Handle) -> Handle:
    return b.sub(b.constant(0, frac=x.frac), x)


def absolute(b: ProgramBuilder, x: Handle) -> Handle:
    if x.lo >= 0:
        return x
    return b.relu(b.select(b.positive(x), x, negate(b, x)))


# Quotients and roots


def divide(b: ProgramBuilder, x: Handle, y: Handle, frac: int) -> Handle:
    """x / y to the nearest multiple of 2^-frac or finer; coarser by what 62 bits lack, or by up to 8 bits where the
    dividend then is a float64. y >= 0 must be known; y = 0 counts as its least positive value.

    Where room lacks, operands longer than 32 bits give way first: what follows a root or a sum has more digits than
    matter.
    """
    y = b.clamp(y, 1, max(1, y.hi)) if y.lo < 1 else y
    lacking = size(x) + max(0, frac - x.frac + y.frac) - (ROOM - 2)
    if lacking > 0:
        y = fit(b, y, max(DIVISOR_ROOM, size(y) - lacking))
        y = b.clamp(y, 1, y.hi) if y.lo < 1 else y
    places = max(0, frac - x.frac + y.frac)
    if size(x) + places > ROOM - 2:
        x = fit(b, x, max(31, ROOM - 2 - places))
        places = min(max(0, frac - x.frac + y.frac), ROOM - 2 - size(x))
    fast = FAST_DIVIDEND - 2 - size(x)
    if fast < places <= fast + FAST_SLACK:
        places = fast
    # floor((2 n + y) / 2 y) is n / y to the nearest. The labels make the dividend's scale that of y, and the quotient's
    # what it is, without an operation.
    quotient_frac = x.frac + places - y.frac
    dividend = b.mul(x, b.constant(1 << (places + 1), frac=y.frac - x.frac))
    return b.div_floor(b.add(dividend, y), b.mul(y, b.constant(2, frac=-quotient_frac)))


def reciprocal(b: ProgramBuilder, y: Handle, *, room: int) -> Handle:
    """1 / y, y >= 1 known, as fine as |1 / y| <= 2^room of its units allows."""
    y = fit(b, y, ROOM - 2)
    frac = room - y.frac + y.lo.bit_length() - 1
    return divide(b, b.constant(1), y, min(frac, ROOM - 2 - y.frac))


def sqrt(b: ProgramBuilder, x: Handle) -> Handle:
    """Floor of the root, to 31 bits; x >= 0 (negative values, which rounding can make, count as 0)."""
    x = b.relu(x) if x.lo < 0 else x
    x = fit(b, x, ROOM - 1)
    places = ROOM - size(x)
    places -= (x.frac + places) % 2
    return b.isqrt(b.widen(x, frac=x.frac + places))


# Functions by table


def smooth(b: ProgramBuilder, x: Handle, table: Table) -> Handle:
    """The table's function of x: entry of the nearest grid point plus slope times the distance to it.

    Outside the table x counts as its nearest end. The error is the table's `error`.
    """
    x = to(b, x, NumberFormat(table.x_frac, table.x_bits))
    nearest = b.rescale(x, frac=table.step_bits, bits=table.x_bits)
    index = b.add(nearest, b.constant(table.offset, frac=table.step_bits)) if table.offset else nearest
    index = _within(b, index, 0, len(table.values) - 1)
    value = b.lookup(index, b.constant(table.values, frac=table.frac))
    slope = b.lookup(index, b.constant(table.slopes, frac=table.slope_frac))
    # The analysis does not see that x and its nearest grid point depend on each other: the clamp only tells it.
    half = 1 << (table.x_frac - table.step_bits - 1)
    rest = _within(b, b.sub(x, b.widen(nearest, frac=table.x_frac)), -half, half)
    return b.add(value, drop(b, b.mul(rest, slope), table.x_frac + table.slope_frac - table.frac))


def exp(b: ProgramBuilder, x: Handle, frac: int = tables.EXP_FRAC) -> Handle:
    """e^x for x <= 0; x > 0 counts as 0. See `decay`."""
    return decay(b, negate(b, x), frac)


def decay(b: ProgramBuilder, x: Handle, frac: int = tables.EXP_FRAC) -> Handle:
    """e^-x for x >= 0, at scale 2^-frac, frac <= 30; x < 0 counts as 0. Exactly 1 at 0 and exactly 0 from 22 on.

    e^-x = T[nearest x] * (1 - rest), |rest| <= 2^-9: relative error below 2^-18, absolute below 2^-frac.
    """
    x = drop(b, x, x.frac - tables.EXP_X_FRAC)
    x = _within(b, x, 0, max(1, tables.EXP_END << max(0, x.frac)))
    if x.frac < tables.EXP_STEP_BITS:
        x = b.widen(x, frac=x.frac + min(tables.EXP_STEP_BITS - x.frac, ROOM - 32))
        x = _within(b, x, 0, tables.EXP_END << tables.EXP_STEP_BITS)
    nearest = b.rescale(x, frac=min(x.frac, tables.EXP_STEP_BITS), bits=x.bits + 1)
    entry = b.lookup(nearest, b.constant(tables.exp_table(), frac=tables.EXP_FRAC))
    if x.frac > tables.EXP_STEP_BITS:
        half = 1 << (x.frac - tables.EXP_STEP_BITS - 1)
        rest = _within(b, b.sub(b.widen(nearest, frac=x.frac), x), -half, half)
        entry = b.mul(entry, b.add(rest, b.constant(1 << x.frac, frac=x.frac)))
    return drop(b, entry, entry.frac - frac)


def log(b: ProgramBuilder, x: Handle) -> Handle:
    """ln x, error below 2^-23, for x > 0; x <= 0 counts as the least positive value of its scale.

    x is doubled until its leading bit stands at a fixed place (one comparison for each bit of the number of places that
    its interval leaves open); the rest is a table on [1/2, 1].
    """
    x = fit(b, x, ROOM - 2)
    x = b.clamp(x, 1, max(1, x.hi)) if x.lo < 1 else x
    frac, length = x.frac, x.hi.bit_length()
    top = max(length, tables.LOG_X_FRAC)
    open_places = length - x.lo.bit_length()
    # From here on the scale says that the leading bit, once in place, is worth 1/2.
    x = b.mul(x, b.constant(1 << (top - length), frac=top - frac))
    doublings = b.constant(0)
    for stage in reversed(range(open_places.bit_length())):
        by = 1 << stage
        limit = 1 << (top - by)
        small = b.positive(b.sub(b.constant(limit, frac=top), x))
        doubled = b.mul(b.clamp(x, min(x.lo, limit), limit), b.constant(1 << by))
        x = b.select(small, doubled, x)
        doublings = b.add(doublings, b.mul(small, b.constant(by)))
    x = _within(b, x, 1 << (top - 1), (1 << top) - 1)
    exponent = b.sub(b.constant(length - frac), doublings)
    n, k = ratio(math.log(2), 30)
    return add(b, smooth(b, x, tables.log_table()), b.mul(exponent, b.constant(n, frac=k)))
