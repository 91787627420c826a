"""How units are paid without the requester, and what its acceptance is worth."""

from __future__ import annotations

from dataclasses import replace
from threading import Event

import pytest

from node.compute import account, work
from node.compute.agent import ComputeAgent
from node.compute.desk import Checkpoint, Desk
from node.compute.view import WorkKey
from node.config import Role
from node.request.view import AcceptPolicy, Policy
from node.taskfeed import TaskFeed
from proofs.exact.state import decode_state, encode_state, state_root
from proofs.exact.tensor import ExactTensor
from protocol import transactions
from protocol.errors import StateError
from protocol.journal import Intent
from protocol.sender import Sender, TxOutcome
from protocol.types import TaskStatus, UnitStatus
from tests.integration.agents.conftest import FIRST_NODE, WAIT_S, Market, wait_until
from tests.integration.agents.tasks import task_text


def test_node_works_and_is_paid_without_any_requester_then_drains(market: Market) -> None:
    task = market.submit(task_text(challenge=5))
    spec = TaskFeed(market.requester).posted(task).spec
    node = market.node(0)
    # Rounds do not wait for challenge windows; payment does.
    wait_until(lambda: market.avenue.client.input_state_root(spec, 1) != bytes(32), "the second round")
    with pytest.raises(StateError, match="another compute agent"):
        ComputeAgent(market.context(FIRST_NODE, Role.COMPUTE)).run(node.stop)
    wait_until(lambda: market.count(spec, UnitStatus.FINALISED) == spec.units, "every window passes")
    context = market.context(FIRST_NODE, Role.COMPUTE)
    books = account.earnings(context)
    assert books.earned == spec.escrow
    assert not any(unit.accepted for unit in books.units)

    desk = Desk(context.data_dir)
    wait_until(lambda: not list(desk.attempts(task)), "work on final units is deleted")

    # With nothing in flight the agent may end before anybody could see it drain.
    assert account.drain(context), "an agent hears it"
    node.join()
    assert not account.status(context).draining
    assert not account.drain(context), "nobody is left to hear it"
    assert account.status(context).draining

    # Whoever asks may close; the requester's agent does, though it comes late.
    market.request_agent(task).join()
    assert market.avenue.client.task(task).status is TaskStatus.CLOSED


def test_cheat_is_signed_for_by_nobody_who_recomputes(market: Market, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = work.train

    def cheat(desk: Desk, spec: object, key: WorkKey, *rest: object) -> None:
        """Trains honestly, then moves one weight by the least amount there is."""
        honest(desk, spec, key, *rest)  # type: ignore[arg-type]
        saved = desk.get_checkpoint(key)
        assert saved is not None
        state = dict(decode_state(saved.state))
        values = state["params.0.weight"].values.clone()
        values[0, 0] += 1
        state["params.0.weight"] = ExactTensor(state["params.0.weight"].type, values)
        desk.put_checkpoint(key, Checkpoint(saved.step, (*saved.roots[:-1], state_root(state)), encode_state(state)))

    monkeypatch.setattr(work, "train", cheat)
    task = market.submit(task_text(rounds=1, private=True, challenge=3600))
    spec = TaskFeed(market.requester).posted(task).spec
    node = market.node(0)
    requester = market.request_agent(task, replace(Policy(), accept=AcceptPolicy.RECOMPUTE))
    # The mean of two wrong states is itself computed rightly: only the training units are refused.
    wait_until(lambda: market.unit(spec, 2).status is UnitStatus.FINALISED, "the honest unit is accepted")
    assert [market.unit(spec, index).status for index in (0, 1)] == [UnitStatus.REVEALED] * 2
    requester.end()

    # "available" looks at the data only, and the data is there.
    second = market.request_agent(task, replace(Policy(), accept=AcceptPolicy.AVAILABLE))
    second.join()
    node.end()
    assert market.count(spec, UnitStatus.FINALISED) == spec.units


def test_settlement_that_waits_for_cheaper_gas_is_not_sent_again(
    market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look while the first still waits must not put another transaction, to be paid for, behind it."""
    task = market.submit(task_text())
    context, anvil = market.requester, market.avenue.anvil
    spec = TaskFeed(context).posted(task).spec
    market.avenue.sender(context.account).send(transactions.cancel(market.avenue.deployment, spec))
    before = market.avenue.client.w3.eth.get_transaction_count(context.account.address)

    anvil.rpc("evm_setIntervalMining", 0)
    anvil.set_automine(False)
    anvil.rpc("anvil_setNextBlockBaseFeePerGas", hex(10**12))
    looks, wait, looked = [], Sender.wait, Event()

    def counted(sender: Sender, intent: Intent) -> TxOutcome:
        looks.append(intent.id)
        if len(looks) == 2:
            looked.set()
        return wait(sender, intent)

    monkeypatch.setattr(Sender, "wait", counted)
    monkeypatch.setattr("node.request.agent.SEND_TIMEOUT_S", 0.1)
    agent = market.request_agent(task)
    assert looked.wait(WAIT_S)
    assert len(set(looks)) == 1

    anvil.rpc("anvil_setNextBlockBaseFeePerGas", hex(10**9))
    anvil.set_automine(True)
    anvil.mine()
    agent.join()
    assert market.avenue.client.task(task).status is TaskStatus.CLOSED
    after = market.avenue.client.w3.eth.get_transaction_count(context.account.address)
    assert after == before + len(("close", "withdraw"))
