"""protocol.amounts: decimal text and wei, exact both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.amounts import MAX_AMOUNT, format_avn, parse_avn, show_avn
from protocol.errors import UsageError


@given(st.integers(0, MAX_AMOUNT))
def test_any_amount_survives_its_text(amount: int) -> None:
    assert parse_avn(format_avn(amount)) == amount
    assert parse_avn(show_avn(amount)) == amount


@pytest.mark.parametrize(
    ("text", "wei"),
    [("1.5", 15 * 10**17), ("1_000 AVN", 10**21), (" 0 ", 0), ("1e-18", 1), (".25", 25 * 10**16)],
)
def test_usual_spellings(text: str, wei: int) -> None:
    assert parse_avn(text) == wei


@pytest.mark.parametrize(
    "text", ["", "ten", "-1", "nan", "inf", "1e-19", "0.0000000000000000001", "1e999999999", "79228162515", "1 ETH"]
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_avn(text)
    assert caught.value.code == "U-20" and caught.value.hint


def test_amounts_are_shown_short_and_exact() -> None:
    assert show_avn(15 * 10**17) == "1.5 AVN"
    assert format_avn(1) == "0.000000000000000001"
    assert format_avn(-(10**18)) == "-1"
