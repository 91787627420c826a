"""Every rule of arithmetic beside PyTorch in float64, forward and backward; and at any scale that can be calibrated.

A case is a function of tensors with the error that its results and gradients may have, relative to the greatest of
each. Its arguments hold what is awkward: zeros, halves, ties, one number far larger than the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from proofs.exact.compiler.formats import NumberFormat
from tests.support.real_trial import Trial

TABLE = 2.0**-18
"""Results of a table or a 20-bit constant."""
OPERANDS = 2.0**-9
"""Products of operands with 12 bits below the greatest."""
LABELS = torch.arange(12) % 5


@dataclass(frozen=True)
class Case:
    function: Callable[..., Tensor]
    arguments: tuple[Tensor, ...]
    error: float


def draw(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    """Normal numbers with a zero, a half, two equal ones and a large one among them."""
    count = math.prod(shape)
    x = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + count))
    for place, special in enumerate((0.0, 0.5, -0.5, 1.0, 1.0, 6.0)):
        x[place * 7 % count] = special
    return (x * scale).reshape(shape)


def positive(*shape: int, seed: int = 0) -> Tensor:
    return draw(*shape, seed=seed).abs() + 0.25


def case(function: Callable[..., Tensor], *arguments: Tensor, error: float = TABLE) -> Case:
    return Case(function, arguments, error)


X, Y, Z = draw(6, 10), draw(6, 10, seed=1), draw(6, 10, seed=2)
ROWS, GAIN, SHIFT = draw(6, 48, seed=3) + 0.5, draw(48, seed=4) + 1, draw(48, seed=5)
IMAGES = draw(2, 8, 3, 4, seed=6)
LOGITS = draw(12, 5, scale=2, seed=7)


CASES: dict[str, Case] = {
    "add": case(lambda a, b: a + b, X, draw(10)),
    "add_far": case(lambda a, b: a - b, X * 1e-4, Y * 100, error=2**-24),
    "add_scaled": case(lambda a, b: torch.add(a, b, alpha=0.3) + 1.7, X, Y),
    "sub_from": case(lambda a: 2.5 - a, X),
    "mul": case(lambda a, b: a * b * 3.3, X, draw(6, 1)),
    "div": case(lambda a, b: a / b, X, positive(6, 10)),
    "div_negative": case(lambda a, b: a / b, X, -positive(6, 10)),
    "div_by_row": case(lambda a, b: a / b, X, positive(6, 1)),
    "div_constant": case(lambda a: a / 7, X),
    "reciprocal": case(lambda a: 1 / a, positive(6, 10)),
    "power_3": case(lambda a: a**3, X),
    "power_half": case(lambda a: a**0.5, positive(6, 10)),
    "power_-1.5": case(lambda a: a**-1.5, positive(6, 10), error=2**-15),
    "rsqrt": case(torch.rsqrt, positive(6, 10), error=2**-16),
    "sqrt": case(torch.sqrt, positive(6, 10), error=2**-17),
    "exp": case(torch.exp, X),
    "log": case(torch.log, positive(6, 10)),
    "log1p": case(torch.log1p, positive(6, 10)),
    "tanh": case(torch.tanh, X),
    "sigmoid": case(torch.sigmoid, X),
    "logsigmoid": case(F.logsigmoid, X),
    "relu": case(torch.relu, X, error=0),
    "gelu": case(F.gelu, X),
    "gelu_tanh": case(lambda a: F.gelu(a, approximate="tanh"), X),
    "silu": case(F.silu, X),
    "leaky_relu": case(F.leaky_relu, X),
    "elu": case(F.elu, X, error=2**-15),  # its gradient takes e^x of all x
    "softplus": case(F.softplus, X),
    "hardtanh": case(F.hardtanh, X, error=0),
    "abs": case(torch.abs, X, error=0),
    "maximum": case(torch.maximum, X, Y, error=0),
    "minimum": case(lambda a, b: torch.minimum(a, b), X, Y, error=0),
    "clamp": case(lambda a: a.clamp(-0.5, 0.75), X, error=0),
    "where": case(lambda a, b: torch.where(a > b, a * 2, b), X, Y, error=2**-24),
    "masked_fill": case(lambda a: torch.softmax(a.masked_fill(a > 1, -torch.inf), 1), X),
    "compare": case(lambda a: a * (a >= 0.5) + a * (a < -0.1) + (a == 1) * a + a * (a != 6), X, error=2**-24),
    "logical": case(lambda a: a * ((a > 0) & ~(a > 1) | (a < -1)).to(a.dtype), X, error=0),
    "lerp": case(lambda a, b: torch.lerp(a, b, 0.1) + torch.lerp(a, b, 0.9), X, Y),
    "addcmul": case(lambda a, b, c: torch.addcmul(a, b, c, value=0.3), X, Y, Z),
    "addcdiv": case(lambda a, b, c: torch.addcdiv(a, b, c, value=0.3), X, Y, positive(6, 10), error=2**-16),
    "sum": case(lambda a: a.sum() + a.sum(0).sum(), X, error=2**-24),
    "mean": case(lambda a: a.mean((0, 2)), IMAGES),
    "amax": case(lambda a: a.amax(1) - a.amin(1), draw(6, 9, seed=9), error=2**-24),
    "var": case(lambda a: a.var(-1) + a.std(-1), X),
    "norm": case(lambda a: torch.linalg.vector_norm(a) + torch.linalg.vector_norm(a, 1), X),
    "softmax": case(lambda a: F.softmax(a, -1), ROWS),
    "softmax_first": case(lambda a: F.softmax(a, 0), ROWS),
    "log_softmax": case(lambda a: F.log_softmax(a, -1), ROWS),
    "cross_entropy": case(lambda a, y: F.cross_entropy(a, y), LOGITS, LABELS),
    "cross_entropy_none": case(lambda a, y: F.cross_entropy(a, y, reduction="none"), LOGITS, LABELS),
    "cross_entropy_sum": case(lambda a, y: F.cross_entropy(a, y, reduction="sum"), LOGITS, LABELS),
    "cross_entropy_smooth": case(lambda a, y: F.cross_entropy(a, y, label_smoothing=0.1), LOGITS, LABELS),
    "cross_entropy_ignore": case(lambda a, y: F.cross_entropy(a, y, ignore_index=3), LOGITS, LABELS),
    "cross_entropy_padding": case(F.cross_entropy, LOGITS, torch.where(LABELS == 3, -100, LABELS)),
    "cross_entropy_weight": case(lambda a, y, w: F.cross_entropy(a, y, w.detach()), LOGITS, LABELS, positive(5)),
    "cross_entropy_images": case(F.cross_entropy, draw(3, 5, 4, scale=2), LABELS.reshape(3, 4)),
    "mse": case(F.mse_loss, X, Y),
    "l1": case(F.l1_loss, X, Y),
    "huber": case(F.huber_loss, X, Y),
    "smooth_l1": case(F.smooth_l1_loss, X, Y),
    "bce": case(lambda a, b: F.binary_cross_entropy_with_logits(a, b.abs().clamp(max=1).detach()), X, Y),
    "kl_div": case(lambda a, b: F.kl_div(F.log_softmax(a, 1), b.detach(), reduction="sum"), ROWS, positive(6, 48)),
    "layer_norm": case(lambda a, w, b: F.layer_norm(a, (48,), w, b), ROWS, GAIN, SHIFT, error=2**-13),
    "layer_norm_plain": case(lambda a: F.layer_norm(a, (8, 6)), ROWS.reshape(6, 8, 6), error=2**-13),
    "rms_norm": case(lambda a, w: F.rms_norm(a, (48,), w), ROWS, GAIN),
    "group_norm": case(lambda a, w, b: F.group_norm(a, 4, w, b), IMAGES, draw(8) + 1, draw(8), error=2**-13),
    "batch_norm": case(
        lambda a, w, b: F.batch_norm(a, None, None, w, b, training=True), IMAGES, draw(8) + 1, draw(8), error=2**-13
    ),
    "linear": case(F.linear, ROWS, draw(9, 48), draw(9), error=OPERANDS),
    "linear_plain": case(lambda a, w: F.linear(a, w), ROWS, draw(9, 48), error=OPERANDS),
    "bmm": case(torch.bmm, draw(3, 4, 6), draw(3, 6, 5), error=OPERANDS),
    "baddbmm": case(
        lambda c, a, b: torch.baddbmm(c, a, b, beta=0.5, alpha=2.2),
        draw(3, 4, 5),
        draw(3, 4, 6),
        draw(3, 6, 5),
        error=OPERANDS,
    ),
    "dot": case(torch.dot, draw(30), draw(30, seed=1), error=OPERANDS),
    "mv": case(torch.mv, X, draw(10), error=OPERANDS),
    "attention": case(
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        *(draw(2, 3, 8, 4, seed=seed) for seed in (1, 2, 3)),
        error=2**-7,
    ),
}


def with_gradients(function: Callable[..., Tensor], arguments: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, ...]]:
    """The result and the gradients by every floating-point argument, of a sum that weighs each element otherwise."""
    floating = tuple(place for place, x in enumerate(arguments) if x.is_floating_point())

    def compute(*given: Tensor) -> tuple[Tensor, ...]:
        *inputs, weights = given

        def weighted(*varied: Tensor) -> tuple[Tensor, Tensor]:
            for place, x in zip(floating, varied, strict=True):
                inputs[place] = x
            result = function(*inputs)
            return (result * weights).sum(), result

        varied = tuple(inputs[place] for place in floating)
        gradients, result = torch.func.grad(weighted, argnums=tuple(range(len(varied))), has_aux=True)(*varied)
        return (result, *gradients)

    return compute


@cache
def trial(name: str) -> Trial:
    chosen = CASES[name]
    weights = draw(*chosen.function(*chosen.arguments).shape, seed=11)
    with sdpa_kernel(SDPBackend.MATH):
        return Trial(with_gradients(chosen.function, chosen.arguments), *chosen.arguments, weights)


@pytest.mark.parametrize("name", CASES)
def test_rules_compute_what_pytorch_computes_at_the_scales_of_training(name: str) -> None:
    for error in trial(name).errors():
        assert error <= CASES[name].error


@pytest.mark.parametrize("name", CASES)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=2, deadline=None)
def test_rules_are_provable_at_any_scale(name: str, seed: int) -> None:
    """No builder call raises, whatever formats the nodes have: intervals prove every operation, or it is rounded."""
    chance = Random(seed)
    chosen: dict[tuple[fx.Node, int], NumberFormat] = {}

    def any_format(node: fx.Node, place: int, magnitude: float) -> NumberFormat:
        return chosen.setdefault((node, place), NumberFormat(chance.randint(-20, 50), chance.randint(8, 52)))

    trial(name).lower(any_format)
