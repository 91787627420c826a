"""A slow interpreter of whole programs on Python integers: the specification of what an executor must compute.

For tests, golden vectors and doubters. It shares nothing with the executor but the definitions, the program and the
hash.
"""

from __future__ import annotations

from collections.abc import Mapping

from proofs.exact.definitions import IntArray
from proofs.exact.opcodes import define
from proofs.exact.overflow import Overflow
from proofs.exact.program import InputKind, Program

IntState = Mapping[str, IntArray]


def reference_step(program: Program, state: IntState, data: IntState, seed: int) -> dict[str, IntArray]:
    """The state after one step. Raises Overflow, with its operation, where a CHECK fails, and AssertionError if a
    value leaves the range that the static analysis promised."""
    values: list[IntArray] = []
    for given in program.inputs:
        if given.kind is InputKind.STATE:
            values.append(state[given.name])
        elif given.kind is InputKind.DATA:
            values.append(data[given.name])
        else:
            values.append(IntArray((), (seed,)))
    values += [IntArray(constant.type.shape, constant.values) for constant in program.constants]
    for number, op in enumerate(program.ops):
        try:
            values.append(define(op.opcode, [values[operand] for operand in op.operands], op.attributes))
        except Overflow as overflow:
            raise overflow.at(number) from overflow
    for value, info in zip(values, program.values, strict=True):
        assert value.shape == info.shape, f"{value.shape} is not {info}"
        assert info.lo <= min(value.values) and max(value.values) <= info.hi, f"{value} leaves {info}"
    return {name: values[number] for name, number in zip(program.state_types, program.outputs, strict=True)}


def reference_run(program: Program, state: IntState, data: IntState, seed: int, steps: int) -> dict[str, IntArray]:
    """The state after `steps` steps."""
    current = dict(state)
    for _ in range(steps):
        current = reference_step(program, current, data, seed)
    return current
