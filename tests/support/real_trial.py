"""Rules tried on real numbers: a function is traced, calibrated on its own arguments, lowered, run, and compared.

The formats are those of the compiler's roles (32 bits with 6 of headroom; 52 with 8 where the function says so), so
what is measured is what training gets. The reference is PyTorch in float64.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
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
    rules_batch_norm,
    rules_choice,
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
from proofs.exact.settings import Settings
from proofs.exact.tensor import ExactTensor
from proofs.exact.tensor_type import TensorType, bits_for

aten = torch.ops.aten

MASK_EXPONENT = 12
"""-2^12 stands for -inf in constants."""

RULED = (
    rules_activation,
    rules_batch_norm,
    rules_choice,
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


class Trial:
    """A function of tensors, traced once and lowered as often as one likes."""

    def __init__(self, function: Function, *inputs: torch.Tensor) -> None:
        self.function = function
        self.inputs = inputs
        self.module = traced(function, inputs)
        recorder = _Recorder(self.module)
        recorder.run(*inputs)
        self._seen = recorder.seen

    def lower(self, format_of: FormatOf = wide) -> Program:
        """With a data input for each argument, by the name of its placeholder, and results out0, out1, ...

        Float inputs are held as nodes are; integer ones lie between their least and their greatest element.
        """
        formats: Any = TrialFormats(self._seen, format_of)
        b = ProgramBuilder()
        t = b.state("t", TensorType((), 32, 0))
        lo = Lowering(b, t, Options(), formats)
        values: dict[fx.Node, Any] = {}
        given = iter(self.inputs)
        for node in self.module.graph.nodes:
            lo.node = node
            if node.op == "placeholder":
                values[node] = _input(lo, node, next(given))
            elif node.op == "get_attr" or (node.op == "call_function" and not node.all_input_nodes):
                # A tensor without elements, which BatchNorm hands on, is read by nobody.
                constant = self._seen[node]
                values[node] = materialise.constant(b, constant, MASK_EXPONENT) if constant.numel() else None
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
        return b.build()

    def errors(self, format_of: FormatOf = wide) -> list[float]:
        """For each result its greatest error over its greatest magnitude, beside float64 on the same rounded inputs."""
        program = self.lower(format_of)
        data = {}
        rounded = []
        for node, x in zip(self.module.graph.find_nodes(op="placeholder"), self.inputs, strict=True):
            type_ = next(given.type for given in program.inputs if given.name == node.name)
            scale = 2.0**type_.frac
            integers = (x.double() * scale).round().clamp(type_.lo, type_.hi).to(torch.int64)
            data[node.name] = ExactTensor(type_, integers)
            rounded.append(integers.double() / scale if x.is_floating_point() else x)
        state = {
            name: ExactTensor(type_, torch.zeros(type_.shape, dtype=torch.int64))
            for name, type_ in program.state_types.items()
        }
        final = run_unit(program, state, data, 0, 1, 1, settings=Settings(fuse=False)).final_state
        expected = self.function(*rounded)
        errors = []
        for place, wanted in enumerate(expected if isinstance(expected, tuple) else (expected,)):
            out = final[f"out{place}"]
            result = out.values.double() * 2.0**-out.type.frac
            assert result.shape == wanted.shape
            size = float(wanted.double().abs().max())
            errors.append(float((result - wanted.double()).abs().max()) / (size or 1.0))
        return errors


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


def _input(lo: Lowering, node: fx.Node, x: torch.Tensor) -> Handle:
    if x.is_floating_point():
        form = lo.formats.of(node)
        handle = lo.b.data(node.name, TensorType(tuple(x.shape), form.bits, form.frac))
        lo.know(handle, Facts(lo.formats.magnitude(node)))
        return handle
    least, greatest = int(x.min()), int(x.max())
    return lo.b.clamp(lo.b.data(node.name, TensorType(tuple(x.shape), bits_for(least, greatest), 0)), least, greatest)
