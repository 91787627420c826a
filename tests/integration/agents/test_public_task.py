"""Agents on a real chain with a real gateway: a task is posted, trained, paid, closed, and its model loads."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from node.compute import account
from node.config import Role
from node.request.result import save_result
from node.request.task_file import load_task_file
from node.request.watch import watch
from node.taskfeed import TaskFeed
from node.training.plan import prepare_plan, run_plan
from protocol.types import TaskStatus, UnitStatus
from tests.integration.agents.conftest import FIRST_NODE, Market
from tests.integration.agents.tasks import task_text
from tests.support.market import AVN


def test_public_task_is_trained_paid_and_closed(market: Market, tmp_path: Path) -> None:
    task = market.submit(task_text())
    spec = TaskFeed(market.requester).posted(task).spec
    balance_before = market.avenue.client.token_balance(spec.requester)
    nodes = [market.node(0), market.node(1)]
    requester = market.request_agent(task)
    snapshots = list(watch(market.requester, task, poll_s=0.2))
    requester.join()
    for node in nodes:
        node.end()

    assert market.count(spec, UnitStatus.FINALISED) == spec.units == 6
    assert snapshots[-1].status is TaskStatus.CLOSED
    assert snapshots[-1].trained
    assert snapshots[-1].paid == spec.escrow == 42 * AVN
    assert any(snapshot.loss is not None for snapshot in snapshots)

    # Money: every wei of the escrow is an owner's credit, and both nodes worked.
    owners = [market.avenue.accounts[FIRST_NODE + index].address for index in (0, 1)]
    earned = [market.avenue.client.market_credit(owner) for owner in owners]
    assert sum(earned) == spec.escrow
    assert all(earned)
    assert market.avenue.client.token_balance(spec.requester) == balance_before

    # A node's own books say the same, and what they say can be collected.
    context = market.context(FIRST_NODE, Role.COMPUTE)
    books = account.earnings(context)
    assert books.earned == books.withdrawable == earned[0]
    assert (books.awaiting, books.lost, books.expired_units) == (0, 0, 0)
    assert sum(books.by_task.values()) == books.earned
    assert all(unit.accepted for unit in books.units)
    assert account.status(context).units == ()
    before = market.avenue.client.token_balance(owners[0])
    steps = account.plan_withdrawal(context)
    assert [(step.amount, step.to) for step in steps] == [(earned[0], owners[0])]
    account.send(context, steps)
    assert market.avenue.client.token_balance(owners[0]) == before + earned[0]
    assert account.plan_withdrawal(context) == ()

    # Exactness: the distributed run ends where one process ends.
    plan = prepare_plan(load_task_file(market.folder / "task.toml"))
    alone = run_plan(plan)
    assert market.avenue.client.input_state_root(spec, spec.rounds) == alone.rounds[-1].output

    # The model is an ordinary torch module's, and has learnt something.
    saved = save_result(market.requester, task, tmp_path / "model.safetensors")
    module = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    module.load_state_dict(load_file(saved.path))
    test = plan.dataset.test
    assert test is not None
    predicted = module(torch.from_numpy(plan.dataset.scale.to_float(test.x))).argmax(1)
    assert float((predicted.numpy() == test.y).mean()) > 0.5
    assert saved.shapes["0.weight"] == (16, 64)
