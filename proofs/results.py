"""The hashes by which a result is known on chain, from checkpoints to the salted commitment.

The formulas are in docs/protocol.md section 1. Arguments that don't fit their Solidity type (a root that isn't 32
bytes, a negative step count) raise ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence

from eth_abi.abi import encode
from eth_abi.exceptions import EncodingError

from proofs.hashing import keccak, tag
from proofs.merkle import MerkleTree, merkle_root

_RESULT_TYPES = ["bytes32", "bytes32", "uint32", "uint64", "bytes32", "bytes32", "bytes32", "uint32", "bytes32"]


def checkpoint_count(steps: int, interval: int) -> int:
    """State roots that a unit commits to, the input state's included: 1 + ceil(steps / interval)."""
    if steps < 1 or interval < 1:
        raise ValueError(f"{steps} steps with a checkpoint every {interval}")
    return 1 + -(-steps // interval)


def checkpoints_root(roots: Sequence[bytes]) -> bytes:
    """Merkle root over a unit's state roots, the input state first, the final state last."""
    return merkle_root([_bytes32(root) for root in roots])


def checkpoint_proof(roots: Sequence[bytes], index: int) -> list[bytes]:
    """Merkle path of the state root at `index`; the last one (`len(roots) - 1`) is what a reveal carries."""
    return MerkleTree.of([_bytes32(root) for root in roots]).proof(index)


def data_root(shard_roots: Sequence[bytes]) -> bytes:
    """`dataRoot` of a task: Merkle root over its shards' data roots."""
    return merkle_root([_bytes32(root) for root in shard_roots])


def aggregation_data_root(shard_final_roots: Sequence[bytes]) -> bytes:
    """What stands for the data root in an aggregation unit: the shards' final state roots, in shard order."""
    return _hash(["bytes32", "bytes32[]"], [tag("avenue.aggregation.v1"), list(shard_final_roots)])


def overflow_root(*, state_root: bytes, step: int, operation: int, element: int, value: int) -> bytes:
    """What stands for a state in which there is none: after `step` steps from a unit's start the state was
    `state_root`, and in the next step element `element` of the operand of operation `operation`, a CHECK, was `value`.
    """
    types = ["bytes32", "bytes32", "uint32", "uint32", "uint64", "int64"]
    return _hash(types, [tag("avenue.overflow.v1"), state_root, step, operation, element, value])


def result_root(
    *,
    task: bytes,
    unit: int,
    node: int,
    input_state_root: bytes,
    data_root: bytes,
    program_root: bytes,
    steps: int,
    checkpoints_root: bytes,
) -> bytes:
    """All that a node claims about a unit, in 32 bytes. Bound to the node: a copied hash earns nothing."""
    values = [
        tag("avenue.result.v1"),
        task,
        unit,
        node,
        input_state_root,
        data_root,
        program_root,
        steps,
        checkpoints_root,
    ]
    return _hash(_RESULT_TYPES, values)


def commitment(result_root: bytes, salt: bytes) -> bytes:
    """What goes on chain before the reveal. The salt (32 bytes) keeps the result unguessable until then."""
    return _hash(["bytes32"] * 3, [tag("avenue.commitment.v1"), result_root, salt])


def unit_seed(seed: int, shard: int) -> int:
    """Seed of a unit's batch order, the same in every round. 63 bits: an element of a signed 64-bit tensor."""
    digest = _hash(["bytes32", "uint64", "uint32"], [tag("avenue.seed.v1"), seed, shard])
    return int.from_bytes(digest[-8:], "big") >> 1


def _hash(types: list[str], values: list[object]) -> bytes:
    for kind, value in zip(types, values, strict=True):
        for item in value if isinstance(value, list) else [value] if kind == "bytes32" else []:
            _bytes32(item)
    try:
        return keccak(encode(types, values))
    except EncodingError as error:
        raise ValueError(str(error)) from error


def _bytes32(value: object) -> bytes:
    # eth-abi pads shorter bytes with zeros; a root of another length is always a mistake.
    if not isinstance(value, bytes) or len(value) != 32:
        raise ValueError(f"expected 32 bytes, got {value!r}")
    return value
