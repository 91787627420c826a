"""Blobs through a real gateway over real HTTP: resumed, damaged, cut short, too large, no space, nobody there."""

from __future__ import annotations

import errno
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from proofs.blob import CHUNK_BYTES, chunks_of, index_of
from protocol.errors import BlobError, StandingError, StateError, UnreachableError
from protocol.json_types import to_hex
from protocol.messages import BlobAnnounce, sign_message
from protocol.types import ZERO32
from tests.support.gateway import Market, RunningGateway, running_gateway, settings_in

DATA = os.urandom(3 * CHUNK_BYTES + 1000)
INDEX = index_of(DATA)
CHUNKS = chunks_of(DATA)


def chunk_files(gateway: RunningGateway) -> list[Path]:
    return sorted(gateway.parts.settings.data_dir.rglob("*.chunk"))


def announce(gateway: RunningGateway, market: Market, *, size: int | None = None) -> httpx2.Response:
    payload = BlobAnnounce(blob=INDEX.blob_id, size=INDEX.size if size is None else size, index=INDEX.leaves)
    message = sign_message(market.requester, payload.kind, market.task, payload, gateway.domain)
    return httpx2.post(f"{gateway.url}/api/v1/messages", content=message.to_json())


def put(gateway: RunningGateway, position: int, data: bytes) -> httpx2.Response:
    return httpx2.put(f"{gateway.url}/api/v1/blobs/{to_hex(INDEX.blob_id)}/chunks/{position}", content=data)


def test_what_was_uploaded_comes_back(gateway: RunningGateway, market: Market, tmp_path: Path) -> None:
    client = gateway.client(market.requester)

    blob = client.upload_blob(DATA, market.task)

    assert blob == INDEX.blob_id
    assert client.download_blob(blob, len(DATA)) == DATA
    path = client.download_blob(blob, len(DATA), tmp_path / "blob")
    assert path.read_bytes() == DATA
    assert not path.with_name("blob.partial").exists()


def test_upload_sends_only_the_missing_chunks(gateway: RunningGateway, market: Market) -> None:
    assert announce(gateway, market).json() == {"ok": True, "missing": [0, 1, 2, 3]}
    assert put(gateway, 2, CHUNKS[2]).status_code == 204
    before = chunk_files(gateway)[0].stat().st_mtime_ns

    gateway.client(market.requester).upload_blob(DATA, market.task)

    assert len(chunk_files(gateway)) == 4
    assert next(path for path in chunk_files(gateway) if path.name == "2.chunk").stat().st_mtime_ns == before
    assert announce(gateway, market).json() == {"ok": True, "missing": []}


def test_download_keeps_what_an_earlier_try_got_right(gateway: RunningGateway, market: Market, tmp_path: Path) -> None:
    client = gateway.client(market.requester)
    client.upload_blob(DATA, market.task)
    partial = bytearray(DATA)
    partial[0] ^= 1  # chunk 0 was damaged on the disk, chunk 1 is right, the rest never came
    (tmp_path / "blob.partial").write_bytes(bytes(partial[: 2 * CHUNK_BYTES]))
    for path in chunk_files(gateway):
        if path.name == "1.chunk":
            path.unlink()  # whoever asks for it again gets nothing
    assert client.blob_info(INDEX.blob_id).missing == (1,)

    served = gateway.parts.metrics.chunk_bytes.labels("out")
    before = served._value.get()
    assert client.download_blob(INDEX.blob_id, len(DATA), tmp_path / "blob").read_bytes() == DATA

    assert served._value.get() - before == len(DATA) - CHUNK_BYTES


@pytest.mark.parametrize("into_file", [False, True], ids=["into memory", "into a file"])
def test_flipped_byte_at_the_gateway_is_noticed_and_named(
    gateway: RunningGateway, market: Market, tmp_path: Path, into_file: bool
) -> None:
    client = gateway.client(market.requester)
    client.upload_blob(DATA, market.task)
    path = next(path for path in chunk_files(gateway) if path.name == "2.chunk")
    damaged = bytearray(path.read_bytes())
    damaged[77] ^= 0x10
    path.write_bytes(bytes(damaged))

    with pytest.raises(BlobError, match=r"V-11.*chunk 2"):
        if into_file:
            client.download_blob(INDEX.blob_id, len(DATA), tmp_path / "blob")
        else:
            client.download_blob(INDEX.blob_id, len(DATA))
    assert not (tmp_path / "blob").exists()


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\x00"], ids=["truncated", "longer"])
def test_chunk_of_another_length_at_the_gateway_is_noticed(
    gateway: RunningGateway, market: Market, change: object
) -> None:
    assert callable(change)
    client = gateway.client(market.requester)
    client.upload_blob(DATA, market.task)
    path = next(path for path in chunk_files(gateway) if path.name == "3.chunk")
    path.write_bytes(change(path.read_bytes()))

    with pytest.raises(BlobError, match=r"V-1[12].*(chunk 3|chunks/3)"):
        client.download_blob(INDEX.blob_id, len(DATA))


def test_blob_larger_than_expected_is_refused_before_it_is_fetched(gateway: RunningGateway, market: Market) -> None:
    client = gateway.client(market.requester)
    client.upload_blob(DATA, market.task)

    with pytest.raises(BlobError, match="V-12"):
        client.download_blob(INDEX.blob_id, len(DATA) - 1)
    assert gateway.parts.metrics.chunk_bytes.labels("out")._value.get() == 0


@pytest.mark.parametrize(
    ("position", "data", "status", "code"),
    [
        (1, bytes([CHUNKS[1][0] ^ 1]) + CHUNKS[1][1:], 422, "V-11"),
        (1, CHUNKS[1][:-1], 422, "V-11"),
        (3, CHUNKS[3] + b"\x00", 422, "V-11"),
        (1, CHUNKS[1] + b"\x00", 413, "V-12"),
        (4, CHUNKS[1], 422, "V-11"),
    ],
    ids=["flipped byte", "truncated", "longer than announced", "more than a chunk", "past the end"],
)
def test_gateway_stores_nothing_but_announced_bytes(
    gateway: RunningGateway, market: Market, position: int, data: bytes, status: int, code: str
) -> None:
    announce(gateway, market)

    answer = put(gateway, position, data)

    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert chunk_files(gateway) == []


def test_body_without_a_length_is_bounded_as_it_comes(gateway: RunningGateway, market: Market) -> None:
    announce(gateway, market)

    answer = put_stream(gateway)

    assert answer.status_code == 413
    assert chunk_files(gateway) == []


def put_stream(gateway: RunningGateway) -> httpx2.Response:
    url = f"{gateway.url}/api/v1/blobs/{to_hex(INDEX.blob_id)}/chunks/0"
    return httpx2.put(url, content=iter([CHUNKS[0], b"one more"]))


def test_size_that_the_index_does_not_bear_out_is_refused(gateway: RunningGateway, market: Market) -> None:
    for size in (INDEX.size - 1, INDEX.size + CHUNK_BYTES):
        answer = announce(gateway, market, size=size)
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "V-10")
    assert gateway.parts.store.blob_count == 0


def test_blob_over_the_gateways_limit_is_refused_at_once(gateway: RunningGateway, market: Market) -> None:
    with pytest.raises(BlobError, match="V-12"):
        gateway.client(market.requester).upload_blob(bytes((2 << 20) + 1), market.task)


def test_sender_over_its_quota_is_told_so_and_others_go_on(gateway: RunningGateway, market: Market) -> None:
    client = gateway.client(market.requester)
    for seed in (1, 2):
        client.upload_blob(bytes([seed]) * (2 << 20), market.task)

    with pytest.raises(StateError, match="S-72"):
        client.upload_blob(b"one byte more", market.task)
    assert gateway.client(market.operators[0]).upload_blob(b"another's", market.task)
    assert gateway.pauses_s == []  # no use in trying again


def test_full_disk_is_507_and_the_upload_resumes_when_there_is_room(gateway: RunningGateway, market: Market) -> None:
    room = [len(DATA) // 2]

    def write(descriptor: int, data: memoryview) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.write(descriptor, data[: room[0]])
        room[0] -= written
        return written

    gateway.parts.store._write = write
    client = gateway.client(market.requester)
    with pytest.raises(StateError, match="S-70"):
        client.upload_blob(DATA, market.task)
    stored = len(chunk_files(gateway))
    assert put(gateway, 3, CHUNKS[3]).status_code == 507
    assert stored == 1
    assert list(gateway.parts.settings.data_dir.rglob("*.tmp")) == []

    room[0] = 1 << 30
    client.upload_blob(DATA, market.task)
    assert client.download_blob(INDEX.blob_id, len(DATA)) == DATA


def test_stranger_cannot_fill_the_gateway(gateway: RunningGateway, market: Market) -> None:
    for task in (ZERO32, market.task, b"\x55" * 32):
        with pytest.raises(StandingError):
            gateway.client(market.stranger).upload_blob(b"spam", task)
    assert gateway.parts.store.blob_count == 0


def test_requester_uploads_before_it_posts(gateway: RunningGateway, market: Market) -> None:
    """It holds tokens; there is no task yet to name."""
    blob = gateway.client(market.requester).upload_blob(b"manifest to be")
    assert gateway.client(market.stranger).download_blob(blob, 100) == b"manifest to be"


def test_blobs_outlive_the_gateways_process(market: Market, tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "gateway")
    with running_gateway(settings, market.chain.client) as first:
        first.client(market.requester).upload_blob(DATA, market.task)
    with running_gateway(settings, market.chain.client) as second:
        assert second.client(market.requester).download_blob(INDEX.blob_id, len(DATA)) == DATA


def test_gateway_that_is_away_is_tried_again_and_then_named(gateway: RunningGateway, market: Market) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]

    with pytest.raises(UnreachableError, match=rf"N-30.*127\.0\.0\.1:{port}.*doctor"):
        gateway.client(market.requester, f"http://127.0.0.1:{port}").blob_info(INDEX.blob_id)

    assert len(gateway.pauses_s) == 4
    assert gateway.pauses_s == sorted(
        gateway.pauses_s, key=lambda pause_s: pause_s > 1.5
    )  # growing, give or take jitter


def test_some_other_web_server_is_not_taken_for_a_gateway(gateway: RunningGateway, market: Market) -> None:
    with pytest.raises(UnreachableError, match="N-31"):
        gateway.client(market.requester, market.chain.url).blob_info(INDEX.blob_id)


def test_blob_that_is_not_whole_yet_names_what_is_missing(
    gateway: RunningGateway, market: Market, tmp_path: Path
) -> None:
    announce(gateway, market)
    put(gateway, 0, CHUNKS[0])
    client = gateway.client(market.requester)

    with pytest.raises(StateError, match=r"S-71.*chunk 1 "):
        client.download_blob(INDEX.blob_id, len(DATA))
    with pytest.raises(StateError, match=r"S-71.*chunk 1 "):
        client.download_blob(INDEX.blob_id, len(DATA), tmp_path / "blob")
    for position in (1, 2, 3):
        put(gateway, position, CHUNKS[position])
    assert client.download_blob(INDEX.blob_id, len(DATA), tmp_path / "blob").read_bytes() == DATA


def test_unknown_blob_is_not_found(gateway: RunningGateway, market: Market) -> None:
    with pytest.raises(StateError, match="S-71"):
        gateway.client(market.requester).download_blob(b"\x99" * 32, 100)


def test_index_of_another_blob_is_refused_before_a_chunk_is_fetched(gateway: RunningGateway, market: Market) -> None:
    """A gateway that lies about what it serves: whole, consistent, and not what was asked for."""
    client = gateway.client(market.requester)
    blob = client.upload_blob(DATA, market.task)
    other = client.upload_blob(b"something else", market.task)
    blobs = gateway.parts.store._blobs
    blobs[blob] = blobs[other]

    with pytest.raises(BlobError, match="V-10"):
        client.download_blob(blob, len(DATA))
    assert gateway.parts.metrics.chunk_bytes.labels("out")._value.get() == 0


def test_answer_that_would_not_end_is_cut_off(gateway: RunningGateway, market: Market) -> None:
    """An index far too long for a blob of the size that we would take is not read to its end."""
    client = gateway.client(market.requester)
    blob = client.upload_blob(b"small", market.task)
    huge = index_of(b"small")
    object.__setattr__(huge, "leaves", (b"\x01" * 32,) * 2000)
    blobs = gateway.parts.store._blobs
    object.__setattr__(blobs[blob], "index", huge)

    with pytest.raises(BlobError, match=r"V-12.*larger than"):
        client.download_blob(blob, 5)


def test_four_uploads_at_once_are_all_whole(gateway: RunningGateway, market: Market) -> None:
    blobs = [bytes([seed]) * (CHUNK_BYTES + seed) for seed in range(1, 5)]
    client = gateway.client(market.requester)
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda data: client.upload_blob(data, market.task), blobs))
    assert [client.download_blob(blob, 2 * CHUNK_BYTES) for blob in ids] == blobs


def test_proxy_of_the_environment_is_not_asked(
    gateway: RunningGateway, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert gateway.client(market.stranger).status().market == market.chain.deployment.market
