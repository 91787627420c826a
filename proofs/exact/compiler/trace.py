"""From a plain PyTorch step to a flat graph of ATen operations on fake tensors: shapes known, no numbers computed.

In-place updates are made functional, decompositions are those of core ATen but for the operations that have a lowering
rule of their own, attention is traced as its mathematics, and every node knows the user's line (`meta["origin"]`).
What cannot be traced is collected; tracing goes on as far as it can, so that one run tells as much as possible.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from proofs.exact.compiler.decompositions import decompositions
from proofs.exact.compiler.errors import RUN_IT, Origin, Problem
from proofs.exact.compiler.locate import CARRY_WHAT_CHANGES, Locator, TracingStopped, function_line, raising_line

aten = torch.ops.aten

Step = Callable[..., Any]
RESERVED_NAMES = ("t", "loss", "seed")


class LeafKind(Enum):
    PARAMETER = "params"
    STATE = "state"
    DATA = "data"


@dataclass(frozen=True, slots=True)
class Leaf:
    """A tensor that the step reads: its name in the program, and the example given for it."""

    name: str
    kind: LeafKind
    example: torch.Tensor


@dataclass(frozen=True, slots=True)
class Trace:
    """`module` takes the leaves in order and returns the new value of each parameter and state leaf, then the loss.

    It is None where the step could not be traced to its end; `problems` then says why, and `partial` is what there is.
    """

    leaves: tuple[Leaf, ...]
    params_spec: pytree.TreeSpec
    state_spec: pytree.TreeSpec
    module: fx.GraphModule | None
    partial: fx.Graph | None
    problems: tuple[Problem, ...]

    @property
    def carried(self) -> tuple[Leaf, ...]:
        """What a step replaces: parameters and state."""
        return tuple(leaf for leaf in self.leaves if leaf.kind is not LeafKind.DATA)

    @property
    def by_node(self) -> dict[fx.Node, Leaf]:
        """The leaf of each placeholder of a step that was traced to its end."""
        assert self.module is not None
        return dict(zip(self.module.graph.find_nodes(op="placeholder"), self.leaves, strict=True))


def trace(step: Step, params: Any, state: Any, batch: Mapping[str, Any], *, keep: Collection[object]) -> Trace:
    """`keep`: operations that are left whole, because a lowering rule exists for them."""
    problems: list[Problem] = []
    leaves: list[Leaf] = []
    specs = []
    for kind, tree in ((LeafKind.PARAMETER, params), (LeafKind.STATE, state), (LeafKind.DATA, batch)):
        found, spec, wrong = _leaves(kind, tree)
        leaves += found
        problems += wrong
        specs.append(spec)
    problems += _check_names(leaves)
    origin = Origin(function_line(step))
    if problems:
        located = tuple(Problem(problem.why, problem.instead, origin) for problem in problems)
        return Trace(tuple(leaves), specs[0], specs[1], None, None, located)

    counts = [spec.num_leaves for spec in specs]
    locator = Locator()

    def flat(*tensors: torch.Tensor) -> list[torch.Tensor]:
        parts, start = [], 0
        for spec, count in zip(specs, counts, strict=True):
            parts.append(pytree.tree_unflatten(list(tensors[start : start + count]), spec))
            start += count
        with locator, locator.following_modules():
            result = step(*parts)
        return _checked_outputs(result, specs, leaves, locator.problems, origin)

    module: fx.GraphModule | None = None
    drawn = _draws_elsewhere()
    try:
        with sdpa_kernel(SDPBackend.MATH), _without_onednn(), _told_once():
            module = _traced(flat, leaves, keep)
            if any(_mutates(node) for node in module.graph.nodes):
                module = _functional(module, leaves, keep)
    except TracingStopped:
        pass
    except Exception as error:  # noqa: BLE001 — whatever the user's code raises is a problem of theirs to be told
        where = Origin(raising_line(error.__traceback__))
        problems.append(Problem(f"{type(error).__name__}: {_first_line(error)}", _hint(error), where))
    problems = [*locator.problems, *problems]
    if drawn != _draws_elsewhere():
        problems.append(Problem("the step draws from Python's or NumPy's random numbers", DRAW, origin))
    if module is not None:
        brought = _generators(module)
        problems += brought
        _drop_mutations(module)
        module = None if brought else module
    return Trace(tuple(leaves), specs[0], specs[1], module, locator.graph, tuple(problems))


@contextmanager
def _without_onednn() -> Iterator[None]:
    """An LSTM is then traced as its arithmetic, not as one operation of that library."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


@contextmanager
def _told_once() -> Iterator[None]:
    """PyTorch logs twenty lines of its own insides about an operation it refuses; the exception says it at the line."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _traced(function: Callable[..., Any], leaves: Sequence[Leaf], keep: Collection[object]) -> fx.GraphModule:
    traced: fx.GraphModule = make_fx(
        function, decomposition_table=decompositions(keep), tracing_mode="fake", _allow_non_fake_inputs=True
    )(*[_fresh(leaf.example) for leaf in leaves])
    return traced


def _functional(module: fx.GraphModule, leaves: Sequence[Leaf], keep: Collection[object]) -> fx.GraphModule:
    """The same graph without operations that write to their operands: it is run again under functionalisation."""
    locator = Locator()

    class Replay(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            locator.replayed = n.meta.get("origin", Origin())
            return super().run_node(n)

    def run(*tensors: torch.Tensor) -> Any:
        with locator:
            return Replay(module).run(*tensors)

    return _traced(functionalize(run, remove="mutations"), leaves, keep)


def _mutates(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def named_leaves(kind: LeafKind, tree: Any) -> list[tuple[str, Any]]:
    """The leaves of a pytree with their names in the program: "params.0.weight"; data without a prefix."""
    flat, _ = pytree.tree_flatten_with_path(tree)
    prefix = [] if kind is LeafKind.DATA else [kind.value]
    return [(".".join([*prefix, *map(_key, path)]), leaf) for path, leaf in flat]


def _leaves(kind: LeafKind, tree: Any) -> tuple[list[Leaf], pytree.TreeSpec, list[Problem]]:
    found, problems = [], []
    for name, leaf in named_leaves(kind, tree):
        if not isinstance(leaf, torch.Tensor):
            wanted = f"torch.tensor({leaf!r})" if isinstance(leaf, bool | int | float) else "a tensor"
            problems.append(Problem(f"{name!r} is a {type(leaf).__name__}, not a tensor", f"{name} = {wanted}"))
        elif leaf.is_complex() or leaf.is_sparse or leaf.is_quantized:
            problems.append(Problem(f"{name!r} is {leaf.dtype}, {leaf.layout}", "use dense real or integer tensors"))
        elif leaf.numel() == 0:
            problems.append(Problem(f"{name!r} has shape {list(leaf.shape)}: no elements", "leave it out"))
        else:
            example = leaf.detach().cpu()
            if example.is_floating_point() and not bool(torch.isfinite(example).all()):
                problems.append(Problem(f"{name!r} has NaN or Inf in the example", "give finite numbers"))
            found.append(Leaf(name, kind, example))
    return found, pytree.tree_structure(tree), problems


def _check_names(leaves: list[Leaf]) -> list[Problem]:
    problems = []
    names = [leaf.name for leaf in leaves]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(Problem(f"two tensors are named {name!r}", "use other keys"))
    for leaf in leaves:
        if leaf.kind is LeafKind.DATA and leaf.name in RESERVED_NAMES:
            problems.append(Problem(f"the batch key {leaf.name!r} is taken by the program itself", "rename it"))
        if len(leaf.name.encode()) > 128 or not leaf.name.isprintable() or not leaf.name:
            problems.append(Problem(f"{leaf.name!r} is no name: 1 to 128 bytes of printable text", "use other keys"))
    return problems


def _checked_outputs(
    result: Any, specs: list[pytree.TreeSpec], leaves: list[Leaf], problems: list[Problem], origin: Origin
) -> list[torch.Tensor]:
    """New parameters, new state, loss, flat. What is wrong with them goes to `problems`; raises TracingStopped."""
    before = len(problems)

    def wrong(why: str, instead: str) -> None:
        problems.append(Problem(why, instead, origin))

    if not isinstance(result, tuple) or len(result) != 3:
        what = f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__}"
        wrong(f"the step returns {what}", "return params, state, loss")
        raise TracingStopped
    outputs: list[torch.Tensor] = []
    for part, spec, kind in zip(result[:2], specs[:2], (LeafKind.PARAMETER, LeafKind.STATE), strict=True):
        given = dict(named_leaves(kind, part))
        wanted = {leaf.name: leaf.example for leaf in leaves if leaf.kind is kind}
        missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
        if missing or extra or pytree.tree_structure(part) != spec:
            differ = [f"without {', '.join(missing)}"] * bool(missing) + [f"with {', '.join(extra)}"] * bool(extra)
            wrong(
                f"the step returns another structure of {kind.value} than it is given"
                + (f": {' and '.join(differ)}" if differ else ""),
                "return every tensor under the key it came in, changed or not",
            )
            continue
        for name, example in wanted.items():
            tensor = given[name]
            if not isinstance(tensor, torch.Tensor):
                wrong(f"{name} becomes a {type(tensor).__name__}", "keep it a tensor")
            elif tensor.shape != example.shape:
                wrong(
                    f"{name} has shape {list(example.shape)} before the step and {list(tensor.shape)} after it",
                    "state keeps its shape",
                )
            elif tensor.dtype != example.dtype:
                wrong(f"{name} is {example.dtype} before the step and {tensor.dtype} after it", "state keeps its dtype")
            else:
                outputs.append(tensor)
    loss = result[2]
    if not isinstance(loss, torch.Tensor):
        wrong(f"the loss is a {type(loss).__name__}", "return it as a tensor, without .item()")
    elif loss.dim() != 0 or not loss.is_floating_point():
        wrong(f"the loss is {loss.dtype} of shape {list(loss.shape)}", "return its mean: a float tensor without axes")
    else:
        outputs.append(loss)
    if len(problems) > before:
        raise TracingStopped
    return outputs


DRAW = "draw with torch (torch.rand, bernoulli, dropout): other draws happen once, while the step is compiled"


def _draws_elsewhere() -> tuple[Any, ...]:
    """Changes when somebody draws a random number that does not come from torch."""
    _, keys, *rest = np.random.get_state(legacy=True)
    return random.getstate(), np.asarray(keys).tobytes(), *rest


def _generators(module: fx.GraphModule) -> list[Problem]:
    """Draws from a torch.Generator of the user's own."""
    return [
        Problem(
            "a draw from a generator that the step brings along",
            "leave the generator out: draws follow from the task's seed and the step's number",
            user.meta.get("origin", Origin()),
        )
        for node in module.graph.find_nodes(op="get_attr")
        if isinstance(getattr(module, str(node.target)), torch.Generator)
        for user in node.users
    ]


def _drop_mutations(module: fx.GraphModule) -> None:
    """What functionalisation writes back to the inputs at the end: the step returns it anyway."""
    for node in list(module.graph.nodes):
        if node.target is aten.copy_.default and not node.users and node.args[0].op == "placeholder":
            module.graph.erase_node(node)
    module.recompile()


def _fresh(example: torch.Tensor) -> torch.Tensor:
    """A tensor of its own: the tracer tells inputs apart by identity, and tied or expanded ones would be confused."""
    return torch.empty(example.shape, dtype=example.dtype)


def _key(entry: Any) -> str:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _hint(error: BaseException) -> str:
    if "mutate a captured Tensor" in str(error):
        return CARRY_WHAT_CHANGES
    if ".numpy()" in str(error):
        return "keep to torch's operations: NumPy computes at once, and leaves nothing to compile"
    return RUN_IT
