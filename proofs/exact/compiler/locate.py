"""Which line of the user's code an ATen operation comes from, the backward pass included.

While a step is traced, a dispatch mode sees every operation before it is recorded. Forward operations are put down to
the innermost frame that is neither PyTorch's nor ours; operations of the backward pass to the line of the forward
operation whose derivative they compute, which autograd knows by its sequence number.
"""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    UnsupportedOperatorException,
)
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from proofs.exact.compiler.errors import Location, Origin, Problem

aten = torch.ops.aten

_LIBRARIES = tuple(
    str(Path(path).resolve()) + os.sep
    for path in (str(Path(torch.__file__).parent), str(Path(__file__).parent), sysconfig.get_paths()["stdlib"])
)
_INSTALLED = tuple({sysconfig.get_paths()[key] + os.sep for key in ("purelib", "platlib")})
MAX_FRAMES = 200

_STAND_INS: dict[torch.dtype, Any] = {torch.bool: True}
"""What `.item()` gives while tracing goes on in search of further problems, by dtype; 1 for everything else."""


_DEPENDENT_SHAPE = (
    "the shape of the result depends on the values of the tensor",
    "choose by mask, not by position: torch.where(mask, x, 0), or multiply by mask.float()",
)


CARRY_WHAT_CHANGES = "tensors that the step changes come in through params or state, and go out through them"


class TracingStopped(Exception):  # noqa: N818 — the problem is already on the list
    """Nothing after this line can be traced."""


class Locator(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Marks every recorded node with its Origin (`node.meta["origin"]`) and collects what cannot be traced."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.problems: list[Problem] = []
        self.graph: torch.fx.Graph | None = None
        self.replayed: Origin | None = None
        """Set while a traced graph is run again: where the operation in hand came from."""
        self._modules: list[str] = []
        self._names: dict[int, str] = {}
        self._by_sequence: dict[int, Origin] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        origin = self._origin(str(func))
        if func is aten._local_scalar_dense.default and isinstance(args[0], FakeTensor) and args[0].constant is None:
            self._reject(
                origin,
                "the step needs a tensor's value while it is compiled (.item(), or an `if` or `while` on a tensor)",
                "torch.where(condition, a, b) for an `if`; keep what would be a Python number a tensor",
            )
            dtype = args[0].dtype
            return _STAND_INS.get(dtype, 1.0 if dtype.is_floating_point else 1)
        if func._schema.is_mutable and _writes_outside(func, args):
            self._reject(origin, "the step changes a tensor that it was not given", CARRY_WHAT_CHANGES)
            raise TracingStopped
        mode = get_proxy_mode()
        if mode is None:
            return func(*args, **(kwargs or {}))
        self.graph = mode.tracer.graph
        last = self.graph._root._prev
        try:
            result = func(*args, **(kwargs or {}))
        except (DynamicOutputShapeException, DataDependentOutputException) as error:
            self._reject(origin, *_DEPENDENT_SHAPE)
            raise TracingStopped from error
        except UnsupportedOperatorException as error:
            self._reject(origin, "PyTorch cannot trace this operation", "compose it of ordinary operations")
            raise TracingStopped from error
        node = self.graph._root._prev
        while node is not last:
            # A decomposition leaves other operations than the one that was called; what is no operation goes by that.
            own = isinstance(node.target, torch._ops.OpOverload)
            node.meta["origin"] = replace(origin, target=str(node.target)) if own else origin
            node = node._prev
        if _has_unknown_side(result):
            self._reject(origin, *_DEPENDENT_SHAPE)
            raise TracingStopped
        return result

    def _origin(self, target: str) -> Origin:
        if self.replayed is not None:
            return replace(self.replayed, target=target)
        autograd_node = torch._C._current_autograd_node()
        if autograd_node is not None:
            known = self._by_sequence.get(autograd_node._sequence_nr())
            if known is not None:
                return replace(known, target=target, backward=True)
        module = self._modules[-1] if self._modules else ""
        origin = Origin(innermost_line(sys._getframe(2)), target, module, autograd_node is not None)
        # The node of the graph of derivatives that belongs to this operation was numbered just before. Operations
        # that have no derivative see the same number after it.
        self._by_sequence.setdefault(torch.autograd._get_sequence_nr() - 1, origin)  # type: ignore[attr-defined]
        return origin

    def _reject(self, origin: Origin, why: str, instead: str) -> None:
        self.problems.append(Problem(why, instead, origin))

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Within it, the path of the module being called is known ("blocks.0.mlp"; "" for the outermost)."""

        def enter(module: nn.Module, _: Any) -> None:
            if not self._modules:
                self._names = {id(inner): name for name, inner in module.named_modules()}
            self._modules.append(self._names.get(id(module), self._modules[-1] if self._modules else ""))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            self._modules.pop()

        hooks = [
            module_hooks.register_module_forward_pre_hook(enter),
            module_hooks.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._modules.clear()


def innermost_line(frame: FrameType | None) -> Location:
    """The innermost frame of the user's own code; if there is none, of an installed package that is not PyTorch."""
    fallback: FrameType | None = None
    for _ in range(MAX_FRAMES):
        if frame is None:
            break
        file = frame.f_code.co_filename
        if not _is_library(file):
            return _location(file, frame.f_lineno)
        if fallback is None and not file.startswith((*_LIBRARIES, "<")):
            fallback = frame
        frame = frame.f_back
    return _location(fallback.f_code.co_filename, fallback.f_lineno) if fallback is not None else Location()


def raising_line(traceback: TracebackType | None) -> Location:
    """The innermost line of the user's own code that an exception passed through."""
    found = Location()
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if not _is_library(file):
            found = _location(file, traceback.tb_lineno)
        traceback = traceback.tb_next
    return found


def function_line(function: Callable[..., Any]) -> Location:
    """Where a function is defined."""
    code = getattr(function, "__code__", None)
    return _location(code.co_filename, code.co_firstlineno) if code is not None else Location()


def _writes_outside(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether an in-place operation would write to a tensor of the user's own: traced ones are fake."""
    return any(
        isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor)
        for value, argument in zip(args, func._schema.arguments, strict=False)
        if argument.is_write
    )


def _has_unknown_side(result: Any) -> bool:
    parts = result if isinstance(result, tuple | list) else (result,)
    return any(
        isinstance(side, torch.SymInt) for part in parts if isinstance(part, torch.Tensor) for side in part.shape
    )


def _is_library(file: str) -> bool:
    return file.startswith((*_LIBRARIES, *_INSTALLED, "<"))


def _location(file: str, line: int) -> Location:
    return Location(file, line, linecache.getline(file, line).strip())
