"""The integer step is PyTorch's step, computed exactly, and nothing that a state or shard may hold can break it."""

from __future__ import annotations

import math
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.training.datasets import PIXELS, REALS, SIXTEENTHS, InputScale, Split
from node.training.float32 import Mlp, from_state_dict, layers_of, to_state_dict
from node.training.mlp import MlpRecipe, initial_state, loss_of, program_for, state_types
from node.training.sharding import shard_state
from proofs.exact.definitions import IntArray
from proofs.exact.execute import run_unit
from proofs.exact.reference import reference_run
from proofs.exact.state import State, state_root
from proofs.exact.tensor import ExactTensor
from protocol.errors import UsageError

SEED = 1234567


def recipe(
    layers: tuple[int, ...] = (5, 4, 3),
    *,
    samples: int = 12,
    batch_size: int = 4,
    scale: InputScale = PIXELS,
    learning_rate: str = "0.1",
    momentum: str = "0.9",
) -> MlpRecipe:
    return MlpRecipe(layers, samples, scale, batch_size, Decimal(learning_rate), Decimal(momentum))


def samples_for(plan: MlpRecipe, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    top = {PIXELS: 256, SIXTEENTHS: 17, REALS: 4096}[plan.scale]
    x = rng.integers(-top if plan.scale is REALS else 0, top, (plan.samples, plan.layers[0]))
    return Split.labelled(x, rng.integers(0, plan.layers[-1], plan.samples))


def run(plan: MlpRecipe, state: State, shard: Split, steps: int) -> State:
    data = shard_state(shard, plan.scale, plan.layers[-1])
    return run_unit(program_for(plan), state, data, SEED, steps, steps).final_state


def integers(state: State) -> dict[str, IntArray]:
    return {name: IntArray(t.type.shape, tuple(t.values.flatten().tolist())) for name, t in state.items()}


@pytest.mark.parametrize("scale", [PIXELS, SIXTEENTHS, REALS], ids=["pixels", "sixteenths", "reals"])
@pytest.mark.parametrize("layers", [(5, 3), (5, 4, 3), (6, 5, 4, 2)], ids=str)
def test_three_steps_equal_the_interpreter_on_python_integers(layers: tuple[int, ...], scale: InputScale) -> None:
    plan = recipe(layers, scale=scale)
    shard = samples_for(plan)
    start = initial_state(layers, 1)
    fast = run(plan, start, shard, 3)
    data = integers(shard_state(shard, scale, layers[-1]))
    assert integers(fast) == reference_run(program_for(plan), integers(start), data, SEED, 3)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_extreme_states_stay_within_every_proved_range(data: st.DataObject) -> None:
    """The interpreter asserts each operation's proved range; the kernels must agree with it where all saturates."""
    plan = recipe(
        (3, 2, 2), samples=3, batch_size=3, scale=data.draw(st.sampled_from([PIXELS, REALS])), learning_rate="1"
    )
    types = state_types(plan.layers)
    state = {}
    for name, type_ in types.items():
        value = st.sampled_from([type_.lo, type_.lo + 1, -1, 0, 1, type_.hi - 1, type_.hi])
        if name == "t":
            value = st.sampled_from([0, 1, type_.hi])
        values = data.draw(st.lists(value, min_size=type_.elements, max_size=type_.elements))
        state[name] = ExactTensor(type_, torch.tensor(values).reshape(type_.shape))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    low, high = (0, 255) if plan.scale is PIXELS else (-(2**19), 2**19 - 1)
    shard = Split.labelled(rng.choice([low, high], (3, 3)), rng.integers(0, 2, 3))
    program = program_for(plan)
    tensors = shard_state(shard, plan.scale, 2)
    fast = run_unit(program, state, tensors, SEED, 2, 2).final_state
    assert integers(fast) == reference_run(program, integers(state), integers(tensors), SEED, 2)


def float64_twin(plan: MlpRecipe, state: State, shard: Split, steps: int) -> tuple[Mlp, list[float]]:
    """torch.optim.SGD in float64 over the whole shard as one batch; the losses before each step."""
    module = Mlp(plan.layers).double()
    module.load_state_dict({name: tensor.double() for name, tensor in to_state_dict(state).items()})
    cross_entropy = torch.nn.CrossEntropyLoss()
    optimiser = torch.optim.SGD(module.parameters(), lr=float(plan.learning_rate), momentum=float(plan.momentum))
    inputs = torch.from_numpy(plan.scale.to_float(shard.x)).double()
    labels = torch.from_numpy(shard.y)
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = cross_entropy(module(inputs), labels)
        losses.append(float(loss.detach()))
        loss.backward()
        optimiser.step()
    return module, losses


@pytest.mark.parametrize("scale", [PIXELS, SIXTEENTHS, REALS], ids=["pixels", "sixteenths", "reals"])
@pytest.mark.parametrize("layers", [(20, 5), (20, 16, 5), (20, 16, 12, 5)], ids=str)
def test_steps_follow_float64_sgd(layers: tuple[int, ...], scale: InputScale) -> None:
    # A batch of the whole shard: its order does not matter to the sums, so any twin sees the same batch.
    plan = recipe(layers, samples=32, batch_size=32, scale=scale)
    shard = samples_for(plan)
    start = initial_state(layers, 3)
    # Two steps: the second one has momentum. After more, a ReLU that flips at zero parts any two number systems.
    twin, losses = float64_twin(plan, start, shard, 2)
    state = run(plan, start, shard, 2)
    trained, before = to_state_dict(state), to_state_dict(start)
    for name, wanted in twin.state_dict().items():
        moved = (wanted - before[name]).abs().max()
        error = (trained[name] - wanted).abs().max()
        assert moved > 1e-3, "the twin learnt nothing here: the comparison says nothing"
        assert error < 0.002 * moved, f"{name}: off by {error:.2e} after moving {moved:.2e}"
    assert loss_of(state) == pytest.approx(moving_mean(losses, layers[-1]), abs=3e-4)


def moving_mean(losses: list[float], classes: int) -> float:
    mean = math.log(classes)
    for loss in losses:
        mean += (loss - mean) / 16
    return mean


def test_without_momentum_the_velocity_is_the_last_gradient_times_the_rate() -> None:
    plan = recipe((20, 5), samples=32, batch_size=32, momentum="0")
    shard = samples_for(plan)
    state = run(plan, initial_state((20, 5), 3), shard, 1)
    after = run(plan, state, shard, 1)
    assert torch.equal(after["w1"].values, state["w1"].values - after["v_w1"].values)


def test_step_counter_moves_the_batch_on() -> None:
    plan = recipe(samples=64, batch_size=4)
    shard = samples_for(plan)
    start = initial_state(plan.layers, 1)
    one = run(plan, start, shard, 1)
    later = run(plan, dict(start) | {"t": one["t"]}, shard, 1)
    assert int(one["t"].values) == 1
    assert int(later["t"].values) == 2
    assert state_root({"w1": one["w1"]}) != state_root({"w1": later["w1"]})


@pytest.mark.parametrize("learning_rate", ["1", "0.5", "0.2", "0.01", "0.001", "0.0001"])
@pytest.mark.parametrize("batch_size", [1, 128, 4096])
@pytest.mark.parametrize("scale", [PIXELS, REALS], ids=["pixels", "reals"])
def test_every_rate_is_proved_safe_or_refused_with_a_reason(
    learning_rate: str, batch_size: int, scale: InputScale
) -> None:
    plan = recipe((784, 64, 32, 10), samples=5000, batch_size=batch_size, scale=scale, learning_rate=learning_rate)
    finest = {PIXELS: Decimal("1e-6"), REALS: Decimal("6e-8")}[scale]
    if Decimal(learning_rate) / batch_size < finest:
        with pytest.raises(UsageError) as caught:
            program_for(plan)
        assert caught.value.code == "U-41"
    else:
        assert program_for(plan).state_types == state_types(plan.layers)


def test_rate_too_fine_for_integers_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        program_for(recipe(learning_rate="0.00000001"))
    assert caught.value.code == "U-41"
    assert caught.value.hint


def test_batch_larger_than_the_shard_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        program_for(recipe(samples=3, batch_size=4))
    assert caught.value.code == "U-40"


def test_model_whose_sums_could_leave_64_bits_is_refused() -> None:
    with pytest.raises(UsageError, match="matmul") as caught:
        program_for(recipe((2**25, 4, 3), scale=REALS))
    assert caught.value.code == "U-42"


def test_program_depends_on_every_part_of_the_recipe() -> None:
    variants = [
        recipe(),
        recipe((5, 6, 3)),
        recipe(samples=13),
        recipe(batch_size=3),
        recipe(scale=SIXTEENTHS),
        recipe(learning_rate="0.2"),
        recipe(momentum="0.8"),
    ]
    assert len({program_for(plan).root() for plan in variants}) == len(variants)
    assert program_for(recipe()).root() == program_for(recipe()).root()


def test_many_classes_keep_the_loss_table_bounded() -> None:
    plan = recipe((8, 4, 1000), samples=16, batch_size=16, scale=REALS)
    shard = samples_for(plan)
    trained = run(plan, initial_state(plan.layers, 1), shard, 4)
    _, losses = float64_twin(plan, initial_state(plan.layers, 1), shard, 4)
    assert loss_of(trained) == pytest.approx(moving_mean(losses, 1000), abs=0.005)


def test_initial_weights_have_the_variance_of_he_and_follow_from_the_seed() -> None:
    state = initial_state((784, 128, 10), 5)
    for layer, (inputs, outputs) in enumerate(pairwise((784, 128, 10)), start=1):
        weights = to_state_dict(state)[f"{2 * (layer - 1)}.weight"]
        assert weights.shape == (outputs, inputs)
        assert float(weights.var()) == pytest.approx(2 / inputs, rel=0.1)
        assert not state[f"b{layer}"].values.any()
        assert not state[f"v_w{layer}"].values.any()
    assert loss_of(state) == pytest.approx(math.log(10), abs=1e-4)
    assert state_root(state) == state_root(initial_state((784, 128, 10), 5))
    assert state_root(state) != state_root(initial_state((784, 128, 10), 6))


def test_state_dict_round_trip_keeps_every_weight() -> None:
    state = initial_state((64, 48, 3), 9)
    assert int(state["w2"].values.abs().max()) < 2**24, "float32 holds 24 bits: weights of 1 and more would lose some"
    again = from_state_dict(to_state_dict(state))
    assert layers_of(again) == (64, 48, 3)
    assert state_root(again) == state_root(state)


@pytest.mark.parametrize(
    "names", [[], ["0.weight"], ["0.weight", "1.bias"], ["0.weight", "0.bias", "x"], ["0.weight", "0.bias"]]
)
def test_foreign_state_dict_is_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="not the weights of an MLP"):
        from_state_dict({name: torch.zeros(2, 2) for name in names})
