"""proofs.exact.backend.matmul: every kernel gives the sums of Python integers, up to the last value of its bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proofs.exact.backend.layouts import integers_of, planes_of
from proofs.exact.backend.matmul import MatmulKernel, kernels_for
from proofs.exact.backend.matmul_kernels import Product, fits_float64, fits_int8, fits_int64
from proofs.exact.backend.matmul_trials import kernels_here
from proofs.exact.ranges import ValueInfo

NAMES = ["int64", "float64", "int8", "amx"]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    if chosen not in kernels_here():
        pytest.skip(f"this processor has no {chosen} products")
    return chosen


def random_operand(shape: tuple[int, ...], lo: int, hi: int, seed: int) -> Tensor:
    x = torch.randint(lo, hi + 1, shape, dtype=torch.int64, generator=torch.Generator().manual_seed(seed))
    x.view(-1)[0], x.view(-1)[-1] = lo, hi
    return x


def by_definition(a: Tensor, b: Tensor) -> Tensor:
    """Sums of Python integers."""
    left, right = a.reshape(-1, *a.shape[-2:]).tolist(), b.reshape(-1, *b.shape[-2:]).tolist()
    sums = [
        [[sum(x * y for x, y in zip(row, column, strict=True)) for column in ys] for row in xs]
        for xs, ys in zip(left, right, strict=True)
    ]
    return torch.tensor(sums, dtype=torch.int64).reshape(*a.shape[:-1], b.shape[-2])


def product_of(a: Tensor, b: Tensor) -> Product:
    return Product(*(ValueInfo(tuple(x.shape), 0, int(x.min()), int(x.max())) for x in (a, b)))


def product(m: int, n: int, k: int, a: tuple[int, int], b: tuple[int, int]) -> Product:
    return Product(ValueInfo((m, k), 0, *a), ValueInfo((n, k), 0, *b))


def kernel_for(name: str, a: Tensor, b: Tensor, threads: int = 1) -> MatmulKernel:
    kernels = kernels_for(product_of(a, b), threads)
    return kernels[name]


@pytest.mark.parametrize("interval", [(-128, 127), (-32768, 32639), (0, 127), (-3, 2)], ids=str)
@pytest.mark.parametrize("other", [(-128, 127), (-32768, 32639)], ids=str)
@pytest.mark.parametrize(
    "sides", [(1, 1, 2), (3, 5, 7), (17, 1, 9), (16, 16, 64), (33, 47, 130), (40, 70, 66)], ids=str
)
def test_kernels_give_the_sums_of_python_integers(
    name: str, interval: tuple[int, int], other: tuple[int, int], sides: tuple[int, int, int]
) -> None:
    m, n, k = sides
    a, b = random_operand((m, k), *interval, 1), random_operand((n, k), *other, 2)
    assert torch.equal(kernel_for(name, a, b).integers(a, b), by_definition(a, b))


@pytest.mark.parametrize("name", ["int64", "float64", "int8"], indirect=True)
def test_three_slices_hold_24_bits(name: str) -> None:
    a, b = random_operand((5, 33), -8421504, 8355711, 1), random_operand((6, 33), -8421504, 8355711, 2)
    assert torch.equal(kernel_for(name, a, b).integers(a, b), by_definition(a, b))


@pytest.mark.parametrize("lead", [(3,), (2, 3)], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_batched_products_are_those_of_their_parts(name: str, lead: tuple[int, ...], threads: int) -> None:
    a, b = random_operand((*lead, 21, 8), -32768, 32639, 3), random_operand((*lead, 34, 8), -128, 127, 4)
    assert torch.equal(kernel_for(name, a, b, threads).integers(a, b), by_definition(a, b))


@pytest.mark.parametrize("a_axes", [(0, 1, 2, 3), (0, 1, 3, 2), (1, 0, 2, 3), (0, 2, 1, 3), (2, 3, 0, 1), (3, 2, 1, 0)])
@pytest.mark.parametrize("b_axes", [(0, 1, 2, 3), (0, 2, 3, 1), (3, 1, 2, 0)])
def test_planes_may_lie_in_any_order_of_axes(name: str, a_axes: tuple[int, ...], b_axes: tuple[int, ...]) -> None:
    a, b = random_operand((2, 3, 20, 18), -32768, 32639, 5), random_operand((2, 3, 35, 18), -32768, 32639, 6)
    kernel = kernel_for(name, a, b)

    def lying(planes: tuple[Tensor, ...], axes: tuple[int, ...]) -> tuple[Tensor, ...]:
        back = tuple(axes.index(axis) for axis in range(4))
        return tuple(plane.permute(axes).contiguous().permute(back) for plane in planes)

    out = kernel.empty((2, 3, 20, 35))
    kernel.run(lying(planes_of(a, kernel.a), a_axes), lying(planes_of(b, kernel.b), b_axes), out)
    assert torch.equal(integers_of(out, kernel.out), by_definition(a, b))


def test_planes_may_be_parts_of_wider_ones(name: str) -> None:
    a, b = random_operand((30, 40), -32768, 32639, 5), random_operand((50, 40), -32768, 32639, 6)
    kernel = kernel_for(name, a, b)
    left = tuple(plane[3:21, 4:31] for plane in planes_of(a, kernel.a))
    right = tuple(plane[7::2, 4:31] for plane in planes_of(b, kernel.b))
    out = kernel.empty((18, 22))
    kernel.run(left, right, out)
    assert torch.equal(integers_of(out, kernel.out), by_definition(a[3:21, 4:31], b[7::2, 4:31]))


def test_threads_share_a_large_product_without_a_trace(name: str) -> None:
    a, b = random_operand((333, 130), -32768, 32639, 7), random_operand((130, 130), -32768, 32639, 8)
    want = a @ b.t()
    assert torch.equal(kernel_for(name, a, b, threads=1).integers(a, b), want)
    assert torch.equal(kernel_for(name, a, b, threads=3).integers(a, b), want)


@pytest.mark.parametrize("end", [-128, 127])
@pytest.mark.parametrize("other", [-128, 127])
def test_sliced_kernels_hold_the_greatest_sums_at_the_bound_of_k(name: str, end: int, other: int) -> None:
    k = 131071  # 131072 * 2^14 = 2^31 is one too many
    a, b = torch.full((3, k), end), torch.full((2, k), other)
    assert torch.equal(kernel_for(name, a, b).integers(a, b), torch.full((3, 2), k * end * other))
    assert not fits_int8(product(3, 2, k + 1, (end, end), (other, other)))


def test_two_slices_hold_the_greatest_sums_at_the_bound_of_k(name: str) -> None:
    k = 65535  # the two middle planes together: 2 * 65536 * 2^14 = 2^31 is one too many
    a, b = torch.full((2, k), -32768), torch.full((3, k), -32768 + 128)  # digits -128, 0 and -128, -128
    a[:, 1:] += 128 - 256
    a[:, 1:].clamp_(min=-32768)
    b[:, 0] = 32639
    assert torch.equal(kernel_for(name, a, b).integers(a, b), a @ b.t())
    assert not fits_int8(product(2, 2, k + 1, (-32768, 32639), (-32768, 32639)))


def test_float64_is_refused_from_2_to_the_53_on() -> None:
    assert fits_float64(product(1, 1, 2**11 - 1, (-(2**21), 0), (0, 2**21)))
    assert not fits_float64(product(1, 1, 2**11, (-(2**21), 0), (0, 2**21)))
    assert not fits_float64(product(1, 1, 1, (0, 0), (0, 2**53)))
    assert fits_int64(product(1, 1, 2**11, (-(2**21), 0), (0, 2**21)))


def test_float64_is_exact_just_below_its_bound_whatever_the_order() -> None:
    k = 2047
    a, b = torch.full((9, k), -(2**21)), torch.full((7, k), 2**21)
    a[:, ::3] += 1
    want = by_definition(a[:1], b[:1])[0, 0]
    kernel = kernel_for("float64", a, b)
    assert bool((kernel.integers(a, b) == want).all())
    assert bool((kernel.integers(a.flip(1), b) == want).all())


def test_the_int8_product_with_k_1_that_torch_gets_wrong_is_not_offered() -> None:
    assert set(kernels_for(product(2, 7, 1, (-128, 127), (-128, 127)), 1)) - {"amx"} == {"int64", "float64"}


def test_products_beyond_24_bits_are_left_to_float64_and_int64() -> None:
    assert set(kernels_for(product(2, 7, 5, (-(2**24), 0), (0, 1)), 1)) == {"int64", "float64"}
    assert set(kernels_for(product(2, 7, 5, (-(2**40), 0), (0, 2**20)), 1)) == {"int64"}
