"""A task's whole plan: made ready from a task file, and run in one process.

Promises: `prepare_plan` is a function of the task file and the data alone, so a requester who prepares the same task
twice posts the same roots. `run_plan` executes exactly the units that the market would hand out, in order, and ends
in the same state, bit for bit, as any number of nodes that shared them: that is the claim that tests and the demo
check with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import torch

from node.request.task_file import TaskFile
from node.training.datasets import Dataset, Split, load_dataset
from node.training.mlp import MlpRecipe, initial_state, program_for
from node.training.sharding import shard_state, split_into_shards
from proofs.exact.aggregate import aggregate, aggregation_program
from proofs.exact.execute import run_unit
from proofs.exact.permutation import half_bits
from proofs.exact.permutation_bulk import fill_indices
from proofs.exact.program import Program
from proofs.exact.state import State, state_root
from proofs.results import unit_seed
from protocol.errors import UsageError


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a task's units are made of. `aggregation` is None if and only if there is one shard."""

    dataset: Dataset
    shards: tuple[Split, ...]
    layers: tuple[int, ...]
    program: Program
    aggregation: Program | None
    initial_state: State
    rounds: int
    steps: int
    """Of one training unit."""
    checkpoint_interval: int
    batch_size: int
    learning_rate: Decimal
    momentum: Decimal
    seed: int

    def shard_state(self, shard: int) -> State:
        """A shard as the tensors x and y that the program reads."""
        return shard_state(self.shards[shard], self.dataset.scale, self.dataset.classes)

    def batches(self, round_: int, shard: int) -> torch.Tensor:
        """Which samples each step of a unit takes: [steps, batch_size], int64. The program computes the same."""
        samples = self.shards[shard].samples
        order = np.empty(self.steps * self.batch_size, dtype=np.int64)
        key = np.uint64(unit_seed(self.seed, shard))
        fill_indices(key, round_ * len(order), samples, np.uint64(half_bits(samples)), order)
        return torch.from_numpy(order.reshape(self.steps, self.batch_size))


@dataclass(frozen=True, slots=True)
class RoundRoots:
    """State roots at the end of a round: each shard's, and the state that the next round starts from."""

    shards: tuple[bytes, ...]
    output: bytes


@dataclass(frozen=True, slots=True)
class PlanRun:
    """The end of a whole plan. `rounds[-1].output` is the root of `final_state`."""

    final_state: State
    rounds: tuple[RoundRoots, ...]


def prepare_plan(task: TaskFile, dataset: Dataset | None = None) -> Plan:
    """Loads the data (unless given), cuts it into shards, draws the weights and writes the programs.

    Raises:
        UsageError: U-37 to U-42, what the task asks for cannot be done with this data.
        UnreachableError, VerificationError: the data could not be fetched.
    """
    data = dataset if dataset is not None else load_dataset(task.data)
    training = task.training
    if task.model.hidden is None or training.learning_rate is None:
        raise UsageError("tasks with a step file cannot be prepared yet", code="U-47", hint="use [model] hidden")
    momentum = training.momentum if training.momentum is not None else Decimal("0.9")
    shards = split_into_shards(data.train, task.task.shards, training.seed)
    layers = (data.features, *task.model.hidden, data.classes)
    recipe = MlpRecipe(
        layers=layers,
        samples=shards[0].samples,
        scale=data.scale,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        momentum=momentum,
    )
    program = program_for(recipe)
    return Plan(
        dataset=data,
        shards=shards,
        layers=layers,
        program=program,
        aggregation=aggregation_program(program.state_types, len(shards)) if len(shards) > 1 else None,
        initial_state=initial_state(layers, training.seed),
        rounds=task.task.rounds,
        steps=training.steps_per_round,
        checkpoint_interval=training.checkpoint_interval,
        batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        momentum=momentum,
        seed=training.seed,
    )


def run_plan(plan: Plan, *, on_round: Callable[[int, State], None] | None = None) -> PlanRun:
    """All rounds, all shards, every aggregation, one after the other. `on_round(round, state)` is called after each."""
    data = [plan.shard_state(shard) for shard in range(len(plan.shards))]
    state = plan.initial_state
    rounds = []
    for round_ in range(plan.rounds):
        ends = [
            run_unit(
                plan.program, state, shard, unit_seed(plan.seed, index), plan.steps, plan.checkpoint_interval
            ).final_state
            for index, shard in enumerate(data)
        ]
        state = ends[0] if plan.aggregation is None else aggregate(plan.aggregation, state, ends)
        rounds.append(RoundRoots(tuple(state_root(end) for end in ends), state_root(state)))
        if on_round is not None:
            on_round(round_, state)
    return PlanRun(state, tuple(rounds))
