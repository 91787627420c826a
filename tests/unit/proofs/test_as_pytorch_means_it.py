"""Corners where an operation means something else than its name suggests: computed as PyTorch does, or refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from proofs.exact import compile as compile_step
from proofs.exact.compiler.errors import CompileError
from tests.support.steps import Batch, run_exact

Function = Callable[[Batch], Tensor]
BATCH = {
    "x": torch.linspace(-2, 3, 12).reshape(3, 4),
    "image": torch.arange(16.0).reshape(1, 1, 4, 4),
    "label": torch.tensor([0, -1, 2]),
    "byte": torch.tensor([1, 200, 255], dtype=torch.uint8),
    "odd": torch.tensor([True, False, True]),
    "early": torch.tensor([True, True, False]),
}


def computed(function: Function) -> Tensor:
    """What a compiled step makes of BATCH."""

    def step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, Tensor]:
        return params, {"out": function(batch)}, batch["x"].mean()

    state = {"out": torch.zeros_like(function(BATCH))}
    compiled = compile_step(step, ({}, state, BATCH))
    end = run_exact(compiled, compiled.encode_state({}, state), compiled.encode_data(BATCH), 1)
    out: Tensor = compiled.decode_state(end)["out"]
    return out


@pytest.mark.parametrize(
    "function",
    [
        lambda b: (b["odd"] + b["early"]).float(),
        lambda b: (~b["odd"]).float(),
        lambda b: (~(b["x"] > 0).int()).float(),
        lambda b: b["label"].clamp(min=0.5, max=1.75),
        lambda b: b["byte"].float() * 2,
        lambda b: F.interpolate(b["image"], scale_factor=3.0),
    ],
    ids=["a sum of truth values", "not", "not, of integers", "integers between fractions", "bytes", "upsampling"],
)
def test_it_is_what_pytorch_makes_of_it(function: Function) -> None:
    assert torch.equal(computed(function), function(BATCH))


def test_a_label_that_the_step_clamps_itself_may_lie_anywhere_there() -> None:
    def chosen(batch: Batch) -> Tensor:
        of_label = batch["x"].gather(1, batch["label"].clamp(min=0)[:, None])[:, 0]
        return torch.where(batch["label"] >= 0, of_label, 0.0)

    assert (computed(chosen) - chosen(BATCH)).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda b: (b["byte"] + b["byte"]).float(), "torch.uint8 may wrap around: the result lies in 0..510"),
        (lambda b: (-b["byte"]).float(), "torch.uint8 may wrap around"),
        (lambda b: b["x"].sum(dtype=torch.int64).float(), "the operation itself turns to torch.int64"),
        (lambda b: F.interpolate(b["image"], scale_factor=3.2), "upsampling"),
        (lambda b: b["x"] * random.random(), "draws from Python's or NumPy's random numbers"),
        (lambda b: b["x"] * float(np.random.rand()), "draws from Python's or NumPy's random numbers"),
        (lambda b: b["x"] * torch.rand(4, generator=torch.Generator()), "a generator that the step brings along"),
        (lambda b: b["x"] + 1e300, "becomes NaN or Inf"),
    ],
)
def test_what_would_silently_be_something_else_is_refused(function: Function, why: str) -> None:
    with pytest.raises(CompileError, match=why):
        computed(function)
