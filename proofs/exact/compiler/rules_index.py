"""Rules for choice and summation by index: torch.gather, scatter, x[i], index_put.

An index that no operation computed is a label of the data: `Lowering.bounded` has the range checked when data are
encoded, so that no step can read beyond an axis. Sums are exact, so their order is nobody's choice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import fx

from proofs.exact.builder import Handle
from proofs.exact.compiler.arithmetic import add, constant, to
from proofs.exact.compiler.hoist import transposed
from proofs.exact.compiler.lowering import Lowering, rule
from proofs.exact.compiler.rules_shape import axis_of

aten = torch.ops.aten

MAX_ONE_HOT = 256
"""Longest axis on which a single element per row is chosen by comparing every place: such a choice fuses with what
computes the row (a loss), while a GATHER of memory does not. Longer axes are gathered."""


def taken_along(lo: Lowering, x: Handle, axis: int, index: Handle) -> Handle:
    """x[.., index, ..]: the axis is replaced by those of the index, which holds 0..side-1."""
    index = lo.bounded(index, 0, x.shape[axis] - 1)
    rows = lo.b.gather(x, lo.b.reshape(index, (math.prod(index.shape),)), axis)
    return lo.b.reshape(rows, (*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def summed_at(lo: Lowering, x: Handle, axis: int, index: Handle, side: int) -> Handle:
    """The reverse: [.., len(index), ..] -> [.., side, ..], each place the sum of the x that its index sends there."""
    last = len(x.shape) - 1
    axes = [*(i for i in range(last + 1) if i != axis), axis]
    summed = lo.b.scatter_add(transposed(lo, x, axes), lo.bounded(index, 0, side - 1), side)
    back = list(range(last))
    back.insert(axis, last)
    return transposed(lo, summed, back)


@rule(aten.index_select.default, exact=True)
def index_select(lo: Lowering, x: Handle, dim: int, index: Handle) -> Handle:
    return taken_along(lo, x, axis_of(dim, len(x.shape)), index)


@rule(aten.gather.default, exact=True)
def gather(lo: Lowering, x: Handle, dim: int, index: Handle, *, sparse_grad: bool = False) -> Handle:
    axis, rank = axis_of(dim, len(x.shape)), len(x.shape)
    if axis == rank - 1 and index.shape == (*x.shape[:-1], 1) and x.shape[-1] <= MAX_ONE_HOT:
        return lo.b.reduce_sum(lo.b.mul(x, _places(lo, index, x.shape[-1])), axis)
    flat, rows = _flat_places(lo, x.shape, axis, index), math.prod(x.shape)
    return lo.b.reshape(lo.b.gather(lo.b.reshape(x, (rows,)), flat, 0), index.shape)


@rule(aten.scatter.value, exact=True)
def scatter_value(lo: Lowering, x: Handle, dim: int, index: Handle, value: float) -> Handle:
    """Where several indices agree they write the same value, so that order does not matter."""
    axis = axis_of(dim, len(x.shape))
    if axis == len(x.shape) - 1 and index.shape == (*x.shape[:-1], 1):
        there = _places(lo, index, x.shape[-1])
    else:
        there = _mask(lo, x.shape, axis, index)
    return _written(lo, there, constant(lo.b, value), x)


@rule(aten.scatter.src, exact=True)
def scatter_src(lo: Lowering, x: Handle, dim: int, index: Handle, source: Handle) -> Handle:
    axis = axis_of(dim, len(x.shape))
    if index.shape[axis] != 1 or index.shape[:axis] + index.shape[axis + 1 :] != x.shape[:axis] + x.shape[axis + 1 :]:
        raise lo.unsupported(
            "scatter of a tensor writes in an order that is not defined where indices agree",
            "use scatter_add, or scatter with one index per row",
        )
    return _written(lo, _mask(lo, x.shape, axis, index), _scattered(lo, source, x.shape, axis, index), x)


@rule(aten.scatter_add.default)
def scatter_add(lo: Lowering, x: Handle, dim: int, index: Handle, source: Handle) -> Handle:
    axis = axis_of(dim, len(x.shape))
    if any(side < other for side, other in zip(source.shape, index.shape, strict=True)):
        raise lo.unsupported("scatter_add with an index larger than its source", "give them one shape")
    for i, side in enumerate(index.shape):
        source = source if source.shape[i] == side else lo.b.slice(source, i, 0, side)
    return add(lo.b, x, _scattered(lo, source, x.shape, axis, index))


@rule(aten.index_add.default)
def index_add(lo: Lowering, x: Handle, dim: int, index: Handle, source: Handle, *, alpha: float = 1) -> Handle:
    if alpha != 1:
        raise lo.unsupported("index_add with alpha", "multiply the source instead")
    axis = axis_of(dim, len(x.shape))
    return add(lo.b, x, summed_at(lo, source, axis, index, x.shape[axis]))


@rule(aten.index.Tensor, aten._unsafe_index.Tensor, exact=True)
def index(lo: Lowering, x: Handle, indices: Sequence[Handle | None]) -> Handle:
    """x[i], x[:, i], x[i, j] for integer tensors next to each other."""
    first, chosen = _indexed_axes(lo, indices)
    if len(chosen) == 1:
        return taken_along(lo, x, first, chosen[0])
    flat, sides = _combined(lo, x.shape[first : first + len(chosen)], chosen)
    merged = lo.b.reshape(x, (*x.shape[:first], math.prod(sides), *x.shape[first + len(chosen) :]))
    return taken_along(lo, merged, first, flat)


@rule(aten.index_put.default, aten._unsafe_index_put.default)
def index_put(
    lo: Lowering, x: Handle, indices: Sequence[Handle | None], values: Handle, accumulate: bool = False
) -> Handle:
    if _is_mask(lo, 0):
        (mask,) = indices
        if mask is None or accumulate or math.prod(values.shape) != 1:
            raise lo.unsupported("assignment through a mask of values that vary", "use torch.where")
        # A mask covers the leading axes.
        whole = lo.b.reshape(mask, mask.shape + (1,) * (len(x.shape) - len(mask.shape)))
        return _written(lo, lo.b.broadcast(whole, x.shape), values, x)
    if not accumulate:
        raise lo.unsupported(
            "assignment by index writes in an order that is not defined where indices agree",
            "use index_add, scatter_add or torch.where",
        )
    first, chosen = _indexed_axes(lo, indices)
    flat, sides = _combined(lo, x.shape[first : first + len(chosen)], chosen)
    rest = x.shape[:first], x.shape[first + len(chosen) :]
    spread = lo.b.broadcast(values, (*rest[0], *flat.shape, *rest[1]))
    places = math.prod(flat.shape)
    added = summed_at(
        lo,
        lo.b.reshape(spread, (*rest[0], places, *rest[1])),
        first,
        lo.b.reshape(flat, (places,)),
        math.prod(sides),
    )
    return add(lo.b, x, lo.b.reshape(added, x.shape))


@rule(aten.one_hot.default, exact=True)
def one_hot(lo: Lowering, labels: Handle, num_classes: int = -1) -> Handle:
    if num_classes < 0:
        raise lo.unsupported("one_hot without the number of classes", "pass num_classes")
    return lo.b.one_hot(lo.bounded(labels, 0, num_classes - 1), num_classes)


def _places(lo: Lowering, index: Handle, side: int) -> Handle:
    """[.., 1] of 0..side-1 -> [.., side] of 0 and 1."""
    return lo.b.one_hot(lo.b.reshape(lo.bounded(index, 0, side - 1), index.shape[:-1]), side)


def _flat_places(lo: Lowering, shape: tuple[int, ...], axis: int, index: Handle) -> Handle:
    """[elements of index]: where in a row-major tensor of `shape` each element (i, .., index[i, ..], ..) lies."""
    index = lo.bounded(index, 0, shape[axis] - 1)
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    place = index if strides[axis] == 1 else lo.b.mul(index, lo.b.constant(strides[axis]))
    for i, side in enumerate(index.shape):
        if i != axis and side > 1:
            along = tuple(side if j == i else 1 for j in range(len(shape)))
            place = lo.b.add(place, lo.b.constant([strides[i] * at for at in range(side)], shape=along))
    return lo.b.reshape(place, (math.prod(index.shape),))


def _scattered(lo: Lowering, source: Handle, shape: tuple[int, ...], axis: int, index: Handle) -> Handle:
    """Zeros of `shape`, plus every element of the source at its index along the axis."""
    flat, elements = _flat_places(lo, shape, axis, index), math.prod(source.shape)
    return lo.b.reshape(lo.b.scatter_add(lo.b.reshape(source, (elements,)), flat, math.prod(shape)), shape)


def _mask(lo: Lowering, shape: tuple[int, ...], axis: int, index: Handle) -> Handle:
    """1 wherever an index points to, else 0."""
    return lo.b.clamp(_scattered(lo, lo.b.broadcast(lo.b.constant(1), index.shape), shape, axis, index), 0, 1)


def _written(lo: Lowering, there: Handle, value: Handle, x: Handle) -> Handle:
    """`value` where `there` is 1, else x; at the scale of x unless x is a whole number (zeros, most often)."""
    if value.frac != x.frac:
        if x.lo == x.hi == 0:
            x = lo.b.broadcast(lo.b.constant(0, frac=value.frac), x.shape)
        else:
            x, value = to(lo.b, x, lo.format), to(lo.b, value, lo.format)
    return lo.b.select(there, lo.b.broadcast(value, x.shape), x)


def _indexed_axes(lo: Lowering, indices: Sequence[Handle | None]) -> tuple[int, list[Handle]]:
    """The first indexed axis and the indices from there on, which must follow each other."""
    axes = [axis for axis, given in enumerate(indices) if given is not None]
    if any(_is_mask(lo, position) for position in axes):
        raise lo.unsupported(
            "a choice by a mask has a size that depends on the data", "multiply by the mask, or use torch.where"
        )
    if axes != list(range(axes[0], axes[-1] + 1)):
        raise lo.unsupported("indices on axes that are not neighbours", "permute the axes together first")
    return axes[0], [given for given in indices if given is not None]


def _combined(lo: Lowering, sides: tuple[int, ...], chosen: list[Handle]) -> tuple[Handle, tuple[int, ...]]:
    """One index into the merged axes, of the shape that the indices broadcast to."""
    place: Handle | None = None
    for side, index in zip(sides, chosen, strict=True):
        bounded = lo.bounded(index, 0, side - 1)
        place = bounded if place is None else lo.b.add(lo.b.mul(place, lo.b.constant(side)), bounded)
    assert place is not None
    return place, sides


def _is_mask(lo: Lowering, position: int) -> bool:
    """Whether the index at a position of x[..] is a tensor of bool."""
    given = lo.node.args[1]
    assert isinstance(given, list | tuple)
    index = given[position]
    return isinstance(index, fx.Node) and index.meta["val"].dtype == torch.bool
