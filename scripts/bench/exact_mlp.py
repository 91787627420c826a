"""What exactness costs: time of one training step in integers and in float32 PyTorch, in one process.

    python -m scripts.bench.exact_mlp [--task examples/mnist.toml] [--steps 100] [--threads 1] [--profile] [--json]

Three runs of each, alternating; the medians count. `--profile` adds the ten dearest operations of a step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from node.training.plan import Plan

RUNS = 3
WARM_UP_STEPS = 5


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Medians of three runs, ms."""

    layers: tuple[int, ...]
    batch_size: int
    threads: int
    exact_step_ms: float
    float32_step_ms: float
    state_root_ms: float

    @property
    def ratio(self) -> float:
        return self.exact_step_ms / self.float32_step_ms


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=Path, default=Path("examples/mnist.toml"))
    parser.add_argument("--steps", type=int, default=100, help="steps per run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    # Before torch is imported: afterwards its pools have their size.
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    from node.request.task_file import load_task_file
    from node.training.plan import prepare_plan

    torch.set_num_threads(options.threads)
    plan = prepare_plan(load_task_file(options.task))
    exact, roots = _exact(plan)
    float32 = _float32(plan)
    for run in (exact, float32):
        run(WARM_UP_STEPS)
    exact_ms, float32_ms = [], []
    for _ in range(RUNS):
        exact_ms.append(_timed_ms(exact, options.steps))
        float32_ms.append(_timed_ms(float32, options.steps))
    times = StepTimes(
        layers=plan.layers,
        batch_size=plan.batch_size,
        threads=options.threads,
        exact_step_ms=median(exact_ms),
        float32_step_ms=median(float32_ms),
        state_root_ms=median(_timed_ms(roots, 10) for _ in range(RUNS)),
    )
    dearest = _dearest_operations(plan) if options.profile else []
    if options.json:
        print(json.dumps(asdict(times) | {"ratio": times.ratio, "dearest_operations": dearest}))
        return
    print(f"MLP {'-'.join(map(str, times.layers))}, batch {times.batch_size}, {times.threads} thread(s)")
    print(f"exact {times.exact_step_ms:.2f} ms a step, float32 {times.float32_step_ms:.2f} ms: {times.ratio:.2f} times")
    print(f"state root {times.state_root_ms:.2f} ms")
    for name, us in dearest:
        print(f"{us:8.0f} us  {name}")


def _timed_ms(run: Callable[[int], None], steps: int) -> float:
    started = time.perf_counter()
    run(steps)
    return (time.perf_counter() - started) * 1000 / steps


def _exact(plan: Plan) -> tuple[Callable[[int], None], Callable[[int], None]]:
    """Runs steps as a node does; computes state roots of where they lead."""
    from proofs.exact.execute import run_unit
    from proofs.exact.state import state_root

    shard = plan.shard_state(0)
    states = [plan.initial_state]

    def run(steps: int) -> None:
        # One checkpoint at each end: the roots are timed apart.
        states[0] = run_unit(plan.program, states[0], shard, 0, steps, steps).final_state

    def roots(times: int) -> None:
        for _ in range(times):
            state_root(states[0])

    return run, roots


def _float32(plan: Plan) -> Callable[[int], None]:
    """The same network, batch size and optimiser, as a user of PyTorch writes them."""
    import torch

    from node.training.float32 import module_of

    module = module_of(plan.initial_state)
    loss = torch.nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(module.parameters(), lr=float(plan.learning_rate), momentum=float(plan.momentum))
    inputs = torch.from_numpy(plan.dataset.scale.to_float(plan.shards[0].x))
    labels = torch.from_numpy(plan.shards[0].y)
    batches = plan.batches(0, 0)

    def run(steps: int) -> None:
        for step in range(steps):
            batch = batches[step % len(batches)]
            optimiser.zero_grad()
            loss(module(inputs[batch]), labels[batch]).backward()
            optimiser.step()

    return run


def _dearest_operations(plan: Plan) -> list[tuple[str, float]]:
    """Name and us per step of the ten operations that take longest."""
    import torch

    from proofs.exact.kernels import Buffer
    from proofs.exact.plan import Plan as Instructions

    ready = Instructions.of(plan.program)
    bound = ready.bind(dict(plan.shard_state(0)), 0)
    spent: defaultdict[str, float] = defaultdict(float)  # s
    steps = 50
    for _ in range(steps):
        values = dict(bound)
        for number, name in enumerate(plan.program.state_types):
            values[number] = Buffer(plan.initial_state[name].values.to(torch.int64))
        for step in ready.instructions:
            started = time.perf_counter()
            values[step.number] = step.kernel([values[operand] for operand in step.operands], step.call)
            shapes = " ".join(str(list(info.shape)) for info in step.call.operands)
            spent[f"{step.number}: {step.kernel.__name__} {shapes}"] += time.perf_counter() - started
            for number in step.dead:
                del values[number]
    dearest = sorted(spent.items(), key=lambda item: -item[1])[:10]
    return [(name, seconds * 1e6 / steps) for name, seconds in dearest]


if __name__ == "__main__":
    main()
