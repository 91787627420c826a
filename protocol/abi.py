"""The contracts' artefacts (ABI and bytecode), as checked in under `protocol/abi/`.

`artifact("TaskMarket")` reads one package file, once. Functions, errors and events are small typed descriptions that
encode and decode by themselves, so the rest of the room never handles raw ABI dictionaries, and a node operator needs
neither Node.js nor solc.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from typing import Any

from eth_abi.abi import encode
from eth_abi.codec import ABIDecoder
from eth_abi.decoding import StringDecoder
from eth_abi.grammar import TupleType, parse
from eth_abi.registry import BaseEquals
from eth_abi.registry import registry as default_registry
from eth_utils.abi import collapse_if_tuple
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from protocol.errors import ConfigError

_FOLDER = resources.files("protocol") / "abi"


def _tolerant_decoder() -> ABIDecoder:
    """As eth-abi's, but a `string` that is not UTF-8 gets U+FFFD for its bad bytes.

    The EVM does not check strings. Were bad ones refused here, anybody could stop every reader of the registry's
    events by registering a node with an endpoint of random bytes.
    """
    registry = default_registry.copy()  # type: ignore[no-untyped-call]
    registry.unregister_decoder("string")
    is_string = BaseEquals("string", with_sub=False)  # type: ignore[no-untyped-call]
    registry.register_decoder(is_string, StringDecoder(handle_string_errors="replace"), label="string")  # type: ignore[no-untyped-call]
    return ABIDecoder(registry)


decode = _tolerant_decoder().decode


def _normalise(abi_type: str, value: Any) -> Any:
    """eth-abi gives addresses in lower case; here they come out checksummed, at any depth."""
    return _checksummed(parse(abi_type), value) if "address" in abi_type else value


def _checksummed(abi_type: Any, value: Any) -> Any:
    if abi_type.is_array:
        return tuple(_checksummed(abi_type.item_type, item) for item in value)
    if isinstance(abi_type, TupleType):
        return tuple(_checksummed(member, item) for member, item in zip(abi_type.components, value, strict=True))
    return to_checksum_address(value) if abi_type.base == "address" else value


@dataclass(frozen=True, slots=True)
class Field:
    """One argument: its name and its canonical ABI type (`tuple` collapsed to its members)."""

    name: str
    type: str
    indexed: bool = False


def _fields(entries: Sequence[dict[str, Any]]) -> tuple[Field, ...]:
    return tuple(
        Field(entry.get("name", ""), str(collapse_if_tuple(entry)), bool(entry.get("indexed", False)))
        for entry in entries
    )


@dataclass(frozen=True, slots=True)
class Function:
    """A contract function. `selector` is the first 4 bytes of keccak of its signature."""

    name: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    selector: bytes

    def encode(self, args: Sequence[Any]) -> bytes:
        """Calldata. Raises `ValueError` or eth-abi's `EncodingError` if the arguments do not fit the types."""
        return self.selector + encode([field.type for field in self.inputs], list(args))

    def decode_inputs(self, calldata: bytes) -> tuple[Any, ...]:
        """The arguments in `calldata`, which starts with the selector."""
        values = decode([field.type for field in self.inputs], calldata[4:])
        return tuple(_normalise(field.type, value) for field, value in zip(self.inputs, values, strict=True))

    def decode(self, data: bytes) -> Any:
        """The return value: alone if there is one, a tuple if there are several, None if there are none."""
        values = decode([field.type for field in self.outputs], data)
        normal = tuple(_normalise(field.type, value) for field, value in zip(self.outputs, values, strict=True))
        if not normal:
            return None
        return normal[0] if len(normal) == 1 else normal


@dataclass(frozen=True, slots=True)
class CustomError:
    """A Solidity custom error, found in revert data by its 4-byte selector."""

    name: str
    inputs: tuple[Field, ...]
    selector: bytes

    def decode(self, data: bytes) -> tuple[Any, ...]:
        """Arguments from revert data, selector included."""
        values = decode([field.type for field in self.inputs], data[4:])
        return tuple(_normalise(field.type, value) for field, value in zip(self.inputs, values, strict=True))


@dataclass(frozen=True, slots=True)
class Event:
    """An event. `topic` is keccak of its signature: topic 0 of its logs."""

    name: str
    inputs: tuple[Field, ...]
    topic: bytes

    def decode(self, topics: Sequence[bytes], data: bytes) -> tuple[Any, ...]:
        """Arguments in declaration order, from a log's topics (topic 0 included) and data."""
        from_topics = iter(topics[1:])
        from_data = iter(decode([field.type for field in self.inputs if not field.indexed], data))
        return tuple(
            _normalise(field.type, decode([field.type], next(from_topics))[0] if field.indexed else next(from_data))
            for field in self.inputs
        )


@dataclass(frozen=True)
class Artifact:
    """One contract or interface. `bytecode` is empty for an interface."""

    name: str
    abi: tuple[dict[str, Any], ...]
    bytecode: bytes

    @cached_property
    def functions(self) -> dict[str, Function]:
        """By name: our contracts overload nothing."""
        return {
            entry["name"]: Function(
                entry["name"], _fields(entry["inputs"]), _fields(entry["outputs"]), keccak(text=_signature(entry))[:4]
            )
            for entry in self.abi
            if entry["type"] == "function"
        }

    @cached_property
    def errors(self) -> dict[str, CustomError]:
        return {
            entry["name"]: CustomError(entry["name"], _fields(entry["inputs"]), keccak(text=_signature(entry))[:4])
            for entry in self.abi
            if entry["type"] == "error"
        }

    @cached_property
    def events(self) -> dict[str, Event]:
        return {
            entry["name"]: Event(entry["name"], _fields(entry["inputs"]), keccak(text=_signature(entry)))
            for entry in self.abi
            if entry["type"] == "event"
        }

    def function(self, name: str) -> Function:
        try:
            return self.functions[name]
        except KeyError:
            raise ConfigError(f"{self.name} has no function {name}", code="C-21") from None

    def init_code(self, args: Sequence[Any]) -> bytes:
        """Bytecode followed by the encoded constructor arguments.

        Raises `ConfigError` for an interface, which cannot be deployed.
        """
        if not self.bytecode:
            raise ConfigError(f"{self.name} has no bytecode: it is an interface", code="C-22")
        types = [
            field.type for entry in self.abi if entry["type"] == "constructor" for field in _fields(entry["inputs"])
        ]
        return self.bytecode + encode(types, list(args))


def _signature(entry: dict[str, Any]) -> str:
    return f"{entry['name']}({','.join(field.type for field in _fields(entry['inputs']))})"


def _bytes(text: str | None) -> bytes:
    return bytes.fromhex((text or "").removeprefix("0x"))


@cache
def artifact(name: str) -> Artifact:
    """The artefact of one contract or interface, such as "TaskMarket".

    Raises `ConfigError` C-20 if the package holds no such file.
    """
    file = _FOLDER / f"{name}.json"
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"no artefact for contract {name}",
            code="C-20",
            hint="in a source checkout run `make build`; an installed package should be installed again",
        ) from None
    return Artifact(
        name=document["contractName"],
        abi=tuple(document["abi"]),
        bytecode=_bytes(document.get("bytecode")),
    )


@cache
def all_abis() -> tuple[Artifact, ...]:
    """Every artefact of the package, by name."""
    names = sorted(file.name for file in _FOLDER.iterdir() if file.name.endswith(".json"))
    return tuple(artifact(name.removesuffix(".json")) for name in names)
