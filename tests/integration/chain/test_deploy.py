"""protocol.deploy on real chains: from nothing, from half way, again, and where it cannot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from protocol.chain import ChainClient
from protocol.deploy import check, deploy, network_class, read_plan, resolve_plan
from protocol.deployments import load
from protocol.errors import ConfigError, FundsError, TransactionError
from protocol.journal import Journal
from protocol.sender import Sender
from protocol.transactions import Call
from tests.support.anvil import AnvilProcess, AvenueChain, anvil, avenue_chain


class Killed(BaseException):
    """Stands for `kill -9`."""


@contextmanager
def sender_on(process: AnvilProcess, home: Path, account: int = 0) -> Iterator[Sender]:
    w3 = process.connect()
    with Journal(home / "journal.sqlite") as journal:
        yield Sender(ChainClient(w3), process.accounts[account], journal)
    w3.provider.close()  # type: ignore[attr-defined]


def test_deployment_carries_on_after_being_killed_at_any_step(tmp_path: Path) -> None:
    """Killed after each line of progress in turn; the last run finishes what all the others began."""
    with anvil() as process:
        seen: list[str] = []

        def one_more(line: str) -> None:
            if line.split()[0] not in ("already",) and " is at " not in line:
                seen.append(line)
                raise Killed

        for _ in range(20):
            with sender_on(process, tmp_path) as sender:
                try:
                    deployment = deploy(sender.client, sender, tmp_path, progress=one_more)
                except Killed:
                    continue
            break
        assert [line.split()[0] for line in seen] == [
            "AvenueToken",
            "Faucet",
            "NodeRegistry",
            "TaskMarket",
            "bind",
            "fill",
        ]
        # Not one transaction more than a deployment at one go needs.
        assert process.connect().eth.get_transaction_count(process.accounts[0].address) == 6
        assert load(31337, tmp_path) == deployment and deployment.block == 1


def test_killed_before_the_receipt_creates_nothing_twice(tmp_path: Path) -> None:
    with anvil() as process:
        process.set_automine(False)
        with sender_on(process, tmp_path) as sender:
            plan = resolve_plan(read_plan(), 31337, sender.address)
            token = plan.contracts[0]
            sender.submit(Call(plan.proxy, plan.salt + token.init_code, "create the token"))
        process.set_automine(True)
        process.mine()
        with sender_on(process, tmp_path) as restarted:
            deploy(restarted.client, restarted, tmp_path)
            assert restarted.client.w3.eth.get_transaction_count(restarted.address) == 6


def test_second_run_sends_nothing(avenue: AvenueChain) -> None:
    before = avenue.client.w3.eth.get_transaction_count(avenue.accounts[0].address)
    lines: list[str] = []
    again = deploy(ChainClient(avenue.client.w3), avenue.sender(0), avenue.home, progress=lines.append)
    assert again == avenue.deployment
    assert lines[-1].startswith("already deployed")
    assert avenue.client.w3.eth.get_transaction_count(avenue.accounts[0].address) == before


def test_record_that_was_lost_is_written_again(avenue: AvenueChain) -> None:
    avenue.anvil.mine(5)
    (avenue.home / "31337.json").unlink()
    deploy(ChainClient(avenue.client.w3), avenue.sender(0), avenue.home)
    found = load(31337, avenue.home)
    # The block is found by bisection: the first in which the token has code.
    assert found == avenue.deployment


def test_record_of_an_earlier_local_chain_hides_no_event_of_this_one(tmp_path: Path) -> None:
    """The same deployer gets the same addresses on a chain that began anew, in other blocks."""
    # Genesis times are in whole seconds, and this machine may be fast: make sure that the two chains differ.
    yesterday = ("--timestamp", str(int(time.time()) - 86_400))
    with anvil(arguments=yesterday) as earlier, sender_on(earlier, tmp_path) as sender:
        earlier.mine(20)
        assert deploy(sender.client, sender, tmp_path).block == 21
    with avenue_chain(tmp_path / "elsewhere") as avenue:
        avenue.anvil.mine(30)
        with sender_on(avenue.anvil, tmp_path) as sender:
            assert deploy(sender.client, sender, tmp_path) == avenue.deployment


def test_contract_that_somebody_else_creates_first_is_as_good(
    chain: AnvilProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody may send the same creation; what is at the address is the same contract, bound to the same deployer."""
    simulate = Sender.simulate
    taken: list[str] = []

    def too_late(ours: Sender, call: Call) -> int:
        if call.function == "NodeRegistry" and not taken:
            taken.append(call.function)
            with sender_on(chain, tmp_path / "stranger", account=1) as stranger:
                stranger.send(call)
        return simulate(ours, call)

    monkeypatch.setattr(Sender, "simulate", too_late)
    with sender_on(chain, tmp_path) as sender:
        deployment = deploy(sender.client, sender, tmp_path)
        bound = ChainClient(sender.client.w3, deployment)
        assert bound.read("registry", "DEPLOYER") == sender.address
        assert taken and bound.read("registry", "market") == deployment.market


def test_local_chain_has_its_parameters(avenue: AvenueChain) -> None:
    constants, faucet = avenue.client.constants, avenue.client.faucet()
    assert (constants.min_stake, constants.unbonding_s) == (100 * 10**18, 60)
    assert faucet is not None and (faucet.amount, faucet.cooldown_s) == (10_000 * 10**18, 60)
    assert avenue.client.read("registry", "market") == avenue.deployment.market


def test_test_network_has_its_parameters(tmp_path: Path) -> None:
    with anvil(chain_id=11155111) as process, sender_on(process, tmp_path) as sender:
        deployment = deploy(sender.client, sender, tmp_path)
        client = ChainClient(sender.client.w3, deployment)
        assert (client.constants.min_stake, client.constants.unbonding_s) == (1000 * 10**18, 86_400)
        faucet = client.faucet()
        assert faucet is not None and (faucet.amount, faucet.cooldown_s) == (2000 * 10**18, 86_400)


def test_other_chains_get_no_faucet(tmp_path: Path) -> None:
    with anvil(chain_id=1) as process, sender_on(process, tmp_path) as sender:
        deployment = deploy(sender.client, sender, tmp_path)
        assert deployment.faucet is None
        assert ChainClient(sender.client.w3, deployment).faucet() is None
        assert ChainClient(sender.client.w3, deployment).token_balance(sender.address) == 10**27


@pytest.mark.parametrize(
    ("chain_id", "kind"), [(31337, "local"), (17000, "testnet"), (560048, "testnet"), (10, "mainnet")]
)
def test_chain_ids_have_their_class(chain_id: int, kind: str) -> None:
    assert network_class(read_plan(), chain_id) == kind


def test_chain_without_the_proxy_is_named(tmp_path: Path) -> None:
    with anvil(arguments=("--disable-default-create2-deployer",)) as process, sender_on(process, tmp_path) as sender:
        with pytest.raises(ConfigError) as caught:
            deploy(sender.client, sender, tmp_path)
        assert caught.value.code == "C-35" and "--disable-default-create2-deployer" in caught.value.hint


def test_deployer_without_gas_money_is_told_how_much(tmp_path: Path) -> None:
    with anvil() as process, sender_on(process, tmp_path) as sender:
        process.rpc("anvil_setBalance", sender.address, "0x1")
        with pytest.raises(FundsError, match="has 1 wei of gas money and needs"):
            deploy(sender.client, sender, tmp_path)
        assert not (tmp_path / "31337.json").exists()


def test_assertion_that_does_not_hold_is_named(avenue: AvenueChain) -> None:
    """The addresses of account 0's contracts, checked as if another account had deployed them."""
    theirs = resolve_plan(read_plan(), 31337, avenue.accounts[1].address)
    with pytest.raises(TransactionError, match=r"registry.TOKEN\(\) is 0x") as caught:
        check(avenue.client, theirs)
    assert caught.value.code == "T-31"


def test_deployers_have_contracts_of_their_own(avenue: AvenueChain) -> None:
    ours = resolve_plan(read_plan(), 31337, avenue.accounts[0].address)
    theirs = resolve_plan(read_plan(), 31337, avenue.accounts[1].address)
    assert {c.name: c.address for c in ours.contracts} == avenue.deployment.addresses
    assert not {c.address for c in ours.contracts} & {c.address for c in theirs.contracts}
