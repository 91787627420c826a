"""One chain and one gateway for the tests that leave them as they were; a fresh gateway for those that do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.anvil import avenue_chain
from tests.support.gateway import Market, RunningGateway, running_gateway, settings_in, small_market


@pytest.fixture(scope="package")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    """Two nodes and a task on a chain of their own."""
    with avenue_chain(tmp_path_factory.mktemp("home")) as chain:
        yield small_market(chain)


@pytest.fixture
def gateway(market: Market, tmp_path: Path) -> Iterator[RunningGateway]:
    """A fresh gateway, with room for little."""
    settings = settings_in(
        tmp_path / "gateway", max_blob_bytes=2 << 20, quota_bytes=6 << 20, sender_quota_bytes=4 << 20
    )
    with running_gateway(settings, market.chain.client) as running:
        yield running
