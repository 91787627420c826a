"""Which kernels may be used for a product on this machine, and which of them is quickest.

Trust: before a kernel's first use on a shape in a process it multiplies operands of that shape, the extremes of their
intervals among them, and Freivalds' test compares the outcome with int64 arithmetic modulo 2^64 in both orders of
storage. A kernel that is wrong is not used, with a warning: saturating int8 instructions, say, or a BLAS that mistreats
one odd shape.

Speed: measured once and kept in $XDG_CACHE_HOME/avenue/matmul.json, by processor, torch version, threads, sides and
slices. A plan measures for MEASURING_S, and takes what is usually quickest for products that are left. What is timed
includes one pass over each operand and over the result in the kernel's layouts, because somebody must write the one and
read the other. A cache that is absent, unreadable or not writable costs only time.

Anybody may write a program, and planning it must not take more time or memory than running it: products beyond
MOST_MACS or MOST_ELEMENTS are asked and timed with shorter sides, of the same rest modulo 128.

Freivalds (1977), "Probabilistic machines can use less running time"; modulo 2^64: an entry wrong by an odd multiple of
2^e escapes one random column with probability 2^(e - 64), and there are eight columns.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from proofs.exact.backend.cache_home import cache_home
from proofs.exact.backend.layouts import integers_of, planes_of
from proofs.exact.backend.matmul_kernels import Planes, Product
from proofs.exact.ranges import ValueInfo

if TYPE_CHECKING:
    from proofs.exact.backend.matmul import MatmulKernel

COLUMNS = 8
LEAST_RUNS, MOST_RUNS = 2, 7
LONG_S = 0.02
"""Runs beyond the first two end with this much time: short ones are the noisy ones."""
MEASURING_S = 2.0
"""Of a plan. A GPT has 15 shapes of products; 45 measurements took 8 s, and 43 s on a busy machine."""
USUALLY = ("amx", "int8", "float64", "int64")
"""Quickest first, where there is no time to measure."""
MOST_MACS = 2**32
MOST_ELEMENTS = 2**22
"""Of a question, and of each of its operands and result."""
TAIL = 128
"""No kernel treats rows beyond a multiple of this otherwise."""
INT64_MACS = 2**20
"""Above this, int64 (never the quickest of several kernels) is not even timed."""
MAX_CACHE_BYTES = 2**22
VERSION = 2

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Allowance:
    """Time that is left for measuring, s. The measurement that uses it up is finished."""

    left_s: float = MEASURING_S


def quickest(product: Product, kernels: dict[str, MatmulKernel], threads: int, allowance: Allowance) -> MatmulKernel:
    """The fastest of `kernels` that answers rightly on this shape."""
    large = product.batch * product.m * product.n * product.k > INT64_MACS
    worth = {name: kernel for name, kernel in kernels.items() if not (large and name == "int64" and len(kernels) > 1)}
    usual = [worth[name] for name in USUALLY if name in worth]
    seconds = _seconds(product, usual, threads, allowance) if len(worth) > 1 else {}
    return first_trusted(product, sorted(usual, key=lambda kernel: seconds.get(kernel.name, 0.0)), kernels)


def first_trusted(
    product: Product, preferred: Iterable[MatmulKernel], kernels: dict[str, MatmulKernel]
) -> MatmulKernel:
    """The first of `preferred` that answers rightly on this shape; failing all, int64, whose answers the others are
    compared with and which known_answers.py holds to the definition.
    """
    for kernel in preferred:
        if kernel.name == "int64" or answers(kernel, product):
            return kernel
    return kernels["int64"]


_answered: dict[tuple[object, ...], bool] = {}


def answers(kernel: MatmulKernel, product: Product) -> bool:
    """Whether the kernel is right on operands of this shape and width, asked once in a process."""
    product = manageable(product)
    key = (kernel.name, kernel.a, kernel.b, kernel.out, product.a.shape, product.b.shape)
    if key not in _answered:
        _answered[key] = _right(kernel, product)
        _give_back()
        if not _answered[key]:
            log.warning(
                "the %s product of %s by %s is wrong on this machine: using another",
                kernel.name, list(product.a.shape), list(product.b.shape),
            )  # fmt: skip
    return _answered[key]


def manageable(product: Product) -> Product:
    """The product itself or, if a question of its shape would take long, one with shorter sides."""
    batch, sides = product.batch, [product.m, product.n, product.k]

    def too_much() -> bool:
        m, n, k = sides
        return batch * m * n * k > MOST_MACS or batch * max(m * n, m * k, n * k) > MOST_ELEMENTS

    while too_much():
        longest = sides.index(max(sides))
        if batch > 2 and batch >= sides[longest] // TAIL:
            batch = max(2, batch // 2)
        else:
            sides[longest] = sides[longest] % TAIL + sides[longest] // TAIL // 2 * TAIL
    if [batch, *sides] == [product.batch, product.m, product.n, product.k]:
        return product
    m, n, k = sides
    leading = (1,) * (len(product.a.shape) - 3) + (batch,) if len(product.a.shape) > 2 else ()
    return Product(replace(product.a, shape=(*leading, m, k)), replace(product.b, shape=(*leading, n, k)))


def _right(kernel: MatmulKernel, product: Product) -> bool:
    a, b = operand(product.a, 1), operand(product.b, 2)
    planes_a, planes_b, out = planes_of(a, kernel.a), planes_of(b, kernel.b), kernel.empty(_result_shape(product))
    weights = torch.randint(-(2**63), 2**63 - 1, (product.n, COLUMNS), generator=_generator(3))
    want = a @ (b.mT @ weights)
    for turn in (_as_they_are, _stored_by_columns):
        try:
            kernel.run(turn(planes_a), turn(planes_b), out)
        except RuntimeError as error:
            log.warning("the %s product fails: %s", kernel.name, error)
            return False
        if not torch.equal(integers_of(out, kernel.out) @ weights, want):
            return False
    return True


def _give_back() -> None:
    """Returns freed memory to the system. glibc would keep the 10 to 20 MB that the questions took."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def operand(info: ValueInfo, salt: int) -> Tensor:
    """Random integers of an interval, int64: one row of its greatest, one of its least, one of both in turn."""
    values = torch.randint(info.lo, info.hi, info.shape, generator=_generator(salt)) if info.hi > info.lo else None
    if values is None:
        return torch.full(info.shape, info.lo)
    rows = values.shape[-2]
    values[..., 0, :] = info.hi
    if rows > 1:
        values[..., 1, :] = info.lo
    if rows > 2:
        values[..., 2, ::2], values[..., 2, 1::2] = info.lo, info.hi
    return values


def _generator(salt: int) -> torch.Generator:
    return torch.Generator().manual_seed(salt)


def _as_they_are(planes: Planes) -> Planes:
    return planes


def _stored_by_columns(planes: Planes) -> Planes:
    return tuple(plane.mT.contiguous().mT for plane in planes)


def _result_shape(product: Product) -> tuple[int, ...]:
    return (*product.a.shape[:-1], product.n)


def _seconds(product: Product, kernels: Sequence[MatmulKernel], threads: int, allowance: Allowance) -> dict[str, float]:
    """Time of each kernel on this shape: from the cache, or measured now and kept there. Empty if there is no time."""
    sides = "x".join(str(side) for side in (product.batch, product.m, product.n, product.k))
    layouts = " ".join(f"{kernel.name}:{kernel.a}{kernel.b}{kernel.out}" for kernel in kernels)
    key = f"{sides} {threads} threads {layouts}"
    known = _cache()
    if key not in known or known[key].keys() != {kernel.name for kernel in kernels}:
        if allowance.left_s <= 0:
            return {}
        started, asked = time.perf_counter(), manageable(product)
        known[key] = {kernel.name: _measure(kernel, asked) for kernel in kernels}
        allowance.left_s -= time.perf_counter() - started
        _give_back()
        _save(known)
    return known[key]


def _measure(kernel: MatmulKernel, product: Product) -> float:
    """The least of some runs, s."""
    sources = [*planes_of(operand(product.a, 1), kernel.a), *planes_of(operand(product.b, 2), kernel.b)]
    written = [torch.empty_like(source) for source in sources]
    count = len(planes_of(torch.zeros(1, dtype=torch.int64), kernel.a))
    a, b, out = tuple(written[:count]), tuple(written[count:]), kernel.empty(_result_shape(product))

    def once() -> None:
        for plane, source in zip(written, sources, strict=True):
            plane.copy_(source)
        kernel.run(a, b, out)
        for plane in out:
            plane.amax()

    once()
    return _least_time(once)


def _least_time(work: Callable[[], None]) -> float:
    times: list[float] = []
    while len(times) < LEAST_RUNS or (len(times) < MOST_RUNS and sum(times) < LONG_S):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def cache_file() -> Path | None:
    home = cache_home()
    return None if home is None else home / "matmul.json"


@cache
def _machine() -> str:
    """What a timing is true for: version of this file, torch, processor."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux
    return f"v{VERSION}, torch {torch.__version__}, {name}"


@cache
def _cache() -> dict[str, dict[str, float]]:
    """This machine's timings. A file that is not what `_save` writes counts as absent."""
    return _read(cache_file()).get(_machine(), {})


def _read(path: Path | None) -> dict[str, dict[str, dict[str, float]]]:
    try:
        if path is None or path.stat().st_size > MAX_CACHE_BYTES:
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(found, dict) and all(
        isinstance(shapes, dict)
        and all(
            isinstance(times, dict) and all(isinstance(seconds, int | float) for seconds in times.values())
            for times in shapes.values()
        )
        for shapes in found.values()
    )
    return found if whole else {}


def _save(known: dict[str, dict[str, float]]) -> None:
    """Adds to the file what this process knows, in one move: another process reads the old file or the new."""
    path = cache_file()
    if path is None:
        return
    everything = _read(path)
    everything[_machine()] = everything.get(_machine(), {}) | known
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(everything, file, indent=1)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        log.debug("timings of matrix products are not kept: %s", error)
