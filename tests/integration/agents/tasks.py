"""Task files for these tests: digits, two shards, as long or short as a test needs."""

from __future__ import annotations

TEMPLATE = """
[task]
name = "digits"
private = {private}
rounds = {rounds}
shards = 2
deadline = "1h"
compute_window = {window}
reveal_window = {reveal}
challenge_window = {challenge}
[pay]
unit_price = "10"
aggregation_price = "1"
collateral = "20"
[model]
{model}
[data]
source = "digits"
[training]
steps_per_round = {steps}
batch_size = 32
{optimiser}
seed = 7
checkpoint_interval = {interval}
"""

STEP_FILE = """
import torch
from torch import nn
from torch.func import functional_call, grad_and_value

def network():
    return nn.Sequential(nn.Linear(64, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 10))

model = network()

def init():
    params = {name: weight.detach() for name, weight in network().named_parameters()}
    return params, {name: torch.zeros_like(weight) for name, weight in params.items()}

def loss_of(params, batch):
    return nn.functional.cross_entropy(functional_call(model, params, (batch["x"],)), batch["y"])

def step(params, momentum, batch):
    gradients, loss = grad_and_value(loss_of)(params, batch)
    moves = {name: 0.9 * momentum[name] + 0.1 * gradients[name] for name in params}  # Lion: Chen et al. 2023
    momentum = {name: 0.99 * momentum[name] + 0.01 * gradients[name] for name in params}
    return {name: params[name] - 0.003 * moves[name].sign() for name in params}, momentum, loss
"""
"""A step of somebody's own, with a normalisation, another activation and another optimiser than the built-in MLP's."""

LONG_STEPS = 1500
"""Some seconds of training, so that a test can kill the worker in the middle."""


def task_text(
    *,
    private: bool = False,
    rounds: int = 2,
    window: int = 120,
    challenge: int = 60,
    reveal: int = 60,
    steps: int = 40,
    interval: int = 10,
    step_file: str | None = None,
) -> str:
    """A task file. Windows in seconds. `step_file`: name of one beside it, in place of the built-in MLP."""
    return TEMPLATE.format(
        private=str(private).lower(),
        rounds=rounds,
        window=window,
        challenge=challenge,
        reveal=reveal,
        steps=steps,
        interval=interval,
        model='kind = "mlp"\nhidden = [16]' if step_file is None else f'file = "{step_file}"',
        optimiser="learning_rate = 0.1\nmomentum = 0.9" if step_file is None else "",
    )
