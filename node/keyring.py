"""Content keys as one reader holds them, and the blobs that they open.

A grant says nothing until it has opened something: anybody with standing may send one for any blob, so several
candidates are kept per blob, one of each sender, the requester's first, and tried in turn. What comes out is bytes;
that they are the right state is checked by its root.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from node.gateway import GatewayClient
from protocol.errors import BlobError
from protocol.messages import Grant
from protocol.sealing import OVERHEAD_BYTES, EncryptionKey, open_sealed, unwrap, wrap
from protocol.types import BlobId, NodeId

MAX_CANDIDATES = 8
"""Senders whose key for a blob is kept, one each: a spammer must not cost more time than a reader has."""


@dataclass(slots=True)
class _Offer:
    """What one sender says is the blob's key. Opened when the blob is wanted, not when the offer comes."""

    wrapped: bytes
    key: bytes | None = None
    opened: bool = False


class Keyring:
    """The keys of one reader (`reader` 0 is the requester). Safe to share between threads."""

    def __init__(self, encryption_key: EncryptionKey, reader: NodeId) -> None:
        self.reader = reader
        self._own = encryption_key
        self._lock = threading.Lock()
        self._sure: dict[BlobId, bytes] = {}
        """Keys that this reader made, or that have opened their blob."""
        self._offers: dict[BlobId, dict[NodeId | None, _Offer]] = defaultdict(dict)

    def add(self, grants: Iterable[Grant], sender: NodeId | None) -> None:
        """Keeps those for this reader; the latest of each sender counts (None: the requester, always kept)."""
        with self._lock:
            for grant in grants:
                if grant.reader == self.reader:
                    offers = self._offers[BlobId(grant.blob)]
                    if sender is None or sender in offers or len(offers) < MAX_CANDIDATES:
                        offers[sender] = _Offer(grant.wrapped_key)

    def put(self, blob: BlobId, key: bytes) -> None:
        """A content key that is the blob's: made here, or it has opened the blob."""
        with self._lock:
            self._sure[blob] = key
            self._offers.pop(blob, None)

    def holds(self, blob: BlobId) -> bool:
        return bool(self.keys(blob))

    def keys(self, blob: BlobId) -> tuple[bytes, ...]:
        """Candidate content keys of the blob, best first: the one that is sure, or the requester's and then others'."""
        with self._lock:
            if blob in self._sure:
                return (self._sure[blob],)
            offers = self._offers.get(blob, {})
            senders = sorted(offers, key=lambda sender: sender is not None)
            found = [self._open(offers[sender]) for sender in senders]
        return tuple(dict.fromkeys(key for key in found if key is not None))

    def _open(self, offer: _Offer) -> bytes | None:
        """None if it was wrapped for a key that this reader no longer has, or is rubbish."""
        if not offer.opened:
            offer.opened = True
            with suppress(BlobError):
                offer.key = unwrap(offer.wrapped, self._own)
        return offer.key

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
        keyring.put(blob, key)
        return plain
    raise refused
