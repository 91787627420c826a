"""The functional optimisers compute what torch.optim computes, in float32, and compile to steps that follow float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from node.training.optimisers import adam, adam_state, adamw, clip_by_global_norm, lion, sgd, sgd_state
from proofs.exact import compile as compile_step
from proofs.exact.execute import run_unit

Params = dict[str, Tensor]
Update = Callable[[Params, Params, Any], tuple[Params, Any]]


def parameters(seed: int = 0) -> Params:
    draw = torch.Generator().manual_seed(seed)
    return {"w": torch.randn(5, 3, generator=draw), "b": torch.randn(5, generator=draw)}


def gradients(step: int) -> Params:
    """Of very different sizes from place to place, as those of embeddings are."""
    draw = torch.Generator().manual_seed(1000 + step)
    return {
        name: torch.randn(weight.shape, generator=draw) * 10.0 ** -(torch.arange(weight.numel()) % 4).view_as(weight)
        for name, weight in parameters().items()
    }


def assert_follows_torch(
    update: Update, state: Any, optimiser: Callable[[list[Tensor]], torch.optim.Optimizer]
) -> None:
    params = parameters()
    theirs = {name: weight.clone().requires_grad_() for name, weight in params.items()}
    reference = optimiser(list(theirs.values()))
    for step in range(30):
        grads = gradients(step)
        params, state = update(params, grads, state)
        for name, weight in theirs.items():
            weight.grad = grads[name].clone()
        reference.step()
    for name, weight in theirs.items():
        torch.testing.assert_close(params[name], weight.detach(), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("momentum, nesterov, decay", [(0.0, False, 0.0), (0.9, False, 0.01), (0.9, True, 0.01)])
def test_sgd_is_torchs(momentum: float, nesterov: bool, decay: float) -> None:
    options: dict[str, Any] = {"lr": 0.05, "momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    assert_follows_torch(
        lambda p, g, s: sgd(p, g, s, **options), sgd_state(parameters()), lambda p: torch.optim.SGD(p, **options)
    )


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_torchs(decay: float) -> None:
    options: dict[str, Any] = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": decay}
    assert_follows_torch(
        lambda p, g, s: adam(p, g, s, **options), adam_state(parameters()), lambda p: torch.optim.Adam(p, **options)
    )


def test_adamw_is_torchs() -> None:
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
    assert_follows_torch(
        lambda p, g, s: adamw(p, g, s, **options), adam_state(parameters()), lambda p: torch.optim.AdamW(p, **options)
    )


def test_lion_is_the_papers_algorithm() -> None:
    params, state = parameters(), sgd_state(parameters())
    theirs = {name: weight.double() for name, weight in params.items()}
    average = {name: torch.zeros_like(weight) for name, weight in theirs.items()}
    for step in range(30):
        grads = gradients(step)
        params, state = lion(params, grads, state, lr=0.01, weight_decay=0.1)
        for name, grad in grads.items():
            c = 0.9 * average[name] + 0.1 * grad.double()
            theirs[name] = theirs[name] - 0.01 * (torch.sign(c) + 0.1 * theirs[name])
            average[name] = 0.99 * average[name] + 0.01 * grad.double()
    for name, weight in theirs.items():
        torch.testing.assert_close(params[name].double(), weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("max_norm", [0.5, 100.0])
def test_clipping_is_torchs(max_norm: float) -> None:
    grads = gradients(0)
    theirs = {name: weight.requires_grad_() for name, weight in parameters().items()}
    for name, weight in theirs.items():
        weight.grad = grads[name].clone()
    torch.nn.utils.clip_grad_norm_(list(theirs.values()), max_norm)
    for name, grad in clip_by_global_norm(grads, max_norm).items():
        torch.testing.assert_close(grad, theirs[name].grad)


# Compiled: 200 steps down a bowl that is ten thousand times steeper in one direction than in another


STEPS = 200

UPDATES: dict[str, tuple[Update, Callable[[Params], Any], float]] = {
    "sgd": (lambda p, g, s: sgd(p, g, s, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3), sgd_state, 3e-5),
    "lion": (lambda p, g, s: lion(p, g, s, lr=0.003, weight_decay=0.01), sgd_state, 7e-3),
    "adam": (lambda p, g, s: adam(p, g, s, lr=0.01), adam_state, 3e-3),
    "adamw": (lambda p, g, s: adamw(p, clip_by_global_norm(g, 1.0), s, lr=0.01, weight_decay=0.1), adam_state, 1e-3),
}
"""With how far from float64 a weight may end, of a way of about 1. Lion takes a step of 0.003 up or down where a weight
has arrived. Adam's second moment is 2^-26 of its greatest where the gradient is 10^-4 of its greatest.
"""

STEEPNESS = 10.0 ** -torch.linspace(0, 4, 15).view(5, 3)
LOWEST = torch.linspace(-1, 1, 15).view(5, 3).flip(0)


def descending(update: Update) -> Callable[[Params, Any, Params], tuple[Params, Any, Tensor]]:
    def step(params: Params, state: Any, batch: Params) -> tuple[Params, Any, Tensor]:
        def loss_of(weights: Params) -> Tensor:
            away = weights["w"] - params["lowest"]
            return (params["steepness"] * away * away).sum() * batch["weight"].mean()

        weights = {"w": params["w"]}
        grads, loss = torch.func.grad_and_value(loss_of)(weights)
        weights, state = update(weights, grads, state)
        return params | weights, state, loss

    return step


@pytest.mark.parametrize("name", UPDATES)
def test_compiled_updates_follow_float64(name: str) -> None:
    update, state_of, tolerance = UPDATES[name]
    params = {"w": parameters()["w"] * 0.1, "steepness": STEEPNESS, "lowest": LOWEST}
    state, batch = state_of({"w": params["w"]}), {"weight": torch.ones(4)}
    step = descending(update)
    compiled = compile_step(step, (params, state, batch), steps=STEPS)
    encoded = compiled.encode_state(params, state)
    result = run_unit(compiled.program, encoded, compiled.encode_data(batch), 0, STEPS, STEPS)
    exact = compiled.decode_params(result.final_state)

    wide: Any = tree_map(lambda x: x.double() if x.is_floating_point() else x, (params, state, batch))
    params, state, batch = wide
    for _ in range(STEPS):
        params, state, _ = step(params, state, batch)
    moved = (params["w"] - 0.1 * parameters()["w"]).abs().max()
    assert moved > 0.3
    assert (exact["w"] - params["w"]).abs().max() < tolerance


def test_a_gradient_whose_square_is_too_small_makes_no_large_step() -> None:
    """Squares below half a unit of the second moment are 0; the first moment is not. The step stays about lr."""
    steep = torch.cat([torch.ones(1), torch.full((63,), 1.0) * 10.0 ** -torch.linspace(4, 7, 63)])
    params = {"w": torch.zeros(64), "steep": steep}
    state, batch = adam_state({"w": params["w"]}), {"weight": torch.ones(4)}

    def step(params: Params, state: Any, batch: Params) -> tuple[Params, Any, Tensor]:
        def loss_of(weights: Params) -> Tensor:
            return (params["steep"] * weights["w"]).sum() * batch["weight"].mean()

        grads, loss = torch.func.grad_and_value(loss_of)({"w": params["w"]})
        moved, state = adamw({"w": params["w"]}, grads, state, lr=0.01, weight_decay=0.0)
        return params | moved, state, loss

    compiled = compile_step(step, (params, state, batch), steps=STEPS)
    encoded = compiled.encode_state(params, state)
    for steps in (1, 10, 100):
        result = run_unit(compiled.program, encoded, compiled.encode_data(batch), 0, steps, steps)
        assert compiled.decode_params(result.final_state)["w"].abs().max() < 0.0125 * steps
