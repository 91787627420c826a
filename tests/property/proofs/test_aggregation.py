"""The mean of the shards: exact, rounded half up, the same in whatever order they come."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proofs.exact.aggregate import aggregate, aggregation_data, aggregation_program
from proofs.exact.execute import ExecutionError, run_unit
from proofs.exact.initialise import zeros
from proofs.exact.program import ProgramError
from proofs.exact.state import State, state_root
from proofs.exact.tensor import ExactTensor, TensorType

TYPES = {"w": TensorType((2, 3), 32, 24), "t": TensorType((), 40)}
START = {name: zeros(type_) for name, type_ in TYPES.items()}


def elements(type_: TensorType) -> st.SearchStrategy[ExactTensor]:
    value = st.sampled_from((type_.lo, type_.hi, -1, 0, 1)) | st.integers(type_.lo, type_.hi)
    values = st.lists(value, min_size=type_.elements, max_size=type_.elements)
    return values.map(lambda v: ExactTensor(type_, torch.tensor(v, dtype=torch.int64).reshape(type_.shape)))


states = st.fixed_dictionaries({name: elements(type_) for name, type_ in TYPES.items()})
shard_lists = st.lists(states, min_size=2, max_size=7)


@given(shard_lists, st.randoms(use_true_random=False))
def test_the_order_of_the_shards_does_not_matter(shards: list[State], random: object) -> None:
    program = aggregation_program(TYPES, len(shards))
    mean = aggregate(program, START, shards)
    shuffled = list(shards)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert state_root(aggregate(program, START, shuffled)) == state_root(mean)


@given(shard_lists)
def test_every_element_is_the_mean_rounded_half_up(shards: list[State]) -> None:
    mean = aggregate(aggregation_program(TYPES, len(shards)), START, shards)
    for name in TYPES:
        columns = zip(*(shard[name].values.reshape(-1).tolist() for shard in shards), strict=True)
        wanted = [(Fraction(sum(column), len(shards)) + Fraction(1, 2)).__floor__() for column in columns]
        assert mean[name].values.reshape(-1).tolist() == wanted
        assert mean[name].type == TYPES[name]


@given(states, st.integers(2, 9))
def test_the_mean_of_equal_shards_is_each_of_them(shard: State, count: int) -> None:
    assert aggregate(aggregation_program(TYPES, count), START, [shard] * count) == shard


@given(shard_lists, states)
def test_the_mean_does_not_depend_on_the_rounds_input_state(shards: Sequence[State], start: State) -> None:
    program = aggregation_program(TYPES, len(shards))
    assert aggregate(program, start, list(shards)) == aggregate(program, START, list(shards))


@given(shard_lists)
def test_the_aggregation_unit_commits_to_the_input_state_and_the_mean(shards: list[State]) -> None:
    program = aggregation_program(TYPES, len(shards))
    run = run_unit(program, START, aggregation_data(shards), 0, 1, 1)
    assert run.checkpoint_roots == (state_root(START), state_root(aggregate(program, START, shards)))


def test_a_missing_or_wider_shard_is_refused() -> None:
    program = aggregation_program(TYPES, 3)
    with pytest.raises(ExecutionError, match="data has tensors"):
        aggregate(program, START, [START, START])
    with pytest.raises(ExecutionError, match="'s2/t' is int41"):
        aggregate(program, START, [START, START, {**START, "t": zeros(TensorType((), 41))}])


def test_one_shard_has_no_mean_and_sums_beyond_64_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="1 shards"):
        aggregation_program(TYPES, 1)
    with pytest.raises(ProgramError, match="needs 65 bits"):
        aggregation_program({"w": TensorType((2,), 63)}, 2)


def test_shards_beyond_nine_are_told_apart() -> None:
    shards = [{**START, "t": ExactTensor(TYPES["t"], torch.tensor(2**shard))} for shard in range(12)]
    mean = aggregate(aggregation_program(TYPES, 12), START, shards)
    assert int(mean["t"].values) == (2 * (2**12 - 1) + 12) // 24
