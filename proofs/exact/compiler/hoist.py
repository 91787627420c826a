"""Transpositions that meet their inverse: found through element-wise operations, they cost nothing.

A convolution computes [channels, pixels, images] and PyTorch's graph speaks of [images, channels, height, width]: a
transposition on the way out, its inverse on the way into the next. Between them stand roundings, ReLUs and masks, which
do not care in which order they see the elements. So where a transposition is asked for of a value that such operations
made from transposed ones, the operations are written again on the values before: nobody reads the first copies any
more, and `build` drops them.
"""

from __future__ import annotations

from collections.abc import Sequence

from proofs.exact.builder import Handle
from proofs.exact.compiler.lowering import Lowering
from proofs.exact.opcodes import Opcode
from proofs.exact.program import Op

ELEMENTWISE = {
    Opcode.ADD,
    Opcode.SUB,
    Opcode.MUL,
    Opcode.RESCALE,
    Opcode.CLAMP,
    Opcode.RELU,
    Opcode.POSITIVE,
    Opcode.DIV_FLOOR,
    Opcode.SELECT,
    Opcode.ISQRT,
    Opcode.LOOKUP,
}
MAX_DEPTH = 12
"""How far back an inverse is looked for: rounding, bias, rounding, ReLU and a mask are six."""


def transposed(lo: Lowering, x: Handle, axes: Sequence[int]) -> Handle:
    """Axis i of the result is axis axes[i] of x. Nothing is emitted where nothing moves."""
    order = tuple(axes)
    if order == tuple(range(len(order))):
        return x
    if _is(x, Opcode.TRANSPOSE):
        inner = _attributes(x)
        return transposed(lo, x.operands[0], [inner[axis] for axis in order])
    if _meets_inverse(x, order, MAX_DEPTH, {}):
        return _rewritten(lo, x, order, {})
    return lo.b.transpose(x, order)


def _meets_inverse(x: Handle, axes: tuple[int, ...], depth: int, known: dict[Handle, bool]) -> bool:
    """Whether every path back from x through element-wise operations ends in something broadcast, which is small, or
    in what this transposition undoes, and at least one in the latter.
    """
    if x not in known:
        if _is(x, Opcode.TRANSPOSE):
            inner = _attributes(x)
            known[x] = [inner[axis] for axis in axes] == list(range(len(axes)))
        elif depth and isinstance(x.source, Op) and x.source.opcode in ELEMENTWISE:
            whole = [operand for operand in _moving(x) if not _is(operand, Opcode.BROADCAST)]
            known[x] = bool(whole) and all(_meets_inverse(operand, axes, depth - 1, known) for operand in whole)
        else:
            known[x] = False
    return known[x]


def _rewritten(lo: Lowering, x: Handle, axes: tuple[int, ...], done: dict[Handle, Handle]) -> Handle:
    if x not in done:
        if _is(x, Opcode.TRANSPOSE):
            done[x] = x.operands[0]
        elif _is(x, Opcode.BROADCAST):
            small = transposed(lo, x.operands[0], axes)
            done[x] = lo.b.broadcast(small, tuple(x.shape[axis] for axis in axes))
        else:
            moved = [_rewritten(lo, operand, axes, done) for operand in _moving(x)]
            done[x] = _emit(lo, x, [*moved, *x.operands[len(moved) :]])
    return done[x]


def _emit(lo: Lowering, like: Handle, operands: Sequence[Handle]) -> Handle:
    """The operation of `like` on other operands, through the builder's own methods."""
    b, attributes = lo.b, _attributes(like)
    assert isinstance(like.source, Op)
    match like.source.opcode:
        case Opcode.RESCALE:
            shift, bits = attributes
            return b.rescale(operands[0], frac=operands[0].frac - shift, bits=bits)
        case Opcode.CLAMP:
            return b.clamp(operands[0], *attributes)
        case opcode:
            result = getattr(b, opcode.name.lower())(*operands)
            assert isinstance(result, Handle)
            return result


def _moving(x: Handle) -> tuple[Handle, ...]:
    """The operands of an element-wise operation that have its shape: all but the table of a LOOKUP."""
    return x.operands[:1] if _is(x, Opcode.LOOKUP) else x.operands


def _is(x: Handle, opcode: Opcode) -> bool:
    return isinstance(x.source, Op) and x.source.opcode is opcode


def _attributes(x: Handle) -> tuple[int, ...]:
    assert isinstance(x.source, Op)
    return x.source.attributes
