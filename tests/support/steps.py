"""Training steps that tests compile, written as a newcomer would write them, and a way to run a compiled one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F

from proofs.exact.compiler.compiled import CompiledStep
from proofs.exact.plan import Plan
from proofs.exact.settings import Settings
from proofs.exact.state import State

Batch = dict[str, torch.Tensor]
Step = Callable[[Any, Any, Batch], tuple[Any, Any, torch.Tensor]]


def regression_step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, torch.Tensor]:
    """Least squares by gradient descent, its gradient written by hand."""
    error = batch["x"] @ params["w"] - batch["y"]
    gradient = batch["x"].T @ error / len(error)
    return {"w": params["w"] - 0.1 * gradient}, state, (error * error).mean()


def regression_example(samples: int = 16, features: int = 3) -> tuple[Any, Any, Batch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, features, generator=generator)
    slopes = torch.tensor([1.0, -0.5, 0.25])[:features]
    return {"w": torch.zeros(features)}, {}, {"x": x, "y": x @ slopes}


def classifier(model: nn.Module, *, rate: float = 0.1, momentum: float = 0.9) -> tuple[Step, Any, Any]:
    """A step of cross-entropy and SGD with momentum for a module; its parameters; momentum of zeros."""
    params = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, torch.Tensor]:
        def loss_of(params: Any) -> torch.Tensor:
            return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

        grads, loss = grad_and_value(loss_of)(params)
        velocity = {name: momentum * state["v"][name] + grads[name] for name in params}
        return {name: params[name] - rate * velocity[name] for name in params}, {"v": velocity}, loss

    return step, params, {"v": {name: torch.zeros_like(parameter) for name, parameter in params.items()}}


def blobs(samples: int = 32, features: int = 8, classes: int = 4) -> Batch:
    """Points that a small network can tell apart."""
    generator = torch.Generator().manual_seed(2)
    y = torch.arange(samples) % classes
    return {"x": torch.randn(samples, features, generator=generator) + 2 * torch.eye(features)[y], "y": y}


def run_exact(compiled: CompiledStep, state: State, data: State, steps: int, *, seed: int = 7) -> State:
    """The state after `steps` steps on the torch kernels."""
    plan = Plan.of(compiled.program, Settings(fuse=False))
    bound = plan.bind(data, seed)
    for _ in range(steps):
        state = plan.run(state, bound)
    return state


def run_float(step: Step, params: Any, state: Any, batch: Mapping[str, torch.Tensor], steps: int) -> tuple[Any, Any]:
    """The same in PyTorch."""
    for _ in range(steps):
        params, state, _ = step(params, state, dict(batch))
    return params, state
