"""The closed set of operations, and what belongs to each: its number, its arity, its definition and its type rule.

An operation without all its faces does not exist: the definition on Python integers (proofs/exact/definitions.py), the
static rule (proofs/exact/ranges.py) and the kernel (proofs/exact/kernels.py, which refuses to load if one is missing).
Numbers are part of program roots: never reused, never renumbered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from proofs.exact import definitions, ranges
from proofs.exact.definitions import IntArray
from proofs.exact.ranges import RangeError, ValueInfo


class Opcode(IntEnum):
    MATMUL_NT = 1
    TRANSPOSE = 2
    ADD = 3
    SUB = 4
    MUL = 5
    RESCALE = 6
    CLAMP = 7
    RELU = 8
    POSITIVE = 9
    LOOKUP = 10
    REDUCE_SUM = 11
    REDUCE_MAX = 12
    DIV_FLOOR = 13
    BROADCAST = 14
    RESHAPE = 15
    GATHER = 16
    ONE_HOT = 17
    PERMUTE = 18


@dataclass(frozen=True, slots=True)
class OpSpec:
    """`operands` tensors and `attributes` integers in; one tensor out. `attributes` is None where they are a shape."""

    operands: int
    attributes: int | None
    definition: Callable[..., IntArray]
    rule: Callable[..., ValueInfo]


SPECS: dict[Opcode, OpSpec] = {
    Opcode.MATMUL_NT: OpSpec(2, 0, definitions.matmul_nt, ranges.matmul_nt),
    Opcode.TRANSPOSE: OpSpec(1, 0, definitions.transpose, ranges.transpose),
    Opcode.ADD: OpSpec(2, 0, definitions.add, ranges.add),
    Opcode.SUB: OpSpec(2, 0, definitions.sub, ranges.sub),
    Opcode.MUL: OpSpec(2, 0, definitions.mul, ranges.mul),
    Opcode.RESCALE: OpSpec(1, 2, definitions.rescale, ranges.rescale),
    Opcode.CLAMP: OpSpec(1, 2, definitions.clamp, ranges.clamp),
    Opcode.RELU: OpSpec(1, 0, definitions.relu, ranges.relu),
    Opcode.POSITIVE: OpSpec(1, 0, definitions.positive, ranges.positive),
    Opcode.LOOKUP: OpSpec(2, 0, definitions.lookup, ranges.lookup),
    Opcode.REDUCE_SUM: OpSpec(1, 1, definitions.reduce_sum, ranges.reduce_sum),
    Opcode.REDUCE_MAX: OpSpec(1, 1, definitions.reduce_max, ranges.reduce_max),
    Opcode.DIV_FLOOR: OpSpec(2, 0, definitions.div_floor, ranges.div_floor),
    Opcode.BROADCAST: OpSpec(1, None, definitions.broadcast, ranges.broadcast),
    Opcode.RESHAPE: OpSpec(1, None, definitions.reshape, ranges.reshape),
    Opcode.GATHER: OpSpec(2, 0, definitions.gather, ranges.gather),
    Opcode.ONE_HOT: OpSpec(1, 1, definitions.one_hot, ranges.one_hot),
    Opcode.PERMUTE: OpSpec(2, 2, definitions.permute, ranges.permute),
}


def define(opcode: Opcode, operands: Sequence[IntArray], attributes: Sequence[int]) -> IntArray:
    """The result that the specification gives."""
    return SPECS[opcode].definition(*operands, *attributes)


def infer(opcode: Opcode, operands: Sequence[ValueInfo], attributes: Sequence[int]) -> ValueInfo:
    """What is known of the result. Raises RangeError if the operation is not allowed on these operands."""
    spec = SPECS[opcode]
    if len(operands) != spec.operands:
        raise RangeError(f"takes {spec.operands} operands, has {len(operands)}")
    if spec.attributes is not None and len(attributes) != spec.attributes:
        raise RangeError(f"takes {spec.attributes} attributes, has {len(attributes)}")
    return spec.rule(*operands, *attributes)
