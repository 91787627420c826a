"""Everything that enters a hash, against files: a change of one bit anywhere in exact arithmetic shows up here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from proofs.exact import permutation, permutation_bulk
from proofs.exact.definitions import IntArray
from proofs.exact.encoding import decode_program, encode_program, root_of_encoding
from proofs.exact.execute import run_unit
from proofs.exact.initialise import normal, normal_definition
from proofs.exact.kernels import KERNELS, Buffer, Call
from proofs.exact.known_answers import asked, from_torch, info_of, to_torch
from proofs.exact.opcodes import Opcode, define, infer
from proofs.exact.overflow import Overflow
from proofs.exact.reference import reference_run
from proofs.exact.state import decode_state, encode_state, state_root
from proofs.exact.tensor import TensorType
from proofs.hashing import keccak, tag
from proofs.merkle import merkle_root
from scripts import make_vectors
from tests.support.vectors import VECTORS, cases, unhex


def array(given: dict[str, Any]) -> IntArray:
    return IntArray(tuple(given["shape"]), tuple(int(value) for value in given["values"]))


@pytest.mark.parametrize(
    "case", cases("state"), ids=lambda case: f"{len(case['tensors'])} {case['tensors'][0]['name']}"
)
def test_states_have_the_golden_bytes_and_roots(case: dict[str, Any]) -> None:
    state = decode_state(unhex(case["encoding"]))
    assert encode_state(state) == unhex(case["encoding"])
    assert state_root(state) == unhex(case["state_root"])
    for (name, tensor), wanted in zip(state.items(), case["tensors"], strict=True):
        assert (name, list(tensor.type.shape)) == (wanted["name"], wanted["shape"])
        assert (tensor.type.bits, tensor.type.frac) == (wanted["bits"], wanted["frac"])
        assert tensor.to_bytes() == unhex(wanted["elements"])
        assert tensor.root() == unhex(wanted["tensor_root"])


@pytest.mark.parametrize(
    "case", cases("state"), ids=lambda case: f"{len(case['tensors'])} {case['tensors'][0]['name']}"
)
def test_tensor_and_state_roots_are_those_of_the_written_formula(case: dict[str, Any]) -> None:
    leaves = []
    for tensor in case["tensors"]:
        elements = unhex(tensor["elements"])
        elements_root = merkle_root([elements[start : start + 1024] for start in range(0, len(elements), 1024)])
        shape = tensor["shape"]
        words = [5 * 32, tensor["bits"], tensor["frac"] % 2**256, int.from_bytes(elements_root), len(shape), *shape]
        root = keccak(tag("avenue.tensor.v1") + b"".join(word.to_bytes(32, "big") for word in words))
        assert root == unhex(tensor["tensor_root"])
        leaves.append(tag(tensor["name"]) + root)
    assert merkle_root(leaves) == unhex(case["state_root"])


@pytest.mark.parametrize("case", cases("opcodes"), ids=lambda case: f"{case['name']} {case['attributes']}")
def test_definitions_rules_and_kernels_give_the_golden_results(case: dict[str, Any]) -> None:
    opcode = Opcode(case["opcode"])
    assert opcode.name.lower() == case["name"]
    operands, attributes = [array(given) for given in case["operands"]], tuple(int(x) for x in case["attributes"])
    wanted: IntArray | Overflow
    if "overflow" in case:
        wanted = Overflow(int(case["overflow"]["element"]), int(case["overflow"]["value"]))
    else:
        wanted = array(case["result"])
    infos = tuple(info_of(operand, constant=opcode is Opcode.LOOKUP) for operand in operands)
    result = infer(opcode, infos, attributes)
    assert [result.lo, result.hi] == [int(bound) for bound in case["result_range"]]
    assert asked(lambda: define(opcode, operands, attributes)) == wanted
    buffers, call = [Buffer(to_torch(operand)) for operand in operands], Call(attributes, infos, result)
    assert asked(lambda: from_torch(KERNELS[opcode](buffers, call).int64)) == wanted


def test_every_opcode_has_a_golden_vector() -> None:
    assert {case["opcode"] for case in cases("opcodes")} == set(Opcode)


@pytest.mark.parametrize("case", cases("programs"), ids=lambda case: str(case["name"]))
def test_programs_have_the_golden_bytes_and_run_through_the_golden_states(case: dict[str, Any]) -> None:
    encoded = unhex(case["program"])
    program = decode_program(encoded)
    assert encode_program(program) == encoded
    assert program.root() == root_of_encoding(encoded) == unhex(case["program_root"])
    state, data = decode_state(unhex(case["state"])), decode_state(unhex(case["data"]))
    assert state_root(data) == unhex(case["data_root"])
    run = run_unit(program, state, data, int(case["seed"]), case["steps"], case["checkpoint_interval"])
    assert list(run.checkpoint_roots) == [unhex(root) for root in case["checkpoint_roots"]]


@pytest.mark.parametrize("case", cases("programs"), ids=lambda case: str(case["name"]))
def test_the_reference_interpreter_ends_in_the_golden_state(case: dict[str, Any]) -> None:
    program = decode_program(unhex(case["program"]))
    state, data = decode_state(unhex(case["state"])), decode_state(unhex(case["data"]))
    integers = {name: from_torch(tensor.values) for name, tensor in state.items()}
    shard = {name: from_torch(tensor.values) for name, tensor in data.items()}
    reference = reference_run(program, integers, shard, int(case["seed"]), case["steps"])
    final = {name: type(tensor)(tensor.type, to_torch(reference[name])) for name, tensor in state.items()}
    assert state_root(final) == unhex(case["checkpoint_roots"][-1])


@pytest.mark.parametrize("case", cases("permutation"), ids=lambda case: f"{case['samples']} samples")
def test_batch_order_is_the_golden_one(case: dict[str, Any]) -> None:
    seed, t, n, batch = int(case["seed"]), case["t"], case["samples"], case["batch"]
    assert permutation.batch_indices(seed, t, n, batch) == case["indices"]
    out = np.empty(batch, dtype=np.int64)
    permutation_bulk.fill_indices(np.uint64(seed), t * batch, n, np.uint64(permutation.half_bits(n)), out)
    assert out.tolist() == case["indices"]


@pytest.mark.parametrize("case", cases("initial"), ids=lambda case: f"{case['name']} {case['shape']}")
def test_initial_values_are_the_golden_ones(case: dict[str, Any]) -> None:
    type_ = TensorType(tuple(case["shape"]), case["bits"], case["frac"])
    asked = (int(case["seed"]), case["name"], type_)
    variance = (case["variance"][0], case["variance"][1])
    assert list(normal_definition(*asked, variance=variance).values) == case["values"]
    assert normal(*asked, variance=variance).values.reshape(-1).tolist() == case["values"]


def test_the_files_are_what_the_script_writes_today() -> None:
    for name, text in make_vectors.files().items():
        assert (VECTORS / name).read_text() == text, f"{name} is not what scripts/make_vectors.py makes"
