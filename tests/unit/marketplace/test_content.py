"""The content store: whole chunks or none, through bad bytes, full disks, quotas and restarts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from marketplace.content import ContentStore, StorageFullError, StoreLimits, UnknownBlobError
from proofs.blob import CHUNK_BYTES, chunks_of, index_of
from protocol.errors import BlobError

ALICE, BOB = "0x" + "a1" * 20, "0x" + "b0" * 20
LIMITS = StoreLimits(
    max_blob_bytes=8 * CHUNK_BYTES,
    quota_bytes=20 * CHUNK_BYTES,
    sender_quota_bytes=10 * CHUNK_BYTES,
    incomplete_ttl_s=3600,
)
DATA = b"\x01" * CHUNK_BYTES + b"\x02" * CHUNK_BYTES + b"tail"  # three chunks, the last of 4 bytes
INDEX = index_of(DATA)
CHUNKS = chunks_of(DATA)


def blob_of(seed: int, chunks: int) -> bytes:
    return bytes([seed]) * (CHUNK_BYTES * chunks)


def files_of(root: Path) -> set[str]:
    return {path.name for path in root.rglob("*") if path.is_file()}


def test_blob_is_whole_after_its_chunks_arrived_in_any_order(tmp_path: Path) -> None:
    store = ContentStore(tmp_path, LIMITS)

    assert store.announce(INDEX, ALICE) == [0, 1, 2]
    for position in (2, 0, 1):
        store.put_chunk(INDEX.blob_id, position, CHUNKS[position])

    assert store.missing(INDEX.blob_id) == []
    assert b"".join(store.read_chunk(INDEX.blob_id, i) for i in range(3)) == DATA
    assert store.read(INDEX.blob_id, max_size=len(DATA)) == DATA


def test_uploading_again_changes_nothing(tmp_path: Path) -> None:
    store = ContentStore(tmp_path, LIMITS)
    for _ in range(2):
        store.announce(INDEX, ALICE)
        for position, chunk in enumerate(CHUNKS):
            store.put_chunk(INDEX.blob_id, position, chunk)
    store.announce(INDEX, BOB)

    assert store.blob_count == 1
    assert store.reserved_bytes == len(DATA)


def test_restart_knows_what_was_stored(tmp_path: Path) -> None:
    before = ContentStore(tmp_path, LIMITS)
    before.announce(INDEX, ALICE)
    before.put_chunk(INDEX.blob_id, 1, CHUNKS[1])

    after = ContentStore(tmp_path, LIMITS)

    assert after.missing(INDEX.blob_id) == [0, 2]
    assert after.reserved_bytes == len(DATA)


def test_restart_clears_what_a_killed_process_left_half_written(tmp_path: Path) -> None:
    store = ContentStore(tmp_path, LIMITS)
    store.announce(INDEX, ALICE)
    folder = next(tmp_path.rglob("index")).parent
    (folder / ".0.chunk.99.1.tmp").write_bytes(b"half")

    ContentStore(tmp_path, LIMITS)

    assert files_of(tmp_path) == {"index"}


@pytest.mark.parametrize(
    ("position", "data"),
    [
        (0, b"\x00" + CHUNKS[0][1:]),
        (0, CHUNKS[0][:-1]),
        (0, CHUNKS[0] + b"\x00"),
        (0, CHUNKS[1]),
        (2, b""),
        (3, CHUNKS[0]),
    ],
    ids=["flipped byte", "truncated", "longer than announced", "another place", "empty", "past the end"],
)
def test_bytes_that_are_not_the_announced_chunk_are_refused(tmp_path: Path, position: int, data: bytes) -> None:
    store = ContentStore(tmp_path, LIMITS)
    store.announce(INDEX, ALICE)

    with pytest.raises(BlobError, match=r"V-11.*chunk"):
        store.put_chunk(INDEX.blob_id, position, data)

    assert files_of(tmp_path) == {"index"}


def test_chunk_of_an_unknown_blob_is_refused(tmp_path: Path) -> None:
    store = ContentStore(tmp_path, LIMITS)
    with pytest.raises(UnknownBlobError):
        store.put_chunk(INDEX.blob_id, 0, CHUNKS[0])
    with pytest.raises(UnknownBlobError):
        store.read_chunk(INDEX.blob_id, 0)


def test_blob_over_the_limit_is_refused_before_anything_is_stored(tmp_path: Path) -> None:
    store = ContentStore(tmp_path, LIMITS)
    with pytest.raises(BlobError, match="V-12"):
        store.announce(index_of(blob_of(1, 8) + b"1"), ALICE)
    assert list(tmp_path.iterdir()) == []


def test_one_sender_cannot_take_all_the_space(tmp_path: Path) -> None:
    store = ContentStore(tmp_path, LIMITS)
    store.announce(index_of(blob_of(1, 8)), ALICE)
    with pytest.raises(StorageFullError, match="S-72"):
        store.announce(index_of(blob_of(2, 3)), ALICE)
    store.announce(index_of(blob_of(2, 3)), BOB)


def test_blobs_of_one_byte_have_an_end_too_and_are_counted_again_after_a_restart(tmp_path: Path) -> None:
    limits = replace(LIMITS, blobs_per_sender=3)
    store = ContentStore(tmp_path, limits)
    for number in range(3):
        store.announce(index_of(bytes([number])), ALICE)
    again = ContentStore(tmp_path, limits)
    with pytest.raises(StorageFullError, match="S-72"):
        again.announce(index_of(b"one more"), ALICE)
    again.announce(index_of(b"one more"), BOB)


def test_abandoned_announcements_give_their_space_back(tmp_path: Path) -> None:
    now = [1000.0]
    store = ContentStore(tmp_path, LIMITS, clock=lambda: now[0])
    whole = index_of(b"whole")
    store.announce(whole, BOB)
    store.put_chunk(whole.blob_id, 0, b"whole")
    for seed, sender in ((1, "0x1"), (2, "0x2")):
        store.announce(index_of(blob_of(seed, 8)), sender)
    with pytest.raises(StorageFullError, match="S-70"):
        store.announce(index_of(blob_of(3, 8)), "0x3")

    now[0] += LIMITS.incomplete_ttl_s + 1
    store.announce(index_of(blob_of(3, 8)), "0x3")

    assert store.read(whole.blob_id, max_size=100) == b"whole"
    assert store.blob_count == 2


def test_full_disk_stores_nothing_and_loses_nothing(tmp_path: Path) -> None:
    """The operating system says ENOSPC in the middle of a chunk: the only thing that is made up here."""
    room = [CHUNK_BYTES + 4000]

    def write(descriptor: int, data: memoryview) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.write(descriptor, data[: min(room[0], 65536)])
        room[0] -= written
        return written

    store = ContentStore(tmp_path, LIMITS, write=write)
    store.announce(INDEX, ALICE)
    store.put_chunk(INDEX.blob_id, 0, CHUNKS[0])
    with pytest.raises(StorageFullError, match="S-70"):
        store.put_chunk(INDEX.blob_id, 1, CHUNKS[1])

    assert files_of(tmp_path) == {"index", "0.chunk"}
    assert store.missing(INDEX.blob_id) == [1, 2]
    assert store.read_chunk(INDEX.blob_id, 0) == CHUNKS[0]

    room[0] = 10 * CHUNK_BYTES
    store.put_chunk(INDEX.blob_id, 1, CHUNKS[1])
    assert store.missing(INDEX.blob_id) == [2]


def test_full_disk_at_the_announcement_leaves_no_blob_behind(tmp_path: Path) -> None:
    def write(_descriptor: int, _data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = ContentStore(tmp_path, LIMITS, write=write)
    with pytest.raises(StorageFullError):
        store.announce(INDEX, ALICE)

    assert files_of(tmp_path) == set()
    with pytest.raises(UnknownBlobError):
        store.find(INDEX.blob_id)


_UNDER_A_FILE_SIZE_LIMIT = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from marketplace.content import ContentStore, StorageFullError, StoreLimits
from proofs.blob import index_of
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
store = ContentStore(Path(sys.argv[1]), StoreLimits(1 << 30, 1 << 30, 1 << 30, 3600))
data = b"x" * 200_000
store.announce(index_of(data), "0x1")
try:
    store.put_chunk(index_of(data).blob_id, 0, data)
except StorageFullError as error:
    print(error.code, sorted(path.name for path in Path(sys.argv[1]).rglob("*") if path.is_file()))
"""


def test_kernel_that_takes_no_more_bytes_is_a_full_disk(tmp_path: Path) -> None:
    """The real thing: the kernel cuts a write short and refuses the rest."""
    answer = subprocess.run(
        [sys.executable, "-c", _UNDER_A_FILE_SIZE_LIMIT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "S-70 ['index']"


def test_index_altered_on_disk_is_noticed_at_the_start(tmp_path: Path) -> None:
    ContentStore(tmp_path, LIMITS).announce(INDEX, ALICE)
    path = next(tmp_path.rglob("index"))
    path.write_bytes(path.read_bytes().replace(b'"size":524292', b'"size":524291'))

    with pytest.raises(BlobError):
        ContentStore(tmp_path, LIMITS)
