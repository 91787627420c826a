"""Where the planes of stored values are: in the arena, in tensors of the caller, in fresh outputs.

An output is never written while anybody holds it, or any view of it: a pool hands a buffer out again only when the
storage has no other owner. So a caller that drops the state before last makes the steps run in two sets of buffers, and
one that keeps states makes them allocate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from proofs.exact.backend.arena import rounded
from proofs.exact.backend.layouts import Layout, plane_dtypes
from proofs.exact.backend.views import View, contiguous

_use_count = getattr(torch._C, "_storage_Use_Count", None)
"""How many owners a storage has. torch has no public name for it; without it every output is allocated anew."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One value in one layout."""

    base: int
    layout: Layout


def stored_bytes(layout: Layout, elements: int) -> int:
    """Of all planes, each on cache lines of its own."""
    return sum(rounded(dtype.itemsize * elements) for dtype in plane_dtypes(layout))


def planes_in(block: Tensor, offset: int, layout: Layout, elements: int) -> tuple[Tensor, ...]:
    """The planes of a value at `offset` bytes of a block of uint8: flat, one behind the other."""
    planes = []
    for dtype in plane_dtypes(layout):
        size = dtype.itemsize * elements
        planes.append(block[offset : offset + size].view(dtype))
        offset += rounded(size)
    return tuple(planes)


def aligned_block(bytes_: int) -> Tensor:
    """Uninitialised uint8 that begins on a cache line."""
    block = torch.empty(bytes_ + 64, dtype=torch.uint8)
    start = -block.data_ptr() % 64
    return block[start : start + bytes_]


def viewed(plane: Tensor, view: View, shape: Sequence[int]) -> Tensor:
    """A walk over a flat plane as a tensor of `shape`: a view if strides can say it, else a copy."""
    if view.offset == 0 and view.dims == contiguous(plane.numel()):
        return plane.view(tuple(shape))
    offset = plane.storage_offset() + view.offset
    strides = view.strided(shape)
    if strides is not None:
        return plane.as_strided(tuple(shape), strides, offset)
    sizes = tuple(size for size, _ in view.dims)
    return plane.as_strided(sizes, tuple(stride for _, stride in view.dims), offset).reshape(tuple(shape))


def _owners_of_one_tensor() -> int:
    probe = torch.empty(1)
    return int(_use_count(probe.untyped_storage()._cdata)) if _use_count is not None else 0


_ALONE = _owners_of_one_tensor()
"""The tensor itself, and the storage object made to ask."""


@dataclass(slots=True)
class OutputPool:
    """Buffers of one output."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    buffers: list[Tensor] = field(default_factory=list)

    def take(self) -> Tensor:
        """A contiguous tensor that nobody else sees."""
        if _use_count is not None:
            for buffer in self.buffers:
                if _use_count(buffer.untyped_storage()._cdata) <= _ALONE:
                    return buffer.detach()
        fresh = torch.empty(self.shape, dtype=self.dtype)
        if _use_count is not None and len(self.buffers) < 2:
            self.buffers.append(fresh)
            return fresh.detach()
        return fresh
