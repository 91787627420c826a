"""Generated kernels compute what the definitions say: shapes and values where vector code goes wrong, one or two
threads, every kind of product. Whole random programs: tests/property/proofs/test_random_programs.py.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from proofs.exact.backend import steps
from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.known_answers import from_torch, noise, to_torch
from proofs.exact.opcodes import Opcode
from proofs.exact.plan import Plan
from proofs.exact.program import Program
from proofs.exact.reference import reference_step
from proofs.exact.settings import Settings
from proofs.exact.tensor import ExactTensor, TensorType

Body = Callable[[ProgramBuilder, Handle], Handle]
SHAPES = ((), (1,), (7,), (64,), (3, 1), (1, 5), (5, 64), (4, 65), (2, 3, 17), (2, 2, 3, 16), (33, 2))


@pytest.fixture(autouse=True)
def small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even small kernels are shared out among threads."""
    monkeypatch.setattr(steps, "LEAST_SHARE", 1)


def program_of(body: Body, shape: tuple[int, ...], bits: int) -> Program:
    """A program whose state `m` is read and kept, and whose state `out` becomes the body's result."""
    probe = ProgramBuilder()
    result = body(probe, probe.state("m", TensorType(shape, bits))).info.type
    b = ProgramBuilder()
    m = b.state("m", TensorType(shape, bits))
    b.state("out", result)
    b.update("m", m)
    b.update("out", body(b, m))
    return b.build()


def check(program: Program, values: dict[str, torch.Tensor], *, settings: tuple[Settings, ...] = ()) -> None:
    """Fused with one and two threads, and on torch: all as the reference."""
    state = {name: ExactTensor(type_, values[name]) for name, type_ in program.state_types.items()}
    integers = {name: from_torch(tensor.values.long()) for name, tensor in state.items()}
    want = reference_step(program, integers, {}, 5)
    for each in settings or (Settings(), Settings(threads=2), Settings(threads=3), Settings(fuse=False)):
        plan = Plan.of(program, each)
        assert (plan.fused is not None) == each.fuse
        after = plan.run(state, plan.bind({}, 5))
        assert {name: from_torch(tensor.values.long()) for name, tensor in after.items()} == want, each


def extremes(type_: TensorType) -> torch.Tensor:
    """Scattered values with both ends of the type among them."""
    return to_torch(noise(type_.shape, type_.lo, type_.hi, len(type_.shape)))


def check_body(body: Body, shape: tuple[int, ...], bits: int) -> None:
    program = program_of(body, shape, bits)
    check(program, {name: extremes(type_) for name, type_ in program.state_types.items()})


def test_a_negative_value_is_shifted_by_the_whole_width_of_its_register() -> None:
    """-1 + 2^31 fits 32 bits, and a shift of 32 bits by 32 is anything."""

    def body(b: ProgramBuilder, m: Handle) -> Handle:
        down = b._op(Opcode.RESCALE, b.clamp(m, -(2**31), -1), attributes=(32, 8))
        return b.reshape(b.concat(down, b.clamp(down, 0, 5), axis=0), (2, 1, 37))

    check_body(body, (1, 37), 32)


def test_a_short_row_is_not_written_beyond_its_end() -> None:
    """LLVM 22.1 stores eight bytes for the ninth where 64 bits are narrowed under a mask: another thread's row."""

    def body(b: ProgramBuilder, m: Handle) -> Handle:
        divisor = b.clamp(b.rescale(m, frac=m.frac - 41, bits=16), 1, 65536)
        product = b.mul(b.rescale(m, frac=m.frac - 11, bits=46), b.widen(divisor, frac=divisor.frac))
        least = b.sub(product, b.constant(1, frac=product.frac))
        return b.saturate(b.div_floor(least, divisor), bits=1)

    check_body(body, (40, 9), 57)
    check_body(body, (3, 9), 57)


def softmax(b: ProgramBuilder, m: Handle) -> Handle:
    """As a compiled step has it: the greatest, a table, a sum, a division."""
    axis = len(m.shape) - 1
    table = b.constant([(1 << 16) >> min(i // 4, 20) for i in range(256)], frac=16)
    below = b.clamp(b.rescale(b.sub(b.reduce_max(m, axis), m), frac=m.frac - 4, bits=40), 0, 255)
    e = b.lookup(below, table)
    total = b.clamp(b.reduce_sum(e, axis), 1, 2**40)
    return b.div_floor(b.widen(e, frac=30), total)


def layer_norm(b: ProgramBuilder, m: Handle) -> Handle:
    """Mean and root mean square of rows, three passes over each."""
    axis = len(m.shape) - 1
    n = b.constant(m.shape[axis])
    mean = b.div_floor(b.reduce_sum(m, axis), n)
    centred = b.sub(m, mean)
    square = b.mul(centred, centred)
    root = b.isqrt(b.clamp(b.div_floor(b.reduce_sum(square, axis), n), 1, 2**50))
    return b.div_floor(b.mul(centred, b.constant(1 << 12)), root)


def softmax_backward(b: ProgramBuilder, m: Handle) -> Handle:
    """A second reduction over what the first made, and a large value in between that is worth keeping."""
    axis = len(m.shape) - 1
    p = softmax(b, m)
    dot = b.reduce_sum(b.mul(b.rescale(p, frac=p.frac - 6, bits=12), b.rescale(m, frac=m.frac, bits=16)), axis)
    return b.sub(b.mul(p, b.constant(3)), b.mul(b.rescale(dot, frac=p.frac, bits=30), b.constant(3)))


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape], ids=str)
@pytest.mark.parametrize("body", [softmax, layer_norm], ids=lambda body: body.__name__)
def test_reductions_along_a_row_stay_in_one_kernel_and_are_exact(body: Body, shape: tuple[int, ...]) -> None:
    check_body(body, shape, 18)


def test_a_softmax_with_its_backward_pass_is_one_kernel() -> None:
    b = ProgramBuilder()
    m = b.state("m", TensorType((6, 37), 18, 8))
    b.update("m", b.rescale(softmax_backward(b, m), frac=8, bits=18))
    program = b.build()
    fused = Plan.of(program).fused
    assert fused is not None and len(fused.steps) == 1
    check(program, {"m": extremes(TensorType((6, 37), 18, 8))})


@pytest.mark.parametrize("bits", [1, 8, 9, 16, 31, 32, 33, 52, 62])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_elementwise_chains_at_the_ends_of_every_width(shape: tuple[int, ...], bits: int) -> None:
    def chain(b: ProgramBuilder, m: Handle) -> Handle:
        half = b.rescale(m, frac=-1, bits=bits)
        flag = b.positive(b.sub(m, b.constant(0)))
        chosen = b.select(flag, b.relu(half), b.clamp(half, -(2**20), 2**40))
        return b.rescale(b.add(chosen, half), frac=-4, bits=max(bits - 3, 2))

    check_body(chain, shape, bits)


@pytest.mark.parametrize("bits", [16, 31, 52, 60, 62, 63])
def test_division_and_roots_of_any_width(bits: int) -> None:
    def quotient(b: ProgramBuilder, m: Handle) -> Handle:
        divisor = b.clamp(b.rescale(m, frac=-(bits // 3), bits=bits), 1, 2 ** (bits - 1) - 1)
        root = b.isqrt(b.clamp(m, 0, 2**63 - 1))
        return b.add(b.rescale(b.div_floor(m, divisor), frac=0, bits=62), b.rescale(root, frac=0, bits=40))

    def by_itself(b: ProgramBuilder, m: Handle) -> Handle:
        return b.div_floor(m, b.clamp(m, 1, 2**63 - 1))

    check_body(quotient, (5, 33), bits)
    check_body(by_itself, (5, 33), bits)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", ["sum", "max"])
def test_reductions_along_any_axis_with_their_operand_stored_too(axis: int, kind: str) -> None:
    b = ProgramBuilder()
    m = b.state("m", TensorType((4, 5, 33), 30))
    doubled = b.mul(m, b.constant(-3))
    folded = b.reduce_sum(doubled, axis) if kind == "sum" else b.reduce_max(doubled, axis)
    b.state("out", folded.info.type)
    b.update("out", folded)
    b.update("m", b.saturate(b.add(doubled, m), bits=30))
    program = b.build()
    check(program, {name: extremes(type_) for name, type_ in program.state_types.items()})


def through_views(b: ProgramBuilder, m: Handle) -> Handle:
    """Heads split off and moved, a slice, a reshape of what was transposed: read where it lies."""
    heads = b.transpose(b.reshape(b.add(m, b.constant(1)), (2, 3, 4, 8)), (0, 2, 1, 3))
    some = b.slice(heads, 2, 1, 3)
    flat = b.reshape(b.transpose(some, (0, 2, 1, 3)), (4, 32))
    return b.add(b.mul(flat, b.constant(5)), b.reshape(b.reduce_sum(flat, 0), (1, 32)))


def broadcasts(b: ProgramBuilder, m: Handle) -> Handle:
    """Along the first, the middle and the last axis."""
    first = b.broadcast(b.slice(m, 0, 1, 2), m.shape)
    middle = b.broadcast(b.reduce_max(m, 1), m.shape)
    last = b.broadcast(b.slice(m, 2, 0, 1), m.shape)
    return b.sub(b.add(first, middle), last)


def one_hots(b: ProgramBuilder, m: Handle) -> Handle:
    """Classes within and without."""
    return b.add(b.one_hot(b.clamp(m, -1, 9), 7), b.constant(2))


def a_column(b: ProgramBuilder, m: Handle) -> Handle:
    """A transposed view: no stride of 1 on the inside."""
    return b.rescale(b.sub(b.transpose(m), b.constant(3)), frac=-3, bits=20)


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        (through_views, (6, 32)),
        (broadcasts, (3, 4, 17)),
        (broadcasts, (2, 1, 1)),
        (one_hots, (5, 3)),
        (one_hots, ()),
        (a_column, (9, 19)),
        (a_column, (1, 19)),
    ],
    ids=lambda case: case.__name__ if callable(case) else str(case),
)
def test_views_are_read_in_place(body: Body, shape: tuple[int, ...]) -> None:
    check_body(body, shape, 24)


def test_random_numbers_are_those_of_the_definition() -> None:
    b = ProgramBuilder()
    t = b.state("t", TensorType((), 20))
    drawn = b.random(t, stream=3, bits=31, shape=(3, 5, 7))
    b.state("out", drawn.info.type)
    b.update("out", drawn)
    b.update("t", b.rescale(b.add(t, b.constant(1)), frac=0, bits=20))
    program = b.build()
    check(program, {"t": torch.tensor(77), "out": torch.zeros(3, 5, 7, dtype=torch.int64)})


@pytest.mark.parametrize("matmul", ["float64", "int64", "int8", "auto"])
@pytest.mark.parametrize("bits", [8, 16, 22])
def test_operations_around_products_read_and_write_their_planes(matmul: str, bits: int) -> None:
    b = ProgramBuilder()
    m = b.state("m", TensorType((18, 33), 30))
    a = b.clamp(b.rescale(m, frac=bits - 30, bits=bits), 2**7 - 2 ** (bits - 1), 2 ** (bits - 1) - 2**7)
    product = b.matmul_nt(a, a)
    scaled = b.rescale(product, frac=product.frac - bits, bits=bits)
    back = b.matmul_nt(b.transpose(scaled), b.transpose(a))
    biased = b.rescale(b.add(product, b.constant(12345, frac=product.frac)), frac=product.frac - 20, bits=20)
    for name, value in (("biased", biased), ("scaled", scaled), ("back", back)):
        b.state(name, value.info.type)
        b.update(name, value)
    b.update("m", m)
    program = b.build()
    check(
        program,
        {name: extremes(type_) for name, type_ in program.state_types.items()},
        settings=(Settings(matmul=matmul), Settings(matmul=matmul, threads=2)),
    )


def test_a_plane_beyond_the_width_of_the_result_counts_for_nothing() -> None:
    """Three slices by three leave a plane of shift 32, and a sum of two products may fit 32 bits."""
    b = ProgramBuilder()
    m = b.state("m", TensorType((9, 2), 17))
    a = b.clamp(m, -32767, 32767)
    product = b.relu(b.matmul_nt(a, a))
    b.state("out", product.info.type)
    b.update("out", product)
    b.update("m", m)
    program = b.build()
    values = {name: extremes(type_) for name, type_ in program.state_types.items()}
    check(program, values, settings=(Settings(matmul="int8"), Settings(matmul="float64")))
