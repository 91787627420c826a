"""Regenerates the golden vectors that `proofs` owns in tests/vectors/: run it after a deliberate change of a format.

A diff in these files means that results of today no longer verify tomorrow: it needs a new version tag, not just a new
file. Bytes are 0x-hex; integers are JSON numbers below 2^53, decimal strings from there on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from proofs import results
from proofs.exact.definitions import IntArray
from proofs.exact.encoding import encode_program
from proofs.exact.execute import run_unit
from proofs.exact.initialise import normal_definition, zeros
from proofs.exact.known_answers import QUESTIONS, Question, asked, info_of
from proofs.exact.opcodes import Opcode, define, infer
from proofs.exact.overflow import Overflow
from proofs.exact.permutation import batch_indices, mix64
from proofs.exact.program import Program
from proofs.exact.state import State, encode_state, state_root
from proofs.exact.tensor import ExactTensor, TensorType
from proofs.hashing import keccak
from proofs.merkle import MerkleTree
from tests.support.programs import linear_regression, mlp, mlp_data, mlp_state, regression_data

VECTORS = Path(__file__).parent.parent / "tests" / "vectors"

LEAF_COUNTS = (1, 2, 3, 4, 5, 7, 8, 13, 33)


def main() -> None:
    VECTORS.mkdir(parents=True, exist_ok=True)
    for name, text in files().items():
        (VECTORS / name).write_text(text)
        print(f"{name}: {len(text):,} bytes")


def files() -> dict[str, str]:
    """Name and content of every file. One case a line, so that a diff shows which cases changed."""
    cases = {
        "merkle": merkle_cases(),
        "results": result_cases(),
        "state": state_cases(),
        "opcodes": opcode_cases(),
        "programs": program_cases(),
        "permutation": permutation_cases(),
        "initial": initial_cases(),
    }
    return {f"{name}.json": _render(listed) for name, listed in cases.items()}


def _render(cases: list[dict[str, Any]]) -> str:
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    return f'{{"cases": [\n{lines}\n]}}\n'


def hexed(value: bytes) -> str:
    return "0x" + value.hex()


def number(value: int) -> int | str:
    return value if abs(value) < 2**53 else str(value)


def some_bytes(label: str, length: int = 32) -> bytes:
    """Bytes that look random and are the same on every machine."""
    return b"".join(keccak(f"{label}/{block}".encode()) for block in range(-(-length // 32)))[:length]


def merkle_cases() -> list[dict[str, Any]]:
    """Leaves of every awkward length (none, the hash's block edges, a whole 1 KiB) in trees of every awkward count."""
    lengths = (32, 0, 1, 64, 135, 136, 1024)
    cases = []
    for count in LEAF_COUNTS:
        leaves = [some_bytes(f"leaf {count}.{i}", 32 if count > 8 else lengths[i % len(lengths)]) for i in range(count)]
        tree = MerkleTree.of(leaves)
        proofs = [[hexed(sibling) for sibling in tree.proof(i)] for i in range(count)]
        cases.append({"leaves": [hexed(leaf) for leaf in leaves], "root": hexed(tree.root), "proofs": proofs})
    return cases


def result_cases() -> list[dict[str, Any]]:
    extremes = [(0, 1, 0, 0), (7, 3, 1, 2), (2**32 - 1, 2**64 - 1, 2**64 - 1, 2**32 - 1), (41, 2**53, 2**53 + 1, 65534)]
    return [
        result_case(f"case {i}", unit, node, seed, shard, checkpoints=i + 2, shards=max(1, 3 * i))
        for i, (unit, node, seed, shard) in enumerate(extremes)
    ]


def result_case(
    label: str, unit: int, node: int, seed: int, shard: int, *, checkpoints: int, shards: int
) -> dict[str, Any]:
    roots = [some_bytes(f"{label} checkpoint {i}") for i in range(checkpoints)]
    finals = [some_bytes(f"{label} shard {i}") for i in range(shards)]
    steps = 1 if unit == 0 else 2**32 - 1 if unit == 2**32 - 1 else 100 * unit
    named = {name: some_bytes(f"{label} {name}") for name in ("task", "data_root", "program_root", "salt")}
    checkpoints_root = results.checkpoints_root(roots)
    result = results.result_root(
        task=named["task"],
        unit=unit,
        node=node,
        input_state_root=roots[0],
        data_root=named["data_root"],
        program_root=named["program_root"],
        steps=steps,
        checkpoints_root=checkpoints_root,
    )
    return {
        "task": hexed(named["task"]),
        "unit": number(unit),
        "node": number(node),
        "input_state_root": hexed(roots[0]),
        "data_root": hexed(named["data_root"]),
        "program_root": hexed(named["program_root"]),
        "steps": number(steps),
        "checkpoint_roots": hex_list(roots),
        "checkpoints_root": hexed(checkpoints_root),
        "proof": hex_list(results.checkpoint_proof(roots, len(roots) - 1)),
        "result_root": hexed(result),
        "salt": hexed(named["salt"]),
        "commitment": hexed(results.commitment(result, named["salt"])),
        "seed": number(seed),
        "shard": number(shard),
        "unit_seed": number(results.unit_seed(seed, shard)),
        "shard_final_roots": hex_list(finals),
        "aggregation_data_root": hexed(results.aggregation_data_root(finals)),
    }


def state_cases() -> list[dict[str, Any]]:
    """Every element width, both ends of every range, a scalar, shapes of several leaves, names out of order."""
    named = {
        "w": spread(TensorType((37, 29), 12, 8)),
        "b": spread(TensorType((1, 300), 8, -3)),
        "é": spread(TensorType((2, 3, 4, 5), 32, 24)),
        "t": spread(TensorType((), 40)),
        "bit": spread(TensorType((3,), 1)),
        "wide": spread(TensorType((129,), 64, 63)),
        "exactly/1KiB": spread(TensorType((512,), 16)),
    }
    states: list[dict[str, ExactTensor]] = [{name: tensor} for name, tensor in named.items()]
    states.append(named)
    return [
        {
            "tensors": [
                {
                    "name": name,
                    "shape": list(state[name].type.shape),
                    "bits": state[name].type.bits,
                    "frac": state[name].type.frac,
                    "elements": hexed(state[name].to_bytes()),
                    "tensor_root": hexed(state[name].root()),
                }
                for name in sorted(state, key=str.encode)
            ],
            "encoding": hexed(encode_state(state)),
            "state_root": hexed(state_root(state)),
        }
        for state in states
    ]


def spread(type_: TensorType) -> ExactTensor:
    """Elements over the whole range of a type, its ends first."""
    values = [type_.lo + mix64(i) % (type_.hi - type_.lo + 1) for i in range(type_.elements)]
    values[: min(2, len(values))] = [type_.lo, type_.hi][: len(values)]
    return ExactTensor(type_, torch.tensor(values, dtype=torch.int64).reshape(type_.shape))


def opcode_cases() -> list[dict[str, Any]]:
    """The questions that every kernel is asked at start-up, with the answers of the definitions."""
    return [opcode_case(opcode, question) for opcode in Opcode for question in QUESTIONS[opcode]]


def opcode_case(opcode: Opcode, question: Question) -> dict[str, Any]:
    infos = [info_of(operand, constant=opcode is Opcode.LOOKUP) for operand in question.operands]
    result = infer(opcode, infos, question.attributes)
    answer = asked(lambda: define(opcode, question.operands, question.attributes))
    return {
        "opcode": int(opcode),
        "name": opcode.name.lower(),
        "operands": [array(operand) for operand in question.operands],
        "attributes": [number(attribute) for attribute in question.attributes],
        **(
            {"overflow": {"element": answer.element, "value": number(answer.value)}}
            if isinstance(answer, Overflow)
            else {"result": array(answer)}
        ),
        "result_range": [number(result.lo), number(result.hi)],
    }


def array(values: IntArray) -> dict[str, Any]:
    return {"shape": list(values.shape), "values": [number(value) for value in values.values]}


def program_cases() -> list[dict[str, Any]]:
    """Whole units: canonical encoding, program root, and the state root after every step."""
    regression, classifier = linear_regression(), mlp(samples=20, widths=(6, 5, 3), batch=7)
    start = {name: zeros(type_) for name, type_ in regression.state_types.items()}
    return [
        program_case("linear regression", regression, start, regression_data(), 2**63 - 1, 5),
        program_case("mlp", classifier, mlp_state(classifier), mlp_data(20, 6, 3), 12345, 5),
    ]


def program_case(name: str, program: Program, state: State, data: State, seed: int, steps: int) -> dict[str, Any]:
    run = run_unit(program, state, data, seed, steps, 1)
    return {
        "name": name,
        "program": hexed(encode_program(program)),
        "program_root": hexed(program.root()),
        "state": hexed(encode_state(state)),
        "data": hexed(encode_state(data)),
        "data_root": hexed(state_root(data)),
        "seed": number(seed),
        "steps": steps,
        "checkpoint_interval": 1,
        "checkpoint_roots": hex_list(run.checkpoint_roots),
    }


def permutation_cases() -> list[dict[str, Any]]:
    """Batches at the start, across the end of an epoch, far out, and of a data set of one."""
    batches = [(0, 0, 10, 10), (1, 0, 10, 10), (2**63 - 1, 6, 1000, 150), (5, 2**31, 60000, 16), (9, 3, 1, 4)]
    return [
        {"seed": number(seed), "t": t, "samples": n, "batch": size, "indices": batch_indices(seed, t, n, size)}
        for seed, t, n, size in batches
    ]


def initial_cases() -> list[dict[str, Any]]:
    """Initial weights: two tensors of one seed, and one whose type is too narrow for its variance."""
    asked = [
        (7, "w0", TensorType((4, 5), 32, 24), (2, 5)),
        (7, "w1", TensorType((7,), 16, 12), (1, 100)),
        (2**63 - 1, "w0", TensorType((2, 2, 3), 4, 2), (9, 1)),
    ]
    return [
        {
            "seed": number(seed),
            "name": name,
            "shape": list(type_.shape),
            "bits": type_.bits,
            "frac": type_.frac,
            "variance": list(variance),
            "values": list(normal_definition(seed, name, type_, variance=variance).values),
        }
        for seed, name, type_, variance in asked
    ]


def hex_list(values: Sequence[bytes]) -> list[str]:
    return [hexed(value) for value in values]


if __name__ == "__main__":
    main()
