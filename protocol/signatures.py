"""EIP-712 signatures that the contracts check: operator authorisation, admission, acceptance, ERC-2612 permit.

    registry  ("AvenueNodeRegistry", "1")   OperatorAuthorization
    market    ("AvenueTaskMarket", "1")     Admission, Acceptance
    token     ("Avenue", "1")               Permit (ERC-2612)

Every domain binds chain id and contract, so a signature is worth nothing anywhere else. `sign` and `recover` serve any
typed data; the signed envelopes between agents (protocol/messages.py) go through them too. Recovery accepts only the
65-byte form with v = 27 or 28 and low s (EIP-2), as OpenZeppelin's ECDSA does, so nothing that passes here fails there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from eth_account.messages import SignableMessage, encode_typed_data
from eth_account.signers.local import LocalAccount
from eth_keys.datatypes import Signature
from eth_keys.exceptions import BadSignature
from eth_typing import ChecksumAddress
from eth_utils.crypto import keccak
from eth_utils.exceptions import ValidationError as KeyValidationError

from protocol.deployments import Deployment
from protocol.errors import SignatureFormError
from protocol.types import Admission, NodeId, Permit, TaskId, Wei

# SEC 2: order of secp256k1. Of the two valid s, EIP-2 allows the lower one only.
SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
SIGNATURE_BYTES = 65

_FIELDS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "OperatorAuthorization": (
        ("owner", "address"),
        ("operator", "address"),
        ("nonce", "uint256"),
        ("deadline", "uint256"),
    ),
    "Admission": (("task", "bytes32"), ("node", "uint64"), ("shards", "uint256"), ("deadline", "uint64")),
    "Acceptance": (("task", "bytes32"), ("unit", "uint32"), ("resultRoot", "bytes32")),
    "Permit": (
        ("owner", "address"),
        ("spender", "address"),
        ("value", "uint256"),
        ("nonce", "uint256"),
        ("deadline", "uint256"),
    ),
}


@dataclass(frozen=True, slots=True)
class Eip712Domain:
    """An EIP-712 domain: who will check the signature, and on which chain."""

    name: str
    version: str
    chain_id: int
    contract: ChecksumAddress

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "chainId": self.chain_id,
            "verifyingContract": self.contract,
        }


class OnMarket(Protocol):
    """Says which market on which chain: a `Deployment`, or the domain of the signed envelopes."""

    @property
    def chain_id(self) -> int: ...

    @property
    def market(self) -> ChecksumAddress: ...


def registry_domain(deployment: Deployment) -> Eip712Domain:
    return Eip712Domain("AvenueNodeRegistry", "1", deployment.chain_id, deployment.registry)


def market_domain(where: OnMarket) -> Eip712Domain:
    return Eip712Domain("AvenueTaskMarket", "1", where.chain_id, where.market)


def token_domain(deployment: Deployment) -> Eip712Domain:
    return Eip712Domain("Avenue", "1", deployment.chain_id, deployment.token)


@dataclass(frozen=True, slots=True)
class TypedData:
    """One EIP-712 message: its type, the type's fields (name, ABI type), and the values by name."""

    domain: Eip712Domain
    primary_type: str
    fields: tuple[tuple[str, str], ...]
    values: Mapping[str, Any]

    def signable(self) -> SignableMessage:
        types = {self.primary_type: [{"name": name, "type": type_} for name, type_ in self.fields]}
        return encode_typed_data(self.domain.to_json(), types, dict(self.values))

    @property
    def hash(self) -> bytes:
        """keccak256(0x19 || 0x01 || domain separator || struct hash): the 32 bytes that are signed."""
        message = self.signable()
        return keccak(b"\x19" + message.version + message.header + message.body)


def sign(account: LocalAccount, data: TypedData) -> bytes:
    """65 bytes r || s || v, deterministic (RFC 6979), low s."""
    return bytes(account.sign_message(data.signable()).signature)


def check_form(signature: bytes) -> None:
    """Raises `SignatureFormError` V-02 unless it is 65 bytes with v 27 or 28, r and s in range, s low."""
    if len(signature) != SIGNATURE_BYTES:
        raise SignatureFormError(f"a signature is {SIGNATURE_BYTES} bytes, this one has {len(signature)}")
    r, s, v = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]
    if v not in (27, 28):
        raise SignatureFormError(f"recovery byte is {v}, not 27 or 28")
    if not (0 < r < SECP256K1_ORDER and 0 < s <= SECP256K1_ORDER // 2):
        raise SignatureFormError("signature is outside the curve's range, or its s is not the low one")


def recover(data: TypedData, signature: bytes) -> ChecksumAddress:
    """The address whose key made the signature. Raises `SignatureFormError` V-02 if no key can have made it."""
    check_form(signature)
    rsv = signature[:64] + bytes([signature[64] - 27])
    try:
        key = Signature(rsv).recover_public_key_from_msg_hash(data.hash)
    except (BadSignature, KeyValidationError) as error:
        raise SignatureFormError("no key can have made this signature") from error
    return key.to_checksum_address()


# --- what the contracts check ---


def _typed(domain: Eip712Domain, primary_type: str, *values: Any) -> TypedData:
    fields = _FIELDS[primary_type]
    return TypedData(domain, primary_type, fields, dict(zip((name for name, _ in fields), values, strict=True)))


def operator_authorization(
    deployment: Deployment, owner: ChecksumAddress, operator: ChecksumAddress, nonce: int, deadline: int
) -> TypedData:
    """The operator's word that it serves `owner`. `nonce`: `ChainClient.operator_nonce`; `deadline`: unix s."""
    return _typed(registry_domain(deployment), "OperatorAuthorization", owner, operator, nonce, deadline)


def sign_operator_authorization(
    operator: LocalAccount, deployment: Deployment, owner: ChecksumAddress, nonce: int, deadline: int
) -> bytes:
    """For `transactions.register` and `transactions.rotate_operator`."""
    return sign(operator, operator_authorization(deployment, owner, operator.address, nonce, deadline))


def admission(where: OnMarket, task: TaskId, node: NodeId, shards: int, deadline: int) -> TypedData:
    """The requester's word that `node` holds the keys of the shards in the bit set; until `deadline` (unix s)."""
    return _typed(market_domain(where), "Admission", task, node, shards, deadline)


def sign_admission(
    requester: LocalAccount, where: OnMarket, task: TaskId, node: NodeId, shards: int, deadline: int
) -> Admission:
    """For `transactions.claim` of a private task's unit."""
    return Admission(shards, deadline, sign(requester, admission(where, task, node, shards, deadline)))


def recover_admission(where: OnMarket, task: TaskId, node: NodeId, given: Admission) -> ChecksumAddress:
    """Who signed the admission. Raises `SignatureFormError`."""
    return recover(admission(where, task, node, given.shards, given.deadline), given.signature)


def acceptance(where: OnMarket, task: TaskId, unit: int, result_root: bytes) -> TypedData:
    """The requester's word that it takes this result of this unit."""
    return _typed(market_domain(where), "Acceptance", task, unit, result_root)


def sign_acceptance(requester: LocalAccount, where: OnMarket, task: TaskId, unit: int, result_root: bytes) -> bytes:
    """For `transactions.accept`."""
    return sign(requester, acceptance(where, task, unit, result_root))


def recover_acceptance(
    where: OnMarket, task: TaskId, unit: int, result_root: bytes, signature: bytes
) -> ChecksumAddress:
    """Who signed the acceptance. Raises `SignatureFormError`."""
    return recover(acceptance(where, task, unit, result_root), signature)


def permit(
    deployment: Deployment, owner: ChecksumAddress, spender: ChecksumAddress, value: Wei, nonce: int, deadline: int
) -> TypedData:
    """ERC-2612. `nonce`: `ChainClient.permit_nonce`; `deadline`: unix s."""
    return _typed(token_domain(deployment), "Permit", owner, spender, value, nonce, deadline)


def sign_permit(
    owner: LocalAccount, deployment: Deployment, spender: ChecksumAddress, value: Wei, nonce: int, deadline: int
) -> Permit:
    """For `transactions.post_with_permit` (spender: the market) and `stake_with_permit` (the registry)."""
    signature = sign(owner, permit(deployment, owner.address, spender, value, nonce, deadline))
    return Permit(deadline, signature[64], signature[:32], signature[32:64])
