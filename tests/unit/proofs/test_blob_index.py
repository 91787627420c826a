"""proofs.blob: an index names exactly one content, and a chunk is checked before it is kept."""

from __future__ import annotations

import pytest

from proofs import blob
from proofs.hashing import keccak, tag
from proofs.merkle import leaf_hash, merkle_root

CONTENT = bytes(range(256)) * 3000  # 768,000 bytes: two whole chunks and a shorter one


def test_blob_id_binds_size_and_chunks() -> None:
    index = blob.index_of(CONTENT)
    root = merkle_root([CONTENT[: 2**18], CONTENT[2**18 : 2**19], CONTENT[2**19 :]])
    assert index.blob_id == keccak(tag("avenue.blob.v1") + len(CONTENT).to_bytes(32, "big") + root)


def test_every_chunk_of_a_blob_passes_and_joins_to_the_content() -> None:
    index = blob.index_of(CONTENT)
    chunks = blob.chunks_of(CONTENT)
    for i, chunk in enumerate(chunks):
        blob.check_chunk(index, i, chunk)
    assert b"".join(chunks) == CONTENT and len(chunks) == index.chunks == 3


def test_a_flipped_bit_a_missing_byte_and_a_misplaced_chunk_are_refused() -> None:
    index = blob.index_of(CONTENT)
    chunks = blob.chunks_of(CONTENT)
    with pytest.raises(blob.BlobFormatError, match="does not hash"):
        blob.check_chunk(index, 1, bytes([chunks[1][0] ^ 1]) + chunks[1][1:])
    with pytest.raises(blob.BlobFormatError, match="not 262144"):
        blob.check_chunk(index, 1, chunks[1][:-1])
    with pytest.raises(blob.BlobFormatError, match="not 243712"):
        blob.check_chunk(index, 2, chunks[2] + b"\x00")
    with pytest.raises(blob.BlobFormatError, match="no chunk 3"):
        blob.check_chunk(index, 3, chunks[0])


@pytest.mark.parametrize("size", [0, -1, 1, 2**18, 2**19 + 1, 2**62])
def test_an_index_whose_size_does_not_fit_its_leaves_is_refused(size: int) -> None:
    with pytest.raises(blob.BlobFormatError):
        blob.BlobIndex(size, (leaf_hash(b"a"), leaf_hash(b"b")))


def test_a_leaf_hash_of_another_length_is_refused() -> None:
    with pytest.raises(blob.BlobFormatError, match="32 bytes"):
        blob.BlobIndex(5, (b"short",))
