"""Commands against a real chain: deploy, look, drip, serve; and every way in which the chain or the money says no."""

from __future__ import annotations

import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.anvil import AnvilProcess, anvil
from tests.support.cli import Cli, answers, wait_until


@pytest.fixture(scope="module")
def chain() -> Iterator[AnvilProcess]:
    with anvil() as process:
        yield process


@pytest.fixture(scope="module")
def deployments(chain: AnvilProcess, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record that `avenue deploy` wrote."""
    cli = Cli(tmp_path_factory.mktemp("deployer"), {"AVENUE_RPC_URLS": chain.url})
    ran = cli.run("deploy", "--dev-account", "0", "--yes", "--json")
    assert ran.code == 0, ran.stderr
    assert ran.document["already_deployed"] is False
    again = cli.run("deploy", "--dev-account", "0", "--json")
    assert again.document["already_deployed"] is True, "a second run sends nothing and asks nothing"
    assert again.document["contracts"] == ran.document["contracts"]
    return Path(ran.document["record"]).parent


@pytest.fixture
def cli(chain: AnvilProcess, deployments: Path, tmp_path: Path) -> Cli:
    home = Cli(tmp_path / "home", {"AVENUE_RPC_URLS": chain.url, "AVENUE_MARKET__PORT": "0"})
    shutil.copytree(deployments, home.home / "deployments")
    return home


def test_chain_info_shows_head_contracts_and_parameters(cli: Cli) -> None:
    document = cli.run("chain", "info", "--json").document
    assert document["chain_id"] == 31337
    assert set(document["contracts"]) == {"token", "faucet", "registry", "market"}
    assert document["min_stake_wei"] == str(100 * 10**18)
    assert "least stake  100 AVN" in cli.run("chain", "info").stdout


def test_the_faucet_drips_and_then_says_when_it_will_again(cli: Cli) -> None:
    first = cli.run("faucet", "--dev-account", "3", "--yes", "--json")
    assert first.code == 0, first.stderr
    assert first.document["balance_wei"] == str(10_000 * 10**18)
    assert first.document["transaction"]["gas_used"] > 21_000
    second = cli.run("faucet", "--dev-account", "3", "--yes", "--json")
    assert second.code == 5
    assert "CoolingDown" in second.error["message"]
    assert second.error["hint"]


def test_a_compute_nodes_tokens_go_to_the_owner_who_stakes_them(cli: Cli, chain: AnvilProcess) -> None:
    made = cli.run("init", "--yes", "--light-kdf", "--role", "compute", "--json").document["keys"]
    owner, operator = (next(key["public"] for key in made if key["name"] == name) for name in ("owner", "operator"))
    chain.rpc("anvil_setBalance", operator, hex(10**18))
    cli.environ["AVENUE_GATEWAY_URL"] = "http://127.0.0.1:1"

    def stake() -> str:
        checks = cli.run("doctor", "--json").document["checks"]
        return str(next(check["status"] + check["hint"] for check in checks if check["name"] == "stake"))

    assert stake() == f"failedsend 0.01 ETH to {owner}", "the owner pays for registration and stake"
    chain.rpc("anvil_setBalance", owner, hex(10**18))
    assert stake() == "warningavenue compute start"
    ran = cli.run("faucet", "--yes", "--json")
    assert (ran.code, ran.document["to"]) == (0, owner), ran.stderr


def test_a_drain_needs_an_identity_and_says_whether_anybody_hears_it(cli: Cli) -> None:
    nobody = cli.run("compute", "drain", "--json")
    assert (nobody.code, nobody.error["code"]) == (3, "C-50")
    idle = cli.run("compute", "drain", "--dev-account", "6", "--json")
    assert (idle.code, idle.document) == (0, {"draining": True, "running": False})


def test_nothing_is_sent_without_an_answer(cli: Cli) -> None:
    ran = cli.run("faucet", "--dev-account", "4", "--json")
    assert (ran.code, ran.error["code"], ran.error["hint"]) == (2, "U-02", "add --yes to agree")
    plain = cli.run("faucet", "--dev-account", "4")
    assert "about to send" in plain.stderr and "contract" in plain.stderr
    assert plain.code == 2


def test_an_address_that_is_none_is_refused(cli: Cli) -> None:
    ran = cli.run("faucet", "0x12", "--dev-account", "4", "--yes", "--json")
    assert (ran.code, ran.error["code"]) == (2, "U-06")


def test_no_gas_money_is_said_with_both_numbers(cli: Cli) -> None:
    cli.run("init", "--yes", "--light-kdf", "--role", "request")
    ran = cli.run("faucet", "--yes", "--json")
    assert (ran.code, ran.error["code"]) == (6, "F-01")
    assert "has 0 wei" in ran.error["message"] and "needs" in ran.error["message"]
    assert ran.error["hint"]


def test_a_wrong_password_stops_before_anything_is_sent(cli: Cli, tmp_path: Path) -> None:
    cli.run("init", "--yes", "--light-kdf", "--role", "request")
    (tmp_path / "wrong").write_text("incorrect horse")
    ran = cli.run("faucet", "--yes", "--json", "--password-file", str(tmp_path / "wrong"))
    assert (ran.code, ran.error["code"]) == (3, "C-52")


def test_a_chain_with_another_id_is_refused(cli: Cli) -> None:
    ran = cli.run("chain", "info", "--network", "sepolia", "--json")
    assert (ran.code, ran.error["code"]) == (3, "C-11")
    assert "31337" in ran.error["message"] and "11155111" in ran.error["message"]
    assert "rpc_urls" in ran.error["hint"]


def test_development_accounts_stay_on_the_local_chain(tmp_path: Path) -> None:
    with anvil(chain_id=11155111) as other:
        cli = Cli(tmp_path / "home", {"AVENUE_RPC_URLS": other.url})
        honest = cli.run("deploy", "--network", "sepolia", "--dev-account", "0", "--yes", "--json")
        assert (honest.code, honest.error["code"]) == (3, "C-57")
        assert "keys new" in honest.error["hint"]
        lying = cli.run("deploy", "--network", "local", "--dev-account", "0", "--yes", "--json")
        assert (lying.code, lying.error["code"]) == (3, "C-11"), "the live chain's id counts, not the file's"
        assert int(other.rpc("eth_blockNumber"), 16) == 0


def test_no_chain_is_unreachable_and_names_the_endpoint_without_its_key(cli: Cli) -> None:
    cli.environ["AVENUE_RPC_URLS"] = "http://127.0.0.1:1/v3/APIKEY"
    ran = cli.run("chain", "info", "--json")
    assert (ran.code, ran.error["code"]) == (4, "N-01")
    assert "http://127.0.0.1:1" in ran.error["message"]
    assert "APIKEY" not in ran.stdout + ran.stderr
    assert ran.error["hint"]


def test_a_network_without_endpoint_says_how_to_set_one(cli: Cli) -> None:
    del cli.environ["AVENUE_RPC_URLS"]
    ran = cli.run("chain", "info", "--network", "sepolia", "--json")
    assert (ran.code, ran.error["code"]) == (3, "C-06")
    assert "networks.sepolia.rpc_urls" in ran.error["hint"]


def test_no_deployment_is_said(cli: Cli) -> None:
    shutil.rmtree(cli.home / "deployments")
    ran = cli.run("chain", "info", "--json")
    assert (ran.code, ran.error["code"]) == (3, "C-30")
    assert "avenue deploy" in ran.error["hint"]


def test_the_doctor_names_each_check_and_leaves_with_9(cli: Cli) -> None:
    cli.run("init", "--yes", "--light-kdf", "--role", "compute")
    cli.environ["AVENUE_GATEWAY_URL"] = "http://127.0.0.1:1"
    ran = cli.run("doctor", "--json")
    assert ran.code == 9
    checks = {check["name"]: check for check in ran.document["checks"]}
    expected = {"python", "torch", "kernels", "config", "keystore", "disk", "rpc", "head", "clock", "deployment"}
    assert expected | {"gas", "tokens", "stake", "gateway", "market", "port"} == set(checks)
    failed = {name for name, check in checks.items() if check["status"] == "failed"}
    assert failed == {"gas", "stake", "gateway"}, "neither operator nor owner can pay for gas"
    assert all(check["hint"] for check in checks.values() if check["status"] in ("failed", "warning"))
    assert ran.document["error"]["code"] == "D-08"
    assert ran.document["ok"] is False


def test_a_node_with_a_failed_check_does_not_start(cli: Cli) -> None:
    cli.environ["AVENUE_GATEWAY_URL"] = "http://127.0.0.1:1"
    ran = cli.run("compute", "start", "--dev-account", "5", "--json")
    assert (ran.code, ran.error["code"]) == (9, "D-11")
    assert "market serve" in ran.error["hint"]


def test_the_doctor_is_content_with_a_deployer_who_can_pay(cli: Cli) -> None:
    ran = cli.run("doctor", "--role", "deployer", "--dev-account", "0", "--json")
    assert ran.code == 0, ran.stdout
    assert ran.document["ok"] is True


def test_a_port_in_use_is_said_before_anything_starts(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = cli.run("market", "serve", "--port", str(port), "--json")
    assert (ran.code, ran.error["code"]) == (4, "N-10")
    assert str(port) in ran.error["message"]
    assert "--port" in ran.error["hint"]


def test_the_doctor_sees_that_a_gateway_no_longer_follows_the_chain(cli: Cli) -> None:
    with anvil() as own:
        cli.environ["AVENUE_RPC_URLS"] = own.url
        process = cli.start("market", "serve", "--port", "0", "--json")
        cli.environ["AVENUE_GATEWAY_URL"] = url = cli.first_document(process)["url"]
        wait_until(lambda: answers(f"{url}/readyz"), process)
    try:
        wait_until(lambda: not answers(f"{url}/readyz"), process)
        checks = cli.run("doctor", "--dev-account", "1", "--json").document["checks"]
        gateway = next(check for check in checks if check["name"] == "gateway")
        assert gateway["status"] == "warning"
        assert "does not follow the chain" in gateway["detail"] and gateway["hint"]
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_gateway_serves_until_it_is_told_to_stop(cli: Cli, number: signal.Signals) -> None:
    process = cli.start("market", "serve", "--port", "0", "--json")
    try:
        url = cli.first_document(process)["url"]
        wait_until(lambda: answers(f"{url}/healthz"), process)
    finally:
        process.send_signal(number)
        _, errors = process.communicate(timeout=20)
    assert process.returncode in (0, 128 + number, -number), errors
    assert "Traceback" not in errors
    assert not answers(f"{url}/healthz")
