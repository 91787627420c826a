"""A task's whole plan: made ready from a task file, and run in one process.

Promises: what `prepare_plan` makes follows from the task file, the step file and the data. It compiles, on the
requester's machine and nowhere else: nodes are sent the program's bytes, the initial state's and the shards', and no
root depends on where those are run. `run_plan` executes exactly the units that the market would hand out, in order,
and ends in the same state, bit for bit, as any number of nodes that shared them: that is the claim that tests and the
demo check with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from node.request.task_file import TaskFile
from node.training.datasets import Dataset, Split, load_dataset
from node.training.float32 import tensors_of
from node.training.mlp import mlp_step
from node.training.sharding import split_into_shards
from node.training.step_file import TrainingStep, Tree, load_step_file
from node.training.weights import pretrained
from proofs.exact import compile as compile_step
from proofs.exact.aggregate import aggregate, aggregation_program
from proofs.exact.compiler.errors import CompileError, EncodeError
from proofs.exact.compiler.formats import DataType
from proofs.exact.execute import run_unit
from proofs.exact.permutation import half_bits
from proofs.exact.permutation_bulk import fill_indices
from proofs.exact.plan import Plan as ExecutionPlan
from proofs.exact.program import Program
from proofs.exact.settings import Settings
from proofs.exact.state import State, state_root
from proofs.exact.tensor_type import bits_for
from proofs.results import unit_seed
from protocol.errors import UsageError

if TYPE_CHECKING:
    from proofs.exact.compiler.compiled import CompiledStep

DEFAULT_MOMENTUM = Decimal("0.9")


@dataclass(frozen=True)
class Plan:
    """Everything that a task's units are made of. `aggregation` is None if and only if there is one shard."""

    dataset: Dataset
    shards: tuple[Split, ...]
    step: TrainingStep
    params: Tree
    """Before training, float32, as the step file likes them; `optimiser` is the state beside them."""
    optimiser: Tree
    compiled: CompiledStep
    aggregation: Program | None
    initial_state: State
    rounds: int
    steps: int
    """Of one training unit."""
    checkpoint_interval: int
    batch_size: int
    seed: int

    @property
    def program(self) -> Program:
        return self.compiled.program

    @cached_property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(t.type.elements for name, t in self.initial_state.items() if name.startswith("params."))

    def shard_state(self, shard: int) -> State:
        """A shard as the data tensors that the program reads.

        Raises UsageError U-48 if a number or a label in it is none that the program takes.
        """
        try:
            return self.compiled.encode_data(self.shards[shard].tensors)
        except EncodeError as error:
            raise UsageError(
                f"shard {shard} does not fit the program: {error}", code="U-48", hint="check the data for outliers"
            ) from error

    def batches(self, round_: int, shard: int) -> torch.Tensor:
        """Which samples each step of a unit takes: [steps, batch_size], int64. The program computes the same."""
        return _order(self.seed, shard, self.shards[shard].samples, round_ * self.steps, self.steps, self.batch_size)


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
    """Loads the data (unless given), cuts it into shards, runs the step file's `init` and compiles its `step`.

    Raises:
        UsageError: U-37 to U-40 and U-56, what the task asks for cannot be done with this data; U-44 to U-46, the step
            file; U-47 the step cannot be compiled (every problem, with its line); U-48, U-49 numbers that do not fit.
        UnreachableError, VerificationError: the data could not be fetched.
    """
    data = dataset if dataset is not None else load_dataset(task.data)
    training = task.training
    shards = split_into_shards(data.train, task.task.shards, training.seed)
    samples = shards[0].samples
    if training.batch_size > samples:
        raise UsageError(
            f"a batch of {training.batch_size} from a shard of {samples} samples",
            code="U-40",
            hint="use a smaller batch_size or fewer shards",
        )
    step = _step_of(task, data)
    params, optimiser = step.initial(training.seed)
    if task.model.weights is not None:
        params = pretrained(params, task.model.weights)
    rows = _order(training.seed, 0, samples, 0, 1, training.batch_size)[0]
    example = tensors_of(data.numbers(shards[0].take(rows.numpy())))
    total = task.task.rounds * training.steps_per_round
    try:
        compiled = compile_step(
            step.step,
            (params, optimiser, example),
            samples=samples,
            steps=total,
            options=step.options,
            data_types=_data_types(data),
            data=tensors_of(shards[0].tensors),
        )
        initial_state = compiled.encode_state(params, optimiser)
    except CompileError as error:
        raise UsageError(
            f"{step.name}: {error}", code="U-47", hint="docs/exact-training.md says what to write instead"
        ) from error
    except EncodeError as error:
        raise UsageError(f"{step.name}: {error}", code="U-48", hint="init() must return finite numbers") from error
    program = compiled.program
    return Plan(
        dataset=data,
        shards=shards,
        step=step,
        params=params,
        optimiser=optimiser,
        compiled=compiled,
        aggregation=aggregation_program(program.state_types, len(shards)) if len(shards) > 1 else None,
        initial_state=initial_state,
        rounds=task.task.rounds,
        steps=training.steps_per_round,
        checkpoint_interval=training.checkpoint_interval,
        batch_size=training.batch_size,
        seed=training.seed,
    )


def run_plan(
    plan: Plan, *, on_round: Callable[[int, State], None] | None = None, settings: Settings | None = None
) -> PlanRun:
    """All rounds, all shards, every aggregation, one after the other. `on_round(round, state)` is called after each.

    Raises Overflowed if a unit overflows.
    """
    data = [plan.shard_state(shard) for shard in range(len(plan.shards))]
    execution = ExecutionPlan.of(plan.program, settings or Settings())
    state = plan.initial_state
    rounds = []
    for round_ in range(plan.rounds):
        ends = [
            run_unit(
                plan.program,
                state,
                shard,
                unit_seed(plan.seed, index),
                plan.steps,
                plan.checkpoint_interval,
                plan=execution,
            ).final_state
            for index, shard in enumerate(data)
        ]
        state = ends[0] if plan.aggregation is None else aggregate(plan.aggregation, state, ends)
        rounds.append(RoundRoots(tuple(state_root(end) for end in ends), state_root(state)))
        if on_round is not None:
            on_round(round_, state)
    return PlanRun(state, tuple(rounds))


def loss_of(state: State) -> float:
    """The moving mean of the training loss that a compiled step keeps."""
    loss = state["loss"]
    return int(loss.values) * 2.0**-loss.type.frac


def _step_of(task: TaskFile, data: Dataset) -> TrainingStep:
    model, training = task.model, task.training
    if model.file is not None:
        return load_step_file(model.file, training.seed)
    assert model.hidden is not None and training.learning_rate is not None, "the task file says so"
    if "y" not in data.counts:
        raise UsageError(
            f"the built-in MLP tells labelled samples apart; {data.name} has {', '.join(data.train.tensors)}",
            code="U-56",
            hint='name a step file that reads them: [model] file = "gpt.py"',
        )
    momentum = DEFAULT_MOMENTUM if training.momentum is None else training.momentum
    layers = (data.features, *model.hidden, data.classes)
    return mlp_step(layers, float(training.learning_rate), float(momentum))


def _data_types(data: Dataset) -> dict[str, DataType]:
    """What the stored integers of each tensor mean: pixels stay bytes, labels take the bits that they need."""
    types = {
        name: DataType(scale.bits, scale.frac, scale.offset, scale.multiplier) for name, scale in data.scales.items()
    }
    return types | {name: DataType(bits_for(0, count - 1)) for name, count in data.counts.items()}


def _order(seed: int, shard: int, samples: int, first_step: int, steps: int, batch: int) -> torch.Tensor:
    order = np.empty(steps * batch, dtype=np.int64)
    fill_indices(np.uint64(unit_seed(seed, shard)), first_step * batch, samples, np.uint64(half_bits(samples)), order)
    return torch.from_numpy(order.reshape(steps, batch))
