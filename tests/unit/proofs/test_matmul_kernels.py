"""proofs.exact.backend.matmul: every kernel gives the sums of Python integers, up to the last value of its bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proofs.exact.backend.matmul import (
    Kernel,
    Product,
    admits,
    matmul_nt,
    multiply_slices,
    plane_shifts,
    slices_for,
    slices_of,
    sum_planes,
)

EVERY = list(Kernel)


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
    ends = [int(end) for x in (a, b) for end in (x.min(), x.max())]
    return Product(a[..., 0, 0].numel(), a.shape[-2], b.shape[-2], a.shape[-1], *ends)


@pytest.mark.parametrize("kernel", EVERY)
@pytest.mark.parametrize(
    ("lo", "hi"), [(-128, 127), (-32896, 32639), (-8421504, 8355711), (0, 127), (-3, 2)], ids=lambda end: str(end)
)
@pytest.mark.parametrize("sides", [(1, 1, 2), (3, 5, 7), (17, 1, 9), (16, 16, 64), (2, 7, 1)], ids=str)
def test_kernels_give_the_sums_of_python_integers(
    kernel: Kernel, lo: int, hi: int, sides: tuple[int, int, int]
) -> None:
    m, n, k = sides
    a, b = random_operand((m, k), lo, hi, 1), random_operand((n, k), -32896, 32639, 2)
    product = product_of(a, b)
    if not admits(kernel, product):
        assert (kernel, k) == (Kernel.INT8, 1), "the only product here that a kernel may refuse"
        return
    assert torch.equal(matmul_nt(kernel, a, b, product), by_definition(a, b))


@pytest.mark.parametrize("kernel", EVERY)
@pytest.mark.parametrize("lead", [(3,), (2, 3)], ids=str)
def test_batched_products_are_those_of_their_parts(kernel: Kernel, lead: tuple[int, ...]) -> None:
    a, b = random_operand((*lead, 5, 8), -32768, 32639, 3), random_operand((*lead, 4, 8), -128, 127, 4)
    assert torch.equal(matmul_nt(kernel, a, b, product_of(a, b)), by_definition(a, b))


@pytest.mark.parametrize("kernel", EVERY)
def test_transposed_and_strided_operands_multiply_as_their_copies(kernel: Kernel) -> None:
    a = random_operand((24, 14, 2), -32768, 32639, 5)[:, :, 0].t()
    b = random_operand((20, 48), -32768, 32639, 6)[::2, ::2]
    assert not a.is_contiguous()
    assert not b.is_contiguous()
    assert torch.equal(matmul_nt(kernel, a, b, product_of(a, b)), by_definition(a, b))


@pytest.mark.parametrize("end", [-128, 127])
@pytest.mark.parametrize("other", [-128, 127])
def test_int8_slices_hold_the_greatest_sums_at_the_bound_of_k(end: int, other: int) -> None:
    k = 131071  # 131072 * 2^14 = 2^31 is one too many
    a, b = torch.full((3, k), end), torch.full((2, k), other)
    product = product_of(a, b)
    assert admits(Kernel.INT8, product)
    assert not admits(Kernel.INT8, Product(1, 3, 2, k + 1, end, end, other, other))
    assert torch.equal(matmul_nt(Kernel.INT8, a, b, product), torch.full((3, 2), k * end * other))


def test_planes_of_equal_shift_fit_int32_together() -> None:
    wide = (-32896, 32639)
    assert admits(Kernel.INT8, Product(1, 2, 2, 65535, *wide, *wide))
    assert not admits(Kernel.INT8, Product(1, 2, 2, 65536, *wide, *wide))


def test_float64_is_refused_from_2_to_the_53_on() -> None:
    assert admits(Kernel.FLOAT64, Product(1, 1, 1, 2**11 - 1, -(2**21), 0, 0, 2**21))
    assert not admits(Kernel.FLOAT64, Product(1, 1, 1, 2**11, -(2**21), 0, 0, 2**21))
    assert not admits(Kernel.FLOAT64, Product(1, 1, 1, 1, 0, 0, 0, 2**53))


def test_float64_is_exact_just_below_its_bound_whatever_the_order() -> None:
    k = 2047
    a, b = torch.full((9, k), -(2**21)), torch.full((7, k), 2**21)
    a[:, ::3] += 1
    want = by_definition(a[:1], b[:1])[0, 0]
    assert bool((matmul_nt(Kernel.FLOAT64, a, b, product_of(a, b)) == want).all())
    assert bool((matmul_nt(Kernel.FLOAT64, a.flip(1), b, product_of(a, b)) == want).all())


@pytest.mark.parametrize("count", [1, 2, 3])
def test_slices_reach_exactly_their_interval(count: int) -> None:
    ones = (256**count - 1) // 255
    lo, hi = -128 * ones, 127 * ones
    assert slices_for(lo, hi) == count
    assert slices_for(lo - 1, 0) == slices_for(0, hi + 1) == (count + 1 if count < 3 else None)
    x = torch.tensor([lo, hi, 0, -1, 1, lo + 1, hi - 1, 127, -128])
    parts = slices_of(x, count)
    assert [part.dtype for part in parts] == [torch.int8] * count
    assert torch.equal(sum_planes(torch.stack(parts), [8 * i for i in range(count)]), x)


def test_planes_are_written_where_the_caller_says() -> None:
    a, b = random_operand((6, 16), -32768, 32639, 7), random_operand((5, 16), -128, 127, 8)
    out = torch.empty((2, 6, 5), dtype=torch.int32)
    planes = multiply_slices(slices_of(a, 2), slices_of(b, 1), out)
    assert planes.data_ptr() == out.data_ptr()
    assert torch.equal(sum_planes(out, plane_shifts(2, 1)), by_definition(a, b))


def test_a_kernel_refuses_a_product_that_it_cannot_hold() -> None:
    a = torch.full((1, 2), 2**40)
    with pytest.raises(ValueError, match="cannot hold sums"):
        matmul_nt(Kernel.FLOAT64, a, a, product_of(a, a))
