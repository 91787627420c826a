"""What a Compute Node does next: a pure function of the view.

    decide(view, policy) -> Decision(actions, skips)

No action is one that the chain would refuse if nothing else happened after the view was read (tests hold it against
a model of the contract). Somebody else may be faster; losing a race is normal, and costs a simulated call.

The order of the actions is the order in which they matter: stop what is pointless, keep the machine busy, then
whatever has a deadline (nearest first), then money that waits, then new work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from node.compute.actions import (
    Abandon,
    Accept,
    Action,
    AskAdmission,
    Claim,
    Commit,
    Disclose,
    Expire,
    Finalise,
    Prepare,
    Publish,
    ShareKeys,
    Train,
)
from node.compute.view import IN_WORK, ComputeView, Policy, Stage, TaskView, WorkKey
from proofs.hashing import keccak
from protocol.amounts import format_avn, show_avn
from protocol.types import NO_ADMISSION, NodeId, TaskId, TaskStatus, Unit, UnitStatus

BPS = 10_000
LAST_CALL_PART = 5
"""A result that could not be published is revealed all the same in the last fifth of its reveal window."""
STAGGER_STEP_S = 2
STAGGER_STEPS = 4
"""Nodes expire the late units of others up to 6 s apart, so that they do not all pay for the same revert."""


@dataclass(frozen=True, slots=True)
class Skip:
    """Why something was left alone: what there is, what it would take."""

    task: TaskId
    unit: int | None
    reason: str
    have: str
    need: str

    def __str__(self) -> str:
        return f"{self.reason}: have {self.have}, need {self.need}"


@dataclass(frozen=True, slots=True)
class Decision:
    actions: tuple[Action, ...]
    skips: tuple[Skip, ...]
    in_flight: int
    """Own units that still need this node; a drain is over when there are none."""


@dataclass(frozen=True, slots=True)
class _Candidate:
    view: TaskView
    unit: int
    rank: tuple[float, int]


def decide(view: ComputeView, policy: Policy) -> Decision:
    """Every move this node should make now, most important first."""
    skips: list[Skip] = []
    in_work = [
        (tv, index, unit)
        for tv in view.tasks
        for index, unit in tv.units.items()
        if unit.node == view.me and unit.status in IN_WORK
    ]
    actions: list[Action] = [*_abandoned(view, in_work)]
    duties = [_duty(view, tv, index, unit, skips) for tv, index, unit in in_work]
    actions += [d for d in duties if isinstance(d, Train)]
    dated: list[Commit | Publish | Disclose] = [d for d in duties if isinstance(d, Commit | Publish | Disclose)]
    dated += _late_publications(view)
    dated.sort(key=lambda move: (move.deadline, move.key))
    actions += dated
    settle_own, settle_others = _settlements(view, policy, skips)
    actions += settle_own + settle_others
    actions += [ShareKeys(tv.task, tv.owed) for tv in view.tasks if tv.owed]
    actions += _new_work(view, policy, len(in_work), skips)
    return Decision(tuple(actions), tuple(skips), len(in_work))


def _abandoned(view: ComputeView, in_work: list[tuple[TaskView, int, Unit]]) -> Iterator[Abandon]:
    mine = {
        WorkKey(tv.task, index, unit.attempt) for tv, index, unit in in_work if view.block.timestamp <= unit.deadline
    }
    return (Abandon(key) for key, stage in view.work.items() if stage is Stage.RUNNING and key not in mine)


def _duty(view: ComputeView, tv: TaskView, index: int, unit: Unit, skips: list[Skip]) -> Action | None:
    """The next step for a unit that is this node's."""
    key = WorkKey(tv.task, index, unit.attempt)
    if view.block.timestamp > unit.deadline:
        skips.append(Skip(tv.task, index, "too late", f"{view.block.timestamp - unit.deadline} s late", "in time"))
        return None
    stage = view.stage(key)
    if stage is Stage.FAILED:
        skips.append(Skip(tv.task, index, "cannot be computed here", "an error (see above)", "a result"))
        return None
    if stage is Stage.OVERFLOWED:
        skips.append(
            Skip(tv.task, index, "program overflows", str(tv.overflows.get(index)), "a state within its bounds")
        )
        return None
    if stage is Stage.NONE:
        return Train(key, unit.deadline)
    if stage is Stage.RUNNING:
        return None
    if unit.status is UnitStatus.CLAIMED:
        return Commit(key, unit.deadline)
    # Data first: who builds on a revealed state must be able to fetch it. Only when a gateway that is away is about to
    # cost the collateral is the order turned round, and the state published as soon as that can be done.
    last_call = view.block.timestamp > unit.deadline - unit.reveal_window_s // LAST_CALL_PART
    if stage is Stage.DONE and not last_call:
        return Publish(key, unit.deadline)
    # A reveal has to be in a later block than the commit, and what is sent now will be: the commit is in the view. To
    # wait until such a block is seen would be to wait for ever on a chain that makes blocks only for transactions.
    return Disclose(key, unit.deadline)


def _late_publications(view: ComputeView) -> Iterator[Publish]:
    """Results that had to be revealed before they could be published."""
    for tv in view.tasks:
        for index, unit in tv.units.items():
            key = WorkKey(tv.task, index, unit.attempt)
            if unit.node == view.me and unit.status >= UnitStatus.REVEALED and view.stage(key) is Stage.DONE:
                yield Publish(key, unit.deadline)


def _settlements(view: ComputeView, policy: Policy, skips: list[Skip]) -> tuple[list[Action], list[Action]]:
    """Units that can be finalised or expired: this node's own, then everybody's."""
    own: list[Action] = []
    others: list[Action] = []
    now = view.block.timestamp
    for tv in view.tasks:
        tip = tv.spec.collateral * view.tip_bps // BPS
        for index, unit in tv.units.items():
            mine = unit.node == view.me
            if unit.status is UnitStatus.REVEALED:
                if mine and index in tv.acceptances:
                    own.append(Accept(tv.task, index, tv.acceptances[index]))
                elif now > unit.deadline + (0 if mine else policy.grace_s):
                    (own if mine else others).append(Finalise(tv.task, index))
            elif unit.status in IN_WORK and now > unit.deadline:
                if tip < policy.min_tip:
                    skips.append(
                        Skip(tv.task, index, "tip does not pay its gas", show_avn(tip), show_avn(policy.min_tip))
                    )
                elif mine or now > unit.deadline + stagger_s(view.me, tv.task, index):
                    (own if mine else others).append(Expire(tv.task, index))
    return own, others


def stagger_s(node: NodeId, task: TaskId, unit: int) -> int:
    """This node's turn among those who would expire the same unit, s after its deadline."""
    digest = keccak(b"avenue.stagger" + task + unit.to_bytes(4, "big") + node.to_bytes(8, "big"))
    return STAGGER_STEP_S * (digest[0] % STAGGER_STEPS)


def shard_offset(node: NodeId, task: TaskId, shards: int) -> int:
    """Where this node starts looking, so that nodes do not all race for shard 0."""
    digest = keccak(b"avenue.offset" + task + node.to_bytes(8, "big"))
    return int.from_bytes(digest[:8], "big") % shards


def _new_work(view: ComputeView, policy: Policy, in_work: int, skips: list[Skip]) -> list[Action]:
    """Claims within capacity and stake; requests and preparations for what may be claimed next."""
    slots = policy.max_parallel - in_work
    if policy.draining or slots <= 0:
        return []
    if not view.active:
        for tv in view.tasks:
            have, need = f"{show_avn(view.node.stake)}{', leaving' * view.node.leaving}", show_avn(view.min_stake)
            skips.append(Skip(tv.task, None, "node not active", have, need))
        return []
    if view.gas_wei < policy.min_gas_wei:
        for tv in view.tasks:
            skips.append(
                Skip(
                    tv.task,
                    None,
                    "not enough gas money",
                    f"{format_avn(view.gas_wei)} ETH",
                    f"{format_avn(policy.min_gas_wei)} ETH",
                )
            )
        return []
    candidates = [found for tv in view.tasks for found in _candidates(view, tv, policy, skips)]
    candidates.sort(key=lambda candidate: candidate.rank)
    asks = _asks(view, policy, slots) if not candidates else []
    claims: list[Action] = []
    prepares: list[Action] = []
    free: int = view.node.free_stake
    for candidate in candidates:
        tv, unit = candidate.view, candidate.unit
        if slots <= 0:
            break
        if free < tv.spec.collateral:
            skips.append(Skip(tv.task, unit, "not enough free stake", show_avn(free), show_avn(tv.spec.collateral)))
            continue
        if unit in tv.ready and tv.expected_s(unit) is not None:
            if _in_time(tv, unit, policy, skips):
                claims.append(Claim(tv.task, unit, tv.admission or NO_ADMISSION))
                free -= tv.spec.collateral
                slots -= 1
        elif unit in tv.preparing:
            slots -= 1
        elif unit in tv.reachable:
            prepares.append(Prepare(tv.task, unit))
            slots -= 1
        else:
            skips.append(Skip(tv.task, unit, "inputs not announced or not granted", "nothing", "blob and key"))
    return claims + asks + prepares


def _candidates(view: ComputeView, tv: TaskView, policy: Policy, skips: list[Skip]) -> Iterator[_Candidate]:
    """Open units of the present round that this node may take and that pay enough."""
    spec, now = tv.spec, view.block.timestamp
    if tv.state.status is not TaskStatus.POSTED or tv.round >= spec.rounds:
        return
    if tv.problem is not None:
        skips.append(Skip(tv.task, None, "task cannot be worked on", tv.problem, "a manifest that fits the chain"))
        return
    if now > spec.deadline:
        skips.append(Skip(tv.task, None, "past the deadline", f"{now - spec.deadline} s late", "in time"))
        return
    offset = shard_offset(view.me, tv.task, spec.shards)
    for index, unit in tv.units.items():
        if unit.status is not UnitStatus.OPEN or not tv.inputs_known(index):
            continue
        if tv.price(index) < policy.min_unit_price:
            skips.append(
                Skip(tv.task, index, "pays too little", show_avn(tv.price(index)), show_avn(policy.min_unit_price))
            )
            continue
        if spec.is_private and not admitted(tv, index, now):
            skips.append(Skip(tv.task, index, "not admitted", "no admission to this shard", "one from the requester"))
            continue
        if index in tv.overflows:
            skips.append(
                Skip(tv.task, index, "program overflows", str(tv.overflows[index]), "a state within its bounds")
            )
            continue
        if index in tv.cooling:
            skips.append(Skip(tv.task, index, "failed a moment ago", "an error (see above)", "some time"))
            continue
        # What pays best for its time comes first. Within a task shards pay the same, and the node's own offset decides.
        pay_rate = tv.price(index) / max(tv.expected_s(index) or 0.0, 1.0)
        turn = 0 if spec.is_aggregation(index) else (spec.shard_of(index) - offset) % spec.shards
        yield _Candidate(tv, index, (-pay_rate, turn))


def admitted(tv: TaskView, unit: int, now: int) -> bool:
    """Whether the admission covers the unit; one to any shard admits to aggregation."""
    admission = tv.admission
    if admission is None or now > admission.deadline:
        return False
    return (
        admission.shards != 0 if tv.spec.is_aggregation(unit) else bool(admission.shards >> tv.spec.shard_of(unit) & 1)
    )


def _asks(view: ComputeView, policy: Policy, slots: int) -> list[Action]:
    """Requests for shards, only of a node that has nothing to take, and never for more than it could work on.

    Whoever is admitted holds a place, and can read a shard.
    """
    now = view.block.timestamp
    asked = [tv for tv in view.tasks if tv.asked_at is not None and now < tv.asked_at + policy.ask_every_s]
    wanted = [tv for tv in view.tasks if _should_ask(view, tv, policy)]
    # Whom it has not asked yet, or not for longest, comes first; then who pays best.
    wanted.sort(key=lambda tv: (tv.asked_at or 0, -tv.spec.unit_price / tv.spec.steps))
    return [AskAdmission(tv.task) for tv in wanted[: max(0, slots - len(asked))]]


def _should_ask(view: ComputeView, tv: TaskView, policy: Policy) -> bool:
    """Whether something is open here that an admission would give."""
    spec, now = tv.spec, view.block.timestamp
    if not spec.is_private or tv.problem is not None:
        return False
    if tv.state.status is not TaskStatus.POSTED or tv.round >= spec.rounds or now > spec.deadline:
        return False
    if tv.asked_at is not None and now < tv.asked_at + policy.ask_every_s:
        return False
    if spec.unit_price < policy.min_unit_price or view.node.free_stake < spec.collateral:
        return False
    if tv.admission is None or now > tv.admission.deadline:
        # Asked ahead of need: a node that is admitted in time can step in at once when another vanishes.
        return True
    return any(
        unit.status is UnitStatus.OPEN
        and not spec.is_aggregation(index)
        and spec.round_of(index) == tv.round
        and now >= tv.open_since.get(index, now) + policy.spare_after_s
        for index, unit in tv.units.items()
    )


def _in_time(tv: TaskView, unit: int, policy: Policy, skips: list[Skip]) -> bool:
    expected = tv.expected_s(unit)
    # Units that train side by side share the machine's cores.
    crowd = policy.max_parallel
    need = float("inf") if expected is None else expected * policy.time_factor * crowd + policy.margin_s
    if tv.spec.compute_window_s >= need:
        return True
    skips.append(
        Skip(tv.task, unit, "window too short", f"{tv.spec.compute_window_s} s", f"{need:.0f} s on this machine")
    )
    return False
