"""Every example compiles and trains, in exact arithmetic as in float32, here at a small size."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from node.request.task_file import load_task_file
from node.training.step_file import TrainingStep, Tree, load_step_file
from node.training.weights import pretrained
from proofs.exact import compile as compile_step
from proofs.exact.execute import run_unit
from proofs.exact.settings import Settings
from proofs.exact.state import State

EXAMPLES = Path(__file__).parents[3] / "examples"

SMALL = {
    "mlp": [("784, 256", "784, 12"), ("256, 128), nn.ReLU(), nn.Linear(128, 10", "12, 10")],
    "cnn": [("Conv2d(1, 8,", "Conv2d(1, 2,"), ("Conv2d(8, 16,", "Conv2d(2, 3,"), ("Linear(16 *", "Linear(3 *")],
    "gpt": [("LAYERS = 64, 128, 4, 4", "LAYERS = 6, 16, 2, 1"), ("RATE = 1500, 100, 2e-3", "RATE = 30, 5, 2e-2")],
    "lora": [("lr=1e-3", "lr=3e-3")],
}
"""What is smaller or quicker here than in the example's own text."""


@dataclass(frozen=True)
class Run:
    start: State
    end: State
    before: float
    exact: float
    float32: float
    """Losses of the batch: before, and after training in either arithmetic."""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The examples, written small."""
    # An import of `gpt` by its neighbour must not find one that another test loaded, nor leave this one behind.
    monkeypatch.setitem(sys.modules, "gpt", None)
    monkeypatch.delitem(sys.modules, "gpt")
    for name, changes in SMALL.items():
        text = (EXAMPLES / f"{name}.py").read_text()
        for ours, smaller in changes:
            assert ours in text, f"{name}.py has changed"
            text = text.replace(ours, smaller)
        (tmp_path / f"{name}.py").write_text(text)
    return tmp_path


def pictures(count: int) -> dict[str, Tensor]:
    """Ten patterns under noise, and which is which."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(count) % 10
    patterns = torch.rand(10, 784, generator=generator)
    return {"x": 0.8 * patterns[y] + 0.2 * torch.rand(count, 784, generator=generator), "y": y}


def sentences(count: int, length: int) -> dict[str, Tensor]:
    """Counting aloud from anywhere: what follows a character is always the same."""
    return {"tokens": (torch.arange(count)[:, None] * 5 + torch.arange(length + 1)) % 20}


def trained(step: TrainingStep, batch: dict[str, Tensor], steps: int) -> Run:
    params, state = step.initial(seed=1)
    compiled = compile_step(step.step, (params, state, batch), steps=steps)
    start = compiled.encode_state(params, state)
    # Fused kernels give the same bits, but take longer to generate than these steps to run.
    settings = Settings(fuse=False)
    end = run_unit(compiled.program, start, compiled.encode_data(batch), 0, steps, steps, settings=settings).final_state
    ours, theirs, theirs_state = compiled.decode_params(end), params, state
    for _ in range(steps):
        theirs, theirs_state, _ = step.step(theirs, theirs_state, batch)
    losses = [_loss(step, tree, batch) for tree in (params, ours, theirs)]
    return Run(start, end, *losses)


def _loss(step: TrainingStep, params: Tree, batch: dict[str, Tensor]) -> float:
    assert step.evaluate is not None
    with torch.no_grad():
        return float(step.evaluate(params, batch)["loss"])


@pytest.mark.parametrize(("name", "steps"), [("mlp", 15), ("cnn", 40)])
def test_pictures_are_learned_as_in_float32(small: Path, name: str, steps: int) -> None:
    run = trained(load_step_file(small / f"{name}.py", 1), pictures(30), steps)
    assert run.float32 < 0.7 * run.before
    assert run.exact == pytest.approx(run.float32, rel=0.02)


def test_text_is_learned_as_in_float32(small: Path) -> None:
    run = trained(load_step_file(small / "gpt.py", 1), sentences(8, 6), steps=30)
    assert run.float32 < 0.3 * run.before
    assert run.exact == pytest.approx(run.float32, rel=0.02)


def test_adapters_are_learned_and_the_base_stays_bit_for_bit(small: Path) -> None:
    run = trained(load_step_file(small / "lora.py", 1), sentences(8, 6), steps=40)
    assert run.float32 < 0.7 * run.before
    assert run.exact == pytest.approx(run.float32, rel=0.02)
    names = [name for name in run.start if name.startswith("params.")]
    moved = {name for name in names if not torch.equal(run.start[name].values, run.end[name].values)}
    assert moved == {name for name in names if "lora_" in name}


def test_what_the_gpt_learned_becomes_the_base_of_the_adapters(small: Path) -> None:
    base, _ = load_step_file(small / "gpt.py", 2).initial(2)
    save_file(base, small / "gpt.safetensors")
    fresh, _ = load_step_file(small / "lora.py", 1).initial(1)
    loaded = pretrained(fresh, small / "gpt.safetensors")
    for name, weight in loaded.items():
        assert torch.equal(weight, fresh[name] if "lora_" in name else base[name]), name


@pytest.mark.parametrize("name", SMALL)
def test_task_files_fit_their_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gpt", None)
    monkeypatch.delitem(sys.modules, "gpt")
    task = load_task_file(EXAMPLES / f"{name}.toml")
    assert task.model.file is not None
    step = load_step_file(task.model.file)
    assert step.example_batch is not None
    batch = step.example_batch()
    assert {len(tensor) for tensor in batch.values()} == {task.training.batch_size}
    if task.data.context is not None:
        assert batch["tokens"].shape[1] == task.data.context + 1


def test_the_gpt_is_as_large_and_its_schedule_as_long_as_said() -> None:
    params, _ = load_step_file(EXAMPLES / "gpt.py").initial(0)
    assert sum(weight.numel() for weight in params.values()) == pytest.approx(0.82e6, rel=0.01)
    task = load_task_file(EXAMPLES / "gpt.toml")
    assert (
        f"STEPS, WARM_UP, PEAK_RATE = {task.task.rounds * task.training.steps_per_round},"
        in (EXAMPLES / "gpt.py").read_text()
    )
