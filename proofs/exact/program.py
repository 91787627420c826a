"""A tensor program: a flat list of operations over exact tensors. It *is* the specification of a task.

Values are numbered and assigned once: inputs, then constants, then one per operation, which reads only earlier ones.
Inputs are of three kinds: `state` (parameters, optimiser, step counter: what a step reads and writes), `data` (a
shard), and at most one `seed` (a scalar that the executor gives). There is one output per state input: its value after
the step.

A Program can't be built wrong: the constructor checks the order of names and runs the static range analysis over
every operation, whoever builds it (ProgramBuilder, or the decoder of bytes from a stranger).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from proofs.exact import opcodes
from proofs.exact.opcodes import Opcode
from proofs.exact.ranges import ValueInfo
from proofs.exact.tensor_type import INT64_MAX, INT64_MIN, TensorError, TensorType

MAX_NAME_BYTES = 128
MAX_INPUTS = 2**16 - 1
MAX_OPS = 2**20
MAX_CONSTANTS = 2**16
MAX_CONSTANT_BYTES = 2**24
"""In all constants together: programs travel, and every verifier holds one in memory (a constant of one byte takes
half a kilobyte there)."""

SEED_TYPE = TensorType((), 64, 0)
SEED_NAME = "seed"


class ProgramError(ValueError):
    """A program that can't be, with the operation at fault."""


class InputKind(IntEnum):
    STATE = 0
    DATA = 1
    SEED = 2


@dataclass(frozen=True, slots=True)
class Input:
    name: str
    kind: InputKind
    type: TensorType


@dataclass(frozen=True)
class Constant:
    """A tensor inside the program: a table, a learning rate. It is held as its canonical bytes (row-major,
    little-endian, `type.width` bytes an element): a list of 250,000 Python integers would take 16 times as much.

    Raises ProgramError if the bytes are too few or too many, or an element is out of its type's range.
    """

    type: TensorType
    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) != self.type.nbytes:
            raise ProgramError(f"constant {self.type} has {len(self.data)} bytes")
        lo, hi = self.bounds
        if lo < self.type.lo or hi > self.type.hi:
            raise ProgramError(f"constant {self.type} has values in {lo}..{hi}")

    @classmethod
    def of(cls, type_: TensorType, values: Sequence[int]) -> Constant:
        """From elements in row-major order."""
        if len(values) != type_.elements:
            raise ProgramError(f"constant {type_} has {len(values)} values")
        lo, hi = min(values), max(values)
        if lo < type_.lo or hi > type_.hi:
            raise ProgramError(f"constant {type_} has values in {lo}..{hi}")
        return cls(type_, np.asarray(values, dtype=f"<i{type_.width}").tobytes())

    @cached_property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest element."""
        elements = self.array()
        return int(elements.min()), int(elements.max())

    @cached_property
    def info(self) -> ValueInfo:
        repeats = None
        if len(self.type.shape) == 1:
            repeats = int(np.unique(self.array(), return_counts=True)[1].max())
        return ValueInfo(self.type.shape, self.type.frac, *self.bounds, constant=True, repeats=repeats)

    @property
    def values(self) -> tuple[int, ...]:
        """The elements as Python integers, in row-major order."""
        return tuple(self.array().reshape(-1).tolist())

    def array(self) -> NDArray[np.signedinteger]:
        """The elements in their shape, read-only, as narrow as their type."""
        return np.frombuffer(self.data, dtype=f"<i{self.type.width}").reshape(self.type.shape)


@dataclass(frozen=True, slots=True)
class Op:
    """One operation: numbers of the values it reads, and its integers (what they mean: proofs/exact/definitions.py)."""

    opcode: Opcode
    operands: tuple[int, ...]
    attributes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Program:
    """Inputs in order of kind, then of name (UTF-8 bytes); `outputs[i]` is the new value of the i-th state input.

    Raises ProgramError if anything does not fit, naming the operation and the ranges.
    """

    inputs: tuple[Input, ...]
    constants: tuple[Constant, ...]
    ops: tuple[Op, ...]
    outputs: tuple[int, ...]
    values: tuple[ValueInfo, ...] = field(init=False, repr=False, compare=False)
    """What is known of every value, by number."""

    def __post_init__(self) -> None:
        self._check_inputs()
        if len(self.ops) > MAX_OPS:
            raise ProgramError(f"{len(self.ops)} operations: at most {MAX_OPS}")
        if len(self.constants) > MAX_CONSTANTS:
            raise ProgramError(f"{len(self.constants)} constants: at most {MAX_CONSTANTS}")
        if sum(constant.type.nbytes for constant in self.constants) > MAX_CONSTANT_BYTES:
            raise ProgramError(f"more than {MAX_CONSTANT_BYTES} bytes of constants")
        values = [ValueInfo.of(given.type) for given in self.inputs]
        values += [constant.info for constant in self.constants]
        for number, op in enumerate(self.ops):
            if any(not 0 <= operand < len(values) for operand in op.operands):
                raise ProgramError(f"operation {number} reads values {op.operands}, of which some do not exist yet")
            values.append(infer_op(op, [values[operand] for operand in op.operands], number))
        object.__setattr__(self, "values", tuple(values))
        self._check_outputs()

    def _check_inputs(self) -> None:
        if len(self.inputs) > MAX_INPUTS:
            raise ProgramError(f"{len(self.inputs)} inputs: at most {MAX_INPUTS}")
        keys = [(given.kind, given.name.encode()) for given in self.inputs]
        if keys != sorted(keys) or len({name for _, name in keys}) != len(keys):
            raise ProgramError("inputs must have names of their own and be in order of kind and name")
        if not self.state_types:
            raise ProgramError("a program without state has nothing to compute")
        for given in self.inputs:
            check_name(given.name)
            if given.kind is InputKind.SEED and (given.name, given.type) != (SEED_NAME, SEED_TYPE):
                raise ProgramError(f"the seed input is {SEED_NAME!r}: {SEED_TYPE}")

    def _check_outputs(self) -> None:
        states = list(self.state_types.items())
        if len(self.outputs) != len(states):
            raise ProgramError(f"{len(self.outputs)} outputs for {len(states)} state tensors")
        for (name, type_), number in zip(states, self.outputs, strict=True):
            if not 0 <= number < len(self.values):
                raise ProgramError(f"the output of state {name!r} is value {number}, which does not exist")
            value = self.values[number]
            if (value.shape, value.frac) != (type_.shape, type_.frac):
                raise ProgramError(f"state {name!r} is {type_}, its new value {value}")
            if value.lo < type_.lo or value.hi > type_.hi:
                raise ProgramError(f"state {name!r} is {type_}, its new value {value} may not fit: saturate it")

    @property
    def state_types(self) -> dict[str, TensorType]:
        """By name, ascending."""
        return {given.name: given.type for given in self.inputs if given.kind is InputKind.STATE}

    @property
    def data_types(self) -> dict[str, TensorType]:
        """By name, ascending."""
        return {given.name: given.type for given in self.inputs if given.kind is InputKind.DATA}

    @property
    def first_op(self) -> int:
        """Number of the first operation's value."""
        return len(self.inputs) + len(self.constants)

    def numbered_ops(self) -> Iterator[tuple[int, Op]]:
        """Operations with the numbers of their values."""
        return enumerate(self.ops, start=self.first_op)

    def root(self) -> bytes:
        """Merkle root over 1 KiB leaves of the canonical encoding: the program's name on chain."""
        from proofs.exact.encoding import program_root  # the encoding needs this module's types

        return program_root(self)


def infer_op(op: Op, operands: Sequence[ValueInfo], number: int) -> ValueInfo:
    """What is known of the result of operation `number`. Raises ProgramError naming the operation and the ranges."""
    if op.attributes and (min(op.attributes) < INT64_MIN or max(op.attributes) > INT64_MAX):
        raise ProgramError(f"{_place(op, number)}: attributes {op.attributes} beyond 64 bits")
    same = len(op.operands) == 2 and op.operands[0] == op.operands[1]
    try:
        return opcodes.infer(op.opcode, operands, op.attributes, same=same)
    except TensorError as error:
        raise ProgramError(f"{_place(op, number)}: {error}") from error


def _place(op: Op, number: int) -> str:
    return f"operation {number}, {op.opcode.name.lower()}"


def check_name(name: str) -> None:
    """Raises ProgramError unless 1 to 128 UTF-8 bytes of printable characters."""
    if not 1 <= len(name.encode()) <= MAX_NAME_BYTES or not name.isprintable():
        raise ProgramError(f"{name!r} is not a name: 1 to {MAX_NAME_BYTES} bytes of printable text")
