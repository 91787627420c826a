"""Convolution, pooling, embedding and their gradients equal PyTorch's on whole numbers, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from proofs.exact.compiler.lowering import Unsupported
from proofs.exact.opcodes import Opcode
from tests.support.rule_trial import Function, exactly, gradients, lowered, opcodes, weights_for, whole


def both_ways(function: Function, *inputs: Tensor, within: float = 0) -> None:
    exactly(function, *inputs, within=within)
    exactly(gradients(function, weights_for(function, *inputs)), *inputs, within=within)


@pytest.mark.parametrize(
    ("image", "kernel", "options"),
    [
        ((2, 1, 5, 5), (3, 1, 3, 3), {}),
        ((2, 3, 5, 4), (4, 3, 3, 3), {"padding": 1}),
        ((3, 2, 6, 7), (4, 2, 3, 2), {"stride": 2}),
        ((2, 2, 7, 7), (2, 2, 3, 3), {"stride": (2, 3), "padding": (1, 0)}),
        ((2, 2, 7, 6), (3, 2, 2, 3), {"dilation": 2, "padding": 2}),
        ((2, 4, 5, 5), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
        ((2, 4, 4, 4), (4, 1, 3, 3), {"groups": 4, "stride": 2, "padding": 1}),
        ((2, 3, 4, 4), (5, 3, 1, 1), {}),
        ((1, 2, 4, 4), (3, 2, 4, 4), {}),
        ((2, 3, 9), (4, 3, 3), {"stride": 2, "padding": 1}),
        ((2, 4, 8), (2, 2, 2), {"groups": 2, "dilation": 3}),
    ],
)
def test_convolution_and_its_gradients(
    image: tuple[int, ...], kernel: tuple[int, ...], options: dict[str, Any]
) -> None:
    convolve: Any = F.conv1d if len(image) == 3 else F.conv2d
    both_ways(lambda x, w, b: convolve(x, w, b, **options), whole(*image), whole(*kernel), whole(kernel[0]))


def test_convolution_without_bias_or_gradient_of_the_image() -> None:
    x, w = whole(2, 1, 5, 5), whole(2, 1, 3, 3)
    exactly(lambda x, w: F.conv2d(x, w), x, w)
    weights = whole(2, 2, 3, 3, seed=1)
    exactly(lambda x, w: gradients(lambda v: F.conv2d(x, v), weights)(w), x, w)


def test_transposed_convolution_is_refused() -> None:
    with pytest.raises(Unsupported, match="transposed"):
        lowered(lambda x, w: F.conv_transpose2d(x, w), whole(1, 2, 3, 3), whole(2, 2, 2, 2))


def test_a_window_index_does_not_grow_with_channels_or_images() -> None:
    program, _ = lowered(lambda x, w: F.conv2d(x, w), whole(5, 8, 6, 6), whole(16, 8, 3, 3))
    assert max(constant.type.elements for constant in program.constants) == 9 * 16


def test_a_chain_of_layers_keeps_one_layout() -> None:
    """Convolution, ReLU, pooling, convolution: between the image on the way in and the one on the way out, nothing is
    transposed but operands of products."""

    def network(x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        return F.conv2d(F.max_pool2d(F.relu(F.conv2d(x, v, padding=1)), 2), w)

    inputs = whole(2, 1, 6, 6, least=-2, greatest=2), whole(3, 1, 3, 3, least=-2, greatest=2), whole(2, 3, 2, 2)
    program = exactly(network, *inputs)
    images = [op for op in program.ops if op.opcode is Opcode.TRANSPOSE and len(op.attributes) == 4]
    assert len(images) == 2
    exactly(gradients(network, whole(2, 2, 2, 2, seed=1)), *inputs)


def test_a_residual_beside_convolutions_is_added_to_the_right_pixels() -> None:
    """One branch comes out of the pixels' layout, the other never was in it."""

    def network(x: Tensor, v: Tensor, w: Tensor) -> Tensor:
        hidden = F.relu(F.conv2d(x, v, padding=1))
        return F.max_pool2d(F.relu(x + F.conv2d(hidden, w, padding=1)), 2)

    kernels = [whole(2, 2, 3, 3, least=-2, greatest=2, seed=seed) for seed in (1, 2)]
    both_ways(network, whole(3, 2, 4, 6, least=-3, greatest=3), *kernels)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (3, 2), "stride": (1, 2)},
        {"kernel_size": 2, "dilation": 2},
        {"kernel_size": 3, "stride": 2, "ceil_mode": True},
        {"kernel_size": 3, "stride": 1, "padding": 1},
    ],
)
def test_max_pooling_where_many_values_tie(options: dict[str, Any]) -> None:
    x = whole(2, 3, 6, 7, least=-1, greatest=1)
    both_ways(lambda x: F.max_pool2d(x, **options), x)
    exactly(lambda x: F.max_pool2d(x, return_indices=True, **options), x)


def test_all_pixels_equal_the_first_one_wins() -> None:
    both_ways(lambda x: F.max_pool2d(x, 2), torch.full((1, 1, 4, 4), -3.0, dtype=torch.float64))


def test_pooling_of_one_picture_and_of_a_sequence() -> None:
    both_ways(lambda x: F.max_pool2d(x, 2), whole(2, 4, 4))
    both_ways(lambda x: F.max_pool1d(x, 3, stride=2), whole(2, 3, 9))
    both_ways(lambda x: F.avg_pool2d(x, 2), whole(2, 4, 4))


@pytest.mark.parametrize(
    ("options", "within"),
    [
        ({"kernel_size": 2}, 0),
        ({"kernel_size": (4, 2), "stride": 2}, 0),
        ({"kernel_size": 3, "stride": 2, "padding": 1}, 1e-4),
        ({"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}, 1e-4),
        ({"kernel_size": 3, "stride": 2, "ceil_mode": True}, 1e-4),
        ({"kernel_size": 3, "stride": 2, "ceil_mode": True, "padding": 1}, 1e-4),
        ({"kernel_size": 2, "divisor_override": 8}, 0),
        ({"kernel_size": 5, "stride": 1}, 1e-4),
    ],
)
def test_average_pooling(options: dict[str, Any], within: float) -> None:
    both_ways(lambda x: F.avg_pool2d(x, **options), whole(2, 3, 6, 7), within=within)


def test_nearest_upsampling_by_whole_numbers() -> None:
    both_ways(lambda x: F.interpolate(x, scale_factor=2), whole(2, 3, 2, 3))
    both_ways(lambda x: F.interpolate(x, size=(2, 9)), whole(2, 1, 2, 3))
    with pytest.raises(Unsupported, match="upsampling"):
        lowered(lambda x: F.interpolate(x, size=(3, 3)), whole(2, 1, 2, 3))


def test_adaptive_maximum_pooling_to_a_divisor() -> None:
    both_ways(lambda x: F.adaptive_max_pool2d(x, (2, 3)), whole(2, 3, 4, 6, least=-1, greatest=1))


def test_adaptive_average_pooling_to_a_divisor() -> None:
    both_ways(lambda x: F.adaptive_avg_pool2d(x, (2, 3)), whole(2, 3, 4, 6), within=1e-4)
    with pytest.raises(Unsupported, match="differ in size"):
        lowered(lambda x: F.adaptive_avg_pool2d(x, (3, 3)), whole(2, 3, 4, 6))


TOKENS = torch.tensor([[0, 4, 4, 2], [3, 0, 4, 1]])


@pytest.mark.parametrize("padding_idx", [None, 4])
def test_embedding_sums_the_gradients_of_equal_tokens(padding_idx: int | None) -> None:
    weight, weights = whole(6, 3), whole(2, 4, 3, seed=1)
    exactly(lambda i, w: F.embedding(i, w, padding_idx=padding_idx), TOKENS, weight)
    exactly(
        lambda i, w: gradients(lambda v: F.embedding(i, v, padding_idx=padding_idx), weights)(w),
        TOKENS,
        weight,
    )


def test_embedding_with_frequencies_is_refused() -> None:
    weights = whole(2, 4, 3)

    def scaled(i: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return gradients(lambda v: F.embedding(i, v, scale_grad_by_freq=True), weights)(w)  # type: ignore[return-value]

    with pytest.raises(Unsupported, match="scale_grad_by_freq"):
        lowered(scaled, TOKENS, whole(6, 3))


def test_embeddings_are_gathered_not_multiplied() -> None:
    program, _ = lowered(lambda i, w: F.embedding(i, w), TOKENS, whole(6, 3))
    assert Opcode.MATMUL_NT not in opcodes(program)
