"""What a plan does, one after the other: call a kernel, multiply, or run a library operation.

A step knows its planes when the plan is made, but for those that a caller owns (state, data, seed, outputs): these it
asks the frame for, which holds the flat planes of every slot during a run.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from proofs.exact.backend.graph import Node
from proofs.exact.backend.jit import Function
from proofs.exact.backend.kernel_source import KernelSource, neutral
from proofs.exact.backend.layouts import Layout, Plain, integers_of, plane_dtypes
from proofs.exact.backend.memory import Slot, viewed
from proofs.exact.backend.views import View
from proofs.exact.kernels import Buffer, Call, Kernel
from proofs.exact.opcodes import Opcode

Frame = Mapping[Slot, tuple[Tensor, ...]]
"""The flat planes of every slot."""

LEAST_SHARE = 32768
"""Elements for which a second thread pays: handing over a share costs about as long as computing this many."""


MOST_COPIED = 2**22
"""Bytes of the copies that further threads reduce into: nobody has counted them, and adding them up takes time too."""


class Step(Protocol):
    """Reads and writes planes of the frame."""

    def run(self, frame: Frame) -> None: ...


@dataclass(slots=True)
class KernelStep:
    """One call of generated code. `moving` are the pointers that change from run to run."""

    function: Function
    source: KernelSource
    slots: tuple[tuple[Slot, int], ...]
    """For each parameter but the flag: which plane of which slot."""
    moving: tuple[int, ...]
    flag: Tensor
    size: int
    threads: int
    pool: ThreadPoolExecutor | None
    _pointers: list[ctypes.Array[ctypes.c_void_p]] = field(default_factory=list)
    _addresses: list[int] = field(default_factory=list)
    _folds: list[tuple[int, int]] = field(default_factory=list)
    """Parameter and neutral element of each reduction into memory."""

    def prepare(self, frame: Frame) -> None:
        """Called once, with the planes that stay."""
        count = len(self.source.parameters)
        for fold in self.source.folds:
            place = next(i for i, one in enumerate(self.source.parameters) if one.base == fold.base and one.written)
            layout = self.source.parameters[place].layout
            assert isinstance(layout, Plain)
            self._folds.append((place, neutral(fold.opcode, layout.bits)))
        shares = self.threads if self.size >= 2 * LEAST_SHARE and self.source.extent > 1 else 1
        for _ in range(min(shares, self.source.extent)):
            array = (ctypes.c_void_p * max(count, 1))()
            self._pointers.append(array)
            self._addresses.append(ctypes.addressof(array))
        for place, parameter in enumerate(self.source.parameters):
            if parameter.base is None:
                self._set(place, self.flag.data_ptr())
            elif place not in self.moving:
                slot, plane = self.slots[place]
                self._set(place, frame[slot][plane].data_ptr())

    def _set(self, place: int, address: int) -> None:
        for array in self._pointers:
            array[place] = address

    def run(self, frame: Frame) -> None:
        for place in self.moving:
            slot, plane = self.slots[place]
            self._set(place, frame[slot][plane].data_ptr())
        for place, start in self._folds:
            slot, plane = self.slots[place]
            frame[slot][plane].fill_(start)
        extent = self.source.extent
        shares = len(self._pointers)
        if self._folds:
            slots = [self.slots[place] for place, _ in self._folds]
            shares = min(shares, 1 + MOST_COPIED // sum(frame[slot][plane].nbytes for slot, plane in slots))
        if shares == 1:
            self.function(self._addresses[0], 0, extent)
            return
        self._run_shared(frame, extent, shares)

    def _run_shared(self, frame: Frame, extent: int, shares: int) -> None:
        """Equal shares of the outermost loop. Reductions into memory get a copy for each further thread."""
        assert self.pool is not None
        copies: list[tuple[Tensor, list[Tensor], int]] = []
        for place, start in self._folds:
            slot, plane = self.slots[place]
            own = frame[slot][plane]
            others = [torch.full_like(own, start) for _ in range(shares - 1)]
            for array, other in zip(self._pointers[1:shares], others, strict=True):
                array[place] = other.data_ptr()
            copies.append((own, others, start))
        bounds = [extent * share // shares for share in range(shares + 1)]
        waiting = [
            self.pool.submit(self.function, self._addresses[share], bounds[share], bounds[share + 1])
            for share in range(1, shares)
        ]
        try:
            self.function(self._addresses[0], bounds[0], bounds[1])
        finally:
            wait(waiting)  # whoever interrupts us may free what the others still write to
        for future in waiting:
            future.result()
        for own, others, start in copies:
            for other in others:
                if start:
                    torch.maximum(own, other, out=own)
                else:
                    own.add_(other)


@dataclass(frozen=True, slots=True)
class Operand:
    """A walk over the planes of a slot, as tensors of `shape`."""

    slot: Slot
    view: View
    shape: tuple[int, ...]

    def planes(self, frame: Frame) -> tuple[Tensor, ...]:
        return tuple(viewed(plane, self.view, self.shape) for plane in frame[self.slot])


@dataclass(slots=True)
class MatmulStep:
    """A product of planes. `fixed` operands are viewed once."""

    multiply: Callable[[tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]], None]
    operands: tuple[Operand, Operand, Operand]
    """a, b, and the result."""
    fixed: tuple[bool, bool, bool]
    _planes: list[tuple[Tensor, ...] | None] = field(default_factory=list)

    def prepare(self, frame: Frame) -> None:
        """Called once, with the planes that stay."""
        self._planes = [
            operand.planes(frame) if fixed else None for operand, fixed in zip(self.operands, self.fixed, strict=True)
        ]

    def run(self, frame: Frame) -> None:
        a, b, out = (
            operand.planes(frame) if planes is None else planes
            for operand, planes in zip(self.operands, self._planes, strict=True)
        )
        self.multiply(a, b, out)


@dataclass(slots=True)
class LibraryStep:
    """An operation that is not fused: on narrow integers where torch has it, else its torch kernel on int64."""

    node: Node
    operands: tuple[Operand, ...]
    result: Operand
    kernel: Kernel
    narrow: bool
    """Whether the operation's own kernel is trusted here, so that the same torch function on narrow types is too."""

    def prepare(self, frame: Frame) -> None:
        """Nothing stays the same that would be worth keeping."""

    def run(self, frame: Frame) -> None:
        (out,) = self.result.planes(frame)
        if self.narrow and self._run_narrow(frame, out):
            return
        buffers = [Buffer(integers_of(operand.planes(frame), operand.slot.layout)) for operand in self.operands]
        call = Call(self.node.attributes, self.node.infos, self.node.info)
        out.copy_(self.kernel(buffers, call).int64)

    def _run_narrow(self, frame: Frame, out: Tensor) -> bool:
        if not all(isinstance(operand.slot.layout, Plain) for operand in self.operands):
            return False
        planes = [operand.planes(frame)[0] for operand in self.operands]
        match self.node.opcode:
            case Opcode.GATHER if planes[0].dtype == out.dtype:
                torch.index_select(planes[0], self.node.attributes[0], index_type(planes[1]), out=out)
            case Opcode.CONCAT:
                (axis,) = self.node.attributes
                first = planes[0].shape[axis]
                out.narrow(axis, 0, first).copy_(planes[0])
                out.narrow(axis, first, planes[1].shape[axis]).copy_(planes[1])
            case Opcode.SCATTER_ADD:
                out.zero_().index_add_(-1, index_type(planes[1]), planes[0].to(out.dtype))
            case _:
                return False
        return True


def index_type(index: Tensor) -> Tensor:
    """torch takes indices of 32 and 64 bits."""
    return index if index.dtype in (torch.int32, torch.int64) else index.to(torch.int32)


def whole_operand(slot: Slot, shape: Sequence[int]) -> Operand:
    """All of a slot."""
    return Operand(slot, View.whole(slot.base, shape), tuple(shape))


def empty_planes(layout: Layout, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """Flat, fresh, uninitialised."""
    return tuple(torch.empty(prod(shape), dtype=dtype) for dtype in plane_dtypes(layout))
