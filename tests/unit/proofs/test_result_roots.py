"""proofs.results and proofs.merkle against the golden vectors that the Solidity tests read too."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from proofs import merkle, results
from proofs.hashing import keccak, tag
from tests.support.vectors import cases, unhex


@pytest.mark.parametrize("case", cases("merkle"), ids=lambda case: f"{len(case['leaves'])} leaves")
def test_merkle_roots_and_proofs_are_the_golden_ones(case: dict[str, Any]) -> None:
    leaves = [unhex(leaf) for leaf in case["leaves"]]
    tree = merkle.MerkleTree.of(leaves)
    assert tree.root == unhex(case["root"])
    for index, leaf in enumerate(leaves):
        proof = [unhex(sibling) for sibling in case["proofs"][index]]
        assert tree.proof(index) == proof
        assert merkle.verify(tree.root, len(leaves), index, leaf, proof)


def test_a_tree_of_three_is_the_one_written_out_by_hand() -> None:
    a, b, c = (keccak(b"\x00" + leaf) for leaf in (b"a", b"b", b"c"))
    top = keccak(b"\x01" + keccak(b"\x01" + a + b) + keccak(b"\x01" + c + keccak(b"\x02")))
    assert merkle.merkle_root([b"a", b"b", b"c"]) == keccak(b"\x03" + (3).to_bytes(8, "big") + top)


def test_a_tree_without_leaves_is_refused() -> None:
    with pytest.raises(merkle.MerkleError, match="0 leaves"):
        merkle.merkle_root([])
    with pytest.raises(merkle.MerkleError, match="no leaf 2"):
        merkle.MerkleTree.of([b"a", b"b"]).proof(2)


@pytest.mark.parametrize("case", cases("results"), ids=lambda case: f"unit {case['unit']}")
def test_result_hashes_are_the_golden_ones(case: dict[str, Any]) -> None:
    roots = [unhex(root) for root in case["checkpoint_roots"]]
    assert results.checkpoints_root(roots) == unhex(case["checkpoints_root"])
    proof = results.checkpoint_proof(roots, len(roots) - 1)
    assert proof == [unhex(sibling) for sibling in case["proof"]]
    assert merkle.verify(results.checkpoints_root(roots), len(roots), len(roots) - 1, roots[-1], proof)
    result = results.result_root(
        task=unhex(case["task"]),
        unit=int(case["unit"]),
        node=int(case["node"]),
        input_state_root=unhex(case["input_state_root"]),
        data_root=unhex(case["data_root"]),
        program_root=unhex(case["program_root"]),
        steps=int(case["steps"]),
        checkpoints_root=unhex(case["checkpoints_root"]),
    )
    assert result == unhex(case["result_root"])
    assert results.commitment(result, unhex(case["salt"])) == unhex(case["commitment"])
    assert results.unit_seed(int(case["seed"]), int(case["shard"])) == int(case["unit_seed"])
    finals = [unhex(root) for root in case["shard_final_roots"]]
    assert results.aggregation_data_root(finals) == unhex(case["aggregation_data_root"])


def test_a_commitment_is_the_hash_of_three_words() -> None:
    root, salt = bytes(range(32)), bytes(range(32, 64))
    assert results.commitment(root, salt) == keccak(tag("avenue.commitment.v1") + root + salt)


@pytest.mark.parametrize(("steps", "interval", "count"), [(1, 1, 2), (10, 5, 3), (11, 5, 4), (4, 5, 2)])
def test_checkpoints_are_the_input_and_one_per_begun_interval(steps: int, interval: int, count: int) -> None:
    assert results.checkpoint_count(steps, interval) == count


def test_a_root_that_is_not_32_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 32 bytes"):
        results.commitment(b"short", bytes(32))
    with pytest.raises(ValueError, match="expected 32 bytes"):
        results.checkpoints_root([bytes(31)])
    with pytest.raises(ValueError, match="expected 32 bytes"):
        results.aggregation_data_root([bytes(32), bytes(33)])


def test_a_shard_index_beyond_its_type_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bits"):
        results.unit_seed(1, 2**32)


def test_the_data_root_of_a_task_is_the_tree_over_its_shards() -> None:
    shards = [bytes([i]) * 32 for i in range(3)]
    assert results.data_root(shards) == merkle.merkle_root(shards)
    assert results.data_root(shards) != results.data_root(shards[::-1])


def test_a_tree_over_anything_but_rows_of_32_bytes_is_refused() -> None:
    for wrong in (np.zeros((2, 31), dtype=np.uint8), np.zeros(32, dtype=np.uint8), np.zeros((2, 32), dtype=np.int8)):
        with pytest.raises(merkle.MerkleError, match="not \\[n, 32\\] bytes"):
            merkle.MerkleTree(wrong)  # type: ignore[arg-type]


def test_the_overflow_root_is_the_formula_of_the_protocol_page() -> None:
    """Written out as docs/protocol.md section 1 has it: words of 32 bytes, the value in two's complement."""
    words = [keccak(b"avenue.overflow.v1"), b"\x07" * 32, *(n.to_bytes(32, "big") for n in (5, 17, 2**40))]
    words.append((-4096).to_bytes(32, "big", signed=True))
    root = results.overflow_root(state_root=b"\x07" * 32, step=5, operation=17, element=2**40, value=-4096)
    assert root == keccak(b"".join(words))
    with pytest.raises(ValueError, match="expected 32 bytes"):
        results.overflow_root(state_root=b"\x07" * 31, step=5, operation=17, element=0, value=0)
    with pytest.raises(ValueError):
        results.overflow_root(state_root=b"\x07" * 32, step=2**32, operation=17, element=0, value=0)
