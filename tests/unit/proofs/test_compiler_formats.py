"""Which scale each number gets: from what calibration saw, from limits it did not reach, and from its role."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proofs.exact import compile as compile_step
from proofs.exact.builder import ProgramBuilder
from proofs.exact.compiler.formats import DataType, NumberFormat, Options, Role
from proofs.exact.compiler.lowering import settled
from proofs.exact.compiler.materialise import integers_of
from proofs.exact.tensor_type import TensorType
from tests.support.steps import Batch, run_exact

Result = tuple[Any, Any, torch.Tensor]


def limit_of(type_: TensorType) -> float:
    """The numbers that a type holds lie below this."""
    return 2.0 ** (type_.bits - 1 - type_.frac)


@given(magnitude=st.floats(1e-30, 1e30), bits=st.integers(8, 52), headroom=st.integers(0, 8))
def test_a_format_has_room_for_the_magnitude_and_its_headroom(magnitude: float, bits: int, headroom: int) -> None:
    form = NumberFormat.for_magnitude(magnitude, bits, headroom)
    room = 2.0 ** (form.bits - 1 - form.frac)
    assert magnitude * 2**headroom <= room <= magnitude * 2 ** (headroom + 1)


@pytest.mark.parametrize("written", ["product", "lerp", "in place"])
def test_a_moving_average_gets_room_for_its_limit(written: str) -> None:
    """From zero, v' = 0.99 v + u reaches 100 u: long after calibration."""

    def step(params: Any, state: Any, batch: Batch) -> Result:
        u = batch["x"] * 100.0 if written == "lerp" else batch["x"]
        if written == "product":
            v = 0.99 * state["v"] + u
        elif written == "lerp":
            v = torch.lerp(state["v"], u, 0.01)
        else:
            v = state["v"].mul_(0.99).add_(u)
        return {"w": params["w"] - 0.001 * v}, {"v": v}, params["w"].sum()

    example = ({"w": torch.zeros(2)}, {"v": torch.zeros(2)}, {"x": torch.tensor([1.0, -0.25])})
    compiled = compile_step(step, example)
    role = Options().wide
    assert limit_of(compiled.program.state_types["state.v"]) >= 100 * 2**role.headroom
    assert limit_of(compiled.program.state_types["state.v"]) <= 100 * 2 ** (role.headroom + 2)


@pytest.mark.parametrize("written", ["square", "product", "scaled product", "addcmul", "pow"])
def test_second_moments_are_held_as_squares(written: str) -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        g = params["w"] - batch["x"]
        if written == "square":
            v = 0.9 * state["v"] + 0.1 * g.square()
        elif written == "product":
            v = 0.9 * state["v"] + 0.1 * (g * g)
        elif written == "scaled product":
            v = 0.9 * state["v"] + 0.1 * g * g
        elif written == "addcmul":
            v = torch.addcmul(0.9 * state["v"], g, g, value=0.1)
        else:
            v = torch.lerp(state["v"], g**2, 0.1)
        return {"w": params["w"] - 0.1 * g / (torch.sqrt(v) + 1e-6)}, {"v": v, "m": g}, g.sum()

    zeros = torch.zeros(3)
    example = ({"w": zeros}, {"v": zeros, "m": zeros}, {"x": torch.tensor([1e-4, 0.1, -2.0])})
    types = compile_step(step, example).program.state_types
    assert types["state.v"].bits == Options().square.bits
    assert types["state.m"].bits == types["params.w"].bits == Options().wide.bits


def test_a_small_gradient_keeps_its_adam_step() -> None:
    """The root of a second moment has digits for gradients 10^-4 times the greatest: Adam steps as far for each."""

    def step(params: Any, state: Any, batch: Batch) -> Result:
        t = state["t"] + 1
        v = 0.999 * state["v"] + 0.001 * batch["g"] ** 2
        root = torch.sqrt(v / (1 - 0.999**t)) + 1e-9
        return {"w": params["w"] - 0.01 * batch["g"] / root}, {"v": v, "t": t}, params["w"].sum()

    gradient = torch.tensor([1.0, 1e-2, -1e-4])
    example = ({"w": torch.zeros(3)}, {"v": torch.zeros(3), "t": torch.tensor(0)}, {"g": gradient})
    compiled = compile_step(step, example, steps=10, data_types={"g": DataType(bits=32, frac=28)})
    state = run_exact(compiled, compiled.encode_state(*example[:2]), compiled.encode_data(example[2]), 5)
    wanted = torch.tensor([-0.05, -0.05, 0.05])
    # After the first step the least second moment, 10^-11, is 44 of its units: half of one is 1 per cent of it.
    torch.testing.assert_close(compiled.decode_params(state)["w"], wanted, atol=0, rtol=5e-3)


def test_what_starts_at_zero_can_grow() -> None:
    """LoRA's B, a bias, a gate that is shut: nothing in calibration says how large they get."""

    def step(params: Any, state: Any, batch: Batch) -> Result:
        hidden = batch["x"] @ params["a"]
        return dict(params), state, (hidden @ params["b"]).sum() + params["bias"].sum()

    a = torch.randn(4, 2, generator=torch.Generator().manual_seed(3))
    params = {"a": a, "b": torch.zeros(2, 4), "bias": torch.zeros(4)}
    compiled = compile_step(step, (params, {}, {"x": torch.ones(3, 4)}))
    for name in ("params.b", "params.bias"):
        assert limit_of(compiled.program.state_types[name]) >= 4
    params["b"] = torch.full((2, 4), 0.5)
    state = run_exact(compiled, compiled.encode_state(params, {}), compiled.encode_data({"x": torch.ones(3, 4)}), 1)
    wanted = float((torch.ones(3, 4) @ params["a"] @ params["b"]).sum())
    moved = 16 * (compiled.loss_of(state) - 15 / 16 * compiled.first_loss)
    assert moved == pytest.approx(wanted, abs=0.02)


def test_calibration_may_look_at_the_shard() -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        return {"w": params["w"] * 0.5}, state, (batch["x"] @ params["w"]).mean()

    params, batch = {"w": torch.ones(2)}, {"x": torch.ones(4, 2)}
    shard = torch.ones(12, 2)
    shard[5] = 40.0
    compiled = compile_step(step, (params, {}, batch), samples=12, data={"x": shard})
    assert 40 <= limit_of(compiled.program.data_types["x"]) <= 128
    assert compiled.encode_data({"x": shard})["x"].type == compiled.program.data_types["x"]
    assert limit_of(compile_step(step, (params, {}, batch), samples=12).program.data_types["x"]) < 40


@settings(max_examples=60, deadline=None)
@given(
    low=st.integers(-(2**62), 2**62),
    high=st.integers(-(2**62), 2**62),
    frac=st.integers(-20, 60),
    target=st.integers(-20, 50),
    bits=st.integers(8, 52),
)
def test_settling_never_leaves_the_format(low: int, high: int, frac: int, target: int, bits: int) -> None:
    """Whatever the interval: narrow enough, no coarser than the format asks where that is possible, and provable."""
    b = ProgramBuilder()
    x = b.constant([min(low, high), max(low, high)], frac=frac)
    result = settled(b, x, NumberFormat(target, bits))
    assert result.bits <= bits
    assert result is x or min(x.frac, target) <= result.frac <= x.frac


@given(st.lists(st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-30), min_size=1, max_size=5))
def test_constants_have_31_bits(numbers: list[float]) -> None:
    integers, frac = integers_of(torch.tensor(numbers, dtype=torch.float64), 0)
    greatest = max(map(abs, numbers))
    for number, integer in zip(numbers, integers, strict=True):
        assert abs(math.ldexp(integer, -frac) - number) <= greatest * 2.0**-30


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="saturate"):
        Options(overflow="wrap")
    with pytest.raises(ValueError, match="at least 1"):
        Options(calibration_steps=0)
    with pytest.raises(ValueError, match="32 bits"):
        DataType(bits=40)
    assert Options(overrides={"*": Role(8, 1), "a": Role(9, 1)}).operand_role("a", weight=False) == Role(9, 1)
