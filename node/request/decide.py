"""What a Request Node does next: a pure function of the view.

The requester's part is small on purpose. It lets nodes in, hands out keys, and signs for what it has seen; a task whose
nodes are admitted goes on without it, and everything it does on chain can be done by anybody else, later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from node.request.view import REQUESTER, AcceptPolicy, Ask, Policy, RequestView
from protocol.types import BlobId, NodeId, TaskStatus, UnitStatus

IN_WORK = (UnitStatus.CLAIMED, UnitStatus.COMMITTED)


@dataclass(frozen=True, slots=True)
class GrantKeys:
    """Wrap the keys of these blobs to a reader that is entitled to them."""

    reader: NodeId
    blobs: tuple[BlobId, ...]


@dataclass(frozen=True, slots=True)
class Admit:
    """Hand over the keys, then sign an admission to `shards` (bit set, earlier ones included)."""

    node: NodeId
    shards: int
    blobs: tuple[BlobId, ...]
    """Granted before the admission is posted."""


@dataclass(frozen=True, slots=True)
class SignAcceptance:
    """Look at the result as the policy says; if it holds, sign for it."""

    unit: int
    recompute: bool


@dataclass(frozen=True, slots=True)
class HandIn:
    """Bring the acceptance of a unit on chain, because its worker did not."""

    unit: int


@dataclass(frozen=True, slots=True)
class Expire:
    """Re-open a unit that the nodes left lying."""

    unit: int


@dataclass(frozen=True, slots=True)
class Finalise:
    """Settle a unit that the nodes left lying."""

    unit: int


@dataclass(frozen=True, slots=True)
class Close:
    """End the task; the rest of the escrow becomes the requester's credit."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Collect the credit."""


@dataclass(frozen=True, slots=True)
class Collect:
    """Collect the compensation for units that nodes let lapse."""


@dataclass(frozen=True, slots=True)
class Finished:
    """Nothing is left to do."""


Action = GrantKeys | Admit | SignAcceptance | HandIn | Expire | Finalise | Close | Withdraw | Collect | Finished


def decide(view: RequestView, policy: Policy) -> tuple[Action, ...]:
    """Every move the requester should make now, most urgent first."""
    if view.state.status is TaskStatus.CLOSED:
        rest: list[Action] = [Withdraw()] if view.credit > 0 else []
        rest += [Collect()] if view.compensation > 0 else []
        return tuple(rest) or (Finished(),)
    actions: list[Action] = []
    if view.spec.is_private:
        actions += _missing_grants(view)
        actions += _admissions(view, policy)
    actions += _acceptances(view, policy)
    actions += _settlements(view, policy)
    if closeable(view):
        actions.append(Close())
    return tuple(actions)


def closeable(view: RequestView) -> bool:
    """Whether nothing is in flight and no unit can be claimed any more."""
    if view.state.in_flight > 0 or view.state.status not in (TaskStatus.POSTED, TaskStatus.CANCELLED):
        return False
    over = view.state.status is TaskStatus.CANCELLED or view.timestamp > view.spec.deadline
    return over or view.state.finalised == view.spec.units


def wants_workers(view: RequestView) -> bool:
    """Whether units can be claimed and nobody is at work on any."""
    if view.state.status is not TaskStatus.POSTED or view.timestamp > view.spec.deadline:
        return False
    statuses = {unit.status for unit in view.units.values()}
    return UnitStatus.OPEN in statuses and statuses.isdisjoint(IN_WORK)


def shards_in(bits: int) -> Iterator[int]:
    """The members of a bit set, ascending."""
    return (shard for shard in range(bits.bit_length()) if bits >> shard & 1)


def entitled_blobs(view: RequestView, shards: int) -> tuple[BlobId, ...]:
    """What a node admitted to `shards` needs to be able to read now."""
    return tuple(view.shard_blobs[shard] for shard in shards_in(shards)) + view.state_blobs


def _missing_grants(view: RequestView) -> Iterator[GrantKeys]:
    # The requester's own copies first: whoever has its encryption key can then run the task from another machine.
    own = _ungranted(view, REQUESTER, view.shard_blobs + view.state_blobs)
    if own:
        yield GrantKeys(REQUESTER, own)
    for node, offer in sorted(view.offers.items()):
        blobs = _ungranted(view, node, entitled_blobs(view, offer.shards))
        if blobs:
            yield GrantKeys(node, blobs)


def _ungranted(view: RequestView, node: NodeId, blobs: tuple[BlobId, ...]) -> tuple[BlobId, ...]:
    return tuple(blob for blob in blobs if (blob, node) not in view.granted and blob not in view.ungrantable)


def _admissions(view: RequestView, policy: Policy) -> Iterator[Admit]:
    """At most one shard per asking node; first come, first served."""
    if (
        view.state.status is not TaskStatus.POSTED
        or view.timestamp > view.spec.deadline
        or view.round >= view.spec.rounds
    ):
        return
    offered = {
        shard
        for node, offer in view.offers.items()
        if view.clock < offer.offered_at + policy.offer_s and not _holds_unit(view, node)
        for shard in shards_in(offer.shards)
    }
    for ask in sorted(view.asks, key=lambda a: a.message_id):
        if not ask.active or not _unanswered(view, ask):
            continue
        held = view.offers[ask.node].shards if ask.node in view.offers else 0
        choices = [
            (len(live), shard)
            for shard in range(view.spec.shards)
            if not held >> shard & 1 and shard not in offered
            for live in [_live_nodes(view, policy, shard) - {ask.node}]
            if _open_for(view, shard) >= (policy.patience_s if live else 0)
        ]
        if choices:
            shard = min(choices)[1]
            offered.add(shard)
            shards = held | 1 << shard
            yield Admit(ask.node, shards, _ungranted(view, ask.node, entitled_blobs(view, shards)))


def _unanswered(view: RequestView, ask: Ask) -> bool:
    offer = view.offers.get(ask.node)
    return offer is None or offer.message_id < ask.message_id


def _open_for(view: RequestView, shard: int) -> float:
    """How long the shard's unit of the present round has been open, s; minus infinity if it is not."""
    index = view.spec.unit_index(view.round, shard)
    unit = view.units.get(index)
    if unit is None or unit.status is not UnitStatus.OPEN:
        return float("-inf")
    return view.timestamp - view.open_since.get(index, view.timestamp)


def _holds_unit(view: RequestView, node: NodeId) -> bool:
    return any(unit.node == node and unit.status in IN_WORK for unit in view.units.values())


def _live_nodes(view: RequestView, policy: Policy, shard: int) -> set[NodeId]:
    """Nodes admitted to the shard that can be expected to take it."""
    return {
        node
        for node, offer in view.offers.items()
        if offer.shards >> shard & 1
        and (view.clock < view.heard.get(node, offer.offered_at) + policy.live_s or _holds_unit(view, node))
    }


def _acceptances(view: RequestView, policy: Policy) -> Iterator[SignAcceptance]:
    if policy.accept is AcceptPolicy.NEVER:
        return
    for index, unit in sorted(view.units.items()):
        looked_at = index in view.accepted or index in view.unacceptable
        if unit.status is UnitStatus.REVEALED and index in view.announced and not looked_at:
            yield SignAcceptance(index, recompute=policy.accept is AcceptPolicy.RECOMPUTE)


def _settlements(view: RequestView, policy: Policy) -> Iterator[HandIn | Expire | Finalise]:
    """What the nodes left lying. A worker that died after its reveal must not hold up the end of the task."""
    for index, unit in sorted(view.units.items()):
        revealed_at = unit.deadline - view.spec.challenge_window_s
        if unit.status is UnitStatus.REVEALED and index in view.accepted:
            if view.timestamp > revealed_at + policy.hand_in_after_s:
                yield HandIn(index)
        elif view.timestamp > unit.deadline + policy.grace_s:
            if unit.status in IN_WORK:
                yield Expire(index)
            elif unit.status is UnitStatus.REVEALED:
                yield Finalise(index)
