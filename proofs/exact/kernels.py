"""What computes each operation: torch on int64, and float64 for matrix products whose every partial sum it can hold.

An exact sum does not depend on its order, so BLAS, thread count and tile size can't change a bit. But a library may be
wrong on some machine (measured: an int8 product saturating on CPUs without VNNI), so before first use in a process
every kernel answers known questions (proofs/exact/known_answers.py) and is replaced by its definition on Python
integers if it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from proofs.exact import definitions, permutation, ranges
from proofs.exact.opcodes import SPECS, Opcode
from proofs.exact.overflow import Overflow
from proofs.exact.ranges import ValueInfo

FLOAT64_EXACT = 2**53
ISQRT_MAX = 3_037_000_499
"""floor(sqrt(2^63 - 1)); one more has a square beyond 63 bits."""


class Buffer:
    """The elements of one value, as int64, as float64, or both; each is made when first asked for and then kept.

    A weight that two products of a step read is converted once; a transpose of a buffer shares both forms with it.
    """

    __slots__ = ("_axes", "_float64", "_int64", "_transposed_from")

    def __init__(
        self,
        int64: Tensor | None = None,
        float64: Tensor | None = None,
        *,
        transposed_from: Buffer | None = None,
        axes: tuple[int, ...] = (),
    ) -> None:
        self._int64 = int64
        self._float64 = float64
        self._transposed_from = transposed_from
        self._axes = axes

    @property
    def int64(self) -> Tensor:
        if self._int64 is None:
            if self._transposed_from is not None:
                self._int64 = self._transposed_from.int64.permute(self._axes)
            else:
                assert self._float64 is not None
                self._int64 = self._float64.to(torch.int64)
        return self._int64

    @property
    def float64(self) -> Tensor:
        if self._float64 is None:
            if self._transposed_from is not None:
                self._float64 = self._transposed_from.float64.permute(self._axes)
            else:
                assert self._int64 is not None
                self._float64 = self._int64.to(torch.float64)
        return self._float64

    def transposed(self, axes: tuple[int, ...]) -> Buffer:
        return Buffer(transposed_from=self, axes=axes)


@dataclass(frozen=True, slots=True)
class Call:
    """What is known of one operation before it runs. The result may overwrite the int64 memory of operand `reuse`."""

    attributes: tuple[int, ...]
    operands: tuple[ValueInfo, ...]
    result: ValueInfo
    reuse: int | None = None


Kernel = Callable[[Sequence[Buffer], Call], Buffer]


def fits_float64(a: ValueInfo, b: ValueInfo) -> bool:
    """Whether operands and every partial sum of a · bᵀ, in any order, are whole numbers that float64 holds."""
    sums_fit = ranges.matmul_bound(a, b) < FLOAT64_EXACT
    return sums_fit and max(a.greatest_magnitude, b.greatest_magnitude) < FLOAT64_EXACT


def matmul_float64(operands: Sequence[Buffer], call: Call) -> Buffer:
    a, b = operands
    return Buffer(float64=a.float64 @ b.float64.mT)


def matmul_int64(operands: Sequence[Buffer], call: Call) -> Buffer:
    a, b = operands
    return Buffer(a.int64 @ b.int64.mT)


def transpose(operands: Sequence[Buffer], call: Call) -> Buffer:
    return operands[0].transposed(call.attributes)


def add(operands: Sequence[Buffer], call: Call) -> Buffer:
    return _binary(torch.add, operands, call)


def sub(operands: Sequence[Buffer], call: Call) -> Buffer:
    return _binary(torch.sub, operands, call)


def mul(operands: Sequence[Buffer], call: Call) -> Buffer:
    return _binary(torch.mul, operands, call)


def div_floor(operands: Sequence[Buffer], call: Call) -> Buffer:
    a, b = operands
    return Buffer(torch.div(a.int64, b.int64, rounding_mode="floor"))


def rescale(operands: Sequence[Buffer], call: Call) -> Buffer:
    shift, bits = call.attributes
    out = _target(operands, call)
    x = operands[0].int64
    if shift:
        # Not in place on the operand unless the plan says that nobody reads it again.
        x = torch.add(x, 1 << (shift - 1), out=out)
        x.bitwise_right_shift_(shift)
        out = x
    if may_saturate(call.operands[0], shift, bits):
        least, greatest = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        x = torch.clamp(x, least, greatest, out=out)
    return Buffer(x)


def clamp(operands: Sequence[Buffer], call: Call) -> Buffer:
    lo, hi = call.attributes
    return Buffer(torch.clamp(operands[0].int64, lo, hi, out=_target(operands, call)))


def relu(operands: Sequence[Buffer], call: Call) -> Buffer:
    return Buffer(torch.clamp(operands[0].int64, min=0, out=_target(operands, call)))


def positive(operands: Sequence[Buffer], call: Call) -> Buffer:
    return Buffer(torch.gt(operands[0].int64, 0).to(torch.int64))


def lookup(operands: Sequence[Buffer], call: Call) -> Buffer:
    index, table = operands
    return Buffer(torch.take(table.int64, index.int64))


def reduce_sum(operands: Sequence[Buffer], call: Call) -> Buffer:
    (axis,) = call.attributes
    return Buffer(operands[0].int64.sum(dim=axis, keepdim=True))


def reduce_max(operands: Sequence[Buffer], call: Call) -> Buffer:
    (axis,) = call.attributes
    return Buffer(operands[0].int64.amax(dim=axis, keepdim=True))


def broadcast(operands: Sequence[Buffer], call: Call) -> Buffer:
    return Buffer(operands[0].int64.expand(call.result.shape))


def reshape(operands: Sequence[Buffer], call: Call) -> Buffer:
    return Buffer(operands[0].int64.reshape(call.result.shape))


def gather(operands: Sequence[Buffer], call: Call) -> Buffer:
    (axis,) = call.attributes
    a, index = operands
    return Buffer(a.int64.index_select(axis, index.int64))


def one_hot(operands: Sequence[Buffer], call: Call) -> Buffer:
    (classes,) = call.attributes
    x = operands[0].int64
    return Buffer((x.unsqueeze(-1) == torch.arange(classes, device=x.device)).to(torch.int64))


def permute(operands: Sequence[Buffer], call: Call) -> Buffer:
    n, batch = call.attributes
    seed, t = (int(operand.int64) for operand in operands)
    out = np.empty(batch, dtype=np.int64)
    # Imported here, so that a machine without numba fails this kernel's known-answer test and not the program.
    from proofs.exact import permutation_bulk

    permutation_bulk.fill_indices(
        np.uint64(seed & permutation.MASK64), t * batch, n, np.uint64(permutation.half_bits(n)), out
    )
    return Buffer(torch.from_numpy(out).to(operands[0].int64.device))


def scatter_add(operands: Sequence[Buffer], call: Call) -> Buffer:
    a, index = (operand.int64 for operand in operands)
    out = torch.zeros(call.result.shape, dtype=torch.int64, device=a.device)
    return Buffer(out.scatter_add_(-1, index.expand(a.shape), a))


def slice_(operands: Sequence[Buffer], call: Call) -> Buffer:
    axis, start, stop = call.attributes
    return Buffer(operands[0].int64.narrow(axis, start, stop - start))


def concat(operands: Sequence[Buffer], call: Call) -> Buffer:
    (axis,) = call.attributes
    return Buffer(torch.cat([operand.int64 for operand in operands], dim=axis))


def select(operands: Sequence[Buffer], call: Call) -> Buffer:
    condition, a, b = (operand.int64 for operand in operands)
    return Buffer(torch.where(condition == 1, a, b))


def isqrt(operands: Sequence[Buffer], call: Call) -> Buffer:
    x = operands[0].int64
    # The float64 root of a 63-bit number can be one too great or too small; no square of r may overflow on the way.
    r = x.to(torch.float64).sqrt_().to(torch.int64).clamp_(max=ISQRT_MAX)
    r -= (r * r > x).to(torch.int64)
    r += (x - r * r > 2 * r).to(torch.int64)
    return Buffer(r)


def random(operands: Sequence[Buffer], call: Call) -> Buffer:
    stream, bits, *shape = call.attributes
    seed, t = (operand.int64 for operand in operands)
    key = definitions.random_key(int(seed), int(t), stream)
    word = torch.arange(call.result.elements, device=t.device) + _signed(key)  # int64 arithmetic is modulo 2^64
    return Buffer(_logical_shift(_mix64(word), 64 - bits).reshape(shape))


def check(operands: Sequence[Buffer], call: Call) -> Buffer:
    lo, hi = call.attributes
    x = operands[0].int64
    least, greatest = (int(end) for end in torch.aminmax(x))
    if least < lo or greatest > hi:
        flat = x.reshape(-1)
        element = int(torch.nonzero((flat < lo) | (flat > hi))[0])
        raise Overflow(element, int(flat[element]))
    return operands[0]


def _mix64(word: Tensor) -> Tensor:
    """permutation.mix64 of every element, as signed 64-bit words."""
    z = word + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _logical_shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _logical_shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _logical_shift(z, 31)


def _signed(word: int) -> int:
    return word - (word >> 63 << 64)


def _logical_shift(word: Tensor, bits: int) -> Tensor:
    """Right, with zeros from the left; torch has no unsigned words to shift."""
    return (word >> bits) & ((1 << (64 - bits)) - 1)


KERNELS: dict[Opcode, Kernel] = {
    Opcode.MATMUL_NT: matmul_int64,
    Opcode.TRANSPOSE: transpose,
    Opcode.ADD: add,
    Opcode.SUB: sub,
    Opcode.MUL: mul,
    Opcode.RESCALE: rescale,
    Opcode.CLAMP: clamp,
    Opcode.RELU: relu,
    Opcode.POSITIVE: positive,
    Opcode.LOOKUP: lookup,
    Opcode.REDUCE_SUM: reduce_sum,
    Opcode.REDUCE_MAX: reduce_max,
    Opcode.DIV_FLOOR: div_floor,
    Opcode.BROADCAST: broadcast,
    Opcode.RESHAPE: reshape,
    Opcode.GATHER: gather,
    Opcode.ONE_HOT: one_hot,
    Opcode.PERMUTE: permute,
    Opcode.SCATTER_ADD: scatter_add,
    Opcode.SLICE: slice_,
    Opcode.CONCAT: concat,
    Opcode.SELECT: select,
    Opcode.ISQRT: isqrt,
    Opcode.RANDOM: random,
    Opcode.CHECK: check,
}

if KERNELS.keys() != SPECS.keys():
    raise ImportError("an operation without a kernel, or a kernel without an operation")

VIEWS = frozenset({Opcode.TRANSPOSE, Opcode.BROADCAST, Opcode.RESHAPE, Opcode.SLICE, Opcode.CHECK})
"""The result may be the operand's own memory, seen otherwise."""

MAY_REUSE = frozenset({Opcode.ADD, Opcode.SUB, Opcode.MUL, Opcode.RESCALE, Opcode.CLAMP, Opcode.RELU})
"""The kernel can write its result over a dead operand."""


def may_saturate(a: ValueInfo, shift: int, bits: int) -> bool:
    """Whether a rescale can meet a value beyond `bits`; where it can't, nothing is spent on clamping."""
    lo, hi = ranges.rescaled_range(a, shift)
    return lo < -(1 << (bits - 1)) or hi > (1 << (bits - 1)) - 1


def may_alias(opcode: Opcode, a: ValueInfo, attributes: tuple[int, ...]) -> bool:
    """Whether the result of an operation on `a` may share its memory: views, and a rescale that has nothing to do."""
    return opcode in VIEWS or (opcode is Opcode.RESCALE and attributes[0] == 0 and not may_saturate(a, *attributes))


def _target(operands: Sequence[Buffer], call: Call) -> Tensor | None:
    return None if call.reuse is None else operands[call.reuse].int64


def _binary(operation: Callable[..., Tensor], operands: Sequence[Buffer], call: Call) -> Buffer:
    a, b = operands
    return Buffer(operation(a.int64, b.int64, out=_target(operands, call)))
