"""What becomes one kernel, and what may not: a group that waits for itself could never run."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st

from proofs.exact.backend import groups
from proofs.exact.backend.graph import ELEMENTWISE, REDUCTIONS, Kind, MatmulLayouts
from proofs.exact.backend.layouts import Plain, Slices
from proofs.exact.backend.schedule import Schedule, schedule
from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.opcodes import Opcode
from proofs.exact.program import Program
from proofs.exact.tensor_type import TensorType
from tests.support.programs import mlp
from tests.support.random_programs import programs

FUSABLE = ELEMENTWISE | REDUCTIONS
Body = Callable[[ProgramBuilder, Handle], Handle]


def scheduled(program: Program) -> Schedule:
    return schedule(program, lambda a, b: MatmulLayouts(Slices(2), Slices(2), Plain(64)), FUSABLE)


def groups_of(body: Body, shape: tuple[int, ...] = (8, 16)) -> list[list[str]]:
    """The fused groups of a step m' = body(m), by names of operations."""
    b = ProgramBuilder()
    m = b.state("m", TensorType(shape, 16))
    b.update("m", b.saturate(body(b, m), bits=16))
    return [[node.opcode.name for node in group.nodes] for group in scheduled(b.build()).groups]


def test_a_chain_is_one_kernel() -> None:
    assert groups_of(lambda b, m: b.relu(b.mul(b.add(m, b.constant(1)), b.constant(3)))) == [
        ["ADD", "MUL", "RELU", "RESCALE"]
    ]


def test_what_a_row_reduction_makes_is_used_in_the_same_kernel() -> None:
    assert len(groups_of(lambda b, m: b.sub(m, b.reduce_max(m, 1)))) == 1


def test_what_a_column_reduction_makes_is_used_in_the_next_kernel() -> None:
    assert [len(group) for group in groups_of(lambda b, m: b.sub(b.mul(m, m), b.reduce_max(b.mul(m, m), 0)))] == [2, 2]


def test_a_value_and_its_transpose_are_not_read_in_the_kernel_that_makes_it() -> None:
    def with_transpose(b: ProgramBuilder, m: Handle) -> Handle:
        x = b.add(m, b.constant(1))
        return b.sub(x, b.transpose(x))

    assert groups_of(with_transpose, (4, 4)) == [["ADD"], ["SUB", "RESCALE"]]


def test_operations_around_a_product_are_not_one_kernel() -> None:
    """x joins neither side of the product that reads it and whose result meets it again."""

    def around(b: ProgramBuilder, m: Handle) -> Handle:
        x = b.add(m, b.constant(1))
        return b.add(x, b.matmul_nt(x, x))

    assert groups_of(around, (4, 4)) == [["ADD"], ["MATMUL_NT"], ["ADD", "RESCALE"]]


def test_a_mask_is_computed_where_it_is_used() -> None:
    b = ProgramBuilder()
    m = b.state("m", TensorType((8, 8), 16))
    a = b.relu(m)
    z = b.saturate(b.matmul_nt(a, a), bits=16)
    masked = b.mul(b.saturate(b.matmul_nt(z, z), bits=16), b.positive(a))
    b.update("m", masked)
    last = scheduled(b.build()).groups[-1]
    assert [node.opcode for node in last.nodes] == [Opcode.RESCALE, Opcode.POSITIVE, Opcode.MUL]


def test_an_mlp_step_is_two_kernels_for_each_product_at_most() -> None:
    program = mlp(samples=64, widths=(16, 24, 24, 8), batch=16)
    made = scheduled(program).groups
    products = sum(group.nodes[0].kind is Kind.MATMUL for group in made)
    assert products == 8
    assert sum(group.fused for group in made) <= 2 * products + 4


@settings(max_examples=40)
@given(programs(), st.sampled_from([3, 10, 4096]))
def test_every_group_runs_after_what_it_reads(program: Program, window: int) -> None:
    with patch.object(groups, "WINDOW", window):
        plan = scheduled(program)
    made: dict[int, int] = {}
    for index, group in enumerate(plan.groups):
        inside = {node.number for node in group.nodes}
        for node in group.nodes:
            for view in node.operands:
                if view.base >= program.first_op and view.base not in inside:
                    assert made[view.base] < index, "read before it is made"
            made[node.number] = index
    assert made.keys() == plan.graph.nodes.keys()


@settings(max_examples=20)
@given(programs())
def test_the_same_program_gets_the_same_groups(program: Program) -> None:
    one, two = ([[node.number for node in group.nodes] for group in scheduled(program).groups] for _ in range(2))
    assert one == two
