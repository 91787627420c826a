"""The gateway as a process of its own: starts from a file, ends when told, rebuilds its index."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from sqlalchemy import select
from sqlalchemy.orm import Session

from marketplace.config import load_settings
from marketplace.tables import TaskRow, open_database
from node.gateway import GatewayClient
from protocol.messages import AdmissionRequest, Domain
from tests.support.gateway import Market, wait_until

LEAVES_WITHIN_S = 5.0


def settings_file(market: Market, directory: Path) -> Path:
    path = directory / "gateway.toml"
    path.write_text(
        f'port = 0\ndata_dir = "{directory / "data"}"\nrpc_urls = ["{market.chain.url}"]\n'
        f'deployment_dir = "{market.chain.home}"\npoll_interval_s = 0.1\n'
    )
    return path


@contextmanager
def process(settings: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and the URL that it logs."""
    log = settings.with_suffix(".log")
    with log.open("w") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "marketplace", str(settings)], stdout=output, stderr=subprocess.STDOUT, text=True
        )
    try:
        wait_until(lambda: child.poll() is not None or "http://" in log.read_text(), "the gateway's URL")
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        assert found, log.read_text()
        yield child, found.group()
    finally:
        child.kill()
        child.wait()


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz").status_code == 200
    except httpx2.HTTPError:
        return False


def test_killed_process_loses_nothing_and_a_told_one_leaves_in_time(market: Market, tmp_path: Path) -> None:
    settings = settings_file(market, tmp_path)
    domain = Domain(market.chain.deployment.chain_id, market.chain.deployment.market)
    with process(settings) as (child, url):
        wait_until(lambda: answers(url), "readiness")
        with GatewayClient(url, market.operators[0], domain) as client:
            client.post_message(market.task, AdmissionRequest(node=1))
            blob = client.upload_blob(b"a blob", market.task)
        child.send_signal(signal.SIGKILL)
        child.wait()
    with process(settings) as (child, url):
        wait_until(lambda: answers(url), "readiness")
        with GatewayClient(url, market.operators[0], domain) as client:
            assert [item.payload for item in client.messages(market.task)] == [{"node": 1}]
            assert client.download_blob(blob, 100) == b"a blob"
            assert client.status().tasks == 1
        with httpx2.stream("GET", f"{url}/stream", timeout=10) as stream:  # somebody watches
            assert next(stream.iter_lines()) == "event: change"
            child.send_signal(signal.SIGINT)
            child.wait(timeout=LEAVES_WITHIN_S)
    assert child.returncode in (130, -signal.SIGINT)


def test_rebuild_reads_the_chain_again_and_exits(market: Market, tmp_path: Path) -> None:
    path = settings_file(market, tmp_path)
    command = [sys.executable, "-m", "marketplace", str(path), "--rebuild"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    engine = open_database(load_settings(path).database)
    try:
        with Session(engine) as session:
            assert session.scalars(select(TaskRow.task)).all() == [market.task]
    finally:
        engine.dispose()
