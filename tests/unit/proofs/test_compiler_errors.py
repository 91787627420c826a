"""What is wrong with a step is told at once: the line, the operation, why, and what to write instead."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import grad_and_value

from proofs.exact import compile as compile_step
from proofs.exact.compiler.errors import CompileError, Problem
from tests.support.steps import Batch, Step, blobs, classifier, regression_example, regression_step

Result = tuple[Any, Any, torch.Tensor]


def problems_of(step: Step, example: Any = None, **options: Any) -> tuple[Problem, ...]:
    with pytest.raises(CompileError) as caught:
        compile_step(step, example or regression_example(), **options)
    return caught.value.problems


def test_all_problems_are_told_at_once_with_their_lines() -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        loss = (batch["x"] @ params["w"]).square().mean()
        if loss > 3:
            loss = loss * 2
        loss = loss + loss.item()
        order = torch.sort(batch["y"]).values
        decomposed = torch.linalg.svd(batch["x"])[1]
        return params, state, loss + order[0] + decomposed[0]

    with pytest.raises(CompileError) as caught:
        compile_step(step, regression_example())
    lines = [problem.origin.location.code for problem in caught.value.problems]
    assert lines == [
        "if loss > 3:",
        "loss = loss + loss.item()",
        'order = torch.sort(batch["y"]).values',
        'decomposed = torch.linalg.svd(batch["x"])[1]',
    ]
    assert all(problem.origin.location.file == __file__ for problem in caught.value.problems)
    assert all(problem.why and problem.instead for problem in caught.value.problems)
    listed = json.loads(json.dumps(caught.value.as_data()))
    assert [entry["target"] for entry in listed][2:] == ["aten.sort.default", "aten._linalg_svd.default"]
    assert listed[0]["line"] + 2 == listed[1]["line"]
    for line in (*lines, f"{__file__}:", "torch.where(condition, a, b)", "4 problems"):
        assert line in str(caught.value)


@pytest.mark.parametrize("choose", [lambda x: x.nonzero(), lambda x: x[x > 0], lambda x: x.masked_select(x > 0)])
def test_shapes_that_depend_on_values_are_refused(choose: Any) -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        torch.sort(batch["y"])
        return params, state, choose(batch["y"]).float().sum()

    shape, *rest = problems_of(step)
    assert "depends on the values" in shape.why
    assert "torch.where(mask, x, 0)" in shape.instead
    assert [problem.origin.target for problem in rest] == ["aten.sort.default"], "what came before is told as well"


def test_the_users_own_error_is_told_with_their_line_and_once(caplog: pytest.LogCaptureFixture) -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        return params, state, (batch["x"] @ batch["x"]).sum()

    log = logging.getLogger("torch._subclasses.fake_tensor")  # does not propagate
    log.addHandler(caplog.handler)
    try:
        (problem,) = problems_of(step)
    finally:
        log.removeHandler(caplog.handler)
    assert problem.origin.location.code == 'return params, state, (batch["x"] @ batch["x"]).sum()'
    assert "RuntimeError" in problem.why
    assert log.name not in {record.name for record in caplog.records}, "not PyTorch's own twenty lines as well"


OUT_OF_RANGE: list[Any] = [
    lambda w, i: w[i],
    lambda w, i: w.index_select(0, i),
    lambda w, i: w.gather(0, i),
    lambda w, i: nn.functional.embedding(i, w[:, None]),
    lambda w, i: nn.functional.cross_entropy(w.expand(16, 3), i),
    lambda w, i: w * torch.arange(3.0)[torch.tensor([1, 3, 0])],
]


@pytest.mark.parametrize("take", OUT_OF_RANGE)
def test_an_index_out_of_range_is_the_users_error_at_their_line(take: Any) -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        return params, state, take(params["w"], batch["index"]).sum()

    params, state, batch = regression_example()
    (problem,) = problems_of(step, (params, state, {**batch, "index": torch.arange(16) % 4}))
    assert "out of" in problem.why
    assert problem.origin.location.file == __file__
    assert "plain PyTorch" in problem.instead


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (lambda p, s, b: (p, s), "returns a tuple of 2"),
        (lambda p, s, b: p["w"], "returns a Tensor"),
        (lambda p, s, b: ({}, s, b["y"].mean()), r"another structure of params .* without params.w"),
        (lambda p, s, b: (p, {"new": p["w"]}, b["y"].mean()), r"another structure of state .* with state.new"),
        (lambda p, s, b: ({"w": p["w"][:2]}, s, b["y"].mean()), r"shape \[3\] before the step and \[2\] after"),
        (lambda p, s, b: ({"w": p["w"].double()}, s, b["y"].mean()), "float32 before the step and torch.float64"),
        (lambda p, s, b: ({"w": 1.0}, s, b["y"].mean()), "params.w becomes a float"),
        (lambda p, s, b: (p, s, b["y"]), r"loss is torch.float32 of shape \[16\]"),
        (lambda p, s, b: (p, s, 1.0), "loss is a float"),
    ],
)
def test_a_step_that_returns_something_else_is_refused(result: Any, why: str) -> None:
    with pytest.raises(CompileError, match=why):
        compile_step(result, regression_example())


@pytest.mark.parametrize(
    ("example", "why"),
    [
        (({"w": torch.tensor([1.0, torch.nan])}, {}, {}), "'params.w' has NaN or Inf"),
        (({"w": torch.ones(3)}, {}, {"x": torch.tensor([torch.inf])}), "'x' has NaN or Inf"),
        (({"w": torch.ones(3)}, {"step": 0}, {}), r"'state.step' is a int.*\n.*state.step = torch.tensor\(0\)"),
        (({"w": torch.ones(0)}, {}, {}), r"has shape \[0\]"),
        (({"w": torch.ones(2, dtype=torch.complex64)}, {}, {}), "complex64"),
        (({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}, {}, {}), "two tensors are named 'params.a.b'"),
        (({"w": torch.ones(1)}, {}, {"loss": torch.ones(1)}), "batch key 'loss' is taken"),
        (({"w" * 200: torch.ones(1)}, {}, {}), "is no name"),
    ],
)
def test_an_example_that_cannot_be_is_refused(example: Any, why: str) -> None:
    with pytest.raises(CompileError, match=why):
        compile_step(lambda params, state, batch: (params, state, torch.tensor(0.0)), example)


def test_constants_that_are_not_numbers_are_refused() -> None:
    table = torch.tensor([1.0, float("nan"), 2.0])

    def step(params: Any, state: Any, batch: Batch) -> Result:
        return params, state, (params["w"] * table).sum()

    (problem,) = problems_of(step)
    assert problem.why == "a constant is NaN"
    assert problem.origin.location.code == 'return params, state, (params["w"] * table).sum()'


def test_numbers_that_become_nan_are_refused() -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        return {"w": params["w"] / params["w"]}, state, batch["y"].mean()

    (problem,) = problems_of(step)
    assert "params.w becomes NaN" in problem.why
    assert problem.origin.location.code == 'return {"w": params["w"] / params["w"]}, state, batch["y"].mean()'


def test_state_in_integers_must_count_or_stay() -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        return params, {"n": state["n"] + batch["k"]}, params["w"].sum()

    example = ({"w": torch.ones(2)}, {"n": torch.tensor(0)}, {"k": torch.tensor(2)})
    (problem,) = problems_of(step, example)
    assert "state.n is torch.int64 and changes" in problem.why


def test_parameters_that_the_step_was_not_given_are_refused() -> None:
    model = nn.Linear(3, 1)

    def step(params: Any, state: Any, batch: Batch) -> Result:
        return params, state, model(batch["x"]).mean() + params["w"].sum()

    first, *_ = problems_of(step)
    assert "was not given" in first.why
    assert "functional_call" in first.instead


def test_tensors_from_outside_may_not_be_changed() -> None:
    """And compiling does not change them."""
    counted = torch.zeros(3)

    def step(params: Any, state: Any, batch: Batch) -> Result:
        counted.add_(1.0)
        return params, state, (counted * params["w"]).sum()

    (problem,) = problems_of(step)
    assert problem.why == "the step changes a tensor that it was not given"
    assert problem.origin.location.code == "counted.add_(1.0)"
    assert counted.tolist() == [0.0, 0.0, 0.0]

    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    training, params, state = classifier(model)
    (problem,) = problems_of(training, (params, state, blobs()))
    assert "params or state" in problem.instead
    assert model[1].state_dict()["num_batches_tracked"].item() == 0


def test_an_operation_in_a_form_without_a_rule_is_refused() -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        grads, loss = grad_and_value(lambda w: torch.erfinv(batch["x"] @ w * 0.001).mean())(params["w"])
        return {"w": params["w"] - grads}, state, loss

    problems = problems_of(step)
    assert {problem.origin.target for problem in problems} >= {"aten.erfinv.default"}
    assert len({problem.origin.location.line for problem in problems}) == 1


def test_options_that_cannot_be_are_refused() -> None:
    assert "a data type for z" in problems_of(regression_step, data_types={"z": None})[0].why
    assert "steps = 0" in problems_of(counted, ({"w": torch.ones(2)}, {"n": torch.tensor(0)}, {}), steps=0)[0].why


def counted(params: Any, state: Any, batch: Batch) -> Result:
    return {"w": params["w"] / (state["n"] + 1)}, {"n": state["n"] + 1}, params["w"].sum()


def test_a_schedule_without_a_number_of_steps_is_refused() -> None:
    (problem,) = problems_of(counted, ({"w": torch.ones(2)}, {"n": torch.tensor(0)}, {}))
    assert problem.instead == "say how many steps will be trained: compile(..., steps=N)"
    assert problem.origin.location.code.startswith('return {"w": params["w"] / (state["n"] + 1)}')


def test_a_constant_beyond_all_scales_is_refused() -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        return params, state, (params["w"] * torch.tensor([1e-300, 1e-301, 0.0], dtype=torch.float64)).sum().float()

    (problem,) = problems_of(step)
    assert problem.why == "a constant of 1e-300 has no integer form"
