"""Training one unit on a desk: to the end, across a stop, and into an overflow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs

from node.compute import work
from node.compute.desk import Desk
from node.compute.inputs import InputKind, Need, check_end
from node.compute.speed import measure
from node.compute.view import WorkKey
from node.compute.workshop import Progress
from proofs.exact.builder import ProgramBuilder
from proofs.exact.encoding import encode_program
from proofs.exact.execute import Overflowed, run_unit
from proofs.exact.program import Program
from proofs.exact.state import decode_state, encode_state, state_root
from proofs.exact.tensor import ExactTensor, TensorType
from proofs.results import unit_seed
from protocol.errors import BlobError, StateError
from protocol.types import TaskId, TaskSpec
from tests.unit.node.compute_views import make_spec

M, X = TensorType((4,), 16), TensorType((4,), 8)
DATA = {"x": ExactTensor(X, torch.tensor([1, 2, 3, 4]))}


def adding(limit: int) -> Program:
    """m' = m + x, checked to stay within ±limit."""
    b = ProgramBuilder()
    b.update("m", b.check(b.add(b.state("m", M), b.data("x", X)), -limit, limit))
    return b.build()


def start(first: int = 0) -> dict[str, ExactTensor]:
    return {"m": ExactTensor(M, torch.tensor([first, 0, 0, 0]))}


def laid_out(tmp_path: Path, program: Program) -> tuple[Desk, TaskSpec, WorkKey, tuple[Need, ...]]:
    """A desk with all that unit 0 starts from."""
    spec = make_spec(
        program_root=program.root(), initial_state_root=state_root(start()), steps=10, checkpoint_interval=4
    )
    desk, task = Desk(tmp_path), TaskId(spec.task_id)
    given = (
        (InputKind.PROGRAM, spec.program_root, encode_program(program)),
        (InputKind.STATE, spec.initial_state_root, encode_state(start())),
        (InputKind.DATA, state_root(DATA), encode_state(DATA)),
    )
    for _, root, data in given:
        desk.put_input(task, root, data)
    return desk, spec, WorkKey(task, 0, 0), tuple(Need(kind, root, ()) for kind, root, _ in given)


def nothing(_at: Progress) -> None: ...


def test_a_stopped_unit_goes_on_from_the_disk_to_the_same_roots(tmp_path: Path) -> None:
    program = adding(1000)
    desk, spec, key, needs = laid_out(tmp_path, program)
    told: list[Progress] = []
    work.train(desk, spec, key, needs, told.append, lambda: len(told) == 6)
    assert desk.steps_done(key) == 6
    work.train(desk, spec, key, needs, told.append, lambda: False)
    assert [(at.step, at.steps) for at in told] == [(step, 10) for step in range(1, 11)]
    assert told[-1].left_s == 0 and told[-1].steps_per_s is not None
    saved = desk.get_checkpoint(key)
    assert saved is not None
    whole = run_unit(program, start(), DATA, unit_seed(spec.seed, 0), spec.steps, spec.checkpoint_interval)
    assert saved.roots == whole.checkpoint_roots
    assert desk.has_input(key.task, whole.checkpoint_roots[-1]), "the next round starts from it"


def test_an_overflow_keeps_the_last_good_state_and_where_it_was(tmp_path: Path) -> None:
    program = adding(22)  # 4 * 5 = 20 is the last element's last good value
    desk, spec, key, needs = laid_out(tmp_path, program)
    with capture_logs() as logs:
        work.train(desk, spec, key, needs, nothing, lambda: False)
    with pytest.raises(Overflowed) as whole:
        run_unit(program, start(), DATA, unit_seed(spec.seed, 0), spec.steps, spec.checkpoint_interval)
    saved, note = desk.get_checkpoint(key), desk.overflow(key.task, key.unit)
    assert saved is not None and note is not None
    assert (saved.step, saved.roots) == (5, whole.value.checkpoint_roots)
    assert decode_state(saved.state)["m"].values.tolist() == [5, 10, 15, 20]
    assert (note.step, note.element, note.value) == (5, 3, 24)
    assert note.root == whole.value.root.hex()
    assert not work.is_done(desk, spec, key), "there is no result that could be committed"
    (said,) = logs
    assert (said["log_level"], said["step"], said["overflow_root"]) == ("error", 6, note.root)
    work.train(desk, spec, key, needs, nothing, lambda: False)
    assert desk.overflow(key.task, key.unit) == note, "a restart takes one step and ends in the same place"


def test_a_program_that_may_overflow_is_left_alone_before_any_stake_is_bound() -> None:
    """Half of a forfeited collateral goes to the requester: a program made to break would be a way to earn it."""
    with pytest.raises(BlobError, match="asserts bounds in 1 places") as caught:
        check_end(adding(1000))
    assert caught.value.code == "V-24"
    b = ProgramBuilder()
    b.update("m", b.saturate(b.add(b.state("m", M), b.data("x", X)), bits=16))
    check_end(b.build())


def test_a_program_that_overflows_while_it_is_measured_is_timed_or_refused(tmp_path: Path) -> None:
    desk, spec, _, _ = laid_out(tmp_path, adding(6))
    assert measure(desk, adding(6), start(), DATA, spec).step_s > 0
    with pytest.raises(StateError, match="overflows in its first step") as caught:
        measure(desk, adding(6), start(first=6), DATA, spec)
    assert caught.value.code == "S-49"
