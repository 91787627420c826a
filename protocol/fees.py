"""What a transaction may cost: EIP-1559 fees under a hard cap, and how they grow when a transaction is stuck."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.errors import TransactionError

GWEI = 10**9
# Nodes refuse a replacement that raises either fee by less than 10 %; geth's default is 10, some use 12.5.
_BUMP_NUMERATOR, _BUMP_DENOMINATOR = 9, 8
# Room for the base fee to double before the transaction is mined: six full blocks in a row (EIP-1559: 12.5 % each).
_BASE_FEE_ROOM = 2


@dataclass(frozen=True, slots=True)
class SendPolicy:
    """How a `Sender` behaves. `fee_cap_wei` bounds the price per gas of every transaction and replacement, always."""

    fee_cap_wei: int = 200 * GWEI
    """Most that one unit of gas may cost, wei (base fee and priority fee together)."""
    gas_margin_percent: int = 25
    """Gas limit over the estimate: state may move between estimate and inclusion."""
    bump_after_s: float = 45.0
    """Raise the fee of a transaction that is not mined this long after its signing, and again after each such time."""
    timeout_s: float = 300.0
    """Stop waiting after this time. The transaction stays in the journal and may still be mined."""
    confirmations: int = 1
    """Blocks that must contain or follow the transaction before its outcome counts. 1: it is in a block."""
    rebroadcast_after_s: float = 3.0
    """How often to check that the endpoint still knows a waiting transaction."""
    replaced_after_s: float = 2.0
    """How long the nonce must look used, without any receipt of ours, before it is looked for who used it."""


@dataclass(frozen=True, slots=True)
class Fees:
    """EIP-1559 fees, wei per gas. `max_fee_wei >= priority_wei`."""

    max_fee_wei: int
    priority_wei: int


def _raised(fee_wei: int) -> int:
    """At least 12.5 % more, and at least one wei."""
    return max(-(-fee_wei * _BUMP_NUMERATOR // _BUMP_DENOMINATOR), fee_wei + 1)


def first_fees(base_fee_wei: int, suggested_priority_wei: int, cap_wei: int) -> Fees:
    """Fees of a first attempt. Raises `TransactionError` T-20 if even the present base fee is above the cap."""
    if base_fee_wei > cap_wei:
        raise TransactionError(
            f"gas costs {base_fee_wei / GWEI:.3f} gwei now, the cap is {cap_wei / GWEI:.3f} gwei",
            code="T-20",
            hint="wait until gas is cheaper, or raise the cap (max_fee_gwei)",
        )
    max_fee_wei = min(_BASE_FEE_ROOM * base_fee_wei + suggested_priority_wei, cap_wei)
    return Fees(max_fee_wei, min(suggested_priority_wei, max_fee_wei))


def bumped_fees(old: Fees, base_fee_wei: int, suggested_priority_wei: int, cap_wei: int) -> Fees | None:
    """Fees of a replacement that nodes accept, or None if that would exceed the cap."""
    needed_wei = _raised(old.max_fee_wei)
    if needed_wei > cap_wei:
        return None
    max_fee_wei = min(max(needed_wei, _BASE_FEE_ROOM * base_fee_wei + suggested_priority_wei), cap_wei)
    return Fees(max_fee_wei, min(max(_raised(old.priority_wei), suggested_priority_wei), max_fee_wei))
