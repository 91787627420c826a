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
