"""What a machine takes is measured as the work will be: with the disk, and never for longer than the window."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from node.compute import speed
from node.compute.desk import Checkpoint, Desk
from node.compute.inputs import SPARE_DISK_BYTES, InputKind, Need, check_room, check_size
from node.compute.speed import measure, measure_average
from node.compute.view import Speed
from proofs.exact.builder import ProgramBuilder
from proofs.exact.plan import peak_bytes
from proofs.exact.program import Program
from proofs.exact.state import State
from proofs.exact.tensor import ExactTensor, TensorType
from protocol.errors import BlobError, StateError
from protocol.types import TaskId
from tests.unit.node.compute_views import make_spec

SQUARE = TensorType((3, 3), 16)
STATE: State = {"m": ExactTensor(SQUARE, torch.arange(9).reshape(3, 3))}


def small_program() -> Program:
    b = ProgramBuilder()
    b.update("m", b.saturate(b.add(b.state("m", SQUARE), b.constant(1)), bits=16))
    return b.build()


class Clock:
    """Stands still while programs run."""

    now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class SlowDisk(Desk):
    """A disk that takes its time."""

    def __init__(self, root: Path, clock: Clock) -> None:
        super().__init__(root)
        self.clock = clock

    def rehearse(self, task: TaskId, checkpoint: Checkpoint) -> None:
        super().rehearse(task, checkpoint)
        self.clock.now_s += 0.5


def test_slow_disk_counts_for_the_checkpoint_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    desk = SlowDisk(tmp_path, clock)
    assert measure(desk, small_program(), STATE, {}, make_spec()) == Speed(0.0, 0.5)
    assert measure_average(desk, STATE, make_spec()) == Speed(0.5, 0.5)
    assert not any(path.is_file() for path in desk.root.rglob("*")), "nothing stays behind"


def test_hopeless_program_is_not_measured_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []
    whole_step = speed.Stopwatch.step

    def counted(watch: speed.Stopwatch) -> None:
        steps.append(1)
        whole_step(watch)

    monkeypatch.setattr(speed.Stopwatch, "step", counted)
    measure(Desk(tmp_path), small_program(), STATE, {}, make_spec(compute_window_s=0))
    assert steps == [1]


def test_speed_file_of_another_version_is_measured_again(tmp_path: Path) -> None:
    desk, root = Desk(tmp_path), b"\x01" * 32
    (desk.root / "speed.json").write_text(f'{{"{root.hex()}": 0.25}}')
    assert desk.speed(root) is None
    desk.put_speed(root, Speed(0.5, 0.125))
    assert Desk(tmp_path).speed(root) == Speed(0.5, 0.125)


def test_unit_that_would_not_fit_the_machine_is_left_alone() -> None:
    b = ProgramBuilder()
    wide = TensorType((1 << 20,), 16)
    x = b.state("x", wide)
    for _ in range(20):
        x = b.saturate(b.add(x, b.constant(1)), bits=16)
    b.update("x", x)
    program, spec = b.build(), make_spec(shards=100)
    state = 8 << 20
    assert 3 * state <= peak_bytes(program) <= 6 * state, "a long chain holds few values at once"
    check_size(program, spec, 0, memory=2 * peak_bytes(program))
    with pytest.raises(BlobError, match="at once"):
        check_size(program, spec, 0, memory=peak_bytes(program))
    with pytest.raises(BlobError, match="at once"):
        check_size(program, spec, 100, memory=2 * 100 * state)
    check_size(program, spec, 100, memory=2 * 104 * state)


def test_unit_that_would_fill_the_disk_is_left_alone() -> None:
    program, root = small_program(), bytes(32)
    state = SQUARE.nbytes
    training = (Need(InputKind.PROGRAM, root, ()), Need(InputKind.STATE, root, ()), Need(InputKind.DATA, root, ()))
    average = (*training[:2], *[training[1]] * 3)
    for needs, states in ((training, 5), (average, 8)):
        check_room(program, needs, SPARE_DISK_BYTES + states * state)
        with pytest.raises(StateError, match="GiB of disk"):
            check_room(program, needs, SPARE_DISK_BYTES + states * state - 1)
