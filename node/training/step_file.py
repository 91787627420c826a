"""Step files: a training step in plain PyTorch, loaded from the requester's own disk.

    init() -> (params, state)                              weights and whatever the optimiser keeps: pytrees of tensors
    step(params, state, batch) -> (params, state, loss)    one training step; batch is a dict of tensors
    evaluate(params, batch) -> {"accuracy": mean, ...}     optional: means over the batch
    example_batch() -> batch                               optional: lets `avenue program check` run without data
    OPTIONS = Options(overflow="assert", ...)              optional: how numbers are held

Loading one runs its code. That happens on the requester's machine alone, under `torch.manual_seed(training.seed)`:
what Compute Nodes are sent is the compiled program, which is data, never Python. Modules beside the file can be
imported.
"""

from __future__ import annotations

import importlib.util
import linecache
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils import _pytree as pytree

from proofs.exact.compiler.formats import Options
from protocol.errors import UsageError

Tree = Any
"""A pytree of tensors, in whatever shape the author of a step likes."""
Batch = Mapping[str, torch.Tensor]

EXAMPLES_HINT = "docs/exact-training.md says what a step file has; examples/ has some"


@dataclass(frozen=True, slots=True)
class TrainingStep:
    """What a step file says, callable. `name` is for people."""

    name: str
    init: Callable[[], tuple[Tree, Tree]]
    step: Callable[[Tree, Tree, dict[str, torch.Tensor]], tuple[Tree, Tree, torch.Tensor]]
    evaluate: Callable[[Tree, dict[str, torch.Tensor]], Mapping[str, torch.Tensor | float]] | None = None
    example_batch: Callable[[], dict[str, torch.Tensor]] | None = None
    options: Options | None = None
    """None: the compiler's own."""

    def initial(self, seed: int) -> tuple[Tree, Tree]:
        """Parameters and optimiser state as `init` draws them under this seed, out of any autograd graph; torch's own
        generator is left alone.

        Raises UsageError U-45 if `init` raises, U-46 if it does not return a pair.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with blamed_on(self.name, "init()"):
                made = self.init()
        if not isinstance(made, tuple) or len(made) != 2:
            raise UsageError(
                f"init() in {self.name} returns {type(made).__name__}, not (params, state)",
                code="U-46",
                hint=EXAMPLES_HINT,
            )
        params, state = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, made)
        return params, state

    def example(self) -> dict[str, torch.Tensor]:
        """What example_batch() gives, the same each time, so that a step has one program. Raises UsageError U-45."""
        assert self.example_batch is not None
        with torch.random.fork_rng(devices=[]), blamed_on(self.name, "example_batch()"):
            torch.manual_seed(0)
            return dict(self.example_batch())


def load_step_file(path: Path | str, seed: int = 0) -> TrainingStep:
    """Imports the file under `torch.manual_seed(seed)`. It may import modules that lie beside it.

    Raises:
        UsageError: U-44 no such file, U-45 it raises while it is imported (with its own line), U-46 a function is
            missing.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise UsageError(f"no such step file: {path}", code="U-44", hint="[model] file is relative to the task file")
    # A name of its own, so that a step file called json.py shadows nothing.
    name = f"avenue_step_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if path.suffix != ".py" or spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file", code="U-44", hint=EXAMPLES_HINT)
    module = importlib.util.module_from_spec(spec)
    with _importable(path.parent), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sys.modules[name] = module  # dataclasses and pickling look a class's module up
        linecache.checkcache(str(path))
        with blamed_on(path.name, "import"):
            spec.loader.exec_module(module)
    return TrainingStep(
        path.name,
        _function(module, path, "init"),
        _function(module, path, "step"),
        _function(module, path, "evaluate", optional=True),
        _function(module, path, "example_batch", optional=True),
        _options(module, path),
    )


def _function(module: ModuleType, path: Path, name: str, *, optional: bool = False) -> Any:
    found = getattr(module, name, None)
    if found is None and optional:
        return None
    if not callable(found):
        has = "has no function" if found is None else "has something that is no function as"
        raise UsageError(f"{path} {has} {name}()", code="U-46", hint=EXAMPLES_HINT)
    return found


def _options(module: ModuleType, path: Path) -> Options | None:
    found = getattr(module, "OPTIONS", None)
    if found is not None and not isinstance(found, Options):
        raise UsageError(
            f"OPTIONS in {path} is a {type(found).__name__}",
            code="U-46",
            hint="from proofs.exact.compiler.formats import Options",
        )
    return found


@contextmanager
def blamed_on(name: str, doing: str) -> Iterator[None]:
    """Whatever the requester's code raises comes out as UsageError U-45 with the last line of it that ran."""
    try:
        yield
    except UsageError:
        raise
    except SyntaxError as error:
        raise _blame(name, doing, error, error.lineno, (error.text or "").strip()) from error
    except Exception as error:
        # The innermost frame of the author's: not in a library, and not in ours.
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).name == name]
        frame = frames[-1] if frames else None
        raise _blame(name, doing, error, frame and frame.lineno, (frame.line or "") if frame else "") from error


def _blame(name: str, doing: str, error: Exception, line: int | None, code: str) -> UsageError:
    where = name if line is None else f"{name} line {line}"
    what = str(error) if not isinstance(error, SyntaxError) else error.msg
    shown = f"\n    {code}" if code else ""
    return UsageError(
        f"{where}, {doing}: {type(error).__name__}: {what}{shown}",
        code="U-45",
        hint="the error is in the step file; run it with python to see all of it",
    )


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """As `python file.py` would: the file's folder is where its imports are looked for first."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
