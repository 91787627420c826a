"""Every builder of protocol.transactions and every read of protocol.chain, on a real chain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from eth_account.signers.local import LocalAccount

from node.compute.desk import Desk
from node.compute.view import WorkKey
from node.compute.work import salt_of, salt_that_opens
from proofs.results import result_root
from protocol import transactions
from protocol.deployments import Deployment
from protocol.errors import ConfigError, StateError
from protocol.events import (
    Collected,
    EventFollower,
    Paid,
    Slashed,
    TaskClosed,
    TaskPosted,
    UnitExpired,
    UnitFinalised,
    UnitRevealed,
    events_of,
)
from protocol.reverts import RevertedError
from protocol.signatures import sign_acceptance, sign_admission, sign_operator_authorization, sign_permit
from protocol.types import ZERO32, Admission, NodeId, TaskId, TaskStatus, UnitStatus, Wei
from tests.support.anvil import AvenueChain
from tests.support.market import AVN, FAR, Worker, give_tokens, h, make_spec, make_worker, post_task, work_on

REQUESTER, OWNER, OPERATOR, STRANGER, OTHER_OPERATOR = 1, 2, 3, 4, 5


def account(avenue: AvenueChain, index: int) -> LocalAccount:
    return avenue.accounts[index]


@pytest.fixture
def worker(avenue: AvenueChain) -> Worker:
    return make_worker(avenue, account(avenue, OWNER), account(avenue, OPERATOR))


def test_task_runs_to_its_end_and_everybody_is_paid(avenue: AvenueChain, worker: Worker) -> None:
    requester, owner = account(avenue, REQUESTER), account(avenue, OWNER)
    deployment, client = avenue.deployment, avenue.client
    spec = post_task(avenue, requester)
    posted = client.task(spec.task_id)
    assert (posted.status, posted.escrow) == (TaskStatus.POSTED, spec.escrow)
    assert client.token_balance(requester.address) == 0
    assert client.input_state_root(spec, 0) == spec.initial_state_root
    assert client.input_state_root(spec, 1) == ZERO32

    for unit in range(spec.units):
        root = worker.do(spec, unit)
        seen = client.unit(spec.task_id, unit)
        assert (seen.status, seen.node, seen.result) == (UnitStatus.REVEALED, worker.node, root)
        if unit % 2:
            # Anybody may bring the requester's signature ...
            signature = sign_acceptance(requester, deployment, spec.task_id, unit, root)
            outcome = avenue.sender(STRANGER).send(transactions.accept(deployment, spec, unit, signature))
        else:
            # ... and the requester itself needs none.
            outcome = avenue.sender(requester).send(transactions.accept(deployment, spec, unit))
        (finalised,) = [event for event in events_of(client, outcome) if isinstance(event, UnitFinalised)]
        assert (finalised.payee, finalised.paid, finalised.accepted) == (owner.address, spec.price_of(unit), True)

    assert [unit.status for unit in client.round(spec, 1)] == [UnitStatus.FINALISED] * 3
    assert client.rounds(spec, [0, 1]) == [client.round(spec, 0), client.round(spec, 1)]
    last = spec.unit_index(spec.rounds - 1, spec.shards)
    assert client.input_state_root(spec, spec.rounds) == client.unit(spec.task_id, last).final_state_root
    assert client.units(spec.task_id, [0, last]) == [client.unit(spec.task_id, 0), client.unit(spec.task_id, last)]

    avenue.sender(STRANGER).send(transactions.close(deployment, spec))
    assert client.task(spec.task_id).status is TaskStatus.CLOSED
    assert client.market_credit(owner.address) == spec.escrow
    outcome = avenue.sender(STRANGER).send(transactions.withdraw(deployment, owner.address))
    assert Paid in {type(event) for event in events_of(client, outcome)}
    assert client.token_balance(owner.address) == spec.escrow
    assert client.node(worker.node).locked == 0


def test_result_root_is_the_one_of_the_proofs_room(avenue: AvenueChain, worker: Worker) -> None:
    spec = post_task(avenue, account(avenue, REQUESTER))
    worker.claim(spec, 1)
    checkpoints = work_on(avenue, spec, 1).opening.checkpoints_root
    assert avenue.client.result_root_of(spec, 1, worker.node, checkpoints) == result_root(
        task=spec.task_id,
        unit=1,
        node=worker.node,
        input_state_root=spec.initial_state_root,
        data_root=spec.data_root,
        program_root=spec.program_root,
        steps=spec.steps,
        checkpoints_root=checkpoints,
    )


def test_task_id_and_escrow_are_those_of_the_contract(avenue: AvenueChain) -> None:
    for spec in (
        make_spec(avenue, account(avenue, REQUESTER)),
        make_spec(avenue, account(avenue, 2), shards=1, aggregation_root=ZERO32, aggregation_price=Wei(0), rounds=7),
    ):
        assert avenue.client.read("market", "taskIdOf", spec.to_abi()) == spec.task_id
        assert avenue.client.read("market", "escrowOf", spec.to_abi()) == spec.escrow


def test_private_task_is_claimed_with_the_requesters_admission_only(avenue: AvenueChain, worker: Worker) -> None:
    requester = account(avenue, REQUESTER)
    spec = post_task(avenue, requester, is_private=True)
    with pytest.raises(RevertedError, match=r"NotAdmitted\(node=1, shard=1\)"):
        worker.claim(spec, 1, sign_admission(requester, avenue.deployment, spec.task_id, worker.node, 0b01, FAR))
    with pytest.raises(RevertedError, match="NotAdmitted"):
        forged = sign_admission(account(avenue, OWNER), avenue.deployment, spec.task_id, worker.node, 0b11, FAR)
        worker.claim(spec, 1, forged)
    with pytest.raises(RevertedError, match="AdmissionExpired"):
        worker.claim(spec, 1, sign_admission(requester, avenue.deployment, spec.task_id, worker.node, 0b11, 1))
    admission = sign_admission(requester, avenue.deployment, spec.task_id, worker.node, 0b10, FAR)
    assert isinstance(admission, Admission)
    worker.claim(spec, 1, admission)
    assert avenue.client.unit(spec.task_id, 1).node == worker.node
    with pytest.raises(RevertedError, match=r"WrongStatus\(.*have=Claimed, need=Open\)"):
        worker.claim(spec, 1, admission)


def test_signatures_of_another_chain_or_contract_are_worthless(avenue: AvenueChain, worker: Worker) -> None:
    requester = account(avenue, REQUESTER)
    spec = post_task(avenue, requester, is_private=True)
    ours = avenue.deployment
    elsewhere = Deployment(1, 0, ours.token, ours.registry, ours.market)
    swapped = Deployment(ours.chain_id, 0, ours.token, ours.market, ours.registry)
    for wrong in (elsewhere, swapped):
        with pytest.raises(RevertedError, match="NotAdmitted"):
            worker.claim(spec, 0, sign_admission(requester, wrong, spec.task_id, worker.node, 1, FAR))
        with pytest.raises(RevertedError, match="WrongOperatorSignature"):
            signature = sign_operator_authorization(
                account(avenue, OTHER_OPERATOR), wrong, account(avenue, OWNER).address, 0, FAR
            )
            avenue.sender(OWNER).send(
                transactions.rotate_operator(ours, worker.node, account(avenue, OTHER_OPERATOR).address, FAR, signature)
            )


def test_vanished_worker_is_expired_and_pays(avenue: AvenueChain, worker: Worker) -> None:
    requester, stranger = account(avenue, REQUESTER), account(avenue, STRANGER)
    spec = post_task(avenue, requester)
    worker.claim(spec, 0)
    expire = transactions.expire(avenue.deployment, spec, 0)
    with pytest.raises(RevertedError, match="TooEarly"):
        avenue.sender(stranger).send(expire)
    avenue.anvil.increase_time(spec.compute_window_s + 1)
    events = {type(event): event for event in events_of(avenue.client, avenue.sender(stranger).send(expire))}
    slashed = events[Slashed]
    assert isinstance(slashed, Slashed) and UnitExpired in events
    constants = avenue.client.constants
    assert slashed.amount == spec.collateral
    assert slashed.to_harmed == spec.collateral * constants.compensation_bps // 10_000
    assert slashed.to_reporter == spec.collateral * constants.tip_bps // 10_000
    assert slashed.burned == slashed.amount - slashed.to_harmed - slashed.to_reporter
    assert avenue.client.registry_credit(stranger.address) == slashed.to_reporter
    outcome = avenue.sender(stranger).send(transactions.collect(avenue.deployment))
    assert Collected in {type(event) for event in events_of(avenue.client, outcome)}
    assert avenue.client.token_balance(stranger.address) == slashed.to_reporter
    reopened = avenue.client.unit(spec.task_id, 0)
    assert (reopened.status, reopened.attempt) == (UnitStatus.OPEN, 1)


def test_unit_finalises_without_the_requester(avenue: AvenueChain, worker: Worker) -> None:
    spec = post_task(avenue, account(avenue, REQUESTER))
    worker.do(spec, 0)
    finalise = transactions.finalise(avenue.deployment, spec, 0)
    with pytest.raises(RevertedError, match="TooEarly"):
        avenue.sender(STRANGER).send(finalise)
    avenue.anvil.increase_time(spec.challenge_window_s + 1)
    outcome = avenue.sender(STRANGER).send(finalise)
    (finalised,) = [event for event in events_of(avenue.client, outcome) if isinstance(event, UnitFinalised)]
    assert finalised.accepted is False


def test_reveal_of_something_else_is_refused(avenue: AvenueChain, worker: Worker) -> None:
    spec = post_task(avenue, account(avenue, REQUESTER))
    worker.claim(spec, 0)
    work = work_on(avenue, spec, 0)
    worker.commit(spec, 0, work)
    other = type(work)((*work.checkpoints[:-1], h("another state")), work.salt)
    with pytest.raises(RevertedError, match=r"CommitmentMismatch\(have=0x[0-9a-f]{64}, expected=0x"):
        worker.reveal(spec, 0, other)
    worker.reveal(spec, 0, work)


def test_cancelled_task_refunds_the_rest(avenue: AvenueChain) -> None:
    requester = account(avenue, REQUESTER)
    spec = post_task(avenue, requester)
    with pytest.raises(RevertedError, match="NotRequester"):
        avenue.sender(STRANGER).send(transactions.cancel(avenue.deployment, spec))
    avenue.sender(requester).send(transactions.cancel(avenue.deployment, spec))
    assert avenue.client.task(spec.task_id).status is TaskStatus.CANCELLED
    outcome = avenue.sender(STRANGER).send(transactions.close(avenue.deployment, spec))
    (closed,) = events_of(avenue.client, outcome)
    assert isinstance(closed, TaskClosed) and closed.refunded == spec.escrow
    avenue.sender(STRANGER).send(transactions.withdraw(avenue.deployment, requester.address))
    assert avenue.client.token_balance(requester.address) == spec.escrow


def test_permits_spare_the_approval(avenue: AvenueChain) -> None:
    requester, deployment, client = account(avenue, REQUESTER), avenue.deployment, avenue.client
    spec = make_spec(avenue, requester)
    give_tokens(avenue, requester, spec.escrow)
    signed = sign_permit(
        requester, deployment, deployment.market, spec.escrow, client.permit_nonce(requester.address), FAR
    )
    avenue.sender(requester).send(transactions.post_with_permit(deployment, spec, signed))
    assert client.task(spec.task_id).status is TaskStatus.POSTED
    assert client.allowance(requester.address, deployment.market) == 0

    owner = account(avenue, OWNER)
    worker = make_worker(avenue, owner, account(avenue, OPERATOR))
    give_tokens(avenue, owner, 5 * AVN)
    signed = sign_permit(owner, deployment, deployment.registry, Wei(5 * AVN), client.permit_nonce(owner.address), FAR)
    avenue.sender(owner).send(transactions.stake_with_permit(deployment, worker.node, Wei(5 * AVN), signed))
    assert client.node(worker.node).stake == 1005 * AVN


def test_stake_leaves_after_unbonding_and_the_node_after_it(avenue: AvenueChain, worker: Worker) -> None:
    owner, deployment, client = avenue.sender(OWNER), avenue.deployment, avenue.client
    owner.send(transactions.request_unbond(deployment, worker.node, Wei(300 * AVN)))
    (tranche,) = client.tranches(worker.node)
    assert tranche.amount == 300 * AVN
    assert tranche.matures_at == client.latest_block().timestamp + client.constants.unbonding_s
    with pytest.raises(RevertedError, match="NothingToWithdraw"):
        owner.send(transactions.withdraw_stake(deployment, worker.node))
    owner.send(transactions.deregister(deployment, worker.node))
    assert client.node(worker.node).leaving and not client.is_active(worker.node)
    avenue.anvil.increase_time(client.constants.unbonding_s + 1)
    owner.send(transactions.withdraw_stake(deployment, worker.node))
    assert client.token_balance(owner.address) == 1000 * AVN


def test_operator_is_rotated_and_the_node_updated(avenue: AvenueChain, worker: Worker) -> None:
    owner, new, client = avenue.sender(OWNER), account(avenue, OTHER_OPERATOR), avenue.client
    signature = sign_operator_authorization(
        new, avenue.deployment, owner.address, client.operator_nonce(new.address), FAR
    )
    owner.send(transactions.rotate_operator(avenue.deployment, worker.node, new.address, FAR, signature))
    assert client.node_of(new.address) == worker.node
    assert client.node_of(account(avenue, OPERATOR).address) is None
    avenue.sender(new).send(transactions.update_node(avenue.deployment, worker.node, h("k"), "http://moved", h("c")))
    record = client.node(worker.node)
    assert (record.endpoint, record.encryption_key, record.operator) == ("http://moved", h("k"), new.address)
    assert client.nodes([worker.node]) == [record] and client.node_count() == 1


def test_unit_committed_before_a_rotation_is_revealed_by_the_new_operator(
    avenue: AvenueChain, worker: Worker, tmp_path: Path
) -> None:
    """The salt was made with the old key; what its successor finds on the disk opens it."""
    spec = post_task(avenue, account(avenue, REQUESTER))
    task, desk = TaskId(spec.task_id), Desk(tmp_path)
    key = WorkKey(task, 0, 0)
    worker.claim(spec, 0)
    done = work_on(avenue, spec, 0)
    root = avenue.client.result_root_of(spec, 0, worker.node, done.opening.checkpoints_root)
    salt = salt_of(account(avenue, OPERATOR), key, root)
    desk.put_salt(key, salt)
    worker.commit(spec, 0, replace(done, salt=salt))

    owner, new = avenue.sender(OWNER), account(avenue, OTHER_OPERATOR)
    signature = sign_operator_authorization(new, avenue.deployment, owner.address, 0, FAR)
    owner.send(transactions.rotate_operator(avenue.deployment, worker.node, new.address, FAR, signature))
    commitment = avenue.client.unit(task, 0).result
    opening = replace(done, salt=salt_that_opens(desk, new, key, root, commitment)).opening
    assert opening.salt != salt_of(new, key, root)
    avenue.sender(new).send(transactions.reveal(avenue.deployment, spec, 0, opening))
    assert avenue.client.unit(task, 0).status is UnitStatus.REVEALED


def test_unknown_things_are_named(avenue: AvenueChain) -> None:
    with pytest.raises(StateError) as caught:
        avenue.client.node(NodeId(77))
    assert caught.value.code == "S-10"
    spec = make_spec(avenue, account(avenue, REQUESTER))
    assert avenue.client.task(spec.task_id).status is TaskStatus.NONE
    nowhere = Deployment(31337, 0, avenue.accounts[9].address, avenue.accounts[9].address, avenue.accounts[9].address)
    from protocol.chain import ChainClient

    with pytest.raises(ConfigError) as no_contract:
        ChainClient(avenue.client.w3, nowhere).task(spec.task_id)
    assert no_contract.value.code == "C-33"


def test_faucet_serves_once_per_cooldown(avenue: AvenueChain) -> None:
    stranger, client = account(avenue, STRANGER), avenue.client
    faucet = client.faucet()
    assert faucet is not None
    drip = transactions.drip(avenue.deployment, stranger.address)
    avenue.sender(stranger).send(drip)
    assert client.token_balance(stranger.address) == faucet.amount
    with pytest.raises(RevertedError, match=r"CoolingDown\(to=.*, secondsLeft=\d+\)"):
        avenue.sender(stranger).send(drip)
    assert client.next_drip_at(stranger.address) == client.latest_block().timestamp + faucet.cooldown_s
    avenue.anvil.increase_time(faucet.cooldown_s)
    avenue.sender(stranger).send(drip)


def test_pinned_client_sees_one_moment(avenue: AvenueChain, worker: Worker) -> None:
    spec = post_task(avenue, account(avenue, REQUESTER))
    then = avenue.client.at(avenue.client.latest_block().number)
    worker.do(spec, 0)
    assert then.unit(spec.task_id, 0).status is UnitStatus.OPEN
    assert then.units(spec.task_id, [0])[0].status is UnitStatus.OPEN
    assert avenue.client.unit(spec.task_id, 0).status is UnitStatus.REVEALED


def test_events_tell_the_whole_story_with_the_whole_specification(avenue: AvenueChain, worker: Worker) -> None:
    spec = post_task(avenue, account(avenue, REQUESTER))
    root = worker.do(spec, 0)
    follower = EventFollower(avenue.client)
    events = [event for batch in follower.follow(follower.start()) for event in batch.events]
    (posted,) = [event for event in events if isinstance(event, TaskPosted)]
    assert posted.spec == spec and posted.task == spec.task_id and posted.escrow == spec.escrow
    (revealed,) = [event for event in events if isinstance(event, UnitRevealed)]
    assert revealed.result_root == root and revealed.node == worker.node
    assert revealed.final_state_root == work_on(avenue, spec, 0).final_state_root
    assert [type(event).__name__ for event in events] == [
        "MarketBound",
        "NodeRegistered",
        "Staked",
        "TaskPosted",
        "UnitClaimed",
        "Locked",
        "UnitCommitted",
        "UnitRevealed",
    ]
    assert events == sorted(events, key=lambda event: (event.at.block_number, event.at.log_index))
    assert revealed.at.timestamp == avenue.client.block(revealed.at.block_number).timestamp
