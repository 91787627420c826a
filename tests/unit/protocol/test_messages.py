"""The envelope: what a receiver refuses, in which order, and with which error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import (
    ContentHashError,
    ExpiredError,
    MessageMismatchError,
    ReplayError,
    SignatureFormError,
    SignerMismatchError,
    StandingError,
    VerificationError,
)
from protocol.json_types import canonical_hash, canonical_json
from protocol.messages import (
    MAX_TTL_S,
    PAYLOADS,
    AdmissionGrant,
    AdmissionRequest,
    BlobAnnounce,
    Domain,
    Grant,
    KeyGrant,
    Kind,
    Payload,
    SignedMessage,
    UnitAcceptance,
    UnitProgress,
    UnitResult,
    sign_message,
    verify_message,
    verify_stored_message,
)
from protocol.signatures import SECP256K1_ORDER, sign_acceptance, sign_admission
from protocol.types import ZERO32, NodeId, TaskId

NOW = 1_800_000_000
TASK = b"\x07" * 32
ALICE = Account.from_key(b"\x01" * 32)
MALLORY = Account.from_key(b"\x02" * 32)
DOMAIN = Domain(chain_id=31337, market=Account.from_key(b"\x03" * 32).address)
ADMISSION = sign_admission(ALICE, DOMAIN, TaskId(TASK), NodeId(3), 0b101, NOW + 9)
ACCEPTANCE = sign_acceptance(ALICE, DOMAIN, TaskId(TASK), 2, b"\x04" * 32)

ONE_OF_EACH: list[Payload] = [
    BlobAnnounce(blob=b"\x01" * 32, size=5, index=(b"\x02" * 32,)),
    AdmissionRequest(node=3),
    AdmissionGrant(node=3, shards=0b101, deadline=NOW + 9, signature=ADMISSION.signature),
    KeyGrant(grants=(Grant(blob=b"\x01" * 32, reader=0, wrapped_key=b"\x06" * 80),)),
    UnitProgress(unit=2, node=3, step=10, steps=100, loss=0.25),
    UnitResult(
        unit=2,
        node=3,
        state_blob=b"\x01" * 32,
        final_state_root=b"\x03" * 32,
        result_root=b"\x04" * 32,
        checkpoint_roots=(b"\x02" * 32, b"\x03" * 32),
    ),
    UnitAcceptance(unit=2, result_root=b"\x04" * 32, signature=ACCEPTANCE),
]


def signed(payload: Payload | None = None, *, ttl_s: int = 60, now: int = NOW, task: bytes = TASK) -> SignedMessage:
    content = AdmissionRequest(node=3) if payload is None else payload
    return sign_message(ALICE, content.kind, task, content, DOMAIN, ttl_s, now=now)


def verify(message: SignedMessage, *, standing: bool = True, now: int = NOW, seen: bool = False) -> Payload:
    return verify_message(
        message, DOMAIN, standing=lambda _message, _payload: standing, now=now, seen_nonce=lambda _sender, _nonce: seen
    )


def altered(message: SignedMessage, **changes: Any) -> SignedMessage:
    return message.model_copy(update=changes)


@pytest.mark.parametrize("payload", ONE_OF_EACH, ids=lambda payload: payload.kind)
def test_every_kind_survives_the_wire_and_verifies(payload: Payload) -> None:
    message = SignedMessage.from_json(signed(payload).to_json())

    assert verify(message) == payload


def test_every_kind_of_the_protocol_has_a_payload_model() -> None:
    assert set(PAYLOADS) == set(Kind)
    assert {payload.kind for payload in ONE_OF_EACH} == set(Kind)


def test_wire_form_has_the_documented_keys_in_hex() -> None:
    document = json.loads(signed().to_json())

    assert list(document) == ["kind", "task", "payload", "content_hash", "sender", "nonce", "deadline", "signature"]
    assert document["task"] == "0x" + "07" * 32
    assert document["sender"] == ALICE.address
    assert len(document["signature"]) == 2 + 130


def test_altered_payload_fails_the_content_hash() -> None:
    with pytest.raises(ContentHashError):
        verify(altered(signed(), payload={"node": 4}))


@pytest.mark.parametrize(
    "signature",
    ["", "signature", "0x", "0x" + "11" * 64, "0x" + "11" * 66, "0x" + "00" * 65],
    ids=["empty", "not hex", "no bytes", "64 bytes", "66 bytes", "zeros"],
)
def test_malformed_signature_is_its_own_error(signature: str) -> None:
    with pytest.raises(SignatureFormError):
        verify(altered(signed(), signature=signature))


def test_high_s_signature_is_refused_though_it_recovers_the_same_key() -> None:
    message = signed()
    raw = bytes.fromhex(message.signature[2:])
    mirrored = raw[:32] + (SECP256K1_ORDER - int.from_bytes(raw[32:64])).to_bytes(32) + bytes([27 + 28 - raw[64]])

    with pytest.raises(SignatureFormError):
        verify(altered(message, signature="0x" + mirrored.hex()))


def test_message_in_anothers_name_is_refused() -> None:
    with pytest.raises(SignerMismatchError):
        verify(altered(signed(), sender=MALLORY.address))


@pytest.mark.parametrize(
    "change",
    [{"kind": "unit.progress"}, {"task": b"\x08" * 32}, {"nonce": 1}, {"deadline": NOW + 61}],
    ids=lambda change: next(iter(change)),
)
def test_every_signed_field_is_bound_by_the_signature(change: dict[str, Any]) -> None:
    with pytest.raises(SignerMismatchError):
        verify(altered(signed(), **change))


@pytest.mark.parametrize(
    "domain",
    [Domain(1, DOMAIN.market), Domain(31337, Account.from_key(b"\x04" * 32).address)],
    ids=["another chain", "another market"],
)
def test_message_for_another_chain_or_market_is_refused(domain: Domain) -> None:
    with pytest.raises(SignerMismatchError):
        verify_message(
            signed(), domain, standing=lambda _m, _p: True, now=NOW, seen_nonce=lambda _sender, _nonce: False
        )


def resigned(kind: str, task: bytes, payload: dict[str, Any]) -> SignedMessage:
    """An envelope that says what it likes, rightly signed: what a hostile sender can make."""

    class Free(Payload):
        def model_dump(self, **_options: Any) -> dict[str, Any]:
            return payload

    Free.kind = kind  # type: ignore[assignment]
    return sign_message(ALICE, kind, task, Free(), DOMAIN, 60, now=NOW)


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("unit.unheard-of", {}),
        ("admission.request", {}),
        ("admission.request", {"node": 0}),
        ("admission.request", {"node": "3"}),
        ("admission.request", {"node": 3, "extra": 1}),
        ("unit.progress", {"unit": 1, "node": 3, "step": 11, "steps": 10, "loss": 0.5}),
        ("unit.acceptance", {"unit": 1, "result_root": "0x" + "11" * 31, "signature": "0x" + "11" * 65}),
        ("key.grant", {"grants": []}),
        (
            "unit.result",
            {
                "unit": 1,
                "node": 3,
                "state_blob": "0x" + "11" * 32,
                "final_state_root": "0x" + "12" * 32,
                "result_root": "0x" + "13" * 32,
                "checkpoint_roots": ["0x" + "12" * 32, "0x" + "14" * 32],
            },
        ),
    ],
)
def test_payload_that_does_not_fit_its_kind_is_refused(kind: str, payload: dict[str, Any]) -> None:
    with pytest.raises(MessageMismatchError):
        verify(resigned(kind, TASK, payload))


def test_only_an_announcement_may_leave_the_task_open() -> None:
    verify(signed(ONE_OF_EACH[0], task=ZERO32))
    with pytest.raises(MessageMismatchError):
        verify(signed(AdmissionRequest(node=3), task=ZERO32))


@pytest.mark.parametrize(
    "payload",
    [
        AdmissionGrant(node=4, shards=0b101, deadline=NOW + 9, signature=ADMISSION.signature),
        AdmissionGrant(node=3, shards=0b111, deadline=NOW + 9, signature=ADMISSION.signature),
        AdmissionGrant(node=3, shards=0b101, deadline=NOW + 9, signature=b"\x05" * 65),
        UnitAcceptance(unit=3, result_root=b"\x04" * 32, signature=ACCEPTANCE),
        UnitAcceptance(unit=2, result_root=b"\x05" * 32, signature=ACCEPTANCE),
    ],
    ids=["another node", "more shards", "no signature", "another unit", "another result"],
)
def test_signature_for_the_contract_must_say_what_the_payload_says(payload: Payload) -> None:
    with pytest.raises(MessageMismatchError, match="signature inside"):
        verify(signed(payload))


@pytest.mark.parametrize("payload", [ONE_OF_EACH[2], ONE_OF_EACH[6]], ids=lambda payload: payload.kind)
def test_signature_for_the_contract_must_name_the_envelopes_task(payload: Payload) -> None:
    with pytest.raises(MessageMismatchError, match="for this task"):
        verify(signed(payload, task=b"\x08" * 32))


def test_sender_without_standing_is_refused() -> None:
    with pytest.raises(StandingError):
        verify(signed(), standing=False)


def test_a_standing_check_that_says_nothing_lets_nobody_in() -> None:
    with pytest.raises(StandingError):
        verify_stored_message(signed(), DOMAIN, standing=lambda _m, _p: None)  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("now", [NOW + 61, NOW + 60 - MAX_TTL_S - 1], ids=["past", "too far ahead"])
def test_message_outside_its_time_is_refused(now: int) -> None:
    with pytest.raises(ExpiredError):
        verify(signed(), now=now)


@pytest.mark.parametrize("now", [NOW + 60, NOW + 60 - MAX_TTL_S], ids=["last second", "first second"])
def test_message_within_its_time_is_taken(now: int) -> None:
    assert verify(signed(), now=now) == AdmissionRequest(node=3)


def test_replayed_message_is_refused() -> None:
    with pytest.raises(ReplayError):
        verify(signed(), seen=True)


def test_stored_message_is_read_after_its_deadline() -> None:
    assert verify_stored_message(signed(), DOMAIN, standing=lambda _m, _p: True) == AdmissionRequest(node=3)


def test_checks_run_in_the_order_of_the_protocol() -> None:
    """One message with everything wrong; mending one fault at a time brings up the next error."""
    good = resigned("admission.request", ZERO32, {"node": 3})
    faults: list[tuple[type[VerificationError], dict[str, Any]]] = [
        (ContentHashError, {"content_hash": b"\x00" * 32}),
        (SignatureFormError, {"signature": "0x00"}),
        (SignerMismatchError, {"sender": MALLORY.address}),
        (MessageMismatchError, {}),  # the zero task
    ]
    for number, (error, _fault) in enumerate(faults):
        changes: dict[str, Any] = {}
        for _error, change in faults[number:]:
            changes |= change
        with pytest.raises(error):
            verify(altered(good, **changes), standing=False, now=NOW + 61, seen=True)

    fit = signed()
    with pytest.raises(StandingError):
        verify(fit, standing=False, now=NOW + 61, seen=True)
    with pytest.raises(ExpiredError):
        verify(fit, now=NOW + 61, seen=True)
    with pytest.raises(ReplayError):
        verify(fit, seen=True)


def test_each_check_has_its_own_code() -> None:
    errors = [
        ContentHashError,
        SignatureFormError,
        SignerMismatchError,
        MessageMismatchError,
        StandingError,
        ExpiredError,
        ReplayError,
    ]
    assert [error.default_code for error in errors] == [f"V-0{number}" for number in range(1, 8)]


def test_sender_cannot_put_a_payload_under_another_kind() -> None:
    with pytest.raises(MessageMismatchError):
        sign_message(ALICE, Kind.KEY_GRANT, TASK, AdmissionRequest(node=3), DOMAIN, 60)


@pytest.mark.parametrize("ttl_s", [0, MAX_TTL_S + 1])
def test_lifetime_outside_the_protocol_is_refused_before_signing(ttl_s: int) -> None:
    with pytest.raises(ValueError, match="ttl_s"):
        signed(ttl_s=ttl_s)


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff", b'{"kind":1}', b"[" * 100_000],
    ids=["empty", "{}", "[]", "bytes", "int", "deep"],
)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(MessageMismatchError):
        SignedMessage.from_json(data)


def test_unknown_key_in_the_envelope_is_refused() -> None:
    document = json.loads(signed().to_json()) | {"note": "hello"}
    with pytest.raises(MessageMismatchError, match="note"):
        SignedMessage.from_json(json.dumps(document))


def test_address_with_a_mistyped_digit_is_refused() -> None:
    document = json.loads(signed().to_json())
    last = document["sender"][-1]
    document["sender"] = document["sender"][:-1] + ("b" if last != "b" else "C")
    with pytest.raises(MessageMismatchError, match="checksum"):
        SignedMessage.from_json(json.dumps(document))


def test_loss_that_is_not_a_number_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match="finite"):
        UnitProgress(unit=1, node=1, step=1, steps=1, loss=float("nan"))


def test_canonical_json_is_sorted_tight_utf8() -> None:
    assert canonical_json({"b": [1, 0.5, None, True], "a": "é"}) == '{"a":"é","b":[1,0.5,null,true]}'.encode()
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": float("inf")})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), json_values, max_size=4))
def test_content_hash_survives_a_trip_over_the_wire(payload: dict[str, Any]) -> None:
    assert canonical_hash(json.loads(json.dumps(payload))) == canonical_hash(payload)


@settings(max_examples=40, deadline=None)
@given(position=st.integers(0, 64), bit=st.integers(0, 7))
def test_no_flipped_bit_of_a_signature_verifies(position: int, bit: int) -> None:
    message = signed(now=NOW)
    raw = bytearray.fromhex(message.signature[2:])
    raw[position] ^= 1 << bit

    with pytest.raises((SignatureFormError, SignerMismatchError)):
        verify(altered(message, signature="0x" + raw.hex()))
