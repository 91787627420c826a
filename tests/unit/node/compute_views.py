"""Views to decide on: builders with plain defaults, and hypothesis strategies that roam over all a chain can hold."""

from __future__ import annotations

from dataclasses import replace

from eth_utils.address import to_checksum_address
from hypothesis import strategies as st

from node.compute.view import ComputeView, Policy, Speed, Stage, TaskView, WorkKey
from protocol.types import Admission, Block, NodeId, NodeRecord, TaskSpec, TaskState, TaskStatus, Unit, UnitStatus, Wei

NOW = 1_800_000_000
BLOCK = Block(500, bytes(32), NOW, Wei(0))
ME = NodeId(7)
OTHER = NodeId(8)
REQUESTER = to_checksum_address("0x" + "11" * 20)
OPERATOR = to_checksum_address("0x" + "22" * 20)
OPEN = Unit(NodeId(0), UnitStatus.OPEN, 0, 0, 0, 0, bytes(32), bytes(32))


def make_spec(**changes: object) -> TaskSpec:
    spec = TaskSpec(
        requester=REQUESTER,
        program_root=b"\x01" * 32,
        aggregation_root=b"\x02" * 32,
        initial_state_root=b"\x03" * 32,
        data_root=b"\x04" * 32,
        manifest=b"\x05" * 32,
        seed=1,
        unit_price=Wei(100),
        aggregation_price=Wei(10),
        collateral=Wei(1000),
        rounds=2,
        shards=2,
        steps=50,
        checkpoint_interval=10,
        deadline=NOW + 10_000,
        compute_window_s=600,
        reveal_window_s=120,
        challenge_window_s=300,
        is_private=False,
    )
    spec = replace(spec, **changes)  # type: ignore[arg-type]
    return replace(spec, aggregation_root=bytes(32)) if spec.shards == 1 else spec


def make_unit(status: UnitStatus, node: NodeId = ME, deadline: int = NOW + 100, **changes: object) -> Unit:
    return replace(OPEN, node=node, status=status, deadline=deadline, **changes)  # type: ignore[arg-type]


def make_task(units: dict[int, Unit] | None = None, spec: TaskSpec | None = None, **changes: object) -> TaskView:
    """A posted public task in round 0 whose inputs are all on disk; a step takes 0.1 s."""
    spec = spec or make_spec()
    whole = dict.fromkeys(range(spec.units_per_round), OPEN) | (units or {})
    view = TaskView(
        spec=spec,
        state=TaskState(spec.escrow, 0, 0, TaskStatus.POSTED),
        round=0,
        input_root=spec.initial_state_root,
        units=whole,
        ready=frozenset(whole),
        reachable=frozenset(whole),
        speed=Speed(0.1, 0.0),
    )
    return replace(view, **changes)  # type: ignore[arg-type]


def make_view(*tasks: TaskView, work: dict[WorkKey, Stage] | None = None, **changes: object) -> ComputeView:
    record = NodeRecord(ME, OPERATOR, OPERATOR, 0, False, Wei(10_000), Wei(0), b"\x09" * 32, bytes(32), "")
    view = ComputeView(BLOCK, record, Wei(1000), 10**18, 1000, tasks, work or {})
    return replace(view, **changes)  # type: ignore[arg-type]


statuses = st.sampled_from(UnitStatus)
times = st.integers(NOW - 200, NOW + 200)


@st.composite
def units(draw: st.DrawFn, me_likely: bool = True) -> Unit:
    status = draw(statuses)
    node = NodeId(0) if status is UnitStatus.OPEN else draw(st.sampled_from([ME, OTHER, ME] if me_likely else [OTHER]))
    return Unit(
        node=node,
        status=status,
        attempt=draw(st.integers(0, 3)),
        deadline=draw(times),
        commit_block=draw(st.integers(498, 500)),
        reveal_window_s=120,
        result=b"\x07" * 32,
        final_state_root=b"\x08" * 32 if status >= UnitStatus.REVEALED else bytes(32),
    )


@st.composite
def task_views(draw: st.DrawFn) -> TaskView:
    spec = make_spec(
        seed=draw(st.integers(0, 1 << 32)),
        shards=draw(st.integers(1, 4)),
        rounds=draw(st.integers(1, 3)),
        unit_price=Wei(draw(st.integers(1, 200))),
        aggregation_price=Wei(draw(st.integers(0, 200))),
        collateral=Wei(draw(st.sampled_from([0, 1, 1000, 4000, 20_000]))),
        deadline=draw(st.integers(NOW - 50, NOW + 5000)),
        compute_window_s=draw(st.integers(1, 1000)),
        is_private=draw(st.booleans()),
    )
    now_round = draw(st.integers(0, spec.rounds))
    indices = range(min(now_round + 1, spec.rounds) * spec.units_per_round)
    some = st.frozensets(st.sampled_from(indices))
    admission = None
    if spec.is_private and draw(st.booleans()):
        admission = Admission(draw(st.integers(0, (1 << spec.shards) - 1)), draw(times), b"\x01" * 65)
    return TaskView(
        spec=spec,
        state=TaskState(spec.escrow, 0, 0, draw(st.sampled_from([TaskStatus.POSTED, TaskStatus.CANCELLED]))),
        round=now_round,
        input_root=b"\x03" * 32,
        units={index: draw(units()) for index in indices},
        admission=admission,
        asked_at=draw(st.none() | times),
        open_since={index: draw(times) for index in draw(some)},
        ready=draw(some),
        reachable=draw(some),
        preparing=draw(some),
        cooling=draw(some),
        speed=draw(st.none() | st.builds(Speed, st.floats(0.001, 10), st.floats(0, 10))),
        acceptances=dict.fromkeys(draw(some), b"\x02" * 65),
        problem=draw(st.sampled_from([None, None, None, "manifest contradicts the chain"])),
    )


@st.composite
def compute_views(draw: st.DrawFn) -> ComputeView:
    tasks = tuple({tv.task: tv for tv in draw(st.lists(task_views(), max_size=3))}.values())
    work = {
        WorkKey(tv.task, index, unit.attempt + draw(st.integers(-1, 0))): draw(st.sampled_from(Stage))
        for tv in tasks
        for index, unit in tv.units.items()
        if draw(st.booleans())
    }
    stake = draw(st.sampled_from([0, 999, 1000, 5000, 10_000]))
    record = NodeRecord(
        ME,
        OPERATOR,
        OPERATOR,
        0,
        draw(st.booleans()),
        Wei(stake),
        Wei(draw(st.integers(0, stake))),
        bytes(32),
        bytes(32),
        "",
    )
    gas = draw(st.sampled_from([0, 10**18]))
    return ComputeView(BLOCK, record, Wei(1000), gas, 1000, tasks, work)


policies = st.builds(
    Policy,
    max_parallel=st.integers(1, 4),
    min_unit_price=st.integers(0, 150).map(Wei),
    min_tip=st.integers(0, 150).map(Wei),
    min_gas_wei=st.sampled_from([0, 10**16]),
    draining=st.booleans(),
)
