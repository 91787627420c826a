"""Amounts of AVN between people (decimal text) and contracts (integers of 10^-18). Exact both ways, never a float."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation, localcontext

from protocol.errors import UsageError
from protocol.types import Wei

DECIMALS = 18
SYMBOL = "AVN"
# uint96 is what the contracts keep amounts in.
MAX_AMOUNT = Wei(2**96 - 1)


def parse_avn(text: str) -> Wei:
    """`"1.5"`, `"1.5 AVN"` or `"1_000"` to wei.

    Raises `UsageError` U-20 if it is not a number, is negative, has more than 18 decimals, or exceeds a uint96.
    """
    plain = text.strip().removesuffix(SYMBOL).strip().replace("_", "")
    try:
        amount = Decimal(plain)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite():
        raise UsageError(f"not an amount of {SYMBOL}: {text!r}", code="U-20", hint="write a number such as 12.5")
    # Bounded before scaling: an exponent like 1e999999999 must not become an integer.
    if amount < 0 or amount.adjusted() > DECIMALS + 12:
        raise UsageError(f"amount out of range: {text!r}", code="U-20", hint="give a positive amount")
    with localcontext() as context:
        context.prec = 60
        scaled = amount.scaleb(DECIMALS)
        if scaled != scaled.to_integral_value():
            raise UsageError(f"more than {DECIMALS} decimals: {text!r}", code="U-20", hint="round the amount")
        if scaled > MAX_AMOUNT:
            raise UsageError(f"amount out of range: {text!r}", code="U-20", hint="amounts are below 2^96 wei")
        return Wei(int(scaled))


def format_avn(amount: int) -> str:
    """Wei to the shortest exact decimal text: `1500000000000000000` -> `"1.5"`."""
    sign, magnitude = ("-", -amount) if amount < 0 else ("", amount)
    whole, fraction = divmod(magnitude, 10**DECIMALS)
    decimals = f"{fraction:0{DECIMALS}d}".rstrip("0")
    return f"{sign}{whole}.{decimals}" if decimals else f"{sign}{whole}"


def show_avn(amount: int) -> str:
    """As `format_avn`, with the symbol: `"1.5 AVN"`."""
    return f"{format_avn(amount)} {SYMBOL}"
