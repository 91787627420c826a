"""What guards every backend: whole programs, each computed twice, by the specification and by what is meant to be fast.

Any program that tests/support/random_programs.py can write is run for three steps from states full of extremes, and
after each step every state tensor must be, bit for bit, what the reference interpreter (the definitions on Python
integers) says; where a CHECK fails, both must end at the same step, naming the same operation, element and value. This
holds for the torch kernels one by one and for the fused backend with each kind of matrix product and with two threads,
so a wrong alias, a buffer written over too early, a group computed in the wrong order, a width chosen too small or a
tail of a row left out shows up here. The reference asserts as well that no value leaves the interval that the static
analysis promised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from proofs.exact.backend import jit, steps
from proofs.exact.definitions import IntArray
from proofs.exact.encoding import decode_program, encode_program
from proofs.exact.execute import Overflowed, run_unit
from proofs.exact.known_answers import from_torch
from proofs.exact.opcodes import Opcode
from proofs.exact.overflow import Overflow
from proofs.exact.plan import Plan
from proofs.exact.program import Program
from proofs.exact.reference import reference_step
from proofs.exact.settings import Settings
from proofs.exact.state import State
from proofs.exact.tensor_type import MAX_RANK
from tests.support.random_programs import LONG_ELEMENTS, LONG_SIDES, hostile_state, programs

STEPS = 3
Integers = dict[str, IntArray]


def integers(state: State) -> Integers:
    return {name: from_torch(tensor.values.long()) for name, tensor in state.items()}


def wanted(program: Program, state: Integers, data: Integers, seed: int) -> tuple[list[Integers], Overflow | None]:
    """The states that the specification gives, and how it ends early if it does."""
    states: list[Integers] = []
    for _ in range(STEPS):
        try:
            state = reference_step(program, state, data, seed)
        except Overflow as overflow:
            return states, overflow
        states.append(state)
    return states, None


def agree(program: Program, seed: int, backends: tuple[Settings, ...]) -> None:
    state, data = hostile_state(program.state_types, seed), hostile_state(program.data_types, seed + 1)
    states, overflow = wanted(program, integers(state), integers(data), seed)
    for backend in backends:
        plan = Plan.of(program, backend)
        assert (plan.fused is not None) == backend.fuse, "this machine has no fused kernels"
        seen: list[Integers] = []
        end = None
        try:
            run_unit(
                program,
                state,
                data,
                seed,
                STEPS,
                STEPS,
                on_step=lambda _, after, seen=seen: seen.append(integers(after)),  # type: ignore[misc]
                plan=plan,
            )
        except Overflowed as ended:
            end = Overflow(ended.element, ended.value, ended.operation)
            assert (ended.step, integers(ended.state)) == (len(seen), seen[-1] if seen else integers(state))
        assert seen == states, f"another state after step {len(seen)} with {backend}"
        assert end == overflow, f"another end with {backend}"


@settings(max_examples=60)
@given(programs(), st.integers(0, 2**62))
def test_torch_kernels_run_any_program_as_the_reference_says(program: Program, seed: int) -> None:
    agree(program, seed, (Settings(fuse=False),))


FUSED = (
    Settings(),
    Settings(matmul="float64"),
    Settings(matmul="int64"),
    Settings(matmul="int8"),
    Settings(matmul="int8", threads=2),
)


@pytest.fixture(scope="module", autouse=True)
def small_shares_and_no_cache() -> Iterator[None]:
    """Where there are two threads, even small kernels are shared out between them. Kernels that never come again are
    not kept on disk."""
    fresh = cache(lambda: jit.Compiler(None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "LEAST_SHARE", 1)
        patch.setattr(jit, "compiler", fresh)
        yield


@settings(max_examples=30)
@given(programs(), st.integers(0, 2**62), st.sampled_from(FUSED))
def test_fused_backend_runs_any_program_as_the_reference_says(program: Program, seed: int, backend: Settings) -> None:
    agree(program, seed, (backend,))


def end_of(program: Program, seed: int, backend: Settings) -> tuple[State, int, Overflow | None]:
    """The last state, after how many steps, and how the run ended early if it did."""
    state, data = hostile_state(program.state_types, seed), hostile_state(program.data_types, seed + 1)
    try:
        run = run_unit(program, state, data, seed, STEPS, STEPS, plan=Plan.of(program, backend))
    except Overflowed as ended:
        return ended.state, ended.step, Overflow(ended.element, ended.value, ended.operation)
    return run.final_state, STEPS, None


@settings(max_examples=10)
@given(programs(sides=LONG_SIDES, most_elements=LONG_ELEMENTS), st.integers(0, 2**62), st.sampled_from(FUSED))
def test_fused_backend_runs_long_rows_as_the_torch_kernels_do(program: Program, seed: int, backend: Settings) -> None:
    assert end_of(program, seed, backend) == end_of(program, seed, Settings(fuse=False))


@settings(max_examples=30)
@given(programs())
def test_any_program_survives_its_bytes(program: Program) -> None:
    encoded = encode_program(program)
    assert decode_program(encoded) == program
    assert encode_program(decode_program(encoded)) == encoded


@pytest.fixture(scope="module")
def drawn() -> list[Program]:
    """Some programs, the same every time."""
    found: list[Program] = []

    @settings(max_examples=60, derandomize=True, database=None, phases=[Phase.generate])
    @given(programs())
    def collect(program: Program) -> None:
        found.append(program)

    collect()
    return found


def test_the_programs_drawn_use_every_operation_and_widths_of_every_kind(drawn: list[Program]) -> None:
    opcodes = Counter(op.opcode for program in drawn for op in program.ops)
    assert opcodes.keys() == set(Opcode)
    assert min(opcodes.values()) >= 5, opcodes
    values = [info for program in drawn for info in program.values[program.first_op :]]
    widths = Counter(next(width for width in (8, 16, 32, 53, 64) if info.bits <= width) for info in values)
    assert min(widths.values()) >= 25 and len(widths) == 5, widths
    ranks = {len(info.shape) for info in values}
    assert ranks >= set(range(5)) and max(ranks) == MAX_RANK
    assert sum(info.elements % 8 != 0 and info.elements > 8 for info in values) > len(values) // 8


def test_the_programs_drawn_run_all_steps_or_overflow_somewhere(drawn: list[Program]) -> None:
    ends = []
    for program in drawn:
        state, data = hostile_state(program.state_types, 1), hostile_state(program.data_types, 2)
        states, overflow = wanted(program, integers(state), integers(data), 3)
        ends.append((len(states), overflow is not None))
    assert sum(done == STEPS for done, _ in ends) >= len(drawn) // 2
    assert any(overflowed for _, overflowed in ends)
