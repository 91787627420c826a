"""protocol.sender on a real chain: each thing wanted happens once, whatever breaks in between."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from eth_account import Account
from eth_typing import ChecksumAddress

from protocol import transactions
from protocol.chain import ChainClient
from protocol.errors import ConfigError, FundsError, StateError, TransactionError, UnreachableError, WaitTimeoutError
from protocol.fees import GWEI, SendPolicy
from protocol.journal import Intent, IntentState, Journal
from protocol.reverts import RevertedError
from protocol.rpc import connect
from protocol.sender import Sender
from protocol.transactions import Call
from protocol.types import Wei
from tests.support.anvil import AvenueChain
from tests.support.flaky_rpc import Fault, FlakyRpc, flaky_rpc
from tests.support.waiting import wait_until

AMOUNT = Wei(7)
# Short enough for a test, long enough for a busy machine.
QUICK = SendPolicy(timeout_s=20, rebroadcast_after_s=0.05, replaced_after_s=0.2)


class Killed(BaseException):
    """Stands for `kill -9`: no handler of the code under test catches it."""


def payment(avenue: AvenueChain) -> Call:
    """Seven wei of AVN from account 0 to account 5."""
    return transactions.transfer(avenue.deployment, avenue.accounts[5].address, AMOUNT)


def received(avenue: AvenueChain) -> int:
    return avenue.client.token_balance(avenue.accounts[5].address)


def nonce(avenue: AvenueChain) -> int:
    return avenue.client.w3.eth.get_transaction_count(avenue.accounts[0].address)


def foreign_transaction(avenue: AvenueChain, account: int, at_nonce: int, to: str, data: bytes = b"") -> bytes:
    """Signed by hand, as another program would, at a price that comes first in any block."""
    signed = avenue.accounts[account].sign_transaction(
        {
            "type": 2,
            "chainId": 31337,
            "nonce": at_nonce,
            "to": cast(ChecksumAddress, to),
            "data": data,
            "value": 0,
            "gas": 200_000,
            "maxFeePerGas": 100 * GWEI,
            "maxPriorityFeePerGas": 50 * GWEI,
        }
    )
    return bytes(signed.raw_transaction)


@pytest.fixture
def rpc(avenue: AvenueChain) -> Iterator[FlakyRpc]:
    with flaky_rpc(avenue.url) as proxy:
        yield proxy


@pytest.fixture
def through(avenue: AvenueChain, rpc: FlakyRpc) -> Iterator[Callable[[SendPolicy], Sender]]:
    """Makes senders of account 0 whose chain is behind the misbehaving proxy."""
    w3 = connect(rpc.url, timeout_s=2)
    client = ChainClient(w3, avenue.deployment)
    with Journal(avenue.home / "journal.sqlite") as journal:
        yield lambda policy: Sender(client, avenue.accounts[0], journal, policy)
    w3.provider.close()  # type: ignore[attr-defined]


def only_intent(sender: Sender) -> Intent:
    rows = sender.journal.unfinished(sender.client.chain_key, sender.address)
    assert len(rows) == 1
    return rows[0]


# --- sending ---


def test_send_reports_what_it_cost(avenue: AvenueChain) -> None:
    sender = avenue.sender(0)
    before = avenue.client.gas_balance(sender.address)
    outcome = sender.send(payment(avenue))
    assert outcome.status == 1 and received(avenue) == AMOUNT
    assert before - avenue.client.gas_balance(sender.address) == outcome.cost_wei
    assert outcome.block == avenue.client.latest_block().number


def test_call_that_would_revert_is_not_sent(avenue: AvenueChain) -> None:
    sender = avenue.sender(6)
    with pytest.raises(RevertedError, match=r"ERC20InsufficientBalance\(sender=.*balance=0, needed=7\)") as caught:
        sender.send(payment(avenue))
    assert isinstance(caught.value, FundsError) and caught.value.exit_code == 6 and caught.value.hint
    assert avenue.client.w3.eth.get_transaction_count(sender.address) == 0


def test_same_key_sends_once(avenue: AvenueChain) -> None:
    sender = avenue.sender(0)
    assert sender.send(payment(avenue), "pay") == sender.send(payment(avenue), "pay")
    assert received(avenue) == AMOUNT


def test_same_key_for_another_call_is_refused(avenue: AvenueChain) -> None:
    sender = avenue.sender(0)
    sender.send(payment(avenue), "pay")
    with pytest.raises(StateError) as caught:
        sender.send(transactions.transfer(avenue.deployment, avenue.accounts[4].address, AMOUNT), "pay")
    assert caught.value.code == "S-21"


def test_missing_gas_money_names_both_numbers(avenue: AvenueChain) -> None:
    poor = Account.create()
    avenue.sender(0).send(transactions.transfer(avenue.deployment, poor.address, AMOUNT))
    avenue.sender(0).send(transactions.transfer_gas_money(poor.address, Wei(1000)))
    with pytest.raises(FundsError, match=r"has 1000 wei of gas money and needs \d{10,} wei") as caught:
        avenue.sender(poor).send(payment(avenue))
    assert caught.value.code == "F-01" and "send it at least" in caught.value.hint
    assert received(avenue) == 0


def test_revert_on_chain_is_decoded(avenue: AvenueChain) -> None:
    """Somebody pays more to be first in the block; what passed the simulation then fails."""
    sender = avenue.sender(0, QUICK)
    avenue.anvil.set_automine(False)
    drip = transactions.drip(avenue.deployment, avenue.accounts[5].address)
    ours = sender.submit(drip)
    avenue.client.w3.eth.send_raw_transaction(foreign_transaction(avenue, 1, 0, drip.to, drip.data))
    avenue.anvil.mine()
    with pytest.raises(RevertedError, match=r"block \d+\): reverted on chain") as caught:
        sender.wait(ours)
    assert caught.value.code == "T-15" and caught.value.hint
    assert sender.journal.get(ours.id).state is IntentState.FAILED


def test_revert_whose_reason_lies_in_an_earlier_block_names_it(avenue: AvenueChain) -> None:
    sender = avenue.sender(0, QUICK)
    avenue.anvil.set_automine(False)
    drip = transactions.drip(avenue.deployment, avenue.accounts[5].address)
    ours = sender.submit(drip)
    raw = ours.attempts[0].raw
    avenue.anvil.rpc("anvil_dropTransaction", "0x" + ours.attempts[0].hash.hex())
    avenue.client.w3.eth.send_raw_transaction(foreign_transaction(avenue, 1, 0, drip.to, drip.data))
    avenue.anvil.mine()
    avenue.client.w3.eth.send_raw_transaction(raw)
    avenue.anvil.mine()
    with pytest.raises(RevertedError, match=r"block \d+\): CoolingDown\(to=") as caught:
        sender.wait(ours)
    assert caught.value.error_name == "CoolingDown"


def test_refused_price_above_the_cap_sends_nothing(avenue: AvenueChain) -> None:
    with pytest.raises(TransactionError) as caught:
        avenue.sender(0, SendPolicy(fee_cap_wei=1)).send(payment(avenue))
    assert caught.value.code == "T-20" and "cap" in caught.value.hint
    assert received(avenue) == 0


# --- the connection breaks ---


def test_answer_lost_after_the_send_does_not_send_twice(
    avenue: AvenueChain, rpc: FlakyRpc, through: Callable[[SendPolicy], Sender]
) -> None:
    rpc.fail("eth_sendRawTransaction", Fault.SWALLOW_ANSWER, times=1)
    before = nonce(avenue)
    through(QUICK).send(payment(avenue))
    assert received(avenue) == AMOUNT and nonce(avenue) == before + 1
    assert rpc.asked.count("eth_sendRawTransaction") == 1


def test_send_that_never_arrived_is_sent_again_with_the_same_bytes(
    avenue: AvenueChain, rpc: FlakyRpc, through: Callable[[SendPolicy], Sender]
) -> None:
    rpc.fail("eth_sendRawTransaction", Fault.CLOSE, times=1)
    sender = through(QUICK)
    intent = sender.submit(payment(avenue))
    assert intent.state is IntentState.SIGNED
    assert sender.wait(intent).hash == intent.attempts[0].hash
    assert received(avenue) == AMOUNT and len(sender.journal.get(intent.id).attempts) == 1


def test_endpoint_dead_between_send_and_receipt_is_settled_after_a_restart(
    avenue: AvenueChain, rpc: FlakyRpc, through: Callable[[SendPolicy], Sender]
) -> None:
    before = nonce(avenue)
    sender = through(SendPolicy(timeout_s=0))
    rpc.fail("eth_getTransactionReceipt", Fault.CLOSE)
    with pytest.raises(UnreachableError):
        sender.send(payment(avenue), "pay")
    rpc.heal()
    restarted = through(QUICK)
    (settled,) = restarted.recover()
    assert settled.state is IntentState.MINED
    restarted.send(payment(avenue), "pay")
    assert received(avenue) == AMOUNT and nonce(avenue) == before + 1


def test_receipt_that_is_late_does_not_make_it_replaced(
    avenue: AvenueChain, rpc: FlakyRpc, through: Callable[[SendPolicy], Sender]
) -> None:
    """One server behind the endpoint counts the nonce as used, the other has not got the block with the receipt."""
    rpc.odd = (200, b'{"jsonrpc":"2.0","id":1,"result":null}')
    rpc.fail("eth_getTransactionReceipt", Fault.ODD)
    before = nonce(avenue)
    with pytest.raises(WaitTimeoutError):
        through(SendPolicy(timeout_s=0.6, replaced_after_s=0.05)).send(payment(avenue), "pay")
    restarted = through(QUICK)
    (open_,) = restarted.recover()
    assert open_.state is IntentState.SENT
    rpc.heal()
    restarted.send(payment(avenue), "pay")
    assert received(avenue) == AMOUNT and nonce(avenue) == before + 1


# --- kill -9, phase by phase ---


def test_killed_before_signing_leaves_nothing_behind(avenue: AvenueChain, monkeypatch: pytest.MonkeyPatch) -> None:
    sender = avenue.sender(0, QUICK)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Sender, "_sign", _die)
        sender.submit(payment(avenue), "pay")
    restarted = avenue.sender(0, QUICK)
    (abandoned,) = restarted.recover()
    assert abandoned.state is IntentState.FAILED and received(avenue) == 0
    restarted.send(payment(avenue), "pay")
    assert received(avenue) == AMOUNT


def test_interrupted_before_signing_can_be_tried_again_at_once(
    avenue: AvenueChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl+C, caught somewhere above: the same sender goes on."""
    sender = avenue.sender(0, QUICK)
    sender.recover()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Sender, "_sign", _die)
        sender.submit(payment(avenue), "pay")
    sender.send(payment(avenue), "pay")
    assert received(avenue) == AMOUNT


def test_full_disk_sends_nothing(avenue: AvenueChain) -> None:
    sender = avenue.sender(0, QUICK)
    sender.recover()
    pages = sender.journal._db.execute("PRAGMA page_count").fetchone()[0]
    sender.journal._db.execute(f"PRAGMA max_page_count = {pages}")
    before = nonce(avenue)
    big = transactions.call(
        avenue.deployment.registry, "NodeRegistry", "register", avenue.accounts[1].address, bytes(32), "x" * 9000,
        bytes(32), 0, b"", description="too big for the disk",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="full") as caught, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sender, "simulate", lambda *_: 100_000)
        sender.submit(big)
    assert caught.value.code == "C-41" and caught.value.hint
    assert nonce(avenue) == before


def test_killed_between_journal_and_broadcast_sends_the_same_bytes(
    avenue: AvenueChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = avenue.sender(0, QUICK)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Sender, "_broadcast_first", _die)
        sender.submit(payment(avenue), "pay")
    signed = only_intent(sender)
    assert signed.state is IntentState.SIGNED and received(avenue) == 0
    restarted = avenue.sender(0, QUICK)
    assert restarted.send(payment(avenue), "pay").hash == signed.attempts[0].hash
    assert received(avenue) == AMOUNT


KILLED_BEFORE_BROADCAST = """
import os, signal, sys
from pathlib import Path
from eth_account import Account
from protocol.chain import ChainClient
from protocol.deployments import load
from protocol.journal import Journal
from protocol.rpc import connect
from protocol.sender import Sender
from protocol.transactions import transfer
url, home, key, to = sys.argv[1:]
deployment = load(31337, Path(home))
client = ChainClient(connect(url), deployment)
Sender._broadcast_first = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
sender = Sender(client, Account.from_key(key), Journal(Path(home) / "journal.sqlite"))
sender.submit(transfer(deployment, to, 7), "pay")
"""


def test_process_killed_for_real_leaves_a_journal_that_another_carries_out(avenue: AvenueChain) -> None:
    arguments = [avenue.url, str(avenue.home), avenue.anvil.keys[0], avenue.accounts[5].address]
    died = subprocess.run([sys.executable, "-c", KILLED_BEFORE_BROADCAST, *arguments], check=False)
    assert died.returncode == -signal.SIGKILL and received(avenue) == 0
    restarted = avenue.sender(0, QUICK)
    signed = only_intent(restarted)
    assert restarted.send(payment(avenue), "pay").hash == signed.attempts[0].hash
    assert received(avenue) == AMOUNT


def test_killed_after_broadcast_waits_for_the_same_transaction(avenue: AvenueChain) -> None:
    avenue.anvil.set_automine(False)
    sent = avenue.sender(0, QUICK).submit(payment(avenue), "pay")
    restarted = avenue.sender(0, QUICK)
    (open_,) = restarted.recover()
    assert open_.state is IntentState.SENT
    avenue.anvil.mine()
    assert restarted.send(payment(avenue), "pay").hash == sent.attempts[0].hash
    assert received(avenue) == AMOUNT


def test_killed_after_mining_reads_the_receipt(avenue: AvenueChain) -> None:
    sent = avenue.sender(0, QUICK).submit(payment(avenue), "pay")
    assert sent.state is IntentState.SENT
    wait_until(lambda: received(avenue) == AMOUNT)
    (settled,) = avenue.sender(0, QUICK).recover()
    assert settled.state is IntentState.MINED and settled.mined_hash == sent.attempts[0].hash
    assert received(avenue) == AMOUNT


def _die(*_: object) -> None:
    raise Killed


# --- stuck, dropped, replaced, reorganised ---


def test_stuck_transaction_is_replaced_with_an_eighth_more(avenue: AvenueChain) -> None:
    avenue.anvil.set_automine(False)
    sender = avenue.sender(0, SendPolicy(bump_after_s=0.2, timeout_s=20))
    before = nonce(avenue)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sender.send, payment(avenue))
        wait_until(
            lambda: any(
                len(i.attempts) >= 2 for i in sender.journal.unfinished(avenue.client.chain_key, sender.address)
            )
        )
        first, second = only_intent(sender).attempts[:2]
        avenue.anvil.mine()
        outcome = running.result()
    assert second.nonce == first.nonce
    assert second.max_fee_wei * 8 >= first.max_fee_wei * 9
    assert second.priority_fee_wei * 8 >= first.priority_fee_wei * 9
    assert outcome.hash != first.hash
    assert received(avenue) == AMOUNT and nonce(avenue) == before + 1


def test_stuck_transaction_is_replaced_though_each_wait_is_short(avenue: AvenueChain) -> None:
    """Agents wait 30 s at a time and look again; the fee is due for a rise only after 45 s."""
    avenue.anvil.set_automine(False)
    sender = avenue.sender(0, SendPolicy(bump_after_s=0.3, timeout_s=0.1))
    for _ in range(5):
        with pytest.raises(WaitTimeoutError):
            sender.send(payment(avenue), "pay")
    assert len(only_intent(sender).attempts) >= 2
    avenue.anvil.mine()
    sender.send(payment(avenue), "pay")
    assert received(avenue) == AMOUNT


def test_stuck_transaction_ahead_of_ours_is_replaced_too(avenue: AvenueChain) -> None:
    avenue.anvil.set_automine(False)
    sender = avenue.sender(0, SendPolicy(bump_after_s=0.2, timeout_s=20))
    ahead = sender.submit(payment(avenue))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sender.send, payment(avenue))
        wait_until(lambda: len(sender.journal.get(ahead.id).attempts) >= 2)
        avenue.anvil.mine()
        running.result()
    assert received(avenue) == 2 * AMOUNT


def test_outcome_waits_for_its_confirmations(avenue: AvenueChain) -> None:
    sender = avenue.sender(0, SendPolicy(confirmations=3, timeout_s=20))
    intent = sender.submit(payment(avenue))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sender.wait, intent)
        wait_until(lambda: received(avenue) == AMOUNT)
        avenue.anvil.mine()
        assert sender.journal.get(intent.id).state is IntentState.SENT
        avenue.anvil.mine()
        outcome = running.result()
    assert avenue.client.latest_block().number == outcome.block + 2


def test_fee_never_passes_the_cap(avenue: AvenueChain) -> None:
    avenue.anvil.set_automine(False)
    cap_wei = 4 * GWEI
    sender = avenue.sender(0, SendPolicy(fee_cap_wei=cap_wei, bump_after_s=0.05, timeout_s=20))
    with pytest.raises(TransactionError) as caught:
        sender.send(payment(avenue), "pay")
    assert caught.value.code == "T-21" and "max_fee_gwei" in caught.value.hint
    open_ = only_intent(sender)
    assert all(attempt.max_fee_wei <= cap_wei for attempt in open_.attempts)
    avenue.anvil.mine()
    assert sender.send(payment(avenue), "pay").hash in {attempt.hash for attempt in open_.attempts}
    assert received(avenue) == AMOUNT


def test_dropped_transaction_is_broadcast_again(avenue: AvenueChain) -> None:
    avenue.anvil.set_automine(False)
    sender = avenue.sender(0, QUICK)
    intent = sender.submit(payment(avenue))
    avenue.anvil.rpc("anvil_dropTransaction", "0x" + intent.attempts[0].hash.hex())
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(sender.wait, intent)
        wait_until(lambda: avenue.anvil.rpc("txpool_status")["pending"] == "0x1")
        avenue.anvil.mine()
        assert running.result().hash == intent.attempts[0].hash


def test_nonce_taken_by_another_program_is_noticed(avenue: AvenueChain) -> None:
    avenue.anvil.set_automine(False)
    sender = avenue.sender(0, QUICK)
    intent = sender.submit(payment(avenue), "pay")
    foreign = foreign_transaction(avenue, 0, intent.nonce, avenue.accounts[3].address)
    avenue.client.w3.eth.send_raw_transaction(foreign)
    avenue.anvil.mine()
    with pytest.raises(TransactionError) as caught:
        sender.wait(intent)
    assert caught.value.code == "T-22" and sender.journal.get(intent.id).state is IntentState.REPLACED
    avenue.anvil.set_automine(True)
    sender.send(payment(avenue), "pay")
    assert received(avenue) == AMOUNT


def test_transaction_lost_in_a_reorganisation_is_sent_again(avenue: AvenueChain) -> None:
    outcome = avenue.sender(0, QUICK).send(payment(avenue), "pay")
    avenue.anvil.rpc("anvil_reorg", 1, [])
    avenue.anvil.rpc("anvil_dropAllTransactions")
    assert received(avenue) == 0
    restarted = avenue.sender(0, QUICK)
    restarted.recover()
    assert restarted.send(payment(avenue), "pay").hash == outcome.hash
    assert received(avenue) == AMOUNT


def test_wait_ends_when_asked_to_stop(avenue: AvenueChain) -> None:
    avenue.anvil.set_automine(False)
    stop = threading.Event()
    with Journal(avenue.home / "journal.sqlite") as journal:
        sender = Sender(avenue.client, avenue.accounts[0], journal, QUICK, stop=stop)
        intent = sender.submit(payment(avenue))
        stop.set()
        with pytest.raises(WaitTimeoutError) as caught:
            sender.wait(intent)
    assert caught.value.code == "W-02"


# --- several at once ---


def test_threads_and_processes_of_one_key_do_not_race(avenue: AvenueChain) -> None:
    """Two senders, each with its own connection to the journal, as two processes have."""
    senders = [avenue.sender(0, QUICK), avenue.sender(0, QUICK)]
    before = nonce(avenue)
    with ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(lambda i: senders[i % 2].send(payment(avenue)), range(12)))
    assert len({outcome.hash for outcome in outcomes}) == 12
    assert received(avenue) == 12 * AMOUNT and nonce(avenue) == before + 12


def test_one_key_of_two_racing_senders_is_sent_once(avenue: AvenueChain) -> None:
    senders = [avenue.sender(0, QUICK), avenue.sender(0, QUICK)]
    with ThreadPoolExecutor(4) as pool:
        hashes = set(pool.map(lambda i: senders[i % 2].send(payment(avenue), "pay").hash, range(4)))
    assert len(hashes) == 1 and received(avenue) == AMOUNT


def test_journal_of_an_earlier_local_chain_is_no_hindrance(avenue: AvenueChain, tmp_path: Path) -> None:
    from tests.support.anvil import avenue_chain

    for _ in range(3):
        avenue.sender(0).send(payment(avenue))
    # Genesis times are in whole seconds, and this machine may be fast: make sure that the two chains differ.
    earlier = ("--timestamp", str(int(time.time()) - 3600))
    with avenue_chain(tmp_path / "second", arguments=earlier) as second, Journal(avenue.home / "journal.sqlite") as old:
        Sender(second.client, second.accounts[0], old, QUICK).send(payment(second))
        assert received(second) == AMOUNT
