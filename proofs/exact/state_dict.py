"""States and ordinary PyTorch: weights come in from a `state_dict` or a safetensors file, and leave under their names.

A compiled step calls the parameter `blocks.0.attn.weight` of its author `params.blocks.0.attn.weight`; everything else
in the state (optimiser, counters, the loss) has another prefix and stays behind. On the way in, numbers are rounded to
the nearest integer of their type: the error is at most half of 2^-frac, and what would not fit is refused, never cut.
On the way out they are what the integers mean, rounded to float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from proofs.exact.state import State
from proofs.exact.tensor import ExactTensor, dequantise, quantise
from proofs.exact.tensor_type import TensorType

PARAMS = "params."
"""Prefix of parameters in a compiled step's state."""

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class WeightsError(ValueError):
    """Weights that are not those of the state: a name, a shape, a dtype or a number. Says of which tensor."""


def to_state_dict(state: State, *, prefix: str = PARAMS, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """The tensors under `prefix`, without it, contiguous, in `dtype`: what `module.load_state_dict` takes.

    Raises WeightsError if there is none.
    """
    named = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not named:
        raise WeightsError(f"a state without {prefix}*: it has {', '.join(sorted(state)[:8])}")
    return {name: dequantise(tensor).to(dtype) for name, tensor in named.items()}


def from_state_dict(
    weights: Mapping[str, torch.Tensor], types: Mapping[str, TensorType], *, prefix: str = PARAMS
) -> dict[str, ExactTensor]:
    """Every tensor of `types` under `prefix`, quantised from the weight of its name.

    Raises WeightsError if a weight is missing or left over, of another shape, no floating-point tensor, holds NaN or
    Inf, or a number that its type cannot hold.
    """
    wanted = {name.removeprefix(prefix): type_ for name, type_ in types.items() if name.startswith(prefix)}
    missing, extra = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    if missing or extra:
        said = [
            f"{what} {', '.join(names[:8])}" for what, names in (("missing", missing), ("not known", extra)) if names
        ]
        raise WeightsError(f"weights of another model: {'; '.join(said)}")
    return {prefix + name: quantise_weight(name, weights[name], type_) for name, type_ in wanted.items()}


def with_weights(state: State, weights: Mapping[str, torch.Tensor], *, prefix: str = PARAMS) -> dict[str, ExactTensor]:
    """The state with its parameters replaced by these, everything else as it was: how a pretrained model enters an
    initial state. Raises as `from_state_dict`."""
    types = {name: tensor.type for name, tensor in state.items()}
    return {**state, **from_state_dict(weights, types, prefix=prefix)}


def quantise_weight(name: str, weight: torch.Tensor, type_: TensorType) -> ExactTensor:
    """One tensor, of any device and floating-point dtype. Raises WeightsError as `from_state_dict`."""
    if weight.dtype not in _FLOATS:
        raise WeightsError(f"{name} is {weight.dtype}: weights are float32, bfloat16, float16 or float64")
    if tuple(weight.shape) != type_.shape:
        raise WeightsError(f"{name} has shape {list(weight.shape)}, the program wants {list(type_.shape)}")
    numbers = weight.detach().cpu().to(torch.float64)
    if not torch.isfinite(numbers).all():
        place = tuple(int(axis) for axis in (~torch.isfinite(numbers)).nonzero()[0])
        raise WeightsError(f"{name}{list(place)} is {float(numbers[place])}")
    greatest = float(numbers.abs().max())
    if greatest * 2.0**type_.frac > type_.hi:
        limit = type_.hi * 2.0**-type_.frac
        raise WeightsError(
            f"{name} reaches {greatest:g}, its type {type_} holds ±{limit:g}: compile with these weights"
        )
    return quantise(numbers.numpy(), type_)


def save_safetensors(path: Path | str, state: State, *, dtype: torch.dtype = torch.float32) -> None:
    """The parameters as a file that `safetensors.torch.load_file` reads. Raises OSError, WeightsError."""
    Path(path).write_bytes(safetensors_bytes(state, dtype=dtype))


def safetensors_bytes(
    state: State, metadata: Mapping[str, str] | None = None, *, dtype: torch.dtype = torch.float32
) -> bytes:
    """The bytes of such a file. Raises WeightsError if the state has no parameters."""
    from safetensors.torch import save

    return save(to_state_dict(state, dtype=dtype), dict(metadata) if metadata else None)


def load_safetensors(path: Path | str) -> dict[str, torch.Tensor]:
    """The tensors of a file, by name, in its dtypes. Never unpickles; its header is checked against its size before
    memory is taken. Raises WeightsError if it is missing or no safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(Path(path))
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}") from error
