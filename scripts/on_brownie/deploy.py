"""Deploys Avenue from Brownie, by the same plan as `avenue deploy` and to the same addresses.

    brownie run deploy                                    the built-in development network
    brownie run deploy --network sepolia main my_account  a live network, with an account of `brownie accounts`

(through scripts/run_brownie.py, which finds the compiler). The plan, protocol/deployments/plan.json, is described in
protocol/deploy.py. Contracts are created through the deterministic deployment proxy from the checked-in artefacts, not
from Brownie's own build: an address is a function of the code, so both tools find each other's deployments and go on.
Brownie has an environment of its own, without Avenue's packages: hence this second reader of the plan.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brownie import Contract, accounts, network, web3
from eth_abi.abi import encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = ROOT / "protocol"
PLAN = PROTOCOL / "deployments" / "plan.json"
ZERO_ADDRESS = "0x" + "00" * 20


class DeploymentError(Exception):
    """The chain is not as the plan says; the message says where."""


@dataclass(frozen=True)
class Planned:
    """A contract of the plan: its artefact's ABI, its address, and the code that makes it."""

    abi: list[dict[str, Any]]
    artefact: str
    address: str
    init_code: bytes

    @property
    def exists(self) -> bool:
        return bool(web3.eth.get_code(self.address))

    def at(self) -> Any:
        """Brownie's view of the deployed contract."""
        return Contract.from_abi(self.artefact, self.address, self.abi)


def resolve(value: Any, values: Mapping[str, Any]) -> Any:
    """Replaces `$name` by its value and decimal text by an integer, member by member."""
    if isinstance(value, list):
        return [resolve(member, values) for member in value]
    if isinstance(value, dict):
        return {key: resolve(member, values) for key, member in value.items()}
    if isinstance(value, str) and value.startswith("$"):
        value = values[value[1:]]
    return int(value) if isinstance(value, str) and value.isdecimal() else value


def init_code(artefact: Mapping[str, Any], arguments: list[Any]) -> bytes:
    """Creation code followed by the encoded constructor arguments."""
    types = [i["type"] for entry in artefact["abi"] if entry["type"] == "constructor" for i in entry["inputs"]]
    return bytes.fromhex(artefact["bytecode"][2:]) + encode(types, arguments)


def read(condition: Mapping[str, Any], planned: Mapping[str, Planned]) -> Any:
    """What the contract answers to the read that the plan describes."""
    return getattr(planned[condition["on"]].at(), condition["function"])(*condition["args"])


def save_record(first_block: int, planned: Mapping[str, Planned]) -> Path:
    """Writes the deployment's record, where `avenue` looks for it."""
    path = PROTOCOL / "deployments" / f"{web3.eth.chain_id}.json"
    names = ("token", "faucet", "registry", "market")
    record = {
        "version": 1,
        "chain_id": web3.eth.chain_id,
        "block": first_block,
        "addresses": {name: planned[name].address if name in planned else None for name in names},
        "code_hashes": {name: "0x" + keccak(web3.eth.get_code(each.address)).hex() for name, each in planned.items()},
    }
    path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    return path


def main(account: str | None = None) -> dict[str, str]:
    """Deploys what is missing and checks everything; gives the addresses by name.

    Args:
        account: name of an account of `brownie accounts`; needed on a live network, else Anvil's first.

    Raises:
        DeploymentError: the chain has no deployment proxy, a contract is not at its address, or something that the
            plan asserts does not hold.
    """
    local = network.show_active() == "development"
    deployer = accounts.load(account) if account else accounts[0]
    plan = json.loads(PLAN.read_text("utf-8"))
    if plan["version"] != 1:
        raise DeploymentError(f"deployment plan has version {plan['version']}, not 1")
    if not web3.eth.get_code(plan["create2_proxy"]):
        raise DeploymentError("this chain has no deterministic deployment proxy")

    kind = plan["networks"].get(str(web3.eth.chain_id), plan["networks"]["*"])
    salt = keccak(text=plan["salt"])
    values: dict[str, Any] = {"deployer": deployer.address, "zero": ZERO_ADDRESS, **plan["parameters"][kind]}
    entries = {
        section: [entry for entry in plan[section] if kind in entry.get("only", [kind])]
        for section in ("steps", "calls", "assertions")
    }

    first_block = web3.eth.block_number
    planned: dict[str, Planned] = {}
    for step in entries["steps"]:
        artefact = json.loads((PROTOCOL / "abi" / f"{step['contract']}.json").read_text("utf-8"))
        code = init_code(artefact, resolve(step["args"], values))
        # EIP-1014.
        digest = keccak(b"\xff" + bytes.fromhex(plan["create2_proxy"][2:]) + salt + keccak(code))
        contract = Planned(artefact["abi"], step["contract"], to_checksum_address(digest[12:]), code)
        if not contract.exists:
            deployer.transfer(plan["create2_proxy"], 0, data="0x" + (salt + code).hex())
            if not contract.exists:
                raise DeploymentError(f"no code at {contract.address} after creating {contract.artefact}")
        planned[step["name"]] = contract
        values[step["name"]] = contract.address
        print(f"{step['name']:9} {contract.artefact} at {contract.address}")

    for entry in resolve(entries["calls"], values):
        if read(entry["while"], planned) == entry["while"]["equals"]:
            print(entry["title"])
            getattr(planned[entry["on"]].at(), entry["function"])(*entry["args"], {"from": deployer})

    for entry in resolve(entries["assertions"], values):
        have = read(entry, planned)
        holds = (
            have == entry["equals"]
            if "equals" in entry
            else have >= entry["at_least"]
            if "at_least" in entry
            else have <= entry["at_most"]
        )
        if not holds:
            raise DeploymentError(f"after deployment {entry['on']}.{entry['function']} is {have}, against {entry}")

    if not local:
        print(f"record: {save_record(first_block, planned)}")
    return {name: contract.address for name, contract in planned.items()}
