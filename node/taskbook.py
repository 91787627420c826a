"""What has been said about one task, folded into what can be asked of it.

The chain says what counts; the mailbox says where things are and who may read them. A book holds the second, for one
reader: it is rebuilt by replaying the mailbox, and every answer that has to do with money (admission, acceptance)
carries a signature that the contract will check again.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import structlog

from node.gateway import GatewayClient
from node.keyring import Keyring, fetch
from node.mailbox import Letter, Mailbox, NewMailbox, OperatorOf
from proofs.blob import index_of
from proofs.exact.encoding import root_of_encoding
from protocol.errors import BlobError, SignatureFormError
from protocol.manifest import MAX_MANIFEST_BYTES, TaskManifest
from protocol.messages import (
    AdmissionGrant,
    AdmissionRequest,
    Domain,
    Grant,
    KeyGrant,
    Kind,
    Payload,
    UnitAcceptance,
    UnitProgress,
    UnitResult,
)
from protocol.sealing import EncryptionKey
from protocol.signatures import recover_acceptance, recover_admission
from protocol.types import Admission, BlobId, NodeId, TaskId, TaskSpec, Unit

MAX_PROGRAM_BYTES = 64 << 20
log = structlog.get_logger(__name__)
READER_KINDS = tuple(kind for kind in Kind if kind not in (Kind.BLOB_ANNOUNCE, Kind.UNIT_PROGRESS))
ALL_KINDS = (*READER_KINDS, Kind.UNIT_PROGRESS)


@dataclass(frozen=True, slots=True)
class Admitted:
    """An admission that the requester signed, and when."""

    admission: Admission
    message_id: int
    sent_at: int


@dataclass(slots=True)
class _Said:
    """The fold of all letters so far."""

    admitted: dict[NodeId, Admitted] = field(default_factory=dict)
    asks: dict[NodeId, int] = field(default_factory=dict)
    heard: dict[NodeId, int] = field(default_factory=dict)
    grants: dict[tuple[BlobId, NodeId], set[NodeId | None]] = field(default_factory=lambda: defaultdict(set))
    results: dict[int, dict[NodeId, list[UnitResult]]] = field(default_factory=lambda: defaultdict(dict))
    acceptances: dict[tuple[int, bytes], bytes] = field(default_factory=dict)
    progress: dict[tuple[int, NodeId], UnitProgress] = field(default_factory=dict)
    letters: dict[Kind, int] = field(default_factory=lambda: defaultdict(int))


MAX_RESULTS = 4
"""Announcements kept per unit and node; a later one counts first (another attempt, or the same blob sealed anew)."""


class TaskBook:
    """One task's mailbox, manifest and keys, as `reader` (0: the requester) has them.

    Without an `encryption_key` it opens nothing, and is for whoever only wants to know what was said.
    """

    def __init__(
        self,
        spec: TaskSpec,
        gateway: GatewayClient,
        domain: Domain,
        operator_of: OperatorOf,
        encryption_key: EncryptionKey | None,
        reader: NodeId,
        *,
        kinds: Iterable[Kind] = READER_KINDS,
    ) -> None:
        self.spec = spec
        self.task = TaskId(spec.task_id)
        self.gateway = gateway
        self.reader = reader
        self.keyring = None if encryption_key is None or not spec.is_private else Keyring(encryption_key, reader)
        self._domain = domain
        self._mailbox = Mailbox(gateway, domain, spec, operator_of, kinds)
        self._said = _Said()
        self._unread: deque[Letter | NewMailbox] = deque()
        self.mailbox: str | None = None
        """Name of the mailbox that all of this was said in; None before it was read."""

    def poll(self) -> None:
        """Reads what is new. Raises UnreachableError."""
        self.fetch()
        self.fold()

    def fetch(self) -> None:
        """The half that waits for the gateway; may run in a thread of its own. Raises UnreachableError."""
        for letter in self._mailbox.poll():
            self._unread.append(letter)

    def fold(self) -> None:
        """The half that changes what the book says: by the thread that reads it."""
        while self._unread:
            letter = self._unread.popleft()
            if isinstance(letter, NewMailbox):
                # Nobody can read any more what was said before: it counts as not said. Keys that were got stay.
                self._said, self.mailbox = _Said(), letter.name
            else:
                self._fold(letter)

    @property
    def has_manifest(self) -> bool:
        """Whether `manifest` answers without the gateway."""
        return "manifest" in self.__dict__

    def say(self, payload: Payload) -> None:
        """Posts a message about this task. Raises UnreachableError, VerificationError."""
        self._mailbox.say(payload)

    @cached_property
    def manifest(self) -> TaskManifest:
        """Fetched once, checked against the specification. Raises VerificationError, BlobError, UnreachableError."""
        return self._checked(self.gateway.download_blob(self.spec.manifest, MAX_MANIFEST_BYTES))

    def remember_manifest(self, data: bytes) -> None:
        """Takes the manifest from where it was kept, instead of the gateway. Raises BlobError if these are not its
        bytes, VerificationError."""
        if index_of(data).blob_id != self.spec.manifest:
            raise BlobError("the manifest on disk is not the task's")
        self.__dict__["manifest"] = self._checked(data)

    def _checked(self, data: bytes) -> TaskManifest:
        manifest = TaskManifest.from_bytes(data)
        manifest.check_against(self.spec)
        return manifest

    # --- what was said ---

    @property
    def admitted(self) -> dict[NodeId, Admitted]:
        return self._said.admitted

    @property
    def asks(self) -> dict[NodeId, int]:
        """Id of each node's latest request for admission."""
        return self._said.asks

    @property
    def heard(self) -> dict[NodeId, int]:
        """When each node last said anything, by its own clock, unix s."""
        return self._said.heard

    @property
    def progress(self) -> dict[tuple[int, NodeId], UnitProgress]:
        """By unit and node; whose unit it is, the chain says."""
        return self._said.progress

    @property
    def letters(self) -> dict[Kind, int]:
        """How many messages of each kind were read."""
        return self._said.letters

    def granted(self, blob: BlobId, reader: NodeId, holders: Iterable[NodeId | None]) -> bool:
        """Whether one of `holders` (None: the requester) has granted the blob's key to the reader."""
        return not self._said.grants.get((blob, reader), set()).isdisjoint(holders)

    def acceptance(self, unit: int, result_root: bytes) -> bytes | None:
        """The requester's signature for this very result."""
        return self._said.acceptances.get((unit, result_root))

    def results_of(self, unit: int, node: NodeId) -> tuple[UnitResult, ...]:
        """What a node announced for a unit, newest first."""
        return tuple(reversed(self._said.results.get(unit, {}).get(node, [])))

    def announced(self, index: int, unit: Unit) -> UnitResult | None:
        """The announcement of a revealed unit by its own worker that agrees with the chain; newest first."""
        for result in self.results_of(index, unit.node):
            if (result.result_root, result.final_state_root) == (unit.result, unit.final_state_root):
                return result
        return None

    # --- blobs ---

    def readable(self, blob: BlobId) -> bool:
        """Whether this reader holds a key, or needs none."""
        return not self.spec.is_private or (self.keyring is not None and self.keyring.holds(blob))

    def open(self, blob: BlobId, max_bytes: int) -> bytes:
        """Raises what node.keyring.fetch raises."""
        return fetch(self.gateway, blob, max_bytes, self.keyring)

    def rewrap(self, blob: BlobId, reader: NodeId, public: bytes | None) -> Grant | None:
        """A grant of a blob's key to a reader. None if the key is not held here, or the reader's own is missing or
        unusable: one reader's bad key must not keep the others from theirs."""
        if self.keyring is None or public is None:
            return None
        try:
            return self.keyring.rewrap(blob, reader, public)
        except BlobError as error:
            log.warning("reader cannot be served", reader=reader, blob=blob.hex()[:8], why=error.message)
            return None

    def program(self) -> bytes:
        """The encoded program; it is public in every task. Raises BlobError V-21 if it isn't the chain's."""
        data = self.gateway.download_blob(self.manifest.program_blob, MAX_PROGRAM_BYTES)
        if root_of_encoding(data) != self.spec.program_root:
            raise BlobError("the program blob is not the task's program", code="V-21", hint="do not work on this task")
        return data

    # --- folding ---

    def _fold(self, letter: Letter) -> None:
        said, payload = self._said, letter.payload
        said.letters[payload.kind] += 1
        if letter.sender_node is not None:
            said.heard[letter.sender_node] = max(letter.sent_at, said.heard.get(letter.sender_node, 0))
        match payload:
            case AdmissionRequest():
                said.asks[NodeId(payload.node)] = letter.id
            case AdmissionGrant():
                self._admit(letter, payload)
            case KeyGrant():
                for grant in payload.grants:
                    said.grants[BlobId(grant.blob), NodeId(grant.reader)].add(letter.sender_node)
                if self.keyring is not None:
                    self.keyring.add(payload.grants, letter.sender_node)
            case UnitResult():
                results = said.results[payload.unit].setdefault(NodeId(payload.node), [])
                results.append(payload)
                del results[:-MAX_RESULTS]
            case UnitAcceptance():
                domain, signed = self._domain, (payload.unit, payload.result_root, payload.signature)
                if self._is_requester(lambda: recover_acceptance(domain, self.task, *signed)):
                    said.acceptances[payload.unit, payload.result_root] = payload.signature
            case UnitProgress() if payload.unit < self.spec.units:
                said.progress[payload.unit, NodeId(payload.node)] = payload

    def _admit(self, letter: Letter, grant: AdmissionGrant) -> None:
        """The latest admission counts; the requester never narrows one."""
        node = NodeId(grant.node)
        admission = Admission(grant.shards, grant.deadline, grant.signature)
        if self._is_requester(lambda: recover_admission(self._domain, self.task, node, admission)):
            self._said.admitted[node] = Admitted(admission, letter.id, letter.sent_at)

    def _is_requester(self, recover: Callable[[], str]) -> bool:
        """As the contract will check it."""
        try:
            return recover() == self.spec.requester
        except SignatureFormError:
            return False


def blobs_of(results: Iterable[UnitResult]) -> tuple[BlobId, ...]:
    """The state blobs of announcements, without repetition."""
    return tuple(dict.fromkeys(BlobId(result.state_blob) for result in results))
