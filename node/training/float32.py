"""The same MLP in ordinary float32 PyTorch: the module that a user loads the result into, and the twin to compare with.

Promises: `Mlp` is a plain `torch.nn.Sequential` of Linear and ReLU; the exported weights load into it, or into a
Sequential that the user writes out by hand, under PyTorch's own names ("0.weight", "0.bias", "2.weight", ...).
`train_float32` follows the same plan as the exact run, from the same initial weights, over the same samples in the
same order, so that the difference in accuracy is what exact arithmetic costs and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import nn

from node.training.mlp import initial_state
from proofs.exact.state import State
from proofs.exact.tensor import dequantise, quantise

if TYPE_CHECKING:
    from node.training.datasets import InputScale, Split
    from node.training.plan import Plan

EVALUATION_BATCH = 4096


class Mlp(nn.Sequential):
    """Linear, ReLU, ..., Linear. Input [samples, layers[0]] float32, output logits [samples, layers[-1]]."""

    def __init__(self, layers: Sequence[int]) -> None:
        modules: list[nn.Module] = []
        for inputs, outputs in pairwise(layers):
            modules += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(*modules[:-1])


def layers_of(state: State) -> tuple[int, ...]:
    """Sizes of the layers that a training state holds, input first."""
    depth = depth_of(state)
    shapes = [state[f"w{layer}"].type.shape for layer in range(1, depth + 1)]
    return (shapes[0][1], *(shape[0] for shape in shapes))


def depth_of(state: State) -> int:
    """How many weight matrices a training state holds."""
    depth = 0
    while f"w{depth + 1}" in state:
        depth += 1
    if depth == 0:
        raise ValueError(f"not the state of an MLP: it holds {', '.join(sorted(state))}")
    return depth


def to_state_dict(state: State) -> dict[str, torch.Tensor]:
    """Weights and biases, float32, under the names of `Mlp` (momentum and counters are left out)."""
    weights: dict[str, torch.Tensor] = {}
    for layer in range(depth_of(state)):
        for ours, theirs in (("w", "weight"), ("b", "bias")):
            weights[f"{2 * layer}.{theirs}"] = dequantise(state[f"{ours}{layer + 1}"])
    return weights


def from_state_dict(weights: Mapping[str, torch.Tensor]) -> State:
    """A training state that starts from given weights, in `Mlp`'s names: velocities zero, step 0.

    Weights are rounded to the nearest 2^-24 and saturate at 128.

    Raises:
        ValueError: names or shapes are not those of an `Mlp`, or a weight is NaN.
    """
    depth = len(weights) // 2
    names = {f"{2 * layer}.{kind}" for layer in range(depth) for kind in ("weight", "bias")}
    ranks = [weights[name].dim() for name in weights]
    if not depth or set(weights) != names or sorted(ranks) != [1] * depth + [2] * depth:
        raise ValueError(f"not the weights of an MLP: {', '.join(sorted(weights))}")
    layers = (weights["0.weight"].shape[-1], *(len(weights[f"{2 * layer}.bias"]) for layer in range(depth)))
    state = dict(initial_state(layers, 0))
    for layer in range(depth):
        for ours, theirs in ((f"w{layer + 1}", f"{2 * layer}.weight"), (f"b{layer + 1}", f"{2 * layer}.bias")):
            state[ours] = quantise(weights[theirs].detach().double().numpy(), state[ours].type)
    return state


def module_of(state: State) -> Mlp:
    """A fresh `Mlp` with the state's weights."""
    module = Mlp(layers_of(state))
    module.load_state_dict(to_state_dict(state))
    return module


def evaluate(model: State | nn.Module, split: Split, scale: InputScale) -> float:
    """Accuracy, 0 to 1, of float32 inference on `split`. A state is loaded into an `Mlp` first."""
    module = module_of(model) if isinstance(model, Mapping) else model
    inputs = torch.from_numpy(scale.to_float(split.x))
    labels = torch.from_numpy(split.y)
    with torch.no_grad():
        predicted = torch.cat([module(batch).argmax(1) for batch in torch.split(inputs, EVALUATION_BATCH)])
    return float((predicted == labels).double().mean())


def train_float32(plan: Plan) -> Mlp:
    """Runs the whole plan in float32: local SGD on each shard, weights and momentum averaged after each round."""
    parameters = [tensor.clone() for tensor in module_of(plan.initial_state).state_dict().values()]
    momenta = [torch.zeros_like(tensor) for tensor in parameters]
    shards = [
        (torch.from_numpy(plan.dataset.scale.to_float(shard.x)), torch.from_numpy(shard.y)) for shard in plan.shards
    ]
    for round_ in range(plan.rounds):
        ends = []
        for shard, (inputs, labels) in enumerate(shards):
            worker = _Worker(plan, parameters, momenta)
            for batch in plan.batches(round_, shard):
                worker.step(inputs[batch], labels[batch])
            ends.append((worker.parameters(), worker.momenta()))
        parameters = _means([end[0] for end in ends])
        momenta = _means([end[1] for end in ends])
    module = Mlp(plan.layers)
    with torch.no_grad():
        for target, value in zip(module.parameters(), parameters, strict=True):
            target.copy_(value)
    return module


class _Worker:
    """One shard's run of one round with `torch.optim.SGD`."""

    def __init__(self, plan: Plan, parameters: list[torch.Tensor], momenta: list[torch.Tensor]) -> None:
        self._module = Mlp(plan.layers)
        self._loss = nn.CrossEntropyLoss()
        self._optimiser = torch.optim.SGD(
            self._module.parameters(), lr=float(plan.learning_rate), momentum=float(plan.momentum)
        )
        with torch.no_grad():
            for target, value, momentum in zip(self._module.parameters(), parameters, momenta, strict=True):
                target.copy_(value)
                self._optimiser.state[target]["momentum_buffer"] = momentum.clone()

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self._optimiser.zero_grad()
        self._loss(self._module(inputs), labels).backward()
        self._optimiser.step()

    def parameters(self) -> list[torch.Tensor]:
        return [parameter.detach() for parameter in self._module.parameters()]

    def momenta(self) -> list[torch.Tensor]:
        return [self._optimiser.state[parameter]["momentum_buffer"] for parameter in self._module.parameters()]


def _means(ends: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [torch.stack(tensors).mean(0) for tensors in zip(*ends, strict=True)]
