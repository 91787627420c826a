"""The same step in fewer operations, and in operations that keep more digits. Nothing here changes what is computed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from proofs.exact.compiler.interpret import is_float, val_of

aten = torch.ops.aten


def simplify(graph: fx.Graph) -> None:
    """Removes copies, conversions between floating-point types, products with 1, sums with 0 and views of views."""
    for node in list(graph.nodes):
        same = _same_as(node)
        if same is not None:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
        elif node.target is aten.permute.default and _is(node.args[0], aten.permute.default):
            inner = node.args[0]
            node.args = (inner.args[0], [inner.args[1][axis] for axis in node.args[1]])
            if _same_as(node) is not None:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
        elif node.target in _RESHAPES and isinstance(node.args[0], fx.Node) and node.args[0].target in _RESHAPES:
            node.target = aten.reshape.default
            node.args = (node.args[0].args[0], list(val_of(node).shape))
            if val_of(node.args[0]).shape == val_of(node).shape:
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))


_RESHAPES = frozenset({aten.view.default, aten.reshape.default, aten._unsafe_view.default})
_COPIES = frozenset({aten.alias.default, aten.detach.default, aten.clone.default, aten.lift_fresh_copy.default})
_PRODUCTS = frozenset({aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.pow.Tensor_Scalar})
_SUMS = frozenset({aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar})


def _same_as(node: fx.Node) -> fx.Node | None:
    """An operand that the node is equal to."""
    if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
        return None
    first, rest = node.args[0], node.args[1:]
    val, given = node.meta.get("val"), first.meta.get("val")
    if not isinstance(val, torch.Tensor) or not isinstance(given, torch.Tensor) or val.shape != given.shape:
        return None
    if node.target in _COPIES and first.op != "get_attr":
        return first
    if node.target is aten._to_copy.default and (
        val.dtype == given.dtype or (val.is_floating_point() and given.is_floating_point())
    ):
        return first
    if not (val.is_floating_point() and given.is_floating_point()):
        return None
    if node.target in (aten.expand.default, *_RESHAPES):
        return first
    if node.target is aten.permute.default and list(rest[0]) == sorted(rest[0]):  # type: ignore[arg-type]
        return first
    if node.target in _PRODUCTS and not node.kwargs and rest and _is_number(rest[0], 1):
        return first
    return first if node.target in _SUMS and rest and _is_number(rest[0], 0) else None


def _is_number(argument: Any, wanted: int) -> bool:
    """A Python number, or a tensor made of nothing but this number."""
    if isinstance(argument, int | float):
        return argument == wanted
    if not isinstance(argument, fx.Node):
        return False
    filled = {aten.full_like.default: 1, aten.full.default: 1}.get(argument.target)  # type: ignore[call-overload]
    if filled is not None:
        return bool(argument.args[filled] == wanted)
    return argument.target in ({aten.ones_like.default} if wanted else {aten.zeros_like.default})


def _is(argument: Any, target: object) -> bool:
    return isinstance(argument, fx.Node) and argument.target is target


# Scalars that are known beforehand


_FACTORS = frozenset({aten.mul.Tensor, aten.div.Tensor})


def move_scalars(graph: fx.Graph, known: Collection[fx.Node]) -> bool:
    """Where a scalar of the schedule is at work: x / s becomes x * (1 / s), and sqrt(x * s) becomes sqrt(x) * sqrt(s).

    Both are one product with a table instead of a division. Behind the root x has half as many bits, so none of them
    is lost to that product: Adam's second moment keeps its small entries. True if anything was changed.
    """
    changed = False
    for node in list(graph.nodes):
        scalar = _factor(node, known)
        if scalar is None:
            continue
        if node.target is aten.div.Tensor:
            with graph.inserting_before(node):
                inverse = _copied(graph, scalar, aten.reciprocal.default, (scalar,), node)
            node.target, node.args, changed = aten.mul.Tensor, (node.args[0], inverse), True
            scalar = inverse
        for user in list(node.users):
            if user.target is aten.sqrt.default and len(node.users) == 1:
                with graph.inserting_before(user):
                    root = _copied(graph, user, aten.sqrt.default, (node.args[0],), user)
                    factor = _copied(graph, scalar, aten.sqrt.default, (scalar,), user)
                user.target, user.args, changed = aten.mul.Tensor, (root, factor), True
                graph.erase_node(node)
    return changed


def _factor(node: fx.Node, known: Collection[fx.Node]) -> fx.Node | None:
    """The scalar of the schedule that a run-time tensor is multiplied or divided by, as second operand."""
    if node.target not in _FACTORS or node in known or node.kwargs or not is_float(node):
        return None
    first, second = node.args
    if node.target is aten.mul.Tensor and first in known:
        first, second = second, first
    if second not in known or not isinstance(first, fx.Node) or not is_float(first) or first in known:
        return None
    assert isinstance(second, fx.Node)
    if val_of(first).shape != val_of(node).shape or not is_float(second):
        return None
    node.args = (first, second)
    return second


def _copied(graph: fx.Graph, like: fx.Node, target: Any, args: tuple[Any, ...], origin: fx.Node) -> fx.Node:
    """A new node of the shape of `like`, put down to the line of `origin`."""
    node = graph.call_function(target, args)
    node.meta = {"val": like.meta["val"], "origin": origin.meta.get("origin")}
    if node.meta["origin"] is None:
        del node.meta["origin"]
    return node
