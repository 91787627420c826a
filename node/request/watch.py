"""A task's progress as a stream of snapshots. Money and statuses are the chain's; losses are what workers say."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from node.context import NodeContext
from node.request.view import REQUESTER
from node.taskbook import ALL_KINDS, TaskBook
from node.taskfeed import TaskFeed
from protocol.chain import ChainClient
from protocol.errors import UnreachableError
from protocol.types import NodeId, TaskId, TaskSpec, TaskStatus, Unit, UnitStatus, Wei


@dataclass(frozen=True, slots=True)
class UnitSnapshot:
    """One unit of the present round. `step`, `steps` and `loss` (nats) are what its worker last said, if anything."""

    unit: int
    shard: int
    """Equals the number of shards for the aggregation unit."""
    status: UnitStatus
    node: NodeId
    attempt: int
    step: int | None
    steps: int | None
    loss: float | None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Where a task is at one block."""

    task: TaskId
    block: int
    timestamp: int
    status: TaskStatus
    round: int
    """The round in work; equals `rounds` when all is trained."""
    rounds: int
    units: tuple[UnitSnapshot, ...]
    by_status: Mapping[UnitStatus, int]
    """Of all units of the task."""
    loss: float | None
    """Mean of what the workers of the newest round with any news said, nats."""
    escrow: Wei
    paid: Wei
    """Paid for finalised units so far."""
    elapsed_s: int
    """Since the task was posted, chain time."""

    @property
    def trained(self) -> bool:
        return self.round >= self.rounds


def watch(
    context: NodeContext, task_id: TaskId, *, poll_s: float = 1.0, stop: threading.Event | None = None
) -> Iterator[Snapshot]:
    """A snapshot now, and one whenever something changed, until the task is closed or `stop` is set.

    Needs no key. A gateway that is away hides losses only. Raises StateError S-43 (no such task), UnreachableError at
    the start.
    """
    stop = stop or threading.Event()
    posted = TaskFeed(context).posted(task_id)
    book = TaskBook(
        posted.spec,
        context.reading_gateway,
        context.domain,
        context.client.node_of,
        None,
        REQUESTER,
        kinds=ALL_KINDS,
    )
    last: Snapshot | None = None
    final: list[tuple[Unit, ...]] = []
    while not stop.is_set():
        try:
            book.poll()
        except UnreachableError:
            if last is None:
                raise
        snapshot = _take(context, book, posted.at.timestamp, final)
        if last is None or _differs(snapshot, last):
            last = snapshot
            yield snapshot
        if snapshot.status is TaskStatus.CLOSED:
            return
        stop.wait(poll_s)


def _take(context: NodeContext, book: TaskBook, posted_at: int, final: list[tuple[Unit, ...]]) -> Snapshot:
    spec = book.spec
    head = context.client.latest_block()
    chain = context.client.at(head.number)
    state = chain.task(book.task)
    rounds = _read_rounds(chain, spec, final)
    now = next((r for r, units in enumerate(rounds) if not _has_output(units)), spec.rounds)
    untouched = spec.units - len(rounds) * spec.units_per_round
    shown = min(now, spec.rounds - 1)
    return Snapshot(
        task=book.task,
        block=head.number,
        timestamp=head.timestamp,
        status=state.status,
        round=now,
        rounds=spec.rounds,
        units=tuple(_unit(book, spec.unit_index(shown, shard), unit) for shard, unit in enumerate(rounds[shown])),
        by_status=Counter(unit.status for units in rounds for unit in units) + Counter({UnitStatus.OPEN: untouched}),
        loss=_loss(book, spec, rounds),
        escrow=spec.escrow,
        paid=Wei(
            sum(
                spec.price_of(spec.unit_index(round_, shard))
                for round_, units in enumerate(rounds)
                for shard, unit in enumerate(units)
                if unit.status is UnitStatus.FINALISED
            )
        ),
        elapsed_s=head.timestamp - posted_at,
    )


def _read_rounds(chain: ChainClient, spec: TaskSpec, final: list[tuple[Unit, ...]]) -> list[tuple[Unit, ...]]:
    """Rounds 0 to the present one, all their units. `final` are leading ones that cannot change; it grows."""
    rounds = list(final)
    while len(rounds) < spec.rounds:
        rounds.append(chain.round(spec, len(rounds)))
        if len(rounds) == len(final) + 1 and all(unit.status is UnitStatus.FINALISED for unit in rounds[-1]):
            final.append(rounds[-1])
        if not _has_output(rounds[-1]):
            break
    return rounds


def _has_output(units: tuple[Unit, ...]) -> bool:
    return units[-1].status >= UnitStatus.REVEALED


def _unit(book: TaskBook, index: int, unit: Unit) -> UnitSnapshot:
    said = book.progress.get((index, unit.node))
    return UnitSnapshot(
        index,
        book.spec.shard_of(index),
        unit.status,
        unit.node,
        unit.attempt,
        said.step if said else None,
        said.steps if said else None,
        said.loss if said else None,
    )


def _loss(book: TaskBook, spec: TaskSpec, rounds: list[tuple[Unit, ...]]) -> float | None:
    """Anybody with a node may say anything of any unit: what counts is the word of whom the chain has at it."""
    for round_, units in reversed(list(enumerate(rounds))):
        said = [book.progress.get((spec.unit_index(round_, shard), unit.node)) for shard, unit in enumerate(units)]
        if losses := [progress.loss for progress in said if progress is not None and progress.loss is not None]:
            return sum(losses) / len(losses)
    return None


def _differs(a: Snapshot, b: Snapshot) -> bool:
    return (a.status, a.round, a.units, a.by_status, a.loss, a.paid) != (
        b.status,
        b.round,
        b.units,
        b.by_status,
        b.loss,
        b.paid,
    )
