"""Which operations are taken apart while a step is traced: core ATen's, less those with a rule, and a few of ours."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch._decomp import core_aten_decompositions

aten = torch.ops.aten


def decompositions(keep: Collection[object]) -> dict[Any, Callable[..., Any]]:
    """By ATen overload. `keep`: what is left whole, because a lowering rule exists for it."""
    table: dict[Any, Callable[..., Any]] = dict(core_aten_decompositions())
    table[aten._safe_softmax.default] = _safe_softmax
    table[aten.slice_scatter.default] = _slice_scatter
    table[aten.select_scatter.default] = _select_scatter
    return {target: rule for target, rule in table.items() if target not in keep}


def _safe_softmax(x: torch.Tensor, dim: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    """It differs from softmax only in rows that are masked everywhere, which calibration refuses."""
    softmax: torch.Tensor = aten._softmax.default(x, dim, False)
    return softmax


def _slice_scatter(
    x: torch.Tensor, part: torch.Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> torch.Tensor:
    """x with x[start:end:step] along `dim` replaced: what x[..., 1:3] = part becomes."""
    side = x.shape[dim]
    places = range(*slice(start, end, step).indices(side))
    if not places:
        return aten.clone.default(x)  # type: ignore[no-any-return]
    if step == 1:
        pieces = [
            aten.slice.Tensor(x, dim, 0, places.start),
            part,
            aten.slice.Tensor(x, dim, places.stop, side),
        ]
    else:
        pieces = [
            aten.unsqueeze.default(aten.select.int(part, dim, (place - places.start) // step), dim)
            if place in places
            else aten.slice.Tensor(x, dim, place, place + 1)
            for place in range(side)
        ]
    return aten.cat.default([piece for piece in pieces if piece.shape[dim]], dim)  # type: ignore[no-any-return]


def _select_scatter(x: torch.Tensor, part: torch.Tensor, dim: int, index: int) -> torch.Tensor:
    """x with x[index] along `dim` replaced."""
    index %= x.shape[dim]
    return _slice_scatter(x, aten.unsqueeze.default(part, dim), dim, index, index + 1)
