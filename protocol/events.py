"""Follows the contracts' events through reorganisations, flaky endpoints and restarts.

    follower = EventFollower(client)
    cursor = store.load("indexer") or follower.start()
    for batch in follower.follow(cursor):      # until the head
        apply(batch.items)                     # Rollback first, if there is one, then new events in chain order
        store.save("indexer", batch.cursor)    # best in the same database transaction

The cursor is a plain value that the caller keeps: the last block taken, and the hashes of recent ones. When a hash is
no longer on the chain, the batch begins with `Rollback(to_block)`: forget all events after that block; what took
their place follows. Whoever stores events and cursor in one transaction sees every event exactly once.

`eth_getLogs` in ranges, never server-side filters: those are lost behind load balancers. A range that the endpoint
refuses is halved; the size grows back after success.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from web3.exceptions import Web3RPCError
from web3.types import FilterParams

from protocol.chain import ChainClient
from protocol.errors import LaggingRpcError, StateError, UnreachableError
from protocol.event_types import EVENTS as EVENTS
from protocol.event_types import (
    ChainEvent,
    Collected,
    Deregistered,
    Dripped,
    Locked,
    MarketBound,
    NodeRegistered,
    NodeUpdated,
    OperatorRotated,
    Paid,
    Position,
    Slashed,
    Staked,
    TaskCancelled,
    TaskClosed,
    TaskPosted,
    UnbondRequested,
    UnitClaimed,
    UnitCommitted,
    UnitExpired,
    UnitFinalised,
    UnitRevealed,
    Unlocked,
    Withdrawn,
    decode_log,
    topic_of,
)
from protocol.rpc import DEFAULT_MAX_LAG_BLOCKS
from protocol.settlement import TxOutcome

__all__ = [
    "EVENTS",
    "Batch",
    "BlockRef",
    "ChainEvent",
    "Collected",
    "Cursor",
    "CursorStore",
    "Deregistered",
    "Dripped",
    "EventFollower",
    "Locked",
    "MarketBound",
    "NodeRegistered",
    "NodeUpdated",
    "OperatorRotated",
    "Paid",
    "Position",
    "Rollback",
    "Slashed",
    "Staked",
    "TaskCancelled",
    "TaskClosed",
    "TaskPosted",
    "UnbondRequested",
    "UnitClaimed",
    "UnitCommitted",
    "UnitExpired",
    "UnitFinalised",
    "UnitRevealed",
    "Unlocked",
    "Withdrawn",
    "decode_log",
    "events_of",
    "topic_of",
]

DEFAULT_CHUNK_BLOCKS = 2000
# Hashes kept: one per poll at the head, so reorganisations down to this depth cost no more than their own blocks.
_RECENT = 128
# A poll that meets a reorganisation in its middle starts over; a chain that does it this often is not one to act on.
_ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class BlockRef:
    number: int
    hash: bytes


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a follower is: `block_number` is the last block taken, `recent` some of the newest hashes, ascending."""

    block_number: int
    recent: tuple[BlockRef, ...] = ()

    def to_json(self) -> str:
        return json.dumps([self.block_number, [[ref.number, ref.hash.hex()] for ref in self.recent]])

    @classmethod
    def from_json(cls, text: str) -> Cursor:
        """Raises `ValueError` if the text is not what `to_json` gives."""
        number, recent = json.loads(text)
        return cls(int(number), tuple(BlockRef(int(height), bytes.fromhex(hash_)) for height, hash_ in recent))


@dataclass(frozen=True, slots=True)
class Rollback:
    """The chain was reorganised: events after `to_block` did not happen."""

    to_block: int


@dataclass(frozen=True, slots=True)
class Batch:
    """What one poll brought. `head` is the newest block that may be taken; `at_head` says that nothing is left."""

    items: tuple[Rollback | ChainEvent, ...]
    cursor: Cursor
    head: int
    at_head: bool

    @property
    def events(self) -> tuple[ChainEvent, ...]:
        return tuple(item for item in self.items if isinstance(item, ChainEvent))


class _ReorganisedMeanwhile(Exception):  # noqa: N818 - control flow inside this file
    pass


class EventFollower:
    """Reads events of the deployment's contracts. Keeps nothing but the chunk size; any cursor may be polled.

    `confirmations` blocks at the head are left for later; 0 takes them at once and rolls back if need be. `kinds`
    restricts what is asked for. `chunk_blocks` is the widest range asked in one request.
    """

    def __init__(
        self,
        client: ChainClient,
        *,
        start_block: int | None = None,
        confirmations: int = 0,
        chunk_blocks: int = DEFAULT_CHUNK_BLOCKS,
        kinds: Collection[type[ChainEvent]] | None = None,
    ) -> None:
        self._client = client
        self._start_block = client.deployment.block if start_block is None else start_block
        self._confirmations = confirmations
        self._max_chunk = self._chunk = chunk_blocks
        wanted = kinds if kinds is not None else [kind for group in EVENTS.values() for kind in group]
        deployment = client.deployment
        addresses = [deployment.registry, deployment.market]
        if deployment.faucet is not None:
            addresses.append(deployment.faucet)
        self._filter = {"address": addresses, "topics": [["0x" + topic_of(kind).hex() for kind in wanted]]}

    def start(self) -> Cursor:
        """The cursor before the first block that matters."""
        return Cursor(self._start_block - 1)

    def follow(self, cursor: Cursor) -> Iterator[Batch]:
        """Batches from `cursor` to the head; at least one. Raises as `poll`."""
        while True:
            batch = self.poll(cursor)
            yield batch
            if batch.at_head:
                return
            cursor = batch.cursor

    def poll(self, cursor: Cursor) -> Batch:
        """The next range of blocks after `cursor`: one rollback if needed, then the range's events.

        Raises `UnreachableError` N-04 if the endpoint refuses the logs of even one block, `LaggingRpcError` if it is
        behind the cursor, or the chain changes faster than it can be read.
        """
        for _ in range(_ATTEMPTS):
            try:
                return self._poll(cursor)
            except _ReorganisedMeanwhile:
                continue
        raise LaggingRpcError(f"the chain was reorganised {_ATTEMPTS} times while block {cursor.block_number} was read")

    def _poll(self, cursor: Cursor) -> Batch:
        latest = self._client.block("latest").number
        if latest < cursor.block_number - DEFAULT_MAX_LAG_BLOCKS:
            raise LaggingRpcError(
                f"the RPC endpoint is at block {latest}, block {cursor.block_number} was read before",
                hint="wait until it has caught up; if a local chain was started anew, drop the cursor (see chain_key)",
            )
        items: list[Rollback | ChainEvent] = []
        kept = self._on_chain(cursor, latest)
        if kept != cursor:
            items.append(Rollback(kept.block_number))
        head = latest - self._confirmations
        first = kept.block_number + 1
        while True:
            last = min(first + self._chunk - 1, head)
            if first > last:
                return Batch(tuple(items), kept, head, at_head=True)
            try:
                events, refs = self._events(kept, first, last)
                break
            except Web3RPCError as error:
                if last == first:
                    raise UnreachableError(
                        f"the RPC endpoint refuses the logs of block {first}: {error}",
                        code="N-04",
                        hint="use an endpoint that serves eth_getLogs",
                    ) from error
                self._chunk = max((last - first + 1) // 2, 1)
        self._chunk = min(self._chunk * 2, self._max_chunk)
        items.extend(events)
        return Batch(tuple(items), Cursor(last, (kept.recent + refs)[-_RECENT:]), head, at_head=last == head)

    def _on_chain(self, cursor: Cursor, latest: int) -> Cursor:
        """The cursor, or the newest earlier one whose hash is still on the chain.

        Hashes above `latest` say nothing: an endpoint may lag a little. They are judged once the chain is that long.
        """
        judged = [ref for ref in cursor.recent if ref.number <= latest]
        for keep in range(len(judged), 0, -1):
            ref = judged[keep - 1]
            if self._hash_at(ref.number) == ref.hash:
                return cursor if keep == len(judged) else Cursor(ref.number, tuple(judged[:keep]))
        return self.start() if judged else cursor

    def _hash_at(self, number: int) -> bytes | None:
        try:
            return self._client.block(number).hash
        except StateError:
            return None

    def _events(self, after: Cursor, first: int, last: int) -> tuple[list[ChainEvent], tuple[BlockRef, ...]]:
        """Events in blocks `first..last`, and hashes to remember.

        The end's header is read first, the cursor's again after it, then the logs. A reorganisation before the cursor's
        header shows there; a later one that reaches the cursor takes the end with it, and the next poll sees that. In
        any other order a hash of the new chain could hide a block of the old one for ever. The end's header is read
        once more at last: the logs may have come from another endpoint, which has not got the end and leaves its logs
        out without a word.
        Raises `_ReorganisedMeanwhile` if the first kind is seen, or the logs don't fit the end.
        """
        end = self._hash_at(last)
        anchor = after.recent[-1] if after.recent else None
        if end is None or (anchor is not None and self._hash_at(anchor.number) != anchor.hash):
            raise _ReorganisedMeanwhile
        wanted = {**self._filter, "fromBlock": hex(first), "toBlock": hex(last)}
        logs = [log for log in self._client.w3.eth.get_logs(cast(FilterParams, wanted)) if not log.get("removed")]
        if self._hash_at(last) != end:
            raise _ReorganisedMeanwhile
        hashes: dict[int, bytes] = {last: end}
        for log in logs:
            if hashes.setdefault(int(log["blockNumber"]), bytes(log["blockHash"])) != bytes(log["blockHash"]):
                raise _ReorganisedMeanwhile
        return self._decoded(logs), tuple(BlockRef(number, hashes[number]) for number in sorted(hashes))

    def _decoded(self, logs: Sequence[Any]) -> list[ChainEvent]:
        times: dict[int, int] = {}
        found: dict[tuple[bytes, int], ChainEvent] = {}
        for log in sorted(logs, key=lambda log: (int(log["blockNumber"]), int(log["logIndex"]))):
            number = int(log["blockNumber"])
            if number not in times:
                # Newer endpoints put the time into the log; it saves a header.
                given = log.get("blockTimestamp")
                times[number] = self._client.block(number).timestamp if given is None else _integer(given)
            at = Position(
                number, bytes(log["blockHash"]), times[number], bytes(log["transactionHash"]), int(log["logIndex"])
            )
            event = decode_log(at, [bytes(topic) for topic in log["topics"]], bytes(log["data"]))
            if event is not None:
                found[at.block_hash, at.log_index] = event
        return list(found.values())


def _integer(value: int | str) -> int:
    return int(value, 16) if isinstance(value, str) else int(value)


def events_of(client: ChainClient, outcome: TxOutcome) -> tuple[ChainEvent, ...]:
    """The events of our contracts in a transaction of ours: which node id `register` gave, for instance."""
    ours = set(client.deployment.addresses.values())
    timestamp = client.block(outcome.block).timestamp
    decoded = (
        decode_log(
            Position(outcome.block, outcome.block_hash, timestamp, outcome.hash, log.index), log.topics, log.data
        )
        for log in outcome.logs
        if log.address in ours
    )
    return tuple(event for event in decoded if event is not None)


class CursorStore:
    """Cursors by name in a SQLite file, for followers whose events need no store of their own.

    Names belong to one chain: put `ChainClient.chain_key` into them. Safe to use from several threads.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS cursors (name TEXT PRIMARY KEY, cursor TEXT NOT NULL)")

    def load(self, name: str) -> Cursor | None:
        with self._lock:
            row = self._db.execute("SELECT cursor FROM cursors WHERE name = ?", (name,)).fetchone()
        return Cursor.from_json(row[0]) if row else None

    def save(self, name: str, cursor: Cursor) -> None:
        with self._lock:
            self._db.execute("REPLACE INTO cursors VALUES (?, ?)", (name, cursor.to_json()))

    def close(self) -> None:
        with self._lock:
            self._db.close()
