"""The write-ahead journal of transactions: nothing is broadcast before it is here, on disk.

An *intent* is one thing that somebody wants done ("claim unit 7"); an *attempt* is one signed transaction that would do
it. A replaced fee makes another attempt of the same intent, with the same nonce. States:

    intent -> signed -> sent -> mined
                             -> failed     (it is on the chain, and reverted)
                             -> replaced   (another transaction took its nonce: it can never happen any more)

`signed` and `sent` are *unfinished*: only reading the chain can tell what became of them. SQLite in WAL mode with
`synchronous=FULL`, so a commit survives a power cut. Several processes may share one file. Rows belong to one chain
(`ChainClient.chain_key`: id and genesis), so a local chain that starts anew does not inherit nonces.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from eth_typing import ChecksumAddress
from eth_utils.address import to_checksum_address

from protocol.errors import ConfigError
from protocol.transactions import Call

_BUSY_TIMEOUT_S = 30.0

# Migration n takes user_version n to n + 1. Never edit one that has shipped; append.
_MIGRATIONS = (
    """
    CREATE TABLE intents (
        id INTEGER PRIMARY KEY,
        chain TEXT NOT NULL,
        account TEXT NOT NULL,
        key TEXT NOT NULL,
        kind TEXT NOT NULL,
        description TEXT NOT NULL,
        to_address TEXT NOT NULL,
        data BLOB NOT NULL,
        value TEXT NOT NULL,
        state TEXT NOT NULL,
        created_s REAL NOT NULL,
        mined_hash BLOB,
        mined_block INTEGER
    );
    CREATE UNIQUE INDEX live_keys ON intents (chain, account, key) WHERE state NOT IN ('failed', 'replaced');
    CREATE INDEX by_state ON intents (chain, account, state);
    CREATE TABLE attempts (
        hash BLOB NOT NULL,
        intent INTEGER NOT NULL REFERENCES intents (id),
        nonce INTEGER NOT NULL,
        raw BLOB NOT NULL,
        gas INTEGER NOT NULL,
        max_fee_wei TEXT NOT NULL,
        priority_fee_wei TEXT NOT NULL,
        created_s REAL NOT NULL,
        PRIMARY KEY (intent, hash)
    );
    """,
)


class IntentState(StrEnum):
    INTENT = "intent"
    SIGNED = "signed"
    SENT = "sent"
    MINED = "mined"
    FAILED = "failed"
    REPLACED = "replaced"


UNFINISHED = (IntentState.SIGNED, IntentState.SENT)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One signed transaction. Fees in wei per gas."""

    hash: bytes
    nonce: int
    raw: bytes
    gas: int
    max_fee_wei: int
    priority_fee_wei: int
    created_s: float


@dataclass(frozen=True, slots=True)
class Intent:
    """One thing wanted, with its attempts, oldest first."""

    id: int
    key: str
    kind: str
    description: str
    to: ChecksumAddress
    data: bytes
    value: int
    state: IntentState
    created_s: float
    mined_hash: bytes | None
    mined_block: int | None
    attempts: tuple[Attempt, ...]

    @property
    def nonce(self) -> int:
        """All attempts share it. Raises `IndexError` before the first."""
        return self.attempts[0].nonce

    def same_as(self, call: Call) -> bool:
        return (self.to, self.data, self.value) == (call.to, call.data, call.value)


class Journal:
    """The journal in one file. Safe to use from several threads and several processes.

    Raises `ConfigError` C-40 if the file is no journal, or one written by a later version.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, check_same_thread=False, isolation_level=None)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA foreign_keys = ON")
            self._migrate()
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ConfigError(
                f"{path} is not a usable journal: {error}", code="C-40", hint="move the file away and start again"
            ) from error
        except ConfigError:
            self._db.close()
            raise
        path.chmod(0o600)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing. Raises `ConfigError` C-41 if the file cannot be written: full disk, no permission."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.OperationalError):
                    raise ConfigError(
                        f"cannot write to {self.path}: {error}",
                        code="C-41",
                        hint="free disk space or correct the permissions; nothing is sent that is not written down",
                    ) from error
                raise

    def _migrate(self) -> None:
        with self._transaction() as db:
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version > len(_MIGRATIONS):
                raise ConfigError(
                    f"{self.path} was written by a later version of Avenue", code="C-40", hint="install that version"
                )
            for migration in _MIGRATIONS[version:]:
                # executescript would commit first; statements one by one stay inside the transaction.
                for statement in filter(str.strip, migration.split(";")):
                    db.execute(statement)
            db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")

    # -writing ---

    def add(self, chain: str, account: str, call: Call, key: str | None) -> Intent:
        """Records a new intent. Without a key it gets a random one.

        Raises `sqlite3.IntegrityError` if an intent with this key is unfinished or mined: look with `find` first.
        """
        key = key or f"once:{uuid.uuid4()}"
        with self._transaction() as db:
            cursor = db.execute(
                "INSERT INTO intents"
                " (chain, account, key, kind, description, to_address, data, value, state, created_s)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    chain,
                    account,
                    key,
                    call.kind,
                    call.description,
                    call.to,
                    call.data,
                    str(call.value),
                    IntentState.INTENT.value,
                    time.time(),
                ),
            )
            assert cursor.lastrowid is not None
            return self._load(cursor.lastrowid)

    def add_attempt(self, intent: Intent, attempt: Attempt) -> Intent:
        """Records signed bytes, and with them that the intent is `signed`. Durable when it returns."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO attempts VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    attempt.hash,
                    intent.id,
                    attempt.nonce,
                    attempt.raw,
                    attempt.gas,
                    str(attempt.max_fee_wei),
                    str(attempt.priority_fee_wei),
                    attempt.created_s,
                ),
            )
            if intent.state is IntentState.INTENT:
                db.execute("UPDATE intents SET state = ? WHERE id = ?", (IntentState.SIGNED.value, intent.id))
            return self._load(intent.id)

    def set_state(
        self, intent: Intent, state: IntentState, *, mined_hash: bytes | None = None, mined_block: int | None = None
    ) -> Intent:
        with self._transaction() as db:
            db.execute(
                "UPDATE intents SET state = ?, mined_hash = ?, mined_block = ? WHERE id = ?",
                (state.value, mined_hash, mined_block, intent.id),
            )
            return self._load(intent.id)

    # -reading ---

    def get(self, intent_id: int) -> Intent:
        with self._lock:
            return self._load(intent_id)

    def find(self, chain: str, account: str, key: str) -> Intent | None:
        """The intent that holds this key: unfinished or mined. Failed and replaced ones have let go of theirs."""
        return next(iter(self._select(chain, account, "key = ? AND state NOT IN ('failed', 'replaced')", (key,))), None)

    def unfinished(self, chain: str, account: str) -> list[Intent]:
        """Intents whose outcome only the chain knows, by nonce."""
        found = self._select(chain, account, "state IN ('signed', 'sent')", ())
        return sorted(found, key=lambda intent: intent.nonce)

    def never_signed(self, chain: str, account: str) -> list[Intent]:
        """Intents that were recorded and then abandoned before anything was signed."""
        return self._select(chain, account, "state = 'intent'", ())

    def mined_since(self, chain: str, account: str, block: int) -> list[Intent]:
        """Intents mined in `block` or later: those that a reorganisation could still undo."""
        return self._select(chain, account, "state IN ('mined', 'failed') AND mined_block >= ?", (block,))

    def next_nonce(self, chain: str, account: str) -> int:
        """One more than the highest nonce that we know used or about to be; 0 if we know of none."""
        with self._lock:
            row = self._db.execute(
                "SELECT MAX(nonce) FROM attempts JOIN intents ON intents.id = attempts.intent"
                " WHERE chain = ? AND account = ? AND state != 'replaced'"
                # Refused by the endpoint: its nonce is still free.
                " AND NOT (state = 'failed' AND mined_hash IS NULL)",
                (chain, account),
            ).fetchone()
        return 0 if row[0] is None else int(row[0]) + 1

    def _select(self, chain: str, account: str, condition: str, values: tuple[object, ...]) -> list[Intent]:
        with self._lock:
            rows = self._db.execute(
                f"SELECT id FROM intents WHERE chain = ? AND account = ? AND {condition} ORDER BY id",
                (chain, account, *values),
            ).fetchall()
            return [self._load(row[0]) for row in rows]

    def _load(self, intent_id: int) -> Intent:
        row = self._db.execute(
            "SELECT id, key, kind, description, to_address, data, value, state, created_s, mined_hash, mined_block"
            " FROM intents WHERE id = ?",
            (intent_id,),
        ).fetchone()
        attempts = self._db.execute(
            "SELECT hash, nonce, raw, gas, max_fee_wei, priority_fee_wei, created_s FROM attempts WHERE intent = ?"
            " ORDER BY rowid",
            (intent_id,),
        ).fetchall()
        return Intent(
            id=row[0],
            key=row[1],
            kind=row[2],
            description=row[3],
            to=to_checksum_address(row[4]),
            data=row[5],
            value=int(row[6]),
            state=IntentState(row[7]),
            created_s=row[8],
            mined_hash=row[9],
            mined_block=row[10],
            attempts=tuple(
                Attempt(hash_, nonce, raw, gas, int(max_fee), int(priority), created)
                for hash_, nonce, raw, gas, max_fee, priority, created in attempts
            ),
        )
