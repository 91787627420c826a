"""How single values are written in a task file: times, amounts, rates and counts, each read strictly.

Money is a decimal string, never a float; a time is seconds or "90s", "30m", "2h", "1d", a deadline also a date-time
with its offset; TOML's numbers arrive as int or Decimal. What is wrong with a value is said in words that follow the
name of its key.
"""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Annotated, Final

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from protocol.types import Wei

WEI_PER_AVN: Final = 10**18
MAX_WEI: Final = 2**96 - 1
"""Amounts are uint96 on chain."""
MAX_WINDOW_S: Final = 30 * 86400
"""TaskMarket refuses longer ones."""
MIN_WINDOW_S: Final = 5
"""Below this an honest node could lose its collateral to one slow block."""

_SECONDS_PER: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = re.compile(r"(\d{1,9})([smhd])")


def _seconds(value: object) -> object:
    """Seconds from an integer or from "90s", "30m", "2h", "1d"."""
    if isinstance(value, str):
        match = _DURATION.fullmatch(value.strip())
        if match is None:
            raise PydanticCustomError(
                "avenue_duration", 'is not a duration; write seconds, or "90s", "30m", "2h", "1d"'
            )
        return int(match[1]) * _SECONDS_PER[match[2]]
    return value


def _deadline(value: object) -> object:
    """A duration in seconds, or a date-time that says its offset from UTC."""
    value = _seconds(value)
    if isinstance(value, datetime) and value.tzinfo is None:
        raise PydanticCustomError("avenue_deadline", "has no UTC offset; write 2026-12-31T18:00:00Z")
    if isinstance(value, bool) or not isinstance(value, int | datetime):
        raise PydanticCustomError("avenue_deadline", "is neither a duration nor a date-time")
    return value


def _wei(value: object) -> object:
    """Wei from a decimal string of AVN. A float is refused: it has already lost digits."""
    if not isinstance(value, str):
        raise PydanticCustomError("avenue_amount", 'is an amount of AVN: write it as a decimal string such as "1.5"')
    try:
        amount = Decimal(value)
    except InvalidOperation:
        raise PydanticCustomError("avenue_amount", "is not a decimal number of AVN") from None
    if not amount.is_finite() or amount < 0 or amount * WEI_PER_AVN > MAX_WEI:
        raise PydanticCustomError("avenue_amount", "is not an amount that the market can hold")
    wei = int(amount * WEI_PER_AVN)
    if wei != amount * WEI_PER_AVN:
        raise PydanticCustomError("avenue_amount", "has more than 18 decimals")
    return wei


def _price(value: object) -> object:
    wei = _wei(value)
    if wei == 0:
        raise PydanticCustomError("avenue_price", "is zero")
    return wei


def _decimal(value: object) -> object:
    """TOML numbers arrive as int or Decimal; anything else is not a number."""
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        raise PydanticCustomError("avenue_number", "is not a number")
    return Decimal(value)


Window = Annotated[int, BeforeValidator(_seconds), Field(strict=True, ge=MIN_WINDOW_S, le=MAX_WINDOW_S)]
Deadline = Annotated[int | datetime, BeforeValidator(_deadline)]
Amount = Annotated[Wei, BeforeValidator(_wei)]
Price = Annotated[Wei, BeforeValidator(_price)]
Number = Annotated[Decimal, BeforeValidator(_decimal)]
Count = Annotated[int, Field(strict=True, ge=1)]
