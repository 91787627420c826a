"""Tasks whose model is a step file: trained, exported, started from given weights, or refused at the author's lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from node.request.task_file import TaskFile, load_task_file
from node.training.float32 import evaluate, train_float32
from node.training.plan import Plan, loss_of, prepare_plan, run_plan
from node.training.step_file import Tree
from proofs.exact.execute import Overflowed
from proofs.exact.opcodes import Opcode
from proofs.exact.state_dict import to_state_dict
from protocol.errors import UsageError

DIGITS = Path(__file__).parents[3] / "examples" / "digits.toml"

CLOUDS = """
import torch
from torch import nn
from torch.func import functional_call, grad_and_value

model = nn.Linear(5, 3)

def init():
    fresh = nn.Linear(5, 3)
    return dict(fresh.named_parameters()), {"count": torch.tensor(0)}

def loss_of(params, batch):
    return nn.functional.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

def step(params, state, batch):
    gradients, loss = grad_and_value(loss_of)(params, batch)
    rate = 0.5 * 0.99 ** state["count"]
    return {name: params[name] - rate * gradients[name] for name in params}, {"count": state["count"] + 1}, loss

def evaluate(params, batch):
    logits = functional_call(model, params, (batch["x"],))
    return {"accuracy": (logits.argmax(1) == batch["y"]).float().mean()}
"""


BIGRAM = """
import torch
from torch.func import grad_and_value
from torch.nn import functional as F

def init():
    return {"table": torch.zeros(64, 64)}, {}

def loss_of(params, batch):
    logits = F.embedding(batch["tokens"][:, :-1], params["table"])
    return F.cross_entropy(logits.reshape(-1, 64), batch["tokens"][:, 1:].reshape(-1))

def step(params, state, batch):
    gradients, loss = grad_and_value(loss_of)(params, batch)
    return {"table": params["table"] - 20.0 * gradients["table"]}, state, loss

def evaluate(params, batch):
    return {"loss": loss_of(params, batch)}
"""


def clouds_task(folder: Path, step: str = CLOUDS, *, weights: str = "") -> TaskFile:
    """Three clouds of points, and a step file beside the task file."""
    rng = np.random.default_rng(0)
    labels = np.arange(900) % 3
    points = rng.normal(size=(900, 5)) + 4 * np.eye(5)[labels]
    np.savez(
        folder / "clouds.npz", x_train=points[:600], y_train=labels[:600], x_test=points[600:], y_test=labels[600:]
    )
    (folder / "clouds.py").write_text(step)
    text = DIGITS.read_text().replace('source = "digits"', 'file = "clouds.npz"')
    text = text.replace('kind = "mlp"\nhidden = [64]', 'file = "clouds.py"\n' + weights)
    text = text.replace("learning_rate = 0.05\nmomentum = 0.9\n", "").replace(
        "steps_per_round = 100", "steps_per_round = 25"
    )
    (folder / "task.toml").write_text(text)
    return load_task_file(folder / "task.toml")


def accuracy(plan: Plan, params: Tree) -> float:
    assert plan.dataset.test is not None
    return evaluate(plan.step, params, plan.dataset.numbers(plan.dataset.test))["accuracy"]


def test_step_file_trains_over_shards_and_rounds_beside_its_float_twin(tmp_path: Path) -> None:
    plan = prepare_plan(clouds_task(tmp_path))
    assert (plan.step.name, plan.parameters) == ("clouds.py", 18)
    run = run_plan(plan)
    exact, twin = plan.compiled.decode_params(run.final_state), train_float32(plan)
    assert accuracy(plan, exact) >= 0.97
    assert abs(accuracy(plan, twin) - accuracy(plan, exact)) <= 0.01
    assert int(run.final_state["t"].values) == int(plan.compiled.decode_state(run.final_state)["count"]) == 75
    exported = to_state_dict(run.final_state)
    assert exported.keys() == {"weight", "bias"}
    for name, tensor in exported.items():
        assert torch.allclose(tensor, twin[name], atol=0.02), "75 steps apart by rounding alone"


def test_steps_that_cannot_be_compiled_are_refused_with_their_lines(tmp_path: Path) -> None:
    bad = CLOUDS.replace("    rate =", "    if state['count'].item() > 3:\n        pass\n    rate =")
    with pytest.raises(UsageError) as caught:
        prepare_plan(clouds_task(tmp_path, bad))
    assert caught.value.code == "U-47"
    line = 1 + bad.split("\n").index("    if state['count'].item() > 3:")
    assert f"clouds.py:{line}" in caught.value.message
    assert "instead:" in caught.value.message


def test_initial_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    bad = CLOUDS.replace(
        "    fresh = nn.Linear(5, 3)\n", "    fresh = nn.Linear(5, 3)\n    fresh.bias.data[1] = 1e400\n"
    )
    with pytest.raises(UsageError) as caught:
        prepare_plan(clouds_task(tmp_path, bad))
    assert caught.value.code in ("U-47", "U-48")
    assert "bias" in caught.value.message


def test_pretrained_weights_are_where_training_starts(tmp_path: Path) -> None:
    weight = torch.randn(3, 5).to(torch.bfloat16) * 20
    save_file({"weight": weight}, tmp_path / "base.safetensors")
    plan = prepare_plan(clouds_task(tmp_path, weights='weights = "base.safetensors"\n'))
    start = to_state_dict(plan.initial_state)
    assert torch.allclose(start["weight"], weight.float(), atol=1e-4), "the formats have room for them"
    assert torch.allclose(start["bias"], plan.step.initial(plan.seed)[0]["bias"], atol=1e-6), (
        "not in the file: as drawn"
    )


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"wieght": torch.zeros(3, 5)}, "no parameter is named wieght; there are bias, weight"),
        ({"weight": torch.zeros(5, 3)}, "weight has shape [5, 3], init() makes [3, 5]"),
        ({"bias": torch.tensor([0.0, float("nan"), 0.0])}, "bias is no floating-point tensor of finite numbers"),
    ],
    ids=["name", "shape", "nan"],
)
def test_weights_of_another_model_are_refused(tmp_path: Path, weights: dict[str, torch.Tensor], said: str) -> None:
    save_file(weights, tmp_path / "base.safetensors")
    with pytest.raises(UsageError) as caught:
        prepare_plan(clouds_task(tmp_path, weights='weights = "base.safetensors"\n'))
    assert caught.value.code == "U-49"
    assert said in caught.value.message


def test_built_in_mlp_cannot_read_text(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("Call me Ishmael. " * 50)
    text = DIGITS.read_text().replace('source = "digits"', 'text = "book.txt"\ncontext = 8')
    (tmp_path / "task.toml").write_text(text)
    with pytest.raises(UsageError, match=r"book[^ ]* has tokens") as caught:
        prepare_plan(load_task_file(tmp_path / "task.toml"))
    assert caught.value.code == "U-56"


def test_step_files_read_text_as_tokens(tmp_path: Path) -> None:
    """A table of which character follows which, by counting alone: the least language model there is."""
    (tmp_path / "book.txt").write_text("Call me Ishmael. Some years ago, never mind how long precisely. " * 20)
    (tmp_path / "bigram.py").write_text(BIGRAM)
    text = DIGITS.read_text().replace('source = "digits"', 'text = "book.txt"\ncontext = 8')
    text = text.replace('kind = "mlp"\nhidden = [64]', 'file = "bigram.py"').replace(
        "batch_size = 32", "batch_size = 16"
    )
    text = text.replace("learning_rate = 0.05\nmomentum = 0.9\n", "").replace("shards = 2", "shards = 1")
    (tmp_path / "task.toml").write_text(text.replace("steps_per_round = 100", "steps_per_round = 40"))
    plan = prepare_plan(load_task_file(tmp_path / "task.toml"))
    assert plan.shard_state(0)["tokens"].type.width == 1
    final = run_plan(plan).final_state
    assert loss_of(final) < 0.6 * loss_of(plan.initial_state)
    assert plan.dataset.test is not None
    numbers = plan.dataset.numbers(plan.dataset.test)
    exact = evaluate(plan.step, plan.compiled.decode_params(final), numbers)["loss"]
    assert exact == pytest.approx(evaluate(plan.step, train_float32(plan), numbers)["loss"], abs=0.01)


def test_batch_larger_than_a_shard_is_refused(tmp_path: Path) -> None:
    task = clouds_task(tmp_path)
    task = task.model_copy(update={"training": task.training.model_copy(update={"batch_size": 301})})
    with pytest.raises(UsageError) as caught:
        prepare_plan(task)
    assert caught.value.code == "U-40"


def test_step_file_that_asserts_its_bounds_ends_in_an_overflow(tmp_path: Path) -> None:
    """At a rate at which the weights double again and again, they saturate, unless the author wants to be told."""
    wild = CLOUDS.replace("rate = 0.5 * 0.99 ** state", "rate = -1.0 * 1.0 ** state").replace(
        'return nn.functional.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])',
        'return sum((tensor**2).sum() for tensor in params.values()) + batch["x"].sum() * 0 + batch["y"].sum() * 0',
    )
    plan = prepare_plan(clouds_task(tmp_path, wild))
    saturated = run_plan(plan).final_state["params.weight"]
    assert int(saturated.values.abs().max()) >= saturated.type.hi
    options = 'from proofs.exact.compiler.formats import Options\nOPTIONS = Options(overflow="assert")\n'
    plan = prepare_plan(clouds_task(tmp_path, options + wild))
    with pytest.raises(Overflowed) as caught:
        run_plan(plan)
    over = caught.value
    assert 0 < over.step < 25
    assert plan.program.ops[over.operation].opcode is Opcode.CHECK
    assert len(over.committed_roots(plan.steps, plan.checkpoint_interval)) == 2
    good = plan.compiled.decode_params(over.state)["weight"]
    assert bool(torch.isfinite(good).all()), "the last good state is one to go on from"
