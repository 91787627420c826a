"""Log lines name things as people do."""

from __future__ import annotations

from node.compute.actions import Claim, Commit
from node.compute.view import WorkKey
from node.naming import name_of, name_of_action
from node.request.decide import Admit, Close
from protocol.types import NO_ADMISSION, BlobId, NodeId, TaskId

TASK = TaskId(bytes.fromhex("b8e9921f" + "00" * 28))


def test_an_action_is_named_without_its_bytes() -> None:
    assert name_of_action(Claim(TASK, 1, NO_ADMISSION)) == "claim task b8e9921f unit 1"
    assert name_of_action(Commit(WorkKey(TASK, 2, 0), 99)) == "commit task b8e9921f unit 2 attempt 0"
    assert name_of_action(Admit(NodeId(3), 2, (BlobId(b"\x01" * 32),))) == "admit node 3"
    assert name_of_action(Close()) == "close"


def test_a_job_is_named_by_its_key() -> None:
    assert name_of((TASK, 7)) == "b8e9921f 7"
    assert name_of(WorkKey(TASK, 7, 1)) == "task b8e9921f unit 7 attempt 1"
    assert name_of("mail") == "mail"
