"""Deploys Avenue by the plan in `deployments/plan.json`; run again after anything at all, it carries on.

Contracts are created through the deterministic deployment proxy with CREATE2, so each address is a function of the
contract's code and constructor arguments: a contract that has code at its address is *this* contract, and is not
created again. The record is written last, after every assertion holds.

The plan is data, for this module and for Brownie's script alike:

    version        1
    salt           text; the CREATE2 salt is keccak256 of its UTF-8 bytes
    create2_proxy  the deployment proxy; calldata is salt || init code
    networks       chain id -> class of network; "*" is for every chain not listed
    parameters     class -> name -> value; integers as decimal text, units in the names
    steps          contracts in order: name, contract (the artefact), args (constructor), only
    calls          transactions by the deployer, in order, after all steps: title, on (a step's name), function, args,
                   while, only
    assertions     reads that must hold at the end: on, function, args, and one of equals / at_least / at_most; only

Text that begins with `$` stands for a value: `$deployer`, `$zero` (the zero address), a parameter of the class, or, by
the name of its step, a contract's address. Lists are resolved member by member. `only` names the classes an entry is
for; without it, all. A call's `while` is a read and a value: the call is sent only as long as they are equal, which
makes it idempotent.
A script that creates contracts without CREATE2 (Brownie's) obeys the same order, arguments, calls and assertions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from eth_typing import ChecksumAddress
from eth_utils.address import is_address, to_checksum_address
from eth_utils.crypto import keccak
from web3.exceptions import Web3Exception

from protocol.abi import artifact
from protocol.chain import ChainClient
from protocol.deployments import LOCAL_CHAIN_ID, Deployment, load, save
from protocol.errors import ConfigError, TransactionError
from protocol.reverts import RevertedError
from protocol.sender import Sender
from protocol.transactions import Call, call

_ZERO_ADDRESS = "0x" + "00" * 20
# Runtime code of the deterministic deployment proxy (github.com/Arachnid/deterministic-deployment-proxy).
_PROXY_CODE_HASH = keccak(
    hexstr="7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffe0"
    "3601600081602082378035828234f58015156039578182fd5b8082525050506014600cf3"
)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Contract:
    """A planned contract: where it will be is known before it exists."""

    name: str
    artifact: str
    address: ChecksumAddress
    init_code: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan for one chain and one deployer, everything resolved."""

    proxy: ChecksumAddress
    salt: bytes
    contracts: tuple[Contract, ...]
    calls: tuple[Mapping[str, Any], ...]
    assertions: tuple[Mapping[str, Any], ...]

    def address(self, name: str) -> ChecksumAddress | None:
        return next((contract.address for contract in self.contracts if contract.name == name), None)

    def contract_of(self, name: str) -> Contract:
        return next(contract for contract in self.contracts if contract.name == name)


def read_plan() -> dict[str, Any]:
    """The plan document as it is in the package."""
    text = (resources.files("protocol") / "deployments" / "plan.json").read_text(encoding="utf-8")
    document = json.loads(text)
    if document["version"] != 1:
        raise ConfigError(f"deployment plan has version {document['version']}, not 1", code="C-34")
    return dict(document)


def network_class(document: Mapping[str, Any], chain_id: int) -> str:
    """ "local", "testnet" or "mainnet"."""
    networks = document["networks"]
    return str(networks.get(str(chain_id), networks["*"]))


def resolve_plan(document: Mapping[str, Any], chain_id: int, deployer: ChecksumAddress) -> Plan:
    """The plan for `deployer` on `chain_id`: addresses computed, references replaced.

    Raises `ConfigError` C-34 for a reference to nothing.
    """
    kind = network_class(document, chain_id)
    salt = keccak(text=document["salt"])
    proxy = to_checksum_address(document["create2_proxy"])
    values: dict[str, Any] = {"deployer": deployer, "zero": _ZERO_ADDRESS, **document["parameters"][kind]}

    def applies(entry: Mapping[str, Any]) -> bool:
        return "only" not in entry or kind in entry["only"]

    def resolve(value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(member) for member in value]
        if isinstance(value, Mapping):
            return {key: resolve(member) for key, member in value.items()}
        if isinstance(value, str) and value.startswith("$"):
            if value[1:] not in values:
                raise ConfigError(f"deployment plan refers to {value}, which is nothing on {kind}", code="C-34")
            value = values[value[1:]]
        return int(value) if isinstance(value, str) and value.isdecimal() else value

    contracts = []
    for step in filter(applies, document["steps"]):
        init_code = artifact(step["contract"]).init_code(resolve(step["args"]))
        address = create2_address(proxy, salt, init_code)
        contracts.append(Contract(step["name"], step["contract"], address, init_code))
        values[step["name"]] = address
    return Plan(
        proxy,
        salt,
        tuple(contracts),
        tuple(resolve(entry) for entry in filter(applies, document["calls"])),
        tuple(resolve(entry) for entry in filter(applies, document["assertions"])),
    )


def create2_address(proxy: str, salt: bytes, init_code: bytes) -> ChecksumAddress:
    """EIP-1014: the last 20 bytes of keccak256(0xff || creator || salt || keccak256(init code))."""
    return to_checksum_address(keccak(b"\xff" + bytes.fromhex(proxy[2:]) + salt + keccak(init_code))[12:])


def deploy(client: ChainClient, sender: Sender, directory: Path, *, progress: Progress = lambda _: None) -> Deployment:
    """Deploys what is missing, checks everything, writes `<chainId>.json` into `directory`; gives the deployment.

    `progress` hears one line per step. Idempotent: a finished deployment sends nothing ("already deployed").

    Raises:
        ConfigError: C-35 no deployment proxy on this chain.
        TransactionError: T-30 a contract isn't at its address, T-31 an assertion does not hold; or as `Sender.send`.
    """
    plan = resolve_plan(read_plan(), client.chain_id, sender.address)
    _check_proxy(client, plan)
    sender.recover()
    sent, born = 0, None
    for contract in plan.contracts:
        if client.code(contract.address):
            progress(f"{contract.artifact} is at {contract.address}")
            continue
        creation = Call(
            plan.proxy,
            plan.salt + contract.init_code,
            f"create {contract.artifact} at {contract.address}",
            contract="CREATE2",
            function=contract.artifact,
        )
        try:
            outcome = sender.send(creation)
        except RevertedError:
            # Whoever sent the same bytes first has created the same contract.
            if not client.code(contract.address):
                raise
            progress(f"{contract.artifact} is at {contract.address}")
            continue
        client.at_least_block(outcome.block)
        if not client.code(contract.address):
            raise TransactionError(f"no code at {contract.address} after creating {contract.artifact}", code="T-30")
        born = outcome.block if contract is plan.contracts[0] else born
        progress(f"{contract.artifact} created at {contract.address}, {outcome.gas_used} gas")
        sent += 1
    deployment = _described(client, plan, born if born is not None else _start_block(client, plan, directory))
    bound = ChainClient(client.w3, deployment)
    for entry in plan.calls:
        condition = entry["while"]
        if not _equal(bound.read(condition["on"], condition["function"], *condition["args"]), condition["equals"]):
            continue
        target = plan.contract_of(entry["on"])
        transaction = call(
            target.address, target.artifact, entry["function"], *entry["args"], description=entry["title"]
        )
        outcome = sender.send(transaction)
        client.at_least_block(outcome.block)
        progress(f"{entry['title']}: {outcome.gas_used} gas")
        sent += 1
    check(bound, plan)
    path = save(deployment, directory)
    progress(f"already deployed: {path}" if not sent else f"deployed: {path}")
    return deployment


def check(client: ChainClient, plan: Plan) -> None:
    """Every assertion of the plan holds. Raises `TransactionError` T-31 that names the first which does not."""
    for entry in plan.assertions:
        have = client.read(entry["on"], entry["function"], *entry["args"])
        name = f"{entry['on']}.{entry['function']}({', '.join(map(str, entry['args']))})"
        holds = (
            _equal(have, entry["equals"])
            if "equals" in entry
            else have >= entry["at_least"]
            if "at_least" in entry
            else have <= entry["at_most"]
        )
        if not holds:
            raise TransactionError(
                f"after deployment {name} is {have}, which breaks {dict(entry)}",
                code="T-31",
                hint="somebody else may have bound or funded these contracts: deploy with another key",
            )


def _equal(have: Any, want: Any) -> bool:
    if is_address(want):
        return to_checksum_address(have) == to_checksum_address(want)
    return bool(have == want)


def _check_proxy(client: ChainClient, plan: Plan) -> None:
    if keccak(client.code(plan.proxy)) != _PROXY_CODE_HASH:
        raise ConfigError(
            f"chain {client.chain_id} has no deterministic deployment proxy at {plan.proxy}",
            code="C-35",
            hint="Anvil and all public networks have it; start Anvil without --disable-default-create2-deployer",
        )


def _described(client: ChainClient, plan: Plan, block: int) -> Deployment:
    addresses = {contract.name: contract.address for contract in plan.contracts}
    return Deployment(
        chain_id=client.chain_id,
        block=block,
        token=addresses["token"],
        registry=addresses["registry"],
        market=addresses["market"],
        faucet=addresses.get("faucet"),
        code_hashes={name: "0x" + keccak(client.code(address)).hex() for name, address in addresses.items()},
    )


def _start_block(client: ChainClient, plan: Plan, directory: Path) -> int:
    """Where reading events of contracts that exist already may start: the block of the first one's creation.

    From the earlier record, if it is about these contracts, else found by bisection; always so on a local chain, where
    the record may be about a chain of before, which had the same addresses in other blocks.
    """
    token = plan.contracts[0].address
    try:
        earlier = load(client.chain_id, directory)
    except ConfigError:
        earlier = None
    if earlier is not None and earlier.token == token and earlier.chain_id != LOCAL_CHAIN_ID:
        return earlier.block
    return _first_code_block(client, token)


def _first_code_block(client: ChainClient, address: ChecksumAddress) -> int:
    """The first block with code at `address`. 0 if the endpoint keeps no old state: right too, and merely slow."""
    low, high = 0, client.block("latest").number
    try:
        while low < high:
            middle = (low + high) // 2
            if client.at(middle).code(address):
                high = middle
            else:
                low = middle + 1
    except Web3Exception:
        return 0
    return low
