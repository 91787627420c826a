"""Weights go in and out of ordinary PyTorch under their own names, to the half of a last place, or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from proofs.exact.initialise import zeros
from proofs.exact.state import decode_state, encode_state
from proofs.exact.state_dict import (
    WeightsError,
    from_state_dict,
    load_safetensors,
    safetensors_bytes,
    save_safetensors,
    to_state_dict,
    with_weights,
)
from proofs.exact.tensor import ExactTensor, TensorType, quantise

FRAC = 24


def module() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def types_of(weights: dict[str, torch.Tensor], bits: int = 32) -> dict[str, TensorType]:
    named = {f"params.{name}": TensorType(tuple(tensor.shape), bits, FRAC) for name, tensor in weights.items()}
    return named | {"state.0.weight": TensorType((3, 4), 32, FRAC), "t": TensorType((), 40)}


def initial_state() -> dict[str, ExactTensor]:
    return {name: zeros(type_) for name, type_ in types_of(module().state_dict()).items()}


def test_weights_come_back_to_half_a_last_place_and_load_into_the_module() -> None:
    weights = module().state_dict()
    state = with_weights(initial_state(), weights)
    back = to_state_dict(decode_state(encode_state(state)))
    assert back.keys() == weights.keys(), "momentum and counters stay behind"
    for name, tensor in weights.items():
        assert back[name].dtype is torch.float32
        assert (back[name].double() - tensor.double()).abs().max() <= 2.0 ** -(FRAC + 1)
    other = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    other.load_state_dict(back)
    x = torch.randn(5, 4)
    assert torch.allclose(other(x), module()(x), atol=1e-5)


def test_everything_but_the_parameters_stays_as_it_was() -> None:
    start = initial_state() | {"t": ExactTensor(TensorType((), 40), torch.tensor(7))}
    loaded = with_weights(start, module().state_dict())
    assert loaded["t"] == start["t"] and loaded["state.0.weight"] == start["state.0.weight"]
    assert loaded.keys() == start.keys()


def test_a_second_way_round_changes_nothing() -> None:
    once = with_weights(initial_state(), module().state_dict())
    assert with_weights(initial_state(), to_state_dict(once)) == once


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_float_types_enter_as_the_numbers_that_they_hold(dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in module().state_dict().items()}
    got = from_state_dict(weights, types_of(weights))
    for name, tensor in weights.items():
        assert got[f"params.{name}"] == quantise(tensor.double(), got[f"params.{name}"].type)


def test_safetensors_files_go_out_and_in(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    state = with_weights(initial_state(), module().state_dict())
    save_safetensors(path, state)
    assert sorted(load_file(path)) == ["0.bias", "0.weight", "2.bias", "2.weight"]
    assert with_weights(initial_state(), load_safetensors(path)) == state
    path.write_bytes(safetensors_bytes(state, {"avenue.task": "0x12"}, dtype=torch.bfloat16))
    assert load_safetensors(path)["0.bias"].dtype is torch.bfloat16
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"avenue.task": "0x12"}


def test_a_pretrained_file_of_bfloat16_becomes_the_initial_parameters(tmp_path: Path) -> None:
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in module().state_dict().items()}
    save_file(weights, tmp_path / "base.safetensors")
    back = to_state_dict(with_weights(initial_state(), load_safetensors(tmp_path / "base.safetensors")))
    for name, tensor in weights.items():
        # Eight significant bits below 1 lie on the grid of 2^-24 unless they are tiny.
        assert (back[name] - tensor.float()).abs().max() <= 2.0 ** -(FRAC + 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"0.bias": torch.zeros(4)}, "0.bias has shape [4], the program wants [3]"),
        ({"0.weight": torch.zeros(3, 4, dtype=torch.int64)}, "0.weight is torch.int64"),
        ({"2.bias": torch.tensor([0.0, float("nan")])}, "2.bias[1] is nan"),
        ({"2.bias": torch.tensor([float("-inf"), 0.0])}, "2.bias[0] is -inf"),
        ({"0.bias": torch.tensor([0.0, -128.1, 0.0])}, "0.bias reaches 128.1"),
        ({"head.weight": torch.zeros(1)}, "not known head.weight"),
        ({"0.bias": None}, "missing 0.bias"),
    ],
    ids=["shape", "dtype", "nan", "inf", "range", "extra", "missing"],
)
def test_what_is_no_weight_of_the_state_is_refused_by_name(change: dict[str, torch.Tensor | None], said: str) -> None:
    changed = {**module().state_dict(), **change}
    weights = {name: tensor for name, tensor in changed.items() if tensor is not None}
    with pytest.raises(WeightsError) as caught:
        with_weights(initial_state(), weights)
    assert said in str(caught.value)


def test_a_scalar_that_is_not_finite_is_named_too() -> None:
    with pytest.raises(WeightsError, match=r"gain\[\] is inf"):
        from_state_dict({"gain": torch.tensor(float("inf"))}, {"params.gain": TensorType((), 32, 8)})


def test_a_state_without_parameters_has_nothing_to_export() -> None:
    with pytest.raises(WeightsError, match=r"without params\.\*: it has t"):
        to_state_dict({"t": zeros(TensorType((), 40))})


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\x80\x04pickle")
    for wrong in (path, tmp_path / "absent.safetensors"):
        with pytest.raises(WeightsError, match="cannot be read as safetensors"):
            load_safetensors(wrong)
