"""From events to rows: what each event means for a task, for a node, and for somebody's money.

The three folds touch different tables, so that a rollback can repeat one of them for what it touched and no more. Stake
follows the registry's own arithmetic; a test holds the rows to what the contracts answer.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from marketplace.tables import AccountRow, NodeRow, PaymentRow, SlashRow, TaskRow, UnitRow
from protocol.events import (
    ChainEvent,
    Collected,
    Deregistered,
    Locked,
    NodeRegistered,
    NodeUpdated,
    OperatorRotated,
    Paid,
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
)


def fold_task(session: Session, event: ChainEvent) -> None:
    """Tasks and their units."""
    match event:
        case TaskPosted():
            session.add(_posted(event))
        case TaskCancelled(task=task):
            _get(session, TaskRow, task).status = "cancelled"
        case TaskClosed(task=task, refunded=refunded):
            row = _get(session, TaskRow, task)
            row.status, row.refunded = "closed", refunded
        case UnitClaimed(task=task, unit=number):
            unit = session.get(UnitRow, (task, number))
            if unit is None:
                unit = UnitRow(task=task, unit=number, attempt=0, paid=0)
                session.add(unit)
            unit.status, unit.node, unit.deadline = "claimed", event.node, event.deadline
            unit.updated_block = event.at.block_number
        case UnitCommitted(task=task, unit=number):
            # The reveal is due a window after the commit; the task's window is not in the row, its claim's end is past.
            unit = _moved(session, event, task, number, "committed")
            unit.deadline = None
        case UnitRevealed(task=task, unit=number):
            unit = _moved(session, event, task, number, "revealed")
            unit.deadline = None
            unit.result_root, unit.final_state_root = event.result_root, event.final_state_root
        case UnitFinalised(task=task, unit=number):
            unit = _moved(session, event, task, number, "finalised")
            unit.deadline = None
            unit.paid, unit.accepted = event.paid, event.accepted
            row = _get(session, TaskRow, task)
            row.paid = row.paid + event.paid
        case UnitExpired(task=task, unit=number):
            unit = _moved(session, event, task, number, "open")
            unit.deadline = None
            unit.attempt += 1
        case _:
            pass


def fold_node(session: Session, event: ChainEvent) -> None:
    """Nodes, their stake and their record."""
    if isinstance(event, NodeRegistered):
        session.add(_registered(event))
        return
    number = getattr(event, "node", None)
    node = None if number is None else session.get(NodeRow, number)
    if node is None:
        return
    match event:
        case NodeUpdated():
            node.encryption_key, node.endpoint = event.encryption_key, _printable(event.endpoint)
            node.capabilities_hash = event.capabilities_hash
        case OperatorRotated(new_operator=operator):
            node.operator = operator
        case Staked(amount=amount):
            node.stake = node.stake + amount
        case Locked(amount=amount):
            node.locked = node.locked + amount
        case Unlocked(amount=amount):
            node.locked = node.locked - amount
        case UnbondRequested(amount=amount):
            node.stake = node.stake - amount
        case Deregistered():
            node.leaving = True
        case UnitExpired(collateral=collateral):
            # The slash that follows in the same transaction first releases this lock (NodeRegistry._take).
            node.locked = node.locked - collateral
            node.units_expired += 1
        case Slashed(amount=amount):
            node.stake = node.stake - min(amount, node.stake - node.locked)
            node.slashed = node.slashed + amount
        case UnitFinalised(paid=paid):
            node.earned = node.earned + paid
            node.units_finalised += 1
        case _:
            pass


def fold_money(session: Session, event: ChainEvent) -> None:
    """Credits, withdrawals and slashes: one row each, and the sums of whom they went to."""
    match event:
        case UnitFinalised(payee=payee, paid=amount):
            _pay(session, event, "unit", payee, amount)
        case TaskClosed(task=task, refunded=amount):
            _pay(session, event, "refund", _get(session, TaskRow, task).requester, amount)
        case Paid(payee=payee, amount=amount) | Collected(payee=payee, amount=amount):
            _pay(session, event, "withdrawal", payee, amount)
        case Slashed():
            session.add(_slashed(event))
            _pay(session, event, "compensation", event.harmed, event.to_harmed)
            _pay(session, event, "compensation", event.reporter, event.to_reporter)
        case _:
            pass


def _get(session: Session, table: type[TaskRow], key: bytes) -> TaskRow:
    row = session.get(table, key)
    assert row is not None, f"an event about a task that was never posted: {key.hex()}"
    return row


def _moved(session: Session, event: ChainEvent, task: bytes, number: int, status: str) -> UnitRow:
    unit = session.get(UnitRow, (task, number))
    assert unit is not None, f"an event about a unit that was never claimed: {task.hex()} {number}"
    unit.status, unit.updated_block = status, event.at.block_number
    return unit


def _posted(event: TaskPosted) -> TaskRow:
    spec = event.spec
    return TaskRow(
        task=event.task,
        posted_block=event.at.block_number,
        requester=event.requester,
        status="posted",
        manifest=spec.manifest,
        private=spec.is_private,
        rounds=spec.rounds,
        shards=spec.shards,
        steps=spec.steps,
        deadline=spec.deadline,
        unit_price=spec.unit_price,
        aggregation_price=spec.aggregation_price,
        collateral=spec.collateral,
        escrow=event.escrow,
        paid=0,
        refunded=0,
    )


def _registered(event: NodeRegistered) -> NodeRow:
    return NodeRow(
        node=event.node,
        registered_block=event.at.block_number,
        owner=event.owner,
        operator=event.operator,
        endpoint=_printable(event.endpoint),
        encryption_key=event.encryption_key,
        capabilities_hash=event.capabilities_hash,
        leaving=False,
        stake=0,
        locked=0,
        slashed=0,
        earned=0,
        units_finalised=0,
        units_expired=0,
    )


def _printable(text: str) -> str:
    """A stranger's text without what terminals act on and PostgreSQL refuses (NUL)."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _slashed(event: Slashed) -> SlashRow:
    return SlashRow(
        block=event.at.block_number,
        transaction=event.at.tx_hash,
        node=event.node,
        amount=event.amount,
        harmed=event.harmed,
        to_harmed=event.to_harmed,
        reporter=event.reporter,
        to_reporter=event.to_reporter,
        burned=event.burned,
    )


def _pay(session: Session, event: ChainEvent, kind: str, payee: str, amount: int) -> None:
    if amount == 0:
        return
    row = PaymentRow(
        block=event.at.block_number,
        transaction=event.at.tx_hash,
        kind=kind,
        payee=payee,
        amount=amount,
        task=getattr(event, "task", None),
        unit=getattr(event, "unit", None),
        node=getattr(event, "node", None),
    )
    session.add(row)
    add_to_account(session, row)


def add_to_account(session: Session, payment: PaymentRow) -> None:
    """Adds a payment to its payee's sums."""
    account = session.get(AccountRow, payment.payee)
    if account is None:
        account = AccountRow(address=payment.payee, earned=0, refunded=0, compensated=0, withdrawn=0)
        session.add(account)
    match payment.kind:
        case "unit":
            account.earned = account.earned + payment.amount
        case "refund":
            account.refunded = account.refunded + payment.amount
        case "compensation":
            account.compensated = account.compensated + payment.amount
        case "withdrawal":
            account.withdrawn = account.withdrawn + payment.amount
        case _:
            raise ValueError(f"no such kind of payment: {payment.kind}")
