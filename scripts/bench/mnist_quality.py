"""How well the exact run learns: test accuracy after each round, beside the same plan in float32, over several seeds.

    python -m scripts.bench.mnist_quality [--task examples/mnist.toml] [--seeds 3] [--json]

Everything runs in this process on one thread. Seed 0 is the task file's own; the others follow from it.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import torch

from node.request.task_file import TaskFile, load_task_file
from node.training.float32 import evaluate, train_float32
from node.training.plan import loss_of, prepare_plan, run_plan
from proofs.exact.state import State


@dataclass(frozen=True, slots=True)
class Quality:
    """Accuracies are 0 to 1, on the test set. Times are of the whole plan, all shards one after the other."""

    seed: int
    accuracy_by_round: tuple[float, ...]
    float32_accuracy: float
    training_loss: float
    final_state_root: str
    exact_s: float
    float32_s: float


def measure(task: TaskFile) -> Quality:
    """Runs the task's plan both ways. The data set must have a test part."""
    plan = prepare_plan(task)
    test = plan.dataset.test
    if test is None:
        raise SystemExit("this data set has no test part")
    numbers = plan.dataset.numbers(test)
    states: list[State] = []
    started = time.perf_counter()
    run = run_plan(plan, on_round=lambda _, state: states.append(state))
    exact_s = time.perf_counter() - started
    started = time.perf_counter()
    twin = train_float32(plan)
    float32_s = time.perf_counter() - started
    return Quality(
        seed=plan.seed,
        accuracy_by_round=tuple(
            evaluate(plan.step, plan.compiled.decode_params(state), numbers)["accuracy"] for state in states
        ),
        float32_accuracy=evaluate(plan.step, twin, numbers)["accuracy"],
        training_loss=loss_of(run.final_state),
        final_state_root=run.rounds[-1].output.hex(),
        exact_s=exact_s,
        float32_s=float32_s,
    )


def with_seed(task: TaskFile, seed: int) -> TaskFile:
    """The same task with another seed: other weights, another cut, another order."""
    return task.model_copy(update={"training": task.training.model_copy(update={"seed": seed})})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", type=Path, default=Path("examples/mnist.toml"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = load_task_file(options.task)
    results = []
    for offset in range(options.seeds):
        result = measure(with_seed(task, task.training.seed + offset))
        results.append(result)
        if not options.json:
            rounds = " ".join(f"{accuracy:.4f}" for accuracy in result.accuracy_by_round)
            print(
                f"seed {result.seed}: {rounds}   float32 {result.float32_accuracy:.4f}"
                f"   loss {result.training_loss:.4f}   exact {result.exact_s:.1f} s, float32 {result.float32_s:.1f} s",
                flush=True,
            )
    summary = {
        "task": str(options.task),
        "accuracy": mean(result.accuracy_by_round[-1] for result in results),
        "float32_accuracy": mean(result.float32_accuracy for result in results),
        "runs": [asdict(result) for result in results],
    }
    print(
        json.dumps(summary)
        if options.json
        else f"mean: exact {summary['accuracy']:.4f}, float32 {summary['float32_accuracy']:.4f}"
    )


if __name__ == "__main__":
    main()
