"""Blobs: bytes named by their content, cut into 256 KiB chunks that are each checked on arrival.

docs/protocol.md section 1:

    blob id = H(abi.encode(tag("avenue.blob.v1"), uint256 size, merkle_root(chunks)))

The *index* of a blob is its size and its chunks' leaf hashes. It hashes to the id, so an index from a stranger is
either right or refused, and nothing needs to be stored before that is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from proofs.hashing import keccak, tag
from proofs.merkle import MerkleTree, leaf_hash

CHUNK_BYTES = 256 * 1024


class BlobFormatError(ValueError):
    """An index that no bytes could have, or a chunk that isn't the one the index names."""


@dataclass(frozen=True)
class BlobIndex:
    """Size in bytes (>= 1) and leaf hash of every chunk. Raises BlobFormatError if the two don't fit each other."""

    size: int
    leaves: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if self.size < 1:
            raise BlobFormatError(f"a blob of {self.size} bytes")
        chunks = -(-self.size // CHUNK_BYTES)
        if len(self.leaves) != chunks:
            raise BlobFormatError(f"{len(self.leaves)} leaves for {self.size} bytes, which are {chunks} chunks")
        if any(len(leaf) != 32 for leaf in self.leaves):
            raise BlobFormatError("a leaf hash that isn't 32 bytes")

    @property
    def chunks(self) -> int:
        return len(self.leaves)

    @cached_property
    def blob_id(self) -> bytes:
        hashes = np.frombuffer(b"".join(self.leaves), dtype=np.uint8).reshape(-1, 32)
        return keccak(tag("avenue.blob.v1") + self.size.to_bytes(32, "big") + MerkleTree(hashes).root)

    def chunk_size(self, chunk: int) -> int:
        """Bytes in a chunk: 256 KiB, the last may be shorter. Raises BlobFormatError if there is no such chunk."""
        if not 0 <= chunk < self.chunks:
            raise BlobFormatError(f"no chunk {chunk} in a blob of {self.chunks}")
        return min(CHUNK_BYTES, self.size - chunk * CHUNK_BYTES)


def chunks_of(data: bytes) -> list[bytes]:
    """The bytes cut into 256 KiB, in order."""
    return [data[start : start + CHUNK_BYTES] for start in range(0, len(data), CHUNK_BYTES)]


def index_of(data: bytes) -> BlobIndex:
    """The index of these bytes. Raises BlobFormatError if there are none."""
    return BlobIndex(len(data), tuple(leaf_hash(chunk) for chunk in chunks_of(data)))


def check_chunk(index: BlobIndex, chunk: int, data: bytes) -> None:
    """Returns if `data` is chunk number `chunk`, else raises BlobFormatError. Looks at the length before hashing."""
    expected = index.chunk_size(chunk)
    if len(data) != expected:
        raise BlobFormatError(f"chunk {chunk} has {len(data)} bytes, not {expected}")
    if leaf_hash(data) != index.leaves[chunk]:
        raise BlobFormatError(f"chunk {chunk} does not hash to what the index says")
