"""The one envelope in which Request Node, Compute Node and gateway speak to each other (docs/protocol.md section 4).

A message is a JSON payload of a known kind, bound by an EIP-712 signature to its task, its sender, a nonce and a
deadline, under a domain that names chain and market: what was signed for one market says nothing in another. The
receiver's checks run in a fixed order and each fails with its own error, so that a refusal says what is wrong and not
merely that something is.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address
from pydantic import ConfigDict, Field, ValidationError

from protocol.errors import (
    ContentHashError,
    ExpiredError,
    MessageMismatchError,
    ReplayError,
    SignatureFormError,
    SignerMismatchError,
    StandingError,
)
from protocol.json_types import (
    Address,
    Bytes32,
    WireModel,
    canonical_hash,
    canonical_json,
    parse_hex,
    to_hex,
)
from protocol.payloads import (
    PAYLOADS,
    AdmissionGrant,
    AdmissionRequest,
    BlobAnnounce,
    Grant,
    KeyGrant,
    Kind,
    Payload,
    UnitAcceptance,
    UnitProgress,
    UnitResult,
)
from protocol.signatures import (
    Eip712Domain,
    TypedData,
    check_form,
    recover,
    recover_acceptance,
    recover_admission,
    sign,
)
from protocol.types import ZERO32, Admission, NodeId, TaskId

__all__ = [
    "DEFAULT_TTL_S",
    "MAX_TTL_S",
    "MESSAGE_FIELDS",
    "PAYLOADS",
    "AdmissionGrant",
    "AdmissionRequest",
    "BlobAnnounce",
    "Domain",
    "Grant",
    "KeyGrant",
    "Kind",
    "Payload",
    "SeenNonce",
    "SignedMessage",
    "Standing",
    "UnitAcceptance",
    "UnitProgress",
    "UnitResult",
    "parse_payload",
    "sign_message",
    "verify_authorship",
    "verify_message",
    "verify_stored_message",
]

MAX_TTL_S = 3600
"""A deadline further ahead than this is refused, so that a receiver need not remember nonces for longer."""

DEFAULT_TTL_S = 600


@dataclass(frozen=True, slots=True)
class Domain:
    """Which market on which chain a signature is for (EIP-712 domain ("Avenue","1"))."""

    chain_id: int
    market: ChecksumAddress

    @property
    def typed(self) -> Eip712Domain:
        return Eip712Domain("Avenue", "1", self.chain_id, self.market)


MESSAGE_FIELDS = (
    ("kind", "string"),
    ("task", "bytes32"),
    ("contentHash", "bytes32"),
    ("sender", "address"),
    ("nonce", "uint64"),
    ("deadline", "uint64"),
)


class SignedMessage(WireModel):
    """The envelope, as on the wire. Holding one proves nothing: `verify_message` does."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "kind": "admission.request",
                    "task": "0x" + "7a" * 32,
                    "payload": {"node": 3},
                    "content_hash": "0x" + "c0" * 32,
                    "sender": "0x70997970C51812dc3A010C7d01b50e0d17dc79C8",
                    "nonce": 4611686018427387904,
                    "deadline": 1795000000,
                    "signature": "0x" + "5e" * 65,
                }
            ]
        }
    )

    kind: Annotated[str, Field(max_length=64)]
    task: Bytes32
    payload: dict[str, Any]
    content_hash: Bytes32
    sender: Address
    nonce: Annotated[int, Field(ge=0, lt=1 << 63)]
    deadline: Annotated[int, Field(ge=0, lt=1 << 64)]
    """Unix s."""
    signature: Annotated[str, Field(max_length=1024)]
    """Text, not bytes: a signature that is not even hex fails its own check, not the parsing of the envelope."""

    def to_json(self) -> bytes:
        """The wire form, UTF-8."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> SignedMessage:
        """Raises MessageMismatchError when the bytes are not an envelope at all."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise MessageMismatchError(f"not a message envelope: {_first_complaint(error)}") from error

    def typed_data(self, domain: Domain) -> TypedData:
        """What is signed: everything but the payload, which its hash stands for."""
        return _typed_data(domain, self.kind, self.task, self.content_hash, self.sender, self.nonce, self.deadline)


def _typed_data(domain: Domain, *values: str | bytes | int) -> TypedData:
    names = (name for name, _ in MESSAGE_FIELDS)
    return TypedData(domain.typed, "Message", MESSAGE_FIELDS, dict(zip(names, values, strict=True)))


def sign_message(
    account: LocalAccount,
    kind: str,
    task: bytes,
    payload: Payload,
    domain: Domain,
    ttl_s: int = DEFAULT_TTL_S,
    *,
    now: int | None = None,
) -> SignedMessage:
    """Puts `payload` into an envelope signed by `account`, good for `ttl_s` seconds from `now` (default: this clock).

    Raises MessageMismatchError if the payload is not one of `kind`, ValueError if ttl_s is outside 1..MAX_TTL_S.
    """
    if payload.kind != kind:
        raise MessageMismatchError(f"a {type(payload).__name__} is not the payload of {kind}")
    if not 1 <= ttl_s <= MAX_TTL_S:
        raise ValueError(f"ttl_s must be 1 to {MAX_TTL_S}, not {ttl_s}")
    content = payload.model_dump(mode="json")
    content_hash = canonical_hash(content)
    sender = to_checksum_address(account.address)
    nonce = secrets.randbits(63)
    deadline = (int(time.time()) if now is None else now) + ttl_s
    signature = sign(account, _typed_data(domain, str(kind), task, content_hash, sender, nonce, deadline))
    return SignedMessage(
        kind=str(kind),
        task=task,
        payload=content,
        content_hash=content_hash,
        sender=sender,
        nonce=nonce,
        deadline=deadline,
        signature=to_hex(signature),
    )


Standing = Callable[[SignedMessage, Payload], bool]
"""Whether the sender's key may say this: it reads the chain. Nothing but True lets a message pass."""

SeenNonce = Callable[[str, int], bool]
"""Whether (sender address, nonce) came before."""


def verify_message(
    message: SignedMessage, domain: Domain, *, standing: Standing, now: int, seen_nonce: SeenNonce
) -> Payload:
    """All seven checks at the moment of delivery, in the order of docs/protocol.md section 4. Returns the payload.

    `now` is unix s. Raises, in order: ContentHashError, SignatureFormError, SignerMismatchError, MessageMismatchError,
    StandingError, ExpiredError, ReplayError. Remembering the nonce afterwards is the caller's part, in the
    transaction that stores the message.
    """
    payload = verify_stored_message(message, domain, standing=standing)
    _check_fresh(message, now)
    if seen_nonce(message.sender, message.nonce):
        raise ReplayError(f"nonce {message.nonce} of {message.sender} was used before")
    return payload


def verify_stored_message(message: SignedMessage, domain: Domain, *, standing: Standing) -> Payload:
    """The first five checks: who reads a mailbox learns who said what, long after the deadline for delivery.

    What a mailbox replays is harmless by construction: grants and results are idempotent, and money moves only on
    chain.
    """
    payload = verify_authorship(message, domain)
    if standing(message, payload) is not True:
        raise StandingError(
            f"{message.sender} has no standing to send {message.kind} for task {message.task.hex()[:8]}",
            hint="register a node with this operator key, or use the key that posted the task",
        )
    return payload


def verify_authorship(message: SignedMessage, domain: Domain) -> Payload:
    """The first four checks, which need nothing but the message: content, signature, signer, payload and task."""
    _check_content(message)
    signature = _well_formed_signature(message.signature)
    _check_signer(message, signature, domain)
    payload = parse_payload(message)
    _check_enclosed_signature(message, payload, domain)
    return payload


def _check_content(message: SignedMessage) -> None:
    try:
        content_hash = canonical_hash(message.payload)
    except (ValueError, RecursionError) as error:
        raise ContentHashError("the payload has no canonical form") from error
    if content_hash != message.content_hash:
        raise ContentHashError(f"the payload hashes to {content_hash.hex()}, not {message.content_hash.hex()}")


def _well_formed_signature(text: str) -> bytes:
    try:
        signature = parse_hex(text)
    except ValueError as error:
        raise SignatureFormError("the signature is not 0x-hex") from error
    check_form(signature)
    return signature


def _check_signer(message: SignedMessage, signature: bytes, domain: Domain) -> None:
    recovered = recover(message.typed_data(domain), signature)
    if recovered != message.sender:
        raise SignerMismatchError(
            f"signed by {recovered}, not by {message.sender}",
            hint="the sender signed for another chain or market, or somebody altered the envelope",
        )


def parse_payload(message: SignedMessage) -> Payload:
    """The payload as its kind's model. Raises MessageMismatchError (unknown kind, wrong fields, no task)."""
    try:
        model = PAYLOADS[Kind(message.kind)]
    except ValueError as error:
        raise MessageMismatchError(f"no such kind of message: {message.kind!r}") from error
    if message.task == ZERO32 and model is not BlobAnnounce:
        raise MessageMismatchError(f"{message.kind} must name a task")
    try:
        return model.model_validate_json(canonical_json(message.payload))
    except ValidationError as error:
        raise MessageMismatchError(f"not a payload of {message.kind}: {_first_complaint(error)}") from error


def _check_enclosed_signature(message: SignedMessage, payload: Payload, domain: Domain) -> None:
    """What a payload carries for the contract must be signed by the envelope's sender for the envelope's task."""
    task = TaskId(message.task)
    try:
        match payload:
            case AdmissionGrant(node=node, shards=shards, deadline=deadline, signature=signature):
                signer = recover_admission(domain, task, NodeId(node), Admission(shards, deadline, signature))
            case UnitAcceptance(unit=unit, result_root=result_root, signature=signature):
                signer = recover_acceptance(domain, task, unit, result_root, signature)
            case _:
                return
    except SignatureFormError as error:
        raise MessageMismatchError(f"the signature inside the {message.kind} is malformed") from error
    if signer != message.sender:
        raise MessageMismatchError(f"the signature inside the {message.kind} is not the sender's for this task")


def _check_fresh(message: SignedMessage, now: int) -> None:
    if message.deadline < now:
        raise ExpiredError(f"the message expired {now - message.deadline} s ago")
    if message.deadline > now + MAX_TTL_S:
        raise ExpiredError(f"the deadline is {message.deadline - now} s ahead, more than {MAX_TTL_S}")


def _first_complaint(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
