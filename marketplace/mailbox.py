"""The mailbox: signed messages, checked at the door, kept in the order of arrival.

Whoever reads checks them again: the mailbox vouches for nothing. Announcements of blobs are not kept as mail (their
index lives in the content store), but their nonces are remembered like any other's.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Engine, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from marketplace.config import Limits
from marketplace.content import ContentStore
from marketplace.limits import RateLimiter, TooManyRequestsError
from marketplace.standing import Roll, has_standing
from marketplace.tables import Mail, MailboxName, Nonce
from proofs.blob import BlobFormatError, BlobIndex
from protocol.errors import BlobError, ReplayError
from protocol.json_types import to_hex
from protocol.messages import (
    MAX_TTL_S,
    BlobAnnounce,
    Domain,
    Kind,
    Payload,
    SignedMessage,
    UnitProgress,
    verify_message,
)
from protocol.wire import BlobAnnounced, MailItem, MailPage, MessagePosted

MAX_PAGE_BYTES = 8 << 20
"""Envelopes in one answer; a single one may be larger by itself."""
_MAX_SHARES = 10_000
"""Senders in tasks whose share is remembered; another one's is counted again."""


class Mailbox:
    """Safe for several threads; the database decides races."""

    def __init__(
        self,
        engine: Engine,
        store: ContentStore,
        domain: Domain,
        roll: Roll,
        limits: Limits,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._engine = engine
        self._store = store
        self._domain = domain
        self._roll = roll
        self._limits = limits
        self._clock = clock
        self._senders = RateLimiter(limits.messages_per_minute)
        self._pruned_at = 0
        with Session(engine) as session:
            self._last_id = session.scalar(select(func.max(Mail.id))) or 0
            self._name = _name_of(session)
        self._shares: dict[tuple[str, bytes, bool], _Share] = {}
        # One writer at a time: ids then become visible in their order, and no reader's cursor skips one.
        self._writing = threading.Lock()

    @property
    def last_id(self) -> int:
        """Id of the newest message, 0 if there is none. Costs nothing: streams ask for it all the time."""
        return self._last_id

    def post(self, message: SignedMessage) -> MessagePosted | BlobAnnounced:
        """Checks a message and keeps it. Raises every error of `verify_message`, TooManyRequestsError, and for an
        announcement BlobError and StorageFullError."""
        now = int(self._clock())
        payload = verify_message(message, self._domain, standing=self._standing, now=now, seen_nonce=self._seen_nonce)
        if isinstance(payload, BlobAnnounce):
            return self._announce(message, payload, now)
        return self._keep(message, payload, now)

    def read(
        self, *, task: bytes | None, kind: str | None, after: int, limit: int, as_of_block: int | None
    ) -> MailPage:
        """Mail with id > `after`, ascending. `next` is the last id given, null when there is nothing new."""
        conditions: list[ColumnElement[bool]] = [Mail.id > after]
        if task is not None:
            conditions.append(Mail.task == task)
        if kind is not None:
            conditions.append(Mail.kind == kind)
        query = select(Mail).where(*conditions).order_by(Mail.id).limit(limit)
        with Session(self._engine) as session:
            page = _up_to_bytes(session.scalars(query), MAX_PAGE_BYTES)
        return MailPage(
            items=tuple(_item(row) for row in page),
            next=page[-1].id if page else None,
            as_of_block=as_of_block,
            mailbox=self._name,
        )

    def _standing(self, message: SignedMessage, payload: Payload) -> bool:
        # Here the signature is known to be right and the chain has not been asked yet: the one place where a limit can
        # be put on a sender that nobody else can use up, before it costs an RPC call.
        self._senders.take(message.sender)
        return has_standing(self._roll, message, payload)

    def _seen_nonce(self, sender: str, nonce: int) -> bool:
        with Session(self._engine) as session:
            return session.get(Nonce, (sender, nonce)) is not None

    def _announce(self, message: SignedMessage, payload: BlobAnnounce, now: int) -> BlobAnnounced:
        try:
            index = BlobIndex(size=payload.size, leaves=payload.index)
        except BlobFormatError as error:
            raise BlobError(f"the index does not fit the size: {error}") from error
        if index.blob_id != payload.blob:
            raise BlobError(f"size and index hash to {to_hex(index.blob_id)}, not {to_hex(payload.blob)}")
        missing = self._store.announce(index, message.sender)
        with self._writing, Session(self._engine) as session:
            self._remember(session, message, now)
        return BlobAnnounced(missing=tuple(missing))

    def _keep(self, message: SignedMessage, payload: Payload, now: int) -> MessagePosted:
        row = Mail(
            task=message.task,
            kind=message.kind,
            sender=message.sender,
            unit=getattr(payload, "unit", None),
            received_at=now,
            envelope=message.to_json().decode(),
        )
        with self._writing, Session(self._engine) as session:
            share = self._share(session, row)
            if isinstance(payload, UnitProgress):
                self._thin_out(session, row, share)
            else:
                self._check_share(row, share)
            session.add(row)
            session.flush()
            number = row.id
            self._remember(session, message, now)
            share.count += 1
            share.bytes_ += len(row.envelope)
            self._last_id = number
        return MessagePosted(id=number)

    def _remember(self, session: Session, message: SignedMessage, now: int) -> None:
        """Commits the session with the nonce in it: message and nonce are kept together or not at all."""
        session.add(Nonce(sender=message.sender, nonce=message.nonce, deadline=message.deadline))
        if now - self._pruned_at > 600:
            self._pruned_at = now
            # An hour of grace: a clock set back must not bring an old nonce to life.
            session.execute(delete(Nonce).where(Nonce.deadline < now - MAX_TTL_S))
        try:
            session.commit()
        except IntegrityError as error:  # two deliveries of one message raced
            raise ReplayError(f"nonce {message.nonce} of {message.sender} was used before") from error

    def _share(self, session: Session, row: Mail) -> _Share:
        """What a sender has in a task's mailbox, its progress apart; counted once, then kept up to date."""
        key = (row.sender, row.task, row.kind == Kind.UNIT_PROGRESS)
        if key not in self._shares:
            if len(self._shares) >= _MAX_SHARES:
                del self._shares[next(iter(self._shares))]
            kind = Mail.kind == row.kind if key[2] else Mail.kind != Kind.UNIT_PROGRESS
            size = func.coalesce(func.sum(func.length(Mail.envelope)), 0)
            mine = select(func.count(), size).where(Mail.sender == row.sender, Mail.task == row.task, kind)
            count, bytes_ = session.execute(mine.select_from(Mail)).one()
            self._shares[key] = _Share(count, int(bytes_))
        return self._shares[key]

    def _check_share(self, row: Mail, share: _Share) -> None:
        limits = self._limits
        too_large = share.bytes_ + len(row.envelope) > limits.mail_bytes_per_sender_and_task
        if share.count >= limits.mail_per_sender_and_task or too_large:
            raise TooManyRequestsError(f"{row.sender} has filled its share of this task's mailbox", 3600)

    def _thin_out(self, session: Session, row: Mail, share: _Share) -> None:
        """Keeps a unit's curve but not every point of it: when it is full, every second message goes. When all of a
        sender's progress is too much, whatever units it names, the older half goes."""
        theirs = (Mail.kind == row.kind, Mail.task == row.task, Mail.sender == row.sender)
        of_unit = select(Mail.id).where(*theirs, Mail.unit == row.unit).order_by(Mail.id)
        ids = list(session.scalars(of_unit))
        if len(ids) >= self._limits.progress_per_unit:
            dropped = ids[1::2]
            session.execute(delete(Mail).where(Mail.id.in_(dropped)))
            share.count -= len(dropped)
        if share.count >= self._limits.mail_per_sender_and_task:
            everything = list(session.scalars(select(Mail.id).where(*theirs).order_by(Mail.id)))
            older = everything[: len(everything) // 2 + 1]
            session.execute(delete(Mail).where(*theirs, Mail.id <= older[-1]))
            share.count = len(everything) - len(older)


@dataclass(slots=True)
class _Share:
    """Messages of one sender in one task."""

    count: int
    bytes_: int


def _name_of(session: Session) -> str:
    """Made with the database, and lost with it."""
    row = session.get(MailboxName, 1)
    if row is None:
        row = MailboxName(id=1, name=secrets.token_hex(16))
        session.add(row)
        session.commit()
    return row.name


def _up_to_bytes(rows: Iterable[Mail], max_bytes: int) -> list[Mail]:
    page: list[Mail] = []
    total = 0
    for row in rows:
        total += len(row.envelope)
        if page and total > max_bytes:
            break
        page.append(row)
    return page


def _item(row: Mail) -> MailItem:
    envelope = SignedMessage.from_json(row.envelope)
    return MailItem(id=row.id, **{name: getattr(envelope, name) for name in SignedMessage.model_fields})
