"""A whole plan trains a real model, in one process or in many, to the same bits."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from node.request.task_file import TaskFile, load_task_file
from node.training.datasets import Dataset, digits
from node.training.float32 import evaluate, train_float32
from node.training.plan import Plan, PlanRun, loss_of, prepare_plan, run_plan
from node.training.step_file import Tree
from proofs.exact.aggregate import aggregate
from proofs.exact.encoding import encode_program
from proofs.exact.execute import LiveState, Stopped, run_unit
from proofs.exact.permutation import batch_indices
from proofs.exact.state import State, decode_state, encode_state, state_root
from proofs.exact.state_dict import save_safetensors
from proofs.results import unit_seed
from protocol.errors import UsageError

DIGITS = Path(__file__).parents[3] / "examples" / "digits.toml"


@pytest.fixture(scope="module")
def data() -> Dataset:
    return digits()


@pytest.fixture(scope="module")
def plan(data: Dataset) -> Plan:
    return prepare_plan(load_task_file(DIGITS), data)


@pytest.fixture(scope="module")
def trained(plan: Plan) -> PlanRun:
    return run_plan(plan)


def changed(**training: object) -> TaskFile:
    task = load_task_file(DIGITS)
    return task.model_copy(update={"training": task.training.model_copy(update=training)})


def with_shards(shards: int) -> TaskFile:
    task = load_task_file(DIGITS)
    return task.model_copy(update={"task": task.task.model_copy(update={"shards": shards})})


def accuracy(plan: Plan, params: Tree | State) -> float:
    """On the test samples; of a state, its parameters'."""
    assert plan.dataset.test is not None
    if "t" in params:
        params = plan.compiled.decode_params(params)
    return evaluate(plan.step, params, plan.dataset.numbers(plan.dataset.test))["accuracy"]


def test_digits_reach_093_and_the_loss_says_so(plan: Plan, trained: PlanRun) -> None:
    assert accuracy(plan, trained.final_state) >= 0.93
    assert loss_of(trained.final_state) < 0.2 < 2 < loss_of(plan.initial_state)
    assert accuracy(plan, plan.initial_state) < 0.3, "it could do that before training"


def test_exported_weights_load_into_a_module_written_by_hand(
    tmp_path: Path, plan: Plan, trained: PlanRun, data: Dataset
) -> None:
    save_safetensors(tmp_path / "model.safetensors", trained.final_state)
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    module.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert data.test is not None
    predicted = module(torch.from_numpy(data.test.x.astype(np.float32) / 16)).argmax(1)
    found = float((predicted.numpy() == data.test.y).mean())
    assert found == pytest.approx(accuracy(plan, trained.final_state)) and found >= 0.93


def test_float32_twin_ends_within_two_points(plan: Plan, trained: PlanRun) -> None:
    rounds: list[int] = []
    twin = accuracy(plan, train_float32(plan, on_round=lambda round_, _: rounds.append(round_)))
    assert abs(twin - accuracy(plan, trained.final_state)) <= 0.02
    assert rounds == [0, 1, 2]


_RUN_UNIT = """
import sys, torch
from proofs.exact.encoding import decode_program
from proofs.exact.execute import run_unit
from proofs.exact.state import decode_state
state, data = (decode_state(open(name, "rb").read()) for name in sys.argv[2:4])
run = run_unit(decode_program(open(sys.argv[1], "rb").read()), state, data, int(sys.argv[4]), 40, 10)
print(torch.backends.cpu.get_cpu_capability(), run.checkpoint_roots[-1].hex())
"""


@pytest.mark.parametrize(
    ("level", "environment"),
    [
        ("DEFAULT", {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "OMP_NUM_THREADS": "1"}),
        ("AVX2", {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OMP_NUM_THREADS": "1"}),
    ],
    ids=["sse", "avx2"],
)
def test_other_instruction_sets_end_in_the_same_bits(
    plan: Plan, tmp_path: Path, level: str, environment: dict[str, str]
) -> None:
    """A node is sent bytes. Where float32 ends in other bits at each of these settings (measured), integers do not."""
    here = run_unit(plan.program, plan.initial_state, plan.shard_state(0), unit_seed(plan.seed, 0), 40, 10)
    for name, encoded in (
        ("program", encode_program(plan.program)),
        ("state", encode_state(plan.initial_state)),
        ("data", encode_state(plan.shard_state(0))),
    ):
        (tmp_path / name).write_bytes(encoded)
    files = [str(tmp_path / name) for name in ("program", "state", "data")]
    process = [sys.executable, "-c", _RUN_UNIT, *files, str(unit_seed(plan.seed, 0))]
    done = subprocess.run(process, env=os.environ | environment, capture_output=True, text=True, check=True)
    capability, root = done.stdout.split()
    if capability != level:
        pytest.skip(f"this processor runs {capability} code at most")
    assert root == here.checkpoint_roots[-1].hex()


def test_units_run_apart_end_in_the_same_bits(plan: Plan, trained: PlanRun) -> None:
    """Each unit as a stranger would run it: from bytes, in any order, one of them stopped and resumed elsewhere."""
    shuffle = random.Random(1)
    state_bytes = encode_state(plan.initial_state)
    for round_, roots in enumerate(trained.rounds):
        ends: dict[int, State] = {}
        for shard in shuffle.sample(range(len(plan.shards)), len(plan.shards)):
            ends[shard] = _unit_with_interruption(plan, decode_state(state_bytes), shard, stop_at=7 + 30 * round_)
        assert tuple(state_root(ends[shard]) for shard in range(len(ends))) == roots.shards
        assert plan.aggregation is not None
        ordered = [ends[shard] for shard in range(len(ends))]
        state_bytes = encode_state(aggregate(plan.aggregation, decode_state(state_bytes), ordered))
    assert state_root(decode_state(state_bytes)) == trained.rounds[-1].output == state_root(trained.final_state)


def _unit_with_interruption(plan: Plan, state: State, shard: int, *, stop_at: int) -> State:
    done = 0

    def count(step: int, _: LiveState) -> None:
        nonlocal done
        done = step

    data = decode_state(encode_state(plan.shard_state(shard)))
    fixed = (plan.program, data, unit_seed(plan.seed, shard), plan.steps, plan.checkpoint_interval)
    program, data, seed, steps, interval = fixed
    with pytest.raises(Stopped) as stopped:
        run_unit(program, state, data, seed, steps, interval, on_step=count, stop=lambda: done >= stop_at)
    kept = decode_state(encode_state(stopped.value.state))
    return run_unit(
        program,
        kept,
        data,
        seed,
        steps,
        interval,
        start_step=stopped.value.step,
        checkpoint_roots=stopped.value.checkpoint_roots,
    ).final_state


def test_same_task_prepares_to_the_same_roots(plan: Plan, data: Dataset) -> None:
    again = prepare_plan(load_task_file(DIGITS), data)
    assert again.program.root() == plan.program.root()
    assert state_root(again.initial_state) == state_root(plan.initial_state)
    for shard in range(len(plan.shards)):
        assert state_root(again.shard_state(shard)) == state_root(plan.shard_state(shard))


def test_another_seed_changes_weights_cut_and_order(plan: Plan, data: Dataset) -> None:
    other = prepare_plan(changed(seed=8), data)
    assert state_root(other.initial_state) != state_root(plan.initial_state)
    assert state_root(other.shard_state(0)) != state_root(plan.shard_state(0))
    assert not torch.equal(other.batches(0, 0), plan.batches(0, 0))


@pytest.mark.parametrize("round_", [0, 2])
def test_batches_are_those_of_the_definition(plan: Plan, round_: int) -> None:
    samples = plan.shards[1].samples
    for step, batch in enumerate(plan.batches(round_, 1)):
        t = round_ * plan.steps + step
        assert batch.tolist() == batch_indices(unit_seed(plan.seed, 1), t, samples, plan.batch_size)


def test_batches_pass_over_every_sample_once_an_epoch(plan: Plan) -> None:
    samples = plan.shards[0].samples
    taken = plan.batches(0, 0).flatten()[:samples]
    assert sorted(taken.tolist()) == list(range(samples))


def test_pixels_are_sent_in_one_byte_each_and_labels_in_few(plan: Plan) -> None:
    stored = plan.shard_state(0)
    assert stored["x"].type.width == stored["y"].type.width == 1
    assert torch.equal(stored["x"].values, torch.from_numpy(plan.shards[0].x).to(torch.int8))


def test_single_shard_needs_no_aggregation(data: Dataset) -> None:
    task = with_shards(1)
    short = task.model_copy(
        update={"training": task.training.model_copy(update={"steps_per_round": 5, "checkpoint_interval": 5})}
    )
    plan = prepare_plan(short, data)
    assert plan.aggregation is None
    run = run_plan(plan)
    assert [roots.shards[0] for roots in run.rounds] == [roots.output for roots in run.rounds]
    assert int(run.final_state["t"].values) == 5 * plan.rounds


def test_own_data_file_trains_from_the_task_file(tmp_path: Path) -> None:
    """Three clouds of points, told apart by float features, brought as .npz beside the task file."""
    rng = np.random.default_rng(0)
    labels = np.arange(900) % 3
    points = rng.normal(size=(900, 5)) + 4 * np.eye(5)[labels]
    np.savez(
        tmp_path / "clouds.npz", x_train=points[:600], y_train=labels[:600], x_test=points[600:], y_test=labels[600:]
    )
    text = DIGITS.read_text().replace('source = "digits"', 'file = "clouds.npz"')
    (tmp_path / "task.toml").write_text(text)
    plan = prepare_plan(load_task_file(tmp_path / "task.toml"))
    assert plan.parameters == 5 * 64 + 64 + 64 * 3 + 3
    assert accuracy(plan, run_plan(plan).final_state) >= 0.97


def test_rounds_are_reported_in_order(data: Dataset) -> None:
    plan = prepare_plan(changed(steps_per_round=2, checkpoint_interval=2), data)
    seen = []
    run = run_plan(plan, on_round=lambda round_, state: seen.append((round_, state_root(state))))
    assert seen == [(round_, roots.output) for round_, roots in enumerate(run.rounds)]


def test_more_shards_than_samples_is_refused(data: Dataset) -> None:
    few = replace(data, train=data.train.take(slice(2)), test=None)
    with pytest.raises(UsageError) as caught:
        prepare_plan(with_shards(3), few)
    assert caught.value.code == "U-37"
