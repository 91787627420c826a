"""Rules tried on their own, on whole numbers: what PyTorch computes of small integers is then exact on both sides.

A function is traced with every ruled operation kept whole, each node is lowered by its rule, and the program runs on
the torch kernels. Nothing rounds (operands of products are the integers themselves, `settle` keeps every scale), so the
result must equal PyTorch's in float64 to the last bit.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._decomp import core_aten_decompositions
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.compiler import (
    rules_activation,
    rules_convolution,
    rules_elementwise,
    rules_embedding,
    rules_index,
    rules_pool,
    rules_random,
    rules_shape,
)
from proofs.exact.compiler.formats import NumberFormat, Options
from proofs.exact.compiler.lowering import RULES, Lowering
from proofs.exact.execute import run_unit
from proofs.exact.opcodes import Opcode
from proofs.exact.program import Program
from proofs.exact.state import State
from proofs.exact.tensor import ExactTensor
from proofs.exact.tensor_type import TensorType, bits_for

RULED = (
    rules_activation,
    rules_convolution,
    rules_elementwise,
    rules_embedding,
    rules_index,
    rules_pool,
    rules_random,
    rules_shape,
)

Function = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]


class WholeNumbers(Lowering):
    """Lowers on integers without ever rounding; refuses what would not fit an operand."""

    def __init__(self) -> None:
        self.b = ProgramBuilder()
        self.options = Options()
        self.t = self.b.state("t", TensorType((), 32, 0))
        self._streams = 0

    def operand(self, x: Handle) -> Handle:
        assert x.info.greatest_magnitude < 2**15
        return x

    def settle(self, x: Handle) -> Handle:
        return x

    def format_of(self, node: fx.Node) -> NumberFormat:
        return NumberFormat(0, 60)

    def bounded(self, index: Handle, lo: int, hi: int) -> Handle:
        assert index.lo >= lo and index.hi <= hi, f"{index} in {lo}..{hi}"
        return index

    def stream(self) -> int:
        self._streams += 1
        return self._streams


def traced(function: Function, inputs: tuple[torch.Tensor, ...]) -> fx.GraphModule:
    """ATen nodes, with every operation that has a rule left whole."""

    def flat(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        result = function(*tensors)
        return result if isinstance(result, tuple) else (result,)

    decompositions: dict[Any, Any] = core_aten_decompositions()
    table = {target: how for target, how in decompositions.items() if target not in RULES}
    return make_fx(
        functionalize(flat, remove="mutations"),
        decomposition_table=table,
        tracing_mode="fake",
        _allow_non_fake_inputs=True,
    )(*inputs)


def lowered(function: Function, *inputs: torch.Tensor) -> tuple[Program, State]:
    """The program with data x0, x1, ... and state out0, out1, ...; and the data, encoded. Floating-point inputs must
    hold whole numbers; integer inputs are known to lie between their least and their greatest element.
    """
    lo = WholeNumbers()
    values: dict[fx.Node, Any] = {}
    data: dict[str, ExactTensor] = {}
    module = traced(function, inputs)
    given = iter(inputs)
    for node in module.graph.nodes:
        lo.node = node
        lo.format = NumberFormat(20, 60)
        if node.op == "placeholder":
            x = next(given)
            least, greatest = int(x.min()), int(x.max())
            name = f"x{len(data)}"
            type_ = TensorType(tuple(x.shape), bits_for(least, greatest), 0)
            data[name] = ExactTensor(type_, x.to(torch.int64))
            values[node] = lo.b.clamp(lo.b.data(name, type_), least, greatest)
        elif node.op == "get_attr":
            constant = getattr(module, node.target)
            listed = [int(value) for value in constant.flatten().tolist()]
            values[node] = lo.b.constant(listed, shape=tuple(constant.shape))
        elif node.op == "output":
            for place, result in enumerate(node.args[0]):
                out = values[result]
                type_ = TensorType(out.shape, out.bits, out.frac)
                lo.b.state(f"out{place}", type_)
                lo.b.update(f"out{place}", out)
        elif node.target is operator.getitem:
            values[node] = values[node.args[0]][node.args[1]]
        else:
            args = fx.map_arg(node.args, values.__getitem__)
            kwargs = fx.map_arg(node.kwargs, values.__getitem__)
            values[node] = RULES[node.target](lo, *args, **kwargs)
    lo.b.update("t", lo.b.clamp(lo.b.add(lo.t, lo.b.constant(1)), 0, 2**30))
    return lo.b.build(), data


def run(program: Program, data: State, *, seed: int = 0, steps: int = 1) -> list[torch.Tensor]:
    """The outputs after so many steps, as float64."""
    state = {
        name: ExactTensor(type_, torch.zeros(type_.shape, dtype=torch.int64))
        for name, type_ in program.state_types.items()
    }
    final = run_unit(program, state, data, seed, steps, steps).final_state
    outs = [name for name in final if name.startswith("out")]
    return [final[f"out{place}"].values.double() / 2.0 ** final[f"out{place}"].type.frac for place in range(len(outs))]


def exactly(function: Function, *inputs: torch.Tensor, within: float = 0) -> Program:
    """Asserts that the lowered function gives what PyTorch gives in float64; `within` where constants must be rounded.
    Returns the program, for whoever wants to look at it.
    """
    expected = function(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    program, data = lowered(function, *inputs)
    results = run(program, data)
    assert len(results) == len(expected)
    for place, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        assert result.shape == wanted.shape, f"output {place}"
        worst = (result - wanted.double()).abs().max()
        assert worst <= within, f"output {place} is off by {worst}"
    return program


def gradients(function: Function, weights: torch.Tensor) -> Function:
    """The gradients of the weighted sum of function(...) by every argument."""

    def pulled(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        pull = torch.func.vjp(function, *inputs)[1]
        return tuple(pull(weights))

    return pulled


def weights_for(function: Function, *inputs: torch.Tensor) -> torch.Tensor:
    """Whole numbers of the shape of the function's one result."""
    result = function(*inputs)
    assert isinstance(result, torch.Tensor)
    return whole(*result.shape, seed=1)


def whole(*shape: int, least: int = -9, greatest: int = 9, seed: int = 0) -> torch.Tensor:
    """Whole numbers as float64."""
    drawn = torch.randint(least, greatest + 1, shape, generator=torch.Generator().manual_seed(seed + math.prod(shape)))
    return drawn.double()


def opcodes(program: Program) -> list[Opcode]:
    return [op.opcode for op in program.ops]
