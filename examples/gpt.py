"""A character-level GPT on Moby-Dick: 4 layers of width 128, 4 heads, 64 characters of context; 0.82 M parameters.

AdamW with warm-up, a cosine schedule and clipping of the gradient's norm. The schedule depends on the step alone, so
the compiler makes a table of it.

    avenue program compare examples/gpt.py --task examples/gpt.toml --steps 200

The book is fetched once, as an npm package.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.nn import functional as F

from node.training.optimisers import AdamState, adam_state, adamw, clip_by_global_norm

Params = dict[str, Tensor]

VOCABULARY = 89  # kinds of characters in the book
CONTEXT, WIDTH, HEADS, LAYERS = 64, 128, 4, 4
STEPS, WARM_UP, PEAK_RATE = 1500, 100, 2e-3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.before_mlp = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.attend(self.qkv(self.before_attention(x))))
        thought: Tensor = self.down(F.gelu(self.up(self.before_mlp(x))))
        return x + thought

    def attend(self, qkv: Tensor) -> Tensor:
        batch, length, _ = qkv.shape
        q, k, v = (part.view(batch, length, HEADS, -1).transpose(1, 2) for part in qkv.chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return mixed.transpose(1, 2).reshape(batch, length, WIDTH)


class Gpt(nn.Module):
    """[batch, length] tokens -> [batch, length, VOCABULARY] logits."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.last_norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                deep = name.endswith(("mix.weight", "down.weight"))  # what adds to the residual stream
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * LAYERS) if deep else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.shape[1]))
        logits: Tensor = self.head(self.last_norm(self.blocks(x)))
        return logits


model = Gpt()


def init() -> tuple[Params, AdamState]:
    params = {name: weight.detach() for name, weight in Gpt().named_parameters()}
    return params, adam_state(params)


def loss_of(params: Params, batch: dict[str, Tensor]) -> Tensor:
    tokens = batch["tokens"]
    logits = functional_call(model, params, (tokens[:, :-1],))
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def rate_at(step: Tensor) -> Tensor:
    """Linear warm-up, then half a cosine down to a tenth."""
    through = (step - WARM_UP) / (STEPS - WARM_UP)
    cosine = 0.55 + 0.45 * torch.cos(math.pi * through.clamp(0, 1))
    return PEAK_RATE * torch.where(step < WARM_UP, (step + 1) / WARM_UP, cosine)


def step(params: Params, state: AdamState, batch: dict[str, Tensor]) -> tuple[Params, AdamState, Tensor]:
    grads, loss = grad_and_value(loss_of)(params, batch)
    grads = clip_by_global_norm(grads, 1.0)
    params, state = adamw(params, grads, state, lr=rate_at(state["step"]), betas=(0.9, 0.99), weight_decay=0.1)
    return params, state, loss


def evaluate(params: Params, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": loss_of(params, batch)}


def example_batch() -> dict[str, Tensor]:
    return {"tokens": torch.randint(0, VOCABULARY, (16, CONTEXT + 1))}
