"""Amounts as people write them ("1.5") and as the chain has them (wei). Exact: no float touches an amount."""

from __future__ import annotations

import re
from decimal import Decimal

TOKEN_SYMBOL = "AVN"
GAS_SYMBOL = "ETH"
DECIMALS = 18
GWEI = 10**9

_MAX_WEI = 2**96 - 1  # what a uint96 of the contracts holds; also far above any sensible gas balance
_DECIMAL_NUMBER = re.compile(r"[0-9][0-9_]*(\.[0-9]+)?")


def parse_amount(text: str | int) -> int:
    """Wei in a decimal amount such as "12.5" (the unit, AVN or ETH, is the caller's).

    Raises ValueError if the text is no non-negative decimal number, has more than 18 decimals, or exceeds a uint96.
    """
    written = str(text).strip()
    if not _DECIMAL_NUMBER.fullmatch(written):
        raise ValueError(f"{written!r} is not an amount; write a decimal number such as 12.5")
    whole, _, fraction = written.replace("_", "").partition(".")
    if len(fraction) > DECIMALS:
        raise ValueError(f"{written!r} has more than {DECIMALS} decimals")
    wei = int(whole + fraction.ljust(DECIMALS, "0"))
    if wei > _MAX_WEI:
        raise ValueError(f"{written!r} is more than the contracts can hold")
    return wei


def format_amount(wei: int) -> str:
    """The decimal amount of `wei`, without trailing zeros: exact, `parse_amount` gives the same wei back."""
    sign, rest = ("-", -wei) if wei < 0 else ("", wei)
    whole, fraction = divmod(rest, 10**DECIMALS)
    decimals = f"{fraction:018d}".rstrip("0")
    return f"{sign}{whole}" + (f".{decimals}" if decimals else "")


def format_avn(wei: int) -> str:
    return f"{format_amount(wei)} {TOKEN_SYMBOL}"


def format_eth(wei: int) -> str:
    return f"{format_amount(wei)} {GAS_SYMBOL}"


def parse_gwei(text: str | int | float | Decimal) -> int:
    """Wei in a decimal number of gwei. Raises ValueError if it is no positive number or finer than a wei."""
    written = str(text).strip()
    if not _DECIMAL_NUMBER.fullmatch(written):
        raise ValueError(f"{written!r} is not a number of gwei; write for instance 50")
    wei = Decimal(written.replace("_", "")) * GWEI
    if wei != wei.to_integral_value() or wei <= 0:
        raise ValueError(f"{written!r} gwei is not a positive whole number of wei")
    return int(wei)
