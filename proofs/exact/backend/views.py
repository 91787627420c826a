"""Views: which stored element a place of a value is, where strides can say it.

TRANSPOSE, RESHAPE, BROADCAST and SLICE move nothing: their result is another walk over the elements of a stored value.
A walk is a list of (size, stride), outermost first, that need not fall on the axes of the value's shape: a reshape of a
transposed value is still a walk, and a kernel that loops over its sizes reads it in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

Dim = tuple[int, int]
"""Size > 1, and stride in elements: 0 repeats."""


@dataclass(frozen=True, slots=True)
class View:
    """The elements of value `base` from `offset` on, in the order of `dims`: normal form, so equal walks are equal."""

    base: int
    offset: int
    dims: tuple[Dim, ...]

    @classmethod
    def whole(cls, base: int, shape: Sequence[int]) -> View:
        return cls(base, 0, contiguous(prod(shape)))

    @property
    def size(self) -> int:
        return prod(size for size, _ in self.dims)

    @property
    def is_whole(self) -> bool:
        """Every element of the walk in the order in which it is stored (of the base: whoever asks knows its size)."""
        return self.offset == 0 and self.dims == contiguous(self.size)

    def repeats_rows_of(self) -> int | None:
        """n if the walk reads every stored element n > 1 times in succession, else None."""
        if self.offset or not self.dims or self.dims[-1][1] != 0:
            return None
        length = self.dims[-1][0]
        return length if self.dims[:-1] == contiguous(self.size // length) else None

    def strided(self, shape: Sequence[int]) -> tuple[int, ...] | None:
        """One stride for each axis of `shape`, or None if there are no such strides."""
        axes = axes_of(self.dims, shape)
        if axes is None:
            return None
        strides = []
        for axis in axes:
            merged = normal(axis)
            if len(merged) > 1:
                return None
            strides.append(merged[0][1] if merged else 0)
        return tuple(strides)

    def transposed(self, shape: Sequence[int], order: Sequence[int]) -> View | None:
        """Axis i of the result is axis order[i]."""
        axes = axes_of(self.dims, shape)
        if axes is None:
            return None
        return View(self.base, self.offset, normal(dim for axis in order for dim in axes[axis]))

    def broadcast(self, shape: Sequence[int], to: Sequence[int]) -> View | None:
        """Axes of length 1 repeated."""
        axes = axes_of(self.dims, shape)
        if axes is None:
            return None
        repeated = ([(new, 0)] if old == 1 else axis for axis, old, new in zip(axes, shape, to, strict=True))
        return View(self.base, self.offset, normal(dim for axis in repeated for dim in axis))

    def sliced(self, shape: Sequence[int], axis: int, start: int, stop: int) -> View | None:
        """start:stop of one axis."""
        axes = axes_of(self.dims, shape)
        if axes is None:
            return None
        along = normal(axes[axis])
        if not along:
            return self
        inner = prod(size for size, _ in along[1:])
        if start % inner or stop % inner:
            return None
        first, last = start // inner, stop // inner
        axes[axis] = [(last - first, along[0][1]), *along[1:]]
        offset = self.offset + first * along[0][1]
        return View(self.base, offset, normal(dim for dims in axes for dim in dims))


def contiguous(size: int) -> tuple[Dim, ...]:
    """The walk over `size` elements as they lie."""
    return ((size, 1),) if size > 1 else ()


def normal(dims: Iterable[Dim]) -> tuple[Dim, ...]:
    """Sizes of 1 left out, neighbours that one stride can say merged."""
    merged: list[Dim] = []
    for size, stride in dims:
        if size == 1:
            continue
        if merged and merged[-1][1] == size * stride:
            merged[-1] = (merged[-1][0] * size, stride)
        else:
            merged.append((size, stride))
    return tuple(merged)


def axes_of(dims: Sequence[Dim], shape: Sequence[int]) -> list[list[Dim]] | None:
    """The walk cut at the axes of a shape with as many elements; None if an axis ends inside a size that it does not
    divide."""
    rest = list(dims)
    axes: list[list[Dim]] = []
    for side in reversed(shape):
        axis: list[Dim] = []
        need = side
        while need > 1:
            size, stride = rest.pop()
            if need % size == 0:
                axis.append((size, stride))
                need //= size
            elif size % need == 0:
                axis.append((need, stride))
                rest.append((size // need, need * stride))
                need = 1
            else:
                return None
        axes.append(axis[::-1])
    return axes[::-1]


def cuts_of(dims: Iterable[Dim]) -> frozenset[int]:
    """How many elements lie inside each size of a walk: where a loop nest over it must be able to stop."""
    inside, cuts = 1, {1}
    for size, _ in reversed(tuple(dims)):
        inside *= size
        cuts.add(inside)
    return frozenset(cuts)


def nest(cuts: Iterable[int]) -> tuple[int, ...] | None:
    """Loop sizes, outermost first, that stop at every cut; None where one cut does not divide the next."""
    ordered = sorted(cuts)
    sizes = []
    for inner, outer in pairwise(ordered):
        if outer % inner:
            return None
        sizes.append(outer // inner)
    return tuple(reversed(sizes))


def strides_in(dims: Sequence[Dim], sizes: Sequence[int]) -> tuple[int, ...]:
    """The walk's stride for each loop of a nest that stops at all of its cuts."""
    rest = list(dims)
    strides = []
    for size in reversed(sizes):
        if size == 1:
            strides.append(0)
            continue
        length, stride = rest.pop()
        assert length % size == 0, f"{dims} does not walk through loops of {sizes}"
        strides.append(stride)
        if length > size:
            rest.append((length // size, stride * size))
    return tuple(reversed(strides))
