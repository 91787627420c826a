"""protocol.abi: the artefacts in the package, and their descriptions, against eth-abi and the Solidity sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from protocol.abi import Artifact, Event, Field, all_abis, artifact
from protocol.errors import ConfigError
from protocol.event_types import EVENTS
from protocol.types import TASK_SPEC_ABI

INTERFACES = Path(__file__).resolve().parents[3] / "contracts" / "interfaces"


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def test_all_four_contracts_have_bytecode() -> None:
    assert {found.name for found in all_abis()} >= {"AvenueToken", "Faucet", "NodeRegistry", "TaskMarket"}
    assert all(found.bytecode for found in all_abis())


def test_unknown_contract_and_function_are_named() -> None:
    with pytest.raises(ConfigError, match="no artefact for contract Nothing") as caught:
        artifact("Nothing")
    assert caught.value.hint
    with pytest.raises(ConfigError, match="TaskMarket has no function fly"):
        artifact("TaskMarket").function("fly")


def test_interface_cannot_be_deployed() -> None:
    with pytest.raises(ConfigError, match="it is an interface"):
        Artifact("IThing", (), b"").init_code([])


def test_selectors_are_those_of_the_standard() -> None:
    token = artifact("AvenueToken")
    assert token.function("transfer").selector.hex() == "a9059cbb"
    assert token.function("permit").selector.hex() == "d505accf"


def test_specification_has_the_types_that_python_hashes() -> None:
    (spec,) = artifact("TaskMarket").function("post").inputs
    assert spec.type == TASK_SPEC_ABI


def test_nobody_overloads_a_function() -> None:
    """Functions are looked up by name alone."""
    for found in all_abis():
        assert len(found.functions) == sum(entry["type"] == "function" for entry in found.abi)


@given(amount=st.integers(0, 2**96 - 1), node=st.integers(1, 2**64 - 1))
def test_arguments_survive_encoding(amount: int, node: int) -> None:
    stake = artifact("NodeRegistry").function("stake")
    assert stake.decode_inputs(stake.encode([node, amount])) == (node, amount)


def test_addresses_come_out_checksummed_at_any_depth() -> None:
    get_node = artifact("NodeRegistry").function("getNode")
    lower = "0x" + "ab" * 20
    from eth_abi.abi import encode

    record = (lower, lower, 1, False, 2, 3, bytes(32), bytes(32), "http://node")
    answer = get_node.decode(encode([get_node.outputs[0].type], [record]))
    assert answer[0] == answer[1] == "0x" + "ABaBaBaBABabABabAbAbABAbABabababaBaBABaB"


def test_event_arguments_keep_their_order_whichever_are_indexed() -> None:
    event = Event(
        "E", (Field("a", "uint256"), Field("b", "address", indexed=True), Field("c", "uint8")), keccak(text="E")
    )
    topics = [event.topic, bytes(12) + b"\x11" * 20]
    data = (5).to_bytes(32, "big") + (6).to_bytes(32, "big")
    assert event.decode(topics, data) == (5, "0x" + "11" * 20, 6)


def test_every_event_has_a_dataclass_with_the_same_fields_in_the_same_order() -> None:
    for contract, interface in (
        ("NodeRegistry", "INodeRegistry"),
        ("TaskMarket", "ITaskMarket"),
        ("Faucet", "IFaucet"),
    ):
        declared = set(re.findall(r"^    event (\w+)\(", (INTERFACES / f"{interface}.sol").read_text(), re.MULTILINE))
        assert declared == {kind.__name__ for kind in EVENTS[contract]}
        for kind in EVENTS[contract]:
            names = [snake(field.name) for field in artifact(contract).events[kind.__name__].inputs]
            ours = [name.rstrip("_") for name in kind.__dataclass_fields__ if name != "at"]
            assert ours == names, kind.__name__


def test_string_that_is_not_utf8_does_not_stop_a_reader_of_events() -> None:
    registered = artifact("NodeRegistry").events["NodeUpdated"]
    key, hash_, endpoint = b"\1" * 32, b"\2" * 32, b"\xff\xfe ok"
    tail = (96).to_bytes(32, "big"), len(endpoint).to_bytes(32, "big"), endpoint.ljust(32, b"\0")
    data = key + tail[0] + hash_ + tail[1] + tail[2]
    node = (7).to_bytes(32, "big")
    values = registered.decode([registered.topic, node], data)
    assert values == (7, key, "\ufffd\ufffd ok", hash_)
