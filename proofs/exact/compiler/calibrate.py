"""How large every number of a step gets: the float graph runs a few steps on the example, outputs fed back as inputs.

The first steps of a schedule that warms up move little, so a dozen more are rehearsed at later points of the schedule.

A state that follows s' = b s + u (momentum, moving averages) grows for 1 / (1 - b) steps, longer than anybody wants to
calibrate: after the ordinary steps one more is run with every such state at its limit u / (1 - b) and the schedules at
their last step, so that whatever depends on those states is seen at full size as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from proofs.exact.compiler.errors import CompileError, Origin, Problem
from proofs.exact.compiler.fold import Folded
from proofs.exact.compiler.interpret import BESIDE_MASK, MASK, VIEWS, as_real, evaluate, is_float, is_mask, refused
from proofs.exact.compiler.trace import LeafKind, Trace

aten = torch.ops.aten

FLOAT = torch.float32
"""What the graph runs in: magnitudes need no more, and it is twice as fast as float64."""

REHEARSED = 12
"""Steps at later points of the schedule, beside those that Options.calibration_steps asks for."""

Magnitudes = dict[fx.Node, tuple[float, ...]]
"""Greatest finite absolute value of each result of a node, over all steps; 0 where it was never anything else."""


@dataclass
class Calibration:
    magnitudes: Magnitudes = field(default_factory=dict)
    masked: set[fx.Node] = field(default_factory=set)
    """Nodes with -inf (or its stand-ins, see interpret.is_mask) in them: attention masks and what is made of them."""
    first_loss: float = 0.0
    problems: list[Problem] = field(default_factory=list)

    def magnitude(self, node: fx.Node, place: int = 0) -> float:
        found = self.magnitudes.get(node, ())
        return found[place] if place < len(found) else 0.0

    def raise_to(self, node: fx.Node, magnitude: float) -> None:
        self.magnitudes[node] = (max(self.magnitude(node), magnitude), *self.magnitudes.get(node, ())[1:])


def calibrate(
    trace: Trace, folded: Folded, batches: Sequence[Mapping[str, torch.Tensor]], steps: int | None
) -> Calibration:
    """Runs as many ordinary steps as there are batches (data leaves by name).

    Raises CompileError if PyTorch refuses one: a label or an index out of range.
    """
    assert trace.module is not None
    run = _Run(trace, folded)
    last = max((steps or 1) - 1, 0)
    carried = {leaf.name: as_real(leaf.example, FLOAT) for leaf in trace.carried}
    linear = {
        leaf.name: memory_of(run.by_name[leaf.name], run.updates[leaf.name], folded)
        for leaf in trace.carried
        if leaf.name not in folded.schedules
    }
    limits: dict[str, torch.Tensor] = {}
    # Random draws (dropout) are the only thing that PyTorch's generator decides here.
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _fast_products():
        torch.manual_seed(0)
        for index, batch in enumerate(batches):
            run.observing = index in (0, len(batches) - 1)
            following, loss = run.step(carried, batch, min(index, last))
            if index == 0:
                run.result.first_loss = loss
            if run.result.problems:
                return run.result
            limits = _limits(linear, carried, following)
            carried = following
        before, carried = _rehearse(run, carried, batches, last)
        if before is not carried:
            limits = {name: _larger(limits[name], each) for name, each in _limits(linear, before, carried).items()}
        run.observing = True
        if limits:
            run.step(carried | limits, batches[-1], last)
            run.result.problems.clear()  # a step that nobody takes may go wrong
            for name, limit in limits.items():
                for node in (run.by_name[name], run.updates[name]):
                    run.result.raise_to(node, _magnitude(limit)[0])
    _carry(run)
    _fill_zeros(run)
    return run.result


@contextmanager
def _fast_products() -> Iterator[None]:
    """Products from bfloat16 operands where the CPU has them: three times faster, and right to 1 per cent. A magnitude
    is rounded up to a power of two. On one thread, so that on this machine a step always has the same program."""
    precision, threads = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def _rehearse(
    run: _Run, carried: dict[str, torch.Tensor], batches: Sequence[Mapping[str, torch.Tensor]], last: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Goes on for REHEARSED steps whose numbers lie spread over the first half of all steps, and looks at every sixth.

    The first steps of a schedule that warms up move nothing. A GPT's attention scores are 80 times larger after its
    warm-up than in its first step, and their gradients 200 times: formats made from the first steps saturate.
    Returns the state before and after the last step; the same one twice if none was taken.
    """
    earlier = carried
    for i in range(1, REHEARSED + 1):
        run.observing = i % 6 == 0
        seen = dict(run.result.magnitudes) if run.observing else {}
        following, loss = run.step(carried, batches[i % len(batches)], last * i // (2 * REHEARSED))
        if run.result.problems or not loss < 4 * abs(run.result.first_loss) + 4:
            # Without its warm-up a step may diverge: what is seen then says nothing about training.
            run.result.problems.clear()
            run.result.magnitudes.update(seen)
            break
        earlier, carried = carried, following
    return earlier, carried


def _limits(
    linear: Mapping[str, float | None], carried: Mapping[str, torch.Tensor], following: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """What each linear state would tend to if the step between these two were taken for ever."""
    limits = {}
    for name, memory in linear.items():
        if memory is not None:
            limit = (following[name] - memory * carried[name]) / (1 - memory)
            # Of a second moment the limit is a square; rounding must not put it below 0, under a root.
            squares = carried[name].min() >= 0 and following[name].min() >= 0
            limits[name] = limit.clamp(min=0) if squares else limit
    return limits


def _larger(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.where(a.abs() >= b.abs(), a, b)


class _Run:
    def __init__(self, trace: Trace, folded: Folded) -> None:
        self.folded = folded
        self.leaves = trace.by_node
        self.by_name = {leaf.name: node for node, leaf in self.leaves.items()}
        self.updates = dict(zip((leaf.name for leaf in trace.carried), folded.outputs[:-1], strict=True))
        self.result = Calibration()
        self.observing = True
        """Looking at every number costs a third of a step: the first, the last and the one at the limits will do."""
        self.constants = {node: as_real(value, FLOAT) for node, value in folded.constants.items()}
        for node in folded.constants:
            self._observe(node, self.constants[node])
        for node, table in folded.tables.items():
            self._observe(node, table)
        self._dying: dict[fx.Node, list[fx.Node]] = {}
        kept, seen = set(folded.outputs), set()
        for node in reversed(folded.live):
            fresh = [operand for operand in node.all_input_nodes if operand not in seen and operand not in kept]
            seen.update(fresh)
            self._dying[node] = fresh

    def step(
        self, carried: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor], index: int
    ) -> tuple[dict[str, torch.Tensor], float]:
        values: dict[fx.Node, Any] = dict(self.constants)
        for node, table in self.folded.tables.items():
            val = node.meta["val"]
            values[node] = as_real(table[index], FLOAT).reshape(val.shape)
        for node, leaf in self.leaves.items():
            if node in values:
                continue
            given = batch[leaf.name] if leaf.kind is LeafKind.DATA else carried[leaf.name]
            values[node] = as_real(given, FLOAT)
            if self.observing:
                self._observe(node, values[node])
        for node in self.folded.live:
            try:
                values[node] = evaluate(node, values, FLOAT)
            except (IndexError, RuntimeError) as error:
                raise CompileError([refused(node, error)]) from error
            if self.observing:
                self._observe(node, values[node])
            for dead in self._dying[node]:
                values.pop(dead, None)
        loss = float(values[self.folded.outputs[-1]])
        following = {}
        for name, node in self.updates.items():
            schedule = name in self.folded.schedules
            following[name] = carried[name] if schedule else values[node].clone()
            if not schedule and not _all_finite(following[name]):
                self._not_a_number(node, name)
        if not math.isfinite(loss):
            self._not_a_number(self.folded.outputs[-1], "the loss")
        return following, loss

    def _observe(self, node: fx.Node, value: Any) -> None:
        parts = value if isinstance(value, tuple | list) else (value,)
        if node.target in VIEWS and isinstance(node.args[0], fx.Node) and node.args[0] in self.result.magnitudes:
            seen = self.result.magnitudes[node.args[0]][:1]
            masked = node.args[0] in self.result.masked
        else:
            pairs = [_magnitude(part) for part in parts]
            seen = tuple(magnitude for magnitude, _ in pairs)
            masked = any(infinite for _, infinite in pairs)
        if masked:
            self.result.masked.add(node)
        before = self.result.magnitudes.get(node)
        self.result.magnitudes[node] = seen if before is None else tuple(map(max, before, seen))

    def _not_a_number(self, node: fx.Node, what: str) -> None:
        self.result.problems.append(
            Problem(
                f"{what} becomes NaN or Inf on the example",
                "find the first in plain PyTorch (torch.autograd.detect_anomaly); a row that is masked"
                " everywhere gives one",
                node.meta.get("origin", Origin()),
            )
        )


def _all_finite(tensor: torch.Tensor) -> bool:
    """A sum of finite numbers is finite, or else worth a second look; and it is quick."""
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())


def _magnitude(value: Any) -> tuple[float, bool]:
    """Greatest absolute value of a float tensor beside its masked places, and whether there are such places."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.numel():
        return 0.0, False
    lo, hi = (bound.item() for bound in torch.aminmax(value))
    if lo > -MASK and hi < torch.inf:
        return max(-lo, hi), False
    lo, hi = (bound.item() for bound in torch.aminmax(torch.where((value > -MASK) & (value < torch.inf), value, 0.0)))
    if max(-lo, hi) < BESIDE_MASK:
        return max(-lo, hi), True
    # Beside such numbers what lies far below is one of them. Seldom: to choose elements takes long.
    rest = value[torch.isfinite(value) & ~is_mask(value)]
    return float(rest.abs().max()), True


# States with a memory


MAX_READERS = 64
"""Momentum and moving averages reach a handful of nodes; what reaches more (a weight) has no such memory."""


def memory_of(state: fx.Node, update: fx.Node, folded: Folded) -> float | None:
    """b, where the update is b * state + (something that does not read this state), 0 < b < 1; else None."""
    if not is_float(state):
        return None
    reached = _readers(state, set(folded.live))
    factors: dict[fx.Node, float | None] = {state: 1.0}
    for node in reached:
        factors[node] = _factor(node, factors, folded)
    found = factors.get(update)
    return found if found is not None and 0 < found < 1 else None


def _readers(state: fx.Node, live: set[fx.Node]) -> list[fx.Node]:
    """Every live node that depends on this one, in order; none where there are more than MAX_READERS."""
    found: set[fx.Node] = set()
    waiting = [state]
    while waiting and len(found) <= MAX_READERS:
        fresh = {user for user in waiting.pop().users if user in live} - found
        found |= fresh
        waiting.extend(fresh)
    return sorted(found) if len(found) <= MAX_READERS else []


def _factor(node: fx.Node, factors: Mapping[fx.Node, float | None], folded: Folded) -> float | None:
    """The coefficient of the state in this node; None if it is no linear function of the state."""
    args, kwargs = node.args, node.kwargs

    def of(argument: Any) -> float | None:
        return factors[argument] if isinstance(argument, fx.Node) and argument in factors else 0.0

    def number(argument: Any) -> float | None:
        if isinstance(argument, int | float):
            return float(argument)
        table = folded.tables.get(argument, folded.constants.get(argument))
        return float(table.reshape(-1)[-1]) if table is not None and table.numel() and is_float(argument) else None

    def times(x: float | None, y: float | None) -> float | None:
        return None if x is None or y is None else x * y

    def plus(x: float | None, y: float | None) -> float | None:
        return None if x is None or y is None else x + y

    target = node.target
    if target in VIEWS:
        return of(args[0])
    if target in (aten.add.Tensor, aten.add.Scalar):
        return plus(of(args[0]), times(of(args[1]), number(kwargs.get("alpha", 1))))
    if target in (aten.sub.Tensor, aten.sub.Scalar):
        minus = number(kwargs.get("alpha", 1))
        return plus(of(args[0]), times(of(args[1]), None if minus is None else -minus))
    if target in (aten.mul.Tensor, aten.mul.Scalar):
        first, second = args[0], args[1]
        if isinstance(second, fx.Node) and second in factors:
            first, second = second, first
        return times(of(first), number(second)) if second not in factors else None
    if target in (aten.div.Tensor, aten.div.Scalar):
        divisor = number(args[1]) if args[1] not in factors else None
        return times(of(args[0]), 1 / divisor) if divisor else None
    if target in (aten.lerp.Scalar, aten.lerp.Tensor):
        weight = number(args[2])
        return None if weight is None else plus(times(of(args[0]), 1 - weight), times(of(args[1]), weight))
    if target in (aten.addcmul.default, aten.addcdiv.default):
        return of(args[0]) if args[1] not in factors and args[2] not in factors else None
    return None


# What calibration did not see


def _carry(run: _Run) -> None:
    """A state is held in one format: before and after the step it has the magnitude of both."""
    for name, update in run.updates.items():
        node = run.by_name[name]
        both = max(run.result.magnitude(node), run.result.magnitude(update))
        run.result.raise_to(node, both)
        if update not in run.folded.constants and update not in run.folded.tables:
            run.result.raise_to(update, both)


_PRODUCTS = frozenset(
    {aten.mul.Tensor, aten.mm.default, aten.bmm.default, aten.addmm.default, aten.convolution.default}
)


def _fill_zeros(run: _Run) -> None:
    """What was zero in every step (behind LoRA's B, or a gate that is shut) gets the size of what feeds it."""
    magnitudes = run.result.magnitudes
    for node in run.folded.live:
        if not is_float(node) or run.result.magnitude(node) > 0:
            continue
        feeding = [
            run.result.magnitude(operand)
            for operand in node.all_input_nodes
            if is_float(operand) and run.result.magnitude(operand) > 0
        ]
        if not feeding:
            continue
        estimate = max(feeding)
        if node.target in _PRODUCTS and len(feeding) > 1:
            estimate = 1.0
            for magnitude in feeding:
                estimate *= magnitude
        magnitudes[node] = (estimate, *magnitudes.get(node, ())[1:])
