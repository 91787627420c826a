"""Fills the Compute Node's view: chain at one block, mailboxes, disk.

What is kept between two ticks is only what saves a question: tasks that are closed, rounds that are final, mail already
read. A new process finds all of it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import structlog

from node.compute import inputs, work
from node.compute.desk import Desk
from node.compute.view import IN_WORK, ComputeView, OverflowNote, Stage, TaskView, WorkKey
from node.compute.workshop import Cooldown, Workshop
from node.context import NodeContext
from node.gateway import GatewayClient
from node.rounds import RoundReader
from node.taskbook import TaskBook
from node.taskfeed import TaskFeed
from protocol.chain import ChainClient
from protocol.errors import StateError, VerificationError
from protocol.manifest import TaskManifest
from protocol.types import Admission, BlobId, NodeId, TaskId, TaskSpec, TaskState, TaskStatus, Unit, UnitStatus

UnitKey = tuple[TaskId, int]

SHARE_AFTER_S = 10
"""A key that its producer and the requester have not granted for this long is granted by any node that holds it."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Followed:
    """One task between two ticks."""

    book: TaskBook
    rounds: RoundReader
    asked_at: int | None = None
    """When an admission was asked for that has not come yet."""
    asked_with: Admission | None = None
    """The admission that this node had when it asked."""
    problem: str = "its manifest is not here yet"
    open_since: dict[int, int] = field(default_factory=dict)
    owed_since: dict[tuple[BlobId, NodeId], int] = field(default_factory=dict)
    mailbox: str | None = None
    """The mailbox that `asked_at` and `shared` are about."""
    tidied: tuple[int, frozenset[int]] | None = None
    """Round and units at the last look for what can be deleted."""
    shared: set[tuple[BlobId, NodeId]] = field(default_factory=set)
    """Grants that this process made."""


class Loader:
    """`load()` is called by the agent's thread only; `needs` may be asked by others between two loads."""

    def __init__(
        self,
        context: NodeContext,
        gateway: GatewayClient,
        node: NodeId,
        desk: Desk,
        training: Workshop[WorkKey],
        fetching: Workshop[UnitKey],
        cooling: Cooldown[UnitKey],
        *,
        owns_desk: bool = False,
    ) -> None:
        """`owns_desk`: this is the agent's own loader, and may delete what no unit needs any more."""
        self._context = context
        self._client = context.client
        self._gateway = gateway
        self._node = node
        self._desk = desk
        self._training, self._fetching, self._cooling = training, fetching, cooling
        self._owns_desk = owns_desk
        self._mail: Workshop[str] = Workshop("reading mail")
        self._cold: Cooldown[TaskId] = Cooldown()
        self._feed = TaskFeed(context)
        self._followed: dict[TaskId, _Followed] = {}
        self._over: set[TaskId] = set()

    def load(self) -> ComputeView:
        """Raises UnreachableError if the chain cannot be read. A gateway that is away only hides its mail."""
        head = self._client.latest_block()
        chain = self._client.at(head.number)
        constants = self._client.constants
        specs = [spec for spec in self._feed.poll() if TaskId(spec.task_id) not in self._over]
        open_: list[tuple[TaskSpec, TaskState]] = []
        for spec, state in zip(specs, chain.tasks([TaskId(spec.task_id) for spec in specs]), strict=True):
            if state.status is TaskStatus.CLOSED:
                self._forget(TaskId(spec.task_id))
            elif state.status is not TaskStatus.NONE:
                open_.append((spec, state))
        self._read_mail([self._follow(spec) for spec, _ in open_])
        tasks = [self._task_view(chain, spec, state, head.timestamp) for spec, state in open_]
        return ComputeView(
            block=head,
            node=chain.node(self._node),
            min_stake=constants.min_stake,
            gas_wei=chain.gas_balance(self._context.account.address),
            tip_bps=constants.tip_bps,
            tasks=tuple(tasks),
            work=self._work(tasks),
        )

    def book(self, task: TaskId) -> TaskBook:
        return self._followed[task].book

    def needs(self, tv: TaskView, unit: int) -> tuple[inputs.Need, ...]:
        """What a unit of the present round starts from. Raises StateError S-71 while the manifest is not here."""
        followed = self._followed[tv.task]
        self.require_manifest(tv.task)
        return inputs.needs_of(followed.book, unit, tv.input_root, tv.units, followed.rounds.producer)

    def require_manifest(self, task: TaskId) -> TaskManifest:
        """As read before: the agent's own thread never waits for the gateway. Raises StateError S-71."""
        followed = self._followed[task]
        if not followed.book.has_manifest:
            raise StateError(f"task {task.hex()[:8]}: {followed.problem}", code="S-71", hint="is the gateway there?")
        return followed.book.manifest

    def note_asked(self, tv: TaskView, now: int) -> None:
        followed = self._followed[tv.task]
        followed.asked_at, followed.asked_with = now, tv.admission

    def note_shared(self, task: TaskId, grants: frozenset[tuple[BlobId, NodeId]]) -> None:
        self._followed[task].shared |= grants

    # --- one task ---

    def _task_view(self, chain: ChainClient, spec: TaskSpec, state: TaskState, now: int) -> TaskView:
        followed = self._follow(spec)
        book = followed.book
        followed.rounds.read(chain)
        _note_open(followed, now)
        admitted = book.admitted.get(self._node)
        admission = None if admitted is None else admitted.admission
        if book.mailbox != followed.mailbox:
            # What this process asked and granted is lost, or was never said here.
            followed.mailbox, followed.asked_at, followed.asked_with = book.mailbox, None, None
            followed.shared.clear()
        if admission != followed.asked_with:
            followed.asked_at = None  # answered
        view = TaskView(
            spec=spec,
            state=state,
            round=followed.rounds.round,
            input_root=followed.rounds.input_root,
            units=followed.rounds.units,
            asked_at=followed.asked_at,
            open_since=dict(followed.open_since),
            preparing=frozenset(unit for task, unit in self._fetching.running if task == book.task),
            speed=self._desk.speed(spec.program_root),
            averaging=self._desk.speed(spec.aggregation_root),
            overflows=self._overflows(book.task, followed.rounds),
        )
        if not book.has_manifest:
            return replace(view, problem=followed.problem)
        view = self._with_inputs(
            replace(
                view,
                admission=admission,
                acceptances=self._acceptances(book, view),
                owed=self._owed(followed, view, now),
            )
        )
        if self._owns_desk:
            self._tidy(followed, view)
        return view

    def _read_mail(self, followed: list[_Followed]) -> None:
        """What came since the last look. An agent fetches in a thread: a gateway that is away costs it no deadline."""
        if self._owns_desk:
            self._mail.start("mail", lambda _stop: self._fetch_mail(followed))
        else:
            self._fetch_mail(followed)
        for one in followed:
            one.book.fold()

    def _fetch_mail(self, followed: list[_Followed]) -> None:
        """Raises UnreachableError; the workshop then leaves the gateway alone for a while."""
        for one in followed:
            one.book.fetch()
            if not one.book.has_manifest and not self._cold.holds(one.book.task):
                try:
                    _ = one.book.manifest
                except (VerificationError, StateError) as error:
                    # Not what the chain says, or not there yet: asked for again after a while, not at every tick.
                    one.problem = f"its manifest: {error.message}"
                    self._cold.failed(one.book.task)

    def _follow(self, spec: TaskSpec) -> _Followed:
        task = TaskId(spec.task_id)
        if task not in self._followed:
            context = self._context
            book = TaskBook(
                spec,
                self._gateway,
                context.domain,
                self._client.node_of,
                context.encryption_key,
                self._node,
            )
            self._recall_manifest(book)
            self._followed[task] = _Followed(book, RoundReader(spec))
        return self._followed[task]

    def _recall_manifest(self, book: TaskBook) -> None:
        """A node that starts again while the gateway is away goes on with the tasks that it has worked on."""
        if self._desk.has_input(book.task, book.spec.manifest):
            try:
                book.remember_manifest(self._desk.get_input(book.task, book.spec.manifest))
            except (VerificationError, OSError) as error:
                log.warning("manifest on disk refused", task=book.task.hex()[:8], why=str(error))

    def _forget(self, task: TaskId) -> None:
        self._over.add(task)
        self._followed.pop(task, None)
        if self._owns_desk:
            self._desk.forget(task)

    def _acceptances(self, book: TaskBook, tv: TaskView) -> dict[int, bytes]:
        found = {}
        for index, unit in tv.units.items():
            if unit.node == self._node and unit.status is UnitStatus.REVEALED:
                signature = book.acceptance(index, unit.result)
                if signature is not None:
                    found[index] = signature
        return found

    def _with_inputs(self, tv: TaskView) -> TaskView:
        """Which units of the present round have their inputs here, and which could have."""
        book = self.book(tv.task)
        ready, reachable, cooling = set(), set(), set()
        for index, unit in tv.units.items():
            wanted = unit.status is UnitStatus.OPEN or (unit.node == self._node and unit.status in IN_WORK)
            if not wanted or not tv.inputs_known(index):
                continue
            needs = self.needs(tv, index)
            if inputs.is_ready(self._desk, book, needs):
                ready.add(index)
            if inputs.is_reachable(self._desk, book, needs):
                reachable.add(index)
            key = (tv.task, index)
            if self._cooling.holds(key) or self._fetching.failed(key):
                cooling.add(index)
        return replace(tv, ready=frozenset(ready), reachable=frozenset(reachable), cooling=frozenset(cooling))

    def _owed(self, followed: _Followed, tv: TaskView, now: int) -> frozenset[tuple[BlobId, NodeId]]:
        """Keys of states that readers are entitled to and were granted neither by the producer nor the requester."""
        book = followed.book
        if not tv.spec.is_private or not tv.input_root:
            return frozenset()
        producers = dict(_present_states(followed.rounds, tv))
        missing: dict[tuple[BlobId, NodeId], int] = {}
        for index, unit in producers.items():
            result = book.announced(index, unit)
            if result is None or book.keyring is None or not book.keyring.holds(BlobId(result.state_blob)):
                continue
            blob = BlobId(result.state_blob)
            for reader in (NodeId(0), *book.admitted):
                pair = (blob, reader)
                if pair in followed.shared or book.granted(blob, reader, {None, unit.node, self._node}):
                    continue
                since = followed.owed_since.get(pair, now)
                missing[pair] = since
        followed.owed_since = missing
        own = {
            BlobId(r.state_blob) for i, u in producers.items() if u.node == self._node if (r := book.announced(i, u))
        }
        return frozenset(p for p, since in missing.items() if p[0] in own or now >= since + SHARE_AFTER_S)

    # --- disk ---

    def _overflows(self, task: TaskId, rounds: RoundReader) -> dict[int, OverflowNote]:
        """Of the present round. A unit that would start from another state, after a reorganisation, may fare better."""
        input_root = rounds.input_root.hex()
        found = {index: self._desk.overflow(task, index) for index in rounds.units}
        return {index: note for index, note in found.items() if note is not None and note.input_root == input_root}

    def _work(self, tasks: list[TaskView]) -> dict[WorkKey, Stage]:
        stages = dict.fromkeys(self._training.running, Stage.RUNNING)
        for tv in tasks:
            for index, unit in tv.units.items():
                key = WorkKey(tv.task, index, unit.attempt)
                if unit.node != self._node or key in stages or unit.status is UnitStatus.OPEN:
                    continue
                if work.is_done(self._desk, tv.spec, key):
                    published = self._desk.published(key, self.book(tv.task).mailbox)
                    stages[key] = Stage.PUBLISHED if published else Stage.DONE
                elif index in tv.overflows:
                    stages[key] = Stage.OVERFLOWED
                elif self._training.failed(key):
                    stages[key] = Stage.FAILED
        return stages

    def _tidy(self, followed: _Followed, tv: TaskView) -> None:
        """Deletes states that only past rounds started from, and attempts at units that are final."""
        now = (tv.round, frozenset(tv.units))
        if followed.tidied == now or tv.problem is not None or self._training.running or self._fetching.running:
            return
        shards = followed.book.manifest.shards
        keep = {tv.spec.manifest, tv.spec.program_root, tv.input_root, *(shard.data_root for shard in shards)}
        keep |= {unit.final_state_root for unit in tv.units.values()}
        self._desk.drop_inputs(tv.task, keep)
        for key in self._desk.attempts(tv.task):
            unit = tv.units.get(key.unit)
            final = unit is None and tv.spec.round_of(key.unit) < tv.round and self._desk.published(key)
            if final or (unit is not None and unit.attempt > key.attempt):
                self._desk.drop_attempt(key)
        followed.tidied = now


def _present_states(rounds: RoundReader, tv: TaskView) -> list[tuple[int, Unit]]:
    """The units whose final states somebody may need now: the present round's input, and its shards' results."""
    found = []
    if rounds.producer is not None:
        found.append((tv.round * tv.spec.units_per_round - 1, rounds.producer))
    return found + [
        (index, unit)
        for index, unit in tv.units.items()
        if tv.spec.round_of(index) == tv.round and unit.status >= UnitStatus.REVEALED
    ]


def _note_open(followed: _Followed, now: int) -> None:
    spec, rounds = followed.book.spec, followed.rounds
    followed.open_since = {
        index: followed.open_since.get(index, now)
        for index, unit in rounds.units.items()
        if unit.status is UnitStatus.OPEN and spec.round_of(index) == rounds.round
    }
