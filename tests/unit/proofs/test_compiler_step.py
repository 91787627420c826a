"""Steps compiled from end to end: they train as PyTorch does, and numbers go in and out as promised."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import grad_and_value

from proofs.exact import compile as compile_step
from proofs.exact.compiler.errors import CompileError, EncodeError
from proofs.exact.compiler.formats import DataType, Options, Role
from proofs.exact.opcodes import Opcode
from proofs.exact.overflow import Overflow
from proofs.exact.permutation import batch_indices
from proofs.exact.program import Program
from tests.support.steps import (
    Batch,
    blobs,
    classifier,
    regression_example,
    regression_step,
    run_exact,
    run_float,
)


def test_a_compiled_regression_follows_float64() -> None:
    params, state, batch = regression_example()
    compiled = compile_step(regression_step, (params, state, batch))
    exact = run_exact(compiled, compiled.encode_state(params, state), compiled.encode_data(batch), 50)
    doubles = {name: tensor.double() for name, tensor in batch.items()}
    wanted, _ = run_float(regression_step, {"w": params["w"].double()}, state, doubles, 50)
    torch.testing.assert_close(compiled.decode_params(exact)["w"].double(), wanted["w"], atol=2e-3, rtol=0)


def test_a_compiled_classifier_follows_float32() -> None:
    torch.manual_seed(0)
    step, params, state = classifier(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
    batch = blobs()
    compiled = compile_step(step, (params, state, batch))
    exact = run_exact(compiled, compiled.encode_state(params, state), compiled.encode_data(batch), 30)
    wanted, _ = run_float(step, params, state, batch, 30)
    for name, tensor in compiled.decode_params(exact).items():
        torch.testing.assert_close(tensor, wanted[name], atol=0.03, rtol=0)
    _, _, loss = step(wanted, state, batch)
    assert compiled.loss_of(exact) > float(loss), "the reported loss is a moving mean, and it falls"
    assert compiled.loss_of(exact) < compiled.first_loss / 2


def test_compiling_twice_gives_one_program() -> None:
    example = regression_example()
    roots = {compile_step(regression_step, example, samples=64).program.root() for _ in range(2)}
    assert len(roots) == 1


def test_a_batch_is_drawn_from_the_shard_by_permute() -> None:
    """One step on a shard is one step on the batch that the protocol's batch order names."""
    params, state, batch = regression_example(samples=4)
    _, _, shard = regression_example(samples=12)
    types = {"x": DataType(16, 12), "y": DataType(16, 12)}
    sharded = compile_step(regression_step, (params, state, batch), samples=12, data_types=types)
    plain = compile_step(regression_step, (params, state, batch), data_types=types)
    before = sharded.encode_state(params, state)
    after = run_exact(sharded, before, sharded.encode_data(shard), 1, seed=7)
    rows = batch_indices(7, 0, 12, 4)
    chosen = {name: tensor[torch.tensor(rows)] for name, tensor in shard.items()}
    assert run_exact(plain, before, plain.encode_data(chosen), 1) == after


def test_in_place_updates_compile_as_well() -> None:
    def step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, torch.Tensor]:
        gradient, loss = grad_and_value(lambda w: (batch["x"] @ w - batch["y"]).square().mean())(params["w"])
        with torch.no_grad():
            state["v"].mul_(0.5).add_(gradient)
            params["w"].sub_(state["v"], alpha=0.1)
        return params, state, loss

    params, _, batch = regression_example()
    state = {"v": torch.zeros(3)}
    compiled = compile_step(step, (params, state, batch))
    exact = run_exact(compiled, compiled.encode_state(params, state), compiled.encode_data(batch), 40)
    assert float(params["w"].abs().max()) == 0, "compiling changes nothing that it is given"
    found = compiled.decode_params(exact)["w"]
    torch.testing.assert_close(found, torch.tensor([1.0, -0.5, 0.25]), atol=5e-3, rtol=0)


def test_writing_to_parts_compiles_as_well() -> None:
    def step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, torch.Tensor]:
        x = torch.zeros(3, 4)
        x[0] = params["w"]
        x[1, 1:3] = 2 * params["w"][:2]
        x[2, ::2] = params["w"][2:] * 3
        x[:, 3] += 1
        return params, {"x": x}, (x * x).sum()

    params, state = {"w": torch.tensor([1.0, -0.5, 0.25, 2.0])}, {"x": torch.zeros(3, 4)}
    compiled = compile_step(step, (params, state, {}))
    exact = run_exact(compiled, compiled.encode_state(params, state), {}, 1)
    _, wanted, _ = step(params, state, {})
    torch.testing.assert_close(compiled.decode_state(exact)["x"], wanted["x"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cells", [nn.GRU, nn.LSTM])
def test_a_recurrent_network_compiles_as_well(cells: Any) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cells = cells(2, 4, batch_first=True)
            self.out = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outputs, _ = self.cells(x.view(32, 4, 2))
            return self.out(outputs[:, -1])  # type: ignore[no-any-return]

    torch.manual_seed(0)
    step, params, state = classifier(Recurrent())
    compiled = compile_step(step, (params, state, blobs()))
    exact = run_exact(compiled, compiled.encode_state(params, state), compiled.encode_data(blobs()), 5)
    wanted, _ = run_float(step, params, state, blobs(), 5)
    for name, tensor in compiled.decode_params(exact).items():
        torch.testing.assert_close(tensor, wanted[name], atol=5e-3, rtol=0)


@pytest.mark.parametrize("written", ["autograd.grad", "backward"])
def test_autograd_on_the_parameters_compiles_as_well(written: str) -> None:
    def step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, torch.Tensor]:
        w = params["w"].detach().requires_grad_()
        loss = (batch["x"] @ w - batch["y"]).square().mean()
        if written == "backward":
            loss.backward()
            gradient = w.grad
        else:
            (gradient,) = torch.autograd.grad(loss, [w])
        return {"w": params["w"] - 0.1 * gradient}, state, loss.detach()

    example = regression_example()
    compiled = compile_step(step, example)
    exact = run_exact(compiled, compiled.encode_state(*example[:2]), compiled.encode_data(example[2]), 40)
    found = compiled.decode_params(exact)["w"]
    torch.testing.assert_close(found, torch.tensor([1.0, -0.5, 0.25]), atol=5e-3, rtol=0)
    assert any(origin.backward and "@ w" in origin.location.code for origin in compiled.origins)


def test_frozen_tied_and_unused_tensors_are_carried() -> None:
    """One tensor under two names is two parameters, as torch.func has it; what a step returns unchanged stays."""

    def step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, torch.Tensor]:
        new = dict(params)
        new["b"] = params["a"] + params["b"] * 0.5
        return new, state, batch["x"].mean() + params["frozen"].sum()

    shared = torch.tensor([0.25, -0.5])
    params = {"a": shared, "b": shared, "frozen": torch.tensor([0.125]).expand(3), "unused": torch.ones(1)}
    state = {"ids": torch.tensor([3, -7]), "flag": torch.tensor(True)}
    batch = {"x": torch.ones(2), "ignored": torch.zeros(2, dtype=torch.int64)}
    compiled = compile_step(step, (params, state, batch))
    exact = run_exact(compiled, compiled.encode_state(params, state), compiled.encode_data(batch), 1)
    found = compiled.decode_params(exact)
    assert found["a"].tolist() == [0.25, -0.5]
    torch.testing.assert_close(found["b"], torch.tensor([0.375, -0.75]), atol=1e-4, rtol=0)
    assert found["frozen"].tolist() == [0.125] * 3
    assert compiled.decode_state(exact)["ids"].tolist() == [3, -7]
    assert compiled.decode_state(exact)["flag"].item() is True


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_any_floating_dtype_is_a_real_number(dtype: torch.dtype) -> None:
    def step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, torch.Tensor]:
        return {"w": params["w"] * 0.5 + batch["x"].to(dtype)}, state, params["w"].sum()

    params = {"w": torch.tensor([1.0, 2.0], dtype=dtype)}
    batch = {"x": torch.tensor([0.25, 0.5])}
    compiled = compile_step(step, (params, {}, batch))
    exact = run_exact(compiled, compiled.encode_state(params, {}), compiled.encode_data(batch), 1)
    found = compiled.decode_params(exact)["w"]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), torch.tensor([0.75, 1.5]).double(), atol=1e-3, rtol=0)


def test_a_number_goes_in_and_out_within_half_a_unit() -> None:
    params, state, batch = regression_example()
    params = {"w": torch.tensor([0.123456789, -0.987654321, 1e-9], dtype=torch.float64)}
    batch = {name: tensor.double() for name, tensor in batch.items()}
    compiled = compile_step(regression_step, (params, state, batch))
    encoded = compiled.encode_state(params, state)
    unit = 2.0 ** -encoded["params.w"].type.frac
    error = (compiled.decode_params(encoded)["w"] - params["w"]).abs().max()
    assert float(error) <= unit / 2 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("name", "given", "why"),
    [
        ("params.w", torch.tensor([1.0, float("nan"), 0.0]), r"nan at \[1\]"),
        ("params.w", torch.tensor([1.0, 2.0]), r"has shape \[2\], not \[3\]"),
        ("params.w", torch.tensor([1, 2, 3]), "int64, where real numbers"),
        ("params.w", torch.tensor([0.0, 0.0, 1e6]), r"1e\+06 at \[2\] is a number outside"),
        ("params.w", "three", "is a str"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(name: str, given: Any, why: str) -> None:
    compiled = compile_step(regression_step, regression_example())
    with pytest.raises(EncodeError, match=why) as caught:
        compiled.encode_state({"w": given}, {})
    assert caught.value.name == name


def test_labels_out_of_range_are_refused() -> None:
    step, params, state = classifier(nn.Linear(8, 4))
    batch = blobs()
    compiled = compile_step(step, (params, state, batch))
    assert (compiled.labels["y"].lo, compiled.labels["y"].hi) == (0, 3)
    for wrong in (4, -1):
        batch["y"][5] = wrong
        with pytest.raises(EncodeError, match=rf"y: {wrong} at \[5\] is a label outside 0 to 3"):
            compiled.encode_data(batch)
    with pytest.raises(EncodeError, match="y: is missing"):
        compiled.encode_data({"x": batch["x"]})
    with pytest.raises(EncodeError, match=r"x: inf at \[0, 0\]"):
        compiled.encode_data({"x": torch.full((32, 8), torch.inf), "y": blobs()["y"]})


def test_pixels_are_stored_as_bytes_and_mean_fractions() -> None:
    params, state, _ = regression_example()
    pixels = torch.tensor([[0, 128, 255], [1, 2, 3]], dtype=torch.uint8)
    batch = {"x": pixels * (257 / 65536), "y": torch.zeros(2)}
    given = {"x": DataType(bits=8, frac=16, offset=128, multiplier=257)}
    compiled = compile_step(regression_step, (params, state, batch), data_types=given)
    stored = compiled.program.data_types["x"]
    assert (stored.bits, stored.nbytes) == (8, 6)
    from_bytes = compiled.encode_data({"x": pixels, "y": batch["y"]})
    assert from_bytes["x"].values.tolist() == [[-128, 0, 127], [-127, -126, -125]]
    assert compiled.encode_data(batch)["x"] == from_bytes["x"], "floats and the bytes they stand for are one"


def test_overflow_under_assert_ends_the_unit() -> None:
    def step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, torch.Tensor]:
        return {"w": params["w"] * batch["x"]}, state, params["w"].sum()

    example: Any = ({"w": torch.ones(2)}, {}, {"x": torch.ones(2)})
    asserted = compile_step(step, example, options=Options(overflow="assert"))
    saturated = compile_step(step, example)
    assert Opcode.CHECK in {op.opcode for op in asserted.program.ops}
    assert Opcode.CHECK not in {op.opcode for op in saturated.program.ops}
    data = {"x": torch.tensor([1.0, 2.0])}
    start = asserted.encode_state({"w": torch.tensor([1.0, 100.0])}, {})
    with pytest.raises(Overflow):
        run_exact(asserted, start, asserted.encode_data(data), 1)
    end = saturated.decode_params(run_exact(saturated, start, saturated.encode_data(data), 1))["w"]
    limit = 2.0 ** (start["params.w"].type.bits - 1 - start["params.w"].type.frac)
    assert float(end[1]) == pytest.approx(limit) and float(end[0]) == pytest.approx(1)


def test_every_operation_knows_the_users_line() -> None:
    compiled = compile_step(regression_step, regression_example())
    assert len(compiled.origins) == len(compiled.program.ops)
    lines = {origin.location.code for origin in compiled.origins if origin.location.file}
    assert {
        'error = batch["x"] @ params["w"] - batch["y"]',
        'gradient = batch["x"].T @ error / len(error)',
        'return {"w": params["w"] - 0.1 * gradient}, state, (error * error).mean()',
    } == lines
    assert all(origin.location.file.endswith("support/steps.py") for origin in compiled.origins if origin.target)


def test_a_backward_operation_is_put_down_to_its_forward_line_and_module() -> None:
    step, params, state = classifier(nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 4)))
    compiled = compile_step(step, (params, state, blobs()))
    found = {(origin.module, origin.backward) for origin in compiled.origins if "mm" in origin.target}
    assert found == {("0", False), ("0", True), ("2", False), ("2", True)}


def test_overrides_choose_the_operands_of_a_module() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    step, params, state = classifier(model)

    def widest_operand(overrides: dict[str, Role]) -> int:
        options = Options(overrides=overrides)
        program: Program = compile_step(step, (params, state, blobs()), options=options).program
        products = [op for op in program.ops if op.opcode is Opcode.MATMUL_NT]
        return max(program.values[operand].bits for op in products for operand in op.operands)

    assert widest_operand({}) == 16
    assert widest_operand({"2": Role(20, 3)}) == 20
    assert widest_operand({"params.0.*": Role(22, 5)}) == 22
    assert widest_operand({"*": Role(8, 2)}) == 8


def test_the_report_counts_what_the_program_does() -> None:
    step, params, state = classifier(nn.Linear(8, 4))
    compiled = compile_step(step, (params, state, blobs()))
    report = compiled.report()
    assert report.parameters == 8 * 4 + 4
    assert report.macs == 2 * 32 * 8 * 4, "forward, and the gradient of the weight"
    assert report.operations == len(compiled.program.ops) == sum(report.operations_by_opcode.values())
    assert report.widest_bits <= 64 and report.widest_origin in compiled.origins
    assert report.state_bytes == sum(type_.nbytes for type_ in compiled.program.state_types.values())
    assert report.seconds_per_step is not None and report.seconds_per_step > 0
    assert report.as_data()["parameters"] == 36
    assert dataclasses.is_dataclass(report)


def test_samples_must_be_samples() -> None:
    params, state, batch = regression_example()
    with pytest.raises(CompileError, match="batch as its first axis"):
        compile_step(regression_step, (params, state, batch | {"extra": torch.tensor(1.0)}), samples=32)
    with pytest.raises(CompileError, match="a batch of 16 from 8 samples"):
        compile_step(regression_step, (params, state, batch), samples=8)


def test_state_may_be_swapped_shared_reset_or_lie_in_lists() -> None:
    def step(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, torch.Tensor]:
        a, b = state["a"], state["rest"][0]
        mean = (a + b) * 0.5
        return params, {"a": b, "rest": [a, torch.zeros(2)], "m": mean, "n": mean}, torch.tensor(2.5)

    values = torch.tensor([1.0, 2.0]), torch.tensor([300.0, -400.0])
    zeros = torch.zeros(2)
    state = {"a": values[0], "rest": [values[1], torch.ones(2)], "m": zeros, "n": zeros}
    params = {"w": torch.ones(1)}
    compiled = compile_step(step, (params, state, {}))
    exact = run_exact(compiled, compiled.encode_state(params, state), {}, 1)
    found = compiled.decode_state(exact)
    assert torch.equal(found["a"], values[1]) and torch.equal(found["rest"][0], values[0])
    assert torch.equal(found["rest"][1], zeros)
    assert torch.equal(found["m"], (values[0] + values[1]) / 2) and torch.equal(found["n"], found["m"])
    assert compiled.loss_of(exact) == 2.5
