"""Everything a Compute Node knows when it decides. Frozen, plain, without a connection to anything.

`load.py` fills it from the chain, the mailbox and the disk at every tick; `decide.py` reads nothing else. Times are
chain times (the latest block's timestamp, unix s) unless a name says otherwise, because the contracts judge by those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from protocol.types import (
    Admission,
    BlobId,
    Block,
    NodeId,
    NodeRecord,
    TaskId,
    TaskSpec,
    TaskState,
    Unit,
    UnitStatus,
    Wei,
)

IN_WORK = (UnitStatus.CLAIMED, UnitStatus.COMMITTED)
"""The statuses in which a unit still needs its worker."""

ONE_WEI = Wei(1)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator allows this node to do."""

    max_parallel: int = 1
    """Units in work at the same time; each trains in a thread of its own."""
    min_unit_price: Wei = ONE_WEI
    """Least pay for a unit. Stands for the cost of its gas, as long as no price of gas in AVN is known."""
    min_tip: Wei = ONE_WEI
    """Least tip for which somebody else's late unit is expired. Stands for the gas of that transaction."""
    time_factor: float = 1.5
    """A unit is taken only if its computing window is at least this many times the estimated time..."""
    margin_s: int = 5
    """...plus this, for the transactions around it."""
    grace_s: int = 60
    """How long after its window somebody else's revealed unit is left to its owner to finalise."""
    ask_every_s: int = 10
    """An unanswered request for admission is repeated after this."""
    spare_after_s: int = 5
    """A unit must have been open this long before a node asks for a shard beside those it was admitted to."""
    min_gas_wei: int = 0
    """With less gas money on the operator key nothing new is claimed: what is in flight must be finished first."""
    draining: bool = False
    """Take nothing new; finish what is in flight."""


class Stage(StrEnum):
    """How far the work on one attempt of a unit is, as the disk tells it."""

    NONE = "none"
    RUNNING = "running"
    """A thread of this process is at it; checkpoints are on disk."""
    FAILED = "failed"
    """It cannot be done here; the reason is in the log. Not tried again by this process."""
    OVERFLOWED = "overflowed"
    """The program itself ends this unit early, on every machine. Version 0.1 of the contracts has no move for that, so
    nothing is committed: the unit expires."""
    DONE = "done"
    """Result and checkpoint roots are on disk."""
    PUBLISHED = "published"
    """The final state is uploaded whole and announced."""


@dataclass(frozen=True, slots=True, order=True)
class WorkKey:
    """One attempt at one unit."""

    task: TaskId
    unit: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Speed:
    """What one program takes on this machine, s."""

    step_s: float
    checkpoint_s: float
    """To hash the state, encode it and have it on disk."""


@dataclass(frozen=True, slots=True)
class OverflowNote:
    """Where a unit left the bounds that its program asserts, after `step` steps from `input_root`; roots are hex."""

    input_root: str
    step: int
    operation: int
    element: int
    value: int
    root: str
    """The OVERFLOW state's (docs/protocol.md section 1)."""

    def __str__(self) -> str:
        return f"overflow in step {self.step + 1} at operation {self.operation}, element {self.element}: {self.value}"


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task that is not closed."""

    spec: TaskSpec
    state: TaskState
    round: int
    """The latest round whose input state is known; equals `spec.rounds` when everything has been revealed."""
    input_root: bytes
    units: Mapping[int, Unit]
    """Every unit of the present round, and those of earlier rounds that are not final."""
    admission: Admission | None = None
    """The widest that the requester signed for this node, signature already verified. None: not admitted."""
    asked_at: int | None = None
    """When this node last asked for an admission that has not come yet."""
    open_since: Mapping[int, int] = field(default_factory=dict)
    """When an open unit was first seen open."""
    ready: frozenset[int] = frozenset()
    """Units whose program, input state and data are on disk, verified against the chain's roots."""
    reachable: frozenset[int] = frozenset()
    """Units whose inputs have been announced and, in a private task, whose keys this node was granted."""
    preparing: frozenset[int] = frozenset()
    """Units whose inputs a thread is fetching now."""
    cooling: frozenset[int] = frozenset()
    """Units for which a claim or a preparation failed a moment ago; left alone for a while."""
    overflows: Mapping[int, OverflowNote] = field(default_factory=dict)
    """Units of the present round that overflowed here: whoever takes one loses the collateral."""
    speed: Speed | None = None
    """Of this program on this machine; None until a training unit's inputs have been here."""
    averaging: Speed | None = None
    """The same for an average of the task's states; None until an aggregation unit's inputs have been here."""
    acceptances: Mapping[int, bytes] = field(default_factory=dict)
    """Requester's signature by unit, verified for the result root that the chain has."""
    owed: frozenset[tuple[BlobId, NodeId]] = frozenset()
    """Keys that this node holds and should hand on: (blob of a present state, entitled reader without a grant)."""
    problem: str | None = None
    """Why this task cannot be worked on at all, e.g. a manifest that contradicts the chain."""

    @property
    def task(self) -> TaskId:
        return self.spec.task_id

    def price(self, unit: int) -> Wei:
        return self.spec.price_of(unit)

    def expected_s(self, unit: int) -> float | None:
        """Estimated computing time. An average reads and adds a state for each shard, and writes one."""
        spec = self.spec
        if spec.is_aggregation(unit):
            speed = self.averaging or self.speed
            return None if speed is None else speed.step_s + (spec.shards + 2) * speed.checkpoint_s
        if self.speed is None:
            return None
        checkpoints = -(-spec.steps // spec.checkpoint_interval)
        return spec.steps * self.speed.step_s + checkpoints * self.speed.checkpoint_s

    def inputs_known(self, unit: int) -> bool:
        """Whether the chain knows what the unit starts from."""
        if self.spec.round_of(unit) != self.round:
            return False
        if not self.spec.is_aggregation(unit):
            return True
        first = self.spec.unit_index(self.round, 0)
        shards = [self.units.get(first + shard) for shard in range(self.spec.shards)]
        return all(u is not None and u.status >= UnitStatus.REVEALED for u in shards)


@dataclass(frozen=True, slots=True)
class ComputeView:
    """All of it."""

    block: Block
    """The head of the chain that the whole view was read at."""
    node: NodeRecord
    min_stake: Wei
    """Below this the registry takes no new lock for the node."""
    gas_wei: int
    """Gas money of the operator key."""
    tip_bps: int
    """Share of a late unit's collateral that goes to whoever expires it."""
    tasks: tuple[TaskView, ...]
    work: Mapping[WorkKey, Stage]
    """Every attempt of which there is anything on disk or in memory."""

    @property
    def me(self) -> NodeId:
        return self.node.node

    @property
    def active(self) -> bool:
        return not self.node.leaving and self.node.stake >= self.min_stake

    def stage(self, key: WorkKey) -> Stage:
        return self.work.get(key, Stage.NONE)
