"""The three roles by command line alone: a gateway, two compute nodes, a requester; trained, paid, withdrawn."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.anvil import anvil
from tests.support.cli import Cli, answers, wait_until

TASK = """
[task]
name = "digits-in-a-test"
private = true
rounds = 1
shards = 2
deadline = "15m"
compute_window = "2m"
reveal_window = "1m"
challenge_window = "5m"
[pay]
unit_price = "2"
aggregation_price = "0.5"
collateral = "10"
[model]
kind = "mlp"
hidden = [16]
[data]
source = "digits"
[training]
steps_per_round = 40
batch_size = 32
learning_rate = 0.05
momentum = 0.9
seed = 7
checkpoint_interval = 20
"""
LEAVES_WITHIN_S = 5.0
TRAINED_WITHIN_S = 300
"""Three processes start PyTorch and train: half a minute here, and several times that beside other work."""
FIRST, SECOND, REQUESTER, POOR = ("1", "2", "3", "4")


@pytest.fixture
def market(tmp_path: Path) -> Iterator[Cli]:
    """A home on a chain with Avenue and a gateway."""
    with anvil(block_time=1) as chain:
        cli = Cli(tmp_path / "home", {"AVENUE_RPC_URLS": chain.url, "AVENUE_COMPUTE__POLL_INTERVAL_S": "0.3"})
        cli.environ["AVENUE_REQUEST__POLL_INTERVAL_S"] = "0.3"
        cli.environ["AVENUE_NETWORKS__LOCAL__CONFIRMATIONS"] = "2"  # as on public networks
        assert cli.run("deploy", "--dev-account", "0", "--yes").code == 0
        gateway = cli.start("market", "serve", "--port", "0", "--json")
        try:
            cli.environ["AVENUE_GATEWAY_URL"] = cli.first_document(gateway)["url"]
            wait_until(lambda: answers(cli.environ["AVENUE_GATEWAY_URL"] + "/healthz"), gateway)
            yield cli
        finally:
            gateway.terminate()
            gateway.communicate(timeout=20)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_task_is_posted_trained_paid_and_fetched(market: Cli, tmp_path: Path) -> None:
    task_file = tmp_path / "task.toml"
    task_file.write_text(TASK)
    poor = market.run("task", "submit", str(task_file), "--dev-account", POOR, "--yes", "--json")
    assert (poor.code, poor.error["code"]) == (6, "F-10"), "no tokens"
    assert poor.error["hint"]

    nodes = [market.start("compute", "start", "--dev-account", each, "--no-checks") for each in (FIRST, SECOND)]
    try:
        assert market.run("faucet", "--dev-account", REQUESTER, "--yes").code == 0
        submit = ("task", "submit", str(task_file), "--dev-account", REQUESTER, "--yes", "--json")
        posted = market.run(*submit, timeout_s=TRAINED_WITHIN_S)
        assert posted.code == 0, posted.stderr
        assert (posted.document["status"], posted.document["trained"]) == ("closed", True)
        task = posted.document["task"]
        twice = market.run("compute", "start", "--dev-account", FIRST, "--no-checks", "--json")
        assert (twice.code, twice.error["code"]) == (7, "S-20"), "one identity runs once"
        left_in_s = [_interrupt(node) for node in nodes]
        assert max(left_in_s) < LEAVES_WITHIN_S
        assert [node.returncode for node in nodes] == [130, 130]
    finally:
        for node in nodes:
            node.kill()
            node.communicate()

    short = task[:14]
    seen = market.run("task", "watch", short, "--json").document
    assert seen["trained"] is True
    assert seen["paid_wei"] == seen["escrow_wei"] == str(45 * 10**17)
    read = market.run("program", "show", short, "--json").document  # of any task, by anybody
    assert read["figures"]["operations"] == len(read["operations"]) > 50

    shown = market.run("task", "show", short, "--timeline", "--json").document
    assert [event["event"] for event in shown["events"]].count("UnitFinalised") == 3
    assert market.run("task", "list", "--dev-account", REQUESTER, "--json").document["items"][0]["task"] == task

    given_up = market.run("task", "submit", str(task_file), "--detach", "--dev-account", REQUESTER, "--yes", "--json")
    assert (given_up.document["status"], given_up.document["trained"]) == ("posted", False)
    for move in ("cancel", "close"):
        moved = market.run("task", move, given_up.document["task"], "--dev-account", REQUESTER, "--yes", "--json")
        assert moved.code == 0, moved.stdout
    none = market.run("task", "result", given_up.document["task"], "--dev-account", REQUESTER, "--json")
    assert (none.code, none.error["code"]) == (7, "S-44")
    assert "was closed before" in none.error["message"], "and nobody is told to wait for it"

    model = tmp_path / "model.safetensors"
    result = market.run("task", "result", task, "-o", str(model), "--dev-account", REQUESTER, "--json")
    assert result.code == 0, result.stdout
    assert result.document["tensors"] == {
        "0.bias": [16],
        "0.weight": [16, 64],
        "2.bias": [10],
        "2.weight": [10, 16],
    }
    assert result.document["parameters"] == 16 * 64 + 16 + 10 * 16 + 10
    assert model.stat().st_size == result.document["bytes"]
    folder = market.run("task", "result", task, "-o", str(tmp_path), "--dev-account", REQUESTER, "--json")
    assert (folder.code, folder.error["code"]) == (3, "C-01"), "a folder is no file, and no bug of ours"

    earned = [market.run("compute", "earnings", "--dev-account", each, "--json").document for each in (FIRST, SECOND)]
    assert sum(int(each["earned_wei"]) for each in earned) == 45 * 10**17
    busier = FIRST if int(earned[0]["earned_wei"]) else SECOND
    withdrawn = market.run("compute", "withdraw", "--dev-account", busier, "--yes", "--json").document
    assert withdrawn["transactions"][0]["amount_wei"] == earned[int(busier) - 1]["withdrawable_wei"]
    too_much = market.run("compute", "unstake", "1000000", "--dev-account", busier, "--yes", "--json")
    assert (too_much.code, too_much.error["code"]) == (6, "F-12")
    assert market.run("compute", "unstake", "900.5", "--dev-account", busier, "--yes").code == 0
    status = market.run("compute", "status", "--dev-account", busier, "--json").document
    assert status["stake_wei"] == str(995 * 10**17)
    assert (status["active"], status["open_tasks"]) == (False, 0)
    assert any("avenue compute stake" in risk for risk in status["at_risk"])
    assert market.run("compute", "stake", "0.5", "--dev-account", busier, "--yes").code == 0
    assert market.run("compute", "status", "--dev-account", busier, "--json").document["at_risk"] == []
    idle = market.run("compute", "tasks", "--explain", "--dev-account", busier, "--json").document
    assert idle == {"actions": [], "skips": []}
    late = market.run("task", "cancel", task, "--dev-account", REQUESTER, "--yes", "--json")
    assert late.code in (5, 7), "a closed task cannot be cancelled"
    assert late.error["hint"]


def _interrupt(process: subprocess.Popen[str]) -> float:
    """Sends one SIGINT; how long the process took to leave, s."""
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert "Traceback" not in errors
    assert "no open task on the market" in errors, "an idle node says why"
    return time.monotonic() - started
