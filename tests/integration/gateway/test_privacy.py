"""A private shard from requester to node: the gateway stores it, and neither it nor a node without a grant can read
it."""

from __future__ import annotations

import os

import pytest

from protocol.errors import BlobError
from protocol.messages import Grant, KeyGrant, Kind, verify_authorship
from protocol.sealing import OVERHEAD_BYTES, EncryptionKey, open_sealed, seal, unwrap, wrap
from protocol.types import NodeId
from tests.support.gateway import Market, RunningGateway

SECRET = os.urandom(64) * 10_000  # 640 kB: three chunks


def grants_to(gateway: RunningGateway, market: Market, reader: int) -> list[Grant]:
    mail = gateway.client(market.stranger).messages(market.task, Kind.KEY_GRANT)
    payloads = [verify_authorship(item.envelope(), gateway.domain) for item in mail]
    grants = [grant for payload in payloads if isinstance(payload, KeyGrant) for grant in payload.grants]
    return [grant for grant in grants if grant.reader == reader]


def test_only_granted_readers_read_a_private_blob(gateway: RunningGateway, market: Market) -> None:
    requester = gateway.client(market.requester)
    key, sealed = seal(SECRET)
    blob = requester.upload_blob(sealed, market.task)
    readers = {1: market.chain.client.node(NodeId(1)).encryption_key, 0: market.requester_key.public}
    grants = tuple(Grant(blob=blob, reader=node, wrapped_key=wrap(key, public)) for node, public in readers.items())
    requester.post_message(market.task, KeyGrant(grants=grants))

    fetched = gateway.client(market.operators[0]).download_blob(blob, len(SECRET) + OVERHEAD_BYTES)
    for reader, own in ((1, market.node_keys[0]), (0, market.requester_key)):
        (grant,) = grants_to(gateway, market, reader)
        assert open_sealed(fetched, unwrap(grant.wrapped_key, own)) == SECRET

    # Node 2 is registered, can fetch the blob and read every message, and has no grant.
    assert gateway.client(market.operators[1]).download_blob(blob, len(sealed)) == sealed
    assert grants_to(gateway, market, 2) == []
    for grant in grants_to(gateway, market, 1) + grants_to(gateway, market, 0):
        with pytest.raises(BlobError, match="V-14"):
            unwrap(grant.wrapped_key, market.node_keys[1])


def test_nothing_that_the_gateway_stores_shows_the_plaintext_or_its_key(
    gateway: RunningGateway, market: Market
) -> None:
    requester = gateway.client(market.requester)
    key, sealed = seal(SECRET)
    blob = requester.upload_blob(sealed, market.task)
    granted = Grant(blob=blob, reader=1, wrapped_key=wrap(key, market.node_keys[0].public))
    requester.post_message(market.task, KeyGrant(grants=(granted,)))

    stored = [path.read_bytes() for path in gateway.parts.settings.data_dir.rglob("*") if path.is_file()]

    assert sum(map(len, stored)) > len(SECRET)
    for content in stored:
        assert key not in content
        assert key.hex().encode() not in content
        assert not any(SECRET[start : start + 16] in content for start in range(64))


def test_gateway_cannot_hand_out_another_blob_for_a_sealed_one(gateway: RunningGateway, market: Market) -> None:
    """Even a blob that opens with the same key is refused: it has another id."""
    requester = gateway.client(market.requester)
    key, sealed = seal(b"right")
    _, other = seal(b"wrong", key=key)
    blob, other_blob = requester.upload_blob(sealed, market.task), requester.upload_blob(other, market.task)
    folder = gateway.parts.settings.data_dir / "blobs"
    path, other_path = (folder / name.hex()[:2] / name.hex() / "0.chunk" for name in (blob, other_blob))
    path.write_bytes(other_path.read_bytes())

    with pytest.raises(BlobError, match=r"V-11.*chunk 0"):
        requester.download_blob(blob, 1000)


def test_key_wrapped_to_a_stale_public_key_does_not_open() -> None:
    old, new = EncryptionKey.generate(), EncryptionKey.generate()
    key, _sealed = seal(b"x")
    with pytest.raises(BlobError, match="V-14"):
        unwrap(wrap(key, old.public), new)
