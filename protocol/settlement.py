"""What became of a transaction: the chain is asked, the journal is told. Nothing here signs."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from eth_typing import ChecksumAddress
from web3.exceptions import TransactionNotFound, Web3Exception
from web3.types import TxParams, TxReceipt

from protocol.chain import ChainClient
from protocol.journal import Intent, IntentState, Journal
from protocol.reverts import RevertedError, decode_revert

# Mined transactions this deep are looked at again after a restart, in case a reorganisation took them out.
_REORG_DEPTH_BLOCKS = 64
# Endpoints that are no archive keep the state of this many blocks (geth's default).
_STATE_KEPT_BLOCKS = 120


@dataclass(frozen=True, slots=True)
class RawLog:
    """A log of a receipt; `protocol.events.events_of` reads it."""

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


def call_params(sender: ChecksumAddress, to: ChecksumAddress, data: bytes, value: int) -> TxParams:
    """For eth_call and eth_estimateGas: the transaction without nonce and fees."""
    return cast(TxParams, {"from": sender, "to": to, "data": "0x" + data.hex(), "value": hex(value)})


class Settlement:
    """The intents of one account on one chain, and what the chain says of them. Safe to use from several threads."""

    def __init__(self, client: ChainClient, address: ChecksumAddress, journal: Journal) -> None:
        self._client = client
        self._address = address
        self._journal = journal

    def unfinished(self) -> list[Intent]:
        """Intents whose outcome only the chain knows, by nonce."""
        return self._journal.unfinished(self._client.chain_key, self._address)

    def used_nonces(self) -> int:
        """How many nonces of the account are used in mined blocks."""
        return int(self._client.w3.eth.get_transaction_count(self._address, "latest"))

    def receipt(self, intent: Intent) -> TxReceipt | None:
        """The receipt of whichever attempt was mined."""
        for attempt in reversed(intent.attempts):
            with suppress(TransactionNotFound):
                return self._client.w3.eth.get_transaction_receipt(cast(Any, attempt.hash))
        return None

    def is_known(self, intent: Intent) -> bool:
        """Whether the endpoint has any attempt, waiting or mined."""
        for attempt in intent.attempts:
            with suppress(TransactionNotFound):
                self._client.w3.eth.get_transaction(cast(Any, attempt.hash))
                return True
        return False

    def is_replaced(self, intent: Intent) -> bool:
        """Whether somebody else's transaction took the nonce, by looking at the one that did.

        A missing receipt proves nothing: one server behind the endpoint may know the nonce, the next not yet the block.
        """
        high = self._client.block("latest").number
        low = max(high - _STATE_KEPT_BLOCKS, 0)
        try:
            if self._used_at(low) > intent.nonce:
                return True  # for so long that the receipt would be there
            while low + 1 < high:
                middle = (low + high) // 2
                low, high = (low, middle) if self._used_at(middle) > intent.nonce else (middle, high)
            block = self._client.w3.eth.get_block(high, full_transactions=True)
        except Web3Exception:
            return False
        takers = [
            bytes(taker["hash"])
            for taker in cast(list[Any], block["transactions"])
            if taker["from"] == self._address and taker["nonce"] == intent.nonce
        ]
        return bool(takers) and takers[0] not in {attempt.hash for attempt in intent.attempts}

    def _used_at(self, block: int) -> int:
        return int(self._client.w3.eth.get_transaction_count(self._address, block))

    def rebroadcast(self, intent: Intent) -> Intent:
        """Sends the newest attempt's bytes as they are. A refusal tells nothing new: the receipts decide."""
        with suppress(Web3Exception):
            self._client.w3.eth.send_raw_transaction(intent.attempts[-1].raw)
            return self._journal.set_state(intent, IntentState.SENT)
        return intent

    def record(self, intent: Intent, receipt: TxReceipt) -> Intent:
        """Writes down that it was mined, or failed on chain."""
        state = IntentState.MINED if receipt["status"] == 1 else IntentState.FAILED
        return self._journal.set_state(
            intent, state, mined_hash=bytes(receipt["transactionHash"]), mined_block=int(receipt["blockNumber"])
        )

    def reopen_reorganised(self) -> None:
        """Intents that were mined and that the chain has lost again become unfinished."""
        since = self._client.block("latest").number - _REORG_DEPTH_BLOCKS
        for intent in self._journal.mined_since(self._client.chain_key, self._address, since):
            if self.receipt(intent) is None:
                # The key of one that failed may stand for another intent by now; then that one counts.
                with suppress(sqlite3.IntegrityError):
                    self._journal.set_state(intent, IntentState.SENT)

    def outcome(self, intent: Intent, receipt: TxReceipt) -> TxOutcome:
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
            self._client.w3.eth.call(call_params(self._address, intent.to, intent.data, intent.value), before)
        except Web3Exception as error:
            return decode_revert(error, where)
        return RevertedError(
            f"{where}: reverted on chain, though it succeeds on the state before its block",
            code="T-15",
            hint="another transaction of the same block came first; read the chain and try again",
        )
