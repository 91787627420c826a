"""The contracts' events as frozen dataclasses. Field order is the Solidity order; a test compares the two.

Amounts in token wei, times in unix seconds. `at` says where on the chain an event is; `(block_hash, log_index)` names
it uniquely for ever, whatever reorganisations do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from eth_typing import ChecksumAddress

from protocol.abi import Event, artifact
from protocol.types import NodeId, TaskId, TaskSpec, Wei


@dataclass(frozen=True, slots=True)
class Position:
    """Where an event is. `timestamp` is its block's, unix s."""

    block_number: int
    block_hash: bytes
    timestamp: int
    tx_hash: bytes
    log_index: int


@dataclass(frozen=True, slots=True)
class ChainEvent:
    """Base of all events."""

    at: Position


# --- NodeRegistry ---


@dataclass(frozen=True, slots=True)
class NodeRegistered(ChainEvent):
    node: NodeId
    owner: ChecksumAddress
    operator: ChecksumAddress
    encryption_key: bytes
    endpoint: str
    capabilities_hash: bytes


@dataclass(frozen=True, slots=True)
class NodeUpdated(ChainEvent):
    node: NodeId
    encryption_key: bytes
    endpoint: str
    capabilities_hash: bytes


@dataclass(frozen=True, slots=True)
class OperatorRotated(ChainEvent):
    node: NodeId
    old_operator: ChecksumAddress
    new_operator: ChecksumAddress


@dataclass(frozen=True, slots=True)
class Staked(ChainEvent):
    node: NodeId
    from_: ChecksumAddress
    amount: Wei


@dataclass(frozen=True, slots=True)
class Locked(ChainEvent):
    node: NodeId
    amount: Wei


@dataclass(frozen=True, slots=True)
class Unlocked(ChainEvent):
    node: NodeId
    amount: Wei


@dataclass(frozen=True, slots=True)
class UnbondRequested(ChainEvent):
    node: NodeId
    amount: Wei
    matures_at: int


@dataclass(frozen=True, slots=True)
class Withdrawn(ChainEvent):
    """Stake left the registry. Earnings leave the market as `Paid`."""

    node: NodeId
    owner: ChecksumAddress
    amount: Wei


@dataclass(frozen=True, slots=True)
class Deregistered(ChainEvent):
    node: NodeId


@dataclass(frozen=True, slots=True)
class Slashed(ChainEvent):
    node: NodeId
    amount: Wei
    harmed: ChecksumAddress
    to_harmed: Wei
    reporter: ChecksumAddress
    to_reporter: Wei
    burned: Wei


@dataclass(frozen=True, slots=True)
class Collected(ChainEvent):
    payee: ChecksumAddress
    amount: Wei


@dataclass(frozen=True, slots=True)
class MarketBound(ChainEvent):
    market: ChecksumAddress


# --- TaskMarket ---


@dataclass(frozen=True, slots=True)
class TaskPosted(ChainEvent):
    task: TaskId
    requester: ChecksumAddress
    escrow: Wei
    spec: TaskSpec


@dataclass(frozen=True, slots=True)
class TaskCancelled(ChainEvent):
    task: TaskId


@dataclass(frozen=True, slots=True)
class TaskClosed(ChainEvent):
    task: TaskId
    refunded: Wei


@dataclass(frozen=True, slots=True)
class UnitClaimed(ChainEvent):
    task: TaskId
    unit: int
    node: NodeId
    input_state_root: bytes
    deadline: int


@dataclass(frozen=True, slots=True)
class UnitCommitted(ChainEvent):
    task: TaskId
    unit: int
    node: NodeId
    commitment: bytes


@dataclass(frozen=True, slots=True)
class UnitRevealed(ChainEvent):
    task: TaskId
    unit: int
    node: NodeId
    result_root: bytes
    checkpoints_root: bytes
    final_state_root: bytes


@dataclass(frozen=True, slots=True)
class UnitFinalised(ChainEvent):
    task: TaskId
    unit: int
    node: NodeId
    payee: ChecksumAddress
    paid: Wei
    accepted: bool


@dataclass(frozen=True, slots=True)
class UnitExpired(ChainEvent):
    task: TaskId
    unit: int
    node: NodeId
    collateral: Wei
    reporter: ChecksumAddress


@dataclass(frozen=True, slots=True)
class Paid(ChainEvent):
    payee: ChecksumAddress
    amount: Wei


# --- Faucet ---


@dataclass(frozen=True, slots=True)
class Dripped(ChainEvent):
    to: ChecksumAddress
    caller: ChecksumAddress
    amount: Wei


EVENTS: Mapping[str, tuple[type[ChainEvent], ...]] = {
    "NodeRegistry": (
        NodeRegistered,
        NodeUpdated,
        OperatorRotated,
        Staked,
        Locked,
        Unlocked,
        UnbondRequested,
        Withdrawn,
        Deregistered,
        Slashed,
        Collected,
        MarketBound,
    ),
    "TaskMarket": (
        TaskPosted,
        TaskCancelled,
        TaskClosed,
        UnitClaimed,
        UnitCommitted,
        UnitRevealed,
        UnitFinalised,
        UnitExpired,
        Paid,
    ),
    "Faucet": (Dripped,),
}


@cache
def _by_topic() -> dict[bytes, tuple[type[ChainEvent], Event]]:
    return {
        (event := artifact(contract).events[kind.__name__]).topic: (kind, event)
        for contract, kinds in EVENTS.items()
        for kind in kinds
    }


def topic_of(kind: type[ChainEvent]) -> bytes:
    """Topic 0 of this kind of event."""
    return next(topic for topic, (known, _) in _by_topic().items() if known is kind)


def decode_log(at: Position, topics: Sequence[bytes], data: bytes) -> ChainEvent | None:
    """The event in a log, None if it is none of ours. The caller has checked that the log is from our contracts."""
    known = _by_topic().get(bytes(topics[0])) if topics else None
    if known is None:
        return None
    kind, event = known
    values: list[Any] = list(event.decode(topics, data))
    if kind is TaskPosted:
        values[-1] = TaskSpec.from_abi(values[-1])
    return kind(at, *values)
