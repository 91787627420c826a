"""The models that the benches time: one nn.Module each, trained twice.

`float32` is what a user of PyTorch writes: eager modules, autograd, torch.optim. `step` is the same training step as a
function of (params, state, batch), which proofs.exact.compile turns into integers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional

Params = dict[str, Tensor]
State = dict[str, Any]
Batch = dict[str, Tensor]
Step = Callable[[Params, State, Batch], tuple[Params, State, Tensor]]


@dataclass(frozen=True, slots=True)
class Workload:
    """A model with its data and optimiser. Every step takes `batch` of the samples in `data`."""

    name: str
    module: nn.Module
    data: Batch
    batch: int
    step: Step
    state: State
    optimiser: Callable[[nn.Module], torch.optim.Optimizer]

    @property
    def params(self) -> Params:
        return {name: value.detach().clone() for name, value in self.module.named_parameters()}

    @property
    def parameters(self) -> int:
        return sum(value.numel() for value in self.module.parameters())

    def example(self) -> tuple[Params, State, Batch]:
        """What `compile` takes."""
        return self.params, self.state, {name: tensor[: self.batch] for name, tensor in self.data.items()}

    def float32_step(self) -> Callable[[Tensor], None]:
        """One eager step on the samples of an index."""
        optimiser = self.optimiser(self.module)

        def run(index: Tensor) -> None:
            optimiser.zero_grad()
            loss_of(self.module(self.data["x"][index]), self.data["y"][index]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()

        return run


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten())


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *sides: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sides))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        logits: Tensor = self.layers[-1](x)
        return logits


class Cnn(nn.Module):
    """Two convolutions with pooling, and a linear layer, on square images of one channel."""

    def __init__(self, side: int, channels: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, 2 * channels, 3, padding=1)
        self.head = nn.Linear(2 * channels * (side // 4) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.first(x)), 2)
        x = functional.max_pool2d(functional.relu(self.second(x)), 2)
        logits: Tensor = self.head(x.flatten(1))
        return logits


class Block(nn.Module):
    """Causal attention and a GELU layer four times as wide, each on a normalised input and beside a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.before_wide = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        samples, length, width = x.shape
        by_head = (samples, length, self.heads, width // self.heads)
        q, k, v = (part.view(by_head).transpose(1, 2) for part in self.qkv(self.before_attention(x)).chunk(3, dim=-1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(mixed.transpose(1, 2).reshape(samples, length, width))
        wider: Tensor = self.down(functional.gelu(self.up(self.before_wide(x))))
        return x + wider


class Gpt(nn.Module):
    """A decoder-only transformer over `context` tokens."""

    def __init__(self, vocabulary: int, context: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x) + self.places.weight[: x.shape[1]]
        for block in self.blocks:
            y = block(y)
        logits: Tensor = self.head(self.last(y))
        return logits


def sgd(module: nn.Module, lr: float, momentum: float) -> tuple[Step, State]:
    """The step with torch.optim.SGD's update, and its first state."""

    def step(params: Params, state: State, batch: Batch) -> tuple[Params, State, Tensor]:
        grads, loss = grad_and_value(_loss(module))(params, batch)
        velocity = {name: momentum * state["v"][name] + grads[name] for name in params}
        return {name: params[name] - lr * velocity[name] for name in params}, {"v": velocity}, loss

    return step, {"v": {name: torch.zeros_like(value) for name, value in module.named_parameters()}}


def adamw(module: nn.Module, lr: float, decay: float = 0.01) -> tuple[Step, State]:
    """The step with torch.optim.AdamW's update (betas 0.9, 0.999, eps 1e-8), and its first state."""
    beta1, beta2, eps = 0.9, 0.999, 1e-8

    def step(params: Params, state: State, batch: Batch) -> tuple[Params, State, Tensor]:
        grads, loss = grad_and_value(_loss(module))(params, batch)
        t = state["t"] + 1
        m = {name: beta1 * state["m"][name] + (1 - beta1) * grads[name] for name in params}
        v = {name: beta2 * state["v"][name] + (1 - beta2) * grads[name] * grads[name] for name in params}
        size, root = lr / (1 - beta1**t), torch.sqrt(1 - beta2**t)
        new = {
            name: params[name] * (1 - lr * decay) - size * m[name] / (torch.sqrt(v[name]) / root + eps)
            for name in params
        }
        return new, {"m": m, "v": v, "t": t}, loss

    zeros = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    return step, {"m": zeros, "v": dict(zeros), "t": torch.tensor(0.0)}


def _loss(module: nn.Module) -> Callable[[Params, Batch], Tensor]:
    return lambda params, batch: loss_of(functional_call(module, params, (batch["x"],)), batch["y"])


def mlp(sides: tuple[int, ...] = (784, 1024, 1024, 10), batch: int = 256, samples: int = 2048) -> Workload:
    """SGD with momentum on bytes as images have them, scaled to 0..1."""
    torch.manual_seed(1)
    module = Mlp(*sides)
    x = torch.randint(0, 256, (samples, sides[0])) / 256
    step, state = sgd(module, 0.01, 0.9)
    data = {"x": x, "y": torch.randint(0, sides[-1], (samples,))}
    return Workload("mlp", module, data, batch, step, state, _torch_sgd)


def cnn(side: int = 12, channels: int = 4, batch: int = 8, samples: int = 64) -> Workload:
    torch.manual_seed(1)
    module = Cnn(side, channels, 10)
    x = torch.randint(0, 256, (samples, 1, side, side)) / 256
    step, state = sgd(module, 0.01, 0.9)
    return Workload("cnn", module, {"x": x, "y": torch.randint(0, 10, (samples,))}, batch, step, state, _torch_sgd)


def gpt(
    layers: int = 6, width: int = 256, heads: int = 8, context: int = 128, batch: int = 16, samples: int = 128
) -> Workload:
    """AdamW over a vocabulary of 80 characters."""
    torch.manual_seed(1)
    module = Gpt(80, context, layers, width, heads)
    text = torch.randint(0, 80, (samples, context + 1))
    step, state = adamw(module, 1e-3)
    data = {"x": text[:, :-1].contiguous(), "y": text[:, 1:].contiguous()}
    return Workload("gpt", module, data, batch, step, state, _torch_adamw)


def _torch_sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)


def _torch_adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=1e-3, weight_decay=0.01)
