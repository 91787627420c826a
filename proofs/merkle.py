"""Keccak Merkle trees whose root binds the number of leaves, and with it the depth (docs/protocol.md section 1).

    leaf(d) = H(0x00 || d)    node(l, r) = H(0x01 || l || r)    EMPTY = H(0x02)    root = H(0x03 || uint64(n) || top)

The leaf level is filled with EMPTY up to a power of two. contracts/libraries/MerkleLib.sol is the same in Solidity;
tests/vectors/merkle.json ties them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from proofs.hashing import Digests, keccak, leaf_hashes, node_hashes

EMPTY = keccak(b"\x02")

MAX_LEAVES = 2**64 - 1


class MerkleError(ValueError):
    """A tree without leaves, or a leaf that the tree does not have."""


def leaf_hash(leaf: bytes) -> bytes:
    """H(0x00 || leaf)."""
    return keccak(b"\x00" + leaf)


def depth_of(count: int) -> int:
    """Levels between the leaves and the top: ceil(log2 count). Raises MerkleError for count < 1."""
    if not 1 <= count <= MAX_LEAVES:
        raise MerkleError(f"a tree of {count} leaves")
    return (count - 1).bit_length()


class MerkleTree:
    """A tree over leaf hashes ([n, 32] uint8, n >= 1), every level kept so that proofs are look-ups."""

    def __init__(self, leaf_hashes: Digests) -> None:
        if leaf_hashes.ndim != 2 or leaf_hashes.shape[1] != 32 or leaf_hashes.dtype != np.uint8:
            raise MerkleError(
                f"leaf hashes of shape {leaf_hashes.shape} and type {leaf_hashes.dtype}, not [n, 32] bytes"
            )
        self.count = leaf_hashes.shape[0]
        depth = depth_of(self.count)
        self.levels = [leaf_hashes]
        for height in range(depth):
            level = self.levels[-1]
            if level.shape[0] % 2:
                level = np.concatenate([level, np.frombuffer(_empty(height), dtype=np.uint8)[None]])
                self.levels[-1] = level
            self.levels.append(node_hashes(level))

    @classmethod
    def of(cls, leaves: Sequence[bytes]) -> MerkleTree:
        """The tree over leaves given as bytes of any length."""
        length = len(leaves[0]) if leaves else 0
        if length and all(len(leaf) == length for leaf in leaves):
            return cls(leaf_hashes(b"".join(leaves), length))
        hashes = b"".join(leaf_hash(leaf) for leaf in leaves)
        return cls(np.frombuffer(hashes, dtype=np.uint8).reshape(-1, 32))

    @property
    def depth(self) -> int:
        return len(self.levels) - 1

    @property
    def root(self) -> bytes:
        """H(0x03 || uint64(n) || top)."""
        return _bind(self.count, self.levels[-1][0].tobytes())

    def proof(self, index: int) -> list[bytes]:
        """The `depth` siblings of leaf `index` from the bottom up. Raises MerkleError if there is no such leaf."""
        if not 0 <= index < self.count:
            raise MerkleError(f"no leaf {index} in a tree of {self.count}")
        return [level[(index >> height) ^ 1].tobytes() for height, level in enumerate(self.levels[:-1])]


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Root over leaves given as bytes. Raises MerkleError without leaves."""
    return MerkleTree.of(leaves).root


def verify(root: bytes, count: int, index: int, leaf: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `leaf` is leaf number `index` of the tree of `count` leaves with this root. Never raises on bad input."""
    if not (1 <= count <= MAX_LEAVES and 0 <= index < count):
        return False
    if len(proof) != depth_of(count) or any(len(sibling) != 32 for sibling in proof):
        return False
    node = leaf_hash(leaf)
    for height, sibling in enumerate(proof):
        pair = sibling + node if index >> height & 1 else node + sibling
        node = keccak(b"\x01" + pair)
    return _bind(count, node) == root


@cache
def _empty(height: int) -> bytes:
    """What stands for an absent right sibling: the root of a subtree of 2^height EMPTY leaves."""
    return EMPTY if height == 0 else keccak(b"\x01" + 2 * _empty(height - 1))


def _bind(count: int, top: bytes) -> bytes:
    return keccak(b"\x03" + count.to_bytes(8, "big") + top)
