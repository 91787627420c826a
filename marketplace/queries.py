"""What people ask the index, answered in the models of protocol/wire.py; JSON and the page are made from the same
answers."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Engine, Select, exists, func, select
from sqlalchemy.orm import Session

from marketplace.content import ContentStore
from marketplace.tables import AccountRow, Mail, NodeRow, PaymentRow, SlashRow, TaskRow, UnitRow
from protocol.errors import AvenueError, StateError
from protocol.json_types import to_hex
from protocol.manifest import TaskManifest
from protocol.messages import Kind, SignedMessage, UnitProgress, parse_payload
from protocol.wire import AccountView, ListAnswer, NodeView, PaymentView, SlashView, TaskView, UnitView

RowT = TypeVar("RowT", TaskRow, NodeRow)

OPEN = "open"
IN_FLIGHT = {"claimed", "committed", "revealed"}
RESULT_KNOWN = {"revealed", "finalised"}
CURVE_POINTS = 96
_MAX_NAMED_MANIFEST_BYTES = 1 << 20


_BY_ITS_WORKER = (
    exists()
    .where(UnitRow.task == Mail.task, UnitRow.unit == Mail.unit)
    .where(NodeRow.node == UnitRow.node, NodeRow.operator == Mail.sender)
    .correlate(Mail)
)
"""Any node may say anything about any unit; what the unit's own worker says is shown."""


@dataclass(frozen=True, slots=True)
class LossPoint:
    """Mean loss (nats) that workers reported around `step`, counted from the task's first step."""

    step: float
    loss: float


@dataclass(slots=True)
class _Curve:
    """Sums of the losses reported so far, by bucket: each report is parsed once, not at every look."""

    last_id: int = 0
    sums: dict[int, tuple[float, float, int]] = field(default_factory=dict)
    """Bucket -> sum of steps, sum of losses, count."""

    def add(self, bucket: int, step: int, loss: float) -> None:
        steps, losses, count = self.sums.get(bucket, (0.0, 0.0, 0))
        self.sums[bucket] = (steps + step, losses + loss, count + 1)

    def points(self) -> list[LossPoint]:
        return [LossPoint(steps / count, losses / count) for _, (steps, losses, count) in sorted(self.sums.items())]


class Queries:
    """Reads of the index at one block. Each call is one short transaction."""

    def __init__(self, engine: Engine, store: ContentStore, indexed_block: Callable[[], int | None]) -> None:
        self._engine = engine
        self._store = store
        self._indexed_block = indexed_block
        self._names: dict[bytes, str] = {}
        self._curves: dict[bytes, _Curve] = {}
        self._curves_lock = threading.Lock()

    def tasks(self, *, after: bytes | None = None, limit: int = 100) -> ListAnswer[TaskView]:
        """Newest first. `next` is the last task's id."""
        with Session(self._engine) as session:
            query = select(TaskRow).order_by(TaskRow.posted_block.desc(), TaskRow.task)
            if after is not None:
                last = self._row(session, TaskRow, after, "task")
                query = query.where(
                    (TaskRow.posted_block < last.posted_block)
                    | ((TaskRow.posted_block == last.posted_block) & (TaskRow.task > last.task))
                )
            rows = list(session.scalars(query.limit(limit + 1)))
            views = [self._task_view(session, row) for row in rows[:limit]]
            more = len(rows) > limit
        return ListAnswer[TaskView](
            items=tuple(views), next=to_hex(views[-1].task) if more else None, as_of_block=self._indexed_block()
        )

    def task(self, task: bytes) -> TaskView:
        """Raises StateError S-73."""
        with Session(self._engine) as session:
            return self._task_view(session, self._row(session, TaskRow, task, "task"))

    def units(self, task: bytes, *, after: int = -1, limit: int = 500) -> ListAnswer[UnitView]:
        """By number, open ones included. `next` is the last unit's number. Raises StateError S-73."""
        with Session(self._engine) as session:
            row = self._row(session, TaskRow, task, "task")
            first, total = after + 1, row.rounds * _units_per_round(row)
            numbers = range(first, min(first + limit, total))
            views = self._unit_views(session, row, numbers)
        following = numbers.stop - 1 if numbers and numbers.stop < total else None
        return ListAnswer[UnitView](items=tuple(views), next=following, as_of_block=self._indexed_block())

    def nodes(self, *, after: int = 0, limit: int = 100) -> ListAnswer[NodeView]:
        """By number. `next` is the last node's number."""
        with Session(self._engine) as session:
            query = select(NodeRow).where(NodeRow.node > after).order_by(NodeRow.node).limit(limit + 1)
            rows = list(session.scalars(query))
        views = [_node_view(row) for row in rows[:limit]]
        following = views[-1].node if len(rows) > limit else None
        return ListAnswer[NodeView](items=tuple(views), next=following, as_of_block=self._indexed_block())

    def node(self, node: int) -> NodeView:
        """Raises StateError S-73."""
        with Session(self._engine) as session:
            return _node_view(self._row(session, NodeRow, node, "node"))

    def payments(
        self, *, payee: str | None = None, before: int | None = None, limit: int = 100
    ) -> ListAnswer[PaymentView]:
        """Newest first. `next` goes into `before`."""
        query = select(PaymentRow).order_by(PaymentRow.id.desc()).limit(limit + 1)
        if payee is not None:
            query = query.where(PaymentRow.payee == payee)
        if before is not None:
            query = query.where(PaymentRow.id < before)
        with Session(self._engine) as session:
            rows = list(session.scalars(query))
        views = [PaymentView.model_validate(row, from_attributes=True) for row in rows[:limit]]
        following = views[-1].id if len(rows) > limit else None
        return ListAnswer[PaymentView](items=tuple(views), next=following, as_of_block=self._indexed_block())

    def slashes(self, *, before: int | None = None, limit: int = 100) -> ListAnswer[SlashView]:
        """Newest first. `next` goes into `before`."""
        query = select(SlashRow).order_by(SlashRow.id.desc()).limit(limit + 1)
        if before is not None:
            query = query.where(SlashRow.id < before)
        with Session(self._engine) as session:
            rows = list(session.scalars(query))
        views = [SlashView.model_validate(row, from_attributes=True) for row in rows[:limit]]
        following = views[-1].id if len(rows) > limit else None
        return ListAnswer[SlashView](items=tuple(views), next=following, as_of_block=self._indexed_block())

    def accounts(self, *, after: str = "", limit: int = 100) -> ListAnswer[AccountView]:
        """By address. `next` is the last address."""
        query = select(AccountRow).where(AccountRow.address > after).order_by(AccountRow.address).limit(limit + 1)
        with Session(self._engine) as session:
            rows = list(session.scalars(query))
        views = [AccountView.model_validate(row, from_attributes=True) for row in rows[:limit]]
        following = views[-1].address if len(rows) > limit else None
        return ListAnswer[AccountView](items=tuple(views), next=following, as_of_block=self._indexed_block())

    def counts(self) -> tuple[int, int]:
        """Tasks and nodes in the index."""
        with Session(self._engine) as session:
            tasks = session.scalar(select(func.count()).select_from(TaskRow)) or 0
            return tasks, session.scalar(select(func.count()).select_from(NodeRow)) or 0

    def loss_curve(self, task: TaskView) -> list[LossPoint]:
        """The losses that workers reported, averaged over shards and neighbouring steps into at most CURVE_POINTS."""
        total = max(1, task.rounds * task.steps)
        with self._curves_lock, Session(self._engine) as session:
            curve = self._curves.setdefault(task.task, _Curve())
            for mail in session.scalars(_progress_mail(task.task).where(Mail.id > curve.last_id).order_by(Mail.id)):
                curve.last_id = mail.id
                progress = _progress(mail)
                if progress is not None and progress.loss is not None and progress.unit < task.units:
                    step = progress.unit // (task.units // task.rounds) * task.steps + progress.step
                    curve.add(min(CURVE_POINTS - 1, step * CURVE_POINTS // total), step, progress.loss)
            return curve.points()

    def _row(self, session: Session, table: type[RowT], key: bytes | int, what: str) -> RowT:
        row = session.get(table, key)
        if row is None:
            shown = to_hex(key) if isinstance(key, bytes) else str(key)
            hint = "the index may be a few blocks behind: see /api/v1/status"
            raise StateError(f"no {what} {shown}", code="S-73", hint=hint)
        return row

    def _task_view(self, session: Session, row: TaskRow) -> TaskView:
        of_task = UnitRow.task == row.task
        by_status = select(UnitRow.status, func.count()).where(of_task).group_by(UnitRow.status)
        counted = Counter(dict(session.execute(by_status).all()))
        newest = session.scalars(_progress_mail(row.task).order_by(Mail.id.desc()).limit(1)).first()
        progress = None if newest is None else _progress(newest)
        return TaskView(
            task=row.task,
            requester=row.requester,
            name=self._name(row.manifest),
            status=row.status,
            private=row.private,
            manifest=row.manifest,
            rounds=row.rounds,
            shards=row.shards,
            steps=row.steps,
            units=row.rounds * _units_per_round(row),
            units_finalised=counted["finalised"],
            units_in_flight=sum(counted[status] for status in IN_FLIGHT),
            round=_current_round(session, row),
            unit_price=row.unit_price,
            aggregation_price=row.aggregation_price,
            collateral=row.collateral,
            escrow=row.escrow,
            paid=row.paid,
            refunded=row.refunded,
            deadline=row.deadline,
            posted_block=row.posted_block,
            loss=None if progress is None else progress.loss,
        )

    def _unit_views(self, session: Session, task: TaskRow, numbers: Sequence[int]) -> list[UnitView]:
        if not numbers:
            return []
        span = (numbers[0], numbers[-1])
        rows = {
            row.unit: row
            for row in session.scalars(select(UnitRow).where(UnitRow.task == task.task, UnitRow.unit.between(*span)))
        }
        newest = (
            select(func.max(Mail.id))
            .where(Mail.kind == Kind.UNIT_PROGRESS, Mail.task == task.task, Mail.unit.between(*span), _BY_ITS_WORKER)
            .group_by(Mail.unit)
        )
        reports = (_progress(mail) for mail in session.scalars(select(Mail).where(Mail.id.in_(newest))))
        progress = {report.unit: report for report in reports if report is not None}
        return [_unit_view(task, number, rows.get(number), progress.get(number)) for number in numbers]

    def _name(self, manifest: bytes) -> str | None:
        if manifest not in self._names:
            data = self._store.read(manifest, max_size=_MAX_NAMED_MANIFEST_BYTES)
            if data is None:
                return None
            try:
                self._names[manifest] = TaskManifest.from_bytes(data).name
            except AvenueError:
                self._names[manifest] = "(the manifest is not one)"
        return self._names[manifest]


def _progress_mail(task: bytes) -> Select[Mail]:
    return select(Mail).where(Mail.kind == Kind.UNIT_PROGRESS, Mail.task == task, _BY_ITS_WORKER)


def _progress(mail: Mail) -> UnitProgress | None:
    payload = parse_payload(SignedMessage.from_json(mail.envelope))
    return payload if isinstance(payload, UnitProgress) else None


def _units_per_round(row: TaskRow) -> int:
    return row.shards + (1 if row.shards > 1 else 0)


def _current_round(session: Session, row: TaskRow) -> int:
    per_round = _units_per_round(row)
    round_ = UnitRow.unit // per_round
    known = select(round_, func.count()).where(UnitRow.task == row.task, UnitRow.status.in_(RESULT_KNOWN))
    counts = dict(session.execute(known.group_by(round_)).all())
    return next((number for number in range(row.rounds) if counts.get(number, 0) < per_round), row.rounds)


def _unit_view(task: TaskRow, number: int, row: UnitRow | None, progress: UnitProgress | None) -> UnitView:
    round_, shard = divmod(number, _units_per_round(task))
    aggregation = task.shards > 1 and shard == task.shards
    current = progress if progress is not None and row is not None and progress.node == row.node else None
    return UnitView(
        task=task.task,
        unit=number,
        round=round_,
        shard=shard,
        aggregation=aggregation,
        status=OPEN if row is None else row.status,
        node=None if row is None or row.status == OPEN else row.node,
        attempt=0 if row is None else row.attempt,
        deadline=None if row is None else row.deadline,
        result_root=None if row is None else row.result_root,
        final_state_root=None if row is None else row.final_state_root,
        paid=0 if row is None else row.paid,
        accepted=None if row is None else row.accepted,
        step=None if current is None else current.step,
        steps=1 if aggregation else task.steps,
        loss=None if current is None else current.loss,
        updated_block=None if row is None else row.updated_block,
    )


def _node_view(row: NodeRow) -> NodeView:
    return NodeView(
        node=row.node,
        owner=row.owner,
        operator=row.operator,
        endpoint=row.endpoint,
        encryption_key=row.encryption_key,
        capabilities_hash=row.capabilities_hash,
        status="leaving" if row.leaving else "working" if row.locked else "idle",
        stake=row.stake,
        locked=row.locked,
        slashed=row.slashed,
        earned=row.earned,
        units_finalised=row.units_finalised,
        units_expired=row.units_expired,
        registered_block=row.registered_block,
    )
