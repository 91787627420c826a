"""The figure that the whole design stands on: exact training of the full MNIST is as good as float32."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.request.task_file import load_task_file
from node.training.float32 import evaluate, train_float32
from node.training.plan import prepare_plan, run_plan

MNIST = Path(__file__).parents[3] / "examples" / "mnist.toml"


@pytest.mark.slow
def test_full_mnist_over_three_shards_matches_float32() -> None:
    task = load_task_file(MNIST)
    # Half of the example's rounds pass the bar already; the whole is measured by scripts/bench/mnist_quality.py.
    plan = prepare_plan(task.model_copy(update={"task": task.task.model_copy(update={"rounds": 2})}))
    test = plan.dataset.test
    assert test is not None
    assert (plan.dataset.train.samples, test.samples, len(plan.shards)) == (60_000, 10_000, 3)
    numbers = plan.dataset.numbers(test)
    exact = evaluate(plan.step, plan.compiled.decode_params(run_plan(plan).final_state), numbers)["accuracy"]
    float32 = evaluate(plan.step, train_float32(plan), numbers)["accuracy"]
    assert exact >= 0.965
    assert abs(exact - float32) <= 0.006, f"exact {exact}, float32 {float32}"
