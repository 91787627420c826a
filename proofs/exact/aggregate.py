"""Exact aggregation: the element-wise mean of the shards' final states, halves rounded up, as a program like any other.

    mean = (2 * sum + S) // (2 * S)

Integer sums have no order, so whoever averages, and in whatever order the shards arrive, gets the same bits. The
aggregation unit is one step of this program; its root is the task's `aggregationRoot`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proofs.exact.builder import ProgramBuilder
from proofs.exact.execute import run_unit
from proofs.exact.program import Program
from proofs.exact.state import State
from proofs.exact.tensor import ExactTensor
from proofs.exact.tensor_type import TensorType


def shard_input(shard: int, name: str) -> str:
    """Name under which the program reads tensor `name` of a shard's final state: "s0/w1"."""
    return f"s{shard}/{name}"


def aggregation_program(state_types: Mapping[str, TensorType], shards: int) -> Program:
    """State: the round's input state, replaced whole. Data: every tensor of every shard's final state.

    Raises ValueError for fewer than two shards, ProgramError if a sum over the shards could exceed 64 bits.
    """
    if shards < 2:
        raise ValueError(f"{shards} shards have no mean to take")
    b = ProgramBuilder()
    for name, type_ in sorted(state_types.items(), key=lambda item: item[0].encode()):
        b.state(name, type_)
        total = b.data(shard_input(0, name), type_)
        for shard in range(1, shards):
            total = b.add(total, b.data(shard_input(shard, name), type_))
        doubled = b.add(b.mul(total, b.constant(2)), b.constant(shards, frac=type_.frac))
        b.update(name, b.div_floor(doubled, b.constant(2 * shards)))
    return b.build()


def aggregation_data(shard_states: Sequence[State]) -> dict[str, ExactTensor]:
    """The shards' final states, in shard order, as the data of the aggregation unit."""
    return {shard_input(shard, name): state[name] for shard, state in enumerate(shard_states) for name in state}


def aggregate(program: Program, input_state: State, shard_states: Sequence[State]) -> State:
    """The mean: the aggregation unit's final state. Raises ExecutionError if a state isn't what the program wants."""
    return run_unit(program, input_state, aggregation_data(shard_states), 0, 1, 1).final_state
