"""Everything a Request Node knows about its task when it decides. Frozen and plain; `load.py` fills it at every tick.

Times are chain times (unix s), except those of the mailbox, which are this machine's (`clock`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from protocol.types import BlobId, NodeId, TaskId, TaskSpec, TaskState, Unit, Wei

NO_WEI = Wei(0)
REQUESTER = NodeId(0)
"""Reader number of the requester in key grants."""


class AcceptPolicy(StrEnum):
    """When the requester signs an acceptance, which pays the worker at once instead of after the challenge window."""

    AVAILABLE = "available"
    """The announced final state is there and has the root that the chain has. Does not check the computation."""
    NEVER = "never"
    RECOMPUTE = "recompute"
    """The unit was run again here and ended in the same state."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How the requester runs its task."""

    accept: AcceptPolicy = AcceptPolicy.AVAILABLE
    offer_s: int = 20
    """A shard offered to one node is not offered to another for this long (this machine's clock)."""
    patience_s: int = 6
    """A shard that other live nodes can take must have been open this long before one more node is let in: each
    node admitted to a shard can read it."""
    live_s: int = 60
    """A node that was not heard of for this long, and holds no unit, does not count as there."""
    hand_in_after_s: int = 15
    """How long after its reveal an accepted unit is left to its worker before the requester hands the acceptance in."""
    grace_s: int = 30
    """How long after its window a unit is left to the nodes before the requester settles it."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What the requester has signed for a node so far, as its own mailbox tells it."""

    shards: int
    """Bit set."""
    message_id: int
    offered_at: int
    """This machine's clock, unix s."""


@dataclass(frozen=True, slots=True)
class Ask:
    """A node's latest request for admission, from its operator."""

    node: NodeId
    message_id: int
    active: bool
    """Registered, not leaving, and with free stake for the collateral."""


@dataclass(frozen=True, slots=True)
class Announced:
    """A final state that the unit's own worker announced."""

    blob: BlobId
    final_state_root: bytes
    result_root: bytes


@dataclass(frozen=True, slots=True)
class RequestView:
    """All of it."""

    timestamp: int
    """Of the latest block."""
    clock: int
    """This machine's, unix s."""
    spec: TaskSpec
    state: TaskState
    round: int
    """The latest round whose input state is known; `spec.rounds` when everything was revealed."""
    units: Mapping[int, Unit]
    """Units of the present round and all earlier ones that are not final."""
    open_since: Mapping[int, int] = field(default_factory=dict)
    """Chain time at which an open unit was first seen open."""
    asks: tuple[Ask, ...] = ()
    offers: Mapping[NodeId, Offer] = field(default_factory=dict)
    heard: Mapping[NodeId, int] = field(default_factory=dict)
    """When each node was last heard of, this machine's clock."""
    shard_blobs: tuple[BlobId, ...] = ()
    state_blobs: tuple[BlobId, ...] = ()
    """The blobs of states that a node may need now: the present round's input, the shards' results of this round."""
    granted: frozenset[tuple[BlobId, NodeId]] = frozenset()
    """Grants in the mailbox from a sender that holds the key (the requester or the uploader)."""
    ungrantable: frozenset[BlobId] = frozenset()
    """Blobs whose key the requester does not hold."""
    announced: Mapping[int, Announced] = field(default_factory=dict)
    """By unit; only those that agree with the chain's result and final state."""
    accepted: frozenset[int] = frozenset()
    """Units whose present result has an acceptance in the mailbox."""
    unacceptable: frozenset[int] = frozenset()
    """Units whose data is being looked at, or was found missing or wrong; looked at again after a while."""
    credit: Wei = NO_WEI
    """The requester's credit in the market, withdrawable."""
    compensation: Wei = NO_WEI
    """The requester's shares of slashed collateral, collectable."""

    @property
    def task(self) -> TaskId:
        return self.spec.task_id
