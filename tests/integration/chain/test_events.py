"""protocol.events through real reorganisations, narrow endpoints and restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from eth_utils.address import to_checksum_address

from protocol import transactions
from protocol.chain import ChainClient
from protocol.errors import LaggingRpcError, UnreachableError
from protocol.events import (
    Batch,
    BlockRef,
    ChainEvent,
    Cursor,
    CursorStore,
    Dripped,
    EventFollower,
    MarketBound,
    NodeRegistered,
    Rollback,
    TaskPosted,
)
from protocol.rpc import connect
from tests.support.anvil import AvenueChain
from tests.support.flaky_rpc import Fault, FlakyRpc, flaky_rpc
from tests.support.market import h, post_task, register_node
from tests.support.waiting import wait_until


class Ledger:
    """What somebody who stores events ends up with: the events, and the cursor that goes with them."""

    def __init__(self, follower: EventFollower) -> None:
        self.follower = follower
        self.cursor = follower.start()
        self.events: list[ChainEvent] = []
        self.rollbacks: list[Rollback] = []

    def catch_up(self) -> list[Batch]:
        batches = list(self.follower.follow(self.cursor))
        for batch in batches:
            for item in batch.items:
                if isinstance(item, Rollback):
                    self.rollbacks.append(item)
                    self.events = [event for event in self.events if event.at.block_number <= item.to_block]
                else:
                    self.events.append(item)
            self.cursor = batch.cursor
        return batches

    @property
    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.events]


def drip(avenue: AvenueChain, index: int) -> None:
    avenue.sender(0).send(transactions.drip(avenue.deployment, avenue.accounts[index].address))


@pytest.fixture
def narrow(avenue: AvenueChain) -> Iterator[tuple[FlakyRpc, ChainClient]]:
    """A client behind a proxy that can refuse wide ranges."""
    with flaky_rpc(avenue.url) as rpc:
        w3 = connect(rpc.url)
        yield rpc, ChainClient(w3, avenue.deployment)
        w3.provider.close()  # type: ignore[attr-defined]


def test_every_event_comes_once_in_order(avenue: AvenueChain) -> None:
    ledger = Ledger(EventFollower(avenue.client, chunk_blocks=2))
    for index in (3, 4, 5):
        drip(avenue, index)
        ledger.catch_up()
    assert ledger.names == ["MarketBound", "Dripped", "Dripped", "Dripped"]
    ledger.catch_up()
    assert len(ledger.events) == 4 and not ledger.rollbacks


def test_endpoint_that_lags_behind_the_one_before_hides_no_event(avenue: AvenueChain) -> None:
    """The first endpoint shows the newest block and dies; the next has not got that block, nor the logs in it."""
    with flaky_rpc(avenue.url) as first, flaky_rpc(avenue.url) as second:
        w3 = connect([first.url, second.url])
        ledger = Ledger(EventFollower(ChainClient(w3, avenue.deployment)))
        ledger.catch_up()
        drip(avenue, 3)
        first.fail("eth_getLogs", Fault.SERVER_ERROR)
        second.stale_blocks = 1
        ledger.catch_up()
        second.heal()
        ledger.catch_up()
        w3.provider.close()  # type: ignore[attr-defined]
    assert ledger.names == ["MarketBound", "Dripped"]


def test_nothing_new_at_the_head_gives_an_empty_batch(avenue: AvenueChain) -> None:
    ledger = Ledger(EventFollower(avenue.client))
    ledger.catch_up()
    (batch,) = ledger.catch_up()
    assert batch.at_head and batch.items == () and batch.cursor == ledger.cursor


def test_reorganisation_takes_back_what_did_not_happen(avenue: AvenueChain) -> None:
    """Three blocks are replaced by three others: one with another event, two empty."""
    ledger = Ledger(EventFollower(avenue.client))
    drip(avenue, 3)
    ledger.catch_up()
    before = ledger.cursor.block_number
    for index in (4, 5, 6):
        drip(avenue, index)
        ledger.catch_up()
    instead = transactions.drip(avenue.deployment, avenue.accounts[7].address)
    replacement = {"from": avenue.accounts[9].address, "to": instead.to, "data": "0x" + instead.data.hex()}
    replacement |= {"gas": hex(200_000), "chainId": hex(31337), "nonce": hex(0), "type": "0x2"}
    replacement |= {"maxFeePerGas": hex(10**11), "maxPriorityFeePerGas": hex(10**9), "value": "0x0"}
    avenue.anvil.rpc("anvil_reorg", 3, [[replacement, 0]])
    avenue.anvil.rpc("anvil_dropAllTransactions")
    ledger.catch_up()
    assert ledger.rollbacks == [Rollback(before)]
    recipients = [event.to for event in ledger.events if isinstance(event, Dripped)]
    assert recipients == [avenue.accounts[3].address, avenue.accounts[7].address]
    # What is kept is what somebody who starts only now sees.
    fresh = Ledger(EventFollower(avenue.client))
    fresh.catch_up()
    assert fresh.events == ledger.events


@pytest.mark.parametrize("seed", [1, 2])
def test_follower_always_ends_with_what_a_newcomer_sees(avenue: AvenueChain, seed: int) -> None:
    """Drips, empty blocks, reorganisations and polls of any chunk size in any order."""
    random = Random(seed)
    floor = avenue.client.latest_block().number
    ledger = Ledger(EventFollower(avenue.client, chunk_blocks=random.randint(1, 5)))
    for _ in range(40):
        move = random.choice(["drip", "drip", "mine", "reorg", "poll", "poll"])
        if move == "drip":
            avenue.anvil.set_automine(False)
            call = transactions.drip(avenue.deployment, to_checksum_address(random.randbytes(20)))
            request = {"from": avenue.accounts[9].address, "to": call.to, "data": "0x" + call.data.hex()}
            avenue.anvil.rpc("eth_sendTransaction", {**request, "gas": hex(200_000)})
            avenue.anvil.mine()
        elif move == "mine":
            avenue.anvil.mine(random.randint(1, 3))
        elif move == "reorg":
            depth = min(random.randint(1, 4), avenue.client.latest_block().number - floor)
            if depth > 0:
                avenue.anvil.rpc("anvil_reorg", depth, [])
                avenue.anvil.rpc("anvil_dropAllTransactions")
        else:
            ledger.catch_up()
    ledger.catch_up()
    newcomer = Ledger(EventFollower(avenue.client))
    newcomer.catch_up()
    assert ledger.events == newcomer.events
    assert "Dripped" in ledger.names, "the test must have had something to follow"


def test_reorganisation_between_any_two_requests_of_a_poll_is_noticed(
    avenue: AvenueChain, narrow: tuple[FlakyRpc, ChainClient]
) -> None:
    """The chain changes under a poll, before its first request, its second, and so on.

    Each time two drips are undone: one that the poll would read, and one that was read before.
    """
    rpc, client = narrow
    ledger = Ledger(EventFollower(client))
    drip(avenue, 3)
    ledger.catch_up()
    asked = len(rpc.asked)
    drip(avenue, 4)
    ledger.catch_up()
    requests = len(rpc.asked) - asked
    assert requests >= 4, "a poll reads the head, a hash or more, and the logs"

    def undo_two_blocks() -> None:
        avenue.anvil.rpc("anvil_reorg", 2, [])
        avenue.anvil.rpc("anvil_dropAllTransactions")

    def unlocked_drip(name: int) -> None:
        call = transactions.drip(avenue.deployment, to_checksum_address(bytes([name]) * 20))
        request = {"from": avenue.accounts[9].address, "to": call.to, "data": "0x" + call.data.hex()}
        height = avenue.client.latest_block().number
        avenue.anvil.rpc("eth_sendTransaction", {**request, "gas": hex(200_000)})
        wait_until(lambda: avenue.client.latest_block().number == height + 1)

    for position in range(requests + 1):
        unlocked_drip(2 * position + 1)
        ledger.catch_up()
        unlocked_drip(2 * position + 2)
        rpc.interrupt(position, undo_two_blocks)
        ledger.catch_up()
        ledger.catch_up()
        newcomer = Ledger(EventFollower(avenue.client))
        newcomer.catch_up()
        assert ledger.events == newcomer.events, f"undone before request {position}"
        assert ledger.names.count("Dripped") == 2


def test_reorganisation_deeper_than_memory_starts_over(avenue: AvenueChain) -> None:
    ledger = Ledger(EventFollower(avenue.client))
    drip(avenue, 3)
    ledger.catch_up()
    forgetful = Cursor(ledger.cursor.block_number, ledger.cursor.recent[-1:])
    avenue.anvil.rpc("anvil_reorg", 1, [])
    ledger.cursor = forgetful
    ledger.catch_up()
    assert ledger.rollbacks == [Rollback(avenue.deployment.block - 1)]
    assert ledger.names == ["MarketBound"]


def test_reorganised_block_without_events_is_noticed_too(avenue: AvenueChain) -> None:
    ledger = Ledger(EventFollower(avenue.client))
    avenue.anvil.mine()
    ledger.catch_up()
    height = ledger.cursor.block_number
    avenue.anvil.mine()
    ledger.catch_up()
    avenue.anvil.rpc("anvil_reorg", 1, [])
    ledger.catch_up()
    assert ledger.rollbacks == [Rollback(height)] and ledger.names == ["MarketBound"]


def test_unconfirmed_blocks_are_left_for_later(avenue: AvenueChain) -> None:
    ledger = Ledger(EventFollower(avenue.client, confirmations=3))
    drip(avenue, 3)
    ledger.catch_up()
    assert "Dripped" not in ledger.names
    avenue.anvil.mine(2)
    ledger.catch_up()
    assert "Dripped" not in ledger.names
    avenue.anvil.mine()
    ledger.catch_up()
    assert "Dripped" in ledger.names


def test_refused_range_is_halved_until_it_fits(avenue: AvenueChain, narrow: tuple[FlakyRpc, ChainClient]) -> None:
    rpc, client = narrow
    avenue.anvil.mine(40)
    drip(avenue, 3)
    rpc.max_range_blocks = 7
    ledger = Ledger(EventFollower(client))
    ledger.catch_up()
    assert ledger.names == ["MarketBound", "Dripped"]
    rpc.heal()
    drip(avenue, 4)
    ledger.catch_up()
    assert ledger.names == ["MarketBound", "Dripped", "Dripped"]


def test_endpoint_without_logs_is_named(avenue: AvenueChain, narrow: tuple[FlakyRpc, ChainClient]) -> None:
    rpc, client = narrow
    rpc.fail("eth_getLogs", Fault.REFUSE_RANGE)
    follower = EventFollower(client)
    with pytest.raises(UnreachableError, match="refuses the logs of block") as caught:
        follower.poll(follower.start())
    assert caught.value.code == "N-04"


def test_endpoint_behind_the_cursor_is_not_believed_even_after_a_restart(avenue: AvenueChain) -> None:
    """Nothing but the cursor remembers how far the chain was."""
    head = avenue.client.latest_block().number
    far = Cursor(head + 10, (BlockRef(head + 10, h("far")),))
    with pytest.raises(LaggingRpcError, match=f"at block {head}, block {head + 10} was read before"):
        EventFollower(avenue.client).poll(far)
    near = Cursor(head + 2, (BlockRef(head + 2, h("near")),))
    assert EventFollower(avenue.client).poll(near).items == ()


def test_restart_goes_on_where_it_stopped(avenue: AvenueChain, tmp_path: Path) -> None:
    path = tmp_path / "cursors.sqlite"
    drip(avenue, 3)
    first = Ledger(EventFollower(avenue.client))
    first.catch_up()
    store = CursorStore(path)
    store.save("node", first.cursor)
    store.close()

    drip(avenue, 4)
    store = CursorStore(path)
    second = Ledger(EventFollower(avenue.client))
    assert store.load("somebody else") is None
    loaded = store.load("node")
    store.close()
    assert loaded == first.cursor
    second.cursor = loaded
    second.catch_up()
    assert [event.to for event in second.events if isinstance(event, Dripped)] == [avenue.accounts[4].address]


def test_only_the_kinds_asked_for_come(avenue: AvenueChain) -> None:
    register_node(avenue, avenue.accounts[2], avenue.accounts[3], stake=0)
    spec = post_task(avenue, avenue.accounts[1])
    drip(avenue, 5)
    ledger = Ledger(EventFollower(avenue.client, kinds=[TaskPosted, NodeRegistered]))
    ledger.catch_up()
    assert ledger.names == ["NodeRegistered", "TaskPosted"]
    registered, posted = ledger.events
    assert isinstance(registered, NodeRegistered) and registered.encryption_key == h("key")
    assert isinstance(posted, TaskPosted) and posted.spec == spec


def test_logs_of_other_contracts_are_not_ours(avenue: AvenueChain) -> None:
    """Somebody deploys a second Avenue on the same chain: same topics, other addresses."""
    from protocol.deploy import deploy
    from protocol.journal import Journal
    from protocol.sender import Sender

    ledger = Ledger(EventFollower(avenue.client))
    with Journal(avenue.home / "second.sqlite") as journal:
        sender = Sender(ChainClient(avenue.client.w3), avenue.accounts[8], journal)
        second = deploy(sender.client, sender, avenue.home / "second")
    ledger.catch_up()
    (bound,) = ledger.events
    assert isinstance(bound, MarketBound) and bound.market == avenue.deployment.market != second.market


def test_cursor_survives_json() -> None:
    cursor = Cursor(12, (BlockRef(11, h("eleven")), BlockRef(12, h("twelve"))))
    assert Cursor.from_json(cursor.to_json()) == cursor
