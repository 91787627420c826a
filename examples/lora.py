"""LoRA (Hu et al. 2021): a GPT stays as it is, and beside its linear layers small adapters are trained.

The frozen weights travel in `params` with the adapters and come back bit for bit. Their names are those of gpt.py, so
that what the task gpt.toml trained can be put in by `weights` in lora.toml; without, the base is a fresh one.
"""

from __future__ import annotations

import torch
from gpt import CONTEXT, VOCABULARY, Gpt
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F

from node.training.optimisers import AdamState, adam, adam_state

Params = dict[str, Tensor]

RANK, SCALE = 8, 2.0


class Adapted(nn.Linear):
    """x W^T + b + SCALE * (x A^T) B^T. B begins as zeros, and with it the adapter as nothing."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, base.bias is not None)
        self.load_state_dict(base.state_dict())
        self.lora_a = nn.Parameter(torch.randn(RANK, base.in_features) / base.in_features**0.5)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + SCALE * F.linear(F.linear(x, self.lora_a), self.lora_b)


def network() -> Gpt:
    gpt = Gpt()
    for block in gpt.blocks:
        for name in ("qkv", "mix", "up", "down"):
            setattr(block, name, Adapted(getattr(block, name)))
    gpt.head = Adapted(gpt.head)
    return gpt


model = network()


def adapters(params: Params) -> Params:
    """Those that are trained."""
    return {name: weight for name, weight in params.items() if "lora_" in name}


def init() -> tuple[Params, AdamState]:
    params = {name: weight.detach() for name, weight in network().named_parameters()}
    return params, adam_state(adapters(params))


def loss_of(trained: Params, frozen: Params, batch: dict[str, Tensor]) -> Tensor:
    tokens = batch["tokens"]
    logits = functional_call(model, {**frozen, **trained}, (tokens[:, :-1],))
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def step(params: Params, state: AdamState, batch: dict[str, Tensor]) -> tuple[Params, AdamState, Tensor]:
    trained = adapters(params)
    grads, loss = grad_and_value(loss_of)(trained, params, batch)
    trained, state = adam(trained, grads, state, lr=1e-3)
    return {**params, **trained}, state, loss


def evaluate(params: Params, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": loss_of(adapters(params), params, batch)}


def example_batch() -> dict[str, Tensor]:
    return {"tokens": torch.randint(0, VOCABULARY, (16, CONTEXT + 1))}
