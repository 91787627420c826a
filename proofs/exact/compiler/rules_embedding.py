"""Rules for embeddings: rows chosen by token, and gradients summed row by row. A weight used elsewhere too (tied to the
output layer, say) is one handle like any other: its gradients meet in an addition.
"""

from __future__ import annotations

from math import prod

import torch

from proofs.exact.builder import Handle
from proofs.exact.compiler.lowering import Lowering, rule
from proofs.exact.compiler.rules_index import summed_at, taken_along

aten = torch.ops.aten


@rule(aten.embedding.default, exact=True)
def embedding(
    lo: Lowering,
    weight: Handle,
    indices: Handle,
    padding_idx: int = -1,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Handle:
    return taken_along(lo, weight, 0, indices)


@rule(aten.embedding_dense_backward.default)
def embedding_dense_backward(
    lo: Lowering, gradient: Handle, indices: Handle, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Handle:
    if scale_grad_by_freq:
        raise lo.unsupported("scale_grad_by_freq, a division by counts", "leave it at False")
    tokens, width = prod(indices.shape), gradient.shape[-1]
    rows = lo.b.reshape(gradient, (tokens, width))
    summed = summed_at(lo, rows, 0, lo.b.reshape(lo.bounded(indices, 0, num_weights - 1), (tokens,)), num_weights)
    if 0 <= padding_idx < num_weights:
        learned = lo.b.constant([int(token != padding_idx) for token in range(num_weights)], shape=(num_weights, 1))
        summed = lo.b.mul(summed, learned)
    return summed
