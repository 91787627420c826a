"""Rules tried on real numbers: a function is traced, calibrated on its own arguments, lowered, run, and compared.

The formats are those of the compiler's roles (32 bits with 6 of headroom; 52 with 8 where the function says so), so
what is measured is what training gets. The reference is PyTorch in float64.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._decomp import core_aten_decompositions
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.compiler import (
    materialise,
    rules_activation,
    rules_elementwise,
    rules_embedding,
    rules_index,
    rules_linear,
    rules_loss,
    rules_normalise,
    rules_reduce,
    rules_shape,
)
from proofs.exact.compiler.formats import NumberFormat, Options
from proofs.exact.compiler.lowering import EXACT, RULES, Facts, Lowering
from proofs.exact.compiler.trace import Leaf, LeafKind
from proofs.exact.execute import run_unit
from proofs.exact.program import Program
from proofs.exact.tensor import ExactTensor
from proofs.exact.tensor_type import TensorType, bits_for

aten = torch.ops.aten

MASK_EXPONENT = 12
"""-2^12 stands for -inf in constants."""

RULED = (
    rules_activation,
    rules_elementwise,
    rules_embedding,
    rules_index,
    rules_linear,
    rules_loss,
    rules_normalise,
    rules_reduce,
    rules_shape,
)

Function = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
FormatOf = Callable[[fx.Node, int, float], NumberFormat]
"""Node, place among its results, greatest magnitude -> format."""


def wide(node: fx.Node, place: int, magnitude: float) -> NumberFormat:
    """What the compiler gives to an ordinary node."""
    return Options().wide.format(magnitude)


class TrialFormats:
    """In place of the compiler's Formats: magnitudes are those of this very run."""

    def __init__(self, values: Mapping[fx.Node, Any], format_of: FormatOf) -> None:
        self.leaves: dict[fx.Node, Leaf] = {
            node: Leaf(node.name, LeafKind.DATA, value) for node, value in values.items() if node.op == "placeholder"
        }
        self._values = values
        self._format_of = format_of

    def magnitude(self, node: fx.Node, place: int = 0) -> float:
        value = self._values[node]
        part = value[place] if isinstance(value, tuple | list) else value
        if not isinstance(part, torch.Tensor) or not part.is_floating_point():
            return 0.0
        finite = part[torch.isfinite(part)]
        return float(finite.abs().max()) if finite.numel() else 0.0

    def of(self, node: fx.Node, place: int = 0) -> NumberFormat:
        return self._format_of(node, place, self.magnitude(node, place))

    def module_of(self, node: fx.Node) -> str:
        return ""


class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = self.seen[n] = super().run_node(n)
        return result


def traced(function: Function, inputs: Sequence[torch.Tensor]) -> fx.GraphModule:
    def flat(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = function(*tensors)
        return result if isinstance(result, tuple) else (result,)

    given: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())
    table = {target: how for target, how in given.items() if target not in RULES}
    table[aten._safe_softmax.default] = lambda x, dim, dtype=None: aten._softmax.default(x, dim, False)
    return make_fx(
        functionalize(flat, remove="mutations"),
        decomposition_table=table,
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )(*inputs)


@dataclass
class Lowered:
    """A program with a data input for each argument and results out0, out1, ..., and what it was made of."""

    program: Program
    data: dict[str, ExactTensor]
    module: fx.GraphModule
    values: Mapping[fx.Node, Any] = field(repr=False)

    def run(self) -> list[torch.Tensor]:
        state = {
            name: ExactTensor(type_, torch.zeros(type_.shape, dtype=torch.int64))
            for name, type_ in self.program.state_types.items()
        }
        final = run_unit(self.program, state, self.data, 0, 1, 1).final_state
        places = range(sum(name.startswith("out") for name in final))
        return [final[f"out{place}"].values.double() * 2.0 ** -final[f"out{place}"].type.frac for place in places]


def lowered(function: Function, *inputs: torch.Tensor, format_of: FormatOf = wide) -> Lowered:
    """Float inputs are held as wide nodes are; integer ones lie between their least and greatest element."""
    module = traced(function, inputs)
    rounded = [_round(x, format_of) if x.is_floating_point() else x for x in inputs]
    recorder = _Recorder(module)
    recorder.run(*rounded)
    formats: Any = TrialFormats(recorder.seen, format_of)
    b = ProgramBuilder()
    t = b.state("t", TensorType((), 32, 0))
    lo = Lowering(b, t, Options(), formats)
    values: dict[fx.Node, Any] = {}
    data: dict[str, ExactTensor] = {}
    given = iter(rounded)
    for node in module.graph.nodes:
        lo.node = node
        if node.op == "placeholder":
            values[node] = _input(lo, node.name, next(given), data, format_of)
        elif node.op == "get_attr" or (node.op == "call_function" and not node.all_input_nodes):
            values[node] = materialise.constant(b, recorder.seen[node], MASK_EXPONENT)
        elif node.op == "output":
            for place, result in enumerate(node.args[0]):
                out = values[result]
                b.state(f"out{place}", TensorType(out.shape, out.bits, out.frac))
                b.update(f"out{place}", out)
        elif node.target is operator.getitem:
            values[node] = values[node.args[0]][node.args[1]]
        else:
            values[node] = _lower(lo, node, values)
    b.update("t", b.clamp(b.add(t, b.constant(1)), 0, 2**30))
    return Lowered(b.build(), data, module, recorder.seen)


def _lower(lo: Lowering, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    args = fx.map_arg(node.args, values.__getitem__)
    given: dict[str, Any] = dict(fx.map_arg(node.kwargs, values.__getitem__))
    kwargs = {key: value for key, value in given.items() if key in _MEANINGFUL}
    val = node.meta["val"]
    parts = val if isinstance(val, tuple | list) else (val,)
    if parts[0].is_floating_point():
        lo.format = lo.formats.of(node)
    result = RULES[node.target](lo, *args, **kwargs)
    results = result if isinstance(result, tuple | list) else (result,)
    settled = []
    for place, (handle, part) in enumerate(zip(results, parts, strict=True)):
        if handle is not None and part.is_floating_point() and node.target not in EXACT:
            lo.format = lo.formats.of(node, place)
            handle = lo.settle(handle)
        if handle is not None:
            lo.know(handle, Facts(lo.formats.magnitude(node, place)))
            handle = lo.b.broadcast(handle, tuple(part.shape))
        settled.append(handle)
    return settled[0] if not isinstance(result, tuple | list) else tuple(settled)


_MEANINGFUL = frozenset({"alpha", "beta", "value", "approximate", "correction", "keepdim", "dtype"})


def _input(lo: Lowering, name: str, x: torch.Tensor, data: dict[str, ExactTensor], format_of: FormatOf) -> Handle:
    if x.is_floating_point():
        form = _format(x, format_of)
        type_ = TensorType(tuple(x.shape), form.bits, form.frac)
        data[name] = ExactTensor(type_, (x * 2.0**form.frac).round().to(torch.int64))
        handle = lo.b.data(name, type_)
        lo.know(handle, Facts(float(x.abs().max())))
        return handle
    least, greatest = int(x.min()), int(x.max())
    type_ = TensorType(tuple(x.shape), bits_for(least, greatest), 0)
    data[name] = ExactTensor(type_, x.to(torch.int64))
    return lo.b.clamp(lo.b.data(name, type_), least, greatest)


def _format(x: torch.Tensor, format_of: FormatOf) -> NumberFormat:
    node = fx.Graph().placeholder("x")
    return format_of(node, 0, float(x.abs().max()))


def _round(x: torch.Tensor, format_of: FormatOf) -> torch.Tensor:
    form = _format(x, format_of)
    most = 2.0 ** (form.bits - 1) - 1
    return (x.double() * 2.0**form.frac).round().clamp(-most - 1, most) * 2.0**-form.frac


def relative_error(function: Function, *inputs: torch.Tensor, format_of: FormatOf = wide) -> list[float]:
    """For each result, its greatest error over its greatest magnitude."""
    made = lowered(function, *inputs, format_of=format_of)
    rounded = [_round(x, format_of) if x.is_floating_point() else x for x in inputs]
    expected = function(*rounded)
    expected = expected if isinstance(expected, tuple) else (expected,)
    results = made.run()
    assert len(results) == len(expected)
    errors = []
    for result, wanted in zip(results, expected, strict=True):
        assert result.shape == wanted.shape
        size = float(wanted.double().abs().max())
        errors.append(float((result - wanted.double()).abs().max()) / (size or 1.0))
    return errors
