"""Fills the Request Node's view of its task: chain at one block, mailbox, its own keys on disk."""

from __future__ import annotations

import time

import structlog

from node.context import NodeContext
from node.gateway import GatewayClient
from node.request.prepare import load_content_keys
from node.request.view import REQUESTER, Announced, Ask, Offer, RequestView
from node.rounds import RoundReader
from node.taskbook import ALL_KINDS, TaskBook
from node.taskfeed import TaskFeed
from protocol.errors import StateError, UnreachableError
from protocol.types import BlobId, NodeId, TaskId, TaskSpec, Unit, UnitStatus

log = structlog.get_logger(__name__)


class Loader:
    """`load()` is called by the agent's thread only."""

    def __init__(self, context: NodeContext, gateway: GatewayClient, spec: TaskSpec) -> None:
        self._client = context.client
        self._requester = context.account.address
        self.spec = spec
        self.book = TaskBook(
            spec,
            gateway,
            context.domain,
            self._client.node_of,
            context.encryption_key,
            REQUESTER,
            kinds=ALL_KINDS,
        )
        if self.book.keyring is not None:
            for blob, key in load_content_keys(context.data_dir, TaskId(spec.task_id)).items():
                self.book.keyring.put(blob, key)
        self.rounds = RoundReader(spec)
        self._open_since: dict[int, int] = {}
        self._gateway_away = False

    def load(self, looking_at: frozenset[int]) -> RequestView:
        """`looking_at`: units whose results are being looked at, or were in vain a moment ago.

        Raises UnreachableError (chain or gateway), VerificationError if the manifest contradicts the chain.
        """
        head = self._client.latest_block()
        chain = self._client.at(head.number)
        state = chain.task(TaskId(self.spec.task_id))
        self.rounds.read(chain)
        units = self.rounds.units
        self._note_open(head.timestamp)
        try:
            self.book.poll()
        except UnreachableError as error:
            # What was read before still holds; what the chain needs of the requester must not wait for the gateway.
            if not self._gateway_away:
                log.warning("gateway away", why=error.message)
            self._gateway_away = True
        else:
            if self._gateway_away:
                log.info("gateway back")
            self._gateway_away = False
        book = self.book
        announced = {index: said for index, unit in units.items() if (said := self._announced(index, unit)) is not None}
        private = self.spec.is_private
        shard_blobs = tuple(BlobId(shard.data_blob) for shard in book.manifest.shards) if private else ()
        state_blobs = self._state_blobs(announced) if private else ()
        readers = (REQUESTER, *book.admitted)
        return RequestView(
            timestamp=head.timestamp,
            clock=int(time.time()),
            spec=self.spec,
            state=state,
            round=self.rounds.round,
            units=units,
            open_since=dict(self._open_since),
            asks=self._asks() if private else (),
            offers={
                node: Offer(said.admission.shards, said.message_id, said.sent_at)
                for node, said in book.admitted.items()
            },
            heard=dict(book.heard),
            shard_blobs=shard_blobs,
            state_blobs=state_blobs,
            granted=frozenset(
                (blob, reader)
                for blob in (*shard_blobs, *state_blobs)
                for reader in readers
                if book.granted(blob, reader, {None, self._uploader(blob, announced)})
            ),
            ungrantable=frozenset(blob for blob in (*shard_blobs, *state_blobs) if not book.readable(blob)),
            announced=announced,
            accepted=frozenset(i for i, unit in units.items() if book.acceptance(i, unit.result) is not None),
            unacceptable=looking_at,
            credit=chain.market_credit(self._requester),
            compensation=chain.registry_credit(self._requester),
        )

    # --- pieces ---

    def _note_open(self, now: int) -> None:
        self._open_since = {
            index: self._open_since.get(index, now)
            for index, unit in self.rounds.units.items()
            if unit.status is UnitStatus.OPEN and self.spec.round_of(index) == self.rounds.round
        }

    def _announced(self, index: int, unit: Unit) -> Announced | None:
        if unit.status < UnitStatus.REVEALED:
            return None
        said = self.book.announced(index, unit)
        return None if said is None else Announced(BlobId(said.state_blob), said.final_state_root, said.result_root)

    def _state_blobs(self, announced: dict[int, Announced]) -> tuple[BlobId, ...]:
        """The states that a node may need now: the present round's input, its shards' results."""
        rounds, spec = self.rounds, self.spec
        blobs: list[BlobId] = []
        if rounds.producer is None:
            blobs.append(BlobId(self.book.manifest.initial_state_blob))
        else:
            index = rounds.round * spec.units_per_round - 1
            said = self._announced(index, rounds.producer)
            blobs += [said.blob] if said is not None else []
        blobs += [said.blob for index, said in sorted(announced.items()) if spec.round_of(index) == rounds.round]
        return tuple(dict.fromkeys(blobs))

    def _uploader(self, blob: BlobId, announced: dict[int, Announced]) -> NodeId | None:
        """The node that uploaded a state; None for what the requester uploaded itself."""
        for index, said in announced.items():
            if said.blob == blob:
                return self.rounds.units[index].node
        producer = self.rounds.producer
        return producer.node if producer is not None and blob not in self._own_blobs() else None

    def _own_blobs(self) -> set[BlobId]:
        manifest = self.book.manifest
        return {BlobId(manifest.initial_state_blob), *(BlobId(shard.data_blob) for shard in manifest.shards)}

    def _asks(self) -> tuple[Ask, ...]:
        """Requests that are not answered yet. Their senders are registered: the mailbox has seen to that."""
        admitted, minimum = self.book.admitted, self._client.constants.min_stake
        waiting = {n: i for n, i in self.book.asks.items() if n not in admitted or admitted[n].message_id < i}
        return tuple(
            Ask(
                record.node,
                waiting[record.node],
                record.stake >= minimum and not record.leaving and record.free_stake >= self.spec.collateral,
            )
            for record in self._client.nodes(waiting)
        )


def find_spec(context: NodeContext, task: TaskId) -> TaskSpec:
    """Raises StateError S-43 if no such task was posted, S-45 if another account posted it."""
    spec = TaskFeed(context).posted(task).spec
    if spec.requester != context.account.address:
        raise StateError(
            f"task 0x{task.hex()[:8]} belongs to {spec.requester}, this key is {context.account.address}",
            code="S-45",
            hint="run this with the home of the requester",
        )
    return spec
