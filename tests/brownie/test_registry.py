"""Nodes: registration with the operator's consent, stake, and the way out."""

import brownie
from brownie import accounts, chain
from conftest import MIN_STAKE, UNBONDING_S, authorize
from eth_utils import keccak


def test_a_registered_and_staked_node_is_active(contracts, node, owner, operator):
    assert contracts.registry.isActive(node)
    assert contracts.registry.ownerOf(node) == owner
    assert contracts.registry.freeStake(node) == 2 * MIN_STAKE
    assert contracts.token.balanceOf(contracts.registry) == 2 * MIN_STAKE


def test_a_signature_for_another_owner_registers_nobody(contracts, owner, operator):
    deadline = chain.time() + 3_600
    signature = authorize(contracts.registry, accounts[5], operator, deadline)
    with brownie.reverts(revert_pattern="WrongOperatorSignature: .*"):
        contracts.registry.register(operator, keccak(text="x"), "", b"\0" * 32, deadline, signature, {"from": owner})
    assert contracts.registry.nodeCount() == 0


def test_only_the_market_may_slash(contracts, node, owner):
    split = (owner, MIN_STAKE, owner, 0)
    with brownie.reverts(revert_pattern="NotMarket: .*"):
        contracts.registry.slash(node, 0, MIN_STAKE, split, {"from": owner})
    assert contracts.registry.freeStake(node) == 2 * MIN_STAKE


def test_the_market_is_bound_once(contracts, deployer):
    with brownie.reverts(revert_pattern="CannotBind: .*"):
        contracts.registry.bindMarket(deployer, {"from": deployer})


def test_unbonded_stake_goes_to_the_owner_after_the_delay_and_not_before(contracts, node, owner):
    contracts.registry.deregister(node, {"from": owner})
    chain.sleep(UNBONDING_S - 60)
    with brownie.reverts(revert_pattern="NothingToWithdraw: .*"):
        contracts.registry.withdraw(node, {"from": owner})
    chain.sleep(120)
    before = contracts.token.balanceOf(owner)
    contracts.registry.withdraw(node, {"from": owner})
    assert contracts.token.balanceOf(owner) - before == 2 * MIN_STAKE
