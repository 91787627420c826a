"""Times of exact and float32 steps, products and hashes: the measurements behind exact_step.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch

from proofs.exact import compile as compile_step
from proofs.exact.backend.layouts import Layout, Plain, planes_of
from proofs.exact.backend.matmul import choose
from proofs.exact.compiler.compiled import CompiledStep
from proofs.exact.execute import run_unit
from proofs.exact.plan import Plan
from proofs.exact.ranges import ValueInfo
from proofs.exact.settings import Settings
from proofs.exact.state import State, state_root
from scripts.bench import models
from scripts.bench.models import Workload

HORIZON = 1000
"""Steps that the programs are compiled for."""
CHECKPOINT_EVERY = 10
"""Steps between two state roots."""
TIME_S = 15.0
"""How long one comparison may take."""

WORKLOADS: dict[str, Callable[[], Workload]] = {
    "mlp": models.mlp,
    "gpt": models.gpt,
    # A million parameters: 16 bytes of state each under AdamW, 8 under momentum.
    "gpt_million": lambda: models.gpt(layers=4, width=144, heads=6),
    "mlp_million": lambda: models.mlp((784, 700, 600, 10)),
}


def use_threads(threads: int) -> None:
    torch.set_num_threads(threads)


@dataclass(slots=True)
class Prepared:
    """A workload compiled and planned."""

    workload: Workload
    compiled: CompiledStep
    plan: Plan
    settings: Settings
    compile_s: float
    plan_s: float
    state: State = field(repr=False)
    data: State = field(repr=False)

    @property
    def operations(self) -> int:
        return len(self.compiled.program.ops)

    def exact_step(self) -> Callable[[], None]:
        """Each call takes one step from where the last one ended."""
        bound = self.plan.bind(dict(self.data), 0)
        states = [{name: tensor.copy() for name, tensor in self.state.items()}]

        def run() -> None:
            states[0] = self.plan.run(states[0], bound, consume=True)

        return run

    def float32_step(self) -> Callable[[], None]:
        """The same for eager float32, on random batches of the same data."""
        step = self.workload.float32_step()
        samples = len(self.workload.data["x"])
        generator = torch.Generator().manual_seed(1)

        def run() -> None:
            step(torch.randperm(samples, generator=generator)[: self.workload.batch])

        return run


def prepare(name: str, threads: int) -> Prepared:
    workload = WORKLOADS[name]()
    started = time.perf_counter()
    compiled = compile_step(workload.step, workload.example(), samples=len(workload.data["x"]), steps=HORIZON)
    compile_s = time.perf_counter() - started
    settings = Settings(threads=threads)
    started = time.perf_counter()
    plan = Plan.of(compiled.program, settings)
    return Prepared(
        workload=workload,
        compiled=compiled,
        plan=plan,
        settings=settings,
        compile_s=compile_s,
        plan_s=time.perf_counter() - started,
        state=compiled.encode_state(workload.params, workload.state),
        data=compiled.encode_data(workload.data),
    )


@dataclass(frozen=True, slots=True)
class Taken:
    """Medians over `calls`: what a clock on the wall shows, and what the process computed meanwhile on all its threads.
    On a machine that is busy with other things as well, the first exceeds the second.
    """

    ms: float
    cpu_ms: float
    calls: int


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Steps taken in turn."""

    exact: Taken
    float32: Taken
    parameters: int
    macs: int
    """Multiply-accumulates of the exact step's products."""
    exact_gops: float
    """2 macs / time: beside the machine's limits."""

    @property
    def ratio(self) -> float:
        return self.exact.ms / self.float32.ms


def step_times(prepared: Prepared) -> StepTimes:
    exact, float32 = in_turn(prepared.exact_step(), prepared.float32_step())
    macs = prepared.compiled.report(measure=False).macs
    return StepTimes(
        exact=exact,
        float32=float32,
        parameters=prepared.workload.parameters,
        macs=macs,
        exact_gops=2 * macs / exact.ms / 1e6,
    )


@dataclass(frozen=True, slots=True)
class MatmulTimes:
    """A product n x n x n of 16-bit by 16-bit integers, from int16 planes to the exact sums, 1 thread."""

    n: int
    kernel: str
    exact: Taken
    float32: Taken

    @property
    def ratio(self) -> float:
        return self.exact.ms / self.float32.ms


def matmul_times(n: int) -> MatmulTimes:
    """The kernel that "auto" takes, its operands made from int16 within the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    info = ValueInfo((n, n), 0, -32768, 32639)
    kernel = choose(info, info, Settings())
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randint(info.lo, info.hi + 1, (n, n), generator=generator).to(torch.int16) for _ in range(2))
    out = kernel.empty((n, n))

    def planes(values: torch.Tensor, layout: Layout) -> tuple[torch.Tensor, ...]:
        return (values,) if layout == Plain(16) else planes_of(values, layout)

    x, y = a.to(torch.float32), b.to(torch.float32)
    product = torch.empty((n, n))
    exact, float32 = in_turn(
        lambda: kernel.run(planes(a, kernel.a), planes(b, kernel.b), out),
        lambda: torch.matmul(x, y.t(), out=product),
        time_s=2.0,
    )
    torch.set_num_threads(threads)
    return MatmulTimes(n, kernel.name, exact, float32)


@dataclass(frozen=True, slots=True)
class HashTimes:
    """A run of `steps` steps, and the state roots that its checkpoints take."""

    parameters: int
    state_bytes: int
    root: Taken
    step: Taken
    every: int

    @property
    def overhead(self) -> float:
        return self.root.ms / (self.every * self.step.ms)


def hash_times(prepared: Prepared) -> HashTimes:
    """Steps and roots of one state, in turn."""
    state = run_unit(prepared.compiled.program, prepared.state, prepared.data, 0, 1, 1).final_state
    step, root = in_turn(prepared.exact_step(), lambda: state_root(state), time_s=5.0)
    return HashTimes(
        parameters=prepared.workload.parameters,
        state_bytes=sum(tensor.type.nbytes for tensor in state.values()),
        root=root,
        step=step,
        every=CHECKPOINT_EVERY,
    )


def in_turn(
    first: Callable[[], object], second: Callable[[], object], *, time_s: float = TIME_S, least: int = 5
) -> tuple[Taken, Taken]:
    """Medians of each, called in turn after two calls to warm up."""
    for _ in range(2):
        first()
        second()
    times: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    ends = time.perf_counter() + time_s
    while len(times[0]) < least or time.perf_counter() < ends:
        for work, kept in zip((first, second), times, strict=True):
            started, worked = time.perf_counter(), time.process_time()
            work()
            kept.append((time.perf_counter() - started, time.process_time() - worked))
    one, other = (
        Taken(median(wall for wall, _ in kept) * 1000, median(cpu for _, cpu in kept) * 1000, len(kept))
        for kept in times
    )
    return one, other
