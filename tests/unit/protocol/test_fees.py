"""protocol.fees: replacements that nodes accept, and a cap that nothing passes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import TransactionError
from protocol.fees import GWEI, Fees, bumped_fees, first_fees

FEE = st.integers(0, 10_000 * GWEI)


@given(base=FEE, priority=FEE, cap=FEE)
def test_first_fees_stay_under_the_cap_or_are_refused(base: int, priority: int, cap: int) -> None:
    if base > cap:
        with pytest.raises(TransactionError) as caught:
            first_fees(base, priority, cap)
        assert caught.value.code == "T-20"
    else:
        fees = first_fees(base, priority, cap)
        assert base <= fees.max_fee_wei <= cap or fees.max_fee_wei == 2 * base + priority
        assert fees.priority_wei <= fees.max_fee_wei <= cap


@given(max_fee=FEE, share=st.integers(0, 100), base=FEE, priority=FEE, cap=FEE)
def test_each_bump_raises_both_fees_by_an_eighth_and_never_passes_the_cap(
    max_fee: int, share: int, base: int, priority: int, cap: int
) -> None:
    old = Fees(max_fee, max_fee * share // 100)
    new = bumped_fees(old, base, priority, cap)
    if new is None:
        assert cap * 8 < old.max_fee_wei * 9 + 8
        return
    assert new.max_fee_wei * 8 >= old.max_fee_wei * 9 and new.max_fee_wei > old.max_fee_wei
    assert new.priority_wei * 8 >= old.priority_wei * 9 and new.priority_wei > old.priority_wei
    assert new.priority_wei <= new.max_fee_wei <= cap


@given(start=st.integers(1, GWEI), cap=st.integers(1, 10_000 * GWEI))
def test_bumping_ends_at_the_cap(start: int, cap: int) -> None:
    fees: Fees | None = Fees(start, start)
    for _ in range(400):
        assert fees is not None
        fees = bumped_fees(fees, 0, 0, cap)
        if fees is None:
            return
    raise AssertionError("it would bump for ever")
