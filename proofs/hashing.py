"""Keccak-256, one message at a time or in bulk, and the tags that keep one kind of hash from passing for another.

Bulk hashing runs compiled (proofs/keccak_bulk.py) once there is enough to hash. Before its first use in a process it
must reproduce known answers computed with eth-hash; if it can't be loaded or gets one wrong, eth-hash does the work,
slower.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib import import_module
from itertools import pairwise

import numpy as np
from eth_hash.auto import keccak as _keccak
from numpy.typing import NDArray

Digests = NDArray[np.uint8]
"""Hashes as rows: shape [n, 32]."""

LEAF_PREFIX = 0
NODE_PREFIX = 1

# Below this many messages, calls of 6 to 20 us each are quicker than loading the compiled code. Once loaded, it
# always wins.
BULK_FROM = 256

WORTH_SHARING_BYTES = 2**18
"""What a thread hashes in 0.2 ms: less is not worth its start."""

_HashChunks = Callable[[NDArray[np.uint8], int, int, int, int, Digests], None]
"""(buffer, chunk, prefix, first, last, out): hashes pieces first..last of the buffer into rows first..last of out."""

log = logging.getLogger(__name__)


def keccak(data: bytes) -> bytes:
    """Keccak-256 as Ethereum uses it (padding 0x01), 32 bytes."""
    return _keccak(data)


@cache
def tag(text: str) -> bytes:
    """H(utf8(text)): the 32 bytes that say what a hash is of."""
    return keccak(text.encode())


def leaf_hashes(buffer: bytes | memoryview | NDArray[np.uint8], chunk: int, *, threads: int = 1) -> Digests:
    """H(0x00 || piece) for every `chunk` bytes of the buffer, the last piece may be shorter: [ceil(len / chunk), 32].

    An empty buffer has no leaves. The buffer is read in place. Raises ValueError if chunk < 1.
    """
    return _hash_chunks(np.frombuffer(buffer, dtype=np.uint8), chunk, LEAF_PREFIX, threads)


def node_hashes(level: Digests) -> Digests:
    """H(0x01 || left || right) for every pair of rows: [2n, 32] -> [n, 32]. Raises ValueError if one is left over."""
    if level.shape[0] % 2:
        raise ValueError(f"a level of {level.shape[0]} hashes can't be paired")
    return _hash_chunks(np.ascontiguousarray(level).reshape(-1), 64, NODE_PREFIX)


def _hash_chunks(buffer: NDArray[np.uint8], chunk: int, prefix: int, threads: int = 1) -> Digests:
    if chunk < 1:
        raise ValueError(f"a chunk of {chunk} bytes")
    out = np.empty((-(-buffer.size // chunk), 32), dtype=np.uint8)
    loaded = _bulk.cache_info().currsize > 0
    hash_chunks = _bulk() if loaded or out.shape[0] >= BULK_FROM else _hash_chunks_slowly
    parts = max(1, min(threads, buffer.size // WORTH_SHARING_BYTES))
    ends = [out.shape[0] * part // parts for part in range(parts + 1)]
    others = [
        _pool(parts - 1).submit(hash_chunks, buffer, chunk, prefix, first, last, out)
        for first, last in pairwise(ends[1:])
    ]
    hash_chunks(buffer, chunk, prefix, 0, ends[1], out)
    for other in others:
        other.result()
    return out


@cache
def _pool(helpers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(helpers, thread_name_prefix="keccak")


def _hash_chunks_slowly(
    buffer: NDArray[np.uint8], chunk: int, prefix: int, first: int, last: int, out: Digests
) -> None:
    start = bytes([prefix])
    for row in range(first, last):
        digest = keccak(start + buffer[row * chunk : (row + 1) * chunk].tobytes())
        out[row] = np.frombuffer(digest, dtype=np.uint8)


@cache
def _bulk() -> _HashChunks:
    """The compiled function if it answers as eth-hash does here and now, else the slow one."""
    try:
        compiled: _HashChunks = import_module("proofs.keccak_bulk").hash_chunks
    except (ImportError, RuntimeError) as error:  # numba raises RuntimeError where it finds no place for its cache
        log.warning("numba can't be used (%s): hashing with eth-hash, about 100 times slower", error)
        return _hash_chunks_slowly
    if answers_known_questions(compiled):
        return compiled
    log.warning("compiled keccak is wrong on this machine: hashing with eth-hash, about 100 times slower")
    return _hash_chunks_slowly


def answers_known_questions(candidate: _HashChunks) -> bool:
    """Whether `candidate` agrees with eth-hash on messages around every block edge and on both prefixes."""
    message = (np.arange(2100, dtype=np.int64) * 167 % 251).astype(np.uint8)
    for chunk, prefix in (
        (64, NODE_PREFIX),
        (20, LEAF_PREFIX),
        (134, LEAF_PREFIX),
        (135, LEAF_PREFIX),
        (136, LEAF_PREFIX),
        (1024, LEAF_PREFIX),
    ):
        got = np.zeros((-(-message.size // chunk), 32), dtype=np.uint8)
        want = np.empty_like(got)
        candidate(message, chunk, prefix, 0, got.shape[0], got)
        _hash_chunks_slowly(message, chunk, prefix, 0, want.shape[0], want)
        if not np.array_equal(got, want):
            return False
    return True
