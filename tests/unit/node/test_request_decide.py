"""The Request Node's rules: who is let in where, who gets which key, what is signed for, when the task is closed."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from node.request.decide import (
    Action,
    Admit,
    Close,
    Collect,
    Expire,
    Finalise,
    Finished,
    GrantKeys,
    HandIn,
    SignAcceptance,
    Withdraw,
    decide,
    wants_workers,
)
from node.request.view import REQUESTER, AcceptPolicy, Announced, Ask, Offer, Policy, RequestView
from protocol.types import BlobId, NodeId, TaskState, TaskStatus, Unit, UnitStatus, Wei
from tests.unit.node.compute_views import NOW, OPEN, make_spec, make_unit, units

DATA = (BlobId(b"\xd0" * 32), BlobId(b"\xd1" * 32))
STATE = BlobId(b"\x5a" * 32)
A, B, C = NodeId(1), NodeId(2), NodeId(3)
PLAN = Policy()
OWN = frozenset((blob, REQUESTER) for blob in (*DATA, STATE))


def make_view(units: dict[int, Unit] | None = None, **changes: object) -> RequestView:
    spec = make_spec(is_private=True)
    whole = dict.fromkeys(range(spec.units_per_round), OPEN) | (units or {})
    view = RequestView(
        timestamp=NOW,
        clock=NOW,
        spec=spec,
        state=TaskState(spec.escrow, 0, 0, TaskStatus.POSTED),
        round=0,
        units=whole,
        shard_blobs=DATA,
        state_blobs=(STATE,),
        granted=OWN,
    )
    return replace(view, **changes)  # type: ignore[arg-type]


def ask(node: NodeId, message_id: int = 10, active: bool = True) -> Ask:
    return Ask(node, message_id, active)


def offer(shards: int, message_id: int = 5, age_s: int = 100) -> Offer:
    return Offer(shards, message_id, NOW - age_s)


def granted(node: NodeId, *blobs: BlobId) -> frozenset[tuple[BlobId, NodeId]]:
    return OWN | {(blob, node) for blob in blobs}


def chosen(view: RequestView, policy: Policy = PLAN) -> tuple[Action, ...]:
    return decide(view, policy)


# --- admission ------------------------------------------------------------------------------------------------------


def test_nodes_that_ask_at_once_get_different_shards_with_all_keys() -> None:
    view = make_view(asks=(ask(A, 10), ask(B, 11), ask(C, 12)))
    assert chosen(view) == (Admit(A, 0b01, (DATA[0], STATE)), Admit(B, 0b10, (DATA[1], STATE)))


def test_workers_are_wanted_while_units_are_open_and_nobody_is_at_work() -> None:
    posted, taken = make_view(), make_view({0: make_unit(UnitStatus.CLAIMED, A)})
    closed = make_view(state=TaskState(Wei(0), 0, 0, TaskStatus.CLOSED))
    revealed = make_view({unit: make_unit(UnitStatus.REVEALED, A) for unit in make_view().units})
    assert [wants_workers(view) for view in (posted, taken, closed, revealed)] == [True, False, False, False]
    assert wants_workers(make_view({0: make_unit(UnitStatus.REVEALED, A)})), "its other units wait"


def test_inactive_node_is_not_admitted() -> None:
    assert chosen(make_view(asks=(ask(A, active=False),))) == ()


def test_answered_request_is_not_answered_again() -> None:
    held = {A: offer(0b01, message_id=11)}
    assert chosen(make_view(asks=(ask(A, 10),), offers=held, granted=granted(A, DATA[0], STATE))) == ()


def test_fresh_offer_keeps_its_shard_for_a_while() -> None:
    view = make_view({1: make_unit(UnitStatus.CLAIMED, B)}, asks=(ask(C),), granted=granted(A, DATA[0], STATE))
    fresh = replace(view, offers={A: offer(0b01, age_s=19)}, open_since={0: NOW - 60})
    assert chosen(fresh) == ()
    assert chosen(replace(fresh, offers={A: offer(0b01, age_s=20)})) == (Admit(C, 0b01, (DATA[0], STATE)),)


def test_shard_with_a_live_node_is_opened_to_another_only_after_patience() -> None:
    view = make_view(
        {1: make_unit(UnitStatus.CLAIMED, B)},
        asks=(ask(C),),
        offers={A: offer(0b01)},
        heard={A: NOW - 1},
        granted=granted(A, DATA[0], STATE),
    )
    assert chosen(replace(view, open_since={0: NOW - 5})) == ()
    assert chosen(replace(view, open_since={0: NOW - 6})) == (Admit(C, 0b01, (DATA[0], STATE)),)
    # Nobody heard of A for a minute: its shard has no live node, and C need not wait.
    assert chosen(replace(view, heard={A: NOW - 60})) == (Admit(C, 0b01, (DATA[0], STATE)),)


def test_node_with_a_shard_is_given_another_that_lies_open() -> None:
    units = {0: make_unit(UnitStatus.CLAIMED, B)}
    view = make_view(units, asks=(ask(A),), offers={A: offer(0b01)}, granted=granted(A, DATA[0], STATE))
    assert chosen(view) == (Admit(A, 0b11, (DATA[1],)),)


def test_nobody_is_admitted_when_every_shard_is_taken() -> None:
    taken = {index: make_unit(UnitStatus.CLAIMED, B) for index in (0, 1)}
    assert chosen(make_view(taken, asks=(ask(A),))) == ()


def test_cancelled_task_admits_nobody() -> None:
    view = make_view(asks=(ask(A),), state=TaskState(Wei(0), 1, 0, TaskStatus.CANCELLED))
    assert chosen(view) == ()


# --- keys -----------------------------------------------------------------------------------------------------------


def test_missing_grants_are_made_for_entitled_readers_only() -> None:
    view = make_view(offers={A: offer(0b01), B: offer(0b10)}, granted=granted(A, DATA[0]))
    assert chosen(view) == (GrantKeys(A, (STATE,)), GrantKeys(B, (DATA[1], STATE)))


def test_requester_keeps_its_own_keys_in_the_mailbox() -> None:
    assert chosen(make_view(granted=frozenset())) == (GrantKeys(REQUESTER, (*DATA, STATE)),)


def test_blob_whose_key_the_requester_lacks_is_not_granted() -> None:
    view = make_view(offers={A: offer(0b01)}, granted=granted(A, DATA[0]), ungrantable=frozenset({STATE}))
    assert chosen(view) == ()


# --- acceptance and settlement --------------------------------------------------------------------------------------

REVEALED = {0: make_unit(UnitStatus.REVEALED, A), 1: make_unit(UnitStatus.CLAIMED, B)}
RESULT = {0: Announced(BlobId(b"\x0b" * 32), b"\x08" * 32, b"\x07" * 32)}


def test_acceptance_follows_the_policy() -> None:
    view = make_view(REVEALED, announced=RESULT)
    assert chosen(view) == (SignAcceptance(0, recompute=False),)
    assert chosen(view, Policy(accept=AcceptPolicy.RECOMPUTE)) == (SignAcceptance(0, recompute=True),)
    assert chosen(view, Policy(accept=AcceptPolicy.NEVER)) == ()


def test_nothing_is_accepted_without_its_data_or_twice() -> None:
    assert chosen(make_view(REVEALED)) == ()
    twice = make_view(REVEALED, announced=RESULT, accepted=frozenset({0}))
    assert SignAcceptance(0, recompute=False) not in chosen(twice)
    assert chosen(make_view(REVEALED, announced=RESULT, unacceptable=frozenset({0}))) == ()


def test_requester_hands_in_the_acceptance_of_a_worker_that_is_gone() -> None:
    window = make_view({}).spec.challenge_window_s
    revealed = {0: make_unit(UnitStatus.REVEALED, A, NOW + window)}
    view = make_view(revealed, announced=RESULT, accepted=frozenset({0}))
    patience = Policy().hand_in_after_s
    assert chosen(replace(view, timestamp=NOW + patience)) == ()
    assert chosen(replace(view, timestamp=NOW + patience + 1)) == (HandIn(0),)
    # Past the window too: the signature pays at once, whatever the clock says.
    assert chosen(replace(view, timestamp=NOW + window + 3600)) == (HandIn(0),)


def test_requester_settles_what_the_nodes_left_lying() -> None:
    view = make_view(
        {0: make_unit(UnitStatus.CLAIMED, A, NOW - 31), 1: make_unit(UnitStatus.REVEALED, B, NOW - 31)},
    )
    assert chosen(view) == (Expire(0), Finalise(1))
    assert chosen(replace(view, timestamp=NOW - 1)) == ()


# --- the end --------------------------------------------------------------------------------------------------------


def test_task_is_closed_when_all_units_are_final_and_its_credit_withdrawn() -> None:
    spec = make_spec(is_private=True)
    done = make_view(round=spec.rounds, units={}, state=TaskState(Wei(0), 0, spec.units, TaskStatus.POSTED))
    assert chosen(done) == (Close(),)
    closed = replace(done, state=TaskState(Wei(0), 0, spec.units, TaskStatus.CLOSED))
    assert chosen(replace(closed, credit=Wei(5))) == (Withdraw(),)
    assert chosen(replace(closed, compensation=Wei(5))) == (Collect(),)
    assert chosen(closed) == (Finished(),)


def test_task_with_units_in_flight_is_not_closed() -> None:
    state = TaskState(Wei(0), 1, 0, TaskStatus.CANCELLED)
    view = make_view({0: make_unit(UnitStatus.CLAIMED, A)}, state=state)
    assert chosen(view) == ()
    assert chosen(replace(view, state=replace(state, in_flight=0))) == (Close(),)


# --- for every view -------------------------------------------------------------------------------------------------

nodes = st.sampled_from([A, B, C, NodeId(4)])
clocks = st.integers(NOW - 200, NOW)


@st.composite
def request_views(draw: st.DrawFn) -> RequestView:
    spec = make_spec(shards=draw(st.integers(1, 4)), is_private=draw(st.booleans()), deadline=draw(clocks) + 100)
    round_ = draw(st.integers(0, spec.rounds))
    indices = range(min(round_ + 1, spec.rounds) * spec.units_per_round)
    found = {index: draw(units()) for index in indices}
    in_flight = sum(UnitStatus.OPEN < unit.status < UnitStatus.FINALISED for unit in found.values())
    blobs = tuple(BlobId(bytes([shard]) * 32) for shard in range(spec.shards))
    some = st.frozensets(st.sampled_from(indices))
    return RequestView(
        timestamp=NOW,
        clock=NOW,
        spec=spec,
        state=TaskState(
            Wei(0),
            in_flight,
            sum(unit.status is UnitStatus.FINALISED for unit in found.values()),
            draw(st.sampled_from([TaskStatus.POSTED, TaskStatus.CANCELLED, TaskStatus.CLOSED])),
        ),
        round=round_,
        units=found,
        open_since={index: draw(clocks) for index in draw(some)},
        asks=tuple(
            Ask(node, draw(st.integers(0, 50)), draw(st.booleans())) for node in draw(st.lists(nodes, unique=True))
        ),
        offers={
            node: Offer(draw(st.integers(1, (1 << spec.shards) - 1)), draw(st.integers(0, 50)), draw(clocks))
            for node in draw(st.lists(nodes, unique=True))
        },
        heard={node: draw(clocks) for node in draw(st.lists(nodes, unique=True))},
        shard_blobs=blobs,
        state_blobs=(STATE,),
        granted=frozenset(draw(st.lists(st.tuples(st.sampled_from((*blobs, STATE)), nodes)))),
        announced=dict.fromkeys(draw(some), RESULT[0]),
        accepted=draw(some),
        credit=Wei(draw(st.integers(0, 3))),
    )


@given(request_views(), st.sampled_from(AcceptPolicy))
@settings(max_examples=100, deadline=None)
def test_admissions_are_to_open_shards_and_come_with_every_key(view: RequestView, accept: AcceptPolicy) -> None:
    actions = chosen(view, Policy(accept=accept))
    given_out: list[int] = []
    for action in actions:
        if isinstance(action, Admit):
            held = view.offers[action.node].shards if action.node in view.offers else 0
            new = action.shards & ~held
            assert action.shards & held == held, "an admission never takes a shard away"
            assert new.bit_count() == 1
            given_out.append(new)
            shard = new.bit_length() - 1
            assert view.units[view.spec.unit_index(view.round, shard)].status is UnitStatus.OPEN
            keys = {blob for blob, reader in view.granted if reader == action.node} | set(action.blobs)
            assert {view.shard_blobs[shard], STATE} <= keys
    assert len(set(given_out)) == len(given_out), "one shard is not offered to two nodes at once"


@given(request_views(), st.sampled_from(AcceptPolicy))
@settings(max_examples=100, deadline=None)
def test_no_key_goes_to_a_reader_that_is_not_entitled(view: RequestView, accept: AcceptPolicy) -> None:
    for action in chosen(view, Policy(accept=accept)):
        if isinstance(action, GrantKeys):
            if action.reader == REQUESTER:
                continue
            shards = view.offers[action.reader].shards
            allowed = {blob for s, blob in enumerate(view.shard_blobs) if shards >> s & 1} | {STATE}
            assert set(action.blobs) <= allowed
            assert view.spec.is_private


@given(request_views(), st.sampled_from(AcceptPolicy))
@settings(max_examples=100, deadline=None)
def test_no_action_is_one_that_the_chain_would_refuse(view: RequestView, accept: AcceptPolicy) -> None:
    for action in chosen(view, Policy(accept=accept)):
        match action:
            case Expire(unit):
                assert view.units[unit].status in (UnitStatus.CLAIMED, UnitStatus.COMMITTED)
                assert view.timestamp > view.units[unit].deadline
            case Finalise(unit):
                assert view.units[unit].status is UnitStatus.REVEALED
                assert view.timestamp > view.units[unit].deadline
            case SignAcceptance(unit):
                assert view.units[unit].status is UnitStatus.REVEALED
            case Close():
                assert view.state.in_flight == 0
                claimable = view.state.status is TaskStatus.POSTED and view.timestamp <= view.spec.deadline
                assert not claimable or view.state.finalised == view.spec.units
            case Withdraw():
                assert view.credit > 0
            case _:
                pass
