"""States: named exact tensors, their root and their canonical bytes.

A model with its optimiser and step counter is one; a data shard as well.

    "AVST" u16 version, u32 tensors, each: name, type, elements (little-endian, `width` bytes each)
    name = u8 length, UTF-8        type = u8 rank, u32 sides, u8 bits, i16 frac        numbers are big-endian

Tensors are in ascending order of name (UTF-8 bytes). `decode_state` is safe on bytes from a stranger.
"""

from __future__ import annotations

from collections.abc import Mapping

from proofs.exact.program import MAX_INPUTS, check_name
from proofs.exact.tensor import ExactTensor
from proofs.exact.wire import FormatError, Reader, Writer
from proofs.hashing import tag
from proofs.merkle import merkle_root

State = Mapping[str, ExactTensor]

MAGIC = b"AVST"
VERSION = 1


def ordered_names(state: State) -> list[str]:
    """Names in the order of their UTF-8 bytes. Raises ValueError for an empty state or something that is not a name."""
    if not 1 <= len(state) <= MAX_INPUTS:
        raise ValueError(f"a state of {len(state)} tensors: 1 to {MAX_INPUTS}")
    for name in state:
        check_name(name)
    return sorted(state, key=str.encode)


def state_root(state: State, threads: int = 1) -> bytes:
    """Merkle root over abi.encode(tag(name), tensor_root), ascending by name. About 2 GB/s on each thread."""
    return merkle_root([tag(name) + state[name].root(threads) for name in ordered_names(state)])


def encode_state(state: State) -> bytes:
    """The canonical bytes: equal states, equal bytes."""
    out = Writer()
    out.raw(MAGIC)
    out.unsigned(2, VERSION)
    out.unsigned(4, len(state))
    for name in ordered_names(state):
        out.name(name)
        out.type(state[name].type)
        out.raw(state[name].to_bytes())
    return out.finish()


def decode_state(data: bytes) -> dict[str, ExactTensor]:
    """The state that these bytes encode, names ascending. Raises ValueError (FormatError, TensorError, ProgramError)
    for anything that is not canonical; a size is believed only as far as there are bytes behind it."""
    reader = Reader(data)
    reader.expect(MAGIC, "a state")
    version = reader.unsigned(2)
    if version != VERSION:
        raise FormatError(f"state encoding version {version}: this build reads {VERSION}")
    state: dict[str, ExactTensor] = {}
    previous = b""
    for _ in range(reader.count(4, 6, "tensors")):
        name = reader.name()
        if name.encode() <= previous:
            raise FormatError(f"tensor {name!r} is out of order")
        previous = name.encode()
        type_ = reader.type()
        state[name] = ExactTensor.from_bytes(type_, reader.raw(type_.nbytes))
    reader.finish()
    ordered_names(state)
    return state
