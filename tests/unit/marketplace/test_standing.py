"""Standing as a table: every kind of message against every kind of sender."""

from __future__ import annotations

import pytest
from eth_account import Account

from marketplace.standing import Roll, has_standing
from protocol.messages import (
    AdmissionGrant,
    AdmissionRequest,
    BlobAnnounce,
    Domain,
    Grant,
    KeyGrant,
    Payload,
    SignedMessage,
    UnitAcceptance,
    UnitProgress,
    sign_message,
)
from protocol.types import ZERO32

REQUESTER, OPERATOR_1, OPERATOR_2, HOLDER, STRANGER = (Account.from_key(bytes([i]) * 32) for i in range(1, 6))
TASK, UNKNOWN = b"\x07" * 32, b"\x08" * 32
DOMAIN = Domain(31337, Account.from_key(b"\x09" * 32).address)
NAMES = {
    "requester": REQUESTER,
    "operator 1": OPERATOR_1,
    "operator 2": OPERATOR_2,
    "holder": HOLDER,
    "stranger": STRANGER,
}

ROLL = Roll(
    node_of={OPERATOR_1.address: 1, OPERATOR_2.address: 2}.get,
    requester_of={TASK: REQUESTER.address}.get,
    balance_of=lambda address: 100 if address == HOLDER.address else 99,
    upload_min_balance_wei=100,
)

ANNOUNCE = BlobAnnounce(blob=b"\x01" * 32, size=1, index=(b"\x02" * 32,))
KEYS = KeyGrant(grants=(Grant(blob=b"\x01" * 32, reader=1, wrapped_key=b"\x02" * 80),))


def message(sender: str, task: bytes, payload: Payload) -> SignedMessage:
    return sign_message(NAMES[sender], payload.kind, task, payload, DOMAIN)


@pytest.mark.parametrize(
    ("payload", "task", "allowed"),
    [
        (AdmissionRequest(node=1), TASK, {"operator 1"}),
        (AdmissionRequest(node=2), TASK, {"operator 2"}),
        (AdmissionRequest(node=1), UNKNOWN, set()),
        (UnitProgress(unit=0, node=2, step=1, steps=2), TASK, {"operator 2"}),
        (AdmissionGrant(node=1, shards=1, deadline=1, signature=b"\x01" * 65), TASK, {"requester"}),
        (UnitAcceptance(unit=0, result_root=b"\x01" * 32, signature=b"\x01" * 65), TASK, {"requester"}),
        (UnitAcceptance(unit=0, result_root=b"\x01" * 32, signature=b"\x01" * 65), UNKNOWN, set()),
        (KEYS, TASK, {"requester", "operator 1", "operator 2"}),
        (KEYS, UNKNOWN, set()),
        (ANNOUNCE, TASK, {"requester", "operator 1", "operator 2"}),
        (ANNOUNCE, UNKNOWN, set()),
        (ANNOUNCE, ZERO32, {"holder", "operator 1", "operator 2"}),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_who_may_say_what(payload: Payload, task: bytes, allowed: set[str]) -> None:
    assert {name for name in NAMES if has_standing(ROLL, message(name, task, payload), payload)} == allowed
