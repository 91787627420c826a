"""The built-in MLP is an ordinary PyTorch step: it does what torch.optim does, and its program does the same."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from node.training.mlp import mlp_step
from proofs.exact import compile as compile_step
from proofs.exact.compiler.formats import DataType
from proofs.exact.execute import LiveState, run_unit

LAYERS = (12, 16, 5)
BATCH = {
    "x": torch.randn(32, 12, generator=torch.Generator().manual_seed(1)),
    "y": torch.arange(32) % 5,
}


def test_steps_are_those_of_torch_optim_sgd() -> None:
    step = mlp_step(LAYERS, 0.1, 0.9)
    params, velocity = step.initial(3)
    module = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 5))
    module.load_state_dict(params)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(5):
        optimiser.zero_grad()
        expected = F.cross_entropy(module(BATCH["x"]), BATCH["y"])
        expected.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        params, velocity, loss = step.step(params, velocity, dict(BATCH))
        assert torch.allclose(loss, expected.detach(), atol=1e-6)
    for name, tensor in module.state_dict().items():
        assert torch.allclose(params[name], tensor, atol=1e-6)


def test_initial_weights_are_he_normal_and_follow_from_the_seed() -> None:
    step = mlp_step((400, 300, 10), 0.1, 0.9)
    params, velocity = step.initial(3)
    assert abs(float(params["0.weight"].std()) / math.sqrt(2 / 400) - 1) < 0.02
    assert not params["0.bias"].any() and not any(tensor.any() for tensor in velocity.values())
    assert not any(tensor.requires_grad for tensor in params.values())
    assert torch.equal(step.initial(3)[0]["2.weight"], params["2.weight"])
    assert not torch.equal(step.initial(4)[0]["2.weight"], params["2.weight"])


def test_evaluate_counts_the_labels_that_were_found() -> None:
    step = mlp_step((2, 2), 0.1, 0.0)
    assert step.evaluate is not None
    params = {"0.weight": torch.eye(2), "0.bias": torch.zeros(2)}
    batch = {"x": torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]]), "y": torch.tensor([0, 1, 1])}
    said = step.evaluate(params, batch)
    assert float(said["accuracy"]) == pytest.approx(2 / 3)
    assert float(said["loss"]) == pytest.approx(float(F.cross_entropy(batch["x"], batch["y"])))


@pytest.mark.parametrize("layers", [(12, 5), LAYERS, (12, 16, 8, 5)], ids=str)
def test_the_program_follows_the_step_that_it_was_compiled_from(layers: tuple[int, ...]) -> None:
    """Ten steps on one batch, against the same step in float64."""
    step = mlp_step(layers, 0.02, 0.9)
    params, velocity = step.initial(3)
    compiled = compile_step(step.step, (params, velocity, BATCH), steps=10, data_types={"x": DataType(20, 12)})
    losses: list[float] = []

    def note(_: int, state: LiveState) -> None:
        losses.append(compiled.loss_of(state))

    start = compiled.encode_state(params, velocity)
    final = run_unit(compiled.program, start, compiled.encode_data(BATCH), 0, 10, 10, on_step=note).final_state
    # The same numbers that the program read: rounded to 2^-12.
    exact = {"x": (BATCH["x"].double() * 4096).round() / 4096, "y": BATCH["y"]}
    wide = {name: tensor.double() for name, tensor in params.items()}
    moving = {name: tensor.double() for name, tensor in velocity.items()}
    for _ in range(10):
        wide, moving, _ = step.step(wide, moving, exact)
    ended = compiled.decode_params(final)
    for name, tensor in ended.items():
        # Weights enter products with 9 bits behind the point.
        assert float((tensor.double() - wide[name]).abs().mean()) < 1e-3, name
    assert step.evaluate is not None
    got = step.evaluate({name: tensor.double() for name, tensor in ended.items()}, exact)
    assert float(got["loss"]) == pytest.approx(float(step.evaluate(wide, exact)["loss"]), abs=1e-3)
    assert losses[-1] < losses[0]
