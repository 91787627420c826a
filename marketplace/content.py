"""The content store: blobs on disk, one file per 256 KiB chunk, each checked before it is believed to be there.

    <root>/ab/<id>/index        canonical JSON: size, leaves, who announced it, when
    <root>/ab/<id>/<i>.chunk

A file appears by temp + fsync + rename, so that whatever is at its final name is whole and was checked, through any
crash; a disk that fills up leaves no half-written chunk and no lost one. Nothing is in memory that a restart would
lose: the totals are those of the index files. Ids are hashes of what they name, so storing something twice is the
same as storing it once.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from proofs.blob import BlobFormatError, BlobIndex, check_chunk
from protocol.errors import BlobError, StateError
from protocol.json_types import canonical_json, parse_hex, to_hex

_DISK_IS_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""No space, over the user's quota, over the process's file size limit: the same to whoever uploads."""


class StorageFullError(StateError):
    """The gateway cannot take more bytes: its disk is full, or a quota is used up. Nothing half-written stays
    behind."""

    default_code = "S-70"
    default_hint = "upload to another gateway, or ask this one's operator for space; chunks stored so far are kept"


class UnknownBlobError(StateError):
    """No such blob or chunk here."""

    default_code = "S-71"
    default_hint = "its owner has not uploaded it to this gateway (yet)"


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """In bytes, if the name does not say otherwise."""

    max_blob_bytes: int
    quota_bytes: int
    sender_quota_bytes: int
    incomplete_ttl_s: int
    blobs_per_sender: int = 100_000


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """What the index file of a blob says."""

    index: BlobIndex
    announced_by: str
    announced_at: int


def write_whole(path: Path, data: bytes, *, write: Callable[[int, memoryview], int] = os.write) -> None:
    """Creates `path` with `data`, durably and all at once. Raises StorageFullError if the disk has no room.

    `write` is the operating system's; a test passes one that fails.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
        _sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        if error.errno in _DISK_IS_FULL:
            raise StorageFullError(f"no room for {len(data)} bytes") from error
        raise


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class ContentStore:
    """Safe for several threads of one process; one process owns a root."""

    def __init__(
        self,
        root: Path,
        limits: StoreLimits,
        *,
        clock: Callable[[], float] = time.time,
        write: Callable[[int, memoryview], int] = os.write,
    ) -> None:
        self._root = root
        self._limits = limits
        self._clock = clock
        self._write = write
        self._lock = threading.Lock()
        root.mkdir(parents=True, exist_ok=True)
        for stray in root.glob("*/*/.*.tmp"):  # of a process that was killed
            stray.unlink()
        self._blobs: dict[bytes, StoredBlob] = {}
        self._bytes_of: Counter[str] = Counter()
        self._count_of: Counter[str] = Counter()
        for blob in self._scan():
            self._note(blob)

    @property
    def reserved_bytes(self) -> int:
        """Sizes of all announced blobs, stored or not."""
        return self._bytes_of.total()

    @property
    def blob_count(self) -> int:
        return len(self._blobs)

    def announce(self, index: BlobIndex, sender: str) -> list[int]:
        """Makes room for a blob and says which chunks are missing. Idempotent.

        Raises BlobError (V-12) if it is larger than this gateway takes, StorageFullError if a quota or the disk is
        full.
        """
        if index.size > self._limits.max_blob_bytes:
            raise BlobError(
                f"the blob has {index.size} bytes, this gateway takes {self._limits.max_blob_bytes}",
                code="V-12",
                hint="cut the data into more shards, or use a gateway with a higher max_blob_bytes",
            )
        with self._lock:
            if index.blob_id not in self._blobs:
                self._check_quotas(index.size, sender)
                self._create(StoredBlob(index=index, announced_by=sender, announced_at=int(self._clock())))
        return self.missing(index.blob_id)

    def find(self, blob_id: bytes) -> BlobIndex:
        """The index of an announced blob. Raises UnknownBlobError."""
        blob = self._blobs.get(blob_id)
        if blob is None:
            raise UnknownBlobError(f"no blob {to_hex(blob_id)}")
        return blob.index

    def missing(self, blob_id: bytes) -> list[int]:
        """Chunks not stored yet, ascending. Raises UnknownBlobError."""
        index = self.find(blob_id)
        present = {path.name for path in self._directory(blob_id).iterdir()}
        return [i for i in range(index.chunks) if f"{i}.chunk" not in present]

    def put_chunk(self, blob_id: bytes, position: int, data: bytes) -> None:
        """Stores one chunk after checking it against the index. Idempotent.

        Raises UnknownBlobError, BlobError (not the chunk that was announced), StorageFullError.
        """
        index = self.find(blob_id)
        try:
            check_chunk(index, position, data)
        except BlobFormatError as error:
            raise BlobError(f"blob {to_hex(blob_id)}: {error}", code="V-11") from error
        path = self._directory(blob_id) / f"{position}.chunk"
        if not path.exists():
            write_whole(path, data, write=self._write)

    def read_chunk(self, blob_id: bytes, position: int) -> bytes:
        """Raises UnknownBlobError if the blob or this chunk is not here."""
        self.find(blob_id)
        try:
            return (self._directory(blob_id) / f"{position}.chunk").read_bytes()
        except FileNotFoundError as error:
            raise UnknownBlobError(f"chunk {position} of blob {to_hex(blob_id)} is not here") from error

    def read(self, blob_id: bytes, *, max_size: int) -> bytes | None:
        """A whole small blob, or None if it is unknown, incomplete or larger than `max_size` bytes."""
        blob = self._blobs.get(blob_id)
        if blob is None or blob.index.size > max_size or self.missing(blob_id):
            return None
        return b"".join(self.read_chunk(blob_id, i) for i in range(blob.index.chunks))

    def _directory(self, blob_id: bytes) -> Path:
        name = blob_id.hex()
        return self._root / name[:2] / name

    def _create(self, blob: StoredBlob) -> None:
        directory = self._directory(blob.index.blob_id)
        directory.mkdir(parents=True, exist_ok=True)
        document = {
            "size": blob.index.size,
            "leaves": [to_hex(leaf) for leaf in blob.index.leaves],
            "announced_by": blob.announced_by,
            "announced_at": blob.announced_at,
        }
        try:
            write_whole(directory / "index", canonical_json(document), write=self._write)
        except StorageFullError:
            with suppress(OSError):
                directory.rmdir()
            raise
        self._note(blob)

    def _note(self, blob: StoredBlob) -> None:
        self._blobs[blob.index.blob_id] = blob
        self._bytes_of[blob.announced_by] += blob.index.size
        self._count_of[blob.announced_by] += 1

    def _check_quotas(self, size: int, sender: str) -> None:
        if self.reserved_bytes + size > self._limits.quota_bytes:
            self._drop_abandoned()
        if self.reserved_bytes + size > self._limits.quota_bytes:
            raise StorageFullError(f"the gateway's quota of {self._limits.quota_bytes} bytes is used up")
        if self._count_of[sender] >= self._limits.blobs_per_sender:
            # The smallest blob takes a folder, two files and a place in memory, whatever its size.
            raise StorageFullError(f"{sender} has {self._count_of[sender]} blobs here, no more are taken", code="S-72")
        theirs = self._bytes_of[sender]
        if theirs + size > self._limits.sender_quota_bytes:
            raise StorageFullError(
                f"{sender} has {theirs} of its {self._limits.sender_quota_bytes} bytes here, {size} more do not fit",
                code="S-72",
            )

    def _drop_abandoned(self) -> None:
        """Forgets blobs that were announced long ago and never completed: an announcement alone must not hold space
        for ever."""
        oldest = self._clock() - self._limits.incomplete_ttl_s
        for blob_id, blob in list(self._blobs.items()):
            if blob.announced_at < oldest and self.missing(blob_id):
                del self._blobs[blob_id]
                self._bytes_of[blob.announced_by] -= blob.index.size
                self._count_of[blob.announced_by] -= 1
                shutil.rmtree(self._directory(blob_id), ignore_errors=True)

    def _scan(self) -> Iterator[StoredBlob]:
        for path in sorted(self._root.glob("*/*/index")):
            document = json.loads(path.read_bytes())
            index = BlobIndex(size=document["size"], leaves=tuple(parse_hex(leaf) for leaf in document["leaves"]))
            if index.blob_id.hex() != path.parent.name:
                raise BlobError(f"{path} does not hash to its folder's name", hint="the disk or somebody altered it")
            yield StoredBlob(index, document["announced_by"], document["announced_at"])
