"""A small convolutional network on MNIST: two convolutions, two poolings. 98.4 % after two passes over the data.

Float32 and exact arithmetic side by side, from the same weights and in the same order:

    avenue program compare examples/cnn.py --task examples/cnn.toml --steps 300

Convolutions become matrix products of gathered windows; the largest pixel of a pool is found by comparing integers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F

from node.training.optimisers import sgd, sgd_state

Params = dict[str, Tensor]


class Cnn(nn.Module):
    """[images, 784] -> [images, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, kernel_size=3, padding=1)
        self.second = nn.Conv2d(8, 16, kernel_size=3, padding=1)
        self.head = nn.Linear(16 * 7 * 7, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 1, 28, 28)
        x = F.max_pool2d(F.relu(self.first(x)), 2)
        x = F.max_pool2d(F.relu(self.second(x)), 2)
        logits: Tensor = self.head(x.flatten(1))
        return logits


model = Cnn()


def init() -> tuple[Params, Params]:
    params = {name: weight.detach() for name, weight in Cnn().named_parameters()}
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
    return {"x": torch.rand(64, 784), "y": torch.randint(0, 10, (64,))}
