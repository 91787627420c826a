"""The task file: what a requester writes in TOML, read strictly.

Promises: a file that loads describes a plan that can be posted. An unknown key is an error that names the nearest valid
one; money is a decimal string, never a float; times are seconds or "90s", "30m", "2h", "1d"; a relative path means
relative to the file. Imports neither torch nor web3, so `avenue task submit --help` stays quick.
`learning_rate` and `momentum` stay exact decimals all the way to the integer program.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from node.request.task_values import Amount, Count, Deadline, Number, Price, Window
from protocol.errors import UsageError
from protocol.types import Wei

MAX_FILE_BYTES: Final = 64 * 1024
MAX_DEADLINE_S: Final = 365 * 86400
"""TaskMarket refuses later ones."""
MAX_SHARDS: Final = 256
"""An admission names shards by the bits of one 256-bit word."""

_HINTS: Final = {
    "U-33": "add it; examples/mnist.toml shows a whole file",
    "U-35": "nodes work for pay: set a positive price",
    "U-36": 'use a duration such as "30m", or a TOML date-time in the future',
    "U-38": "paths are relative to the task file",
    "U-44": "[model] file is relative to the task file; examples/ has step files",
}
_CODE_OF: Final = {
    "missing": "U-33",
    "avenue_price": "U-35",
    "avenue_deadline": "U-36",
    "avenue_path": "U-38",
}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=False)


class TaskSection(_Section):
    """[task]: the plan and its clocks."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    private: Annotated[bool, Field(strict=True)] = True
    """Encrypt shards, states and results to the nodes entitled to them."""
    rounds: Annotated[Count, Field(le=10_000)]
    shards: Annotated[Count, Field(le=MAX_SHARDS)]
    deadline: Deadline
    """No claim after this: a duration from the moment of posting, or a TOML date-time with its offset."""
    compute_window_s: Annotated[Window, Field(alias="compute_window")]
    """From claim to commit."""
    reveal_window_s: Annotated[Window, Field(alias="reveal_window")] = 600
    """From commit to reveal."""
    challenge_window_s: Annotated[Window, Field(alias="challenge_window")] = 3600
    """From reveal to payment without the requester's acceptance."""

    def deadline_at(self, now: int) -> int:
        """The deadline in unix s, for a task posted at `now` (unix s).

        Raises:
            UsageError: U-36, if it is past, over a year away, or closer than one unit's compute and reveal windows.
        """
        at = int(self.deadline.timestamp()) if isinstance(self.deadline, datetime) else now + self.deadline
        needed_s = self.compute_window_s + self.reveal_window_s
        if at <= now:
            raise UsageError(f"task.deadline is {now - at} s in the past", code="U-36", hint=_HINTS["U-36"])
        if at - now < needed_s:
            raise UsageError(
                f"task.deadline is {at - now} s away, less than one unit's compute and reveal windows ({needed_s} s)",
                code="U-36",
                hint="set a later deadline or shorter windows",
            )
        if at - now > MAX_DEADLINE_S:
            raise UsageError(
                f"task.deadline is {at - now} s away, more than the market allows ({MAX_DEADLINE_S} s)",
                code="U-36",
                hint="set an earlier deadline",
            )
        return at


class PaySection(_Section):
    """[pay]: wei per unit, and the stake that a node locks while it holds one."""

    unit_price: Price
    aggregation_price: Price | None = None
    """Needed if and only if there is more than one shard."""
    collateral: Amount


class ModelSection(_Section):
    """[model]: a step file, or the built-in MLP, whose input and output sizes follow from the data."""

    kind: Literal["mlp"] | None = None
    hidden: (
        Annotated[tuple[Annotated[int, Field(strict=True, ge=1, le=4096)], ...], Field(min_length=1, max_length=8)]
        | None
    ) = None
    file: Path | None = None
    """A Python module with init, step and evaluate (node/training/step_file.py)."""
    weights: Path | None = None
    """Initial parameters, a safetensors file in place of those that init draws."""

    @model_validator(mode="after")
    def _one_model(self) -> ModelSection:
        if self.file is not None and (self.kind is not None or self.hidden is not None):
            given = "kind" if self.kind is not None else "hidden"
            raise PydanticCustomError("avenue_model", f"has both file and {given}: a step file says its own layers")
        if self.file is None and self.hidden is None:
            raise PydanticCustomError("avenue_model", "needs file (a step file) or hidden (layers of the built-in MLP)")
        return self

    def beside(self, folder: Path) -> ModelSection:
        """The same section with relative paths taken from `folder`."""
        paths = {key: folder / path for key in ("file", "weights") if (path := getattr(self, key)) is not None}
        return self.model_copy(update=paths)


class DataSection(_Section):
    """[data]: a named set, an .npz or .safetensors file, IDX images and labels, or text."""

    source: Literal["mnist", "digits", "moby-dick"] | None = None
    file: Path | None = None
    text: Path | None = None
    """UTF-8; its characters are the tokens."""
    context: Annotated[Count, Field(le=4096)] | None = None
    """Of text: a sample is this many characters and the one that follows each of them."""
    images: Path | None = None
    labels: Path | None = None
    test_images: Path | None = None
    test_labels: Path | None = None

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        idx = self.images is not None or self.labels is not None
        given = [self.source is not None, self.file is not None, self.text is not None, idx]
        if sum(given) != 1:
            raise PydanticCustomError("avenue_data", "needs exactly one of: source; file; text; images with labels")
        if self.is_text and self.context is None:
            raise PydanticCustomError("avenue_data", "needs context, the characters of a sample, beside text")
        if self.context is not None and not self.is_text:
            raise PydanticCustomError("avenue_data", "takes context only beside text")
        for images, labels, key in (
            (self.images, self.labels, "images and labels"),
            (self.test_images, self.test_labels, "test_images and test_labels"),
        ):
            if (images is None) != (labels is None):
                raise PydanticCustomError("avenue_data", f"needs {key} together")
        if self.test_images is not None and self.images is None:
            raise PydanticCustomError("avenue_data", "takes test_images only beside images")
        return self

    @property
    def is_text(self) -> bool:
        return self.text is not None or self.source == "moby-dick"

    @property
    def paths(self) -> tuple[Path, ...]:
        """Every file that the section names."""
        named = (self.file, self.text, self.images, self.labels, self.test_images, self.test_labels)
        return tuple(path for path in named if path is not None)

    def beside(self, folder: Path) -> DataSection:
        """The same section with relative paths taken from `folder`."""
        paths = {
            key: folder / path
            for key in ("file", "text", "images", "labels", "test_images", "test_labels")
            if (path := getattr(self, key)) is not None
        }
        return self.model_copy(update=paths)


class TrainingSection(_Section):
    """[training]: how long and on what; for the built-in MLP also how fast (SGD with momentum)."""

    steps_per_round: Annotated[Count, Field(le=2**31)]
    batch_size: Annotated[Count, Field(le=4096)]
    learning_rate: Annotated[Number, Field(gt=0, le=1)] | None = None
    """Of the built-in MLP; a step file has its own."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Of the built-in MLP; 0.9 if left out."""
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**63)] = 0
    """Initial weights, the cut into shards and the batch order all follow from it."""
    checkpoint_interval: Count
    """Steps between two committed states."""


class TaskFile(_Section):
    """A whole task file."""

    task: TaskSection
    pay: PaySection
    model: ModelSection
    data: DataSection
    training: TrainingSection

    @model_validator(mode="after")
    def _fits_together(self) -> TaskFile:
        if self.task.shards > 1 and self.pay.aggregation_price is None:
            raise PydanticCustomError(
                "missing", "pay.aggregation_price is missing: more than one shard means averaging"
            )
        if self.model.file is not None:
            for key in ("learning_rate", "momentum"):
                if getattr(self.training, key) is not None:
                    raise PydanticCustomError(
                        "avenue_owned",
                        f"training.{key} stands beside model.file: {self.model.file.name} says itself how it trains",
                    )
        elif self.training.learning_rate is None:
            raise PydanticCustomError("missing", "training.learning_rate is missing: the built-in MLP needs one")
        if self.training.checkpoint_interval > self.training.steps_per_round:
            raise PydanticCustomError(
                "avenue_interval", "training.checkpoint_interval is longer than training.steps_per_round"
            )
        return self

    @property
    def aggregation_price(self) -> Wei:
        """Wei for one aggregation unit; 0 if the plan has none."""
        return self.pay.aggregation_price or Wei(0) if self.task.shards > 1 else Wei(0)


def load_task_file(path: Path | str, *, now: int | None = None) -> TaskFile:
    """Reads and checks a task file. With `now` (unix s), the deadline is checked against it too.

    Raises:
        UsageError: U-30 no such file, U-31 not TOML, U-32 unknown key, U-33 missing key, U-34 bad value,
            U-35 price of zero, U-36 deadline, U-38 a data or weights file that does not exist, U-44 no such step file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read the task file {path}: {error.strerror}",
            code="U-30",
            hint="examples/ has task files to start from",
        ) from error
    if len(raw) > MAX_FILE_BYTES:
        raise UsageError(f"{path} is larger than {MAX_FILE_BYTES} bytes: not a task file", code="U-30")
    try:
        document = tomllib.loads(raw.decode(), parse_float=Decimal)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not TOML: {error}", code="U-31", hint="check the line named above") from error
    parsed = parse_task(document)
    beside = {"data": parsed.data.beside(path.parent), "model": parsed.model.beside(path.parent)}
    parsed = parsed.model_copy(update=beside)
    for data_path in parsed.data.paths:
        if not data_path.is_file():
            raise UsageError(f"[data] names a file that does not exist: {data_path}", code="U-38", hint=_HINTS["U-38"])
    model = parsed.model
    if model.file is not None and not model.file.is_file():
        raise UsageError(f"no such step file: {model.file}", code="U-44", hint=_HINTS["U-44"])
    if model.weights is not None and not model.weights.is_file():
        raise UsageError(f"[model] names weights that do not exist: {model.weights}", code="U-38", hint=_HINTS["U-38"])
    if now is not None:
        parsed.task.deadline_at(now)
    return parsed


def parse_task(document: dict[str, Any]) -> TaskFile:
    """A task from parsed TOML (numbers as int or Decimal). Raises UsageError as `load_task_file` does."""
    try:
        return TaskFile.model_validate(document)
    except ValidationError as error:
        # A misspelt key is two problems, one unknown and one missing: name the cause, not the effect.
        problems = error.errors(include_url=False)
        unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
        raise _usage_error((unknown or problems)[0]) from error


def _usage_error(problem: ErrorDetails) -> UsageError:
    where = ".".join(str(part) for part in problem["loc"] if not str(part).startswith(("function-", "is-instance")))
    if problem["type"] == "extra_forbidden":
        valid = _keys_at(problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), valid, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
        return UsageError(f"unknown key {where}", code="U-32", hint=hint)
    code = _CODE_OF.get(problem["type"], "U-34")
    message = re.sub("^[A-Z][a-z]+ should", "should", problem["msg"])  # pydantic's "Input should be ..."
    if problem["type"] == "missing" and message == "Field required":
        message = "is missing"
    return UsageError(f"{where} {message}".strip(), code=code, hint=_HINTS.get(code, "see examples/ for valid values"))


def _keys_at(location: tuple[int | str, ...]) -> list[str]:
    """The keys that a section takes, as a person writes them."""
    model: Any = TaskFile
    for part in location:
        model = model.model_fields[str(part)].annotation
        model = next((arg for arg in get_args(model) if isinstance(arg, type)), model)
    return [field.alias or name for name, field in model.model_fields.items()]
