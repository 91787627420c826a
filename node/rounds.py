"""Which units of a task matter now: the present round's, and those of earlier rounds that are not final.

A round is the present one from the moment its input state is known. Final units never change, so a round that is final
is read once; one that only waits for its challenge windows is read again with the others.
"""

from __future__ import annotations

from protocol.chain import ChainClient
from protocol.types import TaskSpec, Unit, UnitStatus


class RoundReader:
    """Follows one task's rounds. A new one reads from round 0."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        self._start()

    def _start(self) -> None:
        self.round = 0
        """The latest round whose input state is known; `spec.rounds` when everything is revealed."""
        self.input_root = self.spec.initial_state_root
        self.producer: Unit | None = None
        """The unit that ended in `input_root`; None in round 0."""
        self.units: dict[int, Unit] = {}
        self._open_rounds: list[int] = []

    def read(self, chain: ChainClient) -> None:
        """Brings everything to the block that `chain` reads at. Raises UnreachableError."""
        self._go_back_if_reorganised(chain)
        while self.round < self.spec.rounds:
            root = chain.input_state_root(self.spec, self.round + 1)
            if root == bytes(32):
                break
            self._open_rounds.append(self.round)
            self.round, self.input_root = self.round + 1, root
            self.producer = chain.unit(self.spec.task_id, self.round * self.spec.units_per_round - 1)
        wanted = [*self._open_rounds, *([self.round] if self.round < self.spec.rounds else [])]
        units: dict[int, Unit] = {}
        for round_, found in zip(wanted, chain.rounds(self.spec, wanted), strict=True):
            if round_ < self.round and all(unit.status is UnitStatus.FINALISED for unit in found):
                self._open_rounds.remove(round_)
                continue
            for shard, unit in enumerate(found):
                if round_ == self.round or unit.status is not UnitStatus.FINALISED:
                    units[self.spec.unit_index(round_, shard)] = unit
        self.units = units

    def _go_back_if_reorganised(self, chain: ChainClient) -> None:
        """A reorganisation may have taken the reveal back that the present round rests on."""
        if self.round > 0 and chain.input_state_root(self.spec, self.round) != self.input_root:
            self._start()
