"""The index against the chain: a task's whole life, money to the wei, reorganisations, restarts, a chain gone away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from proofs.results import checkpoint_proof, checkpoints_root, commitment
from protocol import transactions
from protocol.errors import StateError
from protocol.manifest import ManifestShard, ModelCard, TaskManifest
from protocol.messages import UnitProgress
from protocol.signatures import sign_acceptance, sign_admission
from protocol.types import NodeId, Reveal, TaskStatus, UnitStatus, Wei
from protocol.wire import AccountView, GatewayStatus, ListAnswer, NodeView, PaymentView, SlashView, TaskView, UnitView
from tests.support.anvil import AvenueChain
from tests.support.gateway import (
    AVN,
    Market,
    RunningGateway,
    running_gateway,
    settings_in,
    small_market,
    wait_until,
)

SALT = b"\x5a" * 32


@pytest.fixture
def own_market(avenue: AvenueChain) -> Market:
    """A market on a chain that only this test changes."""
    return small_market(avenue)


@pytest.fixture
def indexed(own_market: Market, tmp_path: Path) -> Iterator[RunningGateway]:
    with running_gateway(settings_in(tmp_path / "gateway"), own_market.chain.client) as gateway:
        yield gateway


def caught_up(gateway: RunningGateway) -> RunningGateway:
    gateway.parts.indexer.catch_up()
    return gateway


def get(gateway: RunningGateway, path: str) -> bytes:
    return httpx2.get(f"{gateway.url}/api/v1{path}").raise_for_status().content


def claim(market: Market, unit: int, node: int) -> None:
    admission = sign_admission(
        market.requester, market.chain.deployment, market.spec.task_id, NodeId(node), 0b11, market.spec.deadline
    )
    call = transactions.claim(market.chain.deployment, market.spec, unit, admission)
    market.send(market.operators[node - 1], call)


def deliver(market: Market, unit: int, node: int) -> bytes:
    """Commit and reveal; returns the result root."""
    chain, spec, operator = market.chain, market.spec, market.operators[node - 1]
    roots = [spec.initial_state_root, b"\x21" * 32, bytes([0x30 + unit]) * 32]
    if unit == spec.shards:
        roots = [spec.initial_state_root, b"\x40" * 32]
    checkpoints = checkpoints_root(roots)
    result = chain.client.result_root_of(spec, unit, NodeId(node), checkpoints)
    market.send(operator, transactions.commit(chain.deployment, spec.task_id, unit, commitment(result, SALT)))
    chain.anvil.mine()
    opening = Reveal(checkpoints, roots[-1], tuple(checkpoint_proof(roots, len(roots) - 1)), SALT)
    market.send(operator, transactions.reveal(chain.deployment, spec, unit, opening))
    return result


def accept(market: Market, unit: int, result: bytes) -> None:
    signature = sign_acceptance(market.requester, market.chain.deployment, market.spec.task_id, unit, result)
    market.send(market.stranger, transactions.accept(market.chain.deployment, market.spec, unit, signature))


def assert_index_is_the_chains(gateway: RunningGateway, market: Market) -> None:
    """Units, nodes and money as the contracts answer them."""
    client = market.chain.client
    units = ListAnswer[UnitView].model_validate_json(get(gateway, f"/tasks/0x{market.task.hex()}/units")).items
    for view, unit in zip(units, client.round(market.spec, 0), strict=True):
        assert UnitStatus[view.status.upper()] == unit.status
        assert view.attempt == unit.attempt
        assert (view.node or 0) == (0 if unit.status == UnitStatus.OPEN else unit.node)
        if unit.status in (UnitStatus.REVEALED, UnitStatus.FINALISED):
            assert (view.result_root, view.final_state_root) == (unit.result, unit.final_state_root)
    for node_view in ListAnswer[NodeView].model_validate_json(get(gateway, "/nodes")).items:
        record = client.node(NodeId(node_view.node))
        assert (node_view.stake, node_view.locked) == (record.stake, record.locked)
        assert (node_view.owner, node_view.operator, node_view.endpoint) == (
            record.owner,
            record.operator,
            record.endpoint,
        )
    task = TaskView.model_validate_json(get(gateway, f"/tasks/0x{market.task.hex()}"))
    state = client.task(market.spec.task_id)
    assert TaskStatus[task.status.upper()] == state.status
    assert task.escrow - task.paid - task.refunded == state.escrow
    assert (task.units_finalised, task.units_in_flight) == (state.finalised, state.in_flight)


def whole_life(market: Market) -> Iterator[str]:
    """Every move that the market knows, one at a time."""
    chain, spec, deployment = market.chain, market.spec, market.chain.deployment
    yield "posted"
    claim(market, 0, 1)
    claim(market, 1, 2)
    yield "claimed"
    result = deliver(market, 0, 1)
    yield "revealed"
    accept(market, 0, result)
    yield "accepted"
    chain.anvil.increase_time(spec.compute_window_s + 1)
    market.send(market.stranger, transactions.expire(deployment, spec, 1))
    yield "expired"
    claim(market, 1, 1)
    deliver(market, 1, 1)
    claim(market, 2, 2)
    deliver(market, 2, 2)
    yield "aggregated"
    chain.anvil.increase_time(spec.challenge_window_s + 1)
    for unit in (1, 2):
        market.send(market.stranger, transactions.finalise(deployment, spec, unit))
    market.send(market.stranger, transactions.close(deployment, spec))
    yield "closed"
    market.send(market.stranger, transactions.withdraw(deployment, market.owner.address))
    market.send(market.requester, transactions.collect(deployment))
    market.send(market.owner, transactions.request_unbond(deployment, NodeId(1), Wei(AVN)))
    market.send(market.owner, transactions.deregister(deployment, NodeId(2)))
    yield "paid"


def test_index_agrees_with_the_chain_after_every_move(own_market: Market, indexed: RunningGateway) -> None:
    for _moment in whole_life(own_market):
        assert_index_is_the_chains(caught_up(indexed), own_market)

    chain, spec = own_market.chain, own_market.spec
    payments = ListAnswer[PaymentView].model_validate_json(get(indexed, "/payments")).items
    earned = sum(payment.amount for payment in payments if payment.kind == "unit")
    assert earned == 2 * spec.unit_price + spec.aggregation_price == spec.escrow
    sent = {payment.payee: payment.amount for payment in payments if payment.kind == "withdrawal"}
    assert sent[own_market.owner.address] == earned

    (slash,) = ListAnswer[SlashView].model_validate_json(get(indexed, "/slashes")).items
    assert (slash.node, slash.amount) == (2, spec.collateral)
    assert slash.to_harmed + slash.to_reporter + slash.burned == spec.collateral
    assert slash.reporter == own_market.stranger.address
    assert sent[own_market.requester.address] == slash.to_harmed
    assert chain.client.registry_credit(own_market.stranger.address) == slash.to_reporter

    accounts = ListAnswer[AccountView].model_validate_json(get(indexed, "/accounts")).items
    assert {account.address for account in accounts} == {
        account.address for account in (own_market.owner, own_market.requester, own_market.stranger)
    }
    for account in accounts:
        credited = chain.client.market_credit(account.address) + chain.client.registry_credit(account.address)
        assert account.unclaimed == credited

    nodes = ListAnswer[NodeView].model_validate_json(get(indexed, "/nodes")).items
    assert [(node.status, node.earned, node.units_finalised, node.units_expired) for node in nodes] == [
        ("idle", 2 * spec.unit_price, 2, 0),
        ("leaving", spec.aggregation_price, 1, 1),
    ]


def test_thread_follows_the_chain_by_itself(own_market: Market, indexed: RunningGateway) -> None:
    claim(own_market, 0, 1)
    head = own_market.chain.client.latest_block().number

    wait_until(lambda: (indexed.parts.indexer.indexed_block or 0) >= head, "the index to follow")

    status = GatewayStatus.model_validate_json(get(indexed, "/status"))
    assert (status.head_block, status.indexed_block, status.lag_blocks) == (head, head, 0)
    assert (status.tasks, status.nodes, status.index_error) == (1, 2, None)
    units = ListAnswer[UnitView].model_validate_json(get(indexed, f"/tasks/0x{own_market.task.hex()}/units"))
    assert [unit.status for unit in units.items] == ["claimed", "open", "open"]
    assert units.as_of_block == head


def everything(gateway: RunningGateway) -> list[Any]:
    """All that the index says, less the row numbers, which a repeated fold gives anew."""
    answers: list[Any] = [
        ListAnswer[TaskView].model_validate_json(get(gateway, "/tasks")).items,
        ListAnswer[NodeView].model_validate_json(get(gateway, "/nodes")).items,
        *(
            ListAnswer[UnitView].model_validate_json(get(gateway, f"/tasks/0x{task.task.hex()}/units")).items
            for task in ListAnswer[TaskView].model_validate_json(get(gateway, "/tasks")).items
        ),
    ]
    numbered: list[Any] = [
        *ListAnswer[PaymentView].model_validate_json(get(gateway, "/payments")).items,
        *ListAnswer[SlashView].model_validate_json(get(gateway, "/slashes")).items,
    ]
    answers.append(ListAnswer[AccountView].model_validate_json(get(gateway, "/accounts")).items)
    return [*answers, [item.model_copy(update={"id": 0}) for item in numbered]]


def test_rebuilt_index_is_the_same_index(own_market: Market, indexed: RunningGateway) -> None:
    for _moment in whole_life(own_market):
        caught_up(indexed)
    followed = everything(indexed)

    indexed.parts.indexer.rebuild()
    assert everything(caught_up(indexed)) == followed


def test_reorganisation_undoes_what_did_not_happen(own_market: Market, indexed: RunningGateway) -> None:
    chain = own_market.chain
    moments = whole_life(own_market)
    while next(moments) != "accepted":
        pass
    before = everything(caught_up(indexed))
    depth_from = chain.client.latest_block().number
    while next(moments) != "closed":
        pass
    assert everything(caught_up(indexed)) != before

    chain.anvil.rpc("anvil_rollback", chain.client.latest_block().number - depth_from)
    chain.anvil.mine(30)  # another history, longer than the one that was undone
    wait_until(lambda: indexed.parts.metrics.reorgs._value.get() > 0, "the rollback")

    assert everything(caught_up(indexed)) == before
    assert_index_is_the_chains(indexed, own_market)


def test_task_that_never_happened_is_forgotten(own_market: Market, indexed: RunningGateway) -> None:
    chain, spec = own_market.chain, replace(own_market.spec, seed=2)
    deployment = chain.deployment
    chain.sender(own_market.requester).send(transactions.approve_escrow(deployment, spec))
    chain.sender(own_market.requester).send(transactions.post(deployment, spec))
    assert caught_up(indexed).parts.queries.task(spec.task_id).status == "posted"

    chain.anvil.rpc("anvil_rollback", 1)
    chain.anvil.mine(5)
    wait_until(lambda: indexed.parts.metrics.reorgs._value.get() > 0, "the rollback")

    with pytest.raises(StateError, match="S-73"):
        indexed.parts.queries.task(spec.task_id)
    assert [task.task for task in indexed.parts.queries.tasks().items] == [own_market.task]


def test_restarted_gateway_goes_on_from_its_cursor(own_market: Market, tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "gateway")
    moments = whole_life(own_market)
    for _ in range(3):
        next(moments)
    with running_gateway(settings, own_market.chain.client) as first:
        caught_up(first)
    for _moment in moments:
        pass
    with running_gateway(settings, own_market.chain.client) as second:
        assert_index_is_the_chains(caught_up(second), own_market)
        followed = everything(second)
    with running_gateway(settings_in(tmp_path / "fresh"), own_market.chain.client) as fresh:
        assert everything(caught_up(fresh)) == followed


def test_chain_that_goes_away_is_shown_and_mail_waits_for_it(own_market: Market, indexed: RunningGateway) -> None:
    caught_up(indexed)
    assert httpx2.get(f"{indexed.url}/readyz").status_code == 200
    own_market.chain.anvil.kill()

    wait_until(lambda: indexed.parts.indexer.progress.error is not None, "the index to notice")

    ready = httpx2.get(f"{indexed.url}/readyz")
    assert (ready.status_code, ready.json()["error"]["code"]) == (503, "N-33")
    assert httpx2.get(f"{indexed.url}/healthz").status_code == 200
    assert "cannot be read just now" in httpx2.get(indexed.url).text
    assert ListAnswer[TaskView].model_validate_json(get(indexed, "/tasks")).items[0].task == own_market.task


def test_name_and_progress_come_from_blobs_and_mail(own_market: Market, indexed: RunningGateway) -> None:
    manifest = TaskManifest(
        name="<b>digits</b>",
        requester_encryption_key=own_market.requester_key.public,
        program_blob=b"\x01" * 32,
        initial_state_blob=b"\x02" * 32,
        shards=(ManifestShard(data_blob=b"\x03" * 32, data_root=b"\x04" * 32, samples=9),),
        model=ModelCard(kind="mlp", layers=(4, 2)),
        private=True,
    )
    requester = indexed.client(own_market.requester)
    blob = requester.upload_blob(manifest.to_bytes())
    chain, spec = own_market.chain, replace(own_market.spec, manifest=blob)
    chain.sender(own_market.requester).send(transactions.approve_escrow(chain.deployment, spec))
    chain.sender(own_market.requester).send(transactions.post(chain.deployment, spec))
    named = replace(own_market, spec=spec)
    claim(named, 0, 1)
    # The task is a moment old: the mailbox asks the chain rather than turning its node away.
    worker = indexed.client(own_market.operators[0])
    for step, loss in ((1, 2.5), (5, 1.25), (9, 0.5)):
        worker.post_message(spec.task_id, UnitProgress(unit=0, node=1, step=step, steps=10, loss=loss))
    meddler = indexed.client(own_market.operators[1])
    for number in (0, 1):  # another's unit, and one that nobody has
        meddler.post_message(spec.task_id, UnitProgress(unit=number, node=2, step=10, steps=10, loss=1e-9))

    task = caught_up(indexed).parts.queries.task(spec.task_id)
    assert (task.name, task.loss) == ("<b>digits</b>", 0.5)
    (unit, *_) = indexed.parts.queries.units(spec.task_id).items
    assert (unit.status, unit.step, unit.loss) == ("claimed", 9, 0.5)
    assert [point.loss for point in indexed.parts.queries.loss_curve(task)] == [2.5, 1.25, 0.5]
    page = httpx2.get(indexed.url).text
    assert "&lt;b&gt;digits&lt;/b&gt;" in page
    assert "<b>digits" not in page
    assert 'data-testid="loss-chart"' in page
