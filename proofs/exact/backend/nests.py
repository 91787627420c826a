"""The loop nest of a kernel, and the addresses that run along with it.

A nest stops at every size of every walk of its group; then neighbouring loops are made one wherever all walks can
follow. The loops inside a row and those over rows stay apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from proofs.exact.backend.emit import Code
from proofs.exact.backend.phases import Phases
from proofs.exact.backend.views import Dim, View, contiguous, nest, strides_in

LEAST_VECTORISED = 16
"""A loop known to be shorter is left scalar. LLVM would vectorise it under a mask, and its x86 back end (seen in
22.1) writes eight bytes where a mask of one lane narrows 64 bits to 8: beyond the end of the row."""

SCALAR_LOOP = ("!0 = distinct !{!0, !1}", '!1 = !{!"llvm.loop.vectorize.enable", i1 false}')
"""What `!llvm.loop !0` names."""

Key = tuple[View | tuple[Dim, ...] | str, bool]
"""A view of a value, or a walk of the group's own; and whether it goes element by element or row by row."""
ROW: Key = ("row", True)
"""The place within a row: where its scratch is."""


@dataclass(slots=True)
class Walk:
    """A stream of addresses: strides for each loop of the nest, and the running offset while the nest is written."""

    strides: tuple[int, ...]
    offset: int
    running: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Nest:
    """Loops over rows and loops within one (of a group without rows: the innermost loop), outermost first."""

    rows: tuple[int, ...]
    inner: tuple[int, ...]
    walks: dict[Key, Walk]

    def loops(
        self, code: Code, sizes: tuple[int, ...], depth: int, inside: Callable[[], None], *, ranged: bool = False
    ) -> None:
        """Nested loops over `sizes`, the walks' offsets following; `depth` is the place of the first in the nest, -1
        for a loop that moves no walk."""
        if not sizes:
            inside()
            return
        tag = code.fresh()[1:]
        counter = f"%i.{tag}"
        begin, end = ("%begin", "%end") if ranged else ("0", str(sizes[0]))
        before = f"before.{tag}"
        code.line(f"br label %{before}")
        code.label(before)
        if ranged:
            empty = code.assign(f"icmp sge i64 {begin}, {end}")
            code.line(f"br i1 {empty}, label %done.{tag}, label %loop.{tag}")
        else:
            code.line(f"br label %loop.{tag}")
        code.label(f"loop.{tag}")
        code.line(f"{counter} = phi i64 [ {begin}, %{before} ], [ {counter}.next, %next.{tag} ]")
        for walk in self.walks.values():
            stride = walk.strides[depth] if depth >= 0 else 0
            if stride == 0:
                walk.running.append(walk.running[-1])
                continue
            moved = counter if stride == 1 else code.assign(f"mul nsw i64 {counter}, {stride}")
            first = walk.running[-1]
            walk.running.append(moved if first == "0" else code.assign(f"add nsw i64 {first}, {moved}"))
        self.loops(code, sizes[1:], depth + 1 if depth >= 0 else depth, inside)
        for walk in self.walks.values():
            walk.running.pop()
        code.line(f"br label %next.{tag}")
        code.label(f"next.{tag}")
        code.line(f"{counter}.next = add nuw nsw i64 {counter}, 1")
        again = code.assign(f"icmp slt i64 {counter}.next, {end}")
        scalar = not ranged and sizes[0] < LEAST_VECTORISED
        code.line(f"br i1 {again}, label %loop.{tag}, label %done.{tag}{', !llvm.loop !0' if scalar else ''}")
        code.label(f"done.{tag}")


def lay_out(phases: Phases) -> Nest:
    """The nest of a group: every access as a walk, as few loops as all of them allow."""
    group = phases.group
    sizes = nest(group.cuts | {group.size})
    assert sizes is not None
    split = len(sizes)
    if group.row is not None:
        inside = 1
        while inside < group.row:
            split -= 1
            inside *= sizes[split]
        assert inside == group.row
    walks: dict[Key, tuple[int, tuple[int, ...]]] = {}
    for node in group.nodes:
        per_element = phases.per_element[node.number]
        for view in node.walked:
            if view.base not in phases.made:
                walks[view, per_element] = (view.offset, _strides(view.dims, per_element, sizes, split))
        for walk in (node.fold, node.position):
            if walk is not None:
                walks[walk, per_element] = (0, _strides(walk, per_element, sizes, split))
        value_per_element = phases.is_element(node.number)
        own = contiguous(group.size if value_per_element else group.size // (group.row or 1))
        if node.fold is None or phases.in_row(node.number):
            walks[own, value_per_element] = (0, _strides(own, value_per_element, sizes, split))
    along = contiguous(group.row or 1)
    if group.row is not None:
        inner_only = strides_in(along, sizes[split:])
        walks[ROW] = (0, (*(0,) * split, *inner_only))
    merged_sizes, places = _collapse(sizes, split, [strides for _, strides in walks.values()])
    merged_split = sum(place < split for place in places)
    streams = {key: Walk(tuple(strides[place] for place in places), offset) for key, (offset, strides) in walks.items()}
    if group.row is None:
        merged_split = max(len(merged_sizes) - 1, 0)
    return Nest(merged_sizes[:merged_split], merged_sizes[merged_split:], streams)


def _strides(dims: tuple[Dim, ...], per_element: bool, sizes: tuple[int, ...], split: int) -> tuple[int, ...]:
    if per_element:
        return strides_in(dims, sizes)
    return (*strides_in(dims, sizes[:split]), *(0,) * (len(sizes) - split))


def _collapse(sizes: tuple[int, ...], split: int, walks: list[tuple[int, ...]]) -> tuple[tuple[int, ...], list[int]]:
    """Neighbouring loops on one side of `split` made one wherever every walk can follow: sizes, and for each the old
    loop whose stride it has."""
    merged = list(sizes)
    places = list(range(len(sizes)))
    for outer in reversed(range(len(sizes) - 1)):
        after = outer + 1
        if after == split:
            continue
        if all(walk[outer] == merged[after] * walk[places[after]] for walk in walks):
            merged[after] *= merged[outer]
            del merged[outer], places[outer]
    return tuple(merged), places
