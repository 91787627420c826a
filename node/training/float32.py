"""The same plan in ordinary float32 PyTorch: the twin that exact training is compared with.

Promises: `train_float32` calls the same step function from the same initial parameters over the same samples in the
same order, and averages after each round as the market does; so what differs at the end is what exact arithmetic
costs, and nothing else. `evaluate` asks the step file's own `evaluate`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from node.training.step_file import TrainingStep, Tree, blamed_on

if TYPE_CHECKING:
    from node.training.plan import Plan

EVALUATION_BATCH = 500


def train_float32(plan: Plan, *, on_round: Callable[[int, Tree], None] | None = None) -> Tree:
    """Runs the whole plan in float32 and returns the parameters. `on_round(round, params)` is called after each."""
    params, state = plan.params, plan.optimiser
    shards = [tensors_of(plan.dataset.numbers(shard)) for shard in plan.shards]
    for round_ in range(plan.rounds):
        ends = []
        for index, shard in enumerate(shards):
            mine: tuple[Tree, Tree] = (params, state)
            for rows in plan.batches(round_, index):
                batch = {name: values[rows] for name, values in shard.items()}
                with blamed_on(plan.step.name, "step()"):
                    new_params, new_state, _ = plan.step.step(*mine, batch)
                mine = (detached(new_params), detached(new_state))
            ends.append(mine)
        params, state = mean([end[0] for end in ends]), mean([end[1] for end in ends])
        if on_round is not None:
            on_round(round_, params)
    return params


def evaluate(step: TrainingStep, params: Tree, numbers: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """What the step's `evaluate` says, as means over all samples; {} if it has none. `numbers` as Dataset.numbers."""
    if step.evaluate is None:
        return {}
    tensors = tensors_of(numbers)
    samples = len(next(iter(tensors.values())))
    sums: dict[str, float] = {}
    for first in range(0, samples, EVALUATION_BATCH):
        batch = {name: values[first : first + EVALUATION_BATCH] for name, values in tensors.items()}
        size = min(EVALUATION_BATCH, samples - first)
        with torch.no_grad(), blamed_on(step.name, "evaluate()"):
            for name, value in step.evaluate(params, batch).items():
                sums[name] = sums.get(name, 0.0) + float(value) * size
    return {name: total / samples for name, total in sums.items()}


def tensors_of(numbers: Mapping[str, npt.NDArray[Any]]) -> dict[str, torch.Tensor]:
    """The arrays as tensors, without a copy where torch allows."""
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in numbers.items()}


def detached(tree: Tree) -> Tree:
    """Without the graph of the step that made it: otherwise every step would hold on to the one before."""
    return pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, tree)


def mean(trees: list[Tree]) -> Tree:
    """Element-wise over equal trees; integers (counters) are the same in all of them and stay what they are."""
    leaves = [pytree.tree_leaves(tree) for tree in trees]
    means = [
        torch.stack(same).mean(0) if same[0].is_floating_point() else same[0]
        for same in map(list, zip(*leaves, strict=True))
    ]
    return pytree.tree_unflatten(means, pytree.tree_structure(trees[0]))
