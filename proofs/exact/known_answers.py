"""The start-up check of every kernel: known questions, answered by the definition on Python integers.

`trusted_kernels` is what the executor runs. A kernel that gets one element wrong here is replaced in this process, with
a warning: the float64 product by the int64 one, any other by its definition, thousands of times slower but right.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from proofs.exact import kernels, opcodes
from proofs.exact.definitions import IntArray
from proofs.exact.kernels import Buffer, Call, Kernel
from proofs.exact.opcodes import Opcode
from proofs.exact.permutation import mix64
from proofs.exact.ranges import ValueInfo

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """Operands, and attributes, of one call."""

    operands: tuple[IntArray, ...]
    attributes: tuple[int, ...] = ()


def noise(shape: tuple[int, ...], lo: int, hi: int, salt: int = 0) -> IntArray:
    """Scattered integers in lo..hi with both ends among them: the ends are where kernels break."""
    count = 1
    for side in shape:
        count *= side
    values = [lo + mix64(salt * 2**32 + i) % (hi - lo + 1) for i in range(count)]
    values[:1] = [hi]
    values[-1:] = [lo] if count > 1 else values[-1:]
    return IntArray(shape, tuple(values))


BIG = 2**61
_WIDE = noise((3, 37), -BIG, BIG)
_TIES = IntArray((4, 3), (-3, -2, -1, 0, 1, 2, 3, -6, 6, 2**40 + 2, -(2**40) - 2, -(2**62)))

QUESTIONS: dict[Opcode, tuple[Question, ...]] = {
    Opcode.MATMUL_NT: (Question((noise((5, 19), -(2**29), 2**29, 1), noise((7, 19), -(2**28), 2**28, 2))),),
    Opcode.TRANSPOSE: (Question((_WIDE,)),),
    Opcode.ADD: (Question((_WIDE, noise((3, 37), -BIG, BIG, 3))),),
    Opcode.SUB: (Question((_WIDE, noise((3, 37), -BIG, BIG, 4))),),
    Opcode.MUL: (Question((noise((3, 37), -(2**30), 2**30, 5), noise((3, 37), -(2**31), 2**31, 6))),),
    Opcode.RESCALE: (
        *(Question((_WIDE,), (shift, bits)) for shift, bits in ((0, 64), (0, 20), (7, 55), (31, 16), (60, 4))),
        *(Question((_TIES,), (shift, 8)) for shift in (1, 2)),
    ),
    Opcode.CLAMP: (Question((_WIDE,), (-(2**50), 2**49)), Question((_WIDE,), (0, 0))),
    Opcode.RELU: (Question((_WIDE,)), Question((_TIES,))),
    Opcode.POSITIVE: (Question((_WIDE,)), Question((_TIES,))),
    Opcode.LOOKUP: (Question((noise((3, 37), 0, 40, 7), noise((41,), -BIG, BIG, 8))),),
    Opcode.REDUCE_SUM: tuple(Question((noise((3, 37, 2), -(2**57), 2**57, 9),), (axis,)) for axis in range(3)),
    Opcode.REDUCE_MAX: tuple(Question((noise((3, 37, 2), -BIG, BIG, 10),), (axis,)) for axis in range(3)),
    Opcode.DIV_FLOOR: (
        Question((_WIDE, noise((3, 37), 1, 2**33, 11))),
        Question((_TIES, IntArray((4, 3), (2,) * 12))),
        Question((_WIDE, noise((3, 37), 1, BIG, 12))),
    ),
    Opcode.BROADCAST: (Question((noise((1, 5), -BIG, BIG, 13),), (4, 5)),),
    Opcode.RESHAPE: (Question((_WIDE,), (37, 3)),),
    Opcode.GATHER: (Question((_WIDE, IntArray((4,), (2, 0, 2, 1)))),),
    Opcode.ONE_HOT: (Question((IntArray((5,), (0, 3, -1, 4, 2**40)),), (4,)),),
    Opcode.PERMUTE: tuple(
        Question((IntArray((), (seed,)), IntArray((), (t,))), (n, batch))
        for seed, t, n, batch in (
            (2**63 - 1, 0, 1000, 64),
            (12345, 31, 17, 40),
            (-1, -3, 1, 2),
            (7, 2**30, 2**21 + 1, 9),
        )
    ),
}


@cache
def trusted_kernels() -> dict[Opcode, Kernel]:
    """Every kernel that has just proved itself on this machine, its definition in place of any that did not."""
    trusted = dict(kernels.KERNELS)
    for opcode, kernel in kernels.KERNELS.items():
        if not all(answers(opcode, kernel, question) for question in QUESTIONS[opcode]):
            log.warning("%s is wrong on this machine: running its definition instead, very slowly", opcode.name.lower())
            trusted[opcode] = from_definition(opcode)
    return trusted


@cache
def float64_matmul_is_exact() -> bool:
    """Whether this machine's BLAS gets products right whose sums come within a few of 2^53, in every operand layout."""
    k = 301
    a = torch.tensor(noise((37, k), -(2**22), 2**22, 14).values).reshape(37, k)
    b = torch.tensor(noise((41, k), -(2**22) + 1, 2**22 - 1, 15).values).reshape(41, k)
    a[0], b[0] = 2**22, 2**22 - 1  # the greatest sum: 301 * 2^44, just below 2^53
    a[1], b[1] = -(2**22), 1 - 2**22
    want = (a[:, :, None] * b.t()[None]).sum(dim=1)
    layouts = [(a, b), (a.t().contiguous().t(), b), (a, b.t().contiguous().t())]
    for left, right in layouts:
        got = (left.to(torch.float64) @ right.to(torch.float64).t()).to(torch.int64)
        if not torch.equal(got, want):
            log.warning("float64 matrix products are not exact on this machine: using int64, about twice as slow")
            return False
    return True


def answers(opcode: Opcode, kernel: Kernel, question: Question) -> bool:
    """Whether the kernel gives what the definition gives. A kernel that raises has not answered."""
    infos = tuple(info_of(operand, constant=opcode is Opcode.LOOKUP) for operand in question.operands)
    call = Call(question.attributes, infos, opcodes.infer(opcode, infos, question.attributes))
    want = opcodes.define(opcode, question.operands, question.attributes)
    try:
        got = kernel([Buffer(to_torch(operand)) for operand in question.operands], call).int64
    except (RuntimeError, ImportError) as error:
        log.warning("%s fails its known-answer test: %s", opcode.name.lower(), error)
        return False
    return tuple(got.shape) == want.shape and tuple(got.reshape(-1).tolist()) == want.values


def from_definition(opcode: Opcode) -> Kernel:
    """The specification itself as a kernel."""

    def kernel(operands: Sequence[Buffer], call: Call) -> Buffer:
        arrays = [from_torch(operand.int64) for operand in operands]
        return Buffer(to_torch(opcodes.define(opcode, arrays, call.attributes)))

    return kernel


def info_of(array: IntArray, *, constant: bool = False) -> ValueInfo:
    """The tightest that can be known of an array."""
    return ValueInfo(array.shape, 0, min(array.values), max(array.values), constant)


def to_torch(array: IntArray) -> torch.Tensor:
    return torch.tensor(array.values, dtype=torch.int64).reshape(array.shape)


def from_torch(values: torch.Tensor) -> IntArray:
    return IntArray(tuple(values.shape), tuple(values.reshape(-1).tolist()))
