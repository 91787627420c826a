"""A private task: nodes are let in with keys, and nobody else can read a thing."""

from __future__ import annotations

import pytest

from node.config import Role
from node.request.result import fetch_result
from node.request.task_file import load_task_file
from node.request.view import REQUESTER as REQUESTER_READER
from node.taskbook import TaskBook
from node.taskfeed import TaskFeed
from node.training.plan import loss_of, prepare_plan, run_plan
from proofs.exact.state import decode_state, encode_state
from protocol.errors import BlobError
from protocol.sealing import MAGIC, EncryptionKey
from protocol.types import BlobId, NodeId, UnitStatus
from tests.integration.agents.conftest import FIRST_NODE, Market, wait_until
from tests.integration.agents.tasks import STEP_FILE, task_text


def test_private_task_is_trained_by_admitted_nodes_and_read_by_nobody_else(market: Market) -> None:
    (market.folder / "digits.py").write_text(STEP_FILE)
    task = market.submit(task_text(private=True, step_file="digits.py"))
    spec = TaskFeed(market.requester).posted(task).spec
    nodes = [market.node(0), market.node(1)]
    market.request_agent(task).join()
    for node in nodes:
        node.end()
    units = market.units(spec)
    assert all(unit.status is UnitStatus.FINALISED for unit in units)
    plan = prepare_plan(load_task_file(market.folder / "task.toml"))
    alone = run_plan(plan)
    root, state = fetch_result(market.requester, task)
    assert root == alone.rounds[-1].output
    assert encode_state(state) == encode_state(alone.final_state)
    assert loss_of(state) < loss_of(plan.initial_state), "the step file's model has learnt something"

    # Everything but program and manifest is ciphertext at the gateway.
    gateway = market.requester.gateway
    context = market.context(FIRST_NODE + 5, Role.COMPUTE)
    book = TaskBook(spec, gateway, context.domain, context.client.node_of, EncryptionKey.generate(), NodeId(99))
    book.poll()
    sealed = [BlobId(book.manifest.initial_state_blob), *(BlobId(s.data_blob) for s in book.manifest.shards)]
    for index, unit in enumerate(units):
        said = book.announced(index, unit)
        assert said is not None
        sealed.append(BlobId(said.state_blob))
    assert len(set(sealed)) == 3 + spec.units
    for blob in sealed:
        data = gateway.download_blob(blob, 1 << 24)
        assert data.startswith(MAGIC)
        with pytest.raises(ValueError):
            decode_state(data)
        # A stranger's keyring has no key for it: no grant was ever made to anybody but admitted nodes and requester.
        with pytest.raises(BlobError, match="no key"):
            book.open(blob, 1 << 24)

    # A node sees its own shard, and never the other's.
    for reader, admitted in book.admitted.items():
        for shard, entry in enumerate(book.manifest.shards):
            granted = book.granted(BlobId(entry.data_blob), reader, {None})
            assert granted == bool(admitted.admission.shards >> shard & 1)
    assert book.granted(BlobId(book.manifest.initial_state_blob), REQUESTER_READER, {None})


def test_node_that_asked_before_the_requester_ran_is_admitted_when_it_comes(market: Market) -> None:
    task = market.submit(task_text(private=True, rounds=1))
    spec = TaskFeed(market.requester).posted(task).spec
    node = market.node(0)
    first = market.request_agent(task)
    # The requester goes away as soon as the node is in: the units that it is admitted to need nobody else.
    wait_until(lambda: market.count(spec, UnitStatus.OPEN) < spec.units, "a claim")
    first.end()
    wait_until(lambda: market.count(spec, UnitStatus.REVEALED) >= 1, "a reveal without the requester")
    market.request_agent(task).join()
    node.end()
    assert market.count(spec, UnitStatus.FINALISED) == spec.units
