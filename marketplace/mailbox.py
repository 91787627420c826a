"""The mailbox: signed messages, checked at the door, kept in the order of arrival.

Whoever reads checks them again: the mailbox vouches for nothing. Announcements of blobs are not kept as mail (their
index lives in the content store), but their nonces are remembered like any other's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from sqlalchemy import ColumnElement, Engine, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from marketplace.config import Limits
from marketplace.content import ContentStore
from marketplace.limits import RateLimiter, TooManyRequestsError
from marketplace.standing import Roll, has_standing
from marketplace.tables import Mail, Nonce
from proofs.blob import BlobFormatError, BlobIndex
from protocol.errors import BlobError, ReplayError
from protocol.json_types import to_hex
from protocol.messages import MAX_TTL_S, BlobAnnounce, Domain, Payload, SignedMessage, UnitProgress, verify_message
from protocol.wire import BlobAnnounced, ListAnswer, MailItem, MessagePosted

MAX_PAGE_BYTES = 8 << 20
"""Envelopes in one answer; a single one may be larger by itself."""


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
    ) -> ListAnswer[MailItem]:
        """Mail with id > `after`, ascending. `next` is the last id given, null when there is nothing new."""
        conditions: list[ColumnElement[bool]] = [Mail.id > after]
        if task is not None:
            conditions.append(Mail.task == task)
        if kind is not None:
            conditions.append(Mail.kind == kind)
        query = select(Mail).where(*conditions).order_by(Mail.id).limit(limit)
        with Session(self._engine) as session:
            page = _up_to_bytes(session.scalars(query), MAX_PAGE_BYTES)
        return ListAnswer[MailItem](
            items=tuple(_item(row) for row in page),
            next=page[-1].id if page else None,
            as_of_block=as_of_block,
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
            if isinstance(payload, UnitProgress):
                self._thin_out(session, row)
            else:
                self._check_share(session, message)
            session.add(row)
            session.flush()
            number = row.id
            self._remember(session, message, now)
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

    def _check_share(self, session: Session, message: SignedMessage) -> None:
        mine = (Mail.sender == message.sender, Mail.task == message.task)
        if (session.scalar(select(func.count()).where(*mine)) or 0) >= self._limits.mail_per_sender_and_task:
            raise TooManyRequestsError(f"{message.sender} has filled its share of this task's mailbox", 3600)

    def _thin_out(self, session: Session, row: Mail) -> None:
        """Keeps a unit's curve but not every point of it: when it is full, every second message goes."""
        same = (Mail.kind == row.kind, Mail.task == row.task, Mail.unit == row.unit, Mail.sender == row.sender)
        ids = list(session.scalars(select(Mail.id).where(*same).order_by(Mail.id)))
        if len(ids) >= self._limits.progress_per_unit:
            session.execute(delete(Mail).where(Mail.id.in_(ids[1::2])))


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
