"""What a program must be, whoever built it; and what the builder says on the line that got it wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest

from proofs.exact import program as program_module
from proofs.exact.builder import Handle, ProgramBuilder
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
    monkeypatch.setattr(program_module, "MAX_INPUTS", 3)
    with pytest.raises(ProgramError, match="5 inputs: at most 3"):
        linear_regression()


def test_a_scale_beyond_its_bound_is_refused() -> None:
    b = ProgramBuilder()
    x = b.state("x", TensorType((), 8, 200))
    with pytest.raises(ProgramError, match="mul: a result of scale"):
        b.mul(x, x)
