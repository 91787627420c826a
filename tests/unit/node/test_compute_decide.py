"""The Compute Node's rules: each by its effect, then all of them held against a model of the contract."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings

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
from node.compute.decide import decide, shard_offset, stagger_s
from node.compute.view import ComputeView, OverflowNote, Policy, Speed, Stage, TaskView, WorkKey
from protocol.types import Admission, BlobId, NodeId, TaskState, TaskStatus, UnitStatus, Wei
from tests.unit.node.compute_views import (
    ME,
    NOW,
    OTHER,
    compute_views,
    make_spec,
    make_task,
    make_unit,
    make_view,
    policies,
)

ONE = Policy()


def chosen(view: ComputeView, policy: Policy = ONE) -> tuple[Action, ...]:
    return decide(view, policy).actions


def reasons(view: ComputeView, policy: Policy = ONE) -> set[str]:
    return {skip.reason for skip in decide(view, policy).skips}


# --- a unit's way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "stage", "expected"),
    [
        (UnitStatus.CLAIMED, Stage.NONE, Train),
        (UnitStatus.CLAIMED, Stage.RUNNING, None),
        (UnitStatus.CLAIMED, Stage.FAILED, None),
        (UnitStatus.CLAIMED, Stage.DONE, Commit),
        (UnitStatus.CLAIMED, Stage.PUBLISHED, Commit),
        (UnitStatus.COMMITTED, Stage.NONE, Train),
        (UnitStatus.COMMITTED, Stage.RUNNING, None),
        (UnitStatus.COMMITTED, Stage.DONE, Publish),
        (UnitStatus.COMMITTED, Stage.PUBLISHED, Disclose),
    ],
)
def test_each_stage_of_an_own_unit_leads_to_the_next(
    status: UnitStatus, stage: Stage, expected: type[Action] | None
) -> None:
    task = make_task({0: make_unit(status, commit_block=499)})
    actions = chosen(make_view(task, work={WorkKey(task.task, 0, 0): stage}))
    assert [type(action) for action in actions] == ([expected] if expected else [])


def test_unit_that_overflowed_is_neither_committed_nor_claimed_again() -> None:
    """No collateral is lost beyond the one that this attempt has locked already."""
    note = OverflowNote("01" * 32, 5, 17, 3, -4096, "02" * 32)
    held = make_task({0: make_unit(UnitStatus.CLAIMED)}, overflows={0: note})
    work = {WorkKey(held.task, 0, 0): Stage.OVERFLOWED}
    decision = decide(make_view(held, work=work), ONE)
    assert decision.actions == ()
    assert any(skip.reason == "program overflows" and "step 6" in skip.have for skip in decision.skips)
    late = make_task({0: make_unit(UnitStatus.CLAIMED, deadline=NOW - 1)}, overflows={0: note})
    assert Expire(late.task, 0) in chosen(make_view(late, work=work))
    reopened = make_task({0: make_unit(UnitStatus.OPEN, NodeId(0), attempt=1)}, overflows={0: note})
    claims = [action for action in chosen(make_view(reopened), Policy(max_parallel=9)) if isinstance(action, Claim)]
    assert claims and all(claim.unit != 0 for claim in claims), "other units are another matter"


def test_reveal_does_not_wait_for_a_block_that_nobody_may_make() -> None:
    """The commit is in the newest block. Where blocks are made for transactions only, the reveal makes the next."""
    task = make_task({0: make_unit(UnitStatus.COMMITTED, commit_block=500)})
    key = WorkKey(task.task, 0, 0)
    view = make_view(task, work={key: Stage.PUBLISHED})
    assert view.block.number == 500
    assert [type(action) for action in chosen(view)] == [Disclose]


def test_nearest_deadline_comes_first() -> None:
    late = make_unit(UnitStatus.CLAIMED, deadline=NOW + 90)
    soon = make_unit(UnitStatus.COMMITTED, deadline=NOW + 10, commit_block=400)
    task = make_task({0: late, 1: soon})
    work = {WorkKey(task.task, 0, 0): Stage.DONE, WorkKey(task.task, 1, 0): Stage.PUBLISHED}
    assert [type(action) for action in chosen(make_view(task, work=work))] == [Disclose, Commit]


def test_work_on_a_lost_unit_is_abandoned() -> None:
    task = make_task(
        {0: make_unit(UnitStatus.CLAIMED, node=OTHER, attempt=1), 1: make_unit(UnitStatus.REVEALED, OTHER)}
    )
    key = WorkKey(task.task, 0, 0)
    assert chosen(make_view(task, work={key: Stage.RUNNING})) == (Abandon(key),)


def test_work_past_its_deadline_is_abandoned_and_the_unit_expired_for_the_tip() -> None:
    task = make_task({0: make_unit(UnitStatus.CLAIMED, deadline=NOW - 1), 1: make_unit(UnitStatus.REVEALED, OTHER)})
    key = WorkKey(task.task, 0, 0)
    assert chosen(make_view(task, work={key: Stage.RUNNING})) == (Abandon(key), Expire(task.task, 0))


def test_result_that_cannot_be_published_is_revealed_at_the_last_call_and_published_after() -> None:
    unit = make_unit(UnitStatus.COMMITTED, deadline=NOW + 19, commit_block=400, reveal_window_s=100)
    task = make_task({0: unit})
    key = WorkKey(task.task, 0, 0)
    assert [type(a) for a in chosen(make_view(task, work={key: Stage.DONE}))] == [Disclose]
    early = make_task({0: replace(unit, deadline=NOW + 20)})
    assert [type(a) for a in chosen(make_view(early, work={key: Stage.DONE}))] == [Publish]
    revealed = make_task({0: make_unit(UnitStatus.REVEALED)}, ready=frozenset(), reachable=frozenset())
    assert [type(a) for a in chosen(make_view(revealed, work={key: Stage.DONE}))] == [Publish]


# --- settling -------------------------------------------------------------------------------------------------------


def test_acceptance_is_handed_in_before_the_window_ends() -> None:
    task = make_task({0: make_unit(UnitStatus.REVEALED)}, acceptances={0: b"s"}, ready=frozenset())
    assert Accept(task.task, 0, b"s") in chosen(make_view(task))


def test_own_unit_is_finalised_after_its_window_and_others_only_after_a_grace() -> None:
    for node, late_s, expected in [(ME, 0, False), (ME, 1, True), (OTHER, 1, False), (OTHER, 61, True)]:
        task = make_task({0: make_unit(UnitStatus.REVEALED, node, NOW - late_s)})
        assert (Finalise(task.task, 0) in chosen(make_view(task))) is expected


def test_late_unit_of_another_is_expired_once_this_nodes_turn_has_come() -> None:
    task = make_task()
    turn = stagger_s(ME, task.task, 0)
    for late_s, expected in [(0, False), (turn, False), (turn + 1, True)]:
        units = {0: make_unit(UnitStatus.CLAIMED, OTHER, NOW - late_s)}
        assert (Expire(task.task, 0) in chosen(make_view(make_task(units)))) is expected


def test_late_unit_is_left_when_the_tip_does_not_pay() -> None:
    task = make_task({0: make_unit(UnitStatus.CLAIMED, OTHER, NOW - 100)})
    policy = Policy(min_tip=Wei(101))  # the tip is 10% of 1000
    assert Expire(task.task, 0) not in chosen(make_view(task), policy)
    assert "tip does not pay its gas" in reasons(make_view(task), policy)


# --- new work -------------------------------------------------------------------------------------------------------


def claims(view: ComputeView, policy: Policy = ONE) -> list[int]:
    return [action.unit for action in chosen(view, policy) if isinstance(action, Claim)]


def test_nodes_start_from_different_shards() -> None:
    spec = make_spec(shards=8)
    first = Counter(shard_offset(NodeId(node), spec.task_id, 8) for node in range(1, 200))
    assert set(first) == set(range(8))
    task = make_task(spec=spec)
    assert claims(make_view(task)) == [shard_offset(ME, task.task, 8)]


def test_claims_stop_at_the_parallel_limit_and_at_the_stake() -> None:
    task = make_task(spec=make_spec(shards=8))
    assert len(claims(make_view(task), Policy(max_parallel=3))) == 3
    view = make_view(task)
    poor = replace(view, node=replace(view.node, stake=Wei(2999)))
    assert len(claims(poor, Policy(max_parallel=3))) == 2
    assert "not enough free stake" in reasons(poor, Policy(max_parallel=3))


def test_one_unit_in_work_fills_a_node_with_one_slot() -> None:
    task = make_task({0: make_unit(UnitStatus.CLAIMED)})
    assert claims(make_view(task, work={WorkKey(task.task, 0, 0): Stage.RUNNING})) == []
    assert len(claims(make_view(task, work={WorkKey(task.task, 0, 0): Stage.RUNNING}), Policy(max_parallel=2))) == 1


def test_aggregation_waits_for_every_shard() -> None:
    revealed = make_unit(UnitStatus.REVEALED, OTHER)
    assert claims(make_view(make_task({0: revealed, 1: make_unit(UnitStatus.COMMITTED, OTHER)}))) == []
    assert claims(make_view(make_task({0: revealed, 1: revealed}))) == [2]


@pytest.mark.parametrize(
    ("task", "policy", "reason"),
    [
        (make_task(), Policy(min_unit_price=Wei(101)), "pays too little"),
        (make_task(speed=Speed(100.0, 0.0)), ONE, "window too short"),
        (make_task(speed=Speed(0.1, 100.0)), ONE, "window too short"),
        (make_task(speed=Speed(8.0, 0.0)), Policy(max_parallel=2), "window too short"),
        (make_task(spec=make_spec(deadline=NOW - 1)), ONE, "past the deadline"),
        (make_task(problem="the manifest lies"), ONE, "task cannot be worked on"),
        (make_task(cooling=frozenset({0, 1})), ONE, "failed a moment ago"),
        (make_task(ready=frozenset(), reachable=frozenset()), ONE, "inputs not announced or not granted"),
        (make_task(), Policy(min_gas_wei=10**19), "not enough gas money"),
        (make_task(spec=make_spec(is_private=True)), ONE, "not admitted"),
    ],
)
def test_every_refusal_names_its_reason(task: TaskView, policy: Policy, reason: str) -> None:
    assert claims(make_view(task), policy) == []
    assert reason in reasons(make_view(task), policy)


def test_time_goes_into_checkpoints_and_shards_as_well_as_into_steps() -> None:
    spec = make_spec(steps=50, checkpoint_interval=20, shards=4)
    task = make_task(spec=spec, speed=Speed(2.0, 10.0))
    assert task.expected_s(0) == 50 * 2.0 + 3 * 10.0
    assert task.expected_s(4) == 2.0 + 6 * 10.0
    newcomer = replace(task, speed=None, averaging=Speed(1.0, 1.0))
    assert newcomer.expected_s(0) is None
    assert newcomer.expected_s(4) == 7.0, "a node that never trained here can average"


def test_cancelled_task_is_not_claimed() -> None:
    task = make_task(state=TaskState(Wei(0), 0, 0, TaskStatus.CANCELLED))
    assert chosen(make_view(task)) == ()


def test_draining_node_finishes_and_takes_nothing_new() -> None:
    task = make_task({0: make_unit(UnitStatus.CLAIMED)})
    decision = decide(
        make_view(task, work={WorkKey(task.task, 0, 0): Stage.DONE}), Policy(max_parallel=4, draining=True)
    )
    assert [type(action) for action in decision.actions] == [Commit]
    assert decision.in_flight == 1


def test_inputs_are_fetched_and_measured_before_the_claim() -> None:
    task = make_task(ready=frozenset())
    (action,) = chosen(make_view(task))
    assert isinstance(action, Prepare)
    assert chosen(make_view(replace(task, preparing=frozenset({action.unit})))) == ()
    ready = replace(task, ready=frozenset({action.unit}))
    assert claims(make_view(ready)) == [action.unit]
    unmeasured = replace(ready, speed=None)
    assert chosen(make_view(unmeasured)) == (action,)


# --- private tasks --------------------------------------------------------------------------------------------------

PRIVATE = make_spec(is_private=True)


def test_node_asks_again_only_after_a_while() -> None:
    task = make_task(spec=PRIVATE)
    ask = (AskAdmission(task.task),)
    assert chosen(make_view(task)) == ask
    assert chosen(make_view(replace(task, asked_at=NOW - 9))) == ()
    assert chosen(make_view(replace(task, asked_at=NOW - 10))) == ask


def test_idle_node_asks_for_no_more_than_it_can_work_on() -> None:
    tasks = [make_task(spec=make_spec(is_private=True, seed=seed, unit_price=Wei(100 + seed))) for seed in range(4)]
    best, second = tasks[3].task, tasks[2].task
    assert chosen(make_view(*tasks)) == (AskAdmission(best),)
    assert chosen(make_view(*tasks), Policy(max_parallel=2)) == (AskAdmission(best), AskAdmission(second))
    waiting = replace(tasks[3], asked_at=NOW - 1)
    assert chosen(make_view(*tasks[:3], waiting)) == ()
    public = make_task(spec=make_spec(seed=9))
    assert [type(action) for action in chosen(make_view(*tasks, public))] == [Claim]


def test_admission_names_the_shards_that_may_be_claimed() -> None:
    admission = Admission(0b10, NOW + 50, b"s")
    task = make_task(spec=PRIVATE, admission=admission)
    assert chosen(make_view(task)) == (Claim(task.task, 1, admission),)
    revealed = {index: make_unit(UnitStatus.REVEALED, OTHER) for index in (0, 1)}
    aggregation = make_task(revealed, spec=PRIVATE, admission=admission)
    assert chosen(make_view(aggregation)) == (Claim(task.task, 2, admission),)


def test_admitted_node_asks_for_another_shard_once_that_lies_open() -> None:
    admission = Admission(0b10, NOW + 50, b"s")
    units = {1: make_unit(UnitStatus.CLAIMED, OTHER)}
    task = make_task(units, spec=PRIVATE, admission=admission, open_since={0: NOW - 4})
    assert chosen(make_view(task)) == ()
    assert chosen(make_view(replace(task, open_since={0: NOW - 5}))) == (AskAdmission(task.task),)


def test_keys_are_handed_on_even_while_draining() -> None:
    owed = frozenset({(BlobId(b"\x0b" * 32), OTHER)})
    task = make_task({0: make_unit(UnitStatus.REVEALED)}, owed=owed)
    assert chosen(make_view(task), Policy(draining=True)) == (ShareKeys(task.task, owed),)


# --- against the contract -------------------------------------------------------------------------------------------


def refusal(view: ComputeView, action: Action) -> str | None:
    """What TaskMarket would throw, written from the table in ITaskMarket.sol and not from the node's code."""
    if isinstance(action, Abandon | Train | Publish | Prepare | AskAdmission | ShareKeys):
        return None
    task = action.key.task if isinstance(action, Commit | Disclose) else action.task
    index = action.key.unit if isinstance(action, Commit | Disclose) else action.unit
    tv = next(tv for tv in view.tasks if tv.task == task)
    spec, unit, now = tv.spec, tv.units[index], view.block.timestamp
    match action:
        case Claim():
            if tv.state.status is not TaskStatus.POSTED:
                return "TaskNotOpen"
            if now > spec.deadline:
                return "TooLate"
            if unit.status is not UnitStatus.OPEN:
                return "WrongStatus"
            first = index - index % spec.units_per_round
            if index // spec.units_per_round > tv.round:
                return "InputNotKnown"
            if spec.is_aggregation(index) and any(
                tv.units[first + s].status not in (UnitStatus.REVEALED, UnitStatus.FINALISED)
                for s in range(spec.shards)
            ):
                return "InputNotKnown"
            if spec.is_private:
                shard = index % spec.units_per_round
                if action.admission.deadline < now:
                    return "AdmissionExpired"
                covers = action.admission.shards if shard == spec.shards else action.admission.shards & (1 << shard)
                if not covers:
                    return "NotAdmitted"
            if view.node.leaving or view.node.stake < view.min_stake:
                return "NodeNotActive"
        case Commit():
            if unit.node != ME:
                return "NotTheWorker"
            if unit.status is not UnitStatus.CLAIMED:
                return "WrongStatus"
            if now > unit.deadline:
                return "TooLate"
        case Disclose():
            if unit.node != ME:
                return "NotTheWorker"
            if unit.status is not UnitStatus.COMMITTED:
                return "WrongStatus"
            if view.block.number + 1 <= unit.commit_block:  # mined in the block after the view's
                return "RevealTooSoon"
            if now > unit.deadline:
                return "TooLate"
        case Expire():
            if unit.status not in (UnitStatus.CLAIMED, UnitStatus.COMMITTED):
                return "WrongStatus"
            if now <= unit.deadline:
                return "TooEarly"
        case Accept():
            if unit.status is not UnitStatus.REVEALED:
                return "WrongStatus"
        case Finalise():
            if unit.status is not UnitStatus.REVEALED:
                return "WrongStatus"
            if now <= unit.deadline:
                return "TooEarly"
    return None


@given(compute_views(), policies)
@settings(max_examples=120, deadline=None)
def test_no_action_is_one_that_the_chain_would_refuse(view: ComputeView, policy: Policy) -> None:
    for action in chosen(view, policy):
        assert refusal(view, action) is None, action


@given(compute_views(), policies)
@settings(max_examples=120, deadline=None)
def test_claims_stay_within_stake_and_slots(view: ComputeView, policy: Policy) -> None:
    decision = decide(view, policy)
    taken = [action for action in decision.actions if isinstance(action, Claim)]
    specs = {tv.task: tv.spec for tv in view.tasks}
    assert sum(specs[claim.task].collateral for claim in taken) <= view.node.free_stake
    assert not taken or decision.in_flight + len(taken) <= policy.max_parallel
    assert not (taken and policy.draining)


@given(compute_views(), policies)
@settings(max_examples=100, deadline=None)
def test_each_unit_is_moved_once_and_nothing_is_revealed_unpublished(view: ComputeView, policy: Policy) -> None:
    actions = chosen(view, policy)
    moves = [action.key if isinstance(action, Commit | Disclose | Publish | Train) else None for action in actions]
    counted = Counter(key for key in moves if key is not None)
    assert all(count == 1 for count in counted.values())
    for action in actions:
        if isinstance(action, Disclose):
            unit = next(tv for tv in view.tasks if tv.task == action.key.task).units[action.key.unit]
            last_call = unit.deadline - unit.reveal_window_s // 5 < NOW
            assert view.stage(action.key) is Stage.PUBLISHED or (view.stage(action.key) is Stage.DONE and last_call)
        if isinstance(action, Claim):
            tv = next(tv for tv in view.tasks if tv.task == action.task)
            assert action.unit in tv.ready


@given(compute_views(), policies)
@settings(max_examples=40, deadline=None)
def test_deciding_twice_gives_the_same(view: ComputeView, policy: Policy) -> None:
    assert decide(view, policy) == decide(view, policy)
