"""`brownie run deploy`: the whole plan, and again without doing anything."""

import importlib.util
import json
from pathlib import Path

import pytest
from brownie import accounts, interface, web3


@pytest.fixture(scope="module")
def deploy():
    """The script that `brownie run deploy` runs, as a module."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "on_brownie" / "deploy.py"
    spec = importlib.util.spec_from_file_location("deploy_script", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_plan_deploys_and_binds_everything(deploy):
    addresses = deploy.main()
    registry = interface.INodeRegistry(addresses["registry"])
    assert registry.market() == addresses["market"]
    assert all(web3.eth.get_code(address) for address in addresses.values())


def test_a_second_run_sends_nothing(deploy):
    first = deploy.main()
    nonce = accounts[0].nonce
    assert deploy.main() == first
    assert accounts[0].nonce == nonce


def test_another_deployer_gets_other_contracts(deploy, monkeypatch):
    first = deploy.main()
    monkeypatch.setattr(deploy, "accounts", accounts[1:])
    second = deploy.main()
    assert set(first.values()).isdisjoint(second.values())


def test_an_assertion_that_does_not_hold_fails_the_deployment(deploy, monkeypatch, tmp_path):
    plan = json.loads(deploy.PLAN.read_text())
    plan["assertions"].append({"on": "token", "function": "symbol", "args": [], "equals": "XYZ"})
    wrong = tmp_path / "plan.json"
    wrong.write_text(json.dumps(plan))
    monkeypatch.setattr(deploy, "PLAN", wrong)
    with pytest.raises(deploy.DeploymentError, match="symbol is AVN"):
        deploy.main()
