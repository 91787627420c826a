"""The gateway's tables. SQLite or PostgreSQL, through SQLAlchemy and nothing that only one of them has.

`mail`, `mailbox` and `nonces` hold what people sent. Everything else is a copy of the chain: `rebuild` empties it and
reads it again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Dialect,
    Engine,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    create_engine,
    event,
)
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import StaticPool
from sqlalchemy.types import TypeDecorator


class WeiText(TypeDecorator[int]):
    """A uint256 as decimal text: no integer type of both databases holds one."""

    impl = String(78)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: Any | None, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


class Base(DeclarativeBase):
    """Root of all tables."""


# SQLite numbers rows by itself only in a column declared INTEGER.
RowId = BigInteger().with_variant(Integer(), "sqlite")


class Mail(Base):
    """A delivered message, in the order of arrival."""

    __tablename__ = "mail"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    task: Mapped[bytes] = mapped_column(LargeBinary(32))
    kind: Mapped[str] = mapped_column(String(64))
    sender: Mapped[str] = mapped_column(String(42))
    unit: Mapped[int | None] = mapped_column(BigInteger)
    received_at: Mapped[int] = mapped_column(BigInteger)
    envelope: Mapped[str] = mapped_column(Text)

    __table_args__ = (
        Index("mail_by_task", "task", "id"),
        Index("mail_by_kind", "kind", "task", "unit", "id"),
        {"sqlite_autoincrement": True},  # an id is never used again, so a reader's cursor stays right
    )


class MailboxName(Base):
    """The name of this database's mailbox: a reader notices by it that all mail was lost."""

    __tablename__ = "mailbox"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(64))


class Nonce(Base):
    """A (sender, nonce) that was delivered. May be forgotten once its deadline is long past."""

    __tablename__ = "nonces"

    sender: Mapped[str] = mapped_column(String(42), primary_key=True)
    nonce: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    deadline: Mapped[int] = mapped_column(BigInteger, index=True)


class TaskRow(Base):
    """A task. Amounts in wei."""

    __tablename__ = "tasks"

    task: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    posted_block: Mapped[int] = mapped_column(BigInteger, index=True)
    requester: Mapped[str] = mapped_column(String(42), index=True)
    status: Mapped[str] = mapped_column(String(16))
    manifest: Mapped[bytes] = mapped_column(LargeBinary(32))
    private: Mapped[bool] = mapped_column(Boolean)
    rounds: Mapped[int] = mapped_column(BigInteger)
    shards: Mapped[int] = mapped_column(BigInteger)
    steps: Mapped[int] = mapped_column(BigInteger)
    deadline: Mapped[int] = mapped_column(BigInteger)
    unit_price: Mapped[int] = mapped_column(WeiText)
    aggregation_price: Mapped[int] = mapped_column(WeiText)
    collateral: Mapped[int] = mapped_column(WeiText)
    escrow: Mapped[int] = mapped_column(WeiText)
    paid: Mapped[int] = mapped_column(WeiText, default=0)
    refunded: Mapped[int] = mapped_column(WeiText, default=0)


class UnitRow(Base):
    """A unit that was claimed at least once; all others are open."""

    __tablename__ = "units"

    task: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    unit: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    status: Mapped[str] = mapped_column(String(16))
    node: Mapped[int] = mapped_column(BigInteger)
    attempt: Mapped[int] = mapped_column(BigInteger, default=0)
    deadline: Mapped[int | None] = mapped_column(BigInteger)
    result_root: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    final_state_root: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    paid: Mapped[int] = mapped_column(WeiText, default=0)
    accepted: Mapped[bool | None] = mapped_column(Boolean)
    updated_block: Mapped[int] = mapped_column(BigInteger)


class NodeRow(Base):
    """A compute node. Amounts in wei."""

    __tablename__ = "nodes"

    node: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    registered_block: Mapped[int] = mapped_column(BigInteger)
    owner: Mapped[str] = mapped_column(String(42))
    operator: Mapped[str] = mapped_column(String(42), index=True)
    endpoint: Mapped[str] = mapped_column(Text)
    encryption_key: Mapped[bytes] = mapped_column(LargeBinary(32))
    capabilities_hash: Mapped[bytes] = mapped_column(LargeBinary(32))
    leaving: Mapped[bool] = mapped_column(Boolean, default=False)
    stake: Mapped[int] = mapped_column(WeiText, default=0)
    locked: Mapped[int] = mapped_column(WeiText, default=0)
    slashed: Mapped[int] = mapped_column(WeiText, default=0)
    earned: Mapped[int] = mapped_column(WeiText, default=0)
    units_finalised: Mapped[int] = mapped_column(BigInteger, default=0)
    units_expired: Mapped[int] = mapped_column(BigInteger, default=0)


class PaymentRow(Base):
    """Money that somebody was credited or sent."""

    __tablename__ = "payments"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    block: Mapped[int] = mapped_column(BigInteger, index=True)
    transaction: Mapped[bytes] = mapped_column(LargeBinary(32))
    kind: Mapped[str] = mapped_column(String(16))
    payee: Mapped[str] = mapped_column(String(42), index=True)
    amount: Mapped[int] = mapped_column(WeiText)
    task: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    unit: Mapped[int | None] = mapped_column(BigInteger)
    node: Mapped[int | None] = mapped_column(BigInteger)


class AccountRow(Base):
    """Sums of an address's payments, by kind. Amounts in wei."""

    __tablename__ = "accounts"

    address: Mapped[str] = mapped_column(String(42), primary_key=True)
    earned: Mapped[int] = mapped_column(WeiText, default=0)
    refunded: Mapped[int] = mapped_column(WeiText, default=0)
    compensated: Mapped[int] = mapped_column(WeiText, default=0)
    withdrawn: Mapped[int] = mapped_column(WeiText, default=0)


class SlashRow(Base):
    """Stake that a node lost, and where it went."""

    __tablename__ = "slashes"

    id: Mapped[int] = mapped_column(RowId, primary_key=True, autoincrement=True)
    block: Mapped[int] = mapped_column(BigInteger, index=True)
    transaction: Mapped[bytes] = mapped_column(LargeBinary(32))
    node: Mapped[int] = mapped_column(BigInteger, index=True)
    amount: Mapped[int] = mapped_column(WeiText)
    harmed: Mapped[str] = mapped_column(String(42))
    to_harmed: Mapped[int] = mapped_column(WeiText)
    reporter: Mapped[str] = mapped_column(String(42))
    to_reporter: Mapped[int] = mapped_column(WeiText)
    burned: Mapped[int] = mapped_column(WeiText)


class EventRow(Base):
    """An event of the chain as it was read: what a rollback folds again."""

    __tablename__ = "events"

    block: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    log_index: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    task: Mapped[bytes | None] = mapped_column(LargeBinary(32), index=True)
    node: Mapped[int | None] = mapped_column(BigInteger, index=True)
    event: Mapped[str] = mapped_column(Text)


class CursorRow(Base):
    """How far the index is, and of which chain and market it is."""

    __tablename__ = "cursor"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    chain_key: Mapped[str] = mapped_column(String(128))
    cursor: Mapped[str] = mapped_column(Text)


CHAIN_TABLES: tuple[type[Base], ...] = (
    TaskRow,
    UnitRow,
    NodeRow,
    PaymentRow,
    AccountRow,
    SlashRow,
    EventRow,
    CursorRow,
)
"""What `rebuild` empties."""


def open_database(url: str) -> Engine:
    """The engine, tables created where they are missing."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        in_memory = parsed.database in (None, "", ":memory:")
        engine = (
            create_engine(url, connect_args={"check_same_thread": False}, poolclass=StaticPool)
            if in_memory
            else create_engine(url, connect_args={"timeout": 30})
        )

        @event.listens_for(engine, "connect")
        def _set_pragmas(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
    else:
        engine = create_engine(url, pool_pre_ping=True)
    Base.metadata.create_all(engine)
    return engine
