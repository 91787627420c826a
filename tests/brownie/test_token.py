"""The token: a fixed supply that only shrinks."""

import brownie
from brownie import AvenueToken

UNIT = 10**18


def test_the_whole_supply_is_minted_at_deployment(contracts, requester, owner):
    assert contracts.token.totalSupply() == 2_000 * UNIT
    assert contracts.token.balanceOf(requester) == contracts.token.balanceOf(owner) == 1_000 * UNIT


def test_a_supply_above_the_cap_is_refused(deployer):
    with brownie.reverts(revert_pattern="CapExceeded: .*"):
        AvenueToken.deploy([deployer], [10**27 + 1], {"from": deployer})


def test_burning_shrinks_the_supply_and_nothing_else(contracts, requester, owner):
    contracts.token.burn(400 * UNIT, {"from": requester})
    assert contracts.token.totalSupply() == 1_600 * UNIT
    assert contracts.token.balanceOf(owner) == 1_000 * UNIT
