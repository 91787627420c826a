"""Each check of the doctor, shown to fail for its own reason on a real chain or without one."""

from __future__ import annotations

import dataclasses
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.config import Role, load_config
from node.context import NodeContext
from node.doctor import Finding, Status, examine
from node.keys import LIGHT_SCRYPT_N, Keystore, dev_encryption_key
from protocol import deployments, signatures, transactions
from tests.support.anvil import AvenueChain, avenue_chain
from tests.support.gateway import running_gateway, settings_in

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AvenueChain]:
    with avenue_chain(tmp_path_factory.mktemp("chain")) as chain:
        yield chain


def context_of(
    home: Path, url: str, *, role: Role = Role.COMPUTE, records: Path | None = None, **options: object
) -> NodeContext:
    flags = {
        "rpc_urls": [url],
        "gateway_url": options.get("gateway_url", "http://127.0.0.1:1"),
        "market.port": 0,  # some free one: another gateway may run on this machine
        "networks.local.deployments_dir": str(records) if records else None,
    }
    dev_account = options.get("dev_account")
    assert dev_account is None or isinstance(dev_account, int)
    return NodeContext(load_config(home, flags=flags, environ={}), role=role, dev_account_index=dev_account)


def findings_of(context: NodeContext) -> dict[str, Finding]:
    with context:
        return {finding.name: finding for finding in examine(context)}


def test_without_a_chain_what_needs_it_is_skipped_and_the_rest_is_checked(tmp_path: Path) -> None:
    findings = findings_of(context_of(tmp_path, "http://127.0.0.1:1"))
    assert findings["rpc"].status is Status.FAILED
    assert (findings["rpc"].code, findings["keystore"].code) == ("N-01", "D-03")
    assert findings["keystore"].hint == "avenue keys new operator"
    for name in ("head", "clock", "deployment", "gas", "tokens", "stake"):
        assert findings[name].status is Status.SKIPPED
    for name in ("python", "torch", "kernels", "disk"):
        assert findings[name].status is Status.OK, findings[name]
    assert findings["config"].status is Status.WARNING


def test_an_open_keystore_fails_with_the_command_that_mends_it(tmp_path: Path) -> None:
    store = Keystore(tmp_path, scrypt_n=LIGHT_SCRYPT_N)
    store.create("encryption", PASSWORD)
    path = store.create("operator", PASSWORD).path
    path.chmod(0o640)
    finding = findings_of(context_of(tmp_path, "http://127.0.0.1:1"))["keystore"]
    assert (finding.status, finding.code, finding.hint) == (Status.FAILED, "C-51", f"chmod 600 {path}")
    path.chmod(0o600)
    assert findings_of(context_of(tmp_path, "http://127.0.0.1:1"))["keystore"].status is Status.OK


def test_a_full_disk_and_a_crowded_one_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    for free, status in ((2**29, Status.FAILED), (2**31, Status.WARNING), (2**34, Status.OK)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _path, free=free: usage._replace(free=free))
        assert findings_of(context_of(tmp_path, "http://127.0.0.1:1"))["disk"].status is status


def test_a_node_on_a_fresh_local_chain_is_ready_but_for_the_gateway(deployed: AvenueChain, tmp_path: Path) -> None:
    findings = findings_of(context_of(tmp_path, deployed.url, records=deployed.home, dev_account=1))
    assert {name for name, each in findings.items() if each.status is Status.FAILED} == {"gateway"}
    assert findings["deployment"].detail.endswith(deployed.deployment.market)
    assert findings["stake"].status is Status.WARNING


def test_a_registered_and_staked_node_has_no_complaint_about_stake(deployed: AvenueChain, tmp_path: Path) -> None:
    account = deployed.accounts[2]
    sender, client = deployed.sender(account), deployed.client
    deadline = client.latest_block().timestamp + 3600
    proof = signatures.sign_operator_authorization(account, deployed.deployment, account.address, 0, deadline)
    key = dev_encryption_key(account)
    sender.send(
        transactions.register(deployed.deployment, account.address, key, "", bytes(32), deadline, proof)
    )  # fmt: skip
    context = context_of(tmp_path, deployed.url, records=deployed.home, dev_account=2)
    unstaked = findings_of(context)["stake"]
    assert (unstaked.status, unstaked.code) == (Status.FAILED, "D-10")
    sender.send(transactions.drip(deployed.deployment, account.address))
    amount = client.constants.min_stake
    sender.send(transactions.approve(deployed.deployment, deployed.deployment.registry, amount))
    node = client.node_of(account.address)
    assert node is not None
    sender.send(transactions.stake(deployed.deployment, node, amount))
    findings = findings_of(context_of(tmp_path, deployed.url, records=deployed.home, dev_account=2))
    assert findings["stake"].status is Status.OK
    assert findings["tokens"].status is Status.OK


def test_other_code_at_a_contracts_address_is_not_used(deployed: AvenueChain, tmp_path: Path) -> None:
    hashes = {**deployed.deployment.code_hashes, "market": "0x" + "00" * 32}
    deployments.save(dataclasses.replace(deployed.deployment, code_hashes=hashes), tmp_path)
    findings = findings_of(context_of(tmp_path, deployed.url, records=tmp_path, dev_account=1))
    assert (findings["deployment"].status, findings["deployment"].code) == (Status.FAILED, "D-07")
    assert findings["stake"].status is Status.SKIPPED


def test_no_code_at_a_contracts_address_is_said(deployed: AvenueChain, tmp_path: Path) -> None:
    nowhere = deployed.accounts[9].address
    deployments.save(dataclasses.replace(deployed.deployment, market=nowhere), tmp_path)
    finding = findings_of(context_of(tmp_path, deployed.url, records=tmp_path, dev_account=1))["deployment"]
    assert (finding.status, finding.code) == (Status.FAILED, "D-06")
    assert nowhere in finding.detail


def test_no_gas_money_fails_unless_the_owner_lends_some(deployed: AvenueChain, tmp_path: Path) -> None:
    store = Keystore(tmp_path, scrypt_n=LIGHT_SCRYPT_N)
    store.create("encryption", PASSWORD)
    operator = store.create("operator", PASSWORD).public
    poor = findings_of(context_of(tmp_path, deployed.url, records=deployed.home))
    assert (poor["gas"].status, poor["gas"].code) == (Status.FAILED, "D-08")
    assert poor["gas"].hint == f"send gas money to {operator}"
    assert (poor["stake"].status, poor["stake"].code) == (Status.FAILED, "D-09"), "no owner key to register with"
    store.import_hex("owner", bytes(deployed.accounts[3].key).hex(), PASSWORD)
    rich = findings_of(context_of(tmp_path, deployed.url, records=deployed.home))
    assert rich["gas"].status is Status.WARNING
    assert rich["stake"].status is Status.WARNING


def test_a_clock_behind_the_chain_fails(tmp_path: Path) -> None:
    with avenue_chain(tmp_path / "chain", chain_id=11155111) as chain:
        chain.anvil.increase_time(3600)
        flags = {"network": "sepolia", "rpc_urls": [chain.url]}
        context = NodeContext(load_config(tmp_path, flags=flags, environ={}), role=Role.DEPLOYER)
        finding = findings_of(context)["clock"]
    assert (finding.status, finding.code) == (Status.FAILED, "D-05")
    assert "NTP" in finding.hint


def test_a_local_chain_may_run_ahead(tmp_path: Path) -> None:
    with avenue_chain(tmp_path / "chain") as chain:
        chain.anvil.increase_time(3600)
        finding = findings_of(context_of(tmp_path, chain.url, records=chain.home, dev_account=1))["clock"]
    assert finding.status is Status.WARNING


@pytest.mark.parametrize(("role", "status"), [(Role.DEPLOYER, Status.FAILED), (Role.COMPUTE, Status.WARNING)])
def test_a_taken_port_matters_to_who_would_serve_there(tmp_path: Path, role: Role, status: Status) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        flags = {"market.port": taken.getsockname()[1], "rpc_urls": ["http://127.0.0.1:1"]}
        finding = findings_of(NodeContext(load_config(tmp_path, flags=flags, environ={}), role=role))["port"]
    assert finding.status is status
    assert "market.port" in finding.hint


def test_an_old_head_fails_on_a_public_chain(tmp_path: Path) -> None:
    start = int(time.time()) - 3600
    with avenue_chain(tmp_path / "chain", chain_id=11155111, arguments=("--timestamp", str(start))) as chain:
        flags = {"network": "sepolia", "rpc_urls": [chain.url], "networks.sepolia.deployments_dir": str(chain.home)}
        context = NodeContext(load_config(tmp_path, flags=flags, environ={}), role=Role.DEPLOYER)
        finding = findings_of(context)["head"]
    assert (finding.status, finding.code) == (Status.FAILED, "D-04")
    assert "rpc_urls" in finding.hint


def test_a_deployer_needs_no_torch_and_no_market(deployed: AvenueChain, tmp_path: Path) -> None:
    findings = findings_of(context_of(tmp_path, deployed.url, role=Role.DEPLOYER, dev_account=0))
    assert not {"torch", "kernels", "deployment", "stake", "gateway"} & set(findings)
    assert all(each.status in (Status.OK, Status.WARNING) for each in findings.values())


def test_a_gateway_of_another_chain_or_market_is_noticed(deployed: AvenueChain, tmp_path: Path) -> None:
    client, real = deployed.client, deployed.deployment
    with running_gateway(settings_in(tmp_path / "gateway"), client) as gateway:
        url = gateway.url
        right = findings_of(context_of(tmp_path, deployed.url, records=deployed.home, gateway_url=url, dev_account=0))
        assert right["market"].status is Status.OK
        records = tmp_path / "records"
        deployments.save(dataclasses.replace(real, market=real.registry, code_hashes={}), records)
        wrong = findings_of(context_of(tmp_path, deployed.url, records=records, gateway_url=url, dev_account=0))
    assert (wrong["market"].status, wrong["market"].code) == (Status.FAILED, "D-15")
    assert real.market in wrong["market"].detail
