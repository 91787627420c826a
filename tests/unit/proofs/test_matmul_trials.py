"""proofs.exact.backend.matmul_trials: perverse orders change nothing that is exact, and show whatever is not."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import Tensor

from proofs.exact.backend.layouts import Float64
from proofs.exact.backend.matmul import MatmulKernel
from proofs.exact.backend.matmul_kernels import multiply
from proofs.exact.backend.matmul_trials import ORDERS, Order, _cut, kernels_here, perverted, variant
from proofs.exact.ranges import ValueInfo
from proofs.exact.settings import Settings

NAMES = ["int64", "float64", "int8", "amx"]


def operands(lead: tuple[int, ...], m: int, n: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(-32768, 32640, (*lead, m, k), generator=generator)
    return a, torch.randint(-32768, 32640, (*lead, n, k), generator=generator)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("sides", [(1, 1, 2), (5, 9, 3), (33, 20, 130), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("lead", [(), (3,)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_no_order_changes_an_exact_product(
    name: str, order: Order, sides: tuple[int, int, int], lead: tuple[int, ...], seed: int
) -> None:
    if name not in kernels_here():
        pytest.skip(f"this processor has no {name} products")
    a, b = operands(lead, *sides, seed)
    left, right = (ValueInfo(tuple(x.shape), 0, -32768, 32639) for x in (a, b))
    settings = Settings(matmul=variant(name, order, seed))
    assert not isinstance(settings.matmul, str)
    kernel = settings.matmul(left, right, settings)
    assert kernel.name == (name if order == "plain" else f"{name} {order}")
    assert torch.equal(kernel.integers(a, b), a @ b.mT)


@pytest.mark.parametrize("order", ["reversed", "tiles"])
def test_a_product_that_rounds_is_betrayed(order: Order) -> None:
    a, b = operands((), 40, 30, 500, 1)
    rounding = MatmulKernel("rounding", Float64(), Float64(), Float64(), multiply)
    a, b = a * 4099, b * 4099
    plain = rounding.integers(a, b)  # sums of about 2^57 in 53 bits
    assert not torch.equal(perverted(rounding, order, Random(1)).integers(a, b), plain)


@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 5, 100])
def test_tiles_cover_a_side_once(side: int, least: int) -> None:
    for seed in range(20):
        pieces = _cut(side, least, Random(seed))
        assert [place for first, last in pieces for place in range(first, last)] == list(range(side))
        assert all(last - first >= min(least, side) for first, last in pieces)
    assert side < 5 or any(len(_cut(side, least, Random(seed))) > 1 for seed in range(20))
