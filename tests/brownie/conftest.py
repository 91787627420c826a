"""Brownie's tests stand alone: Brownie has its own environment, without Avenue's packages.

They cover the way in which somebody who lives in Brownie meets Avenue: the contracts compile under brownie-config.yaml,
the main path works, the deployment plan deploys. The contracts' full tests are Forge's, in tests/solidity/.
"""

from dataclasses import dataclass

import pytest
from brownie import AvenueToken, NodeRegistry, TaskMarket, accounts, chain
from eth_account import Account
from eth_utils import keccak

UNIT = 10**18
"""Wei of one token: AVN has 18 decimals."""
MIN_STAKE = 100 * UNIT
UNBONDING_S = 7 * 86_400


@pytest.fixture(autouse=True)
def isolate(fn_isolation):
    """Every test starts from the same chain."""


@dataclass(frozen=True)
class Market:
    """The contracts, wired as the deployment plan wires them."""

    token: object
    registry: object
    market: object


@pytest.fixture(scope="module")
def deployer():
    return accounts[0]


@pytest.fixture(scope="module")
def requester():
    return accounts[1]


@pytest.fixture(scope="module")
def owner():
    """The node's cold key: all its money goes here."""
    return accounts[2]


@pytest.fixture(scope="module")
def operator():
    """The node's hot key. Made here, because it must sign EIP-712 and Anvil's own accounts stay in Anvil."""
    key = keccak(text="avenue brownie operator")
    account = accounts.add(key)
    accounts[3].transfer(account, 10**18)
    return account


@pytest.fixture(scope="module")
def contracts(deployer, requester, owner):
    token = AvenueToken.deploy([requester, owner], [1_000 * UNIT, 1_000 * UNIT], {"from": deployer})
    registry = NodeRegistry.deploy(token, deployer, MIN_STAKE, UNBONDING_S, {"from": deployer})
    market = TaskMarket.deploy(token, registry, {"from": deployer})
    registry.bindMarket(market, {"from": deployer})
    return Market(token, registry, market)


def authorize(registry, owner, operator, deadline):
    """The operator's EIP-712 proof that it possesses its key and will serve `owner`."""
    message = {
        "types": {
            "EIP712Domain": [
                {"name": "name", "type": "string"},
                {"name": "version", "type": "string"},
                {"name": "chainId", "type": "uint256"},
                {"name": "verifyingContract", "type": "address"},
            ],
            "OperatorAuthorization": [
                {"name": "owner", "type": "address"},
                {"name": "operator", "type": "address"},
                {"name": "nonce", "type": "uint256"},
                {"name": "deadline", "type": "uint256"},
            ],
        },
        "primaryType": "OperatorAuthorization",
        "domain": {
            "name": "AvenueNodeRegistry",
            "version": "1",
            "chainId": chain.id,
            "verifyingContract": registry.address,
        },
        "message": {
            "owner": owner.address,
            "operator": operator.address,
            "nonce": registry.nonces(operator),
            "deadline": deadline,
        },
    }
    return Account.sign_typed_data(operator.private_key, full_message=message).signature


@pytest.fixture
def node(contracts, owner, operator):
    """The id of a registered node with twice the minimum stake."""
    deadline = chain.time() + 3_600
    signature = authorize(contracts.registry, owner, operator, deadline)
    encryption_key = keccak(text="x25519")
    contracts.registry.register(
        operator, encryption_key, "https://node.example", b"\0" * 32, deadline, signature, {"from": owner}
    )
    node = contracts.registry.nodeOf(operator)
    contracts.token.approve(contracts.registry, 2 * MIN_STAKE, {"from": owner})
    contracts.registry.stake(node, 2 * MIN_STAKE, {"from": owner})
    return node
