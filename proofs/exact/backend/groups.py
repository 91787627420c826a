"""Which operations one kernel computes.

A group goes through `size` elements in row-major order; if it has rows, each `row` consecutive elements are one, and
values of one number per row (the results of reductions, and what is computed from them) live beside values of one
number per element. So a softmax, a LayerNorm or a cross-entropy is one group: its values never leave the cache, and
those that nothing else reads are never stored.

Groups grow from the last operation backwards: an operation joins the group of one of its readers, as late as possible
(a mask belongs to the product that it masks, not to where its operand was made), if the two go through the same
elements in the same order and no path leads from that group through another one back to it. Groups that read one large
value are merged, so that it is read once.

Order, sums and stores are exact integers: grouping can change no bit.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

from proofs.exact.backend.graph import Graph, Kind, Node
from proofs.exact.backend.views import View, cuts_of, nest

MAX_ROW = 8192
"""Elements of a row: its scratch (at most 64 KiB a value) has to stay in the second-level cache."""
MAX_NODES = 64
MAX_READS = 40
"""Of one group: beyond these a kernel has more pointers than registers and takes long to compile."""


WINDOW = 4096
"""Consecutive operations among which groups form. What runs after what is kept as a set for each group, so time and
memory grow with the square of this; a GPT of 6 layers fits in."""


@dataclass(slots=True, eq=False)
class Group:
    """Operations of one kernel, or a single operation that is not fused. `down` are the groups that run after it."""

    identity: int
    nodes: list[Node]
    size: int
    row: int | None = None
    cuts: frozenset[int] = frozenset()
    down: int = 0
    order: int = 0

    @property
    def fused(self) -> bool:
        return self.nodes[0].kind is Kind.FUSED

    def per_element(self, node: Node) -> bool:
        """Whether the node's operands are walked element by element, and not row by row."""
        return node.size == self.size

    def in_row(self, node: Node) -> bool:
        """Whether a reduction's result is a number per row that this group itself reads."""
        return self.row is not None and node.row_length == self.row and node.size == self.size


@dataclass(slots=True)
class _Fit:
    """What a group becomes with one more node."""

    size: int
    row: int | None
    cuts: frozenset[int]


@dataclass(slots=True)
class _Grouping:
    graph: Graph
    groups: dict[int, Group] = field(default_factory=dict)
    of: dict[int, Group] = field(default_factory=dict)
    """The group of each node, by number."""

    def add(self, node: Node, order: int, readers: list[Node]) -> None:
        after = {self.of[reader.number].identity for reader in readers}
        down = 0
        for identity in after:
            down |= self.groups[identity].down | 1 << identity
        joined = self._join(node, readers, after, down) if node.kind is Kind.FUSED else None
        if joined is None:
            joined = self._alone(node, down)
        joined.order = max(joined.order, order)
        self.of[node.number] = joined
        self._merge_readers(node.info.elements, after | {joined.identity})

    def _alone(self, node: Node, down: int) -> Group:
        row = node.row_length if node.kind is Kind.FUSED else None
        row = row if row is not None and row <= MAX_ROW else None
        group = Group(len(self.groups), [node], node.size, row, cuts_around(node, 1), down)
        self.groups[group.identity] = group
        return group

    def _join(self, node: Node, readers: list[Node], after: set[int], down: int) -> Group | None:
        candidates = [self.groups[identity] for identity in after if self.groups[identity].fused]
        candidates.sort(key=lambda group: (-sum(self.of[reader.number] is group for reader in readers), group.identity))
        for group in candidates:
            if any(self.groups[other].down >> group.identity & 1 for other in after if other != group.identity):
                continue
            inside = [reader for reader in readers if self.of[reader.number] is group]
            fit = fitted(group, node, inside)
            if fit is None or len(group.nodes) >= MAX_NODES or reads([*group.nodes, node]) > MAX_READS:
                continue
            group.size, group.row, group.cuts = fit.size, fit.row, fit.cuts
            group.nodes.append(node)
            self._extend(group, down & ~(1 << group.identity))
            return group
        return None

    def _extend(self, group: Group, down: int) -> None:
        """More runs after `group`, and so after all that it runs after."""
        if down & ~group.down:
            group.down |= down
            for other in self.groups.values():
                if other.down >> group.identity & 1:
                    other.down |= group.down

    def _merge_readers(self, size: int, identities: set[int]) -> None:
        same = [
            group
            for identity in sorted(identities)
            if (group := self.groups[identity]).fused and group.size == size and size > 1
        ]
        for one, two in combinations(same, 2):
            if one.identity in self.groups and two.identity in self.groups and self.groups[one.identity] is one:
                self._merge(one, two)

    def _merge(self, one: Group, two: Group) -> None:
        if self.groups[two.identity] is not two or self.groups[one.identity] is not one:
            return
        independent = not (one.down >> two.identity & 1 or two.down >> one.identity & 1)
        rows_agree = one.row is None or two.row is None or one.row == two.row
        cuts = one.cuts | two.cuts
        nodes = [*one.nodes, *two.nodes]
        small = len(nodes) <= MAX_NODES and reads(nodes) <= MAX_READS
        if not (independent and rows_agree and small and nest(cuts) is not None):
            return
        one.nodes, one.cuts, one.row, one.order = nodes, cuts, one.row or two.row, max(one.order, two.order)
        for node in two.nodes:
            self.of[node.number] = one
        gone, kept = 1 << two.identity, 1 << one.identity
        self.groups[two.identity] = one  # identities stay valid in sets that others hold
        one.down |= two.down
        for other in self.distinct():
            if other is not one and other.down & (gone | kept):
                other.down |= one.down | gone | kept

    def distinct(self) -> list[Group]:
        return [group for identity, group in self.groups.items() if group.identity == identity]


def fitted(group: Group, node: Node, readers: Iterable[Node]) -> _Fit | None:
    """The group with `node` in it, whose result `readers` of the group read; None if it does not fit."""
    reads = [(reader, view) for reader in readers for view in reader.operands if view.base == node.number]
    if node.fold is None:
        return _fit_elementwise(group, node, reads)
    return _fit_reduction(group, node, reads)


def _fit_elementwise(group: Group, node: Node, reads: list[tuple[Node, View]]) -> _Fit | None:
    if node.size == group.size:
        if all(view.is_whole and group.per_element(reader) for reader, view in reads):
            return _with_cuts(group, group.row, node, 1)
        return None
    row = group.row
    if row is None:
        row = _row_of(group, node.size)
    if row is None or node.size * row != group.size:
        return None
    return _with_cuts(group, row, node, row) if _read_per_row(group, row, reads) else None


def _fit_reduction(group: Group, node: Node, reads: list[tuple[Node, View]]) -> _Fit | None:
    row = node.row_length
    if row is None or row > MAX_ROW:
        return None
    if node.size == group.size and group.row in (None, row):
        return _with_cuts(group, row, node, 1) if _read_per_row(group, row, reads) else None
    if group.row is None and node.info.elements == group.size and group.size > 1:
        # All that the group has so far becomes one number per row.
        if any(other.fold is not None for other in group.nodes) or not all(view.is_whole for _, view in reads):
            return None
        cuts = frozenset({1, *(cut * row for cut in group.cuts)}) | cuts_around(node, 1)
        return _Fit(node.size, row, cuts) if nest(cuts) is not None else None
    return None


def _row_of(group: Group, rows: int) -> int | None:
    length, rest = divmod(group.size, rows)
    return length if rest == 0 and 1 < length <= MAX_ROW else None


def _read_per_row(group: Group, row: int, reads: list[tuple[Node, View]]) -> bool:
    return all(view.repeats_rows_of() == row if group.per_element(reader) else view.is_whole for reader, view in reads)


def _with_cuts(group: Group, row: int | None, node: Node, repeat: int) -> _Fit | None:
    cuts = group.cuts | cuts_around(node, repeat) | ({row} if row else set())
    return _Fit(group.size, row, cuts) if nest(cuts) is not None else None


def cuts_around(node: Node, repeat: int) -> frozenset[int]:
    """Where a loop nest must stop to follow every walk of a node whose elements each count `repeat` times."""
    walks = [view.dims for view in node.walked]
    walks += [walk for walk in (node.fold, node.position) if walk is not None]
    return frozenset({1, *(cut * repeat for walk in walks for cut in cuts_of(walk))})


def reads(nodes: Iterable[Node]) -> int:
    """How many different values the nodes read that they do not make."""
    listed = list(nodes)
    made = {node.number for node in listed}
    return len({view.base for node in listed for view in node.operands} - made)


def group_nodes(graph: Graph) -> list[Group]:
    """Groups in an order in which they can run, the nodes of each in theirs."""
    consumers = graph.consumers()
    nodes = list(graph.nodes.values())
    place = {node.number: index for index, node in enumerate(nodes)}
    groups: list[Group] = []
    for start in range(0, len(nodes), WINDOW):
        grouping = _Grouping(graph)
        for order in reversed(range(start, min(start + WINDOW, len(nodes)))):
            node = nodes[order]
            readers = [reader for reader in consumers.get(node.number, []) if place[reader.number] < start + WINDOW]
            grouping.add(node, order, readers)
        formed = grouping.distinct()
        for group in formed:
            group.nodes.sort(key=lambda node: place[node.number])
        groups += _in_order(formed, grouping.of)
    return groups


def _in_order(groups: list[Group], of: dict[int, Group]) -> list[Group]:
    """Topological, the group whose last operation came first in the program first."""
    waits = {group.identity: 0 for group in groups}
    after: dict[int, list[Group]] = {group.identity: [] for group in groups}
    for group in groups:
        before = {of[view.base].identity for node in group.nodes for view in node.operands if view.base in of}
        before.discard(group.identity)
        waits[group.identity] = len(before)
        for identity in before:
            after[identity].append(group)
    ready = [(group.order, group.identity, group) for group in groups if not waits[group.identity]]
    heapq.heapify(ready)
    done = []
    while ready:
        _, _, group = heapq.heappop(ready)
        done.append(group)
        for later in after[group.identity]:
            waits[later.identity] -= 1
            if not waits[later.identity]:
                heapq.heappush(ready, (later.order, later.identity, later))
    assert len(done) == len(groups), "groups that wait for each other"
    return done
