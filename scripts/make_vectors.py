"""Regenerates the golden vectors that `proofs` owns in tests/vectors/: run it after a deliberate change of a format.

A diff in these files means that results of today no longer verify tomorrow: it needs a new version tag, not just a new
file. Bytes are 0x-hex; integers are JSON numbers below 2^53, decimal strings from there on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proofs import results
from proofs.hashing import keccak
from proofs.merkle import MerkleTree

VECTORS = Path(__file__).parent.parent / "tests" / "vectors"

LEAF_COUNTS = (1, 2, 3, 4, 5, 7, 8, 13, 33)


def main() -> None:
    VECTORS.mkdir(parents=True, exist_ok=True)
    for name, cases in (("merkle", merkle_cases()), ("results", result_cases())):
        text = json.dumps({"cases": cases}, indent=1, sort_keys=False)
        (VECTORS / f"{name}.json").write_text(text + "\n")
        print(f"{name}.json: {len(cases)} cases")


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


def hex_list(values: Sequence[bytes]) -> list[str]:
    return [hexed(value) for value in values]


if __name__ == "__main__":
    main()
