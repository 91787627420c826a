"""The start-up check of generated code: each operation answers known questions before any program may fuse it.

An operation that gets one element wrong, or whose code LLVM cannot make here, is left to its torch kernel in this
process, with a warning. The kernels are cached on disk: after the first time the check costs a fraction of a second.
"""

from __future__ import annotations

import logging
from functools import cache

from proofs.exact import opcodes
from proofs.exact.backend.fused import FusedPlan
from proofs.exact.backend.graph import ELEMENTWISE, REDUCTIONS
from proofs.exact.definitions import IntArray
from proofs.exact.initialise import zeros
from proofs.exact.known_answers import QUESTIONS, Question, from_torch
from proofs.exact.opcodes import Opcode
from proofs.exact.overflow import Overflow
from proofs.exact.program import Constant, Input, InputKind, Op, Program
from proofs.exact.settings import Settings
from proofs.exact.tensor_type import TensorType, bits_for

log = logging.getLogger(__name__)


@cache
def trusted_opcodes() -> frozenset[Opcode]:
    """The operations that generated code gets right on this machine. Raises RuntimeError or OSError where it cannot
    generate code at all."""
    trusted = set()
    for opcode in sorted(ELEMENTWISE | REDUCTIONS):
        if all(answers(opcode, question) for question in QUESTIONS[opcode]):
            trusted.add(opcode)
        else:
            log.warning("generated code for %s is wrong on this machine: not fusing it", opcode.name.lower())
    return frozenset(trusted)


def answers(opcode: Opcode, question: Question) -> bool:
    """Whether a program of this one operation computes what the definition says, or stops where it stops."""
    program = program_of(opcode, question)
    plan = FusedPlan(program, Settings(), frozenset({opcode}))
    after = plan.run({"out": zeros(program.state_types["out"])}, plan.bind({}, 0))
    try:
        want = opcodes.define(opcode, question.operands, question.attributes)
    except Overflow:
        return after is None
    return after is not None and from_torch(after["out"].values.long()) == want


def program_of(opcode: Opcode, question: Question) -> Program:
    """Constants in, one operation, its result the new state `out`."""
    constants = tuple(Constant.of(type_of(operand), operand.values) for operand in question.operands)
    infos = [constant.info for constant in constants]
    result = opcodes.infer(opcode, infos, question.attributes).type
    op = Op(opcode, tuple(range(1, 1 + len(constants))), question.attributes)
    return Program((Input("out", InputKind.STATE, result),), constants, (op,), (1 + len(constants),))


def type_of(array: IntArray) -> TensorType:
    """The narrowest type of an array's elements."""
    return TensorType(array.shape, bits_for(min(array.values), max(array.values)), 0)
