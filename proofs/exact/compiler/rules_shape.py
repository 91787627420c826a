"""Rules for whatever moves numbers without changing them: views, slices, joins, padding, choice by index.

Every result keeps its operand's scale, so nothing here rounds. What strides can say stays a view (TRANSPOSE, SLICE,
BROADCAST, and a RESHAPE of memory that lies in order); indices are constants of one axis, never of a whole tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler.arithmetic import constant, to
from proofs.exact.compiler.hoist import transposed
from proofs.exact.compiler.lowering import Lowering, rule

aten = torch.ops.aten


def result_shape(lo: Lowering) -> tuple[int, ...]:
    """Shape of the node in hand, as PyTorch inferred it."""
    return tuple(int(side) for side in lo.node.meta["val"].shape)


def axis_of(dim: int, rank: int) -> int:
    """PyTorch counts axes from the end as well."""
    return dim % rank if rank else 0


# Views


@rule(
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten._reshape_alias.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
    aten.unflatten.int,
    exact=True,
)
def reshape(lo: Lowering, x: Handle, *_: object) -> Handle:
    return lo.b.reshape(x, result_shape(lo))


@rule(
    aten.clone.default,
    aten.contiguous.default,
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
    exact=True,
)
def identity(lo: Lowering, x: Handle, **_: object) -> Handle:
    """Copies are the backend's affair: values here are never written twice."""
    return x


@rule(aten.permute.default, exact=True)
def permute(lo: Lowering, x: Handle, dims: Sequence[int]) -> Handle:
    return transposed(lo, x, [axis_of(dim, len(x.shape)) for dim in dims])


@rule(aten.transpose.int, exact=True)
def transpose(lo: Lowering, x: Handle, dim0: int, dim1: int) -> Handle:
    axes = list(range(len(x.shape)))
    if axes:
        first, second = axis_of(dim0, len(axes)), axis_of(dim1, len(axes))
        axes[first], axes[second] = axes[second], axes[first]
    return transposed(lo, x, axes)


@rule(aten.t.default, exact=True)
def t(lo: Lowering, x: Handle) -> Handle:
    return transposed(lo, x, list(reversed(range(len(x.shape)))))


@rule(aten.expand.default, exact=True)
def expand(lo: Lowering, x: Handle, size: Sequence[int], *, implicit: bool = False) -> Handle:
    return lo.b.broadcast(x, result_shape(lo))


# Parts


@rule(aten.slice.Tensor, exact=True)
def slice_(
    lo: Lowering, x: Handle, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Handle:
    axis = axis_of(dim, len(x.shape))
    places = range(*slice(start, end, step).indices(x.shape[axis]))
    if step == 1:
        return part(lo, x, axis, places.start, places.stop)
    return taken(lo, x, axis, places)


@rule(aten.select.int, exact=True)
def select(lo: Lowering, x: Handle, dim: int, index: int) -> Handle:
    axis = axis_of(dim, len(x.shape))
    place = index % x.shape[axis]
    return lo.b.reshape(part(lo, x, axis, place, place + 1), result_shape(lo))


@rule(aten.narrow.default, exact=True)
def narrow(lo: Lowering, x: Handle, dim: int, start: int, length: int) -> Handle:
    axis = axis_of(dim, len(x.shape))
    return part(lo, x, axis, start % x.shape[axis], start % x.shape[axis] + length)


@rule(aten.split.Tensor, exact=True)
def split(lo: Lowering, x: Handle, split_size: int, dim: int = 0) -> tuple[Handle, ...]:
    side = x.shape[axis_of(dim, len(x.shape))]
    return split_with_sizes(lo, x, [min(split_size, side - start) for start in range(0, side, split_size)], dim)


@rule(aten.split_with_sizes.default, exact=True)
def split_with_sizes(lo: Lowering, x: Handle, sizes: Sequence[int], dim: int = 0) -> tuple[Handle, ...]:
    axis, parts, start = axis_of(dim, len(x.shape)), [], 0
    for size in sizes:
        parts.append(part(lo, x, axis, start, start + size))
        start += size
    return tuple(parts)


@rule(aten.unbind.int, exact=True)
def unbind(lo: Lowering, x: Handle, dim: int = 0) -> tuple[Handle, ...]:
    axis = axis_of(dim, len(x.shape))
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    return tuple(lo.b.reshape(part(lo, x, axis, i, i + 1), shape) for i in range(x.shape[axis]))


def part(lo: Lowering, x: Handle, axis: int, start: int, stop: int) -> Handle:
    """x[.., start:stop, ..]; x itself where that is all of it."""
    if stop <= start:
        raise lo.unsupported("a slice without elements", "leave the empty tensor out of the step")
    return lo.b.slice(x, axis, start, stop)


def taken(lo: Lowering, x: Handle, axis: int, places: Sequence[int]) -> Handle:
    """x[.., places, ..] for places known at compile time."""
    return lo.b.gather(x, lo.b.constant(tuple(places)), axis)


# Joins


@rule(aten.cat.default, exact=True)
def cat(lo: Lowering, tensors: Sequence[Handle], dim: int = 0) -> Handle:
    axis = axis_of(dim, len(tensors[0].shape))
    return joined(lo, same_scale(lo, tensors), axis)


@rule(aten.stack.default, exact=True)
def stack(lo: Lowering, tensors: Sequence[Handle], dim: int = 0) -> Handle:
    axis = axis_of(dim, len(tensors[0].shape) + 1)
    shape = (*tensors[0].shape[:axis], 1, *tensors[0].shape[axis:])
    return joined(lo, [lo.b.reshape(x, shape) for x in same_scale(lo, tensors)], axis)


def same_scale(lo: Lowering, tensors: Sequence[Handle]) -> list[Handle]:
    """The tensors as they are if their scales agree, else each in the format of the node in hand."""
    if len({x.frac for x in tensors}) == 1:
        return list(tensors)
    return [to(lo.b, x, lo.format) for x in tensors]


def joined(lo: Lowering, parts: Sequence[Handle], axis: int) -> Handle:
    """Concatenation as a balanced tree: CONCAT takes two, and no element is copied more than log2(parts) times."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return lo.b.concat(joined(lo, parts[:middle], axis), joined(lo, parts[middle:], axis), axis)


@rule(aten.constant_pad_nd.default, exact=True)
def constant_pad_nd(lo: Lowering, x: Handle, pad: Sequence[int], value: float = 0) -> Handle:
    """`pad` holds (before, after) of the last axis first; negative ones cut."""
    for distance in range(len(pad) // 2):
        axis = len(x.shape) - 1 - distance
        before, after = pad[2 * distance], pad[2 * distance + 1]
        x = part(lo, x, axis, max(-before, 0), x.shape[axis] - max(-after, 0))
        x = padded(lo, x, axis, max(before, 0), max(after, 0), value)
    return x


def padded(lo: Lowering, x: Handle, axis: int, before: int, after: int, value: float = 0) -> Handle:
    """x with `before` and `after` more places along an axis, filled with `value` at the scale of x."""
    fill = _number(lo, value, like=x)
    edges = [
        [lo.b.broadcast(fill, (*x.shape[:axis], places, *x.shape[axis + 1 :]))] if places else []
        for places in (before, after)
    ]
    return joined(lo, [*edges[0], x, *edges[1]], axis)


@rule(aten.repeat.default, exact=True)
def repeat(lo: Lowering, x: Handle, repeats: Sequence[int]) -> Handle:
    sides = (1,) * (len(repeats) - len(x.shape)) + x.shape
    for axis, times in enumerate(repeats):
        if times > 1:
            # [.., side, ..] -> [.., times, side, ..] -> [.., times * side, ..]
            wide = (*sides[:axis], times, *sides[axis:])
            x = lo.b.broadcast(lo.b.reshape(x, (*sides[:axis], 1, *sides[axis:])), wide)
            sides = (*sides[:axis], times * sides[axis], *sides[axis + 1 :])
            x = lo.b.reshape(x, sides)
    return lo.b.reshape(x, sides)


@rule(aten.flip.default, exact=True)
def flip(lo: Lowering, x: Handle, dims: Sequence[int]) -> Handle:
    for dim in dims:
        axis = axis_of(dim, len(x.shape))
        x = taken(lo, x, axis, range(x.shape[axis] - 1, -1, -1))
    return x


@rule(aten.roll.default, exact=True)
def roll(lo: Lowering, x: Handle, shifts: Sequence[int], dims: Sequence[int] = ()) -> Handle:
    if not dims:
        whole = lo.b.reshape(x, (math.prod(x.shape),))
        return lo.b.reshape(roll(lo, whole, shifts, [0]), x.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        axis = axis_of(dim, len(x.shape))
        cut = -shift % x.shape[axis]
        if cut:
            head, tail = part(lo, x, axis, 0, cut), part(lo, x, axis, cut, x.shape[axis])
            x = lo.b.concat(tail, head, axis)
    return x


# Their gradients


@rule(aten.slice_backward.default, exact=True)
def slice_backward(
    lo: Lowering, gradient: Handle, sizes: Sequence[int], dim: int, start: int, end: int, step: int
) -> Handle:
    axis = axis_of(dim, len(sizes))
    places = range(*slice(start, end, step).indices(sizes[axis]))
    if step == 1:
        return padded(lo, gradient, axis, places.start, sizes[axis] - places.stop)
    # A gather that reads, for every place between, one zero appended at the end.
    zero = gradient.shape[axis]
    source = {place: i for i, place in enumerate(places)}
    return taken(lo, padded(lo, gradient, axis, 0, 1), axis, [source.get(i, zero) for i in range(sizes[axis])])


@rule(aten.select_backward.default, exact=True)
def select_backward(lo: Lowering, gradient: Handle, sizes: Sequence[int], dim: int, index: int) -> Handle:
    axis = axis_of(dim, len(sizes))
    place = index % sizes[axis]
    row = lo.b.reshape(gradient, (*sizes[:axis], 1, *sizes[axis + 1 :]))
    return padded(lo, row, axis, place, sizes[axis] - place - 1)


# Constants


def _number(lo: Lowering, value: float, like: Handle | None = None) -> Handle:
    if not math.isfinite(value):
        raise lo.unsupported(f"a tensor filled with {value}", "use masked_fill for masks, or a large finite number")
    return constant(lo.b, value, like)


@rule(aten.full.default, exact=True)
def full(lo: Lowering, size: Sequence[int], value: float, **_: object) -> Handle:
    return lo.b.broadcast(_number(lo, value), tuple(size))


@rule(aten.full_like.default, exact=True)
def full_like(lo: Lowering, x: Handle, value: float, **_: object) -> Handle:
    return lo.b.broadcast(_number(lo, value), x.shape)


@rule(
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    # What an `empty` holds is never read by a step that has a meaning: zeros are as good as any.
    aten.empty_like.default,
    aten.empty.memory_format,
    aten.empty_permuted.default,
    aten.new_empty.default,
    exact=True,
)
def zeros(lo: Lowering, *_: object, **__: object) -> Handle:
    return lo.b.broadcast(lo.b.constant(0), result_shape(lo))


@rule(aten.ones.default, aten.ones_like.default, aten.new_ones.default, exact=True)
def ones(lo: Lowering, *_: object, **__: object) -> Handle:
    return lo.b.broadcast(lo.b.constant(1), result_shape(lo))


@rule(aten.new_full.default, exact=True)
def new_full(lo: Lowering, x: Handle, size: Sequence[int], value: float, **_: object) -> Handle:
    return lo.b.broadcast(_number(lo, value), tuple(size))


@rule(aten.arange.default, aten.arange.start, aten.arange.start_step, exact=True)
def arange(lo: Lowering, *ends: float, **_: object) -> Handle:
    start, end, step = {1: (0, *ends, 1), 2: (*ends, 1), 3: ends}[len(ends)]
    if any(int(given) != given for given in (start, end, step)):
        raise lo.unsupported("arange of fractions", "divide an arange of whole numbers")
    return lo.b.constant(tuple(range(int(start), int(end), int(step))))


@rule(aten.tril.default, exact=True)
def tril(lo: Lowering, x: Handle, diagonal: int = 0) -> Handle:
    return _triangle(lo, x, [[j - i <= diagonal for j in range(x.shape[-1])] for i in range(x.shape[-2])])


@rule(aten.triu.default, exact=True)
def triu(lo: Lowering, x: Handle, diagonal: int = 0) -> Handle:
    return _triangle(lo, x, [[j - i >= diagonal for j in range(x.shape[-1])] for i in range(x.shape[-2])])


def _triangle(lo: Lowering, x: Handle, keep: list[list[bool]]) -> Handle:
    mask = lo.b.constant([int(kept) for row in keep for kept in row], shape=x.shape[-2:])
    return lo.b.mul(x, mask)
