"""What a program must be, whoever built it; and what the builder says on the line that got it wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from proofs.exact import program as program_module
from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.encoding import decode_program, encode_program
from proofs.exact.opcodes import SPECS, Opcode
from proofs.exact.program import MAX_CONSTANT_BYTES, Constant, Input, InputKind, Op, Program, ProgramError
from proofs.exact.tensor_type import TensorError, TensorType
from tests.support.programs import linear_regression

Wrong = Callable[[ProgramBuilder, Handle, Handle], object]

REFUSED: dict[str, tuple[Wrong, str]] = {
    "a product that overflows": (
        lambda b, m, _: b.mul(b.mul(m, m), b.mul(m, m)),
        "operation 1, mul: a result in 0..7.* needs 78 bits; there are 64",
    ),
    "dot products that overflow": (
        lambda b, m, _: b.matmul_nt(b.mul(m, b.constant(2**30)), b.mul(m, b.constant(2**30))),
        "matmul_nt: sums of 4 products .* need 10[0-9] bits",
    ),
    "rows of different lengths": (
        lambda b, m, v: b.matmul_nt(m, b.transpose(v)),
        "rows of different lengths",
    ),
    "sums of different scales": (lambda b, m, v: b.add(m, v), "add: different scales: .*; rescale one"),
    "a table left below": (lambda b, m, _: b.lookup(m, b.constant([1, 2])), "lookup: index .* leaves the table of 2"),
    "a table left above": (lambda b, m, _: b.lookup(b.clamp(m, 0, 2), b.constant([1, 2])), "leaves the table of 2"),
    "a table that is not constant": (
        lambda b, m, v: b.lookup(b.clamp(m, 0, 2), b.reshape(v, (4,))),
        "must be a constant with one axis",
    ),
    "a divisor that can be zero": (lambda b, m, v: b.div_floor(m, b.relu(v)), "div_floor: the divisor .* clamp it"),
    "rows that aren't there": (
        lambda b, m, v: b.gather(m, b.clamp(b.reshape(b.rescale(v, frac=0, bits=8), (4,)), 0, 4)),
        "gather: index .* leaves the 4 places",
    ),
    "a shift the wrong way": (lambda b, m, _: b.rescale(m, frac=9, bits=8), "rescale: a shift by -1 bits"),
    "a widening the wrong way": (lambda b, m, _: b.widen(m, frac=7), "that is a rescale"),
    "rounding at the edge": (
        lambda b, m, _: b.rescale(b.data("e", TensorType((), 64)), frac=-1, bits=8),
        "rescale: rounding .* overflows 64 bits",
    ),
    "no room in a batch": (
        lambda b, m, _: b.permute(b.constant(2**62), samples=9, batch=4),
        "permute: step .* overflows",
    ),
    "a broadcast that doesn't fit": (lambda b, m, _: b.broadcast(m, (2, 4)), "does not broadcast to"),
    "another number of elements": (lambda b, m, _: b.reshape(m, (3, 5)), "another number of elements"),
    "batches of different sizes": (
        lambda b, m, _: b.matmul_nt(b.reshape(m, (2, 2, 4)), b.reshape(m, (4, 1, 4))),
        "equal batches of them",
    ),
    "a batch of one axis too many": (
        lambda b, m, _: b.matmul_nt(b.reshape(m, (1, 1, 1, 4, 4)), b.reshape(m, (1, 1, 1, 4, 4))),
        "equal batches of them",
    ),
    "vectors for matrices": (
        lambda b, m, _: b.matmul_nt(b.reshape(m, (16,)), b.reshape(m, (16,))),
        "needs two matrices",
    ),
    "an axis twice": (lambda b, m, _: b.transpose(m, (1, 1)), "no order of all axes"),
    "an axis left out": (lambda b, m, _: b.transpose(m, (0,)), "no order of all axes"),
    "a list turned": (lambda b, m, _: b.transpose(b.reshape(m, (16,))), "there are no two axes"),
    "indices of a matrix's shape": (lambda b, m, _: b.gather(m, b.constant([0], shape=(1, 1))), "a list of whole"),
    "indices that are fractions": (lambda b, m, _: b.gather(m, b.constant([0], frac=1)), "a list of whole numbers"),
    "an index beyond another axis": (
        lambda b, m, _: b.gather(b.reshape(m, (8, 2)), b.constant([2]), axis=1),
        "leaves the 2 places",
    ),
    "an axis below zero": (lambda b, m, _: b.gather(m, b.constant([0]), axis=-1), "has no axis -1"),
    "one index too few": (lambda b, m, _: b.scatter_add(m, b.constant([0, 1, 2]), 4), "one index for each of the 4"),
    "an index beyond the result": (
        lambda b, m, _: b.scatter_add(m, b.constant([0, 1, 2, 3]), 3),
        "leaves the 3 places",
    ),
    "a scattered scalar": (
        lambda b, m, _: b.scatter_add(b.constant(1), b.constant([0]), 1),
        "has no axis -1",
    ),
    "sums that overflow where they meet": (
        lambda b, m, _: b.scatter_add(b.data("e", TensorType((4,), 63)), b.constant([0, 1, 0, 0]), 2),
        "scatter_add: a result in .* needs 65 bits",
    ),
    "an empty stretch": (lambda b, m, _: b.slice(m, 0, 2, 2), "is no stretch"),
    "a stretch from before": (lambda b, m, _: b.slice(m, 0, -1, 2), "is no stretch"),
    "a stretch beyond the end": (lambda b, m, _: b.slice(m, 0, 2, 5), r"2\.\.5 is no stretch of an axis of 4"),
    "a stretch of a scalar": (lambda b, m, _: b.slice(b.constant(3), 0, 0, 1), "has no axis 0"),
    "joined at different scales": (lambda b, m, v: b.concat(m, v, 0), "concat: different scales"),
    "joined along the wrong axis": (
        lambda b, m, v: b.concat(m, b.rescale(b.widen(v, frac=8), frac=8, bits=30), 1),
        "differ beside axis 1",
    ),
    "joined with other axes": (lambda b, m, _: b.concat(m, b.reshape(m, (4, 2, 2)), 0), "different numbers of axes"),
    "joined scalars": (lambda b, m, _: b.concat(b.constant(1), b.constant(2), 0), "has no axis 0"),
    "a condition that may be two": (lambda b, m, _: b.select(b.clamp(m, 0, 2), m, m), "the condition is 0 or 1"),
    "a condition of another scale": (lambda b, m, _: b.select(b.clamp(m, 0, 1), m, m), "the condition is 0 or 1"),
    "a choice of scales": (lambda b, m, v: b.select(b.positive(m), m, v), "select: different scales"),
    "the root of what may be negative": (lambda b, m, _: b.isqrt(m), "isqrt: .* can be negative; clamp it"),
    "the root of an odd scale": (
        lambda b, m, _: b.isqrt(b.widen(b.relu(m), frac=9)),
        "half of its fraction bits, which are odd",
    ),
    "too many random bits": (
        lambda b, m, _: b.random(b.constant(0), stream=0, bits=33, shape=()),
        "33 random bits: 1 to 32",
    ),
    "a random stream below zero": (
        lambda b, m, _: b.random(b.constant(0), stream=-1, bits=3, shape=()),
        "stream -1",
    ),
    "random numbers of a step that is a list": (
        lambda b, m, _: b.random(b.constant([0]), stream=1, bits=3, shape=()),
        "seed and step are whole scalars",
    ),
    "a check that always fails": (lambda b, m, _: b.check(b.relu(m), -5, -1), "no element of .* is ever in -5..-1"),
    "a check of nothing": (lambda b, m, _: b.check(m, 1, 0), r"an empty range 1\.\.0"),
    "an axis too far": (lambda b, m, _: b.reduce_sum(m, 2), "has no axis 2"),
    "seven axes": (lambda b, m, _: b.broadcast(m, (1,) * 5 + (4, 4)), "at most 6 axes"),
    "a tensor of nothing": (lambda b, m, _: b.one_hot(b.rescale(m, frac=0, bits=4), 0), "without elements"),
    "an update of another scale": (lambda b, m, v: b.update("m", b.rescale(m, frac=7, bits=8)), "rescale or saturate"),
    "an update that may not fit": (lambda b, m, v: b.update("m", b.add(m, m)), "rescale or saturate"),
    "an update of data": (lambda b, m, v: b.update("v", v), "'v' is not a state tensor"),
    "two inputs of one name": (lambda b, m, v: b.data("m", TensorType((), 8)), "two inputs named 'm'"),
    "a name that isn't printable": (lambda b, m, v: b.data("a\n", TensorType((), 8)), "is not a name"),
    "a name too long": (lambda b, m, v: b.data("é" * 65, TensorType((), 8)), "is not a name"),
    "a constant of nothing": (lambda b, m, v: b.constant([]), "without values"),
    "a constant of 65 bits": (lambda b, m, v: b.constant(2**63), "needs 65 bits"),
    "a constant of another shape": (lambda b, m, v: b.constant([1, 2], shape=(3,)), "has 2 values"),
    "a handle from elsewhere": (lambda b, m, v: ProgramBuilder().relu(m), "another builder"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_the_builder_refuses_where_it_is_written_and_says_why(case: str) -> None:
    wrong, message = REFUSED[case]
    b = ProgramBuilder()
    m, v = b.state("m", TensorType((4, 4), 20, 8)), b.data("v", TensorType((1, 4), 20, 4))
    with pytest.raises((ProgramError, TensorError), match=message):
        wrong(b, m, v)


def test_a_state_without_update_and_a_second_update_are_refused() -> None:
    b = ProgramBuilder()
    m = b.state("m", TensorType((2,), 8))
    with pytest.raises(ProgramError, match="state m has no update"):
        b.build()
    b.update("m", m)
    with pytest.raises(ProgramError, match="updated twice"):
        b.update("m", m)


def test_inputs_are_ordered_by_kind_and_name_whatever_the_order_of_writing() -> None:
    b = ProgramBuilder()
    b.seed()
    for name in ("z", "b", "é", "Z"):
        b.data(name, TensorType((), 8))
    for name in ("w", "a"):
        b.update(name, b.state(name, TensorType((), 8)))
    program = b.build()
    assert [given.name for given in program.inputs] == ["a", "w", "Z", "b", "z", "é", "seed"]
    assert program.outputs == (0, 1)


def test_equal_constants_are_stored_once() -> None:
    b = ProgramBuilder()
    assert b.constant(3) is b.constant(3)
    assert b.constant(3) is not b.constant(3, frac=1)


def test_equal_operations_are_one_value_and_no_operation_is_without_effect() -> None:
    b = ProgramBuilder()
    m, t = b.state("m", TensorType((4, 4), 20, 8)), b.state("t", TensorType((), 20))

    def draw(stream: int) -> Handle:
        return b.random(t, stream=stream, bits=4, shape=(2,))

    assert b.add(m, b.constant(1, frac=8)) is b.add(m, b.constant(1, frac=8))
    assert draw(3) is draw(3) is not draw(4)
    assert b.sub(m, b.relu(m)) is not b.sub(b.relu(m), m)
    unchanged = [
        b.reshape(m, (4, 4)),
        b.transpose(m, (0, 1)),
        b.broadcast(m, (4, 4)),
        b.slice(m, 1, 0, 4),
        b.saturate(m, bits=20),
        b.widen(m, frac=8),
        b.clamp(m, -(2**19), 2**19),
        b.check(m, -(2**19), 2**19),
    ]
    assert all(same is m for same in unchanged)
    assert b.relu(b.relu(m)) is b.relu(m)
    assert b.clamp(m, -(2**19), 2**19 - 2) is not m and b.check(m, 1 - 2**19, 2**19) is not m


def test_what_no_update_needs_is_left_out_but_for_checks() -> None:
    b = ProgramBuilder()
    m = b.state("m", TensorType((4,), 20))
    b.origin = "line 1"
    unused = b.mul(b.add(m, b.constant(7)), b.constant(9))
    b.origin = "line 2"
    kept = b.relu(b.sub(m, b.constant(1)))
    b.origin = "line 3"
    checked = b.check(b.mul(m, m), 0, 1000)
    b.update("m", b.saturate(kept, bits=20))
    program = b.build()
    names = [op.opcode.name.lower() for op in program.ops]
    assert names == ["reshape", "broadcast", "sub", "relu", "mul", "check"]
    assert [constant.values for constant in program.constants] == [(1,)]
    assert unused not in b.operations() and checked in b.operations()
    assert [handle.origin for handle in b.operations()] == ["line 2"] * 4 + ["line 3"] * 2


def test_squares_are_known_to_be_positive_in_every_form() -> None:
    b = ProgramBuilder()
    m = b.state("m", TensorType((4,), 8))
    square = b.mul(m, m)
    assert (square.lo, square.hi) == (0, 128 * 128)
    assert b.mul(m, b.sub(m, b.constant(0))).lo < 0, "only a value and itself, not equal numbers"
    b.update("m", b.isqrt(b.clamp(square, 0, 127 * 127)))
    assert [info.lo for info in decode_program(encode_program(b.build())).values] == [-128, 0, 0, 0]


def test_a_constant_index_bounds_the_sums_that_it_makes() -> None:
    b = ProgramBuilder()
    m = b.state("m", TensorType((3, 6), 8))
    nowhere_thrice = b.scatter_add(m, b.constant([0, 1, 0, 3, 1, 2]), 4)
    assert (nowhere_thrice.lo, nowhere_thrice.hi) == (2 * -128, 2 * 127)
    index = b.clamp(b.reshape(b.slice(m, 0, 0, 1), (6,)), 0, 3)
    anywhere = b.scatter_add(m, index, 4)
    assert (anywhere.lo, anywhere.hi) == (6 * -128, 6 * 127)
    assert b.scatter_add(b.positive(m), b.constant([0] * 6), 1).lo == 0


def test_constants_are_bytes_of_the_least_width() -> None:
    wide = ProgramBuilder().constant(list(range(-125_000, 125_000)))
    assert isinstance(wide.source, Constant)
    assert len(wide.source.data) == 4 * 250_000
    assert (wide.lo, wide.hi, wide.source.values[7]) == (-125_000, 124_999, -124_993)
    assert wide.source == Constant.of(wide.source.type, range(-125_000, 125_000))
    assert not wide.source.array().flags.writeable


def test_a_program_of_the_same_calls_has_the_same_root_and_any_change_another() -> None:
    roots = [linear_regression().root(), linear_regression(batch=9).root(), linear_regression(features=4).root()]
    assert linear_regression().root() == roots[0]
    assert len(set(roots)) == 3


PROGRAM = linear_regression()
FORGED: dict[str, tuple[Callable[[], Program], str]] = {
    "inputs out of order": (lambda: replace(PROGRAM, inputs=PROGRAM.inputs[::-1]), "in order of kind and name"),
    "a name twice": (lambda: replace(PROGRAM, inputs=(PROGRAM.inputs[0], *PROGRAM.inputs)), "names of their own"),
    "no state": (
        lambda: Program((Input("x", InputKind.DATA, TensorType((), 8)),), (), (), ()),
        "without state has nothing to compute",
    ),
    "a seed of another type": (
        lambda: replace(PROGRAM, inputs=(*PROGRAM.inputs[:-1], replace(PROGRAM.inputs[-1], type=TensorType((), 63)))),
        "the seed input is",
    ),
    "an operand not yet computed": (
        lambda: replace(PROGRAM, ops=PROGRAM.ops[::-1]),
        "operation 0 reads values .* do not exist yet",
    ),
    "a missing output": (lambda: replace(PROGRAM, outputs=PROGRAM.outputs[:1]), "1 outputs for 2 state tensors"),
    "an output that doesn't exist": (
        lambda: replace(PROGRAM, outputs=(0, 10**6)),
        "1000000, which does not exist",
    ),
    "an output of another shape": (lambda: replace(PROGRAM, outputs=PROGRAM.outputs[::-1]), "its new value"),
    "an output that may not fit": (
        lambda: replace(PROGRAM, inputs=(replace(PROGRAM.inputs[0], type=TensorType((), 39)), *PROGRAM.inputs[1:])),
        "saturate it",
    ),
    "an attribute beyond 64 bits": (
        lambda: replace(PROGRAM, ops=(*PROGRAM.ops, Op(Opcode.CLAMP, (0,), (0, 2**63)))),
        "beyond 64 bits",
    ),
    "an attribute too many": (
        lambda: replace(PROGRAM, ops=(*PROGRAM.ops, Op(Opcode.RELU, (0,), (0,)))),
        "takes 0",
    ),
    "an operand too few": (lambda: replace(PROGRAM, ops=(*PROGRAM.ops, Op(Opcode.ADD, (0,)))), "takes 2 operands"),
    "constants of too few bytes": (
        lambda: replace(PROGRAM, constants=(Constant(TensorType((2,), 16), b"abc"),)),
        "has 3 bytes",
    ),
    "a constant of bytes out of range": (
        lambda: Program((), (Constant(TensorType((), 4), b"\x08"),), (), ()),
        "in 8..8",
    ),
    "a shape and a stream too few": (
        lambda: replace(PROGRAM, ops=(*PROGRAM.ops, Op(Opcode.RANDOM, (0, 0), (1,)))),
        "takes 2 attributes and shape, has 1",
    ),
    "a transpose of the old form": (
        lambda: replace(PROGRAM, ops=(*PROGRAM.ops, Op(Opcode.TRANSPOSE, (1,)))),
        "no order of all axes",
    ),
    "constants too large": (
        lambda: replace(
            PROGRAM, constants=(Constant(TensorType((MAX_CONSTANT_BYTES + 1,), 8), bytes(MAX_CONSTANT_BYTES + 1)),)
        ),
        "bytes of constants",
    ),
}


@pytest.mark.parametrize("case", FORGED, ids=str)
def test_a_program_cannot_be_built_wrong_by_hand(case: str) -> None:
    forge, message = FORGED[case]
    with pytest.raises(ProgramError, match=message):
        forge()


def test_a_constant_beyond_its_type_is_refused() -> None:
    with pytest.raises(ProgramError, match=r"values in 0\.\.128"):
        Constant.of(TensorType((2,), 8), (0, 128))


@pytest.mark.parametrize(
    ("shape", "bits", "frac"),
    [((0,), 8, 0), ((2, -1), 8, 0), ((1,) * 7, 8, 0), ((2**16, 2**15), 8, 0), ((), 0, 0), ((), 65, 0), ((), 8, 256)],
)
def test_a_type_that_cannot_be_is_refused(shape: tuple[int, ...], bits: int, frac: int) -> None:
    with pytest.raises(TensorError):
        TensorType(shape, bits, frac)


@pytest.mark.parametrize(("bits", "width"), [(1, 1), (8, 1), (9, 2), (16, 2), (17, 4), (32, 4), (33, 8), (64, 8)])
def test_an_element_takes_the_least_width_that_holds_it(bits: int, width: int) -> None:
    assert TensorType((), bits).width == width


def test_the_closed_set_is_numbered_without_a_gap() -> None:
    assert sorted(Opcode) == list(range(1, len(SPECS) + 1))
    assert set(SPECS) == set(Opcode)


def test_programs_can_be_read_and_their_roots_checked_without_torch() -> None:
    program = (
        "import sys, proofs.exact.builder, proofs.exact.encoding, proofs.exact.reference, proofs.exact.permutation;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_programs_beyond_the_limits_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_module, "MAX_OPS", 3)
    with pytest.raises(ProgramError, match="operations: at most 3"):
        linear_regression()
    monkeypatch.undo()
    monkeypatch.setattr(program_module, "MAX_CONSTANTS", 1)
    with pytest.raises(ProgramError, match="constants: at most 1"):
        linear_regression()
    monkeypatch.setattr(program_module, "MAX_INPUTS", 3)
    with pytest.raises(ProgramError, match="5 inputs: at most 3"):
        linear_regression()


def test_a_scale_beyond_its_bound_is_refused() -> None:
    b = ProgramBuilder()
    x = b.state("x", TensorType((), 8, 200))
    with pytest.raises(ProgramError, match="mul: a result of scale"):
        b.mul(x, x)
