"""What of a group is computed in which loop over a row, and what is remembered from one to the next.

A phase ends where a reduction along the row must be complete. An element value belongs to the first loop that can
compute it, a row value to the first that can read it. A later loop computes again what is cheap, reads again what was
stored, and finds the rest in a scratch row.
"""

from __future__ import annotations

from proofs.exact.backend.graph import Node
from proofs.exact.backend.groups import Group
from proofs.exact.backend.kernel_source import Storage
from proofs.exact.backend.layouts import Plain, plane_dtypes
from proofs.exact.opcodes import Opcode

CHEAP = 4
"""Instructions that are sooner done again than kept: a store and a load of the scratch row, which compete with the
streams from memory."""


class Phases:
    """`phase` of every node, by number; `scratch` names the rows in which values are kept."""

    def __init__(self, group: Group, storage: Storage) -> None:
        self.group = group
        self._storage = storage
        self.made = {node.number: node for node in group.nodes}
        self.per_element = {node.number: group.per_element(node) for node in group.nodes}
        """Whether a node iterates element by element."""
        self.phase: dict[int, int] = {}
        self.scratch: dict[int, str] = {}
        self._set_phases()
        self._choose_scratch()

    def in_row(self, number: int) -> bool:
        """Whether a node folds each row into a number that the group can read."""
        node = self.made[number]
        return node.fold is not None and self.group.in_row(node)

    def _set_phases(self) -> None:
        """An element value: the first loop that can compute it. A row value: the first loop that can read it."""
        for node in self.group.nodes:
            phase = max((self.phase[view.base] for view in node.walked if view.base in self.made), default=0)
            self.phase[node.number] = phase + 1 if self.in_row(node.number) else phase

    def is_element(self, number: int) -> bool:
        """Whether a value made here has one number per element of the iteration (and not one per row)."""
        return self.per_element[number] and self.made[number].fold is None

    def roots(self, phase: int) -> list[Node]:
        """Element nodes that this phase must compute: to store, to reduce, to check, to keep."""
        found = []
        for node in self.group.nodes:
            number = node.number
            if not self.per_element[number]:
                continue
            own = self.phase[number] - (1 if self.in_row(number) else 0)
            needed = (
                node.fold is not None
                or self._storage.writes.get(number)
                or node.opcode is Opcode.CHECK
                or number in self.scratch
            )
            if own == phase and needed:
                found.append(node)
        return found

    @property
    def count(self) -> int:
        """How many loops over a row there are."""
        last = 0
        for node in self.group.nodes:
            if self.per_element[node.number]:
                last = max(last, self.phase[node.number] - (1 if self.in_row(node.number) else 0))
        return last + 1

    def _choose_scratch(self) -> None:
        """From the last phase back: what an earlier one computed and is not cheap is kept in a row."""
        for phase in reversed(range(self.count)):
            seen: set[int] = set()
            pending = [view.base for node in self.roots(phase) for view in node.walked]
            while pending:
                number = pending.pop()
                if number in seen or number not in self.made or not self.is_element(number):
                    continue
                seen.add(number)
                node = self.made[number]
                if self.phase[number] < phase and self._kept(node):
                    continue
                pending += [view.base for view in node.walked]

    def _kept(self, node: Node) -> bool:
        """Whether a later phase reads the node's value from memory, and if so makes sure that it is there."""
        if node.number in self.scratch or self.readable_store(node.number) is not None:
            return True
        if self._cost(node) <= CHEAP:
            return False
        self.scratch[node.number] = f"%scratch{len(self.scratch)}"
        return True

    def readable_store(self, number: int) -> Plain | None:
        """The plain layout in which the group stores the value anyway."""
        plain = [layout for layout in self._storage.writes.get(number, ()) if isinstance(layout, Plain)]
        return min(plain, key=lambda layout: layout.bits) if plain else None

    def _cost(self, node: Node) -> int:
        own = {Opcode.DIV_FLOOR: 20, Opcode.ISQRT: 20, Opcode.LOOKUP: 10, Opcode.RANDOM: 20}.get(node.opcode, 1)
        total = own
        for view in node.walked:
            if view.base not in self.made:
                layout = self._storage.reads.get(view.base)
                total += 0 if layout is None or isinstance(layout, Plain) else 2 * len(plane_dtypes(layout)) - 1
            elif self.is_element(view.base):
                total += self._cost(self.made[view.base])
            if total > CHEAP:
                break
        return total
