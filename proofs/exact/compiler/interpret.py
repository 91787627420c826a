"""One ATen node of a traced graph, computed on real tensors in a floating-point type of our choice."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from proofs.exact.compiler.errors import RUN_IT, Origin, Problem

aten = torch.ops.aten

FLOAT_DTYPES = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

_REPLACED: dict[Any, Callable[..., Any]] = {
    # The traced strides are those of another graph: copies were removed from it.
    aten.view.default: lambda x, shape: x.reshape(shape),
    aten._unsafe_view.default: lambda x, shape: x.reshape(shape),
    # Memory that the step never reads (it is the form of a random draw): nothing in it may be NaN.
    aten.empty.memory_format: aten.zeros.default,
    aten.empty_like.default: aten.zeros_like.default,
}

VIEWS: frozenset[Any] = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten._unsafe_view.default,
        aten.permute.default,
        aten.transpose.int,
        aten.t.default,
        aten.expand.default,
        aten.unsqueeze.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.alias.default,
        aten.detach.default,
        aten.clone.default,
        aten.lift_fresh_copy.default,
    }
)
"""The same elements, in another order or shape."""

PARTS: frozenset[Any] = frozenset(
    {
        aten.slice.Tensor,
        aten.select.int,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.unbind.int,
        aten.index_select.default,
        operator.getitem,
    }
)
"""Some of the elements of the first operand."""


def evaluate(node: fx.Node, values: Mapping[fx.Node, Any], dtype: torch.dtype) -> Any:
    """The node's value from those of its operands; every floating-point type in it is read as `dtype`."""

    def concrete(argument: Any) -> Any:
        if isinstance(argument, fx.Node):
            return values[argument]
        return dtype if isinstance(argument, torch.dtype) and argument in FLOAT_DTYPES else argument

    args = fx.node.map_aggregate(node.args, concrete)
    kwargs = dict(fx.node.map_aggregate(node.kwargs, concrete))
    if kwargs.get("dtype") is None and node.target in _CREATORS and val_of(node).is_floating_point():
        kwargs["dtype"] = dtype
    target: Any = _REPLACED.get(node.target, node.target)
    if node.target in _REPLACED:
        kwargs.pop("memory_format", None)
    return target(*args, **kwargs)


def refused(node: fx.Node, error: Exception) -> Problem:
    """PyTorch did not take these numbers: a label or an index out of range, which tracing, without numbers, misses."""
    why = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    return Problem(why, RUN_IT, node.meta.get("origin", Origin()))


def as_real(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Floating-point tensors in `dtype`; integers and booleans as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def val_of(node: fx.Node) -> torch.Tensor:
    """The fake tensor of a node with one result."""
    val = node.meta["val"]
    assert isinstance(val, torch.Tensor), node
    return val


MASK = 1e8
"""Numbers from -this down stand for -inf where the rest of their tensor is small: people mask with -1e9 and with
torch.finfo(dtype).min. Taken as numbers they would leave no digits for the others."""
BESIDE_MASK = 1e4


def is_mask(value: torch.Tensor) -> torch.Tensor:
    """Where a float tensor says -inf, in whatever way."""
    low = value <= -MASK
    rest = value[~low & torch.isfinite(value)]
    return low if not rest.numel() or float(rest.abs().max()) < BESIDE_MASK else torch.isneginf(value)


def is_float(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return isinstance(val, torch.Tensor) and val.is_floating_point()


_CREATORS = frozenset(
    {
        aten.full.default,
        aten.zeros.default,
        aten.ones.default,
        aten.empty.memory_format,
        aten.arange.default,
        aten.arange.start,
        aten.arange.start_step,
        aten.scalar_tensor.default,
    }
)
