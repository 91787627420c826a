"""What needs no step to be known: constants, and scalars that depend on the step's number alone.

Constants are evaluated once, in float64. A *schedule* is a scalar of the state whose update depends on schedules and
constants alone: a step counter (c + 1), a decaying rate (0.99 r). Whatever follows from schedules is evaluated for
every step beforehand, in float64, and enters the program as a table over the steps: learning rates, warm-up, cosine,
bias correction, where, min and max, in whatever form they are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import torch
from torch import fx

from proofs.exact.compiler.errors import Origin, Problem
from proofs.exact.compiler.interpret import VIEWS, as_real, evaluate, is_mask, refused, val_of
from proofs.exact.compiler.materialise import MAX_EXPONENT
from proofs.exact.compiler.rewrite import move_scalars, simplify
from proofs.exact.compiler.trace import Leaf, LeafKind, Trace

aten = torch.ops.aten

MAX_STEPS = 2**22
MAX_CAPTURED = 2**16
"""Elements of one tensor that the step takes from its surroundings instead of from params, state or batch."""


class Known(IntEnum):
    """When a value is known. The greater wins."""

    ALWAYS = 0
    BY_STEP = 1
    AT_RUN = 2


@dataclass(frozen=True)
class Folded:
    """`live` are the nodes that are left to lower, in order. What they read besides: `constants`, and `tables` with the
    values by step, [steps]. `schedules` are the values of schedule leaves, [steps + 1]; None without `steps`.
    """

    live: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    constants: Mapping[fx.Node, torch.Tensor]
    tables: Mapping[fx.Node, torch.Tensor]
    counters: Mapping[str, int]
    """Schedule leaves that count steps, with their value in the example."""
    schedules: Mapping[str, torch.Tensor | None]
    problems: tuple[Problem, ...] = field(default=())


def fold(trace: Trace, steps: int | None) -> Folded:
    """Simplifies `trace.module` in place, then finds out what is known when."""
    assert trace.module is not None
    graph = trace.module.graph
    simplify(graph)
    problems: list[Problem] = []
    leaves = dict(zip(graph.find_nodes(op="placeholder"), trace.leaves, strict=True))
    (output,) = graph.find_nodes(op="output")
    outputs: tuple[fx.Node, ...] = tuple(output.args[0])
    schedules, known = _schedules(graph, leaves, outputs)
    if move_scalars(graph, {node for node, when in known.items() if when is Known.BY_STEP}):
        outputs = tuple(output.args[0])
        schedules, known = _schedules(graph, leaves, outputs)
    live = _live(graph, outputs, known)
    used = {operand for node in live for operand in node.all_input_nodes} | set(outputs)

    constants: dict[fx.Node, torch.Tensor] = {}
    for node in graph.nodes:
        if known.get(node) is Known.ALWAYS and node.op != "output":
            try:
                constants[node] = _constant(trace.module, node, constants)
            except RuntimeError as error:
                problems.append(_not_evaluated(node, error))
                break
            except IndexError as error:
                problems.append(refused(node, error))
                break
            if node.op == "get_attr" and _is_captured(getattr(trace.module, str(node.target))):
                problems.append(_captured(node, constants[node]))
            elif node in used:
                problems += _check_constant(node, constants[node])

    if problems:
        return Folded(live, outputs, {}, {}, {}, {}, tuple(problems))
    updates = _updates(leaves, outputs)
    series, wrong = _series(graph, schedules, constants, known, updates, steps)
    problems += wrong
    problems += _whole_numbers(leaves, updates, schedules)
    read = {operand for node in live for operand in node.all_input_nodes}
    read |= {update for node, update in updates.items() if node not in schedules} | {outputs[-1]}
    leaving = [node for node in graph.nodes if node in read and known.get(node) is Known.BY_STEP]
    tables = {}
    if steps is None and leaving:
        problems.append(_needs_steps(min(leaving, key=list(graph.nodes).index)))
    elif series:
        for node in leaving:
            tables[node] = series[node][:-1]
            problems += _check_constant(node, tables[node], by_step=True)
    return Folded(
        live,
        outputs,
        {node: value for node, value in constants.items() if node in used},
        tables,
        {leaf.name: int(leaf.example) for node, leaf in schedules.items() if _counts(node, leaf, updates[node])},
        {leaf.name: series.get(node) for node, leaf in schedules.items()},
        tuple(problems),
    )


# What is known when


_BY_SHAPE = frozenset(
    {
        aten.full_like.default,
        aten.zeros_like.default,
        aten.ones_like.default,
        aten.empty_like.default,
        aten.new_zeros.default,
        aten.new_ones.default,
        aten.new_full.default,
        aten.new_empty.default,
    }
)
"""Operations that read nothing of their operand but its shape."""


def _schedules(
    graph: fx.Graph, leaves: Mapping[fx.Node, Leaf], outputs: tuple[fx.Node, ...]
) -> tuple[dict[fx.Node, Leaf], dict[fx.Node, Known]]:
    """The greatest set of scalar state leaves whose updates depend on that set and constants alone."""
    updates = _updates(leaves, outputs)
    chosen = {
        node: leaf
        for node, leaf in leaves.items()
        if leaf.kind is LeafKind.STATE and leaf.example.numel() == 1 and updates[node] is not node
    }
    while True:
        known = _known(graph, set(chosen))
        kept = {node: leaf for node, leaf in chosen.items() if known[updates[node]] is not Known.AT_RUN}
        if len(kept) == len(chosen):
            return kept, known
        chosen = kept


def _known(graph: fx.Graph, schedules: set[fx.Node]) -> dict[fx.Node, Known]:
    known: dict[fx.Node, Known] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            known[node] = Known.BY_STEP if node in schedules else Known.AT_RUN
        elif node.op == "get_attr" or node.target in _BY_SHAPE:
            known[node] = Known.ALWAYS
        elif node.op == "call_function":
            when = max((known[operand] for operand in node.all_input_nodes), default=Known.ALWAYS)
            val = node.meta.get("val")
            many = not isinstance(val, torch.Tensor) or val.numel() != 1
            random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            known[node] = Known.AT_RUN if random or (when is Known.BY_STEP and many) else when
    return known


def computed_at_run(graph: fx.Graph, leaves: Sequence[Leaf]) -> list[fx.Node]:
    """The operations of a graph, complete or not, that a program would have to compute."""
    placeholders = zip(graph.find_nodes(op="placeholder"), leaves, strict=False)
    scalars = {node for node, leaf in placeholders if leaf.kind is LeafKind.STATE and leaf.example.numel() == 1}
    known = _known(graph, scalars)
    return [node for node in graph.nodes if node.op == "call_function" and known[node] is Known.AT_RUN]


def _live(graph: fx.Graph, outputs: tuple[fx.Node, ...], known: Mapping[fx.Node, Known]) -> tuple[fx.Node, ...]:
    wanted: set[fx.Node] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if known[node] is Known.AT_RUN and node not in wanted:
            wanted.add(node)
            waiting.extend(node.all_input_nodes)
    return tuple(node for node in graph.nodes if node in wanted and node.op != "placeholder")


def _constant(module: fx.GraphModule, node: fx.Node, values: Mapping[fx.Node, torch.Tensor]) -> Any:
    if node.op == "get_attr":
        return as_real(getattr(module, str(node.target)).detach().cpu(), torch.float64)
    if node.target in _BY_SHAPE:
        val = val_of(node)
        dtype = torch.float64 if val.is_floating_point() else val.dtype
        fill: Any = 1 if node.target in (aten.ones_like.default, aten.new_ones.default) else 0
        if node.target is aten.full_like.default:
            fill = node.args[1]
        elif node.target is aten.new_full.default:
            fill = node.args[2]
        return torch.full((), fill, dtype=dtype).expand(val.shape)
    return evaluate(node, values, torch.float64)


# Tables over the steps


_LANES = VIEWS | {aten._to_copy.default}
"""Besides element-wise operations, what may be computed for all steps at once, one lane per step."""


def _series(
    graph: fx.Graph,
    schedules: Mapping[fx.Node, Leaf],
    constants: Mapping[fx.Node, torch.Tensor],
    known: Mapping[fx.Node, Known],
    updates: Mapping[fx.Node, fx.Node],
    steps: int | None,
) -> tuple[dict[fx.Node, torch.Tensor], list[Problem]]:
    """Every BY_STEP node's values before each of the steps and after the last: [steps + 1]."""
    if steps is None or not schedules:
        return {}, []
    if not 1 <= steps <= MAX_STEPS:
        return {}, [Problem(f"steps = {steps}", f"1 to {MAX_STEPS} steps")]
    nodes = [node for node in graph.nodes if known.get(node) is Known.BY_STEP and node.op == "call_function"]
    lanes = all(_counts(node, leaf, updates[node]) for node, leaf in schedules.items()) and all(
        node.target in _LANES or torch.Tag.pointwise in node.target.tags for node in nodes
    )
    if not lanes:
        return _one_by_one(nodes, schedules, constants, updates, steps), []
    # Parts of a constant (torch.split) are a list of tensors.
    scalars = {node: value for node, value in constants.items() if isinstance(value, torch.Tensor)}
    values: dict[fx.Node, Any] = {node: value.reshape(()) for node, value in scalars.items() if value.numel() == 1}
    for node, leaf in schedules.items():
        counted = torch.arange(steps + 1) + int(leaf.example)
        values[node] = counted.to(torch.float64 if leaf.example.is_floating_point() else leaf.example.dtype)
    for node in nodes:
        if node.target in VIEWS:
            values[node] = values[node.args[0]]
        else:
            values[node] = evaluate(node, values, torch.float64).expand(steps + 1)
    return values, []


def _one_by_one(
    nodes: list[fx.Node],
    schedules: Mapping[fx.Node, Leaf],
    constants: Mapping[fx.Node, torch.Tensor],
    updates: Mapping[fx.Node, fx.Node],
    steps: int,
) -> dict[fx.Node, torch.Tensor]:
    values: dict[fx.Node, Any] = dict(constants)
    for node, leaf in schedules.items():
        values[node] = as_real(leaf.example, torch.float64)
    rows: dict[fx.Node, list[torch.Tensor]] = {node: [] for node in (*schedules, *nodes)}
    for _ in range(steps + 1):
        for node in nodes:
            values[node] = evaluate(node, values, torch.float64)
        for node, row in rows.items():
            row.append(values[node].reshape(()))
        values |= {node: values[updates[node]].reshape(val_of(node).shape) for node in schedules}
    return {node: torch.stack(row) for node, row in rows.items()}


def _counts(node: fx.Node, leaf: Leaf, update: fx.Node) -> bool:
    """Whether this schedule leaf's update is itself plus one, from a whole number on."""
    added = update.target in (aten.add.Tensor, aten.add.Scalar) and update.args[0] is node and not update.kwargs
    whole = float(leaf.example) == int(leaf.example)
    return bool(added and whole and isinstance(update.args[1], int | float) and update.args[1] == 1)


def _updates(leaves: Mapping[fx.Node, Leaf], outputs: tuple[fx.Node, ...]) -> dict[fx.Node, fx.Node]:
    """The new value of every parameter and state leaf."""
    carried = [node for node, leaf in leaves.items() if leaf.kind is not LeafKind.DATA]
    return dict(zip(carried, outputs[:-1], strict=True))


# What can be wrong


def _check_constant(node: fx.Node, value: Any, *, by_step: bool = False) -> list[Problem]:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return []
    origin = node.meta.get("origin", Origin())
    bad = torch.isnan(value) | (value == torch.inf)
    if bool(bad.any()):
        kind = "NaN" if bool(torch.isnan(value).any()) else "Inf"
        at = f" at step {int(bad.reshape(-1).nonzero()[0])}" if by_step else ""
        instead = "use finite numbers (-inf in attention masks is understood)"
        return [Problem(f"a constant is {kind}{at}", instead, origin)]
    finite = value[torch.isfinite(value) & ~is_mask(value)].abs()
    greatest = float(finite.max()) if finite.numel() else 0.0
    if greatest and not 2.0**-MAX_EXPONENT < greatest < 2.0**MAX_EXPONENT:
        return [Problem(f"a constant of {greatest:.3g} has no integer form", "scale it to a size near 1", origin)]
    return []


def _whole_numbers(
    leaves: Mapping[fx.Node, Leaf], updates: Mapping[fx.Node, fx.Node], schedules: Mapping[fx.Node, Leaf]
) -> list[Problem]:
    """Integer state that changes must be a counter: nothing else says how large it gets."""
    return [
        Problem(
            f"{leaf.name} is {leaf.example.dtype} and changes by something else than the step's number",
            "integer state is a step counter (c + 1) or stays as it is; make it floating point",
            updates[node].meta.get("origin", Origin()),
        )
        for node, leaf in leaves.items()
        if node in updates and not leaf.example.is_floating_point()
        if node not in schedules and updates[node] is not node
    ]


def _not_evaluated(node: fx.Node, error: RuntimeError) -> Problem:
    return Problem(
        f"a constant that PyTorch cannot evaluate by itself: {(str(error).splitlines() or [''])[0]}",
        "make constants in one go (torch.cat, torch.where), not by writing to parts of them",
        node.meta.get("origin", Origin()),
    )


def _is_captured(tensor: torch.Tensor) -> bool:
    """A small table is a constant of the step. A parameter is not: the step would train without it, and silently."""
    return tensor.requires_grad or isinstance(tensor, torch.nn.Parameter) or tensor.numel() > MAX_CAPTURED


def _captured(node: fx.Node, value: torch.Tensor) -> Problem:
    return Problem(
        f"the step reads a tensor of {list(value.shape)} that it was not given: it would become part of the program",
        "pass it in params (or state) and return it unchanged; call the module with torch.func.functional_call",
        node.meta.get("origin", Origin()),
    )


def _needs_steps(node: fx.Node) -> Problem:
    return Problem(
        "this depends on the step's number, so it becomes a table over the steps, whose length is not known",
        "say how many steps will be trained: compile(..., steps=N)",
        node.meta.get("origin", Origin()),
    )
