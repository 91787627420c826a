"""protocol.reverts: any revert becomes a sentence, and every error of ours has a hint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st
from web3.exceptions import ContractCustomError, ContractLogicError

from protocol.abi import all_abis
from protocol.errors import FundsError, TransactionError
from protocol.reverts import HINTS, decode_revert, known_errors

INTERFACES = Path(__file__).resolve().parents[3] / "contracts" / "interfaces"


def data_of(signature: str, *values: object) -> bytes:
    types = signature[signature.index("(") + 1 : -1]
    return keccak(text=signature)[:4] + encode(types.split(",") if types else [], list(values))


def test_custom_error_shows_its_name_and_values() -> None:
    error = decode_revert(data_of("NotEnoughFreeStake(uint64,uint256,uint256)", 1, 1, 10), "claim unit 3")
    assert error.message == "claim unit 3: NotEnoughFreeStake(node=1, have=1, need=10)"
    assert error.error_name == "NotEnoughFreeStake" and error.arguments == {"node": 1, "have": 1, "need": 10}
    assert isinstance(error, TransactionError) and isinstance(error, FundsError) and error.exit_code == 6


def test_statuses_are_shown_by_name() -> None:
    task = b"\x01" * 32
    error = decode_revert(data_of("WrongStatus(bytes32,uint32,uint8,uint8)", task, 3, 1, 0))
    assert error.message == f"WrongStatus(task=0x{task.hex()}, unit=3, have=Claimed, need=Open)"
    assert error.exit_code == 5
    assert "status=Closed" in decode_revert(data_of("TaskNotOpen(bytes32,uint8)", task, 3)).message


@pytest.mark.parametrize("form", ["bytes", "hex", "custom", "logic", "nested"])
def test_every_carrier_of_revert_data_is_understood(form: str) -> None:
    raw = data_of("UnknownNode(uint64)", 7)
    text = "0x" + raw.hex()
    nested = ContractLogicError("execution reverted")
    nested.data = {"data": text}
    carrier = {
        "bytes": raw,
        "hex": text,
        "custom": ContractCustomError(text, data=text),
        "logic": ContractLogicError("execution reverted", data=text),
        "nested": nested,
    }[form]
    assert decode_revert(carrier).message == "UnknownNode(node=7)"  # type: ignore[arg-type]


def test_error_string_and_panic() -> None:
    assert decode_revert(data_of("Error(string)", "not today")).message == "not today"
    panic = decode_revert(data_of("Panic(uint256)", 0x11))
    assert panic.message == "Panic(0x11: arithmetic overflow)" and panic.code == "T-12"


def test_revert_without_data_says_so() -> None:
    error = decode_revert(ContractLogicError("execution reverted"))
    assert error.code == "T-13" and "without a reason" in error.message and error.hint


def test_unknown_selector_is_shown_whole() -> None:
    assert "0xdeadbeef01" in decode_revert("0xdeadbeef01").message


@given(st.binary(max_size=200))
def test_no_data_whatever_makes_decoding_fail(data: bytes) -> None:
    assert decode_revert(data).message


@given(st.sampled_from(sorted(known_errors())), st.binary(max_size=100))
def test_malformed_arguments_of_our_own_errors_are_shown_raw(selector: bytes, rest: bytes) -> None:
    assert decode_revert(selector + rest).message


def declared_errors() -> list[str]:
    sources = [path.read_text() for path in sorted(INTERFACES.glob("I*.sol"))]
    return sorted({name for source in sources for name in re.findall(r"^    error (\w+)\(", source, re.MULTILINE)})


@pytest.mark.parametrize("name", declared_errors())
def test_every_custom_error_of_our_interfaces_has_a_hint(name: str) -> None:
    assert len(HINTS[name]) > 10


def test_hints_are_only_for_errors_that_exist() -> None:
    thrown = {name for found in all_abis() for name in found.errors}
    assert set(HINTS) <= thrown | set(declared_errors())


def test_selectors_do_not_collide() -> None:
    signatures = {
        f"{error.name}({','.join(field.type for field in error.inputs)})"
        for found in all_abis()
        for error in found.errors.values()
    }
    assert len(signatures) == len(known_errors())
