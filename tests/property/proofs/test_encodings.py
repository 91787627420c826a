"""Canonical bytes: one value, one encoding; and nothing that a stranger sends does worse than raise ValueError."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proofs.exact import encoding
from proofs.exact.encoding import MAX_PROGRAM_BYTES, decode_program, encode_program
from proofs.exact.program import ProgramError
from proofs.exact.state import State, decode_state, encode_state, state_root
from proofs.exact.tensor import ExactTensor, TensorType
from proofs.exact.tensor_type import MAX_RANK
from proofs.exact.wire import FormatError
from tests.support.programs import linear_regression

PROGRAM = encode_program(linear_regression())


@st.composite
def states(draw: st.DrawFn) -> State:
    names = draw(st.sets(st.text("abéZ/0", min_size=1, max_size=5), min_size=1, max_size=4))
    state = {}
    for name in names:
        shape = tuple(draw(st.lists(st.sampled_from((1, 1, 2, 3)), max_size=MAX_RANK)))
        type_ = TensorType(shape, draw(st.integers(1, 64)), draw(st.integers(-255, 255)))
        ends = st.sampled_from((type_.lo, type_.hi))
        elements = st.lists(ends | st.integers(type_.lo, type_.hi), min_size=type_.elements, max_size=type_.elements)
        state[name] = ExactTensor(type_, torch.tensor(draw(elements), dtype=torch.int64).reshape(shape))
    return state


@given(states())
def test_a_state_survives_its_bytes_and_keeps_its_root(state: State) -> None:
    encoded = encode_state(state)
    decoded = decode_state(encoded)
    assert decoded == state
    assert list(decoded) == sorted(state, key=str.encode)
    assert encode_state(decoded) == encoded and state_root(decoded) == state_root(state)


@given(states(), st.data())
def test_any_change_of_a_state_changes_its_root(state: State, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(state)))
    tensor = state[name]
    flat = tensor.values.clone().reshape(-1)
    place = data.draw(st.integers(0, tensor.type.elements - 1))
    flat[place] = tensor.type.lo if flat[place] != tensor.type.lo else tensor.type.hi
    shape, bits, frac = tensor.type.shape, tensor.type.bits, tensor.type.frac
    others: list[State] = [
        {**state, name: ExactTensor(tensor.type, flat.reshape(shape))},
        {**state, name: ExactTensor(TensorType(shape, bits, frac + 1 if frac < 255 else 0), tensor.values)},
        {**{other: kept for other, kept in state.items() if other != name}, name + "!": tensor},
        {**state, name + "!": tensor},
    ]
    if len(shape) < MAX_RANK:
        others.append({**state, name: ExactTensor(TensorType((*shape, 1), bits, frac), tensor.values.unsqueeze(-1))})
    if bits < 64:
        others.append({**state, name: ExactTensor(TensorType(shape, bits + 1, frac), tensor.values)})
    roots = [state_root(other) for other in (state, *others)]
    assert len(set(roots)) == len(roots)


@settings(max_examples=200)
@given(states(), st.data())
def test_damaged_state_bytes_are_refused_or_mean_something_else(state: State, data: st.DataObject) -> None:
    damaged = damage(encode_state(state), data)
    try:
        decoded = decode_state(damaged)
    except ValueError:
        return
    assert encode_state(decoded) == damaged


@settings(max_examples=300)
@given(st.data())
def test_damaged_program_bytes_are_refused_or_mean_something_else(data: st.DataObject) -> None:
    damaged = damage(PROGRAM, data)
    try:
        decoded = decode_program(damaged)
    except ValueError:
        return
    assert encode_program(decoded) == damaged


@given(st.binary(max_size=200))
@example(b"")
def test_bytes_of_no_meaning_are_refused(junk: bytes) -> None:
    for decode, magic in ((decode_program, b"AVPR\x00\x02"), (decode_state, b"AVST\x00\x01")):
        with pytest.raises(ValueError):
            decode(b"x" + junk)
        try:
            decode(magic + junk)
        except ValueError:
            continue


@pytest.mark.parametrize("cut", range(0, len(PROGRAM), 7))
def test_a_truncated_program_is_refused(cut: int) -> None:
    with pytest.raises(ValueError):
        decode_program(PROGRAM[:cut])


def test_trailing_bytes_other_versions_and_unknown_opcodes_are_refused() -> None:
    with pytest.raises(FormatError, match="1 bytes left over"):
        decode_program(PROGRAM + b"\x00")
    with pytest.raises(FormatError, match="version 1: this build reads 2"):
        decode_program(PROGRAM[:5] + b"\x01" + PROGRAM[6:])
    with pytest.raises(FormatError, match="not a tensor program"):
        decode_program(b"AVST" + PROGRAM[4:])
    first_op = PROGRAM.index(bytes([18, 2]))  # permute, two operands
    with pytest.raises(FormatError, match="unknown opcode 99"):
        decode_program(PROGRAM[:first_op] + bytes([99]) + PROGRAM[first_op + 1 :])
    with pytest.raises(FormatError, match="at most"):
        decode_program(bytes(MAX_PROGRAM_BYTES + 1))


def test_tensors_out_of_order_or_out_of_range_are_refused() -> None:
    def tensor(name: bytes, bits: int, element: bytes) -> bytes:
        return bytes([len(name)]) + name + bytes([0, bits, 0, 0]) + element

    head = b"AVST\x00\x01\x00\x00\x00\x02"
    assert list(decode_state(head + tensor(b"a", 4, b"\x07") + tensor(b"b", 4, b"\xf8"))) == ["a", "b"]
    with pytest.raises(FormatError, match="out of order"):
        decode_state(head + tensor(b"b", 4, b"\x07") + tensor(b"a", 4, b"\x07"))
    with pytest.raises(FormatError, match="out of order"):
        decode_state(head + tensor(b"a", 4, b"\x07") + tensor(b"a", 4, b"\x07"))
    with pytest.raises(ValueError, match=r"8\.\.8 do not fit"):
        decode_state(head + tensor(b"a", 4, b"\x08") + tensor(b"b", 4, b"\x07"))


def test_a_claimed_size_allocates_no_more_than_the_bytes_that_came() -> None:
    huge_tensor = b"AVST\x00\x01" + struct.pack(">I", 1) + b"\x01w\x01" + struct.pack(">IBh", 2**30, 64, 0)
    many_tensors = b"AVST\x00\x01" + struct.pack(">I", 2**32 - 1)
    many_ops = b"AVPR\x00\x02" + struct.pack(">HII", 0, 0, 2**32 - 1)
    tracemalloc.start()
    try:
        for decode, data in ((decode_state, huge_tensor), (decode_state, many_tensors), (decode_program, many_ops)):
            with pytest.raises(FormatError):
                decode(data)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def damage(encoded: bytes, data: st.DataObject) -> bytes:
    """One byte changed, removed, added or two stretches exchanged: usually nonsense, sometimes another valid value."""
    place = data.draw(st.integers(0, len(encoded) - 1))
    byte = bytes([data.draw(st.integers(0, 255))])
    other = data.draw(st.integers(0, len(encoded)))
    return data.draw(
        st.sampled_from(
            (
                encoded[:place] + byte + encoded[place + 1 :],
                encoded[:place] + encoded[place + 1 :],
                encoded[:place] + byte + encoded[place:],
                encoded[:other],
                encoded[other:] + encoded[:other],
            )
        )
    )


def test_names_that_are_not_text_and_states_of_another_version_are_refused() -> None:
    state = encode_state({"a": ExactTensor(TensorType((), 8), torch.tensor(1))})
    assert decode_state(state)
    with pytest.raises(FormatError, match="isn't UTF-8"):
        decode_state(state.replace(b"a", b"\xff", 1))
    with pytest.raises(FormatError, match="state encoding version 2"):
        decode_state(state[:5] + b"\x02" + state[6:])


def test_programs_beyond_the_limits_are_refused_on_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "MAX_OPS", 3)
    with pytest.raises(FormatError, match="operations: at most 3"):
        decode_program(PROGRAM)
    monkeypatch.setattr(encoding, "MAX_CONSTANTS", 1)
    with pytest.raises(FormatError, match="constants: at most 1"):
        decode_program(PROGRAM)
    monkeypatch.undo()
    monkeypatch.setattr(encoding, "MAX_CONSTANT_BYTES", 2)
    with pytest.raises(FormatError, match="more than 2 bytes of constants"):
        decode_program(PROGRAM)
    monkeypatch.setattr(encoding, "MAX_PROGRAM_BYTES", len(PROGRAM) - 1)
    with pytest.raises(ProgramError, match="a program of"):
        encode_program(linear_regression())
