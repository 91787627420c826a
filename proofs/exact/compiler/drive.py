"""The walk over a calibrated graph: inputs, one rule per node, outputs. Every problem on the way is collected.

What a program has beside the user's step: `t` counts the steps done, `loss` is the moving mean of the loss, and with
`samples` each step takes its batch from the shard by PERMUTE.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import fx

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.compiler import arithmetic, materialise
from proofs.exact.compiler.assign import Formats, origin_of
from proofs.exact.compiler.errors import Origin, Problem
from proofs.exact.compiler.fold import Folded
from proofs.exact.compiler.formats import DataType, NumberFormat, Options
from proofs.exact.compiler.interpret import PARTS, VIEWS, is_float
from proofs.exact.compiler.lowering import EXACT, RULES, Facts, Labels, Lowering, Rule, Unsupported
from proofs.exact.compiler.trace import Leaf, LeafKind
from proofs.exact.program import Program
from proofs.exact.tensor_type import TensorError, TensorType, bits_for

aten = torch.ops.aten

STEP_TYPE = TensorType((), 32, 0)
COUNTER_BITS = 40
LOSS_TYPE = TensorType((), 32, 16)
LOSS_MEMORY_SHIFT = 4
"""The reported loss moves 1/16 of the way to each batch's mean."""
CHECKED_BITS = 60
"""What a number may grow to before the CHECK of `overflow="assert"` looks at it."""

_PLACEMENT = ("layout", "device", "pin_memory", "memory_format", "non_blocking")
"""Arguments that say where a tensor lies: values have no place."""
_SCALINGS = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Scalar})
_SUMS = frozenset({aten.add.Tensor, aten.sub.Tensor})
_ARITHMETIC = frozenset({aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor})
"""Operations whose second operand may be a Python number."""


@dataclass(frozen=True)
class Lowered:
    """A program, where each of its operations comes from, and the bounds of its integer data."""

    program: Program | None
    origins: tuple[Origin, ...]
    labels: Mapping[str, Labels]
    problems: tuple[Problem, ...]


class Driver:
    """Lowers one graph. Made for a single use."""

    def __init__(
        self,
        folded: Folded,
        formats: Formats,
        options: Options,
        data_types: Mapping[str, DataType],
        samples: int | None,
    ) -> None:
        self._folded = folded
        self._formats = formats
        self._options = options
        self._data_types = data_types
        self._samples = samples
        self._b = ProgramBuilder()
        self._problems: list[Problem] = []
        self._values: dict[fx.Node, Any] = {}
        self._t = self._b.state("t", STEP_TYPE)
        self._lowering = Lowering(self._b, self._t, options, formats)
        self._stated: dict[fx.Node, TensorType] = {}
        self._raw: dict[str, Handle] = {}
        self._index: Handle | None = None

    def run(self) -> Lowered:
        self._inputs()
        for node in self._folded.live:
            self._b.origin = origin_of(node)
            self._lower(node)
        program = None
        if not self._problems:
            try:
                self._outputs()
                program = self._b.build()
            except TensorError as error:
                self._problems.append(Problem(str(error), "use narrower numbers, or smaller constants"))
            except ValueError as error:
                self._problems.append(Problem(str(error), "make the step's tensors or constants smaller"))
        origins = tuple(
            handle.origin if isinstance(handle.origin, Origin) else Origin() for handle in self._b.operations()
        )
        return Lowered(program, origins, self._lowering.labels, tuple(self._problems))

    # What a step reads

    def _inputs(self) -> None:
        rows = None
        if self._samples is not None:
            batch = self._batch_size()
            rows = self._b.permute(self._t, samples=self._samples, batch=batch)
        for node, leaf in self._formats.leaves.items():
            if leaf.kind is LeafKind.DATA:
                self._values[node] = self._data(node, leaf, rows)
            else:
                self._values[node] = self._state(node, leaf)

    def _batch_size(self) -> int:
        return next(leaf.example.shape[0] for leaf in self._formats.leaves.values() if leaf.kind is LeafKind.DATA)

    def _state(self, node: fx.Node, leaf: Leaf) -> Handle:
        type_ = state_type(leaf, self._formats, self._folded)
        handle = self._raw[leaf.name] = self._b.state(leaf.name, type_)
        if is_float(node) and leaf.name not in self._folded.schedules:
            self._stated.setdefault(self._formats.updates[leaf.name], type_)
            name = leaf.name if leaf.kind is LeafKind.PARAMETER else ""
            self._lowering.know(handle, Facts(self._formats.magnitude(node), name))
        if leaf.example.dtype is torch.bool:
            return self._b.clamp(handle, 0, 1)
        return handle

    def _data(self, node: fx.Node, leaf: Leaf, rows: Handle | None) -> Handle:
        given = self._data_types[leaf.name]
        shape = tuple(leaf.example.shape)
        stored = given.stored(shape if self._samples is None else (self._samples, *shape[1:]))
        handle = self._b.data(leaf.name, stored)
        if rows is not None:
            handle = self._b.gather(handle, rows)
        if given.offset:
            handle = self._b.add(handle, self._b.constant(given.offset, frac=handle.frac))
        if given.multiplier != 1:
            factor = self._b.constant(given.multiplier, frac=given.frac - given.stored_frac)
            handle = self._b.mul(handle, factor)
        if leaf.example.dtype is torch.bool:
            handle = self._b.clamp(handle, 0, 1)
        if is_float(node):
            self._lowering.know(handle, Facts(self._formats.magnitude(node)))
        return handle

    # Node by node

    def _lower(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            whole = self._values.get(node.args[0])  # type: ignore[arg-type]
            if whole is not None:
                self._values[node] = whole[node.args[1]]
            return
        rule = RULES.get(node.target)
        if rule is None:
            self._problems.append(no_rule(node))
            return
        if any(not self._available(operand) for operand in node.all_input_nodes):
            return  # what it reads is on the list already
        self._lowering.node = node
        if _has_float(node):
            self._lowering.format = self._formats.of(node)
        try:
            self._values[node] = self._settled(node, self._call(rule, node))
        except Unsupported as verdict:
            self._reject(node, verdict.why, verdict.instead)
        except TensorError as error:
            self._reject(
                node, f"the numbers do not fit: {error}", "scale the numbers down, or make the tensors smaller"
            )
        except ValueError as error:
            self._reject(node, str(error), "")
        except Exception as error:
            origin = origin_of(node)
            error.add_note(f"while {node.target} was lowered, at {origin.location}: {origin.location.code}")
            raise

    def _call(self, rule: Rule, node: fx.Node) -> Any:
        args = tuple(self._argument(node, place, argument) for place, argument in enumerate(node.args))
        kwargs = {key: self._argument(node, -1, value) for key, value in node.kwargs.items() if key not in _PLACEMENT}
        try:
            _signature(rule).bind(self._lowering, *args, **kwargs)
        except TypeError as error:
            raise Unsupported(f"this form of the operation has no exact counterpart ({error})", "") from error
        return rule(self._lowering, *args, **kwargs)

    def _argument(self, node: fx.Node, place: int, argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [self._argument(node, -1, entry) for entry in argument]
        if not isinstance(argument, fx.Node):
            return argument
        if place == 1 and node.target in _ARITHMETIC and argument in self._folded.constants:
            number = materialise.number_of(self._folded.constants[argument])
            first = node.args[0]
            if number is not None and isinstance(first, fx.Node) and first.meta["val"].shape == node.meta["val"].shape:
                return number
        return self._handle(argument)

    def _handle(self, node: fx.Node) -> Any:
        """What a node is in the program; constants and tables enter it when they are first read."""
        if node not in self._values or (node in self._folded.tables):
            if node in self._folded.constants:
                value = self._folded.constants[node]
                self._values[node] = materialise.constant(self._b, value, self._formats.mask_exponent)
            elif node in self._folded.tables:
                shape = tuple(node.meta["val"].shape)
                return materialise.table(self._b, self._t, self._folded.tables[node], shape)
        return self._values[node]

    def _available(self, node: fx.Node) -> bool:
        return node in self._values or node in self._folded.constants or node in self._folded.tables

    def _settled(self, node: fx.Node, result: Any) -> Any:
        if isinstance(result, Handle):
            return self._settle_one(node, result, node.meta["val"], 0)
        if not isinstance(result, list | tuple):
            raise TypeError(f"the rule for {node.target} returned a {type(result).__name__}")
        vals = node.meta["val"]
        return tuple(
            None if handle is None else self._settle_one(node, handle, vals[place], place)
            for place, handle in enumerate(result)
        )

    def _settle_one(self, node: fx.Node, handle: Handle, val: torch.Tensor, place: int) -> Handle:
        if handle.shape != tuple(val.shape):
            handle = self._b.broadcast(handle, tuple(val.shape))
        if not val.is_floating_point():
            return self._whole(handle, val.dtype)
        if node in self._stated:
            handle = self._as_state(handle, self._stated[node])
        elif node.target not in EXACT and not self._rounded_by_reader(node):
            if place:
                self._lowering.format = self._formats.of(node, place)
            handle = self._lowering.settle(handle)
        if node.target not in VIEWS and node.target not in PARTS:
            self._lowering.know(handle, Facts(self._formats.magnitude(node, place)))
        return handle

    def _whole(self, handle: Handle, dtype: torch.dtype) -> Handle:
        """Integers and truth values as PyTorch has them: whole, and never so large that they would wrap around."""
        if handle.frac != 0:
            raise Unsupported(f"real numbers that the operation itself turns to {dtype}", "convert first: x.long()")
        least, greatest = (0, 1) if dtype is torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        if handle.lo < least or handle.hi > greatest:
            raise Unsupported(
                f"{dtype} may wrap around: the result lies in {handle.lo}..{handle.hi}",
                "compute in a wider type: x.long(), x.float()",
            )
        return handle

    def _rounded_by_reader(self, node: fx.Node) -> bool:
        """Whether this is a product with a number that one sum alone reads: the sum rounds it, with itself, once."""
        if node.target not in _SCALINGS or len(node.users) != 1:
            return False
        (reader,), factor = node.users, node.args[1]
        if isinstance(factor, fx.Node) and not (factor in self._folded.tables or factor in self._folded.constants):
            return False
        same = reader.op == "call_function" and reader.target in _SUMS
        return same and bool(reader.meta["val"].shape == node.meta["val"].shape)

    def _as_state(self, handle: Handle, type_: TensorType) -> Handle:
        """In exactly the type that the state has: saturated, or checked."""
        if self._options.overflow == "saturate":
            return arithmetic.to(self._b, handle, NumberFormat(type_.frac, type_.bits))
        handle = arithmetic.to(self._b, handle, NumberFormat(type_.frac, CHECKED_BITS))
        return self._b.check(handle, type_.lo, type_.hi)

    def _reject(self, node: fx.Node, why: str, instead: str) -> None:
        self._problems.append(Problem(why, instead, origin_of(node)))

    # What a step writes

    def _outputs(self) -> None:
        b = self._b
        inputs = {leaf.name: node for node, leaf in self._formats.leaves.items()}
        for name, update in self._formats.updates.items():
            b.origin = origin_of(update)
            raw = self._raw[name]
            if name in self._folded.counters:
                following = b.clamp(b.add(raw, b.constant(1)), *_bounds(raw))
            elif name in self._folded.schedules:
                following = self._scheduled(name, raw)
            elif update is inputs[name]:
                following = raw
            else:
                following = self._as_state(self._handle(update), TensorType(raw.shape, raw.bits, raw.frac))
            b.update(name, following)
        b.origin = origin_of(self._folded.outputs[-1])
        loss = b.state("loss", LOSS_TYPE)
        batch_loss = arithmetic.to(b, self._handle(self._folded.outputs[-1]), NumberFormat(16, 32))
        kept = b.mul(loss, b.constant(2**LOSS_MEMORY_SHIFT - 1, frac=LOSS_MEMORY_SHIFT))
        moved = b.add(kept, b.mul(batch_loss, b.constant(1, frac=LOSS_MEMORY_SHIFT)))
        b.update("loss", b.rescale(moved, frac=LOSS_TYPE.frac, bits=LOSS_TYPE.bits))
        b.origin = None
        b.update("t", b.clamp(b.add(self._t, b.constant(1)), *_bounds(self._t)))

    def _scheduled(self, name: str, raw: Handle) -> Handle:
        series = self._folded.schedules[name]
        if series is None:
            raise ValueError(f"{name} depends on the step's number: say how many steps, compile(..., steps=N)")
        after = self._b.add(self._t, self._b.constant(1))
        following = materialise.table(self._b, after, series, raw.shape)
        return arithmetic.to(self._b, following, NumberFormat(raw.frac, raw.bits))


@cache
def _signature(rule: Rule) -> inspect.Signature:
    return inspect.signature(rule)


def state_type(leaf: Leaf, formats: Formats, folded: Folded) -> TensorType:
    """How a parameter or state leaf is held."""
    shape = tuple(leaf.example.shape)
    if leaf.name in folded.counters:
        return TensorType(shape, COUNTER_BITS, 0)
    series = folded.schedules.get(leaf.name)
    if series is not None:
        integers, frac = materialise.integers_of(series, 0)
        return TensorType(shape, _storage(bits_for(min(integers), max(integers))), frac)
    if leaf.example.is_floating_point():
        node = next(node for node, given in formats.leaves.items() if given is leaf)
        return formats.of(node).type(shape)
    lo, hi = (int(bound) for bound in torch.aminmax(leaf.example.to(torch.int64)))
    return TensorType(shape, _storage(bits_for(lo, hi)), 0)


def _storage(bits: int) -> int:
    return next((width for width in (8, 16, 32) if width >= bits), 64)


def _bounds(raw: Handle) -> tuple[int, int]:
    """From zero to the greatest value of a counter's type."""
    return raw.lo, raw.hi


def _has_float(node: fx.Node) -> bool:
    val = node.meta.get("val")
    parts = val if isinstance(val, list | tuple) else (val,)
    return any(isinstance(part, torch.Tensor) and part.is_floating_point() for part in parts)


def no_rule(node: fx.Node) -> Problem:
    """That nothing lowers this node's operation."""
    name = str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)
    instead = _INSTEAD.get(name, "compose it of operations that have one")
    return Problem("there is no exact form of this operation", instead, origin_of(node))


_WHOLE = (
    "a gradient passes through writing to parts of a tensor: build it in one go (torch.cat, torch.stack, torch.where)"
)
_INSTEAD = {
    "as_strided": _WHOLE,
    "as_strided_scatter": _WHOLE,
    "new_empty_strided": _WHOLE,
    "sort": "choose by comparison: torch.where and amax",
    "topk": "choose by comparison: torch.where and amax",
    "cumsum": "a product with a constant triangular matrix of ones",
    "_cdist_forward": "(a - b).pow(2).sum(-1)",
    "linalg_svd": "nothing close: decompositions have no exact form",
    "randn": "dropout and uniform draws are supported; normal draws are not",
    "randn_like": "dropout and uniform draws are supported; normal draws are not",
    "normal_functional": "dropout and uniform draws are supported; normal draws are not",
}
