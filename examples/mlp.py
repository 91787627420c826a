"""A multilayer perceptron on MNIST: 784 pixels, two hidden layers, ten digits. About 97 % after three passes.

What it compiles to, and how to train it on the market:

    avenue program check examples/mlp.py
    avenue task submit examples/mlp.toml

A step file needs `init` and `step`; the rest is for whoever looks at the result.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F

from node.training.optimisers import sgd, sgd_state

Params = dict[str, Tensor]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10))


model = network()  # says what is computed; the weights it is computed with are passed in


def init() -> tuple[Params, Params]:
    """Weights as PyTorch draws them, and the optimiser's momentum: zeros."""
    params = {name: weight.detach() for name, weight in network().named_parameters()}
    return params, sgd_state(params)


def loss_of(params: Params, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])


def step(params: Params, state: Params, batch: dict[str, Tensor]) -> tuple[Params, Params, Tensor]:
    grads, loss = grad_and_value(loss_of)(params, batch)
    params, state = sgd(params, grads, state, lr=0.05, momentum=0.9)
    return params, state, loss


def evaluate(params: Params, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    logits = functional_call(model, params, (batch["x"],))
    right = logits.argmax(1) == batch["y"]
    return {"accuracy": right.float().mean(), "loss": F.cross_entropy(logits, batch["y"])}


def example_batch() -> dict[str, Tensor]:
    return {"x": torch.rand(128, 784), "y": torch.randint(0, 10, (128,))}
