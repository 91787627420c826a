"""Whether this machine has AMX tiles that may be used, and products on them with threads and scratch memory."""

from __future__ import annotations

import ctypes
import platform
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from proofs.exact.backend.matmul_kernels import Planes

_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18
"""x86-64's system call; "use this register state"; the tiles' (Linux, Documentation/arch/x86/xstate.rst)."""

_WORTH_SHARING = 2**22
"""Multiply-accumulates from which a second thread saves more than its start costs (about 20 us)."""
_CACHE_BYTES = 2**19
TILE_ROWS = 16
TILE_BYTES = 64
"""A row of a tile: 64 slices of a row of a; or four slices of each of 16 rows of b."""
TILE_SIZE = TILE_ROWS * TILE_BYTES

_scratch = threading.local()


@cache
def usable() -> bool:
    """Whether the processor has AMX for int8, the system lets this process use it, and numba compiles for it."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        from llvmlite.binding import get_host_cpu_features
        from numba import config
    except ImportError:
        return False
    features = get_host_cpu_features()
    elsewhere = getattr(config, "CPU_NAME", None) or getattr(config, "CPU_FEATURES", None)
    if elsewhere or not (features.get("amx-int8") and features.get("amx-tile")):
        return False  # made to compile for another processor, LLVM would not know the instructions
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


@cache
def _config() -> NDArray[np.uint8]:
    """LDTILECFG's 64 bytes: palette 1, eight tiles of 16 rows of 64 bytes."""
    config = np.zeros(64, dtype=np.uint8)
    config[0] = 1
    config[16:32].view(np.uint16)[:] = 64
    config[48:56] = 16
    return config


@cache
def _pool(helpers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(helpers, thread_name_prefix="amx")


def packed_bytes(slices: tuple[int, int], batch: int, m: int, n: int, k: int) -> tuple[int, int]:
    """What the tiles of a and of b take: whole pairs of tiles, so 2 KiB for a product of two numbers."""
    k_blocks = -(-k // 64)
    row_pairs, column_pairs = -(-m * slices[0] // 32), -(-n * slices[1] // 32)
    return batch * row_pairs * 2 * k_blocks * TILE_SIZE, batch * column_pairs * 2 * k_blocks * TILE_SIZE


def multiply(slices: tuple[int, int], threads: int, a: Planes, b: Planes, out: Planes) -> None:
    """a · bᵀ of int8 or int16 planes, [..., m, k] by [..., n, k], of `slices` slices each, into int32 or int64 planes.

    Operands may have any strides; one of their last two should be 1, otherwise they are copied.
    """
    from proofs.exact.backend import amx

    x, y, z = a[0], b[0], out[0]
    m, n, k = x.shape[-2], y.shape[-2], x.shape[-1]
    p, q = slices
    k_blocks = -(-k // 64)
    row_pairs, column_pairs = -(-m * p // 32), -(-n * q // 32)
    batch = x.shape[:-2].numel()
    packed_a, packed_b = (
        _memory(which, size) for which, size in zip("ab", packed_bytes(slices, batch, m, n, k), strict=True)
    )
    parts = threads if batch * m * n * k >= _WORTH_SHARING else 1
    _pack(amx.PACK[str(x.dtype)[6:]], x, p, 2 * row_pairs // p, False, packed_a, parts)
    _pack(amx.PACK[str(y.dtype)[6:]], y, q, 2 * column_pairs // q, True, packed_b, parts)
    # As many columns as leave room in the second-level cache for the rows that pass by.
    columns = max(1, _CACHE_BYTES // (2 * k_blocks * TILE_SIZE))
    flat = z.view(-1).numpy()
    config = _config()
    run = amx.MULTIPLY[flat.dtype.name]

    def rows(first: int, last: int) -> None:
        run(packed_a, packed_b, config, first, last, p, q, k_blocks, m, n, columns, flat)

    _share(rows, batch * row_pairs, parts)


def _pack(
    pack: Any, x: torch.Tensor, slices: int, blocks: int, for_b: bool, packed: NDArray[np.int8], parts: int
) -> None:
    if 1 not in x.stride()[-2:]:
        x = x.contiguous()
    rows, k = x.shape[-2:]
    k_is_last = x.stride(-1) == 1
    step = x.stride(-2 if k_is_last else -1)
    offsets = np.zeros(1, dtype=np.int64)
    for side, stride in zip(x.shape[:-2], x.stride()[:-2], strict=True):
        offsets = (offsets[:, None] + np.arange(side) * stride).reshape(-1)
    reach = 1 + int(offsets[-1]) + (rows - 1) * x.stride(-2) + (k - 1) * x.stride(-1)
    source = x.as_strided((reach,), (1,)).numpy()

    def some(first: int, last: int) -> None:
        pack(source, offsets, first, last, blocks, rows, k, step, slices, k_is_last, for_b, packed)

    _share(some, len(offsets) * blocks, parts)


def _share(work: Callable[[int, int], None], count: int, parts: int) -> None:
    """Runs work(first, last) over 0..count in `parts` threads, this one among them."""
    ends = [count * part // parts for part in range(parts + 1)]
    others = [_pool(parts - 1).submit(work, *span) for span in pairwise(ends[1:])] if parts > 1 else []
    work(ends[0], ends[1])
    for other in others:
        other.result()


def _memory(which: str, size: int) -> NDArray[np.int8]:
    """At least `size` bytes that start at a multiple of 64, this thread's own, kept for the next product."""
    kept: NDArray[np.int8] | None = getattr(_scratch, which, None)
    if kept is None or kept.size < size:
        memory = np.empty(size + 64, dtype=np.int8)
        kept = memory[-memory.ctypes.data % 64 :]
        setattr(_scratch, which, kept)
    return kept
