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
    SCATTER_ADD = 19
    SLICE = 20
    CONCAT = 21
    SELECT = 22
    ISQRT = 23
    RANDOM = 24
    CHECK = 25


@dataclass(frozen=True, slots=True)
class OpSpec:
    """`operands` tensors and integers named `attributes` in; one tensor out. A last name that starts with * stands for
    as many integers as the rule admits."""

    operands: int
    attributes: tuple[str, ...]
    definition: Callable[..., IntArray]
    rule: Callable[..., ValueInfo]
    rule_of_same: Callable[[ValueInfo], ValueInfo] | None = None
    """The rule where both operands are one value and that says more."""


SPECS: dict[Opcode, OpSpec] = {
    Opcode.MATMUL_NT: OpSpec(2, (), definitions.matmul_nt, ranges.matmul_nt),
    Opcode.TRANSPOSE: OpSpec(1, ("*axes",), definitions.transpose, ranges.transpose),
    Opcode.ADD: OpSpec(2, (), definitions.add, ranges.add),
    Opcode.SUB: OpSpec(2, (), definitions.sub, ranges.sub),
    Opcode.MUL: OpSpec(2, (), definitions.mul, ranges.mul, ranges.square),
    Opcode.RESCALE: OpSpec(1, ("shift", "bits"), definitions.rescale, ranges.rescale),
    Opcode.CLAMP: OpSpec(1, ("lo", "hi"), definitions.clamp, ranges.clamp),
    Opcode.RELU: OpSpec(1, (), definitions.relu, ranges.relu),
    Opcode.POSITIVE: OpSpec(1, (), definitions.positive, ranges.positive),
    Opcode.LOOKUP: OpSpec(2, (), definitions.lookup, ranges.lookup),
    Opcode.REDUCE_SUM: OpSpec(1, ("axis",), definitions.reduce_sum, ranges.reduce_sum),
    Opcode.REDUCE_MAX: OpSpec(1, ("axis",), definitions.reduce_max, ranges.reduce_max),
    Opcode.DIV_FLOOR: OpSpec(2, (), definitions.div_floor, ranges.div_floor),
    Opcode.BROADCAST: OpSpec(1, ("*shape",), definitions.broadcast, ranges.broadcast),
    Opcode.RESHAPE: OpSpec(1, ("*shape",), definitions.reshape, ranges.reshape),
    Opcode.GATHER: OpSpec(2, ("axis",), definitions.gather, ranges.gather),
    Opcode.ONE_HOT: OpSpec(1, ("classes",), definitions.one_hot, ranges.one_hot),
    Opcode.PERMUTE: OpSpec(2, ("n", "batch"), definitions.permute, ranges.permute),
    Opcode.SCATTER_ADD: OpSpec(2, ("m",), definitions.scatter_add, ranges.scatter_add),
    Opcode.SLICE: OpSpec(1, ("axis", "start", "stop"), definitions.slice_, ranges.slice_),
    Opcode.CONCAT: OpSpec(2, ("axis",), definitions.concat, ranges.concat),
    Opcode.SELECT: OpSpec(3, (), definitions.select, ranges.select),
    Opcode.ISQRT: OpSpec(1, (), definitions.isqrt, ranges.isqrt),
    Opcode.RANDOM: OpSpec(2, ("stream", "bits", "*shape"), definitions.random, ranges.random),
    Opcode.CHECK: OpSpec(1, ("lo", "hi"), definitions.check, ranges.check),
}


def define(opcode: Opcode, operands: Sequence[IntArray], attributes: Sequence[int]) -> IntArray:
    """The result that the specification gives. Raises Overflow where a CHECK fails."""
    return SPECS[opcode].definition(*operands, *attributes)


def infer(opcode: Opcode, operands: Sequence[ValueInfo], attributes: Sequence[int], *, same: bool = False) -> ValueInfo:
    """What is known of the result; `same` if both operands are one value. Raises RangeError if the operation is not
    allowed on these operands."""
    spec = SPECS[opcode]
    if len(operands) != spec.operands:
        raise RangeError(f"takes {spec.operands} operands, has {len(operands)}")
    named = spec.attributes
    if named and named[-1].startswith("*"):
        if len(attributes) < len(named) - 1:
            raise RangeError(f"takes {len(named) - 1} attributes and {named[-1][1:]}, has {len(attributes)}")
    elif len(attributes) != len(named):
        raise RangeError(f"takes {len(named)} attributes, has {len(attributes)}")
    if same and spec.rule_of_same is not None:
        return spec.rule_of_same(operands[0])
    return spec.rule(*operands, *attributes)
