"""How bytes, amounts and addresses look in JSON: field types shared by messages, manifest and the gateway's API.

In Python a field is `bytes` or `int`; in JSON it is 0x-hex or a decimal string, because JSON numbers are floats to
half of the world and a uint96 does not fit one. Anything else (wrong length, missing 0x, a float) is refused, never
coerced.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from eth_utils.address import is_checksum_address, is_hex_address, to_checksum_address
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from proofs.hashing import keccak

_HEX = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,77}")


def parse_hex(value: object) -> bytes:
    """Bytes from `0x...` (or bytes as they are). Raises ValueError."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str) and _HEX.fullmatch(value):
        return bytes.fromhex(value[2:])
    raise ValueError("not 0x-hex with an even number of digits")


def to_hex(value: bytes) -> str:
    """`0x` and lower-case digits."""
    return "0x" + value.hex()


def _parse_bytes32(value: object) -> bytes:
    data = parse_hex(value)
    if len(data) != 32:
        raise ValueError(f"32 bytes expected, {len(data)} given")
    return data


def _parse_quantity(value: object) -> object:
    if isinstance(value, str):
        if not _QUANTITY.fullmatch(value):
            raise ValueError("not a 0x-hex quantity of at most 256 bits")
        return int(value, 16)
    return value


def _parse_wei(value: object) -> object:
    if isinstance(value, str):
        if not _DECIMAL.fullmatch(value):
            raise ValueError("not a decimal amount in wei")
        return int(value)
    return value


def _parse_address(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("0x") or not is_hex_address(value):
        raise ValueError("not a 20-byte 0x address")
    mixed = value[2:] not in (value[2:].lower(), value[2:].upper())
    if mixed and not is_checksum_address(value):
        raise ValueError("the address's EIP-55 checksum is wrong: a digit was mistyped")
    return to_checksum_address(value)


Bytes32 = Annotated[
    bytes,
    BeforeValidator(_parse_bytes32),
    PlainSerializer(to_hex, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^0x[0-9a-f]{64}$", "examples": ["0x" + "ab" * 32]}),
]
"""32 bytes; `0x` and 64 digits in JSON."""

HexData = Annotated[
    bytes,
    BeforeValidator(parse_hex),
    PlainSerializer(to_hex, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^0x([0-9a-f]{2})*$"}),
]
"""Bytes of any length; 0x-hex in JSON."""

HexUint = Annotated[
    int,
    BeforeValidator(_parse_quantity),
    Field(ge=0, lt=1 << 256),
    PlainSerializer(hex, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^0x[0-9a-f]{1,64}$"}),
]
"""A uint256 (a bit set); 0x-hex quantity in JSON."""

WeiAmount = Annotated[
    int,
    BeforeValidator(_parse_wei),
    Field(ge=0, lt=1 << 256),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": "^(0|[1-9][0-9]*)$", "examples": ["2500000000000000000"]}),
]
"""Token or gas wei; a decimal string in JSON."""

Address = Annotated[
    str,
    BeforeValidator(_parse_address),
    WithJsonSchema({"type": "string", "pattern": "^0x[0-9a-fA-F]{40}$"}),
]
"""An Ethereum address, EIP-55 on the way out; on the way in one case throughout, or a right checksum."""


class WireModel(BaseModel):
    """A frozen model that crosses a room's border. Unknown keys and coercions are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


def canonical_json(value: Any) -> bytes:
    """The one byte form of a JSON value: keys sorted, no spaces, UTF-8, shortest floats. NaN and infinities raise
    ValueError."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def canonical_hash(value: Any) -> bytes:
    """keccak-256 of `canonical_json`, 32 bytes: the content hash of docs/protocol.md section 4."""
    return keccak(canonical_json(value))
