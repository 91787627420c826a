"""proofs.hashing: published answers, and a bulk path that can't differ from the plain one unnoticed."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from proofs import hashing


def test_keccak_gives_the_published_digest_of_nothing() -> None:
    assert hashing.keccak(b"").hex() == "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"


def test_tag_is_the_hash_of_its_utf8_text() -> None:
    assert hashing.tag("avenue.tensor.v1") == hashing.keccak(b"avenue.tensor.v1")


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("tail", [0, 1, 127])
def test_leaf_hashes_are_those_of_the_pieces_on_both_paths(
    compiled: bool, tail: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hashing._bulk() if compiled else hashing._hash_chunks_slowly
    assert compiled == (path is not hashing._hash_chunks_slowly), "numba should work where the tests run"
    monkeypatch.setattr(hashing, "_bulk", cache(lambda: path))
    data = bytes(np.random.default_rng(tail).integers(0, 256, hashing.BULK_FROM * 136 - tail, dtype=np.uint8))
    pieces = [data[start : start + 136] for start in range(0, len(data), 136)]
    got = hashing.leaf_hashes(data, 136)
    assert [row.tobytes() for row in got] == [hashing.keccak(b"\x00" + piece) for piece in pieces]


@pytest.mark.parametrize("chunk", [1, 64, 134, 135, 136, 271, 1024])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 23])
@pytest.mark.parametrize("tail", [1, 64, 135, 1024])
def test_eight_at_a_time_hash_as_one_at_a_time(chunk: int, count: int, tail: int) -> None:
    size = (count - 1) * chunk + min(tail, chunk)
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    got, want = np.zeros((count, 32), dtype=np.uint8), np.zeros((count, 32), dtype=np.uint8)
    hashing._bulk()(data, chunk, 0, 0, count, got)
    hashing._hash_chunks_slowly(data, chunk, 0, 0, count, want)
    assert np.array_equal(got, want)


def test_a_range_of_pieces_leaves_the_other_rows_alone() -> None:
    data = np.arange(2048, dtype=np.uint8)
    whole, part = np.zeros((32, 32), dtype=np.uint8), np.zeros((32, 32), dtype=np.uint8)
    hashing._bulk()(data, 64, 0, 0, 32, whole)
    hashing._bulk()(data, 64, 0, 5, 19, part)
    assert np.array_equal(part[5:19], whole[5:19])
    assert not part[:5].any()
    assert not part[19:].any()


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_hash_the_same(threads: int) -> None:
    data = np.random.default_rng(threads).integers(0, 256, 4 * hashing.WORTH_SHARING_BYTES + 5, dtype=np.uint8)
    assert np.array_equal(hashing.leaf_hashes(data, 1024, threads=threads), hashing.leaf_hashes(data, 1024))


def test_little_to_hash_does_not_load_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    @cache
    def refuse() -> object:
        raise AssertionError("loaded for nothing")

    monkeypatch.setattr(hashing, "_bulk", refuse)
    assert hashing.leaf_hashes(bytes(hashing.BULK_FROM - 1), 1).shape == (hashing.BULK_FROM - 1, 32)
    with pytest.raises(AssertionError):
        hashing.leaf_hashes(bytes(hashing.BULK_FROM), 1)


def test_an_empty_buffer_has_no_leaves() -> None:
    assert hashing.leaf_hashes(b"", 1024).shape == (0, 32)


def test_chunks_of_no_bytes_and_odd_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="chunk of 0 bytes"):
        hashing.leaf_hashes(b"abc", 0)
    with pytest.raises(ValueError, match="can't be paired"):
        hashing.node_hashes(np.zeros((3, 32), dtype=np.uint8))


def test_known_answers_catch_a_hash_function_that_is_wrong_in_one_bit() -> None:
    def wrong_once(buffer: object, chunk: int, prefix: int, first: int, last: int, out: hashing.Digests) -> None:
        hashing._hash_chunks_slowly(np.asarray(buffer), chunk, prefix, first, last, out)
        out[-1, 31] ^= chunk == 1024

    assert hashing.answers_known_questions(hashing._hash_chunks_slowly)
    assert not hashing.answers_known_questions(wrong_once)


def test_a_failed_known_answer_falls_back_to_eth_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "answers_known_questions", lambda candidate: False)
    assert hashing._bulk.__wrapped__() is hashing._hash_chunks_slowly


@pytest.mark.parametrize("error", [ImportError("no numba"), RuntimeError("no locator available for the cache")])
def test_without_a_working_numba_eth_hash_does_the_work(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> object:
        raise error

    monkeypatch.setattr(hashing, "import_module", refuse)
    assert hashing._bulk.__wrapped__() is hashing._hash_chunks_slowly


def test_hashing_merkle_results_and_blob_never_import_torch() -> None:
    program = (
        "import sys, proofs.hashing, proofs.merkle, proofs.results, proofs.blob;"
        "sys.exit('torch' in sys.modules or 'numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
