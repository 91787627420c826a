"""What a compiled step costs: sizes, counts, and the measured time of a step on this machine."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from proofs.exact.compiler.errors import Origin
from proofs.exact.compiler.trace import LeafKind
from proofs.exact.encoding import encode_program
from proofs.exact.opcodes import Opcode
from proofs.exact.plan import Plan, peak_bytes
from proofs.exact.program import Program

if TYPE_CHECKING:
    from proofs.exact.compiler.compiled import CompiledStep

MEASURED_STEPS = 2


@dataclass(frozen=True, slots=True)
class Report:
    parameters: int
    """Elements of all parameters."""
    operations: int
    operations_by_opcode: Mapping[str, int]
    macs: int
    """Multiply-accumulates of all matrix products of one step."""
    widest_bits: int
    """Of all intermediate values; 63 is the most there may be."""
    widest_opcode: str
    widest_origin: Origin
    state_bytes: int
    data_bytes: int
    peak_bytes: int
    """Upper bound of what one step holds at once."""
    constant_bytes: int
    program_bytes: int
    seconds_per_step: float | None
    """On this machine, with its threads; None where it was not measured."""

    def as_data(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def report_of(compiled: CompiledStep, *, measure: bool) -> Report:
    program = compiled.program
    by_opcode = Counter(op.opcode.name.lower() for op in program.ops)
    place = max(range(len(program.ops)), key=lambda i: program.values[program.first_op + i].bits)
    return Report(
        parameters=sum(leaf.example.numel() for leaf in compiled.leaves if leaf.kind is LeafKind.PARAMETER),
        operations=len(program.ops),
        operations_by_opcode=dict(by_opcode.most_common()),
        macs=multiply_accumulates(program),
        widest_bits=program.values[program.first_op + place].bits,
        widest_opcode=program.ops[place].opcode.name.lower(),
        widest_origin=compiled.origins[place],
        state_bytes=sum(type_.nbytes for type_ in program.state_types.values()),
        data_bytes=sum(type_.nbytes for type_ in program.data_types.values()),
        peak_bytes=peak_bytes(program),
        constant_bytes=sum(constant.type.nbytes for constant in program.constants),
        program_bytes=len(encode_program(program)),
        seconds_per_step=_seconds_per_step(compiled) if measure else None,
    )


def multiply_accumulates(program: Program) -> int:
    """[..., m, k] by [..., n, k] takes k for each of its elements."""
    total = 0
    for number, op in program.numbered_ops():
        if op.opcode is Opcode.MATMUL_NT:
            elements = 1
            for side in program.values[number].shape:
                elements *= side
            total += elements * program.values[op.operands[0]].shape[-1]
    return total


def _seconds_per_step(compiled: CompiledStep) -> float:
    """The faster of two steps from the example's state, after one that warms up."""
    plan = Plan.of(compiled.program)
    bound = plan.bind(dict(compiled.example_data()), 0)
    state = dict(compiled.example_state())
    times = []
    for _ in range(1 + MEASURED_STEPS):
        start = time.perf_counter()
        state = plan.run(state, bound)
        times.append(time.perf_counter() - start)
    return min(times[1:])
