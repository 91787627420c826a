"""What a kernel is made from, and what it is: the borders of code generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proofs.exact.backend.layouts import Layout
from proofs.exact.backend.memory import Slot
from proofs.exact.opcodes import Opcode
from proofs.exact.ranges import ValueInfo


@dataclass(frozen=True, slots=True)
class Parameter:
    """One pointer of a kernel: a plane of a stored value; `base` None is the flag that a failed CHECK sets."""

    base: int | None
    layout: Layout
    plane: int
    written: bool


@dataclass(frozen=True, slots=True)
class Fold:
    """A reduction that a kernel adds (or maximises) into memory, which must hold the neutral element before."""

    base: int
    opcode: Opcode


@dataclass(frozen=True, slots=True)
class KernelSource:
    """`text` is complete LLVM assembly defining `symbol`; `extent` is where the outermost loop ends."""

    symbol: str
    text: str
    parameters: tuple[Parameter, ...]
    extent: int
    folds: tuple[Fold, ...]


@dataclass(frozen=True, slots=True)
class Storage:
    """Where a group's values lie: `reads` the layout of each value it reads, `writes` those in which it has to store
    each value it makes; `constants` the values of one known element; `plane_bounds` of each Product it reads;
    `in_place` the input whose memory a stored value takes, element by element: then both are one pointer."""

    infos: Mapping[int, ValueInfo]
    reads: Mapping[int, Layout]
    writes: Mapping[int, tuple[Layout, ...]]
    constants: Mapping[int, int]
    plane_bounds: Mapping[int, int]
    in_place: Mapping[Slot, int]


def neutral(opcode: Opcode, bits: int) -> int:
    """What a reduction starts from."""
    return 0 if opcode is Opcode.REDUCE_SUM else -(1 << (bits - 1))
