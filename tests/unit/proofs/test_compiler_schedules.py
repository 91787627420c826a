"""What depends on constants, or on the step's number alone, is evaluated before the program runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from proofs.exact import compile as compile_step
from proofs.exact.compiler.compiled import CompiledStep
from proofs.exact.compiler.errors import EncodeError
from proofs.exact.opcodes import Opcode
from proofs.exact.state import State
from tests.support.steps import Batch, run_exact

STEPS = 20
Result = tuple[Any, Any, torch.Tensor]


def cosine(params: Any, state: Any, batch: Batch) -> Result:
    """Warm-up, cosine and a floor, in the ways people write them."""
    step = state["step"] + 1
    warm = torch.clamp(step / 4, max=1.0)
    rate = torch.where(step < 4, warm, 0.5 * (1 + torch.cos(math.pi * step / STEPS)))
    rate = torch.maximum(rate, torch.tensor(0.125))
    return {"w": params["w"] - rate * batch["x"]}, {"step": step}, params["w"].sum()


def start(state: Any) -> tuple[Any, Any, Batch]:
    return {"w": torch.zeros(3)}, state, {"x": torch.tensor([1.0, -0.5, 2.0])}


def states_of(compiled: CompiledStep, example: tuple[Any, Any, Batch], steps: int) -> list[State]:
    state, data = compiled.encode_state(*example[:2]), compiled.encode_data(example[2])
    states = [state]
    for _ in range(steps):
        states.append(run_exact(compiled, states[-1], data, 1))
    return states


def opcodes_of(compiled: CompiledStep) -> list[Opcode]:
    return [op.opcode for op in compiled.program.ops]


@pytest.mark.parametrize("counter", [torch.tensor(0), torch.tensor(0.0), torch.tensor([0])])
def test_a_schedule_is_one_table_over_the_steps(counter: torch.Tensor) -> None:
    example = start({"step": counter})
    compiled = compile_step(cosine, example, steps=STEPS)
    assert opcodes_of(compiled).count(Opcode.LOOKUP) == 1
    assert [constant.type.shape for constant in compiled.program.constants].count((STEPS,)) == 1
    wanted, state = torch.zeros(3, dtype=torch.float64), {"step": counter}
    for exact in states_of(compiled, example, STEPS)[1:]:
        params, state, _ = cosine({"w": wanted}, state, {"x": example[2]["x"].double()})
        wanted = params["w"]
        torch.testing.assert_close(compiled.decode_params(exact)["w"].double(), wanted, atol=1e-5, rtol=0)
        assert torch.equal(compiled.decode_state(exact)["step"], state["step"])


def test_parts_of_a_constant_may_stand_beside_a_schedule() -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        upper, lower = torch.split(torch.arange(6.0), 3)
        weights = params["w"] - (upper + lower) * batch["x"] / (state["step"] + 1)
        return {"w": weights}, {"step": state["step"] + 1}, weights.sum()

    example = start({"step": torch.tensor(0)})
    compiled = compile_step(step, example, steps=STEPS)
    exact = states_of(compiled, example, 1)[-1]
    wanted = step(*example)[0]["w"]
    torch.testing.assert_close(compiled.decode_params(exact)["w"], wanted, atol=1e-3, rtol=0)


def test_a_rate_that_decays_by_itself_is_a_schedule_too() -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        new = {"rate": state["rate"] * 0.75}
        return {"w": params["w"] - state["rate"] * batch["x"]}, new, params["w"].sum()

    example = start({"rate": torch.tensor(0.5, dtype=torch.float64)})
    compiled = compile_step(step, example, steps=STEPS)
    assert opcodes_of(compiled).count(Opcode.LOOKUP) == 2, "the rate of this step, and what the state becomes"
    for done, exact in enumerate(states_of(compiled, example, STEPS)):
        wanted = 0.5 * 0.75**done
        assert float(compiled.decode_state(exact)["rate"]) == pytest.approx(wanted, abs=1e-9)
        moved = 0.5 * (1 - 0.75**done) / 0.25
        assert float(compiled.decode_params(exact)["w"][0]) == pytest.approx(-moved, abs=1e-5)
    with pytest.raises(EncodeError, match=r"its schedule, which was compiled, says 0\.5"):
        compiled.encode_state(example[0], {"rate": torch.tensor(0.4, dtype=torch.float64)})


def test_training_resumes_where_the_counters_say() -> None:
    example = start({"step": torch.tensor(0)})
    compiled = compile_step(cosine, example, steps=STEPS)
    states = states_of(compiled, example, 6)
    params, state = compiled.decode_params(states[4]), compiled.decode_state(states[4])
    resumed = compiled.encode_state(params, state)
    assert int(resumed["t"].values) == 4
    again = run_exact(compiled, resumed, compiled.encode_data(example[2]), 2)
    torch.testing.assert_close(compiled.decode_params(again)["w"], compiled.decode_params(states[6])["w"])
    for wrong in (-1, STEPS + 1):
        with pytest.raises(EncodeError, match=f"{wrong} steps done: 0 to {STEPS}"):
            compiled.encode_state(params, {"step": torch.tensor(wrong)})


def test_counters_that_disagree_are_refused() -> None:
    def step(params: Any, state: Any, batch: Batch) -> Result:
        return (
            {"w": params["w"] / (state["a"] + state["b"])},
            {"a": state["a"] + 1, "b": state["b"] + 1},
            batch["x"].sum(),
        )

    params, state, batch = start({"a": torch.tensor(1), "b": torch.tensor(5)})
    compiled = compile_step(step, (params, state, batch), steps=STEPS)
    assert dict(compiled.counters) == {"state.a": 1, "state.b": 5}
    assert int(compiled.encode_state(params, {"a": torch.tensor(3), "b": torch.tensor(7)})["t"].values) == 2
    with pytest.raises(EncodeError, match="counters run together"):
        compiled.encode_state(params, {"a": torch.tensor(3), "b": torch.tensor(5)})


def test_constants_are_evaluated_once() -> None:
    """A causal mask, a positional code and a product of numbers leave no operation but the sums."""

    def step(params: Any, state: Any, batch: Batch) -> Result:
        places = torch.arange(3).float()
        code = torch.sin(places[None, :] / 10.0 ** places[:, None]).sum(0) * (2.0 + 1.0)
        copied = (params["w"].clone() * torch.ones(3) + 0.0).to(torch.float64).to(torch.float32)
        return {"w": copied + code}, state, copied.sum()

    example = start({})
    compiled = compile_step(step, example)
    targets = {origin.target for origin in compiled.origins if origin.target}
    assert targets == {"aten.add.Tensor", "aten.sum.default"}
    places = torch.arange(3, dtype=torch.float64)
    wanted = 3 * torch.sin(places[None, :] / 10.0 ** places[:, None]).sum(0)
    (after,) = states_of(compiled, example, 1)[1:]
    torch.testing.assert_close(compiled.decode_params(after)["w"].double(), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("mask", [-torch.inf, -1e9, torch.finfo(torch.float32).min])
@pytest.mark.parametrize("written", ["sum", "two sums", "where", "masked_fill"])
def test_masked_places_have_no_weight(written: str, mask: float) -> None:
    """The softmax of a masked place is exactly 0, however large the other scores get, and takes no digits from them."""

    def step(params: Any, state: Any, batch: Batch) -> Result:
        above = torch.ones(3, 3, dtype=torch.bool).triu(1)
        if written == "sum":
            scores = params["w"] + torch.full((3, 3), mask).triu(1)
        elif written == "two sums":
            scores = params["w"] + torch.where(above, mask, 0.0) + params["w"] * 0.0
        elif written == "where":
            scores = torch.where(above, torch.full((), mask), params["w"])
        else:
            scores = params["w"].masked_fill(above, mask)
        weights = torch.softmax(scores, dim=-1)
        return {"w": params["w"], "p": weights}, state, weights.sum()

    params = {"w": torch.full((3, 3), 0.01), "p": torch.zeros(3, 3)}
    compiled = compile_step(step, (params, {}, {}))
    type_ = compiled.program.state_types["params.w"]
    for size in (0.01, 2.0 ** (type_.bits - 1 - type_.frac) * 0.99):
        params["w"] = torch.full((3, 3), -size)
        params["w"][:, 1] += 0.01
        state = run_exact(compiled, compiled.encode_state(params, {}), {}, 1)
        wanted = torch.softmax(params["w"].masked_fill(torch.ones(3, 3).triu(1) > 0, -torch.inf), dim=-1)
        torch.testing.assert_close(compiled.decode_params(state)["p"], wanted, atol=1e-6, rtol=0)
        assert int(state["params.p"].values.triu(1).abs().max()) == 0
