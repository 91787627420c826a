"""What is on disk survives: whole or absent, damaged files are noticed, a salt is made again after a restart."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from eth_account import Account
from structlog.testing import capture_logs

from node.compute.desk import Checkpoint, Desk
from node.compute.reporter import Reporter
from node.compute.view import OverflowNote, WorkKey
from node.compute.work import salt_of
from node.compute.workshop import Cooldown, Progress, Stop, Workshop
from node.files import write_whole
from node.gateway import GatewayClient
from protocol.messages import Domain
from protocol.types import NodeId, TaskId

TASK = TaskId(b"\x07" * 32)
KEY = WorkKey(TASK, 3, 1)
SAVED = Checkpoint(20, (b"\x01" * 32, b"\x02" * 32), b"encoded state")


def checkpoint_file(desk: Desk) -> Path:
    (path,) = desk.root.rglob("checkpoint")
    return path


def test_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    assert desk.get_checkpoint(KEY) is None
    assert desk.steps_done(KEY) == 0
    desk.put_checkpoint(KEY, SAVED)
    again = Desk(tmp_path)
    assert again.get_checkpoint(KEY) == SAVED
    assert again.steps_done(KEY) == 20
    assert list(again.attempts(TASK)) == [KEY]
    assert again.get_checkpoint(WorkKey(TASK, 3, 2)) is None


def one_bit_flipped(data: bytes) -> bytes:
    return data[:-3] + bytes([data[-3] ^ 4]) + data[-2:]


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:-1] + b"x", lambda b: b"", lambda b: b"junk" + b, one_bit_flipped]
)
def test_damaged_checkpoint_is_said_and_put_aside(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    desk = Desk(tmp_path)
    desk.put_checkpoint(KEY, SAVED)
    path = checkpoint_file(desk)
    path.write_bytes(damage(path.read_bytes()))
    with capture_logs() as logs:
        assert desk.get_checkpoint(KEY) is None
    assert [(said["log_level"], said["file"]) for said in logs] == [("error", str(path))]
    assert desk.steps_done(KEY) == 0, "a unit counts as done only while its result can be read"
    assert path.with_name("damaged").exists()


def test_overflow_outlives_the_attempt_that_met_it(tmp_path: Path) -> None:
    desk, note = Desk(tmp_path), OverflowNote("01" * 32, 5, 17, 3, -4096, "02" * 32)
    assert desk.overflow(TASK, KEY.unit) is None
    desk.put_overflow(KEY, note)
    desk.put_checkpoint(KEY, SAVED)
    desk.drop_attempt(KEY)
    assert Desk(tmp_path).overflow(TASK, KEY.unit) == note
    assert str(note) == "overflow in step 6 at operation 17, element 3: -4096"
    (desk.root / TASK.hex() / "overflows" / str(KEY.unit)).write_text("{}")
    assert desk.overflow(TASK, KEY.unit) is None


def test_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "state"
    write_whole(target, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["state"], "no half file stays behind"
    assert target.stat().st_mode & 0o777 == 0o600


def test_sweep_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.put_input(TASK, b"\x09" * 32, b"state")
    left = desk.root / TASK.hex() / "inputs" / ".writing-abc"
    left.write_bytes(b"half")
    desk.sweep()
    assert not left.exists()
    assert desk.get_input(TASK, b"\x09" * 32) == b"state"


def test_past_inputs_are_dropped_and_needed_ones_kept(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for root in (b"\x01" * 32, b"\x02" * 32):
        desk.put_input(TASK, root, b"state")
    desk.drop_inputs(TASK, {b"\x02" * 32})
    assert not desk.has_input(TASK, b"\x01" * 32)
    assert desk.has_input(TASK, b"\x02" * 32)
    desk.forget(TASK)
    assert not desk.has_input(TASK, b"\x02" * 32)


def test_salt_is_the_same_after_a_restart_and_another_for_another_attempt() -> None:
    secret = b"\x11" * 32
    root = b"\x05" * 32
    first = salt_of(Account.from_key(secret), KEY, root)
    assert first == salt_of(Account.from_key(secret), KEY, root)
    others = {
        salt_of(Account.from_key(secret), WorkKey(TASK, 3, 2), root),
        salt_of(Account.from_key(secret), WorkKey(TASK, 4, 1), root),
        salt_of(Account.from_key(secret), KEY, b"\x06" * 32),
        salt_of(Account.from_key(b"\x12" * 32), KEY, root),
    }
    assert len(others) == 4
    assert first not in others


def test_failures_are_repeated_less_and_less_often() -> None:
    now = 0.0
    cooldown: Cooldown[str] = Cooldown(lambda: now)
    pauses = []
    for _ in range(8):
        pauses.append(cooldown.failed("claim"))
        assert cooldown.holds("claim")
        assert not cooldown.holds("another")
        now += pauses[-1]
        assert not cooldown.holds("claim")
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    cooldown.succeeded("claim")
    assert cooldown.failed("claim") == 1


def test_job_that_fails_by_a_bug_is_left_alone_like_any_other() -> None:
    workshop: Workshop[str] = Workshop("testing")

    def broken(_stop: Stop) -> None:
        raise KeyError("not foreseen")

    workshop.start("job", broken)
    assert workshop.stop_all(10)
    assert workshop.failed("job")


def test_training_does_not_wait_for_a_gateway_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        domain = Domain(31337, Account.create().address)
        stop = threading.Event()
        with GatewayClient(url, Account.create(), domain, pause=lambda _s: None, timeout_s=60) as gateway:
            training: Workshop[WorkKey] = Workshop("training")
            reporter = Reporter(training)
            reporter.start(gateway, NodeId(1), stop)
            training.start(KEY, lambda _stop: reporter.note(KEY, Progress(10, 10, 0.5)))
            assert training.done.wait(5)
            stop.set()
