"""protocol.signatures against an independent secp256k1 (py_ecc), for every kind that the contracts check."""

from __future__ import annotations

from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from hypothesis import given, settings
from hypothesis import strategies as st
from py_ecc.secp256k1.secp256k1 import ecdsa_raw_recover

from protocol.deployments import Deployment
from protocol.errors import SignatureFormError
from protocol.signatures import (
    SECP256K1_ORDER,
    TypedData,
    acceptance,
    admission,
    check_form,
    operator_authorization,
    permit,
    recover,
    recover_acceptance,
    recover_admission,
    sign,
    sign_acceptance,
    sign_admission,
    sign_permit,
)
from protocol.types import Admission, NodeId, TaskId, Wei

A, B, C = (to_checksum_address("0x" + digit * 40) for digit in "123")
DEPLOYMENT = Deployment(31337, 0, A, B, C)
ACCOUNT: LocalAccount = Account.from_key(b"\x07" * 32)

bytes32 = st.binary(min_size=32, max_size=32)
u256, u64, u32 = st.integers(0, 2**256 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
addresses = st.binary(min_size=20, max_size=20).map(to_checksum_address)
keys = st.integers(1, SECP256K1_ORDER - 1).map(lambda key: Account.from_key(key.to_bytes(32, "big")))
deployments = st.builds(Deployment, st.integers(1, 2**32), st.just(0), addresses, addresses, addresses)
messages = st.one_of(
    st.builds(operator_authorization, deployments, addresses, addresses, u256, u256),
    st.builds(admission, deployments, bytes32, u64, u256, u64),
    st.builds(acceptance, deployments, bytes32, u32, bytes32),
    st.builds(permit, deployments, addresses, addresses, u256, u256, u256),
)


def recover_with_py_ecc(digest: bytes, signature: bytes) -> str:
    r, s, v = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:64], "big"), signature[64]
    x, y = ecdsa_raw_recover(digest, (v, r, s))
    return str(to_checksum_address(keccak(x.to_bytes(32, "big") + y.to_bytes(32, "big"))[12:]))


@settings(max_examples=15, deadline=None)
@given(account=keys, data=messages)
def test_signer_is_recovered_by_two_independent_implementations(account: Any, data: TypedData) -> None:
    signature = sign(account, data)
    check_form(signature)
    assert recover(data, signature) == account.address == recover_with_py_ecc(data.hash, signature)


@settings(max_examples=30, deadline=None)
@given(data=messages, bit=st.integers(0, 65 * 8 - 1))
def test_signature_with_one_flipped_bit_is_nobodys_or_somebody_elses(data: TypedData, bit: int) -> None:
    signature = bytearray(sign(ACCOUNT, data))
    signature[bit // 8] ^= 1 << bit % 8
    try:
        signer = recover(data, bytes(signature))
    except SignatureFormError:
        return
    assert signer != ACCOUNT.address


@settings(max_examples=30, deadline=None)
@given(first=messages, second=messages)
def test_different_messages_have_different_hashes(first: TypedData, second: TypedData) -> None:
    assert (first.hash == second.hash) == (first == second)


def test_hash_is_the_one_of_eip_712_by_hand() -> None:
    """encodeType, encodeData and domain separator spelt out, for Acceptance."""
    task, root = TaskId(b"\x01" * 32), b"\x02" * 32
    domain_type = keccak(text="EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
    market = bytes(12) + bytes.fromhex(C[2:])
    separator = keccak(
        domain_type + keccak(text="AvenueTaskMarket") + keccak(text="1") + (31337).to_bytes(32, "big") + market
    )
    struct = keccak(
        keccak(text="Acceptance(bytes32 task,uint32 unit,bytes32 resultRoot)") + task + bytes(31) + b"\x05" + root
    )
    assert acceptance(DEPLOYMENT, task, 5, root).hash == keccak(b"\x19\x01" + separator + struct)


def test_high_s_is_refused() -> None:
    data = acceptance(DEPLOYMENT, TaskId(bytes(32)), 0, bytes(32))
    signature = sign(ACCOUNT, data)
    s = SECP256K1_ORDER - int.from_bytes(signature[32:64], "big")
    malleated = signature[:32] + s.to_bytes(32, "big") + bytes([27 + 28 - signature[64]])
    assert recover_with_py_ecc(data.hash, malleated) == ACCOUNT.address, "it is a valid signature otherwise"
    with pytest.raises(SignatureFormError, match="not the low one"):
        recover(data, malleated)


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        bytes(64),
        bytes(66),
        bytes(64) + b"\x1b",
        b"\xff" * 64 + b"\x1b",
        b"\x01" * 64 + b"\x00",
        b"\x01" * 64 + b"\x1d",
    ],
)
def test_what_is_no_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(SignatureFormError) as caught:
        recover(acceptance(DEPLOYMENT, TaskId(bytes(32)), 0, bytes(32)), signature)
    assert caught.value.code == "V-02"


def test_signed_admission_and_acceptance_name_their_signer() -> None:
    task, node, root = TaskId(b"\x01" * 32), NodeId(3), b"\x02" * 32
    admitted = sign_admission(ACCOUNT, DEPLOYMENT, task, node, 0b101, 99)
    assert recover_admission(DEPLOYMENT, task, node, admitted) == ACCOUNT.address
    widened = Admission(0b111, admitted.deadline, admitted.signature)
    assert recover_admission(DEPLOYMENT, task, node, widened) != ACCOUNT.address
    accepted = sign_acceptance(ACCOUNT, DEPLOYMENT, task, 4, root)
    assert recover_acceptance(DEPLOYMENT, task, 4, root, accepted) == ACCOUNT.address


def test_permit_is_split_into_v_r_s() -> None:
    signed = sign_permit(ACCOUNT, DEPLOYMENT, B, Wei(5), 0, 99)
    data = permit(DEPLOYMENT, ACCOUNT.address, B, Wei(5), 0, 99)
    assert recover(data, signed.r + signed.s + bytes([signed.v])) == ACCOUNT.address
    assert signed.to_abi()[0] == 99
