"""Reading the golden vectors in tests/vectors (scripts/make_vectors.py writes them)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parents[1] / "vectors"


def cases(name: str) -> list[dict[str, Any]]:
    """The cases of tests/vectors/<name>.json."""
    loaded: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text())["cases"]
    return loaded


def unhex(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("0x"))
