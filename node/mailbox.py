"""A task's mailbox as one reader sees it: verified messages only, in order, each once.

The gateway stores what others signed; it is not believed. Every message is checked again here (content, signature,
signer, payload, standing on chain), because a grant or an acceptance that somebody made up would send a node on a
fool's errand. What fails is dropped with one line in the log. The mailbox is replayed from its start by a new
process, so nothing in it needs to be remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import structlog

from node.gateway import GatewayClient
from protocol.errors import VerificationError
from protocol.messages import (
    DEFAULT_TTL_S,
    AdmissionRequest,
    Domain,
    Kind,
    Payload,
    SignedMessage,
    UnitProgress,
    UnitResult,
    verify_stored_message,
)
from protocol.types import NodeId, TaskId, TaskSpec

log = structlog.get_logger(__name__)

OperatorOf = Callable[[str], NodeId | None]
"""The node that an operator key serves, by its address; reads the registry."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One verified message."""

    id: int
    sender_node: NodeId | None
    """The node whose operator signed it; None for the requester."""
    sent_at: int
    """By the sender's clock, unix s; good for judging who is alive, and nothing else."""
    payload: Payload


@dataclass(frozen=True, slots=True)
class NewMailbox:
    """The gateway has another mailbox than before: whatever was read is not in it."""

    name: str


class Mailbox:
    """The messages of `kinds` about one task. `poll` is called by one thread."""

    def __init__(
        self, gateway: GatewayClient, domain: Domain, spec: TaskSpec, operator_of: OperatorOf, kinds: Iterable[Kind]
    ) -> None:
        self.task = TaskId(spec.task_id)
        self._gateway = gateway
        self._domain = domain
        self._requester = spec.requester
        self._operator_of = operator_of
        self._nodes: dict[str, NodeId] = {}
        self._kinds = frozenset(str(kind) for kind in kinds)
        self._cursor = 0
        self._name: str | None = None

    def poll(self) -> Iterator[Letter | NewMailbox]:
        """What came since the last call, or that there is a new mailbox, which the next call reads from its start.

        Raises UnreachableError if gateway or chain do not answer.
        """
        while True:
            page = self._gateway.mail_page(self.task, after=self._cursor)
            if page.mailbox != self._name:
                first, self._name, self._cursor = self._name is None, page.mailbox, 0
                yield NewMailbox(page.mailbox)
                if not first:
                    log.warning("the gateway has lost its mail", task=self.task.hex()[:8])
                    return
            if not page.items:
                return
            for item in page.items:
                # Others' progress comes every second and is checked only by who wants to see it.
                letter = self._read(item.id, item.envelope()) if item.kind in self._kinds else None
                self._cursor = item.id
                if letter is not None:
                    yield letter

    def say(self, payload: Payload) -> None:
        """Posts a message signed by this process's key. Raises UnreachableError, VerificationError."""
        self._gateway.post_message(self.task, payload)

    def _read(self, message_id: int, message: SignedMessage) -> Letter | None:
        try:
            if message.task != self.task:
                raise VerificationError("it is about another task")
            payload = verify_stored_message(message, self._domain, standing=self._has_standing)
        except VerificationError as error:
            log.warning("message refused", task=self.task.hex()[:8], id=message_id, kind=message.kind, why=str(error))
            return None
        node = None if message.sender == self._requester else self._node_of(message.sender)
        return Letter(message_id, node, message.deadline - DEFAULT_TTL_S, payload)

    def _has_standing(self, message: SignedMessage, payload: Payload) -> bool:
        """The requester grants and accepts; an operator speaks for its own node; both hand on keys."""
        if payload.kind in (Kind.ADMISSION_GRANT, Kind.UNIT_ACCEPTANCE):
            return message.sender == self._requester
        if isinstance(payload, AdmissionRequest | UnitProgress | UnitResult):
            return self._node_of(message.sender) == payload.node
        return message.sender == self._requester or self._node_of(message.sender) is not None

    def _node_of(self, sender: str) -> NodeId | None:
        """Asked once per key that serves a node."""
        if sender not in self._nodes:
            node = self._operator_of(sender)
            if node is None:
                return None
            self._nodes[sender] = node
        return self._nodes[sender]
