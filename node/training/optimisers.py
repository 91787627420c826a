"""Optimisers as plain functions of tensors: (params, grads, state) -> (params, state), all by name.

    state = adam_state(params)
    params, state = adamw(params, grads, state, lr=3e-4, weight_decay=0.1)

They compute what their namesakes in torch.optim compute, in any PyTorch code, and are written so that they compile to
few exact operations: factors that depend on the step alone meet before they touch a tensor (the compiler makes tables
of them), and moving averages are interpolations. `lr` is a number, or a scalar tensor that follows a schedule.
Nothing is changed in place. A parameter without a gradient stays out of `params`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Rate = float | Tensor


class AdamState(TypedDict):
    """First and second moment of each gradient, and the steps done."""

    moments: dict[str, tuple[Tensor, Tensor]]
    step: Tensor


def sgd_state(params: Mapping[str, Tensor]) -> Tensors:
    """A zero momentum for each parameter; also what Lion begins with."""
    return {name: torch.zeros_like(weight) for name, weight in params.items()}


def adam_state(params: Mapping[str, Tensor]) -> AdamState:
    moments = {name: (torch.zeros_like(weight), torch.zeros_like(weight)) for name, weight in params.items()}
    return {"moments": moments, "step": torch.tensor(0)}


def sgd(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    *,
    lr: Rate,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> tuple[Tensors, Tensors]:
    """torch.optim.SGD. `state` is the momentum by parameter; without momentum it is returned as it came."""
    moved: Tensors = {}
    kept: Tensors = dict(state)
    for name, weight in params.items():
        grad = grads[name]
        if weight_decay:
            grad = torch.add(grad, weight, alpha=weight_decay)
        if momentum:
            kept[name] = torch.add(grad, state[name], alpha=momentum)
            grad = torch.add(grad, kept[name], alpha=momentum) if nesterov else kept[name]
        moved[name] = _minus(weight, lr, grad)
    return moved, kept


def lion(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    *,
    lr: Rate,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> tuple[Tensors, Tensors]:
    """Lion (Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms", algorithm 2): every weight moves by
    exactly lr, whose sign an average of gradients decides. `state` is that average by parameter.
    """
    moved: Tensors = {}
    kept: Tensors = {}
    for name, weight in params.items():
        direction = torch.lerp(state[name], grads[name], 1 - betas[0]).sign()
        moved[name] = _minus(_decayed(weight, lr, weight_decay), lr, direction)
        kept[name] = torch.lerp(state[name], grads[name], 1 - betas[1])
    return moved, kept


def adam(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    state: AdamState,
    *,
    lr: Rate,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Tensors, AdamState]:
    """torch.optim.Adam (Kingma & Ba 2015, algorithm 1). `weight_decay` is added to the gradient, as there."""
    if weight_decay:
        grads = {name: torch.add(grads[name], weight, alpha=weight_decay) for name, weight in params.items()}
    return _adam(params, grads, state, lr, betas, eps, 0.0)


def adamw(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    state: AdamState,
    *,
    lr: Rate,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[Tensors, AdamState]:
    """torch.optim.AdamW (Loshchilov & Hutter 2019, algorithm 2)."""
    return _adam(params, grads, state, lr, betas, eps, weight_decay)


def clip_by_global_norm(grads: Mapping[str, Tensor], max_norm: float) -> Tensors:
    """Gradients scaled down together so that the norm of them all is at most `max_norm`, as
    torch.nn.utils.clip_grad_norm_ does."""
    norms = torch.stack([torch.linalg.vector_norm(grad) for grad in grads.values()])
    factor = torch.clamp(max_norm / (torch.linalg.vector_norm(norms) + 1e-6), max=1.0)
    return {name: grad * factor for name, grad in grads.items()}


def _adam(
    params: Mapping[str, Tensor],
    grads: Mapping[str, Tensor],
    state: AdamState,
    lr: Rate,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> tuple[Tensors, AdamState]:
    step = state["step"] + 1
    # m / (1 - b1^t) over sqrt(v / (1 - b2^t)) + eps, with both corrections moved to the scalars.
    correction = torch.sqrt(1 - betas[1] ** step)
    rate = lr * correction / (1 - betas[0] ** step)
    moved: Tensors = {}
    moments: dict[str, tuple[Tensor, Tensor]] = {}
    for name, weight in params.items():
        grad = grads[name]
        mean, square = state["moments"][name]
        mean = torch.lerp(mean, grad, 1 - betas[0])
        square = torch.lerp(square, grad * grad, 1 - betas[1])
        moments[name] = (mean, square)
        moved[name] = _decayed(weight, lr, weight_decay) - rate * (mean / (torch.sqrt(square) + eps * correction))
    return moved, {"moments": moments, "step": step}


def _decayed(weight: Tensor, lr: Rate, weight_decay: float) -> Tensor:
    return weight * (1 - lr * weight_decay) if weight_decay else weight


def _minus(weight: Tensor, lr: Rate, step: Tensor) -> Tensor:
    """weight - lr * step, which is rounded once where lr is a number."""
    return weight - lr * step if isinstance(lr, Tensor) else torch.sub(weight, step, alpha=lr)
