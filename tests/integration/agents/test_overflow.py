"""A task whose program breaks its own bounds costs one collateral a unit, and only those who were told to take it."""

from __future__ import annotations

from node.compute.desk import Desk
from node.config import Role
from node.taskfeed import TaskFeed
from proofs.exact.state import decode_state, state_root
from proofs.results import overflow_root
from protocol.types import NodeId, TaskId, UnitStatus
from tests.integration.agents.conftest import FIRST_NODE, Market, wait_until
from tests.integration.agents.tasks import task_text
from tests.support.market import AVN

GROWING = """
import torch
from proofs.exact.compiler.formats import Options

OPTIONS = Options(overflow="assert")

def init():
    return {"weight": torch.ones(8)}, {}

def step(params, state, batch):
    nothing = batch["x"].mean() * 0.0 + batch["y"].sum() * 0.0
    return {"weight": params["weight"] * 1.5}, state, (params["weight"] ** 2).mean() + nothing
"""
BLOCKS = 20
"""A node looks ten times a second, a block comes four times: time enough to claim again, for whoever would."""


def test_overflow_costs_one_collateral_a_unit_and_only_who_allowed_it(market: Market) -> None:
    (market.folder / "growing.py").write_text(GROWING)
    task = market.submit(task_text(step_file="growing.py", rounds=1, window=8))
    spec = TaskFeed(market.requester).posted(task).spec
    careful = market.node(0)
    bold = market.node(1, **{"compute.may_overflow": True, "compute.max_parallel_units": 2})
    wait_until(
        lambda: all((u.attempt, u.status) == (1, UnitStatus.OPEN) for u in market.units(spec)[:2]),
        "both units were claimed, overflowed, and expired",
    )
    head = market.avenue.client.latest_block().number
    wait_until(lambda: market.avenue.client.latest_block().number >= head + BLOCKS, "some blocks went by")
    careful.end()
    bold.end()

    assert [(unit.attempt, unit.status) for unit in market.units(spec)[:2]] == [(1, UnitStatus.OPEN)] * 2
    stakes = {
        market.avenue.client.node(NodeId(node)).owner: market.avenue.client.node(NodeId(node)).stake for node in (1, 2)
    }
    owners = [market.avenue.accounts[FIRST_NODE + index].address for index in (0, 1)]
    assert [stakes[owner] for owner in owners] == [1000 * AVN, 960 * AVN]

    # What the bold node has on its disk is all that a dispute would need.
    desk = Desk(market.context(FIRST_NODE + 1, Role.COMPUTE).data_dir)
    for unit in (0, 1):
        note = desk.overflow(TaskId(task), unit)
        assert note is not None
        assert 4 < note.step < spec.steps
        (key,) = [key for key in desk.attempts(TaskId(task)) if key.unit == unit]
        saved = desk.get_checkpoint(key)
        assert saved is not None and saved.step == note.step
        root = overflow_root(
            state_root=state_root(decode_state(saved.state)),
            step=note.step,
            operation=note.operation,
            element=note.element,
            value=note.value,
        )
        assert root.hex() == note.root
