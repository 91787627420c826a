"""Fixtures for every suite. Imports are inside the fixtures: Brownie's own environment loads this file too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.anvil import AnvilProcess, AvenueChain


@pytest.fixture
def chain() -> Iterator[AnvilProcess]:
    """A fresh Anvil that mines a block for every transaction."""
    from tests.support.anvil import anvil

    with anvil() as process:
        yield process


@pytest.fixture
def avenue(tmp_path: Path) -> Iterator[AvenueChain]:
    """A fresh Anvil with Avenue deployed on it; about half a second."""
    from tests.support.anvil import avenue_chain

    with avenue_chain(tmp_path / "home") as deployed:
        yield deployed
