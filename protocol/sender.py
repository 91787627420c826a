"""Sends transactions so that each happens once, whatever dies in between.

    check by simulation -> lock the account -> journal intent and signed bytes -> broadcast -> read the outcome

- A call that would revert is never sent: it raises the decoded error.
- Signed bytes are on disk before they are broadcast. After a crash `recover` looks for the receipt of every attempt,
  and broadcasts the very same bytes again if there is none; an intent is never signed again with another nonce.
- A broken connection during a broadcast says nothing about the transaction; the chain is read until it does.
- A stuck transaction is replaced with higher fees (same nonce), up to a hard cap, and so are those that block it.
- `key` names an intent ("claim:TASK:7:0"). A second `send` with the key of an unfinished or mined intent gives the
  outcome of the first and sends nothing.

The account's lock is held from choosing a nonce until the broadcast, so processes and threads that share a journal
directory and a key do not race. That an agent runs only once per identity is `protocol.locks.sole_agent`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from eth_account.signers.local import LocalAccount
from eth_typing import ChecksumAddress
from web3.exceptions import MethodUnavailable, Web3Exception, Web3RPCError
from web3.types import TxReceipt

from protocol.chain import ChainClient
from protocol.errors import AvenueError, FundsError, StateError, TransactionError, UnreachableError, WaitTimeoutError
from protocol.fees import GWEI, Fees, SendPolicy, bumped_fees, first_fees
from protocol.journal import UNFINISHED, Attempt, Intent, IntentState, Journal
from protocol.locks import hold, identity
from protocol.reverts import explain
from protocol.settlement import RawLog as RawLog
from protocol.settlement import Settlement, call_params
from protocol.settlement import TxOutcome as TxOutcome
from protocol.transactions import Call

_LOCK_TIMEOUT_S = 60.0
_FIRST_POLL_S = 0.03
_LAST_POLL_S = 1.0
_NO_FUNDS = ("insufficient funds", "insufficient balance")
# Refusals that leave the question open: an earlier attempt, or somebody else's transaction, holds the nonce.
_OPEN_REFUSALS = ("nonce too low", "underpriced", "already known", "already imported", "less than block base fee")
_DEFAULT_POLICY = SendPolicy()


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
        self._settlement = Settlement(client, self.address, journal)
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
            self._abandon_unsigned()
            intent = self.journal.add(self.client.chain_key, self.address, call, key)
            try:
                intent = self._sign_first(intent, gas)
            except (AvenueError, Web3Exception):
                self.journal.set_state(intent, IntentState.FAILED)
                raise
            return self._broadcast_first(intent)

    def simulate(self, call: Call) -> int:
        """Gas limit for `call`: estimate and margin. Raises `RevertedError` or `FundsError` if it can't succeed now."""
        params = call_params(self.address, call.to, call.data, call.value)
        try:
            # On the block to come, in which it would be mined: at the latest one, a reveal right after its commit
            # would seem to be in the commit's own block.
            estimate = int(self.client.w3.eth.estimate_gas(params, "pending"))
        except Web3Exception as error:
            if any(phrase in str(error).lower() for phrase in _NO_FUNDS):
                raise self._no_funds(call.value, 0) from error
            raise explain(error, call.description) from error
        return estimate + estimate * self.policy.gas_margin_percent // 100

    def wait(self, intent: Intent) -> TxOutcome:
        """Waits for the outcome of a submitted intent, replacing fees on the way. Raises as `send`."""
        return _Wait(self, self._settlement, intent).run()

    def recover(self) -> tuple[Intent, ...]:
        """Settles what an earlier run left open, by reading the chain; does not wait for blocks.

        Gives the intents it looked at, as they are now: mined and failed ones are over, `sent` ones were broadcast
        again, `replaced` ones can never happen.
        """
        with self._lock():
            abandoned = self._abandon_unsigned()
            self._settlement.reopen_reorganised()
            settled = [self._recovered_intent(intent) for intent in self._settlement.unfinished()]
        self._recovered = True
        return (*abandoned, *settled)

    def _abandon_unsigned(self) -> list[Intent]:
        """Whoever holds the lock and finds an unsigned intent knows that its maker died before signing."""
        return [
            self.journal.set_state(intent, IntentState.FAILED)
            for intent in self.journal.never_signed(self.client.chain_key, self.address)
        ]

    def _recovered_intent(self, intent: Intent) -> Intent:
        receipt = self._settlement.receipt(intent)
        if receipt is not None:
            return self._settlement.record(intent, receipt)
        if self._settlement.used_nonces() <= intent.nonce:
            return self._settlement.rebroadcast(intent)
        # The nonce is used: by us, with a receipt that the endpoint shows late, or by somebody else.
        deadline = time.monotonic() + self.policy.replaced_after_s
        while time.monotonic() < deadline:
            receipt = self._settlement.receipt(intent)
            if receipt is not None:
                return self._settlement.record(intent, receipt)
            self._stop.wait(_FIRST_POLL_S)
        if not self._settlement.is_replaced(intent):
            return intent
        return self.journal.set_state(intent, IntentState.REPLACED)

    # --- before broadcast ---

    @contextmanager
    def _lock(self) -> Iterator[None]:
        path = identity(self.journal.path.parent, self.client.chain_id, self.address, "nonce")
        busy = f"another process is sending with key {self.address} and does not finish"
        with hold(path, timeout_s=_LOCK_TIMEOUT_S, busy=busy, hint="stop the other process, then try again"):
            yield

    def _known(self, call: Call, key: str | None) -> Intent | None:
        """The intent that `key` stands for already."""
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
            # The endpoint has lost transactions of ours; this one would wait behind the gap for ever.
            self._settlement.reopen_reorganised()
            for lost in self._settlement.unfinished():
                if lost.nonce >= pending:
                    self._settlement.rebroadcast(lost)
        fees = first_fees(*self._market_fees(), self.policy.fee_cap_wei)
        self._check_funds(intent.value, gas, fees)
        return self._sign(intent, max(pending, ours), gas, fees)

    def _sign(self, intent: Intent, nonce: int, gas: int, fees: Fees) -> Intent:
        """Signs, and writes the bytes down. They are on disk when this returns."""
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
        hash_, raw = bytes(signed.hash), bytes(signed.raw_transaction)
        return self.journal.add_attempt(
            intent, Attempt(hash_, nonce, raw, gas, fees.max_fee_wei, fees.priority_wei, time.time())
        )

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

    # --- broadcast ---

    def _broadcast_first(self, intent: Intent) -> Intent:
        try:
            self.client.w3.eth.send_raw_transaction(intent.attempts[-1].raw)
        except UnreachableError:
            # Perhaps it got through, perhaps not: `wait` finds out, and so does `recover`.
            return self.journal.get(intent.id)
        except Web3Exception as error:
            text = str(error).lower()
            if any(phrase in text for phrase in _OPEN_REFUSALS):
                return self.journal.get(intent.id)
            self.journal.set_state(intent, IntentState.FAILED)
            attempt = intent.attempts[-1]
            if any(phrase in text for phrase in _NO_FUNDS):
                raise self._no_funds(intent.value, attempt.gas * attempt.max_fee_wei) from error
            raise TransactionError(
                f"{intent.description}: the endpoint refused it: {error}",
                code="T-14",
                hint="nothing was sent; `avenue doctor` checks account and endpoint",
            ) from error
        return self.journal.set_state(intent, IntentState.SENT)

    def _bump(self, intent: Intent) -> None:
        """Replaces the newest attempt by one with higher fees. Raises `TransactionError` T-21, `FundsError` F-01."""
        with self._lock():
            current = self.journal.get(intent.id)
            if current.state not in UNFINISHED or len(current.attempts) > len(intent.attempts):
                return  # somebody else was here
            newest = current.attempts[-1]
            old = Fees(newest.max_fee_wei, newest.priority_fee_wei)
            fees = bumped_fees(old, *self._market_fees(), self.policy.fee_cap_wei)
            if fees is None:
                raise TransactionError(
                    f"{intent.description}: not mined at {newest.max_fee_wei / GWEI:.3f} gwei,"
                    f" and the next step exceeds the cap of {self.policy.fee_cap_wei / GWEI:.3f} gwei",
                    code="T-21",
                    hint="it may still be mined; raise the cap (max_fee_gwei) and try again to replace it",
                )
            self._check_funds(current.value, newest.gas, fees)
            self._settlement.rebroadcast(self._sign(current, newest.nonce, newest.gas, fees))


class _Wait:
    """One wait for one intent. A class because several facts live as long as the wait does."""

    def __init__(self, sender: Sender, settlement: Settlement, intent: Intent) -> None:
        self.sender, self.settlement, self.policy, self.intent = sender, settlement, sender.policy, intent
        now = time.monotonic()
        self.deadline = now + self.policy.timeout_s
        # From when the bytes were signed, not from when somebody began to look: whoever waits in short turns, or starts
        # anew, still raises the fee in time.
        self.bump_at = now + self.policy.bump_after_s - _age_s(intent)
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
        # Attempts are read afresh: one that was journalled before the connection broke counts like any other.
        self.intent = self.sender.journal.get(self.intent.id)
        receipt = self.settlement.receipt(self.intent)
        if receipt is not None:
            return self.mined(receipt)
        now = time.monotonic()
        if self.settlement.used_nonces() > self.intent.nonce:
            self.nonce_used(now)
            return None
        self.used_since = None
        if now >= min(self.check_at, self.bump_at):
            for intent in self.blocking():
                if not self.settlement.is_known(intent):
                    self.settlement.rebroadcast(intent)
            self.check_at = time.monotonic() + self.policy.rebroadcast_after_s
        if now >= self.bump_at:
            for intent in self.blocking():
                if _age_s(intent) >= self.policy.bump_after_s:
                    self.sender._bump(intent)
            self.bump_at = time.monotonic() + self.policy.bump_after_s
        return None

    def blocking(self) -> list[Intent]:
        """This intent, and before it those with lower nonces that have to be mined first."""
        used = self.settlement.used_nonces()
        earlier = [open_ for open_ in self.settlement.unfinished() if used <= open_.nonce < self.intent.nonce]
        return [*earlier, self.intent]

    def mined(self, receipt: TxReceipt) -> TxOutcome | None:
        if self.policy.confirmations > 1:
            head = self.sender.client.block("latest").number
            if head - int(receipt["blockNumber"]) + 1 < self.policy.confirmations:
                return None
        self.intent = self.settlement.record(self.intent, receipt)
        return self.settlement.outcome(self.intent, receipt)

    def nonce_used(self, now: float) -> None:
        """Raises `TransactionError` T-22 once the nonce has looked used for long enough, and not by this intent."""
        self.used_since = now if self.used_since is None else self.used_since
        if now - self.used_since < self.policy.replaced_after_s:
            return
        if not self.settlement.is_replaced(self.intent):
            self.used_since = None  # asked again after the same time, unless the receipt comes
            return
        self.intent = self.sender.journal.set_state(self.intent, IntentState.REPLACED)
        raise TransactionError(
            f"{self.intent.description}: another transaction took nonce {self.intent.nonce}; this one never happened",
            code="T-22",
            hint="another program uses this key; give each program a key of its own, then try again",
        )


def _age_s(intent: Intent) -> float:
    """Since its newest attempt was signed."""
    return time.time() - intent.attempts[-1].created_s
