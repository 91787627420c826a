"""What a Compute Node can do: inert data, made by `decide.py` and carried out by `agent.py`."""

from __future__ import annotations

from dataclasses import dataclass

from node.compute.view import WorkKey
from protocol.types import Admission, BlobId, NodeId, TaskId


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop working at an attempt that is no longer this node's."""

    key: WorkKey


@dataclass(frozen=True, slots=True)
class Train:
    """Start the unit, or carry on from the last checkpoint on disk."""

    key: WorkKey
    deadline: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Bind to the result on disk."""

    key: WorkKey
    deadline: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Upload the final state and announce it; data is available before the result counts."""

    key: WorkKey
    deadline: int


@dataclass(frozen=True, slots=True)
class Disclose:
    """Open the commitment (`reveal` on chain)."""

    key: WorkKey
    deadline: int


@dataclass(frozen=True, slots=True)
class Accept:
    """Hand in the requester's acceptance of this node's unit."""

    task: TaskId
    unit: int
    signature: bytes


@dataclass(frozen=True, slots=True)
class Finalise:
    """Settle a unit whose challenge window has passed."""

    task: TaskId
    unit: int


@dataclass(frozen=True, slots=True)
class Expire:
    """Re-open a unit whose worker let its deadline pass."""

    task: TaskId
    unit: int


@dataclass(frozen=True, slots=True)
class Claim:
    """Take a unit and answer for it with stake."""

    task: TaskId
    unit: int
    admission: Admission


@dataclass(frozen=True, slots=True)
class AskAdmission:
    """Ask the requester of a private task for a shard."""

    task: TaskId


@dataclass(frozen=True, slots=True)
class ShareKeys:
    """Hand keys on to readers that were let in after a state was sealed."""

    task: TaskId
    grants: frozenset[tuple[BlobId, NodeId]]


@dataclass(frozen=True, slots=True)
class Prepare:
    """Fetch, open and verify what a unit starts from, in the background."""

    task: TaskId
    unit: int


Action = (
    Abandon
    | Train
    | Commit
    | Publish
    | Disclose
    | Accept
    | Finalise
    | Expire
    | Claim
    | AskAdmission
    | ShareKeys
    | Prepare
)
