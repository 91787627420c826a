"""The whole market by its own commands: deploy, gateway, three nodes, a private task, a crash, a newcomer, the money.

The same script as `make demo`, on the digits data set, so that what people are shown is what is tested.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPO = Path(__file__).resolve().parents[2]
TASK = Path(__file__).with_name("main_job.toml")


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The figures of one play. A play that fails shows its story and the ends of its logs."""
    output = tmp_path_factory.mktemp("play") / "demo.json"
    done = subprocess.run(
        [sys.executable, "-m", "scripts.demo", "--task", str(TASK), "--output", str(output)],
        cwd=REPO,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        logs = "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in output.parent.glob("demo/*.log")
        )
        pytest.fail(f"exit {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}\n{logs}")
    document: dict[str, Any] = json.loads(output.read_text())
    return document


@pytest.mark.timeout(300)
def test_state_of_the_market_is_that_of_one_process_although_a_node_was_killed(played: dict[str, Any]) -> None:
    assert played["killed"] is not None
    assert played["joined"] is not None
    assert played["final_state_root"] == played["single_process_root"]


def test_model_learned_as_much_as_in_float32(played: dict[str, Any]) -> None:
    assert played["accuracy"] >= 0.93
    assert abs(played["accuracy"] - played["float32_accuracy"]) <= 0.02


def test_money_in_is_money_out_to_the_wei(played: dict[str, Any]) -> None:
    out = sum(int(played[key]) for key in ("paid", "refunded", "burned"))
    assert int(played["escrow_in"]) == out
    # Every unit was paid exactly once at its price: 3 rounds of 3 shards and an aggregation.
    assert int(played["money"]["paid_to_nodes"]) == 3 * (3 * 3 + 1) * 10**18
    assert int(played["money"]["unspent_escrow_to_requester"]) == 0


def test_vanished_node_paid_for_the_delay(played: dict[str, Any]) -> None:
    money = {key: int(value) for key, value in played["money"].items()}
    assert money["forfeited_collateral"] == 20 * 10**18
    assert money["delay_compensation_to_requester"] == 10 * 10**18
    assert int(played["burned"]) == 9 * 10**18
    assert money["tips_to_reporters"] == 10**18


def test_gas_of_the_main_entry_points_is_within_the_first_targets(played: dict[str, Any]) -> None:
    gas = played["gas"]
    assert gas["post"] <= 150_000  # with the permit that saves an approval
    assert gas["claim"] <= 130_000
    assert gas["commit"] <= 75_000
