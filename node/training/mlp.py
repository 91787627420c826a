"""The built-in model: an MLP classifier with ReLU, trained by SGD with momentum on softmax cross-entropy.

A step like any that a requester might write, in plain PyTorch; nothing else in Avenue knows that it is built in. Its
parameters have the names of `torch.nn.Sequential(Linear, ReLU, ..., Linear)`: "0.weight", "0.bias", "2.weight", ...
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F  # noqa: N812 — as everybody calls it

from node.training.step_file import TrainingStep

Tensors = dict[str, torch.Tensor]


class Mlp(nn.Sequential):
    """Linear, ReLU, ..., Linear. Input [samples, layers[0]], output logits [samples, layers[-1]]."""

    def __init__(self, layers: Sequence[int]) -> None:
        modules: list[nn.Module] = []
        for inputs, outputs in pairwise(layers):
            modules += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*modules[:-1])


def mlp_step(layers: Sequence[int], learning_rate: float, momentum: float) -> TrainingStep:
    """The step of an MLP with these layer sizes (input first, classes last) on batches of x [n, inputs] and y [n]."""
    with torch.device("meta"):
        model = Mlp(layers)

    def init() -> tuple[Tensors, Tensors]:
        fresh = Mlp(layers)
        for module in fresh:
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")  # He et al. 2015
                nn.init.zeros_(module.bias)
        params = dict(fresh.named_parameters())
        return {**params}, {name: torch.zeros_like(weight) for name, weight in params.items()}

    def logits_of(params: Tensors, batch: Tensors) -> torch.Tensor:
        logits: torch.Tensor = functional_call(model, params, (batch["x"],))
        return logits

    def loss_of(params: Tensors, batch: Tensors) -> torch.Tensor:
        return F.cross_entropy(logits_of(params, batch), batch["y"])

    def step(params: Tensors, velocity: Tensors, batch: Tensors) -> tuple[Tensors, Tensors, torch.Tensor]:
        gradients, loss = grad_and_value(loss_of)(params, batch)
        velocity = {name: momentum * velocity[name] + gradients[name] for name in params}
        params = {name: params[name] - learning_rate * velocity[name] for name in params}
        return params, velocity, loss

    def evaluate(params: Tensors, batch: Tensors) -> dict[str, torch.Tensor]:
        logits = logits_of(params, batch)
        accuracy = (logits.argmax(1) == batch["y"]).double().mean()
        return {"accuracy": accuracy, "loss": F.cross_entropy(logits, batch["y"])}

    return TrainingStep(f"mlp {'-'.join(map(str, layers))}", init, step, evaluate)
