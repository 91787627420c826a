"""Rules for matrix products: operands of 16 bits, an exact sum of products, the bias added before the one rounding."""

from __future__ import annotations

from fractions import Fraction

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler import arithmetic
from proofs.exact.compiler.hoist import transposed
from proofs.exact.compiler.lowering import Lowering, rule
from proofs.exact.opcodes import Opcode
from proofs.exact.program import Op

aten = torch.ops.aten


def rounded_operand(lo: Lowering, x: Handle) -> Handle:
    """The 16-bit copy that products read. A transposed value is the transpose of the copy, so there is one copy."""
    if isinstance(x.source, Op) and x.source.opcode is Opcode.TRANSPOSE:
        return transposed(lo, rounded_operand(lo, x.operands[0]), x.source.attributes)
    return lo.operand(x)


def product(lo: Lowering, x: Handle, y: Handle) -> Handle:
    """x [..., m, k] times y [..., k, n], equal leading sides: the exact sums."""
    rank = len(x.shape)
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    return lo.b.matmul_nt(rounded_operand(lo, x), transposed(lo, rounded_operand(lo, y), swapped))


@rule(aten.mm.default, aten.bmm.default)
def mm(lo: Lowering, x: Handle, y: Handle) -> Handle:
    return product(lo, x, y)


@rule(aten.addmm.default, aten.baddbmm.default)
def addmm(lo: Lowering, bias: Handle, x: Handle, y: Handle, *, beta: float = 1, alpha: float = 1) -> Handle:
    """beta * bias + alpha * (x @ y)."""
    b = lo.b
    sums = arithmetic.scale(b, product(lo, x, y), Fraction(alpha))
    if beta == 0:
        return sums
    # The bias at the products' scale, even if it is coarser than the format: they are known no finer.
    return arithmetic.add(b, sums, arithmetic.scale(b, bias, Fraction(beta)), min(lo.format.frac, sums.frac))


@rule(aten.mv.default)
def mv(lo: Lowering, x: Handle, y: Handle) -> Handle:
    """[m, k], [k] -> [m]."""
    row = lo.b.reshape(rounded_operand(lo, y), (1, *y.shape))
    return lo.b.reshape(lo.b.matmul_nt(rounded_operand(lo, x), row), (x.shape[0],))


@rule(aten.dot.default)
def dot(lo: Lowering, x: Handle, y: Handle) -> Handle:
    """[k], [k] -> scalar."""
    left, right = (lo.b.reshape(rounded_operand(lo, side), (1, *side.shape)) for side in (x, y))
    return lo.b.reshape(lo.b.matmul_nt(left, right), ())
