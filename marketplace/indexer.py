"""The index: follows the chain's events into tables, in a thread of its own, and unwinds what a reorganisation undid.

Events, rows and cursor change in one database transaction, so that whatever kills the process, it goes on from where
the index really is. A rollback deletes the events that did not happen and folds the remaining ones of what they
touched again.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import structlog
from sqlalchemy import Engine, delete, or_, select
from sqlalchemy.orm import Session

from marketplace.eventlog import from_rows, to_row
from marketplace.fold import add_to_account, fold_money, fold_node, fold_task
from marketplace.metrics import Metrics
from marketplace.tables import (
    CHAIN_TABLES,
    AccountRow,
    CursorRow,
    EventRow,
    NodeRow,
    PaymentRow,
    SlashRow,
    TaskRow,
    UnitRow,
)
from protocol.chain import ChainClient
from protocol.errors import AvenueError, LaggingRpcError
from protocol.events import Batch, ChainEvent, Cursor, EventFollower, Rollback

_log = structlog.get_logger(__name__)

_MAX_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the index is. `error` is what the last look at the chain failed with, None if it did not."""

    head_block: int | None = None
    indexed_block: int | None = None
    error: str | None = None

    @property
    def lag_blocks(self) -> int | None:
        if self.head_block is None or self.indexed_block is None:
            return None
        return max(0, self.head_block - self.indexed_block)


class Indexer:
    """One per database. `catch_up` may be called from any thread; the loop calls it every `poll_interval_s`."""

    def __init__(
        self,
        engine: Engine,
        client: ChainClient,
        metrics: Metrics,
        *,
        confirmations: int = 0,
        poll_interval_s: float = 1.0,
    ) -> None:
        self._engine = engine
        self._client = client
        self._metrics = metrics
        self._confirmations = confirmations
        self._follower = EventFollower(client, confirmations=confirmations)
        self._poll_interval_s = poll_interval_s
        self._reading = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._progress = Progress()

    @property
    def progress(self) -> Progress:
        return self._progress

    @property
    def indexed_block(self) -> int | None:
        return self._progress.indexed_block

    def start(self) -> None:
        """Starts the loop."""
        self._thread = threading.Thread(target=self._run, name="indexer", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the loop and waits for it: at most one look at the chain."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def catch_up(self, *, patience_s: float = -1) -> None:
        """Reads up to the chain's head.

        Raises what reading the chain raises (UnreachableError, LaggingRpcError). Another thread may be reading already:
        LaggingRpcError if it still is after `patience_s`; -1 waits for it.
        """
        if not self._reading.acquire(timeout=patience_s):
            raise LaggingRpcError("the index is still reading the chain", hint="try again in a moment")
        try:
            for batch in self._follower.follow(self._cursor()):
                self._take(batch)
                if self._stop.is_set():
                    return
        finally:
            self._reading.release()

    def rebuild(self) -> None:
        """Forgets the copy of the chain; the next `catch_up` reads it all again. Mail and blobs stay."""
        with self._reading, Session(self._engine) as session:
            for table in CHAIN_TABLES:
                session.execute(delete(table))
            session.commit()
        self._progress = Progress()

    def _run(self) -> None:
        pause_s = self._poll_interval_s
        while not self._stop.is_set():
            try:
                self.catch_up()
                pause_s = self._poll_interval_s
            except AvenueError as error:  # expected trouble: one line, try again
                pause_s = self._failed(str(error), pause_s)
            except Exception as error:  # noqa: BLE001 - a bug must show itself, but not end the index in silence
                _log.exception("the indexer stumbled")
                pause_s = self._failed(repr(error), pause_s)
            self._stop.wait(pause_s)

    def _failed(self, reason: str, pause_s: float) -> float:
        self._progress = replace(self._progress, error=reason)
        self._metrics.index_errors.inc()
        _log.warning("cannot read the chain", reason=reason, next_try_s=pause_s)
        return min(pause_s * 2, _MAX_PAUSE_S)

    def _chain_key(self) -> str:
        return f"{self._client.chain_key}:{self._client.deployment.market}"

    def _cursor(self) -> Cursor:
        """Where to go on from. A local chain that was restarted, or another market, begins a new index."""
        with Session(self._engine) as session:
            row = session.get(CursorRow, 1)
            if row is None:
                return self._follower.start()
            if row.chain_key == self._chain_key():
                return Cursor.from_json(row.cursor)
            _log.warning("the chain is another one than the index is of: reading it anew", was=row.chain_key)
            for table in CHAIN_TABLES:
                session.execute(delete(table))
            session.commit()
        return self._follower.start()

    def _take(self, batch: Batch) -> None:
        rollbacks = [item for item in batch.items if isinstance(item, Rollback)]
        with Session(self._engine) as session:
            for rollback in rollbacks:  # a batch begins with them
                _roll_back(session, rollback.to_block)
            for event in batch.events:
                _apply(session, event)
            session.merge(CursorRow(id=1, chain_key=self._chain_key(), cursor=batch.cursor.to_json()))
            session.commit()
        for rollback in rollbacks:
            self._metrics.reorgs.inc()
            _log.warning("the chain was reorganised", to_block=rollback.to_block)
        self._progress = Progress(head_block=batch.head + self._confirmations, indexed_block=batch.cursor.block_number)


def _apply(session: Session, event: ChainEvent) -> None:
    session.add(to_row(event))
    fold_task(session, event)
    fold_node(session, event)
    fold_money(session, event)


def _roll_back(session: Session, to_block: int) -> None:
    undone = select(EventRow.task, EventRow.node).where(EventRow.block > to_block)
    pairs = list(session.execute(undone))
    tasks = {task for task, _ in pairs if task is not None}
    nodes = {node for _, node in pairs if node is not None}
    payees = set(session.scalars(select(PaymentRow.payee).where(PaymentRow.block > to_block)))
    for dated in (EventRow, PaymentRow, SlashRow):
        session.execute(delete(dated).where(dated.block > to_block))
    for rows in (delete(TaskRow).where(TaskRow.task.in_(tasks)), delete(UnitRow).where(UnitRow.task.in_(tasks))):
        session.execute(rows)
    session.execute(delete(NodeRow).where(NodeRow.node.in_(nodes)))
    session.execute(delete(AccountRow).where(AccountRow.address.in_(payees)))
    session.expire_all()
    for event in _events_of(session, tasks, nodes):
        if getattr(event, "task", None) in tasks:
            fold_task(session, event)
        if getattr(event, "node", None) in nodes:
            fold_node(session, event)
    for payment in session.scalars(select(PaymentRow).where(PaymentRow.payee.in_(payees))):
        add_to_account(session, payment)


def _events_of(session: Session, tasks: set[bytes], nodes: set[int]) -> Sequence[ChainEvent]:
    query = select(EventRow).where(or_(EventRow.task.in_(tasks), EventRow.node.in_(nodes)))
    return from_rows(session.scalars(query.order_by(EventRow.block, EventRow.log_index)))
