"""Running units: it trains, it equals the reference bit for bit, and neither interruption nor threads change a bit."""

from __future__ import annotations

import pytest
import torch

from proofs.exact.builder import ProgramBuilder
from proofs.exact.definitions import IntArray
from proofs.exact.execute import ExecutionError, LiveState, Overflowed, Progress, Stopped, UnitRun, run_unit
from proofs.exact.initialise import zeros
from proofs.exact.known_answers import from_torch
from proofs.exact.opcodes import Opcode
from proofs.exact.plan import Plan
from proofs.exact.program import Program
from proofs.exact.reference import reference_run
from proofs.exact.settings import Settings
from proofs.exact.state import State, decode_state, encode_state, state_root
from proofs.exact.tensor import ExactTensor, TensorType
from proofs.results import checkpoint_count, overflow_root
from tests.support.programs import linear_regression, mlp, mlp_data, mlp_state, regression_data

SEED = 2**63 - 12345


def zero_state(program: Program) -> dict[str, ExactTensor]:
    return {name: zeros(type_) for name, type_ in program.state_types.items()}


def small_mlp() -> tuple[Program, State, State]:
    program = mlp(samples=20, widths=(6, 5, 3), batch=7)
    return program, mlp_state(program), mlp_data(20, 6, 3)


def integers(state: State) -> dict[str, IntArray]:
    return {name: from_torch(tensor.values) for name, tensor in state.items()}


def test_linear_regression_finds_the_slopes() -> None:
    program = linear_regression()
    run = run_unit(program, zero_state(program), regression_data(), SEED, 400, 100)
    slopes = run.final_state["w"].values / 2**24
    assert torch.allclose(slopes, torch.tensor([[1.0, -0.5, 0.25]]), atol=0.01)
    assert int(run.final_state["t"].values) == 400


def test_an_mlp_learns_to_tell_its_classes_apart() -> None:
    program, data = mlp(samples=200, widths=(16, 12, 4), batch=25), mlp_data(200, 16, 4)
    final = run_unit(program, mlp_state(program), data, SEED, 160, 160).final_state
    hidden = data["x"].values / 2**12 @ (final["w0"].values / 2**24).t() + final["b0"].values / 2**24
    scores = hidden.relu() @ (final["w1"].values / 2**24).t() + final["b1"].values / 2**24
    assert (scores.argmax(dim=1) == data["y"].values).float().mean() > 0.95


def test_the_executor_and_the_reference_agree_on_every_element_of_an_mlp() -> None:
    program, state, data = small_mlp()
    run = run_unit(program, state, data, SEED, 6, 6)
    reference = reference_run(program, integers(state), integers(data), SEED, 6)
    assert integers(run.final_state) == reference
    rebuilt = {
        name: ExactTensor(type_, torch.tensor(reference[name].values).reshape(type_.shape))
        for name, type_ in program.state_types.items()
    }
    assert state_root(rebuilt) == run.checkpoint_roots[-1]


def test_checkpoints_are_the_roots_of_the_states_at_each_interval() -> None:
    program, state, data = small_mlp()
    states: dict[int, State] = {0: state}
    run = run_unit(program, state, data, SEED, 7, 3, on_step=lambda step, after: states.update({step: after.copy()}))
    assert list(states) == list(range(8))
    assert run.checkpoint_roots == tuple(state_root(states[step]) for step in (0, 3, 6, 7))


def test_on_checkpoint_is_given_step_state_and_all_roots_so_far() -> None:
    program, state, data = small_mlp()
    seen: list[tuple[int, tuple[bytes, ...]]] = []

    def keep(step: int, after: State, roots: tuple[bytes, ...]) -> None:
        assert state_root(after) == roots[-1]
        seen.append((step, roots))

    run = run_unit(program, state, data, SEED, 5, 2, on_checkpoint=keep)
    assert [step for step, _ in seen] == [2, 4, 5]
    assert [roots for _, roots in seen] == [run.checkpoint_roots[:count] for count in (2, 3, 4)]


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 6])
def test_a_stopped_run_resumes_to_the_same_roots(stop_after: int) -> None:
    program, state, data = small_mlp()
    whole = run_unit(program, state, data, SEED, 7, 2)
    steps: list[int] = []
    with pytest.raises(Stopped) as stopped:
        run_unit(
            program, state, data, SEED, 7, 2,
            on_step=lambda step, _: steps.append(step),
            stop=lambda: len(steps) == stop_after,
        )  # fmt: skip
    assert stopped.value.step == stop_after
    resumed = run_unit(
        program, stopped.value.state, data, SEED, 7, 2,
        start_step=stopped.value.step,
        checkpoint_roots=stopped.value.checkpoint_roots,
    )  # fmt: skip
    assert same(resumed, whole)


def test_a_finished_unit_resumes_to_itself() -> None:
    program, state, data = small_mlp()
    whole = run_unit(program, state, data, SEED, 3, 2)
    again = run_unit(
        program, whole.final_state, data, SEED, 3, 2, start_step=3, checkpoint_roots=whole.checkpoint_roots
    )
    assert same(again, whole)


def test_a_checkpoint_whose_state_was_damaged_is_not_resumed_from() -> None:
    program, state, data = small_mlp()
    whole = run_unit(program, state, data, SEED, 4, 2)
    with pytest.raises(ExecutionError, match="not the one of the checkpoint"):
        run_unit(program, state, data, SEED, 4, 2, start_step=2, checkpoint_roots=whole.checkpoint_roots[:2])
    with pytest.raises(ExecutionError, match="there should be 2"):
        run_unit(program, state, data, SEED, 4, 2, start_step=2, checkpoint_roots=whole.checkpoint_roots)
    with pytest.raises(ExecutionError, match="step 5 of 4"):
        run_unit(program, state, data, SEED, 4, 2, start_step=5)


def test_one_and_two_threads_give_the_same_roots() -> None:
    program, data = mlp(samples=64, widths=(300, 200, 10), batch=64), mlp_data(64, 300, 10)
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runs.append(run_unit(program, mlp_state(program), data, SEED, 5, 5))
    finally:
        torch.set_num_threads(before)
    assert same(*runs)


def test_running_writes_to_neither_its_inputs_nor_states_it_gave_out() -> None:
    program, state, data = small_mlp()
    kept: list[tuple[State, bytes]] = [(state, state_root(state)), (data, state_root(data))]
    run_unit(
        program, state, data, SEED, 4, 2,
        on_step=lambda _, after: kept.append((after.copy(), state_root(after))),
        on_checkpoint=lambda _, after, roots: kept.append((after, roots[-1])),
    )  # fmt: skip
    assert len(kept) == 2 + 4 + 2
    assert [state_root(tensors) for tensors, _ in kept] == [root for _, root in kept]


def test_checkpoints_and_the_final_state_lie_in_memory_of_their_own() -> None:
    """A plan may use its buffers again for the next unit; what was given out must not change with them."""
    program, state, data = small_mlp()
    plan = Plan.of(program)
    kept: list[State] = []
    first = run_unit(program, state, data, SEED, 4, 2, plan=plan, on_checkpoint=lambda _, s, r: kept.append(s))
    live: list[State] = []
    run_unit(program, state, data, SEED + 1, 3, 3, plan=plan, on_step=lambda _, after: live.append(after))
    assert state_root(first.final_state) == first.checkpoint_roots[-1] == state_root(kept[-1])
    assert state_root(kept[0]) == first.checkpoint_roots[1]
    places = [tensor.values.data_ptr() for given in (*kept, first.final_state) for tensor in given.values()]
    places += [tensor.values.data_ptr() for tensor in live[-1].values()]
    assert len(set(places)) == len(places)


def test_a_long_run_holds_no_more_than_two_states() -> None:
    program, state, data = small_mlp()
    places: dict[str, set[int]] = {name: set() for name in state}

    def look(_: int, after: LiveState) -> None:
        for name, tensor in after.items():
            places[name].add(tensor.values.data_ptr())

    run_unit(program, state, data, SEED, 30, 10, on_step=look, on_checkpoint=lambda *_: None)
    assert all(len(seen) <= 2 for seen in places.values()), "a buffer that is read, and one that is written"


def test_a_plan_is_used_again_without_a_trace_of_the_unit_before() -> None:
    program, state, data = small_mlp()
    plan = Plan.of(program)
    run_unit(program, state, data, 1, 3, 3, plan=plan)
    assert same(run_unit(program, state, data, SEED, 4, 2, plan=plan), run_unit(program, state, data, SEED, 4, 2))


def test_progress_counts_steps_and_tells_the_time_left() -> None:
    program, state, data = small_mlp()
    seen: list[Progress] = []
    with pytest.raises(Stopped) as stopped:
        run_unit(
            program, state, data, SEED, 7, 2,
            on_step=lambda _, after: seen.append(after.progress),
            stop=lambda: len(seen) == 3,
        )  # fmt: skip
    assert [(p.step, p.steps) for p in seen] == [(1, 7), (2, 7), (3, 7)]
    assert seen[0].steps_per_s is None and seen[0].left_s is None
    assert seen[2].steps_per_s is not None and seen[2].left_s == pytest.approx(4 / seen[2].steps_per_s)
    kept = stopped.value
    run_unit(
        program, kept.state, data, SEED, 7, 2,
        start_step=3, checkpoint_roots=kept.checkpoint_roots, on_step=lambda _, after: seen.append(after.progress),
    )  # fmt: skip
    assert [p.step for p in seen[3:]] == [4, 5, 6, 7]
    assert seen[3].steps_per_s is None, "a rate is of this run, not of the one before"
    assert seen[-1].left_s == 0


@pytest.mark.parametrize("step", [2, 4, 5])
def test_a_checkpoint_with_one_flipped_bit_is_refused(step: int) -> None:
    program, state, data = small_mlp()
    disk: dict[int, tuple[bytes, tuple[bytes, ...]]] = {}
    run_unit(
        program, state, data, SEED, 5, 2,
        on_checkpoint=lambda done, after, roots: disk.update({done: (encode_state(after), roots)}),
    )  # fmt: skip
    encoded, roots = disk[step]
    whole = decode_state(encoded)
    for name, place in (("w0", 0), ("v.b1", -1)):
        values = whole[name].values.clone()
        values.reshape(-1)[place] ^= 1
        damaged = {**whole, name: ExactTensor(whole[name].type, values)}
        with pytest.raises(ExecutionError, match=f"not the one of the checkpoint at step {step}: its root is"):
            run_unit(program, damaged, data, SEED, 5, 2, start_step=step, checkpoint_roots=roots)
    run_unit(program, whole, data, SEED, 5, 2, start_step=step, checkpoint_roots=roots)


LIMIT = 1000


def growing() -> Program:
    """m' = 2 m, checked to stay within ±1000, beside a counter."""
    b = ProgramBuilder()
    m = b.state("m", TensorType((2, 3), 16))
    t = b.state("t", TensorType((), 16))
    b.update("t", b.saturate(b.add(t, b.constant(1)), bits=16))
    b.update("m", b.check(b.mul(m, b.constant(2)), -LIMIT, LIMIT))
    return b.build()


GROWING_START = {
    "m": ExactTensor(TensorType((2, 3), 16), torch.tensor([[0, 1, -3], [100, -200, -130]])),
    "t": zeros(TensorType((), 16)),
}


@pytest.mark.parametrize("fuse", [True, False])
def test_an_overflow_ends_the_unit_and_keeps_the_last_good_state(fuse: bool) -> None:
    """-200 doubles to -400, -800, -1600: the third step fails, at the fifth element. The sixth fails as well, later."""
    program = growing()
    seen: list[int] = []
    with pytest.raises(Overflowed) as caught:
        run_unit(
            program, GROWING_START, {}, 0, 9, 2,
            on_step=lambda step, _: seen.append(step), settings=Settings(fuse=fuse),
        )  # fmt: skip
    over = caught.value
    (check,) = (place for place, op in enumerate(program.ops) if op.opcode is Opcode.CHECK)
    assert (over.step, over.operation, over.element, over.value) == (2, check, 4, -1600)
    assert seen == [1, 2]
    assert over.state["m"].values.tolist() == [[0, 4, -12], [400, -800, -520]]
    assert int(over.state["t"].values) == 2
    assert over.checkpoint_roots == (state_root(GROWING_START), state_root(over.state))
    assert "step 3" in str(over) and "-1600" in str(over)


def test_an_overflow_root_binds_where_it_happened_and_absorbs() -> None:
    with pytest.raises(Overflowed) as caught:
        run_unit(growing(), GROWING_START, {}, 0, 9, 2)
    over = caught.value
    good = state_root(over.state)

    def root(
        state: bytes = good, step: int = 2, place: int = over.operation, element: int = 4, v: int = -1600
    ) -> bytes:
        return overflow_root(state_root=state, step=step, operation=place, element=element, value=v)

    assert over.root == root()
    others = [root(state_root(GROWING_START)), root(step=3), root(place=0), root(element=5), root(v=1600)]
    assert len({over.root, *others}) == 6
    assert over.committed_roots(9, 2) == (*over.checkpoint_roots, *[over.root] * 4)
    assert len(over.committed_roots(9, 2)) == checkpoint_count(9, 2)


def test_a_resumed_unit_overflows_as_the_whole_one_does() -> None:
    with pytest.raises(Overflowed) as whole:
        run_unit(growing(), GROWING_START, {}, 0, 9, 2)
    with pytest.raises(Stopped) as stopped:
        run_unit(growing(), GROWING_START, {}, 0, 9, 2, stop=lambda: True)
    kept = stopped.value
    with pytest.raises(Overflowed) as resumed:
        run_unit(growing(), kept.state, {}, 0, 9, 2, start_step=1, checkpoint_roots=kept.checkpoint_roots)
    assert resumed.value.committed_roots(9, 2) == whole.value.committed_roots(9, 2)


def test_inputs_that_are_not_the_declared_ones_are_refused_before_the_first_step() -> None:
    program, state, data = small_mlp()
    with pytest.raises(ExecutionError, match="data has tensors"):
        run_unit(program, state, {"x": data["x"]}, SEED, 1, 1)
    narrower = {**state, "t": zeros(TensorType((), 39))}
    with pytest.raises(ExecutionError, match="'t' is int39"):
        run_unit(program, narrower, data, SEED, 1, 1)
    with pytest.raises(ExecutionError, match="63 bits"):
        run_unit(program, state, data, 2**63, 1, 1)
    with pytest.raises(ValueError, match="0 steps"):
        run_unit(program, state, data, SEED, 0, 1)


def same(one: UnitRun, other: UnitRun) -> bool:
    return one.checkpoint_roots == other.checkpoint_roots and one.final_state == other.final_state
