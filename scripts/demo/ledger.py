"""What happened to the money and the gas, from chain reads alone.

Nothing here trusts an agent or the gateway: events, receipts and balances are read from the RPC endpoint, and every sum
is checked against the contracts' own balances.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from statistics import median
from typing import Any, cast

from eth_utils.abi import filter_abi_by_type, function_abi_to_4byte_selector
from hexbytes import HexBytes
from web3 import Web3
from web3.contract import Contract
from web3.types import TxData

from protocol.abi import artifact
from protocol.deployments import Deployment
from protocol.types import TaskId

CREATE2_PROXY = Web3.to_checksum_address("0x4e59b44847b379578588920cA78FbF26c0B4956C")
SHORT_NAMES = {"postWithPermit": "post", "stakeWithPermit": "stake", "bindMarket": "deploy: bind market"}
"""The agents use the variants with a permit, which save a transaction for the allowance."""


@dataclass(frozen=True)
class Money:
    """The task's account, token wei. In: escrow and forfeited collateral. Out: paid, refunded, burned."""

    escrow: int
    forfeited: int
    to_nodes: int
    to_reporters: int
    to_requester_unspent: int
    to_requester_compensation: int
    burned: int

    @property
    def escrow_in(self) -> int:
        return self.escrow + self.forfeited

    @property
    def paid(self) -> int:
        return self.to_nodes + self.to_reporters

    @property
    def refunded(self) -> int:
        return self.to_requester_unspent + self.to_requester_compensation

    @property
    def balanced(self) -> bool:
        return self.escrow_in == self.paid + self.refunded + self.burned


@dataclass
class NodeAccount:
    """What one node did in a task and what it got or lost, token wei."""

    node: int
    owner: str
    units: int = 0
    earned: int = 0
    slashed: int = 0
    tips: int = 0


@dataclass(frozen=True)
class Ledger:
    money: Money
    nodes: list[NodeAccount]
    gas: dict[str, int] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)


def read_ledger(w3: Web3, deployment: Deployment, task: TaskId) -> Ledger:
    """Reads the whole history since the deployment block. Raises AssertionError if the chain's books do not balance."""
    market = _contract(w3, "TaskMarket", deployment.market)
    registry = _contract(w3, "NodeRegistry", deployment.registry)
    token = _contract(w3, "AvenueToken", deployment.token)
    money = _money(market, registry, deployment.block, task)
    total_burned = sum(log["args"]["burned"] for log in registry.events.Slashed().get_logs(from_block=deployment.block))
    minted = sum(
        log["args"]["value"]
        for log in token.events.Transfer().get_logs(
            from_block=deployment.block, argument_filters={"from": "0x" + "00" * 20}
        )
    )
    if token.functions.totalSupply().call() != minted - total_burned:
        raise AssertionError("token supply is not what was minted less what was burned")
    gas, calls = _gas(w3, deployment)
    return Ledger(money, _nodes(market, registry, deployment.block, task), gas, calls)


def _contract(w3: Web3, name: str, address: str) -> Contract:
    return w3.eth.contract(address=Web3.to_checksum_address(address), abi=artifact(name).abi)


def _money(market: Contract, registry: Contract, start: int, task: TaskId) -> Money:
    by_task: dict[str, Any] = {"task": bytes(task)}

    def logs(event: str) -> list[Any]:
        return list(market.events[event]().get_logs(from_block=start, argument_filters=by_task))

    expired = {log["transactionHash"] for log in logs("UnitExpired")}
    slashes = [
        log["args"] for log in registry.events.Slashed().get_logs(from_block=start) if log["transactionHash"] in expired
    ]
    return Money(
        escrow=sum(log["args"]["escrow"] for log in logs("TaskPosted")),
        forfeited=sum(args["amount"] for args in slashes),
        to_nodes=sum(log["args"]["paid"] for log in logs("UnitFinalised")),
        to_reporters=sum(args["toReporter"] for args in slashes),
        to_requester_unspent=sum(log["args"]["refunded"] for log in logs("TaskClosed")),
        to_requester_compensation=sum(args["toHarmed"] for args in slashes),
        burned=sum(args["burned"] for args in slashes),
    )


def _nodes(market: Contract, registry: Contract, start: int, task: TaskId) -> list[NodeAccount]:
    accounts = {
        log["args"]["node"]: NodeAccount(log["args"]["node"], log["args"]["owner"])
        for log in registry.events.NodeRegistered().get_logs(from_block=start)
    }
    operators = {
        log["args"]["operator"]: log["args"]["node"]
        for log in registry.events.NodeRegistered().get_logs(from_block=start)
    }
    for log in market.events.UnitFinalised().get_logs(from_block=start, argument_filters={"task": bytes(task)}):
        account = accounts[log["args"]["node"]]
        account.units += 1
        account.earned += log["args"]["paid"]
    for log in registry.events.Slashed().get_logs(from_block=start):
        accounts[log["args"]["node"]].slashed += log["args"]["amount"]
        reporter = operators.get(log["args"]["reporter"])
        if reporter is not None:
            accounts[reporter].tips += log["args"]["toReporter"]
    return sorted(accounts.values(), key=lambda account: account.node)


def _gas(w3: Web3, deployment: Deployment) -> tuple[dict[str, int], dict[str, int]]:
    """Median gas of whole transactions by entry point; `deploy` is the sum over all deployment transactions."""
    names: dict[tuple[str, bytes], str] = {}
    for name, address in (
        ("TaskMarket", deployment.market),
        ("NodeRegistry", deployment.registry),
        ("AvenueToken", deployment.token),
        ("Faucet", deployment.faucet),
    ):
        if address is None:
            continue
        for function in filter_abi_by_type("function", cast(Any, artifact(name).abi)):
            key = (address.lower(), function_abi_to_4byte_selector(function))
            names[key] = SHORT_NAMES.get(function["name"], function["name"])
    used: dict[str, list[int]] = defaultdict(list)
    for number in range(deployment.block, w3.eth.block_number + 1):
        for tx in cast(list[TxData], w3.eth.get_block(number, full_transactions=True)["transactions"]):
            to = str(tx.get("to") or "").lower()
            selector = bytes(HexBytes(tx["input"])[:4])
            receipt = w3.eth.get_transaction_receipt(tx["hash"])
            if to == CREATE2_PROXY.lower():
                used["deploy"].append(receipt["gasUsed"])
            elif (to, selector) in names and receipt["status"] == 1:
                used[names[(to, selector)]].append(receipt["gasUsed"])
    gas = {name: sum(values) if name == "deploy" else round(median(values)) for name, values in sorted(used.items())}
    return gas, {name: len(values) for name, values in used.items()}


__all__ = ["Ledger", "Money", "NodeAccount", "read_ledger"]
