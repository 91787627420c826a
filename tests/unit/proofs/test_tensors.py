"""Exact tensors: what they refuse, how numbers enter and leave, and initial weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from proofs.exact.initialise import deviation, normal, zeros
from proofs.exact.state import encode_state, state_root
from proofs.exact.tensor import ExactTensor, TensorError, TensorType, dequantise, quantise


def test_values_that_do_not_fit_their_type_are_refused() -> None:
    with pytest.raises(TensorError, match=r"-129\.\.0 do not fit"):
        ExactTensor(TensorType((2,), 8), torch.tensor([0, -129]))
    with pytest.raises(TensorError, match=r"shape \[2\]"):
        ExactTensor(TensorType((2, 1), 8), torch.tensor([0, 1]))
    for refused in (torch.float64, torch.bool):
        with pytest.raises(TensorError, match=str(refused)):
            ExactTensor(TensorType((2,), 8), torch.tensor([0, 1], dtype=refused))
        with pytest.raises(TensorError, match=str(refused)):
            ExactTensor.proven(TensorType((2,), 8), torch.tensor([0, 1], dtype=refused))


@pytest.mark.parametrize(
    ("bits", "dtype"), [(1, torch.int8), (8, torch.int8), (9, torch.int16), (17, torch.int32), (33, torch.int64)]
)
def test_values_lie_in_the_narrowest_integers_that_hold_the_type(bits: int, dtype: torch.dtype) -> None:
    type_ = TensorType((3,), bits)
    ends = torch.tensor([type_.lo, type_.hi, 0])
    for tensor in (ExactTensor(type_, ends), ExactTensor.proven(type_, ends)):
        assert tensor.values.dtype is dtype
        assert tensor.values.tolist() == [type_.lo, type_.hi, 0]
        assert ExactTensor.from_bytes(type_, tensor.to_bytes()) == tensor


def test_narrowing_comes_after_the_check_and_never_wraps() -> None:
    with pytest.raises(TensorError, match=r"0\.\.256 do not fit"):
        ExactTensor(TensorType((2,), 8), torch.tensor([0, 256]))
    with pytest.raises(TensorError, match=r"0\.\.200 do not fit"):
        ExactTensor(TensorType((2,), 8), torch.tensor([0, 200], dtype=torch.uint8))
    assert ExactTensor(TensorType((2,), 9), torch.tensor([0, 200], dtype=torch.uint8)).values.tolist() == [0, 200]


def test_elements_are_the_values_themselves_and_a_copy_is_not() -> None:
    tensor = ExactTensor(TensorType((4,), 32), torch.arange(4))
    assert tensor.elements().ctypes.data == tensor.values.data_ptr()
    assert tensor.copy() == tensor
    assert tensor.copy().values.data_ptr() != tensor.values.data_ptr()


def test_quantising_takes_the_nearest_integer_and_saturates() -> None:
    numbers = torch.tensor([0.0, 0.25, -0.26, 0.9, 100.0, -100.0, float("inf"), float("-inf")], dtype=torch.float64)
    tensor = quantise(numbers, TensorType((8,), 8, 2))
    assert tensor.values.tolist() == [0, 1, -1, 4, 127, -128, 127, -128]


def test_quantising_to_64_bits_saturates_at_the_ends_of_int64() -> None:
    tensor = quantise(np.array([1e30, -1e30, 1.0]), TensorType((3,), 64, 10))
    assert tensor.values.tolist() == [2**63 - 1, -(2**63), 1024]


def test_quantising_refuses_what_is_not_a_number_or_of_another_shape() -> None:
    with pytest.raises(TensorError, match="NaN"):
        quantise(torch.tensor([float("nan")]), TensorType((1,), 8))
    with pytest.raises(TensorError, match="shape"):
        quantise(torch.zeros(3), TensorType((2,), 8))


def test_what_float32_holds_survives_both_ways() -> None:
    type_ = TensorType((50,), 24, 16)
    numbers = torch.randn(50, generator=torch.Generator().manual_seed(1)).mul(2**16).round().div(2**16)
    assert torch.equal(dequantise(quantise(numbers, type_)), numbers)


def test_a_transposed_tensor_has_the_bytes_of_its_own_rows() -> None:
    values = torch.arange(6).reshape(2, 3)
    turned = ExactTensor(TensorType((3, 2), 8), values.t())
    assert turned.to_bytes() == bytes([0, 3, 1, 4, 2, 5])
    assert turned.root() == ExactTensor(TensorType((3, 2), 8), values.t().contiguous()).root()


def test_the_order_in_which_a_state_was_put_together_does_not_matter() -> None:
    one, other = zeros(TensorType((3,), 8)), zeros(TensorType((), 40))
    assert encode_state({"b": one, "a": other}) == encode_state({"a": other, "b": one})
    assert state_root({"b": one, "a": other}) == state_root({"a": other, "b": one})


def test_an_empty_state_has_no_root() -> None:
    with pytest.raises(ValueError, match="0 tensors"):
        state_root({})


def test_initial_weights_have_the_mean_and_variance_asked_for() -> None:
    numbers = normal(3, "w", TensorType((200, 500), 32, 24), variance=(2, 500)).values / 2**24
    assert abs(numbers.mean()) < 4 * math.sqrt(2 / 500 / 100_000)
    assert abs(numbers.var() / (2 / 500) - 1) < 0.02
    inside = (numbers.abs() < math.sqrt(2 / 500)).double().mean()
    assert abs(inside - 0.6827) < 0.01  # one standard deviation of a normal distribution


def test_tensors_of_other_names_and_seeds_start_otherwise() -> None:
    type_ = TensorType((10,), 32, 24)
    drawn = {tuple(normal(seed, name, type_, variance=(1, 1)).values.tolist()) for seed in (1, 2) for name in "ab"}
    assert len(drawn) == 4


def test_a_variance_out_of_reach_is_refused() -> None:
    assert deviation(1, 4) == 2**23
    for numerator, denominator in ((-1, 1), (1, 0), (65537, 1)):
        with pytest.raises(ValueError, match="a variance of"):
            deviation(numerator, denominator)
    with pytest.raises(TensorError, match="frac is within"):
        normal(1, "w", TensorType((1,), 64, 41), variance=(1, 1))


def test_bytes_of_another_length_are_no_tensor() -> None:
    with pytest.raises(TensorError, match=r"5 bytes for int16\[2\] .*, which has 4"):
        ExactTensor.from_bytes(TensorType((2,), 16), bytes(5))
