"""In which integers the tensors of a batch are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from proofs.exact.compiler.formats import DataType, NumberFormat
from proofs.exact.compiler.interpret import VIEWS
from proofs.exact.compiler.lowering import Labels
from proofs.exact.compiler.trace import Leaf, LeafKind, Trace
from proofs.exact.tensor_type import bits_for

aten = torch.ops.aten

FLOAT_BITS = 16
FLOAT_HEADROOM = 2
"""Bits by which a shard's numbers may exceed the example batch, where the shard itself was not shown."""
BYTES = DataType(bits=8, offset=128)
"""uint8: the offset lets a signed byte hold one."""


def data_types(
    trace: Trace,
    given: Mapping[str, DataType],
    labels: Mapping[str, Labels],
    data: Mapping[str, torch.Tensor] | None,
) -> dict[str, DataType]:
    """What the requester said; else what the labels' bounds or the numbers themselves need."""
    chosen = {}
    for node, leaf in trace.by_node.items():
        if leaf.kind is not LeafKind.DATA:
            continue
        bounds = labels.get(leaf.name) or _expected_labels(node, leaf.example)
        if bounds is not None:
            chosen[leaf.name] = DataType(bits=bits_for(bounds.lo, bounds.hi))
        elif leaf.name in given:
            chosen[leaf.name] = given[leaf.name]
        else:
            shown = data is not None
            chosen[leaf.name] = _of_numbers(leaf, leaf.example if data is None else data[leaf.name], shown=shown)
    return chosen


def numbers(tensor: torch.Tensor, type_: DataType, leaf: Leaf) -> torch.Tensor:
    """The numbers that the step is given, in the example's dtype: integers for a float input are what is stored, plus
    the offset (the bytes of an image)."""
    if leaf.example.is_floating_point() and not tensor.is_floating_point():
        return (tensor.to(torch.float64) * type_.step).to(leaf.example.dtype)
    return tensor.to(leaf.example.dtype)


def _of_numbers(leaf: Leaf, tensor: torch.Tensor, *, shown: bool) -> DataType:
    if leaf.example.dtype is torch.bool:
        return DataType(bits=2)
    if leaf.example.dtype is torch.uint8:
        return BYTES
    if leaf.example.is_floating_point():
        magnitude = float(tensor.abs().max())
        form = NumberFormat.for_magnitude(magnitude, FLOAT_BITS, 0 if shown else FLOAT_HEADROOM)
        return DataType(bits=form.bits, frac=form.frac)
    lo, hi = (int(bound) for bound in torch.aminmax(tensor.to(torch.int64)))
    return DataType(bits=min(max(bits_for(lo, hi) + (not shown), 8), 32))


_INDEXED: dict[Any, tuple[int, Callable[[fx.Node], Any]]] = {
    aten.embedding.default: (1, lambda node: _side(node.args[0], 0)),
    aten.index_select.default: (2, lambda node: _side(node.args[0], node.args[1])),
    aten.gather.default: (2, lambda node: _side(node.args[0], node.args[1])),
    aten.one_hot.default: (0, lambda node: node.args[1]),
    aten.nll_loss_forward.default: (1, lambda node: _side(node.args[0], 1)),
}
"""Operations that index by an operand: its place, and how many values it may have. Only a first guess, from which
lowering need not be repeated: the rules have the last word (`Lowering.bounded`)."""


def _expected_labels(node: fx.Node, example: torch.Tensor) -> Labels | None:
    waiting, seen = [node], {node}
    while waiting:
        current = waiting.pop()
        for user in current.users:
            known = _INDEXED.get(user.target)
            if known is not None and user.args[known[0]] is current:
                ignored = user.args[4] if user.target is aten.nll_loss_forward.default else 0
                least = min(0, ignored) if isinstance(ignored, int) and bool((example == ignored).any()) else 0
                return Labels(least, int(known[1](user)) - 1)
            if (user.target in VIEWS or user.target is aten._to_copy.default) and user not in seen:
                seen.add(user)
                waiting.append(user)
    return None


def _side(node: Any, axis: Any) -> int:
    return int(node.meta["val"].shape[axis])
