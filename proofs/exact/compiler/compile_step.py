"""From a PyTorch step to a CompiledStep: trace, fold, calibrate, assign formats, lower (docs/exact-engine.md)."""

from __future__ import annotations

import importlib
import operator
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import proofs.exact.compiler as package
from proofs.exact.compiler.assign import Formats
from proofs.exact.compiler.calibrate import calibrate
from proofs.exact.compiler.compiled import CompiledStep
from proofs.exact.compiler.data_types import data_types as choose_data_types
from proofs.exact.compiler.data_types import numbers
from proofs.exact.compiler.drive import Driver, no_rule
from proofs.exact.compiler.errors import CompileError, Problem
from proofs.exact.compiler.fold import computed_at_run, fold
from proofs.exact.compiler.formats import DataType, Options
from proofs.exact.compiler.lowering import RULES
from proofs.exact.compiler.trace import LeafKind, Trace, trace
from proofs.exact.permutation import MAX_SAMPLES
from proofs.exact.tensor_type import bits_for

RULE_MODULES = tuple(
    importlib.import_module(found.name)
    for found in pkgutil.iter_modules(package.__path__, package.__name__ + ".")
    if found.name.rpartition(".")[2].startswith("rules_")
)
"""Every module of lowering rules: importing one fills RULES."""


def compile_step(
    step: Callable[..., Any],
    example: tuple[Any, Any, Mapping[str, torch.Tensor]],
    *,
    samples: int | None = None,
    steps: int | None = None,
    options: Options | None = None,
    data_types: Mapping[str, DataType] | None = None,
    data: Mapping[str, torch.Tensor] | None = None,
) -> CompiledStep:
    """Compile step(params, state, batch) -> (params, state, loss) to a tensor program.

    `example` is (params, state, batch): pytrees of tensors, the batch a dict; their shapes are the program's, their
    numbers calibrate its scales. `samples`: the data are whole shards of that many samples, and each step takes a batch
    of the example's size from them. `steps`: how many steps will be trained, for whatever depends on the step's number.
    `data_types`: in which integers data inputs are stored. `data`: a shard to calibrate on, not the example batch.

    Raises CompileError with every problem found.
    """
    options = options or Options()
    params, state, batch = example
    traced = trace(step, params, state, batch, keep=RULES)
    problems = [*traced.problems, *_check_samples(traced, samples, data)]
    if traced.module is None:
        raise CompileError(_with_others(problems, traced))
    folded = fold(traced, steps)
    problems += folded.problems
    if problems:
        raise CompileError(_with_others(problems, traced))

    given = data_types or {}
    unknown = sorted(given.keys() - {leaf.name for leaf in traced.leaves if leaf.kind is LeafKind.DATA})
    if unknown:
        raise CompileError([Problem(f"a data type for {', '.join(unknown)}, which the batch does not have", "")])
    types = choose_data_types(traced, given, {}, data)
    calibration = calibrate(traced, folded, _batches(traced, types, data, options.calibration_steps), steps)
    if calibration.problems:
        raise CompileError(_with_others(calibration.problems, traced))

    formats = Formats(traced, folded, calibration, options)
    lowered = Driver(folded, formats, options, types, samples).run()
    if any(types[name].bits != bits_for(bounds.lo, bounds.hi) for name, bounds in lowered.labels.items()):
        types = choose_data_types(traced, given, lowered.labels, data)
        lowered = Driver(folded, formats, options, types, samples).run()
    if lowered.program is None:
        raise CompileError(lowered.problems)
    return CompiledStep(
        program=lowered.program,
        origins=lowered.origins,
        labels=lowered.labels,
        data_types=types,
        step=step,
        options=options,
        samples=samples,
        steps=steps,
        leaves=traced.leaves,
        params_spec=traced.params_spec,
        state_spec=traced.state_spec,
        counters=folded.counters,
        schedules=folded.schedules,
        first_loss=calibration.first_loss,
    )


def _check_samples(traced: Trace, samples: int | None, data: Mapping[str, torch.Tensor] | None) -> list[Problem]:
    leaves = [leaf for leaf in traced.leaves if leaf.kind is LeafKind.DATA]
    problems = []
    if data is not None:
        for leaf in leaves:
            if leaf.name not in data:
                problems.append(Problem(f"the data have no {leaf.name!r}", "give every tensor of the batch"))
            elif tuple(data[leaf.name].shape[1:]) != tuple(leaf.example.shape[1:]):
                problems.append(
                    Problem(f"{leaf.name!r} has samples of another shape in the data than in the example batch", "")
                )
    if samples is None:
        return problems
    sides = {leaf.name: leaf.example.shape[0] if leaf.example.dim() else 0 for leaf in leaves}
    if len(set(sides.values())) != 1 or 0 in sides.values():
        problems.append(
            Problem(
                f"with samples=N every tensor of the batch has the batch as its first axis; here: {sides}",
                "put what is no sample into params or state",
            )
        )
    elif not 1 <= samples <= MAX_SAMPLES:
        problems.append(Problem(f"samples = {samples}", f"1 to {MAX_SAMPLES}"))
    elif next(iter(sides.values())) > samples:
        problems.append(
            Problem(f"a batch of {next(iter(sides.values()))} from {samples} samples", "use a smaller batch")
        )
    return problems


def _batches(
    traced: Trace, types: Mapping[str, DataType], data: Mapping[str, torch.Tensor] | None, count: int
) -> list[dict[str, torch.Tensor]]:
    leaves = [leaf for leaf in traced.leaves if leaf.kind is LeafKind.DATA]
    if data is None:
        return [{leaf.name: leaf.example for leaf in leaves}] * count
    batches = []
    for index in range(count):
        batch = {}
        for leaf in leaves:
            rows = (torch.arange(leaf.example.shape[0]) + index * leaf.example.shape[0]) % data[leaf.name].shape[0]
            batch[leaf.name] = numbers(torch.as_tensor(data[leaf.name])[rows], types[leaf.name], leaf)
        batches.append(batch)
    return batches


def _with_others(problems: Sequence[Problem], traced: Trace) -> list[Problem]:
    """Beside what stopped the compiler early, the operations that no rule lowers, as far as the step was traced."""
    told = {(problem.origin.target, problem.origin.location) for problem in problems}
    nodes = [] if traced.partial is None else computed_at_run(traced.partial, traced.leaves)
    others = [no_rule(node) for node in nodes if node.target not in RULES and node.target is not operator.getitem]
    return [*problems, *(each for each in others if (each.origin.target, each.origin.location) not in told)]
