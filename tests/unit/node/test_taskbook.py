"""What a reader of a mailbox believes: who may say what, whose keys come first, what a gateway cannot forge."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from node.gateway import GatewayClient
from node.keyring import MAX_CANDIDATES, Keyring
from node.taskbook import ALL_KINDS, READER_KINDS, TaskBook
from protocol.errors import BlobError
from protocol.messages import (
    AdmissionGrant,
    AdmissionRequest,
    Domain,
    Grant,
    KeyGrant,
    Kind,
    Payload,
    SignedMessage,
    UnitAcceptance,
    UnitProgress,
    UnitResult,
    sign_message,
)
from protocol.sealing import EncryptionKey, seal, wrap
from protocol.signatures import sign_acceptance, sign_admission
from protocol.types import BlobId, NodeId, TaskId, UnitStatus
from protocol.wire import MailItem, MailPage
from tests.unit.node.compute_views import make_spec, make_unit

REQUESTER: LocalAccount = Account.from_key(b"\x01" * 32)
WORKER: LocalAccount = Account.from_key(b"\x02" * 32)
STRANGER: LocalAccount = Account.from_key(b"\x03" * 32)
NODES: dict[str, NodeId] = {WORKER.address: NodeId(7), STRANGER.address: NodeId(8)}
MARKET = make_spec().requester
DOMAIN = Domain(31337, MARKET)
SPEC = make_spec(requester=REQUESTER.address, is_private=True)
TASK = TaskId(SPEC.task_id)
MINE = EncryptionKey.generate()
ROOT = b"\x05" * 32


class Letters:
    """A gateway's mailbox, reduced to a list: what is on the wire, in order."""

    def __init__(self) -> None:
        self.items: list[SignedMessage] = []
        self.name = "first"

    def mail_page(self, _task: bytes, *, after: int) -> MailPage:
        dumped = [(number, item.model_dump_json()) for number, item in enumerate(self.items, start=1)]
        items = [MailItem.model_validate_json(text[:-1] + f',"id":{n}' + "}") for n, text in dumped if n > after]
        return MailPage(items=tuple(items), mailbox=self.name)

    def put(self, sender: LocalAccount, payload: Payload, altered: dict[str, Any] | None = None) -> None:
        """`altered`: fields that somebody changed after the message was signed."""
        message = sign_message(sender, payload.kind, TASK, payload, DOMAIN)
        self.items.append(message.model_copy(update=altered or {}))


def make_book(letters: Letters, kinds: Iterable[Kind] = READER_KINDS) -> TaskBook:
    """As node 7 reads it."""

    def operator_of(address: str) -> NodeId | None:
        return NODES.get(address)

    return TaskBook(SPEC, cast(GatewayClient, letters), DOMAIN, operator_of, MINE, NodeId(7), kinds=kinds)


def admission(signer: LocalAccount, node: int = 7, shards: int = 1) -> AdmissionGrant:
    signed = sign_admission(signer, DOMAIN, TASK, NodeId(node), shards, SPEC.deadline)
    return AdmissionGrant(node=node, shards=shards, deadline=signed.deadline, signature=signed.signature)


def result(node: int = 7, root: bytes = ROOT) -> UnitResult:
    return UnitResult(
        unit=0, node=node, state_blob=b"\x0b" * 32, final_state_root=root, result_root=b"\x07" * 32,
        checkpoint_roots=(b"\x01" * 32, root),
    )  # fmt: skip


def test_admission_counts_only_if_the_requester_sent_and_signed_it() -> None:
    letters = Letters()
    letters.put(STRANGER, admission(REQUESTER))  # sent by somebody else
    letters.put(REQUESTER, admission(STRANGER))  # sent by the requester, signed by another
    book = make_book(letters)
    book.poll()
    assert book.admitted == {}
    letters.put(REQUESTER, admission(REQUESTER, shards=1))
    letters.put(REQUESTER, admission(REQUESTER, shards=3))
    book.poll()
    assert book.admitted[NodeId(7)].admission.shards == 3, "the latest one counts"


def test_acceptance_counts_for_the_very_result_that_was_signed() -> None:
    letters = Letters()
    good = sign_acceptance(REQUESTER, DOMAIN, TASK, 0, ROOT)
    letters.put(REQUESTER, UnitAcceptance(unit=0, result_root=b"\x06" * 32, signature=good))
    letters.put(STRANGER, UnitAcceptance(unit=0, result_root=ROOT, signature=good))
    book = make_book(letters)
    book.poll()
    assert book.acceptance(0, b"\x06" * 32) is None
    assert book.acceptance(0, ROOT) is None
    letters.put(REQUESTER, UnitAcceptance(unit=0, result_root=ROOT, signature=good))
    book.poll()
    assert book.acceptance(0, ROOT) == good
    assert book.acceptance(1, ROOT) is None


def test_operator_speaks_for_its_own_node_only() -> None:
    letters = Letters()
    letters.put(STRANGER, result(node=7))
    letters.put(STRANGER, AdmissionRequest(node=7))
    book = make_book(letters)
    book.poll()
    assert book.results_of(0, NodeId(7)) == ()
    assert book.asks == {}
    letters.put(WORKER, result(node=7))
    letters.put(WORKER, AdmissionRequest(node=7))
    book.poll()
    assert book.asks == {NodeId(7): 4}
    revealed = make_unit(UnitStatus.REVEALED, result=b"\x07" * 32, final_state_root=ROOT)
    assert book.announced(0, revealed) == result()
    other = make_unit(UnitStatus.REVEALED, result=b"\x07" * 32, final_state_root=b"\x0c" * 32)
    assert book.announced(0, other) is None, "what is announced must be what the chain has"


def test_altered_and_misdirected_messages_are_left_out() -> None:
    letters = Letters()
    letters.put(WORKER, AdmissionRequest(node=7), {"nonce": 1})
    letters.put(WORKER, AdmissionRequest(node=7), {"payload": {"node": 8}})
    letters.put(WORKER, AdmissionRequest(node=7), {"task": b"\x0f" * 32})
    letters.put(WORKER, AdmissionRequest(node=7), {"sender": REQUESTER.address})
    book = make_book(letters)
    book.poll()
    assert book.asks == {}
    letters.put(WORKER, AdmissionRequest(node=7))
    book.poll()
    assert book.asks == {NodeId(7): 5}, "what is right still gets through"


def test_requesters_key_comes_first_whoever_floods() -> None:
    letters, blob = Letters(), b"\x0b" * 32
    content_key, _ = seal(b"shard")
    for _ in range(2 * MAX_CANDIDATES):
        rubbish, _ = seal(b"rubbish")
        letters.put(STRANGER, KeyGrant(grants=(Grant(blob=blob, reader=7, wrapped_key=wrap(rubbish, MINE.public)),)))
    letters.put(REQUESTER, KeyGrant(grants=(Grant(blob=blob, reader=7, wrapped_key=wrap(content_key, MINE.public)),)))
    book = make_book(letters)
    book.poll()
    assert book.keyring is not None
    assert book.keyring.keys(BlobId(blob))[0] == content_key
    assert len(book.keyring.keys(BlobId(blob))) == 2, "of each sender, the latest"
    assert book.granted(BlobId(blob), NodeId(7), {None})
    assert not book.granted(BlobId(blob), NodeId(8), {None})


def test_flood_before_the_workers_grant_does_not_push_it_out() -> None:
    ring, blob = Keyring(MINE, NodeId(7)), BlobId(b"\x0b" * 32)
    right, _ = seal(b"state")
    for _ in range(2 * MAX_CANDIDATES):
        rubbish, _ = seal(b"rubbish")
        ring.add([Grant(blob=blob, reader=7, wrapped_key=wrap(rubbish, MINE.public))], NodeId(8))
    ring.add([Grant(blob=blob, reader=7, wrapped_key=wrap(right, MINE.public))], NodeId(9))
    ring.add([Grant(blob=blob, reader=7, wrapped_key=b"\x01" * 80)], NodeId(10))
    assert ring.keys(blob) == (rubbish, right)
    ring.put(blob, right)
    assert ring.keys(blob) == (right,)


def test_one_readers_bad_key_does_not_keep_others_from_theirs() -> None:
    book = make_book(Letters())
    blob = BlobId(b"\x0b" * 32)
    assert book.rewrap(blob, NodeId(8), MINE.public) is None, "no key held yet"
    assert book.keyring is not None
    book.keyring.put(blob, b"\x01" * 32)
    assert book.rewrap(blob, NodeId(8), bytes(32)) is None, "a point of low order"
    assert book.rewrap(blob, NodeId(8), None) is None
    grant = book.rewrap(blob, NodeId(8), MINE.public)
    assert grant is not None
    theirs = Keyring(MINE, NodeId(8))
    theirs.add([grant], None)
    assert theirs.keys(blob) == (b"\x01" * 32,)


def test_blob_without_a_key_is_not_even_downloaded() -> None:
    with pytest.raises(BlobError, match="no key"):
        make_book(Letters()).open(BlobId(b"\x0b" * 32), 100)


def test_lost_mailbox_takes_back_what_was_said_but_no_key() -> None:
    letters, blob = Letters(), BlobId(b"\x0b" * 32)
    content_key, _ = seal(b"shard")
    letters.put(REQUESTER, admission(REQUESTER))
    letters.put(REQUESTER, KeyGrant(grants=(Grant(blob=blob, reader=7, wrapped_key=wrap(content_key, MINE.public)),)))
    letters.put(WORKER, result(node=7))
    book = make_book(letters)
    book.poll()
    assert (book.mailbox, set(book.admitted)) == ("first", {7})
    letters.items, letters.name = [], "second"
    letters.put(WORKER, AdmissionRequest(node=7))  # its id is far below what was read before
    book.poll()
    book.poll()
    assert (book.mailbox, book.admitted, book.asks) == ("second", {}, {NodeId(7): 1})
    assert book.results_of(0, NodeId(7)) == ()
    assert not book.granted(blob, NodeId(7), {None})
    assert book.readable(blob)


def test_progress_of_others_is_kept_apart_and_of_no_unit_is_not_kept() -> None:
    letters = Letters()
    letters.put(WORKER, UnitProgress(unit=0, node=7, step=5, steps=10, loss=2.0))
    letters.put(STRANGER, UnitProgress(unit=0, node=8, step=10, steps=10, loss=1e-9))
    letters.put(STRANGER, UnitProgress(unit=SPEC.units, node=8, step=10, steps=10, loss=1e-9))
    book = make_book(letters, ALL_KINDS)
    book.poll()
    assert {key: said.loss for key, said in book.progress.items()} == {(0, 7): 2.0, (0, 8): 1e-9}


def test_book_without_a_key_reads_what_is_said_and_opens_nothing() -> None:
    letters, blob = Letters(), BlobId(b"\x0b" * 32)
    letters.put(REQUESTER, KeyGrant(grants=(Grant(blob=blob, reader=0, wrapped_key=wrap(b"k" * 32, MINE.public)),)))
    book = TaskBook(SPEC, cast(GatewayClient, letters), DOMAIN, NODES.get, None, NodeId(0))
    book.poll()
    assert book.granted(blob, NodeId(0), {None})
    assert not book.readable(blob)
