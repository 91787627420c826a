"""Sends transactions so that each happens once, whatever dies in between.

    check by simulation -> lock the account -> journal intent and signed bytes -> broadcast -> read the outcome

- A call that would revert is never sent: it raises the decoded error.
- Signed bytes are on disk before they are broadcast. After a crash `recover` looks for the receipt of every attempt,
  and broadcasts the very same bytes again if there is none; an intent is never signed again with another nonce.
- A broken connection during a broadcast says nothing about the transaction; the chain is read until it does.
- A stuck transaction is replaced with higher fees (same nonce), up to a hard cap.
- `key` names an intent ("claim:TASK:7:0"). A second `send` with the key of an unfinished or mined intent gives the
  outcome of the first and sends nothing.

The account's lock is held from choosing a nonce until the broadcast, so processes and threads that share a journal
directory and a key do not race. That an agent runs only once per identity is `protocol.locks.sole_agent`.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from web3.exceptions import MethodUnavailable, TransactionNotFound, Web3Exception, Web3RPCError
from web3.types import TxParams, TxReceipt

from protocol.chain import ChainClient
from protocol.errors import AvenueError, FundsError, StateError, TransactionError, UnreachableError, WaitTimeoutError
from protocol.fees import GWEI, Fees, SendPolicy, bumped_fees, first_fees
from protocol.journal import UNFINISHED, Attempt, Intent, IntentState, Journal
from protocol.locks import hold, identity
from protocol.reverts import RevertedError, decode_revert
from protocol.transactions import Call

_LOCK_TIMEOUT_S = 60.0
_FIRST_POLL_S = 0.03
_LAST_POLL_S = 1.0
# Mined transactions this deep are looked at again by `recover`, in case a reorganisation took them out.
_REORG_DEPTH_BLOCKS = 64
_NO_FUNDS = ("insufficient funds", "insufficient balance")
# Refusals that leave the question open: an earlier attempt, or somebody else's transaction, holds the nonce.
_OPEN_REFUSALS = ("nonce too low", "underpriced", "already known", "already imported", "less than block base fee")
_DEFAULT_POLICY = SendPolicy()


@dataclass(frozen=True, slots=True)
class RawLog:
    """A log of a receipt; `protocol.events.decode_log` reads it."""

    address: ChecksumAddress
    topics: tuple[bytes, ...]
    data: bytes
    index: int


@dataclass(frozen=True, slots=True)
class TxOutcome:
    """What became of a transaction. `status` is 1: a reverted one raises. Gas price in wei per gas."""

    hash: bytes
    block: int
    block_hash: bytes
    gas_used: int
    status: int
    effective_gas_price_wei: int
    logs: tuple[RawLog, ...]

    @property
    def cost_wei(self) -> int:
        """Gas money spent, wei."""
        return self.gas_used * self.effective_gas_price_wei


class Sender:
    """Sends for one account. Safe to use from several threads.

    Setting `stop` ends every wait with `WaitTimeoutError` W-02; the transaction stays in the journal.
    """

    def __init__(
        self,
        client: ChainClient,
        account: LocalAccount,
        journal: Journal,
        policy: SendPolicy = _DEFAULT_POLICY,
        *,
        stop: threading.Event | None = None,
    ) -> None:
        self.client = client
        self.account = account
        self.journal = journal
        self.policy = policy
        self._stop = stop or threading.Event()
        self._recovered = False

    @property
    def address(self) -> ChecksumAddress:
        return self.account.address

    # --- sending ---

    def send(self, call: Call, key: str | None = None) -> TxOutcome:
        """Sends `call` and waits for its outcome.

        Raises:
            RevertedError: it would revert (nothing was sent), or it did on chain.
            FundsError: F-01, the account cannot pay for the gas.
            TransactionError: T-14 refused by the endpoint, T-20 and T-21 fee cap, T-22 nonce taken by another.
            StateError: S-20 the account is locked, S-21 the key stands for another call.
            UnreachableError, WaitTimeoutError: outcome unknown yet; `send` again with the same key, or `recover`.
        """
        return self.wait(self.submit(call, key))

    def submit(self, call: Call, key: str | None = None) -> Intent:
        """As `send`, without waiting: returns once the transaction is journalled and was broadcast."""
        if not self._recovered:
            self.recover()
        known = self._known(call, key)
        if known is not None:
            return known
        gas = self.simulate(call)
        with self._lock():
            # Somebody may have been faster while we simulated.
            known = self._known(call, key)
            if known is not None:
                return known
            intent = self.journal.add(self.client.chain_key, self.address, call, key)
            try:
                intent = self._sign_first(intent, gas)
            except (AvenueError, Web3Exception):
                self.journal.set_state(intent, IntentState.FAILED)
                raise
            return self._broadcast_first(intent)

    def simulate(self, call: Call) -> int:
        """Gas limit for `call`: estimate and margin. Raises `RevertedError` or `FundsError` if it can't succeed now."""
        try:
            # On the block to come, in which it would be mined: at the latest one, a reveal right after its commit
            # would seem to be in the commit's own block.
            estimate = int(self.client.w3.eth.estimate_gas(self._params(call.to, call.data, call.value), "pending"))
        except Web3Exception as error:
            if any(phrase in str(error).lower() for phrase in _NO_FUNDS):
                raise self._no_funds(call.value, 0) from error
            raise decode_revert(error, call.description) from error
        return estimate + estimate * self.policy.gas_margin_percent // 100

    def recover(self) -> tuple[Intent, ...]:
        """Settles what an earlier run left open, by reading the chain; waits for nothing.

        Gives the intents it looked at, as they are now: mined and failed ones are over, `sent` ones were broadcast
        again, `replaced` ones can never happen.
        """
        chain, settled = self.client.chain_key, []
        with self._lock():
            for intent in self.journal.never_signed(chain, self.address):
                settled.append(self.journal.set_state(intent, IntentState.FAILED))
            self._reopen_reorganised()
            for intent in self.journal.unfinished(chain, self.address):
                receipt = self._receipt(intent)
                if receipt is not None:
                    settled.append(self._record(intent, receipt))
                elif self._latest_nonce() > intent.nonce:
                    settled.append(self._settle_used_nonce(intent))
                else:
                    settled.append(self._rebroadcast(intent))
        self._recovered = True
        return tuple(settled)

    def wait(self, intent: Intent) -> TxOutcome:
        """Waits for the outcome of a submitted intent, replacing fees on the way. Raises as `send`."""
        return _Wait(self, intent).run()

    # --- before broadcast ---

    def _known(self, call: Call, key: str | None) -> Intent | None:
        """The intent that `key` stands for already, unless the chain has forgotten it."""
        found = self.journal.find(self.client.chain_key, self.address, key) if key is not None else None
        if found is None or found.state is IntentState.INTENT:
            return None
        if not found.same_as(call):
            raise StateError(
                f"key {key} stands for another transaction: {found.description}",
                code="S-21",
                hint="use another key for another transaction",
            )
        return found

    def _sign_first(self, intent: Intent, gas: int) -> Intent:
        pending = int(self.client.w3.eth.get_transaction_count(self.address, "pending"))
        ours = self.journal.next_nonce(self.client.chain_key, self.address)
        if ours > pending:
            # The endpoint has lost transactions of ours: ours would wait behind the gap for ever.
            self._reopen_reorganised()
            for open_ in self.journal.unfinished(self.client.chain_key, self.address):
                if open_.nonce >= pending:
                    self._rebroadcast(open_)
        base_fee_wei, priority_wei = self._market_fees()
        fees = first_fees(base_fee_wei, priority_wei, self.policy.fee_cap_wei)
        self._check_funds(intent.value, gas, fees)
        return self._sign(intent, max(pending, ours), gas, fees)

    def _sign(self, intent: Intent, nonce: int, gas: int, fees: Fees) -> Intent:
        signed = self.account.sign_transaction(
            {
                "type": 2,
                "chainId": self.client.chain_id,
                "nonce": nonce,
                "to": intent.to,
                "value": intent.value,
                "data": intent.data,
                "gas": gas,
                "maxFeePerGas": fees.max_fee_wei,
                "maxPriorityFeePerGas": fees.priority_wei,
            }
        )
        attempt = Attempt(
            bytes(signed.hash),
            nonce,
            bytes(signed.raw_transaction),
            gas,
            fees.max_fee_wei,
            fees.priority_wei,
            time.time(),
        )
        return self.journal.add_attempt(intent, attempt)

    def _market_fees(self) -> tuple[int, int]:
        """Base fee of the newest block and the endpoint's suggested priority fee, wei per gas."""
        base_fee_wei = int(self.client.block("latest").base_fee_wei)
        try:
            return base_fee_wei, int(self.client.w3.eth.max_priority_fee)
        except (MethodUnavailable, Web3RPCError):
            return base_fee_wei, GWEI

    def _check_funds(self, value: int, gas: int, fees: Fees) -> None:
        if self.client.gas_balance(self.address) < value + gas * fees.max_fee_wei:
            raise self._no_funds(value, gas * fees.max_fee_wei)

    def _no_funds(self, value: int, gas_cost_wei: int) -> FundsError:
        have = self.client.gas_balance(self.address)
        return FundsError(
            f"{self.address} has {have} wei of gas money and needs {value + gas_cost_wei} wei",
            code="F-01",
            hint=f"send it at least {value + gas_cost_wei - have} wei on chain {self.client.chain_id}",
        )

    def _params(self, to: str, data: bytes, value: int) -> TxParams:
        return cast(TxParams, {"from": self.address, "to": to, "data": "0x" + data.hex(), "value": hex(value)})

    @contextmanager
    def _lock(self) -> Iterator[None]:
        path = identity(self.journal.path.parent, self.client.chain_id, self.address, "nonce")
        busy = f"another process is sending with key {self.address} and does not finish"
        with hold(path, timeout_s=_LOCK_TIMEOUT_S, busy=busy, hint="stop the other process, then try again"):
            yield

    # --- broadcast ---

    def _broadcast_first(self, intent: Intent) -> Intent:
        try:
            self.client.w3.eth.send_raw_transaction(intent.attempts[-1].raw)
        except UnreachableError:
            # Perhaps it got through, perhaps not: `wait` finds out, and so does `recover`.
            return self.journal.get(intent.id)
        except Web3Exception as error:
            text = str(error).lower()
            if not any(phrase in text for phrase in _OPEN_REFUSALS):
                self.journal.set_state(intent, IntentState.FAILED)
                attempt = intent.attempts[-1]
                if any(phrase in text for phrase in _NO_FUNDS):
                    raise self._no_funds(intent.value, attempt.gas * attempt.max_fee_wei) from error
                raise TransactionError(
                    f"{intent.description}: the endpoint refused it: {error}",
                    code="T-14",
                    hint="nothing was sent; `avenue doctor` checks account and endpoint",
                ) from error
            return self.journal.get(intent.id)
        return self.journal.set_state(intent, IntentState.SENT)

    def _rebroadcast(self, intent: Intent) -> Intent:
        """The same bytes again. A refusal tells nothing new: the receipts decide."""
        with suppress(Web3Exception):
            self.client.w3.eth.send_raw_transaction(intent.attempts[-1].raw)
            return self.journal.set_state(intent, IntentState.SENT)
        return intent

    def _bump(self, intent: Intent) -> Intent:
        """Replaces the newest attempt by one with higher fees. Raises `TransactionError` T-21, `FundsError` F-01."""
        with self._lock():
            current = self.journal.get(intent.id)
            if current.state not in UNFINISHED or len(current.attempts) > len(intent.attempts):
                return current  # another process was here
            newest = current.attempts[-1]
            fees = bumped_fees(
                Fees(newest.max_fee_wei, newest.priority_fee_wei), *self._market_fees(), self.policy.fee_cap_wei
            )
            if fees is None:
                raise TransactionError(
                    f"{intent.description}: not mined at {newest.max_fee_wei / GWEI:.3f} gwei,"
                    f" and the next step exceeds the cap of {self.policy.fee_cap_wei / GWEI:.3f} gwei",
                    code="T-21",
                    hint="it may still be mined; raise the cap (max_fee_gwei) and try again to replace it",
                )
            self._check_funds(current.value, newest.gas, fees)
            return self._rebroadcast(self._sign(current, newest.nonce, newest.gas, fees))

    # --- outcomes ---

    def _latest_nonce(self) -> int:
        return int(self.client.w3.eth.get_transaction_count(self.address, "latest"))

    def _receipt(self, intent: Intent) -> TxReceipt | None:
        """The receipt of whichever attempt was mined, newest attempt first."""
        for attempt in reversed(intent.attempts):
            with suppress(TransactionNotFound):
                return self.client.w3.eth.get_transaction_receipt(cast(Any, attempt.hash))
        return None

    def _is_known(self, intent: Intent) -> bool:
        """Whether the endpoint has any attempt, waiting or mined."""
        for attempt in intent.attempts:
            with suppress(TransactionNotFound):
                self.client.w3.eth.get_transaction(cast(Any, attempt.hash))
                return True
        return False

    def _settle_used_nonce(self, intent: Intent) -> Intent:
        """The nonce is used: by us, with a receipt that the endpoint shows late, or by somebody else."""
        deadline = time.monotonic() + self.policy.replaced_after_s
        while time.monotonic() < deadline:
            receipt = self._receipt(intent)
            if receipt is not None:
                return self._record(intent, receipt)
            self._stop.wait(_FIRST_POLL_S)
        return self.journal.set_state(intent, IntentState.REPLACED)

    def _record(self, intent: Intent, receipt: TxReceipt) -> Intent:
        state = IntentState.MINED if receipt["status"] == 1 else IntentState.FAILED
        return self.journal.set_state(
            intent, state, mined_hash=bytes(receipt["transactionHash"]), mined_block=int(receipt["blockNumber"])
        )

    def _reopen_reorganised(self) -> None:
        """Mined intents that the chain has lost again become unfinished."""
        since = self.client.block("latest").number - _REORG_DEPTH_BLOCKS
        for intent in self.journal.mined_since(self.client.chain_key, self.address, since):
            if self._receipt(intent) is None:
                # The key of one that failed may stand for another intent by now; then that one counts.
                with suppress(sqlite3.IntegrityError):
                    self.journal.set_state(intent, IntentState.SENT)

    def _outcome(self, intent: Intent, receipt: TxReceipt) -> TxOutcome:
        """Raises `RevertedError` if the transaction is on the chain as a failure."""
        if receipt["status"] != 1:
            raise self._reverted(intent, receipt)
        logs = tuple(
            RawLog(log["address"], tuple(bytes(topic) for topic in log["topics"]), bytes(log["data"]), log["logIndex"])
            for log in receipt["logs"]
        )
        return TxOutcome(
            bytes(receipt["transactionHash"]),
            int(receipt["blockNumber"]),
            bytes(receipt["blockHash"]),
            int(receipt["gasUsed"]),
            int(receipt["status"]),
            int(receipt["effectiveGasPrice"]),
            logs,
        )

    def _reverted(self, intent: Intent, receipt: TxReceipt) -> RevertedError:
        """The reason, found by running the call again on the state before its block."""
        where = f"{intent.description} (0x{receipt['transactionHash'].hex()[:8]}, block {receipt['blockNumber']})"
        before = max(int(receipt["blockNumber"]) - 1, 0)
        try:
            self.client.w3.eth.call(self._params(intent.to, intent.data, intent.value), before)
        except Web3Exception as error:
            return decode_revert(error, where)
        return RevertedError(
            f"{where}: reverted on chain, though it succeeds on the state before its block",
            code="T-15",
            hint="another transaction of the same block came first; read the chain and try again",
        )


class _Wait:
    """One wait for one intent. A class only because five facts live as long as the wait does."""

    def __init__(self, sender: Sender, intent: Intent) -> None:
        self.sender, self.policy, self.intent = sender, sender.policy, intent
        now = time.monotonic()
        self.deadline = now + self.policy.timeout_s
        self.bump_at = now + self.policy.bump_after_s
        # A broadcast of unknown fate is looked into at once.
        self.check_at = now if intent.state is IntentState.SIGNED else now + self.policy.rebroadcast_after_s
        self.used_since: float | None = None

    def run(self) -> TxOutcome:
        poll_s = _FIRST_POLL_S
        trouble: UnreachableError | None = None
        while True:
            try:
                outcome = self.look()
                trouble = None
                if outcome is not None:
                    return outcome
            except UnreachableError as error:
                # Never a reason to sign again. The endpoint gets until the deadline to come back.
                trouble = error
            if time.monotonic() > self.deadline:
                if trouble is not None:
                    raise trouble
                raise WaitTimeoutError(
                    f"{self.intent.description}: not mined after {self.policy.timeout_s:.0f} s",
                    code="W-01",
                    hint="it is in the journal and may still be mined; run the same command again to look",
                )
            if self.sender._stop.wait(poll_s):
                raise WaitTimeoutError(
                    f"{self.intent.description}: stopped before it was mined",
                    code="W-02",
                    hint="it is in the journal; the next start reads what became of it",
                )
            poll_s = min(poll_s * 1.5, _LAST_POLL_S)

    def look(self) -> TxOutcome | None:
        """One look at the chain: the outcome, or None if it is still open."""
        sender = self.sender
        # Attempts are read afresh: one that was journalled before the connection broke counts like any other.
        self.intent = sender.journal.get(self.intent.id)
        receipt = sender._receipt(self.intent)
        if receipt is not None:
            return self.mined(receipt)
        now = time.monotonic()
        if sender._latest_nonce() > self.intent.nonce:
            self.nonce_used(now)
            return None
        self.used_since = None
        if now >= self.check_at:
            if not sender._is_known(self.intent):
                self.intent = sender._rebroadcast(self.intent)
            self.check_at = time.monotonic() + self.policy.rebroadcast_after_s
        if now >= self.bump_at:
            self.intent = sender._bump(self.intent)
            self.bump_at = time.monotonic() + self.policy.bump_after_s
        return None

    def mined(self, receipt: TxReceipt) -> TxOutcome | None:
        sender = self.sender
        if self.policy.confirmations > 1:
            head = sender.client.block("latest").number
            if head - int(receipt["blockNumber"]) + 1 < self.policy.confirmations:
                return None
        self.intent = sender._record(self.intent, receipt)
        return sender._outcome(self.intent, receipt)

    def nonce_used(self, now: float) -> None:
        """Raises `TransactionError` T-22 once the nonce has looked used for long enough, still without a receipt."""
        self.used_since = now if self.used_since is None else self.used_since
        if now - self.used_since < self.policy.replaced_after_s:
            return
        self.intent = self.sender.journal.set_state(self.intent, IntentState.REPLACED)
        raise TransactionError(
            f"{self.intent.description}: another transaction took nonce {self.intent.nonce}; this one never happened",
            code="T-22",
            hint="another program uses this key; give each program a key of its own, then try again",
        )
