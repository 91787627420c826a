"""What happens to a unit when its worker dies: it comes back and carries on, or somebody else takes over."""

from __future__ import annotations

import signal
import time

from node.request.task_file import load_task_file
from node.request.view import AcceptPolicy
from node.request.view import Policy as RequestPolicy
from node.taskfeed import TaskFeed
from node.training.plan import prepare_plan, run_plan
from protocol.types import TaskSpec, UnitStatus
from tests.integration.agents.conftest import FIRST_NODE, Market, wait_until
from tests.integration.agents.tasks import LONG_STEPS, task_text


def single_process_root(market: Market) -> bytes:
    return run_plan(prepare_plan(load_task_file(market.folder / "task.toml"))).rounds[-1].output


def in_mid_unit(market: Market, index: int, spec: TaskSpec) -> bool:
    return any(0 < market.steps_done(index, spec, unit) < LONG_STEPS for unit in (0, 1))


def test_node_killed_in_mid_unit_and_after_a_commit_resumes_each_time(market: Market) -> None:
    task = market.submit(task_text(rounds=1, steps=LONG_STEPS, interval=100))
    spec = TaskFeed(market.requester).posted(task).spec
    requester = market.request_agent(task)
    process = market.node_process(0)
    wait_until(lambda: in_mid_unit(market, 0, spec), "a checkpoint in mid-unit")
    process.kill()
    process.wait()
    before = {unit: market.steps_done(0, spec, unit) for unit in (0, 1)}

    second = market.node_process(0)
    wait_until(lambda: any(unit.status >= UnitStatus.COMMITTED for unit in market.units(spec)), "a commit")
    second.kill()
    second.wait()
    again = market.node_process(0)
    requester.join()
    again.send_signal(signal.SIGINT)
    assert again.wait(10) == 0
    resumed_from = max(before.values())
    assert resumed_from >= 100
    assert f"from_step={resumed_from}" in market.log_of(0)
    assert market.count(spec, UnitStatus.FINALISED) == spec.units
    assert all(unit.attempt == 0 for unit in market.units(spec)), "nothing expired"
    assert market.avenue.client.input_state_root(spec, 1) == single_process_root(market)


def test_vanished_node_loses_its_unit_and_another_ends_in_the_same_state(market: Market) -> None:
    task = market.submit(task_text(rounds=1, steps=LONG_STEPS, interval=100, window=30))
    spec = TaskFeed(market.requester).posted(task).spec
    requester = market.request_agent(task)
    process = market.node_process(0)
    wait_until(lambda: in_mid_unit(market, 0, spec), "a checkpoint in mid-unit")
    process.kill()
    process.wait()
    (lost,) = (i for i, unit in enumerate(market.units(spec)) if unit.status is UnitStatus.CLAIMED)
    market.avenue.anvil.increase_time(31)

    successor = market.node(1)
    requester.join()
    successor.end()
    units = market.units(spec)
    assert units[lost].attempt == 1
    assert {unit.node for unit in units} == {2}
    assert market.avenue.client.input_state_root(spec, 1) == single_process_root(market)

    # The collateral: half to the requester, a tip to who re-opened it, the rest burned; no reward for the vanished.
    client = market.avenue.client
    vanished, helper = (market.avenue.accounts[FIRST_NODE + index].address for index in (0, 1))
    assert client.node(units[0].node).locked == 0
    assert client.market_credit(vanished) == 0
    assert client.market_credit(helper) == spec.escrow
    assert client.registry_credit(helper) == spec.collateral * client.constants.tip_bps // 10_000


def test_interrupted_node_saves_its_step_and_leaves_within_five_seconds(market: Market) -> None:
    task = market.submit(task_text(rounds=1, steps=LONG_STEPS, interval=LONG_STEPS))
    spec = TaskFeed(market.requester).posted(task).spec
    process = market.node_process(0)
    wait_until(lambda: "training" in market.log_of(0), "training")
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    assert process.wait(10) == 0
    assert time.monotonic() - started < 5
    # There was no checkpoint to fall back to: what was saved is the very step at which it stopped.
    assert in_mid_unit(market, 0, spec)


def test_gateway_that_is_away_costs_no_collateral(market: Market) -> None:
    task = market.submit(task_text(rounds=1, steps=LONG_STEPS, interval=100, reveal=15))
    spec = TaskFeed(market.requester).posted(task).spec
    node = market.node_process(0)
    wait_until(lambda: in_mid_unit(market, 0, spec), "a checkpoint in mid-unit")
    market.gateway.stop()
    node.kill()
    node.wait()
    # It starts again with what is on its disk: program, shard, manifest.
    node = market.node_process(0)
    # Nothing can be published; the result is revealed all the same before its window ends.
    wait_until(lambda: market.count(spec, UnitStatus.REVEALED) == 1, "a reveal without a gateway")
    market.gateway.start()
    # The state arrives late, and then everything goes on: the average needs it.
    market.request_agent(task).join()
    node.send_signal(signal.SIGINT)
    assert node.wait(10) == 0
    units = market.units(spec)
    assert all(unit.status is UnitStatus.FINALISED and unit.attempt == 0 for unit in units)
    assert market.avenue.client.input_state_root(spec, 1) == single_process_root(market)


def test_gateway_that_loses_its_mail_is_told_everything_again(market: Market) -> None:
    task = market.submit(task_text(private=True, rounds=1))
    spec = TaskFeed(market.requester).posted(task).spec
    requester = market.request_agent(task, RequestPolicy(accept=AcceptPolicy.NEVER))
    node = market.node(0)
    wait_until(lambda: market.count(spec, UnitStatus.REVEALED) == 1, "a first result")
    market.gateway.stop()
    market.gateway.lose_mail()
    market.gateway.start()
    # Admission, keys and the announced result were in that mailbox; without them nobody could take the average.
    wait_until(lambda: market.count(spec, UnitStatus.REVEALED) == spec.units, "the rest of the task")
    node.end()
    requester.end()
    assert all(unit.attempt == 0 for unit in market.units(spec))
    assert market.avenue.client.input_state_root(spec, 1) == single_process_root(market)
