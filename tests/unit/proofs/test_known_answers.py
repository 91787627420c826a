"""A kernel that is wrong on this machine is found out before it is used, and replaced by something slower and right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from proofs.exact import kernels, known_answers, unfused
from proofs.exact.execute import run_unit
from proofs.exact.kernels import Buffer, Call
from proofs.exact.known_answers import QUESTIONS, answers, float64_matmul_is_exact, from_definition, trusted_kernels
from proofs.exact.opcodes import Opcode
from proofs.exact.overflow import Overflow
from proofs.exact.settings import Settings
from proofs.exact.unfused import UnfusedPlan
from tests.support.programs import mlp, mlp_data, mlp_state

UNFUSED = Settings(fuse=False)


@pytest.fixture(autouse=True)
def fresh_checks() -> Iterator[None]:
    """Each test does its own start-up check, and leaves none behind."""
    for check in (trusted_kernels, float64_matmul_is_exact):
        check.cache_clear()
    yield
    for check in (trusted_kernels, float64_matmul_is_exact):
        check.cache_clear()


def test_every_kernel_answers_on_this_machine() -> None:
    assert trusted_kernels() == kernels.KERNELS
    assert float64_matmul_is_exact()


def truncating_rescale(operands: Sequence[Buffer], call: Call) -> Buffer:
    """A shift that forgets to round."""
    shift, bits = call.attributes
    return Buffer((operands[0].int64 >> shift).clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1))


def truncating_division(operands: Sequence[Buffer], call: Call) -> Buffer:
    """Rounds towards zero, as C does and Python does not."""
    return Buffer(torch.div(operands[0].int64, operands[1].int64, rounding_mode="trunc"))


def narrow_product(operands: Sequence[Buffer], call: Call) -> Buffer:
    """A product that went through 24 bits of mantissa."""
    return Buffer((operands[0].float64.float() @ operands[1].float64.float().mT).to(torch.int64))


def strict_relu(operands: Sequence[Buffer], call: Call) -> Buffer:
    """Not defined for what it was given."""
    raise RuntimeError("not implemented for 'Long'")


def root_without_correction(operands: Sequence[Buffer], call: Call) -> Buffer:
    """What float64 says, one too great just below large squares."""
    return Buffer(operands[0].int64.double().sqrt().to(torch.int64))


def root_that_overflows(operands: Sequence[Buffer], call: Call) -> Buffer:
    """Corrected by a square that may leave 63 bits."""
    x = operands[0].int64
    r = x.double().sqrt().to(torch.int64)
    r -= (r * r > x).to(torch.int64)
    return Buffer(r + ((r + 1) * (r + 1) <= x).to(torch.int64))


def scatter_that_forgets(operands: Sequence[Buffer], call: Call) -> Buffer:
    """The last of those that share a place wins."""
    a, index = (operand.int64 for operand in operands)
    return Buffer(torch.zeros(call.result.shape, dtype=torch.int64).scatter(-1, index.expand(a.shape), a))


def gather_along_the_first_axis(operands: Sequence[Buffer], call: Call) -> Buffer:
    """As before there was an axis."""
    a, index = (operand.int64 for operand in operands)
    return Buffer(a.index_select(0, index))


def transpose_the_other_way(operands: Sequence[Buffer], call: Call) -> Buffer:
    """Takes where an axis goes for where it comes from: the same for two axes."""
    back = sorted(range(len(call.attributes)), key=call.attributes.__getitem__)
    return Buffer(operands[0].int64.permute(back))


def choose_the_other(operands: Sequence[Buffer], call: Call) -> Buffer:
    condition, a, b = (operand.int64 for operand in operands)
    return Buffer(torch.where(condition == 0, a, b))


def random_with_signed_shifts(operands: Sequence[Buffer], call: Call) -> Buffer:
    """The right words, cut with copies of their sign."""
    bits = call.attributes[1]
    return Buffer((kernels.KERNELS[Opcode.RANDOM](operands, call).int64 << (64 - bits)) >> (64 - bits))


def check_of_nothing(operands: Sequence[Buffer], call: Call) -> Buffer:
    return operands[0]


def check_that_names_the_last(operands: Sequence[Buffer], call: Call) -> Buffer:
    lo, hi = call.attributes
    flat = operands[0].int64.reshape(-1)
    outside = torch.nonzero((flat < lo) | (flat > hi))
    if len(outside):
        raise Overflow(int(outside[-1]), int(flat[outside[-1]]))
    return operands[0]


@pytest.mark.parametrize(
    ("opcode", "wrong"),
    [
        (Opcode.ISQRT, root_without_correction),
        (Opcode.ISQRT, root_that_overflows),
        (Opcode.SCATTER_ADD, scatter_that_forgets),
        (Opcode.GATHER, gather_along_the_first_axis),
        (Opcode.TRANSPOSE, transpose_the_other_way),
        (Opcode.SELECT, choose_the_other),
        (Opcode.RANDOM, random_with_signed_shifts),
        (Opcode.CHECK, check_of_nothing),
        (Opcode.CHECK, check_that_names_the_last),
        (Opcode.MATMUL_NT, narrow_product),
    ],
)
def test_the_questions_find_a_wrong_kernel(opcode: Opcode, wrong: kernels.Kernel) -> None:
    assert not all(answers(opcode, wrong, question) for question in QUESTIONS[opcode])


@pytest.mark.parametrize(
    ("opcode", "wrong"),
    [
        (Opcode.RESCALE, truncating_rescale),
        (Opcode.DIV_FLOOR, truncating_division),
        (Opcode.MATMUL_NT, narrow_product),
        (Opcode.RELU, strict_relu),
    ],
)
def test_a_wrong_kernel_is_found_and_the_roots_stay_right(
    opcode: Opcode, wrong: kernels.Kernel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program, data = mlp(samples=12, widths=(5, 4, 3), batch=4), mlp_data(12, 5, 3)
    right = run_unit(program, mlp_state(program), data, 9, 2, 1, settings=UNFUSED)
    trusted_kernels.cache_clear()
    monkeypatch.setitem(kernels.KERNELS, opcode, wrong)
    # The float64 product passes its own check, so without this the int64 one would not be asked.
    monkeypatch.setattr(unfused, "float64_matmul_is_exact", lambda: False)
    assert trusted_kernels()[opcode] is not wrong
    assert run_unit(program, mlp_state(program), data, 9, 2, 1, settings=UNFUSED) == right
    assert opcode.name.lower() in caplog.text


def test_without_exact_float64_products_int64_gives_the_same_roots(monkeypatch: pytest.MonkeyPatch) -> None:
    program, data = mlp(samples=12, widths=(5, 4, 3), batch=4), mlp_data(12, 5, 3)
    right = run_unit(program, mlp_state(program), data, 9, 3, 1, settings=UNFUSED)
    assert kernels.matmul_float64 in {step.kernel for step in UnfusedPlan.of(program).instructions}
    monkeypatch.setattr(unfused, "float64_matmul_is_exact", lambda: False)
    assert kernels.matmul_float64 not in {step.kernel for step in UnfusedPlan.of(program).instructions}
    assert run_unit(program, mlp_state(program), data, 9, 3, 1, settings=UNFUSED) == right


def test_a_blas_that_rounds_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = torch.Tensor.__matmul__

    def rounding(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return exact(a.float(), b.float()).double()

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounding)
    assert not float64_matmul_is_exact()


@pytest.mark.parametrize("opcode", Opcode, ids=lambda opcode: opcode.name.lower())
def test_definitions_answer_their_own_questions_as_kernels(opcode: Opcode) -> None:
    assert all(answers(opcode, from_definition(opcode), question) for question in QUESTIONS[opcode])
    assert known_answers.QUESTIONS.keys() == kernels.KERNELS.keys()
