"""Content keys as one reader holds them, and the blobs that they open.

A grant says nothing until it has opened something: anybody with standing may send one for any blob, so several
candidates are kept per blob, the requester's first, and tried in turn. What comes out is bytes; that they are the
right state is checked by its root.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable

from node.gateway import GatewayClient
from protocol.errors import BlobError
from protocol.messages import Grant
from protocol.sealing import OVERHEAD_BYTES, EncryptionKey, open_sealed, unwrap, wrap
from protocol.types import BlobId, NodeId

MAX_CANDIDATES = 8
"""Per blob: a spammer must not cost more time than a reader has. The requester's grants push out others."""


class Keyring:
    """The keys of one reader (`reader` 0 is the requester). Safe to share between threads."""

    def __init__(self, encryption_key: EncryptionKey, reader: NodeId) -> None:
        self.reader = reader
        self._own = encryption_key
        self._lock = threading.Lock()
        self._keys: dict[BlobId, list[bytes]] = defaultdict(list)

    def add(self, grants: Iterable[Grant], *, first: bool) -> None:
        """Unwraps and keeps those for this reader; `first` puts them before others. Drops what does not open."""
        for grant in grants:
            if grant.reader == self.reader:
                try:
                    self.put(BlobId(grant.blob), unwrap(grant.wrapped_key, self._own), first=first)
                except BlobError:
                    continue  # wrapped for a key that this reader no longer has, or rubbish

    def put(self, blob: BlobId, key: bytes, *, first: bool = True) -> None:
        """A content key that may be the blob's."""
        with self._lock:
            keys = self._keys[blob]
            if key not in keys:
                keys.insert(0 if first else len(keys), key)
                del keys[MAX_CANDIDATES:]

    def holds(self, blob: BlobId) -> bool:
        return bool(self.keys(blob))

    def keys(self, blob: BlobId) -> tuple[bytes, ...]:
        """Candidate content keys of the blob, best first."""
        with self._lock:
            return tuple(self._keys.get(blob, ()))

    def settle(self, blob: BlobId, key: bytes) -> None:
        """`key` has opened the blob: the other candidates are forgotten."""
        with self._lock:
            self._keys[blob] = [key]

    def rewrap(self, blob: BlobId, reader: NodeId, reader_public: bytes) -> Grant | None:
        """A grant of the blob's key to another reader; None if no key is held.

        Raises BlobError V-14 if the reader's public key is unusable.
        """
        keys = self.keys(blob)
        return Grant(blob=blob, reader=reader, wrapped_key=wrap(keys[0], reader_public)) if keys else None


def fetch(gateway: GatewayClient, blob: BlobId, max_bytes: int, keyring: Keyring | None) -> bytes:
    """The bytes of a blob, opened if `keyring` is given (a private task). `max_bytes` bounds what comes out.

    Raises BlobError V-14 if no key is held, V-13 if none opens it; what GatewayClient.download_blob raises.
    """
    if keyring is None:
        return gateway.download_blob(blob, max_bytes)
    if not keyring.holds(blob):
        raise BlobError(f"no key for blob {blob.hex()[:8]}", code="V-14", hint="wait for a key.grant")
    sealed = gateway.download_blob(blob, max_bytes + OVERHEAD_BYTES)
    refused = BlobError(
        f"no key opens blob {blob.hex()[:8]}", code="V-13", hint="ask the requester for a new key.grant"
    )
    for key in keyring.keys(blob):
        try:
            plain = open_sealed(sealed, key, max_size=max_bytes)
        except BlobError as error:
            refused = error
            continue
        keyring.settle(blob, key)
        return plain
    raise refused
