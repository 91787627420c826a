"""The market's main path: one public task of one unit, from the escrow to the payment, and its two unhappy ends."""

import brownie
import pytest
from brownie import ZERO_ADDRESS, accounts, chain
from conftest import MIN_STAKE
from eth_abi import encode
from eth_utils import keccak

UNIT_PRICE = 10 * 10**18
COLLATERAL = 50 * 10**18
COMPUTE_WINDOW_S = 600
SALT = keccak(text="salt")
NO_ADMISSION = (0, 0, b"")


def merkle_root(*leaves):
    """Root over one or two 32-byte leaves, as in docs/protocol.md section 1."""
    hashes = [keccak(b"\x00" + leaf) for leaf in leaves]
    top = keccak(b"\x01" + hashes[0] + hashes[1]) if len(hashes) == 2 else hashes[0]
    return keccak(b"\x03" + len(leaves).to_bytes(8, "big") + top)


INITIAL = keccak(text="initial state")
FINAL = keccak(text="final state")
CHECKPOINTS = merkle_root(INITIAL, FINAL)
# Opens the last of two leaves: its sibling is the first.
OPENING = (CHECKPOINTS, FINAL, [keccak(b"\x00" + INITIAL)], SALT)


@pytest.fixture
def spec(contracts, requester):
    """A posted task: one round, one shard, one step, so one unit."""
    spec = (
        requester.address,
        keccak(text="program"),
        b"\0" * 32,
        INITIAL,
        keccak(text="data"),
        keccak(text="manifest"),
        7,
        UNIT_PRICE,
        0,
        COLLATERAL,
        1,
        1,
        1,
        1,
        chain.time() + 86_400,
        COMPUTE_WINDOW_S,
        600,
        3_600,
        False,
    )
    contracts.token.approve(contracts.market, UNIT_PRICE, {"from": requester})
    contracts.market.post(spec, {"from": requester})
    return spec


def commitment_of(market, spec, node):
    result = market.resultRootOf(spec, 0, node, CHECKPOINTS)
    return keccak(encode(["bytes32", "bytes32", "bytes32"], [keccak(text="avenue.commitment.v1"), bytes(result), SALT]))


def work(contracts, spec, node, operator):
    """Claims, commits and reveals the only unit."""
    market = contracts.market
    market.claim(spec, 0, NO_ADMISSION, {"from": operator})
    market.commit(market.taskIdOf(spec), 0, commitment_of(market, spec, node), {"from": operator})
    market.reveal(spec, 0, OPENING, {"from": operator})


def test_posting_reserves_the_whole_escrow(contracts, spec, requester):
    assert contracts.token.balanceOf(contracts.market) == UNIT_PRICE == contracts.market.escrowOf(spec)
    with brownie.reverts(revert_pattern="TaskExists: .*"):
        contracts.market.post(spec, {"from": requester})


def test_accepted_work_pays_the_owner_and_frees_the_collateral(contracts, spec, node, owner, operator, requester):
    work(contracts, spec, node, operator)
    contracts.market.accept(spec, 0, b"", {"from": requester})
    before = contracts.token.balanceOf(owner)
    contracts.market.withdraw(owner, {"from": accounts[9]})
    assert contracts.token.balanceOf(owner) - before == UNIT_PRICE
    assert contracts.registry.freeStake(node) == 2 * MIN_STAKE
    assert contracts.token.balanceOf(contracts.market) == 0


def test_silence_of_the_requester_pays_after_the_window(contracts, spec, node, owner, operator):
    work(contracts, spec, node, operator)
    with brownie.reverts(revert_pattern="TooEarly: .*"):
        contracts.market.finalise(spec, 0, {"from": operator})
    chain.sleep(3_700)
    contracts.market.finalise(spec, 0, {"from": accounts[9]})
    assert contracts.market.credit(owner) == UNIT_PRICE


def test_a_unit_is_claimed_once(contracts, spec, node, operator):
    contracts.market.claim(spec, 0, NO_ADMISSION, {"from": operator})
    with brownie.reverts(revert_pattern="WrongStatus: .*"):
        contracts.market.claim(spec, 0, NO_ADMISSION, {"from": operator})


def test_a_reveal_must_open_the_commitment(contracts, spec, node, operator):
    market = contracts.market
    market.claim(spec, 0, NO_ADMISSION, {"from": operator})
    market.commit(market.taskIdOf(spec), 0, keccak(text="something else"), {"from": operator})
    with brownie.reverts(revert_pattern="CommitmentMismatch: .*"):
        market.reveal(spec, 0, OPENING, {"from": operator})


def test_a_vanished_worker_pays_and_the_unit_is_open_again(contracts, spec, node, operator, requester):
    supply = contracts.token.totalSupply()
    contracts.market.claim(spec, 0, NO_ADMISSION, {"from": operator})
    chain.sleep(COMPUTE_WINDOW_S + 60)
    contracts.market.expire(spec, 0, {"from": accounts[9]})
    lost = 2 * MIN_STAKE - contracts.registry.freeStake(node)
    compensation, tip = contracts.registry.credit(requester), contracts.registry.credit(accounts[9])
    burned = supply - contracts.token.totalSupply()
    assert lost == COLLATERAL == compensation + tip + burned
    assert min(compensation, tip, burned) > 0
    contracts.market.claim(spec, 0, NO_ADMISSION, {"from": operator})


def test_a_cancelled_task_gives_everything_back(contracts, spec, requester):
    contracts.market.cancel(spec, {"from": requester})
    contracts.market.close(spec, {"from": accounts[9]})
    contracts.market.withdraw(requester, {"from": accounts[9]})
    assert contracts.token.balanceOf(requester) == 1_000 * 10**18
    assert contracts.market.getTask(contracts.market.taskIdOf(spec))[0] == 0
    with brownie.reverts(revert_pattern="NothingToPay: .*"):
        contracts.market.withdraw(ZERO_ADDRESS, {"from": requester})
