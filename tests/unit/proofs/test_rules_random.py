"""Dropout keeps the share it should, scales what it keeps, uses one mask both ways, and draws anew in every step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from proofs.exact.opcodes import Opcode
from tests.support.rule_trial import lowered, opcodes, run, whole

ONES = torch.ones(50, 40, dtype=torch.float64)


def share(kept: Tensor) -> float:
    return float((kept != 0).double().mean())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_at_its_scale(p: float) -> None:
    program, data = lowered(lambda x: F.dropout(x, p), ONES)
    (kept,) = run(program, data)
    # Five standard deviations of a mean of 2,000 draws.
    assert abs(share(kept) - (1 - p)) < 5 * math.sqrt(p * (1 - p) / ONES.numel())
    assert torch.allclose(kept[kept != 0], torch.tensor(1 / (1 - p), dtype=torch.float64), rtol=1e-5)


def test_a_mask_follows_from_seed_and_step_alone() -> None:
    program, data = lowered(lambda x: F.dropout(x, 0.5), ONES)
    (first,), (again,) = run(program, data, seed=7), run(program, data, seed=7)
    (other_seed,), (later,) = run(program, data, seed=8), run(program, data, seed=7, steps=2)
    assert torch.equal(first, again)
    for other in (other_seed, later):
        agreeing = float((first == other).double().mean())
        assert 0.4 < agreeing < 0.6, "masks that should have nothing to do with each other"


def test_two_dropouts_of_a_step_are_independent() -> None:
    program, data = lowered(lambda x: (F.dropout(x, 0.5), F.dropout(x, 0.5)), ONES)
    first, second = run(program, data)
    assert 0.4 < float((first == second).double().mean()) < 0.6


def test_the_gradient_passes_where_the_number_did() -> None:
    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        pulled = torch.func.vjp(lambda y: F.dropout(y, 0.5), x)
        return pulled[0], pulled[1](x)[0]

    program, data = lowered(both, whole(30, 30, least=1))
    forward, backward = run(program, data)
    assert torch.equal(forward, backward)
    assert opcodes(program).count(Opcode.RANDOM) == 1


def test_channels_are_dropped_whole() -> None:
    program, data = lowered(lambda x: F.dropout2d(x, 0.5), torch.ones(20, 30, 2, 3, dtype=torch.float64))
    (kept,) = run(program, data)
    counts = (kept != 0).sum((2, 3))
    assert set(counts.flatten().tolist()) == {0, 6}
    assert 0.4 < share(counts) < 0.6


def test_evaluation_mode_and_p_of_zero_draw_nothing() -> None:
    model = nn.Dropout(0.5).eval()
    for function in (model, lambda x: F.dropout(x, 0.0)):
        program, data = lowered(function, ONES)
        assert Opcode.RANDOM not in opcodes(program)
        assert torch.equal(run(program, data)[0], ONES)


def test_uniform_and_bernoulli_draws() -> None:
    probabilities = torch.cat([torch.zeros(1000), torch.ones(1000)]).double()
    program, data = lowered(lambda p: (torch.rand_like(p), torch.bernoulli(p), torch.rand(1000)), probabilities)
    uniform, tossed, fresh = run(program, data)
    for drawn in (uniform, fresh):
        assert 0 <= drawn.min() < 0.02 and 0.98 < drawn.max() < 1
        assert 0.45 < drawn.mean() < 0.55
    assert torch.equal(tossed, probabilities)
