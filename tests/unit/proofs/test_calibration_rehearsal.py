"""A schedule that warms up hides how large a step's numbers get: calibration looks at later steps as well."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from node.training.optimisers import AdamState, Tensors, adam, adam_state
from proofs.exact import compile as compile_step
from proofs.exact.compiler import calibrate
from proofs.exact.execute import run_unit

STEPS = 120
BATCH = {"x": torch.linspace(-1, 1, 32).reshape(4, 8), "y": torch.linspace(-1, 1, 32).reshape(4, 8)}


def start() -> tuple[Tensors, AdamState]:
    params = {name: torch.full((8,), 0.003) for name in "abc"}
    return params, adam_state(params)


def step(params: Tensors, state: AdamState, batch: Tensors) -> tuple[Tensors, AdamState, Tensor]:
    """Learns a * b * c = 1. The product begins at 2.7e-8: 25 bits below where it ends."""

    def loss_of(given: Tensors) -> Tensor:
        return ((given["a"] * given["b"] * given["c"] * batch["x"] - batch["y"]) ** 2).mean()

    grads, loss = torch.func.grad_and_value(loss_of)(params)
    rate = 0.05 * torch.clamp((state["step"] + 1) / 40, max=1.0)
    params, state = adam(params, grads, state, lr=rate)
    return params, state, loss


def product_after_training() -> Tensor:
    compiled = compile_step(step, (*start(), BATCH), steps=STEPS)
    run = run_unit(compiled.program, compiled.encode_state(*start()), compiled.encode_data(BATCH), 1, STEPS, STEPS)
    trained: Tensors = compiled.decode_params(run.final_state)
    return trained["a"] * trained["b"] * trained["c"]


def test_what_grows_after_the_warm_up_has_room() -> None:
    params, state = start()
    for _ in range(STEPS):
        params, state, _ = step(params, state, BATCH)
    wanted = params["a"] * params["b"] * params["c"]
    assert (wanted - 1).abs().max() < 0.1
    assert (product_after_training() - wanted).abs().max() < 0.01


def test_the_first_steps_alone_would_not_have_shown_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "REHEARSED", 0)
    assert (product_after_training() - 1).abs().max() > 0.1


def test_a_step_that_diverges_without_its_warm_up_still_compiles() -> None:
    def fragile(params: Tensors, state: Tensors, batch: Tensors) -> tuple[Tensors, Tensors, Tensor]:
        grads, loss = torch.func.grad_and_value(lambda given: ((given["w"] * batch["x"]) ** 2).sum())(params)
        rate = torch.where(state["t"] < 50, 0.01, 1e4)
        return {"w": params["w"] - rate * grads["w"]}, {"t": state["t"] + 1}, loss

    example = ({"w": torch.ones(8)}, {"t": torch.tensor(0)}, {"x": BATCH["x"]})
    compiled = compile_step(fragile, example, steps=100)
    weights = compiled.program.state_types["params.w"]
    assert 2 ** (weights.bits - 1 - weights.frac) < 1e4, "what was seen while it diverged counts for nothing"
