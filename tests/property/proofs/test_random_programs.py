"""Whole programs nobody would write: any operations in any order, so that every reuse of memory and every alias comes
up.

The executor must agree with the reference interpreter on the state after every step, the encoding must round-trip, and
every value must stay within what the static analysis promised (the reference asserts it).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.definitions import IntArray
from proofs.exact.encoding import decode_program, encode_program
from proofs.exact.execute import run_unit
from proofs.exact.known_answers import from_torch
from proofs.exact.program import Program, ProgramError
from proofs.exact.reference import reference_step
from proofs.exact.state import State
from proofs.exact.tensor import ExactTensor, TensorType

SIDE = 3
TYPES = {
    "t": TensorType((), 20),
    "m": TensorType((SIDE, SIDE), 16, 4),
    "row": TensorType((1, SIDE), 40, 8),
    "x": TensorType((5, SIDE), 8, 4),
}

Move = Callable[[ProgramBuilder, Handle, Handle, int], Handle]


def choose_rows(b: ProgramBuilder, a: Handle, _: Handle, choice: int) -> Handle:
    t = next(handle for name, handle in b._inputs.items() if name == "t")
    return b.gather(a, b.permute(t, samples=a.shape[0], batch=1 + choice % 4))


MOVES: tuple[Move, ...] = (
    lambda b, x, y, _: b.matmul_nt(x, y),
    lambda b, x, _, __: b.transpose(x),
    lambda b, x, y, _: b.add(x, y),
    lambda b, x, y, _: b.sub(x, y),
    lambda b, x, y, _: b.mul(x, y),
    lambda b, x, _, choice: b.rescale(x, frac=x.frac - choice % 5, bits=5 + choice % 40),
    lambda b, x, _, choice: b.saturate(x, bits=1 + choice % 64),
    lambda b, x, _, choice: b.clamp(x, -(1 << choice % 30), 1 << choice % 20),
    lambda b, x, _, __: b.relu(x),
    lambda b, x, _, __: b.positive(x),
    lambda b, x, _, __: b.lookup(b.clamp(x, 0, 6), b.constant([5, -3, 0, 2**20, 7, -(2**33), 1], frac=4)),
    lambda b, x, _, choice: b.reduce_sum(x, choice % len(x.shape)),
    lambda b, x, _, choice: b.reduce_max(x, choice % len(x.shape)),
    lambda b, x, y, _: b.div_floor(x, b.clamp(y, 1, 1 << 20)),
    lambda b, x, _, __: b.broadcast(x, (4, SIDE, SIDE)),
    lambda b, x, _, __: b.reshape(x, (x.shape[-1], -(-x.info.type.elements // x.shape[-1]))),
    choose_rows,
    lambda b, x, _, __: b.reshape(b.one_hot(b.mul(x, b.constant(1, frac=-x.frac)), SIDE), (SIDE, SIDE)),
)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    b = ProgramBuilder()
    pool = [b.state(name, TYPES[name]) for name in ("t", "m", "row")] + [b.data("x", TYPES["x"])]
    for _ in range(draw(st.integers(1, 25))):
        move = draw(st.sampled_from(MOVES))
        # Recent values are likelier to be read, and to be read for the last time.
        x, y = (pool[-1 - min(draw(st.integers(0, 6)), len(pool) - 1)] for _ in range(2))
        try:
            made = move(b, x, y, draw(st.integers(0, 200)))
        except (ProgramError, IndexError, ZeroDivisionError):
            continue  # refused by the static rules: not a program
        if made.info.type.elements <= 200:
            pool.append(made)
    for name in ("t", "m", "row"):
        b.update(name, fitted(b, draw(st.sampled_from(pool)), TYPES[name]))
    return b.build()


def fitted(b: ProgramBuilder, value: Handle, type_: TensorType) -> Handle:
    """The value brought to a state's shape and scale: summed to one element, then spread."""
    if value.shape != type_.shape:
        value = b.clamp(value, -(2**40), 2**40)
        for axis in range(len(value.shape)):
            value = b.reduce_sum(value, axis)
        value = b.broadcast(b.reshape(value, ()), type_.shape)
    return b.saturate(b.mul(value, b.constant(1, frac=type_.frac - value.frac)), bits=type_.bits)


def state_of(names: tuple[str, ...], seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: ExactTensor(
            TYPES[name],
            torch.randint(TYPES[name].lo, TYPES[name].hi + 1, TYPES[name].shape, generator=generator),
        )
        for name in names
    }


def integers(state: State) -> dict[str, IntArray]:
    return {name: from_torch(tensor.values) for name, tensor in state.items()}


@settings(max_examples=100)
@given(programs(), st.integers(0, 2**32))
def test_any_program_runs_as_the_reference_says_and_round_trips(program: Program, seed: int) -> None:
    encoded = encode_program(program)
    assert decode_program(encoded) == program
    assert encode_program(decode_program(encoded)) == encoded
    state, data = state_of(("t", "m", "row"), seed), state_of(("x",), seed + 1)
    seen: list[State] = []
    run_unit(program, state, data, seed, 3, 3, on_step=lambda _, after: seen.append(after))
    wanted = integers(state)
    for after in seen:
        wanted = reference_step(program, wanted, integers(data), seed)
        assert integers(after) == wanted
