"""Pretrained weights as a task's initial parameters: an ordinary safetensors file, by the parameters' own names."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils import _pytree as pytree

from node.training.step_file import Tree
from proofs.exact.compiler.trace import LeafKind, named_leaves
from proofs.exact.state_dict import PARAMS, WeightsError, load_safetensors
from protocol.errors import UsageError


def pretrained(params: Tree, path: Path) -> Tree:
    """`params` with the file's tensors in place of those of the same names, as float32 (bfloat16 loses nothing).

    What the file does not have stays as `init` drew it: adapters start so on a frozen model. The compiler calibrates on
    what is returned, so the formats fit these weights. Raises UsageError U-49 if the file has a name that the
    parameters have not, a shape differs, or a number is NaN or Inf.
    """
    try:
        weights = load_safetensors(path)
        leaves = [(name.removeprefix(PARAMS), leaf) for name, leaf in named_leaves(LeafKind.PARAMETER, params)]
        names = {name for name, _ in leaves}
        extra = sorted(weights.keys() - names)
        if extra:
            raise WeightsError(
                f"no parameter is named {', '.join(extra[:8])}; there are {', '.join(sorted(names)[:8])}"
            )
        replaced = [_checked(name, leaf, weights[name]) if name in weights else leaf for name, leaf in leaves]
    except WeightsError as error:
        raise UsageError(
            f"{path} is not of this model: {error}",
            code="U-49",
            hint="its tensors must have the names and shapes of init()'s parameters",
        ) from error
    return pytree.tree_unflatten(replaced, pytree.tree_structure(params))


def _checked(name: str, leaf: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if weight.shape != leaf.shape:
        raise WeightsError(f"{name} has shape {list(weight.shape)}, init() makes {list(leaf.shape)}")
    if not weight.is_floating_point() or not bool(torch.isfinite(weight).all()):
        raise WeightsError(f"{name} is no floating-point tensor of finite numbers ({weight.dtype})")
    return weight.to(torch.float32).contiguous()
