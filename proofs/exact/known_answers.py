"""The start-up check of every kernel: known questions, answered by the definition on Python integers.

`trusted_kernels` is what the executor runs. A kernel that gets one element wrong here is replaced in this process, with
a warning: the float64 product by the int64 one, any other by its definition, thousands of times slower but right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from proofs.exact import kernels, opcodes
from proofs.exact.definitions import IntArray
from proofs.exact.kernels import ISQRT_MAX, Buffer, Call, Kernel
from proofs.exact.opcodes import Opcode
from proofs.exact.overflow import Overflow
from proofs.exact.permutation import mix64
from proofs.exact.ranges import ValueInfo
from proofs.exact.tensor_type import INT64_MAX

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
# Squares and their neighbours, where a float64 root is one off; the last is the greatest square of 63 bits.
_ROOTS = tuple(r * r + off for r in (1, 2, 2**16, 94_906_267, 2**31 - 1, 2**31, ISQRT_MAX) for off in (-1, 0, 1))

QUESTIONS: dict[Opcode, tuple[Question, ...]] = {
    Opcode.MATMUL_NT: (
        Question((noise((5, 19), -(2**29), 2**29, 1), noise((7, 19), -(2**28), 2**28, 2))),
        Question((noise((2, 3, 11), -(2**15), 2**15 - 1, 16), noise((2, 4, 11), -(2**15), 2**15 - 1, 17))),
        Question((noise((2, 3, 2, 5), -(2**7), 2**7, 18), noise((2, 3, 4, 5), -(2**31), 2**31, 19))),
    ),
    Opcode.TRANSPOSE: (
        Question((_WIDE,), (1, 0)),
        Question((noise((2, 3, 4), -BIG, BIG, 20),), (2, 0, 1)),
        Question((noise((2, 1, 3, 1, 2, 2), -BIG, BIG, 21),), (5, 2, 0, 4, 1, 3)),
    ),
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
    Opcode.GATHER: (
        Question((_WIDE, IntArray((4,), (2, 0, 2, 1))), (0,)),
        Question((noise((2, 5, 3), -BIG, BIG, 22), IntArray((7,), (4, 4, 0, 3, 1, 4, 2))), (1,)),
    ),
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
    Opcode.SCATTER_ADD: (
        Question((noise((2, 3, 9), -(2**58), 2**58, 23), IntArray((9,), (4, 0, 4, 2, 2, 4, 0, 4, 5))), (7,)),
        Question((noise((5,), -(2**58), 2**58, 24), IntArray((5,), (0,) * 5)), (1,)),
    ),
    Opcode.SLICE: (
        Question((_WIDE,), (1, 5, 31)),
        Question((noise((4, 3, 2), -BIG, BIG, 25),), (0, 3, 4)),
    ),
    Opcode.CONCAT: (
        Question((_WIDE, noise((3, 2), -BIG, BIG, 26)), (1,)),
        Question((noise((1, 2, 3), -BIG, BIG, 27), noise((2, 2, 3), -BIG, BIG, 28)), (0,)),
    ),
    Opcode.SELECT: (Question((noise((3, 37), 0, 1, 29), _WIDE, noise((3, 37), -BIG, BIG, 30))),),
    Opcode.ISQRT: (
        Question((noise((3, 37), 0, INT64_MAX, 31),)),
        Question((IntArray((len(_ROOTS),), _ROOTS),)),
    ),
    Opcode.RANDOM: tuple(
        Question((IntArray((), (seed,)), IntArray((), (t,))), (stream, bits, *shape))
        for seed, t, stream, bits, shape in (
            (2**63 - 1, 0, 0, 32, (5, 7)),
            (12345, 31, 2, 1, (40,)),
            (-1, -3, 2**63 - 1, 17, ()),
            (0, 2**40, 1, 8, (2, 3, 4)),
        )
    ),
    Opcode.CHECK: (
        Question((_WIDE,), (-BIG, BIG)),
        Question((_WIDE,), (-(2**60), 2**60)),
        Question((_TIES,), (-(2**62), 5)),
        Question((_TIES,), (-(2**62) + 1, 2**41)),
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
    layouts = [(a, b), (a.mT.contiguous().mT, b), (a, b.mT.contiguous().mT)]
    layouts += [(torch.stack([a, a.flip(0)]), torch.stack([b, b]))]  # a batch takes another path through the library
    for left, right in layouts:
        got = (left.to(torch.float64) @ right.to(torch.float64).mT).to(torch.int64)
        if not torch.equal(got, want if got.dim() == 2 else torch.stack([want, want.flip(0)])):
            log.warning("float64 matrix products are not exact on this machine: using int64, about twice as slow")
            return False
    return True


def answers(opcode: Opcode, kernel: Kernel, question: Question) -> bool:
    """Whether the kernel gives what the definition gives. A kernel that raises has not answered."""
    infos = tuple(info_of(operand, constant=opcode is Opcode.LOOKUP) for operand in question.operands)
    call = Call(question.attributes, infos, opcodes.infer(opcode, infos, question.attributes))
    want = asked(lambda: opcodes.define(opcode, question.operands, question.attributes))
    try:
        got = asked(
            lambda: from_torch(kernel([Buffer(to_torch(operand)) for operand in question.operands], call).int64)
        )
    except (RuntimeError, ImportError, LookupError, ValueError) as error:
        log.warning("%s fails its known-answer test: %s", opcode.name.lower(), error)
        return False
    return got == want


def asked(compute: Callable[[], IntArray]) -> IntArray | Overflow:
    """The answer, which is an Overflow where the question is a CHECK that fails."""
    try:
        return compute()
    except Overflow as overflow:
        return overflow


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
