"""Data sets: where the samples come from, and what an integer in them means.

Promises: the same source gives the same integers on every machine. Foreign files are bounded before memory is taken
for them and never unpickled; downloaded ones are pinned (`npm_package`). Samples stay small integers (a pixel is a
byte); `InputScale` says which number each stands for, so a data shard is what the exact program reads, with no float
between.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from node.request.task_file import DataSection
from node.training import mnist_package, moby_dick_package
from node.training.text import cut_text
from protocol.errors import UsageError

MAX_ELEMENTS: Final = 2**31
"""Largest `x` that is read, elements: 43 times MNIST."""
MAX_CLASSES: Final = 4096
MAX_TEXT_BYTES: Final = 2**26
"""64 MiB: 55 times Moby-Dick."""

_IDX_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
}

Ints = npt.NDArray[np.int64]
Samples = npt.NDArray[Any]
"""uint8 or a signed integer type, whatever the source had."""


@dataclass(frozen=True, slots=True)
class InputScale:
    """An integer x stands for the number x * multiplier * 2^-frac. A data shard stores x - offset, of `bits`."""

    bits: int
    offset: int
    multiplier: int
    frac: int

    @property
    def stored_frac(self) -> int:
        """`frac` of the stored tensor. Where there is a multiplier the program applies it, and frac with it."""
        return self.frac if self.multiplier == 1 else 0

    def to_float(self, x: Samples) -> npt.NDArray[np.float32]:
        """The numbers meant, float32, same shape: what an ordinary PyTorch model is fed."""
        numbers: npt.NDArray[np.float32] = (x * np.float64(self.multiplier / 2**self.frac)).astype(np.float32)
        return numbers


PIXELS: Final = InputScale(bits=8, offset=128, multiplier=257, frac=16)
"""Bytes 0..255 as x / 255: 257 / 65536 is 1 / 255 to within 2^-16 of it. The offset lets a signed byte hold one."""
SIXTEENTHS: Final = InputScale(bits=6, offset=0, multiplier=1, frac=4)
"""Integers 0..16 as x / 16 (scikit-learn's digits)."""
REALS: Final = InputScale(bits=20, offset=0, multiplier=1, frac=12)
"""Floating-point features, rounded once to 2^-12; below 128 in absolute value. Standardise them first."""


@dataclass(frozen=True, slots=True)
class Split:
    """Samples by the names that a training step reads them under, one row each.

    Pictures and other labelled samples are x [samples, features] and y [samples]; text is tokens [samples, length].
    """

    tensors: Mapping[str, Samples]

    @classmethod
    def labelled(cls, x: Samples, y: Samples) -> Split:
        """x: [samples, features]; y: [samples], int64 class labels."""
        return cls({"x": x, "y": y})

    @property
    def x(self) -> Samples:
        return self.tensors["x"]

    @property
    def y(self) -> Ints:
        return self.tensors["y"]

    @property
    def samples(self) -> int:
        return len(next(iter(self.tensors.values())))

    def take(self, rows: npt.NDArray[Any] | slice) -> Split:
        """These samples, in this order."""
        return Split({name: values[rows] for name, values in self.tensors.items()})


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples to train on and, where there are any, to test on.

    A tensor in `scales` stands for real numbers; every other is integers that mean themselves (labels, characters), and
    `counts` says how many values it can have: 0 .. count - 1.
    """

    name: str
    train: Split
    test: Split | None
    scales: Mapping[str, InputScale]
    counts: Mapping[str, int]
    vocabulary: str = ""
    """Of text: character i is token i."""

    @property
    def classes(self) -> int:
        """Of labelled samples."""
        return self.counts["y"]

    @property
    def features(self) -> int:
        """Of labelled samples."""
        return int(self.train.x.shape[1])

    @property
    def scale(self) -> InputScale:
        """Of labelled samples' x."""
        return self.scales["x"]

    def numbers(self, split: Split) -> dict[str, npt.NDArray[Any]]:
        """What an ordinary PyTorch step is fed: float32 where the integers stand for real numbers, else int64."""
        return {
            name: scale.to_float(values) if (scale := self.scales.get(name)) else values.astype(np.int64)
            for name, values in split.tensors.items()
        }


def load_dataset(source: DataSection) -> Dataset:
    """Loads what a task file's [data] section names.

    Raises:
        UsageError: U-38 a file is missing, U-39 a file is not what it should be.
        UnreachableError: N-20, a published data set is not cached and could not be fetched.
    """
    if source.source == "mnist":
        return mnist()
    if source.source == "digits":
        return digits()
    if source.context is not None:
        return text(source.text or moby_dick_package.file(cache_dir()), source.context)
    if source.file is not None:
        return from_file(source.file)
    if source.images is None or source.labels is None:
        raise UsageError("no data given", code="U-38", hint="name a source, a file, or images with labels")
    train = (read_idx(source.images), read_idx(source.labels))
    test = None
    if source.test_images is not None and source.test_labels is not None:
        test = (read_idx(source.test_images), read_idx(source.test_labels))
    return _dataset(source.images.stem, train, test)


def mnist() -> Dataset:
    """The 60,000 + 10,000 handwritten digits, 28x28 bytes. Fetched once, then read from the cache."""
    files = mnist_package.files(cache_dir())
    parts = {name: read_idx(path) for name, path in files.items()}
    return _dataset(
        "mnist",
        (parts["train-images-idx3-ubyte"], parts["train-labels-idx1-ubyte"]),
        (parts["t10k-images-idx3-ubyte"], parts["t10k-labels-idx1-ubyte"]),
    )


def digits() -> Dataset:
    """scikit-learn's 1,797 digits, 8x8 values of 0..16; every fifth sample is held out for the test (359)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            "the digits data set comes with scikit-learn, which is not installed",
            code="U-38",
            hint="pip install scikit-learn",
        ) from error
    pixels, labels = load_digits(return_X_y=True)
    x, y = pixels.astype(np.uint8), labels.astype(np.int64)
    held_out = np.arange(len(y)) % 5 == 4
    samples = Split.labelled(x, y)
    return Dataset("digits", samples.take(~held_out), samples.take(held_out), {"x": SIXTEENTHS}, {"y": 10})


def text(path: Path, context: int) -> Dataset:
    """A UTF-8 text as windows of characters: tokens [samples, context + 1] (node/training/text.py).

    Raises:
        UsageError: U-38, U-39.
    """
    if not path.is_file():
        raise UsageError(f"no such data file: {path}", code="U-38")
    if path.stat().st_size > MAX_TEXT_BYTES:
        raise UsageError(f"{path} is larger than {MAX_TEXT_BYTES} bytes", code="U-39", hint="use a part of it")
    try:
        windows = cut_text(path.read_bytes().decode(), context, str(path))
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not text in UTF-8: {error}", code="U-39", hint="convert it, e.g. by iconv"
        ) from error
    train, test = (Split({"tokens": part}) for part in (windows.train, windows.test))
    counts = {"tokens": len(windows.vocabulary)}
    return Dataset(path.stem, train, test, scales={}, counts=counts, vocabulary=windows.vocabulary)


def from_file(path: Path) -> Dataset:
    """An .npz or .safetensors file with `x_train`, `y_train` (or `x`, `y`) and, optionally, `x_test`, `y_test`.

    Bytes are pixels (v / 255); floating-point features are rounded to 2^-12. Other integer features are refused:
    nobody can tell what number they stand for.

    Raises:
        UsageError: U-38, U-39.
    """
    if not path.is_file():
        raise UsageError(f"no such data file: {path}", code="U-38")
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors}
    if path.suffix not in readers:
        raise _malformed(path, "is neither .npz nor .safetensors")
    arrays = readers[path.suffix](path)
    train_keys = ("x_train", "y_train") if "x_train" in arrays else ("x", "y")
    missing = [key for key in train_keys if key not in arrays]
    if missing:
        raise _malformed(path, f"has no array {missing[0]!r} (it has: {', '.join(sorted(arrays)) or 'none'})")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise _malformed(path, "has only one of x_test and y_test")
    test = (arrays["x_test"], arrays["y_test"]) if "x_test" in arrays else None
    return _dataset(path.stem, (arrays[train_keys[0]], arrays[train_keys[1]]), test)


def cache_dir() -> Path:
    """Where fetched data sets are kept: $AVENUE_CACHE/datasets, else the user's cache directory."""
    override = os.environ.get("AVENUE_CACHE")
    if override:
        return Path(override) / "datasets"
    from platformdirs import user_cache_path

    return user_cache_path("avenue") / "datasets"


def read_idx(path: Path) -> Samples:
    """An IDX file (the MNIST format: magic 00 00 type rank, big-endian sizes, elements).

    Raises:
        UsageError: U-38 if missing; U-39 if the magic is wrong or the length is not exactly what the header announces
            (checked before the elements are read).
    """
    if not path.is_file():
        raise UsageError(f"no such data file: {path}", code="U-38")
    with path.open("rb") as file:
        magic = file.read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _IDX_DTYPES or not 1 <= magic[3] <= 4:
            raise _malformed(path, "is not an IDX file of integers (if it is compressed, unpack it)")
        dtype, rank = _IDX_DTYPES[magic[2]], magic[3]
        sizes = file.read(4 * rank)
        if len(sizes) < 4 * rank:
            raise _malformed(path, "ends inside its header")
        shape = tuple(int.from_bytes(sizes[4 * i : 4 * i + 4], "big") for i in range(rank))
        elements = _bounded(path, shape)
        announced = 4 + 4 * rank + elements * dtype.itemsize
        if path.stat().st_size != announced:
            raise _malformed(path, f"is {path.stat().st_size} bytes, but its header announces {announced}")
        values: Samples = np.fromfile(file, dtype=dtype, count=elements)
    native: Samples = values.reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    return native


def _dataset(name: str, train: tuple[Samples, Samples], test: tuple[Samples, Samples] | None) -> Dataset:
    """Checks the arrays against each other and flattens each sample to a row of features."""
    x, scale = _features(name, train[0])
    y = _labels(name, train[1], len(x))
    classes = max(2, int(y.max()) + 1)
    held_out = None
    if test is not None:
        test_x, test_scale = _features(name, test[0])
        if test_scale != scale or test_x.shape[1] != x.shape[1]:
            raise UsageError(f"{name}: test samples are not like the training samples", code="U-39")
        test_y = _labels(name, test[1], len(test_x))
        if int(test_y.max()) >= classes:
            raise UsageError(f"{name}: the test set has a class that the training set lacks", code="U-39")
        held_out = Split.labelled(test_x, test_y)
    return Dataset(name, Split.labelled(x, y), held_out, {"x": scale}, {"y": classes})


def _features(name: str, x: Samples) -> tuple[Samples, InputScale]:
    if x.ndim < 2 or x.size == 0:
        raise UsageError(f"{name}: samples have shape {x.shape}, need [samples, ...features]", code="U-39")
    rows = x.reshape(len(x), -1)
    if rows.dtype == np.uint8:
        return rows, PIXELS
    if rows.dtype.kind == "f":
        limit = 2.0 ** (REALS.bits - 1 - REALS.frac)
        if not np.isfinite(rows).all() or float(np.abs(rows).max()) >= limit - 1:
            raise UsageError(
                f"{name}: features must be finite and below {limit - 1:g} in absolute value",
                code="U-39",
                hint="standardise them to mean 0 and deviation 1",
            )
        return np.floor(rows.astype(np.float64) * 2**REALS.frac + 0.5).astype(np.int32), REALS
    raise UsageError(
        f"{name}: features of type {rows.dtype}", code="U-39", hint="store pixels as uint8, other features as float32"
    )


def _labels(name: str, y: Samples, samples: int) -> Ints:
    if y.shape != (samples,) or y.dtype.kind not in "iu":
        raise UsageError(f"{name}: labels of shape {y.shape} {y.dtype} for {samples} samples", code="U-39")
    if int(y.min()) < 0 or int(y.max()) >= MAX_CLASSES:
        raise UsageError(f"{name}: labels must be 0..{MAX_CLASSES - 1}", code="U-39")
    return y.astype(np.int64)


def _read_npz(path: Path) -> Mapping[str, Samples]:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            # A deflated array may expand a thousandfold: what it claims to be is added up before any is read.
            if sum(entry.file_size for entry in archive.infolist()) > 8 * MAX_ELEMENTS:
                raise _malformed(path, "unpacks to too much")
        with np.load(path, allow_pickle=False) as loaded:
            return {key: loaded[key] for key in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise _malformed(path, f"cannot be read as .npz: {error}") from error


def _read_safetensors(path: Path) -> Mapping[str, Samples]:
    from safetensors import SafetensorError, safe_open

    try:
        # safetensors checks every offset of the header against the file's size before it takes memory.
        with safe_open(path, framework="numpy") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise _malformed(path, f"cannot be read as safetensors: {error}") from error


def _bounded(path: Path, shape: tuple[int, ...]) -> int:
    elements = 1
    for size in shape:
        elements *= size
    if not 0 < elements <= MAX_ELEMENTS:
        raise _malformed(path, f"announces shape {shape}: empty or too large")
    return elements


def _malformed(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{path} {what}", code="U-39", hint="bring IDX files, or .npz or .safetensors with x_train and y_train"
    )
