"""Each kernel against its definition, on operands built to break it: extremes, ties, negative halves, zeros."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proofs.exact.definitions import IntArray
from proofs.exact.kernels import ISQRT_MAX, KERNELS, Buffer, Call, fits_float64, matmul_float64
from proofs.exact.known_answers import asked, from_torch, info_of, to_torch
from proofs.exact.opcodes import Opcode, define, infer
from proofs.exact.overflow import Overflow
from proofs.exact.program import Constant
from proofs.exact.ranges import RangeError, ValueInfo
from proofs.exact.tensor_type import INT64_MAX, INT64_MIN, MAX_RANK, TensorType, bits_for


def integers(bits: int = 63) -> st.SearchStrategy[int]:
    """Of `bits` bits: often at the ends, next to powers of two, and halfway between multiples of them."""
    lo, hi = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    powers = st.builds(
        lambda power, sign, off: min(max(sign * (1 << power) + off, lo), hi),
        st.integers(0, bits - 1),
        st.sampled_from((-3, -1, 1, 3)),
        st.integers(-1, 1),
    )
    return st.one_of(st.sampled_from((lo, hi, 0, -1, 1)), powers, st.integers(lo, hi))


def arrays(shape: tuple[int, ...], elements: st.SearchStrategy[int]) -> st.SearchStrategy[IntArray]:
    count = math.prod(shape)
    return st.lists(elements, min_size=count, max_size=count).map(lambda values: IntArray(shape, tuple(values)))


sides = st.integers(1, 6)
shapes = st.lists(sides, max_size=3).map(tuple)


def check(opcode: Opcode, operands: list[IntArray], attributes: tuple[int, ...] = ()) -> None:
    """Definition, rule and kernel agree, or the rule refuses, which must be for lack of room and nothing else."""
    infos = tuple(info_of(operand, constant=opcode is Opcode.LOOKUP) for operand in operands)
    try:
        result = infer(opcode, infos, attributes)
    except RangeError:
        assert could_overflow(opcode, infos, attributes)
        return
    wanted = define(opcode, operands, attributes)
    assert wanted.shape == result.shape
    assert result.lo <= min(wanted.values) and max(wanted.values) <= result.hi
    kept = [to_torch(operand) for operand in operands]
    got = KERNELS[opcode]([Buffer(values) for values in kept], Call(attributes, infos, result))
    assert from_torch(got.int64) == wanted
    assert [from_torch(values) for values in kept] == operands, "the kernel wrote to an operand"


def could_overflow(opcode: Opcode, infos: tuple[ValueInfo, ...], attributes: tuple[int, ...]) -> bool:
    greatest = [info.greatest_magnitude for info in infos]
    bound = {
        Opcode.ADD: lambda: sum(greatest),
        Opcode.SUB: lambda: sum(greatest),
        Opcode.MUL: lambda: greatest[0] * greatest[1],
        Opcode.RESCALE: lambda: greatest[0] + (1 << attributes[0] >> 1),
        Opcode.MATMUL_NT: lambda: infos[0].shape[-1] * greatest[0] * greatest[1],
        Opcode.REDUCE_SUM: lambda: infos[0].shape[attributes[0]] * greatest[0],
        Opcode.SCATTER_ADD: lambda: infos[0].shape[-1] * greatest[0],
        Opcode.DIV_FLOOR: lambda: greatest[0],  # INT64_MIN // 1 fits; only a magnitude of 2^63 could not
    }[opcode]()
    return bound > INT64_MAX


@pytest.mark.parametrize("opcode", [Opcode.ADD, Opcode.SUB, Opcode.MUL])
@given(data=st.data(), shape=shapes)
def test_binary_operations(opcode: Opcode, data: st.DataObject, shape: tuple[int, ...]) -> None:
    bits = data.draw(st.sampled_from((8, 31, 33, 63, 64)))
    check(opcode, [data.draw(arrays(shape, integers(bits))) for _ in range(2)])


@given(data=st.data(), shape=shapes, shift=st.integers(0, 62), bits=st.integers(1, 64))
def test_rescale_rounds_halves_up_and_saturates(
    data: st.DataObject, shape: tuple[int, ...], shift: int, bits: int
) -> None:
    half = 1 << shift >> 1
    ties = st.integers(-9, 9).map(lambda multiple: (2 * multiple + 1) * half).filter(lambda tie: abs(tie) < 2**63)
    check(Opcode.RESCALE, [data.draw(arrays(shape, st.one_of(integers(), ties)))], (shift, bits))


@given(data=st.data(), shape=shapes, bounds=st.tuples(integers(64), integers(64)).map(sorted))
def test_clamp_relu_and_positive(data: st.DataObject, shape: tuple[int, ...], bounds: list[int]) -> None:
    operand = data.draw(arrays(shape, integers(64)))
    check(Opcode.CLAMP, [operand], tuple(bounds))
    check(Opcode.RELU, [operand])
    check(Opcode.POSITIVE, [operand])


@given(data=st.data(), shape=st.lists(sides, min_size=1, max_size=3).map(tuple))
def test_reductions(data: st.DataObject, shape: tuple[int, ...]) -> None:
    operand = data.draw(arrays(shape, integers()))
    axis = data.draw(st.integers(0, len(shape) - 1))
    check(Opcode.REDUCE_SUM, [operand], (axis,))
    check(Opcode.REDUCE_MAX, [operand], (axis,))


@given(data=st.data(), shape=shapes)
def test_div_floor_of_any_dividend_by_positive_divisors(data: st.DataObject, shape: tuple[int, ...]) -> None:
    divisors = integers().map(lambda x: max(abs(x), 1))
    check(Opcode.DIV_FLOOR, [data.draw(arrays(shape, integers(64))), data.draw(arrays(shape, divisors))])


@given(data=st.data(), shape=shapes)
def test_the_square_of_a_value_is_known_to_be_positive(data: st.DataObject, shape: tuple[int, ...]) -> None:
    operand = data.draw(arrays(shape, integers(data.draw(st.integers(1, 33)))))
    info = info_of(operand)
    try:
        square = infer(Opcode.MUL, (info, info), (), same=True)
    except RangeError:
        assert info.greatest_magnitude**2 > INT64_MAX
        return
    values = define(Opcode.MUL, [operand, operand], ()).values
    assert 0 <= square.lo <= min(values) and square.hi == max(values)
    if info.lo > 0 or info.hi < 0 or 0 in operand.values:
        assert square.lo == min(values)


@given(data=st.data(), shape=shapes, size=st.integers(1, 9))
def test_lookup_and_one_hot(data: st.DataObject, shape: tuple[int, ...], size: int) -> None:
    index = data.draw(arrays(shape, st.integers(0, size - 1)))
    check(Opcode.LOOKUP, [index, data.draw(arrays((size,), integers(64)))])
    check(Opcode.ONE_HOT, [data.draw(arrays(shape, st.one_of(integers(64), st.integers(-1, size))))], (size,))


@given(data=st.data(), shape=st.lists(sides, min_size=1, max_size=4).map(tuple), length=sides)
def test_gather_along_any_axis(data: st.DataObject, shape: tuple[int, ...], length: int) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    index = data.draw(arrays((length,), st.integers(0, shape[axis] - 1)))
    check(Opcode.GATHER, [data.draw(arrays(shape, integers(64))), index], (axis,))


@given(data=st.data(), shape=st.lists(sides, min_size=1, max_size=3).map(tuple), size=st.integers(1, 8))
def test_scatter_add_bounds_its_sums_by_what_the_index_repeats(
    data: st.DataObject, shape: tuple[int, ...], size: int
) -> None:
    operand = data.draw(arrays(shape, integers(data.draw(st.sampled_from((8, 60, 64))))))
    index = data.draw(arrays(shape[-1:], st.integers(0, size - 1)))
    check(Opcode.SCATTER_ADD, [operand, index], (size,))
    # As a constant of a program the index is known, and its counts bound the sums.
    constant = Constant.of(TensorType(index.shape, 8), index.values).info
    assert constant.repeats == max(Counter(index.values).values())
    try:
        result = infer(Opcode.SCATTER_ADD, (info_of(operand), constant), (size,))
    except RangeError:
        assert constant.repeats * info_of(operand).greatest_magnitude > INT64_MAX
        return
    sums = define(Opcode.SCATTER_ADD, [operand, index], (size,)).values
    assert result.lo <= min(sums) and max(sums) <= result.hi


@given(data=st.data(), shape=st.lists(sides, min_size=1, max_size=4).map(tuple))
def test_slice_and_concat_along_any_axis(data: st.DataObject, shape: tuple[int, ...]) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    operand = data.draw(arrays(shape, integers(64)))
    start = data.draw(st.integers(0, shape[axis] - 1))
    check(Opcode.SLICE, [operand], (axis, start, data.draw(st.integers(start + 1, shape[axis]))))
    other = (*shape[:axis], data.draw(sides), *shape[axis + 1 :])
    check(Opcode.CONCAT, [operand, data.draw(arrays(other, integers(64)))], (axis,))


@given(data=st.data(), shape=shapes)
def test_select(data: st.DataObject, shape: tuple[int, ...]) -> None:
    condition = data.draw(arrays(shape, st.integers(0, 1)))
    check(Opcode.SELECT, [condition, *(data.draw(arrays(shape, integers(64))) for _ in range(2))])


@given(data=st.data(), shape=shapes)
def test_isqrt_beside_squares(data: st.DataObject, shape: tuple[int, ...]) -> None:
    beside = st.builds(lambda root, off: max(root * root + off, 0), st.integers(0, ISQRT_MAX), st.integers(-1, 1))
    check(Opcode.ISQRT, [data.draw(arrays(shape, st.one_of(integers(64).map(lambda x: max(x, ~x)), beside)))])


@given(seed=integers(64), t=integers(64), stream=st.integers(0, INT64_MAX), bits=st.integers(1, 32), shape=shapes)
def test_random_numbers_are_those_of_the_definition(
    seed: int, t: int, stream: int, bits: int, shape: tuple[int, ...]
) -> None:
    check(Opcode.RANDOM, [IntArray((), (seed,)), IntArray((), (t,))], (stream, bits, *shape))


@given(data=st.data(), shape=shapes, bounds=st.tuples(integers(64), integers(64)).map(sorted))
def test_a_check_passes_all_or_names_the_first_that_fails(
    data: st.DataObject, shape: tuple[int, ...], bounds: list[int]
) -> None:
    inside = st.integers(*bounds)
    beside = st.sampled_from([end for end in (bounds[0] - 1, *bounds, bounds[1] + 1) if abs(end) <= INT64_MAX] or [0])
    operand = data.draw(arrays(shape, st.one_of(inside, beside)))
    infos, attributes = (info_of(operand),), tuple(bounds)
    try:
        result = infer(Opcode.CHECK, infos, attributes)
    except RangeError:
        assert not any(bounds[0] <= value <= bounds[1] for value in operand.values)
        return
    got = asked(
        lambda: from_torch(KERNELS[Opcode.CHECK]([Buffer(to_torch(operand))], Call(attributes, infos, result)).int64)
    )
    failing = [place for place, value in enumerate(operand.values) if not bounds[0] <= value <= bounds[1]]
    assert got == (Overflow(failing[0], operand.values[failing[0]]) if failing else operand)
    assert got == asked(lambda: define(Opcode.CHECK, [operand], attributes))
    assert max(bounds[0], infos[0].lo) == result.lo and min(bounds[1], infos[0].hi) == result.hi


@given(data=st.data(), shape=st.lists(st.integers(1, 4), max_size=6).map(tuple))
def test_transpose_reshape_and_broadcast(data: st.DataObject, shape: tuple[int, ...]) -> None:
    shape = shape if math.prod(shape) <= 200 else shape[:3]
    operand = data.draw(arrays(shape, integers(64)))
    check(Opcode.TRANSPOSE, [operand], tuple(data.draw(st.permutations(range(len(shape))))))
    check(Opcode.RESHAPE, [operand], (*shape[::-1], *(1,) * (MAX_RANK - len(shape))))
    ones = tuple(side if data.draw(st.booleans()) else 1 for side in shape)
    check(Opcode.BROADCAST, [data.draw(arrays(ones, integers(64)))], shape)


@given(data=st.data(), batch=st.lists(st.integers(1, 3), max_size=2).map(tuple), m=sides, n=sides, k=sides)
def test_batches_of_products_are_the_same_in_float64_and_int64(
    data: st.DataObject, batch: tuple[int, ...], m: int, n: int, k: int
) -> None:
    bits = data.draw(st.sampled_from((8, 16, 24, 33)))
    operands = [data.draw(arrays((*batch, rows, k), integers(bits))) for rows in (m, n)]
    check(Opcode.MATMUL_NT, operands)
    infos = tuple(info_of(operand) for operand in operands)
    if fits_float64(*infos):
        call = Call((), infos, infer(Opcode.MATMUL_NT, infos, ()))
        got = matmul_float64([Buffer(to_torch(operand)) for operand in operands], call)
        assert from_torch(got.int64) == define(Opcode.MATMUL_NT, operands, ())


@settings(max_examples=10)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(1, 700)),
    salt=st.integers(0, 2**32),
    transposed=st.tuples(st.booleans(), st.booleans()),
)
def test_large_float64_products_at_the_limit_have_the_bits_of_int64(
    shape: tuple[int, int, int], salt: int, transposed: tuple[bool, bool]
) -> None:
    m, n, k = shape
    bits = (53 - (k - 1).bit_length()) // 2  # as wide as the bound admits
    generator = torch.Generator().manual_seed(salt)
    a, b = (torch.randint(-(1 << bits) + 1, 1 << bits, (rows, k), generator=generator) for rows in (m, n))
    a[0], b[0] = (1 << bits) - 1, -(1 << bits) + 1
    a, b = (x.t().contiguous().t() if flip else x for x, flip in zip((a, b), transposed, strict=True))
    info = [ValueInfo(tuple(x.shape), 0, -(1 << bits) + 1, (1 << bits) - 1) for x in (a, b)]
    assert fits_float64(*info)
    call = Call((), tuple(info), infer(Opcode.MATMUL_NT, info, ()))
    operands = [Buffer(a), Buffer(b)]
    assert torch.equal(matmul_float64(operands, call).int64, KERNELS[Opcode.MATMUL_NT](operands, call).int64)


@given(data=st.data(), m=sides, k=sides)
def test_a_sum_that_reaches_2_to_the_53_is_not_left_to_float64(data: st.DataObject, m: int, k: int) -> None:
    at_limit = ValueInfo((m, k), 0, 0, -(-(2**53) // k))
    below = ValueInfo((m, k), 0, 0, (2**53 - 1) // k)
    one = ValueInfo((1, k), 0, 0, 1)
    assert not fits_float64(at_limit, one)
    assert fits_float64(below, one) == (below.hi < 2**53)


@given(st.integers(INT64_MIN, INT64_MAX), st.integers(INT64_MIN, INT64_MAX))
def test_bits_for_is_the_least_number_of_bits(one: int, other: int) -> None:
    lo, hi = min(one, other), max(one, other)
    bits = bits_for(lo, hi)
    assert -(1 << (bits - 1)) <= lo and hi < 1 << (bits - 1)
    assert bits == 1 or lo < -(1 << (bits - 2)) or hi >= 1 << (bits - 2)
