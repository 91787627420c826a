"""A compiled step: its program, and the way of parameters, state and data into its integers and back.

Numbers on the way in are checked, not clipped: NaN, Inf, a wrong shape, a label out of range or a number beyond its
type is an EncodeError that names the tensor. A number on the way in and out again is off by at most half a unit of its
scale; counters and labels are exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils import _pytree as pytree

from proofs.exact.compiler.drive import LOSS_TYPE, STEP_TYPE
from proofs.exact.compiler.errors import EncodeError, Origin
from proofs.exact.compiler.formats import DataType, Options
from proofs.exact.compiler.lowering import Labels
from proofs.exact.compiler.report import Report, report_of
from proofs.exact.compiler.trace import Leaf, LeafKind, named_leaves
from proofs.exact.program import Program
from proofs.exact.state import State
from proofs.exact.tensor import DTYPES, ExactTensor
from proofs.exact.tensor_type import TensorType

Tensors = Mapping[str, torch.Tensor | NDArray[Any]]


@dataclass(frozen=True, eq=False)
class CompiledStep:
    """What `compile` returns. `step` is the user's function; `origins` has one entry per operation of `program`."""

    program: Program
    origins: tuple[Origin, ...]
    labels: Mapping[str, Labels]
    """Least and greatest value of every integer data input that the step indexes by."""
    data_types: Mapping[str, DataType]
    step: Callable[..., Any]
    options: Options
    samples: int | None
    steps: int | None
    leaves: tuple[Leaf, ...]
    params_spec: pytree.TreeSpec
    state_spec: pytree.TreeSpec
    counters: Mapping[str, int]
    """State leaves that count steps, with the value they start from."""
    schedules: Mapping[str, torch.Tensor | None]
    first_loss: float

    # In

    def encode_state(self, params: Any, state: Any) -> State:
        """The exact state: parameters and optimiser state in integers, `t` from the step counters (0 without), `loss`
        that of the first calibrated batch. Raises EncodeError."""
        given = dict(named_leaves(LeafKind.PARAMETER, params)) | dict(named_leaves(LeafKind.STATE, state))
        wanted = {leaf.name: leaf for leaf in self.leaves if leaf.kind is not LeafKind.DATA}
        _same_names(given, wanted)
        encoded: dict[str, ExactTensor] = {}
        done = self._steps_done(given)
        for name, leaf in wanted.items():
            tensor = _tensor(name, given[name], tuple(leaf.example.shape), leaf.example.is_floating_point())
            type_ = self.program.state_types[name]
            series = self.schedules.get(name)
            if series is not None and name not in self.counters:
                _on_schedule(name, tensor, series, done)
            encoded[name] = _exact(name, tensor, type_, 2.0**-type_.frac)
        encoded["t"] = ExactTensor(STEP_TYPE, torch.tensor(done))
        loss = min(max(round(self.first_loss * 2**LOSS_TYPE.frac), LOSS_TYPE.lo), LOSS_TYPE.hi)
        encoded["loss"] = ExactTensor(LOSS_TYPE, torch.tensor(loss))
        return {name: encoded[name] for name in self.program.state_types}

    def encode_data(self, tensors: Tensors) -> State:
        """The exact data: whole shards where the step was compiled with `samples`, else one batch.

        A float input takes floats, or the integers that its DataType describes (bytes of images). Raises EncodeError.
        """
        wanted = {leaf.name: leaf for leaf in self.leaves if leaf.kind is LeafKind.DATA}
        given = dict(tensors)
        _same_names(given, wanted)
        encoded = {}
        for name, leaf in wanted.items():
            type_, stored = self.data_types[name], self.program.data_types[name]
            takes_floats = leaf.example.is_floating_point()
            tensor = _tensor(name, given[name], stored.shape, takes_floats, integers_too=True)
            if name in self.labels:
                _check_range(name, tensor, self.labels[name].lo, self.labels[name].hi, "a label")
            encoded[name] = _exact(name, tensor, stored, type_.step, type_.offset)
        return {name: encoded[name] for name in self.program.data_types}

    # Out

    def decode_params(self, state: State) -> Any:
        """The parameters of an exact state, in the structure and dtypes of the example."""
        return self._decoded(state, LeafKind.PARAMETER, self.params_spec)

    def decode_state(self, state: State) -> Any:
        """The optimiser's state of an exact state, in the structure and dtypes of the example."""
        return self._decoded(state, LeafKind.STATE, self.state_spec)

    def loss_of(self, state: State) -> float:
        """The moving mean of the loss."""
        return float(int(state["loss"].values) / 2**LOSS_TYPE.frac)

    def report(self, *, measure: bool = True) -> Report:
        """Sizes and costs of the program; with `measure`, the time of a step here."""
        return report_of(self, measure=measure)

    def example_state(self) -> State:
        """The state that the example's parameters and state encode to."""
        leaves = {leaf.name: leaf.example for leaf in self.leaves}
        names = [leaf.name for leaf in self.leaves if leaf.kind is LeafKind.PARAMETER]
        rest = [leaf.name for leaf in self.leaves if leaf.kind is LeafKind.STATE]
        params = pytree.tree_unflatten([leaves[name] for name in names], self.params_spec)
        return self.encode_state(params, pytree.tree_unflatten([leaves[name] for name in rest], self.state_spec))

    def example_data(self) -> State:
        """The example batch as data; with `samples`, repeated to the length of a shard."""
        tensors: dict[str, torch.Tensor] = {}
        for leaf in self.leaves:
            if leaf.kind is LeafKind.DATA:
                example = leaf.example
                if self.samples is not None:
                    example = example[torch.arange(self.samples) % example.shape[0]]
                tensors[leaf.name] = example
        return self.encode_data(tensors)

    def _decoded(self, state: State, kind: LeafKind, spec: pytree.TreeSpec) -> Any:
        leaves = [leaf for leaf in self.leaves if leaf.kind is kind]
        return pytree.tree_unflatten([_inexact(state[leaf.name], leaf.example.dtype) for leaf in leaves], spec)

    def _steps_done(self, given: Mapping[str, Any]) -> int:
        """How many steps the counters say were done since the example's; they must agree."""
        done: dict[str, int] = {}
        for name, start in self.counters.items():
            value = _tensor(name, given[name], None, floating=True, integers_too=True)
            if value.numel() != 1 or float(value) != int(value):
                raise EncodeError(name, f"{value.tolist()} counts no steps")
            done[name] = int(value) - start
        if len(set(done.values())) > 1:
            first, *_, last = done
            raise EncodeError(last, f"{done[last]} steps done, but {first} says {done[first]}: counters run together")
        count = next(iter(done.values()), 0)
        if count < 0 or (self.steps is not None and count > self.steps):
            raise EncodeError(next(iter(done)), f"{count} steps done: 0 to {self.steps} were compiled for")
        return count


def _same_names(given: Mapping[str, Any], wanted: Mapping[str, Leaf]) -> None:
    for name in wanted:
        if name not in given:
            raise EncodeError(name, "is missing")
    for name in given:
        if name not in wanted:
            raise EncodeError(name, "is not among the tensors that the step was compiled for")


def _tensor(
    name: str, given: Any, shape: tuple[int, ...] | None, floating: bool, *, integers_too: bool = False
) -> torch.Tensor:
    if not isinstance(given, torch.Tensor | np.ndarray):
        raise EncodeError(name, f"is a {type(given).__name__}, not a tensor")
    tensor = torch.as_tensor(given).detach().cpu()
    if shape is not None and tuple(tensor.shape) != shape:
        raise EncodeError(name, f"has shape {list(tensor.shape)}, not {list(shape)}")
    if tensor.is_complex() or (tensor.is_floating_point() != floating and not (floating and integers_too)):
        raise EncodeError(name, f"is {tensor.dtype}, where {'real numbers' if floating else 'integers'} are wanted")
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        at = _first(~torch.isfinite(tensor))
        raise EncodeError(name, f"{tensor[at].item()} at {list(at)}: NaN and Inf have no integer")
    return tensor


CHUNK = 2**22
"""Elements that are rounded at once: a shard may be larger than memory has room for in float64."""


def _exact(name: str, tensor: torch.Tensor, type_: TensorType, step: float, offset: int = 0) -> ExactTensor:
    """The nearest integers of tensor / step (of integers: themselves), less the offset. Ties go to even."""
    out = torch.empty(tensor.shape, dtype=DTYPES[type_.width])
    flat, rounded = tensor.reshape(-1), out.view(-1)
    for start in range(0, tensor.numel(), CHUNK):
        part = flat[start : start + CHUNK]
        integers = (part.to(torch.float64) / step).round() if part.is_floating_point() else part.to(torch.int64)
        integers = integers - offset
        lo, hi = (float(bound) for bound in torch.aminmax(integers))
        if lo < type_.lo or hi > type_.hi:
            unit = step if tensor.is_floating_point() else 1
            _check_range(name, tensor, (type_.lo + offset) * unit, (type_.hi + offset) * unit, "a number")
        rounded[start : start + CHUNK] = integers.to(torch.int64)
    return ExactTensor.proven(type_, out)


def _check_range(name: str, numbers: torch.Tensor, lo: float, hi: float, what: str) -> None:
    least, greatest = torch.aminmax(numbers)
    if float(least) < lo or float(greatest) > hi:
        at = _first((numbers < lo) | (numbers > hi))
        raise EncodeError(name, f"{float(numbers[at]):.6g} at {list(at)} is {what} outside {lo:.6g} to {hi:.6g}")


def _on_schedule(name: str, tensor: torch.Tensor, series: torch.Tensor, done: int) -> None:
    wanted, found = float(series[done]), float(tensor)
    if abs(found - wanted) > 1e-6 * max(abs(wanted), float(series.abs().max())):
        raise EncodeError(
            name, f"is {found:.9g}; after {done} steps its schedule, which was compiled, says {wanted:.9g}"
        )


def _inexact(tensor: ExactTensor, dtype: torch.dtype) -> torch.Tensor:
    if not dtype.is_floating_point:
        return tensor.values.to(dtype)
    return (tensor.values.to(torch.float64) * 2.0**-tensor.type.frac).to(dtype)


def _first(mask: torch.Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in mask.nonzero()[0])
