"""One training step twice, in float32 PyTorch and in exact integers: same weights, same batches, in the same order.

What differs between the two curves is therefore what exact arithmetic costs, and nothing else. The float32 run is the
step itself, called as it stands; the exact run is its compiled program on the ordinary executor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from node.request.task_file import DataSection
from node.training.datasets import InputScale, load_dataset
from node.training.step_file import TrainingStep, Tree, blamed_on
from proofs.exact import compile as compile_step
from proofs.exact.compiler.formats import DataType
from proofs.exact.execute import Overflowed, Stopped, run_unit
from proofs.exact.permutation import half_bits
from proofs.exact.permutation_bulk import fill_indices
from proofs.exact.settings import Settings
from proofs.results import unit_seed
from protocol.errors import UsageError

if TYPE_CHECKING:
    from proofs.exact.compiler.compiled import CompiledStep
    from proofs.exact.compiler.formats import Options
    from proofs.exact.state import State

Tensors = dict[str, torch.Tensor]
LOSS_MEMORY = 16
"""The reported loss moves 1/16 of the way to each batch's mean, on both sides."""
EVALUATION_BATCH = 100
"""A transformer's scores of so many samples still fit near the CPU: 500 take half as long again."""


@dataclass(frozen=True, slots=True)
class Material:
    """What a step is trained on: tensors [samples, ...], of which `batch_size` make a batch. Without a batch size the
    samples are themselves the batch, the same at every step. A tensor in `scales` holds integers that stand for reals.
    """

    name: str
    samples: Tensors
    batch_size: int | None
    held_out: Tensors | None = None
    scales: Mapping[str, InputScale] = field(default_factory=dict)

    @property
    def count(self) -> int | None:
        return None if self.batch_size is None else len(next(iter(self.samples.values())))

    @property
    def data_types(self) -> dict[str, DataType]:
        return {
            name: DataType(each.bits, each.frac, each.offset, each.multiplier) for name, each in self.scales.items()
        }

    def example(self) -> Tensors:
        """A first batch, in numbers."""
        return self.numbers({name: values[: self.batch_size] for name, values in self.samples.items()})

    def numbers(self, samples: Tensors) -> Tensors:
        """As the float32 step reads them: float32 where they stand for real numbers, int64 for labels."""
        return {name: self._numbers(name, values) for name, values in samples.items()}

    def _numbers(self, name: str, values: torch.Tensor) -> torch.Tensor:
        if (scale := self.scales.get(name)) is not None:
            return torch.from_numpy(scale.to_float(values.numpy()))
        return values if values.is_floating_point() else values.to(torch.int64)


@dataclass(frozen=True, slots=True)
class Curve:
    """One side at the points where both were looked at. Metrics are evaluate()'s, on held-out data if there is any.
    `every_loss` has the training loss after each step.
    """

    losses: list[float] = field(default_factory=list)
    metrics: list[Mapping[str, float]] = field(default_factory=list)
    every_loss: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Losses are moving means of the training loss. Times are of the steps alone, s, without the first, which makes
    kernels ready."""

    seed: int
    steps: tuple[int, ...]
    float32: Curve
    exact: Curve
    float32_s: float
    exact_s: float
    final_state: State | None = None
    overflow: str = ""
    """Why the exact run ended early, if it did by itself."""

    @property
    def metric_names(self) -> tuple[str, ...]:
        return tuple(self.exact.metrics[0]) if self.exact.metrics else ()


Watcher = Callable[[int, "Comparison"], None]


def load_material(step: TrainingStep, source: DataSection | None, batch_size: int | None) -> Material:
    """The data that a task file names, or else the step's own example batch.

    Raises UsageError U-52 if there is neither or no batch size, U-53 if a batch is larger than the data, and as
    load_dataset and the step file.
    """
    if source is None:
        if step.example_batch is None:
            hint = "name data with --task or --data, or write example_batch() in the step file"
            raise UsageError(f"{step.name} comes with no data", code="U-52", hint=hint)
        return Material("example_batch()", step.example(), None)
    dataset = load_dataset(source)
    if batch_size is None and step.example_batch is not None:
        batch_size = len(next(iter(step.example().values())))
    if batch_size is None:
        raise UsageError("no batch size given", code="U-52", hint="say --batch 64, or write example_batch()")
    if batch_size > dataset.train.samples:
        raise UsageError(f"a batch of {batch_size} from {dataset.train.samples} samples", code="U-53")
    held_out = None if dataset.test is None else _tensors(dataset.test.tensors)
    return Material(dataset.name, _tensors(dataset.train.tensors), batch_size, held_out, dataset.scales)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A compiled step, and the params and state that its training starts from."""

    compiled: CompiledStep
    params: Tree
    state: Tree


def prepare(
    step: TrainingStep, material: Material, *, seed: int, steps: int, options: Options | None = None
) -> Prepared:
    """Draws initial weights under `seed` and compiles for `steps` steps. Raises CompileError, UsageError."""
    params, state = step.initial(seed)
    compiled = compile_step(
        step.step,
        (params, state, material.example()),
        samples=material.count,
        steps=steps,
        options=options or step.options,
        data_types=material.data_types,
        data=None if material.batch_size is None else material.samples,
    )
    return Prepared(compiled, params, state)


def held_out_of_a_look(steps: int, batch_size: int | None, looks: int) -> int:
    """Held-out samples to look at each time so that both sides' looks take no longer than their steps: a sample that is
    only evaluated costs a third of one that is learned from. Enough to say something, though, and no more than 2,000.
    """
    return min(2000, max(200, 3 * steps * (batch_size or 0) // max(looks, 1)))


def compare(
    step: TrainingStep,
    material: Material,
    prepared: Prepared,
    *,
    seed: int,
    steps: int,
    looks: Collection[int],
    test_samples: int | None = None,
    settings: Settings | None = None,
    watch: Watcher | None = None,
    stop: Callable[[], bool] | None = None,
) -> Comparison:
    """Trains both sides for `steps` steps and looks at them at the start, after each of `looks` steps and at the end.

    `test_samples` bounds the held-out samples of each look. After each step `watch(steps done, so far)`; `stop()` ends
    both early, and so does an overflow under "assert", with what there is. Raises EncodeError, UsageError.
    """
    compiled, params, state = prepared.compiled, prepared.params, prepared.state
    twin = _Float32Run(step, params, state)
    order = _batches(material, seed, steps)
    exact, float32, looked = Curve(), Curve(), [0]
    held_out = material.held_out if test_samples is None else _first(material.held_out, test_samples)
    first = compiled.encode_state(params, state)
    twin.loss = compiled.loss_of(first)
    clock = {"float32": 0.0, "exact": 0.0, "since": time.perf_counter()}

    def look(now: State) -> None:
        for curve, loss, weights in (
            (exact, compiled.loss_of(now), compiled.decode_params(now)),
            (float32, twin.loss, twin.params),
        ):
            curve.losses.append(loss)
            curve.metrics.append(evaluate(step, material, weights, held_out))

    def so_far(last: State | None = None, overflow: str = "") -> Comparison:
        return Comparison(seed, tuple(looked), float32, exact, clock["float32"], clock["exact"], last, overflow)

    def on_step(done: int, now: State) -> None:
        clock["exact"] += time.perf_counter() - clock["since"]
        batch = _batch(material, order, done - 1)
        started = time.perf_counter()
        twin.run(batch)
        clock["float32"] += time.perf_counter() - started
        if done == 1:
            clock["float32"] = clock["exact"] = 0.0
        float32.every_loss.append(twin.loss)
        exact.every_loss.append(compiled.loss_of(now))
        if done in looks or done == steps:
            looked.append(done)
            look(now)
        if watch is not None:
            watch(done, so_far())
        clock["since"] = time.perf_counter()

    look(first)
    data = compiled.encode_data(material.samples)
    clock["since"] = time.perf_counter()
    unit = unit_seed(seed, 0)
    try:
        run = run_unit(compiled.program, first, data, unit, steps, steps, on_step=on_step, stop=stop, settings=settings)
    except (Stopped, Overflowed) as end:
        if looked[-1] != end.step:
            looked.append(end.step)
            look(end.state)
        return so_far(end.state, str(end) if isinstance(end, Overflowed) else "")
    return so_far(run.final_state)


def float32_steps(
    step: TrainingStep, material: Material, params: Tree, state: Tree, *, seed: int, steps: int
) -> Iterator[tuple[int, Tree]]:
    """The float32 side alone: steps done, and the params then."""
    run, order = _Float32Run(step, params, state), _batches(material, seed, steps)
    for done in range(1, steps + 1):
        run.run(_batch(material, order, done - 1))
        yield done, run.params


def run_steps(
    material: Material, prepared: Prepared, *, seed: int, steps: int, settings: Settings, limit_s: float
) -> list[float]:
    """Runs the exact side alone; s of each step done, as many as fit into `limit_s` (two at least)."""
    times: list[float] = []
    began = since = time.perf_counter()

    def on_step(done: int, now: State) -> None:
        nonlocal since
        then, since = since, time.perf_counter()
        times.append(since - then)

    def stop() -> bool:
        return len(times) > 1 and time.perf_counter() - began > limit_s

    compiled = prepared.compiled
    start = compiled.encode_state(prepared.params, prepared.state)
    data = compiled.encode_data(material.samples)
    began = since = time.perf_counter()
    with suppress(Stopped, Overflowed):
        unit = unit_seed(seed, 0)
        run_unit(compiled.program, start, data, unit, steps, steps, on_step=on_step, stop=stop, settings=settings)
    return times


def evaluate(step: TrainingStep, material: Material, params: Tree, samples: Tensors | None = None) -> dict[str, float]:
    """evaluate()'s means over held-out samples (or these), over a batch where there are none; {} without evaluate()."""
    if step.evaluate is None:
        return {}
    samples = samples or material.held_out or {name: v[: material.batch_size] for name, v in material.samples.items()}
    sums: dict[str, float] = {}
    count = len(next(iter(samples.values())))
    for start in range(0, count, EVALUATION_BATCH):
        batch = material.numbers({name: v[start : start + EVALUATION_BATCH] for name, v in samples.items()})
        size = min(EVALUATION_BATCH, count - start)
        with torch.no_grad(), blamed_on(step.name, "evaluate()"):
            for name, mean in step.evaluate(params, batch).items():
                sums[name] = sums.get(name, 0.0) + float(mean) * size
    return {name: total / count for name, total in sums.items()}


class _Float32Run:
    def __init__(self, step: TrainingStep, params: Tree, state: Tree) -> None:
        self.params, self._state = params, state
        self.loss = 0.0
        self._step = step

    def run(self, batch: Tensors) -> None:
        with blamed_on(self._step.name, "step()"):
            self.params, self._state, loss = self._step.step(self.params, self._state, batch)
        self.loss += (float(loss) - self.loss) / LOSS_MEMORY


def _batches(material: Material, seed: int, steps: int) -> torch.Tensor | None:
    """Rows of every step, [steps, batch], as the program's PERMUTE takes them. None: the samples are the batch."""
    if material.batch_size is None or material.count is None:
        return None
    order = np.empty(steps * material.batch_size, dtype=np.int64)
    fill_indices(np.uint64(unit_seed(seed, 0)), 0, material.count, np.uint64(half_bits(material.count)), order)
    return torch.from_numpy(order.reshape(steps, material.batch_size))


def _batch(material: Material, order: torch.Tensor | None, step: int) -> Tensors:
    if order is None:
        return material.example()
    return material.numbers({name: values[order[step]] for name, values in material.samples.items()})


def _first(samples: Tensors | None, count: int) -> Tensors | None:
    return None if samples is None else {name: values[:count] for name, values in samples.items()}


def _tensors(arrays: Mapping[str, Any]) -> Tensors:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
