"""The only module that prints.

stdout carries the result and nothing else; notes, progress, questions and logs go to stderr. With `--json` stdout is
exactly one JSON document, nobody is asked anything, and an error is `{"error": {"code", "message", "hint"}}`. Amounts
are decimal AVN for people, exact wei in decimal strings in JSON. Times are ISO 8601 UTC for people, unix s in JSON.
Colour needs a terminal and no NO_COLOR (https://no-color.org).
"""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TextIO

from protocol.errors import AvenueError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

PROGRESS_LINE_INTERVAL_S = 5.0
INTERRUPTED = 130
"""Exit code after SIGINT (128 + 2), as shells have it."""

Document = Mapping[str, Any]
"""A JSON object: str, int, float, bool, None, lists and objects of these."""


@dataclass(frozen=True, slots=True)
class Fields:
    """A heading and labelled values, one a line."""

    title: str
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under column names; `empty` is said instead if there are none."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    empty: str = "nothing to show"


Block = str | Fields | Table


class Output:
    """Where one command's words go. `interactive`: a person is there to be asked."""

    def __init__(
        self,
        *,
        json_document: bool = False,
        debug: bool = False,
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        stdin: TextIO | None = None,
    ) -> None:
        self.json = json_document
        self.debug = debug
        self._stdout = stdout or sys.stdout
        self._stderr = stderr or sys.stderr
        self._stdin = stdin or sys.stdin
        self._emitted = False

    @property
    def interactive(self) -> bool:
        return not self.json and self._stdin.isatty() and self._stderr.isatty()

    def emit(self, document: Document, *blocks: Block) -> None:
        """The result: `document` with --json, else `blocks`. Once per command."""
        if self._emitted:
            raise RuntimeError("a command has one result")
        self._emitted = True
        if self.json:
            self._stdout.write(json.dumps(document, indent=2) + "\n")
        else:
            console = self._console(self._stdout)
            for block in blocks:
                _show(console, block)
        self._stdout.flush()

    def note(self, text: str) -> None:
        """A line for the person watching; silent with --json."""
        if not self.json:
            self._stderr.write(text + "\n")
            self._stderr.flush()

    def warn(self, text: str) -> None:
        """A line on stderr, in every mode."""
        self._stderr.write(f"warning: {text}\n")
        self._stderr.flush()

    def fail(self, error: AvenueError) -> int:
        """Shows the error; returns the process's exit code."""
        self._show_error(error.code, error.message, error.hint)
        if self.debug:
            traceback.print_exception(error, file=self._stderr)
        return error.exit_code

    def crash(self, error: BaseException) -> int:
        """Shows a bug in one line, with its traceback only under --debug; returns 1."""
        first_line = (str(error).splitlines() or [""])[0]
        hint = "see the traceback above" if self.debug else "run again with --debug and report the traceback"
        if self.debug:
            traceback.print_exception(error, file=self._stderr)
        self._show_error("X-01", f"unexpected {type(error).__name__}: {first_line}", hint)
        return 1

    def interrupted(self) -> int:
        """Says that a person stopped the command; returns 130."""
        self._show_error("X-02", "interrupted", "run it again: what was sent is in the journal, nothing is sent twice")
        return INTERRUPTED

    def confirm(self, plan: Fields, question: str, *, yes: bool) -> None:
        """Shows what is about to happen and asks. `yes` answers for the person.

        Raises UsageError U-02 if nobody can be asked, U-03 if the answer is no.
        """
        if not self.json:
            _show(self._console(self._stderr), plan)
        if yes:
            return
        if not self.interactive:
            raise UsageError(f"{question} needs an answer, and nobody is here", code="U-02", hint="add --yes to agree")
        if self.ask(f"{question} [y/N]").lower() not in ("y", "yes"):
            raise UsageError("nothing was sent", code="U-03", hint="you answered no")

    def ask(self, question: str, default: str = "") -> str:
        """One line from the person. Raises UsageError U-02 if nobody can be asked."""
        if not self.interactive:
            raise UsageError(f"{question} needs an answer, and nobody is here", code="U-02", hint="give it as a flag")
        self._stderr.write(f"{question} " + (f"[{default}] " if default else ""))
        self._stderr.flush()
        line = self._stdin.readline()
        if not line:
            raise UsageError("end of input", code="U-02", hint="give the answer as a flag")
        return line.strip() or default

    def ask_password(self, purpose: str) -> str:
        """Reads a password without showing it."""
        return getpass.getpass(f"Password to {purpose}: ", stream=self._stderr)

    def ask_new_password(self, purpose: str) -> str:
        """Reads a password twice. Raises UsageError U-04 if the two differ."""
        first = self.ask_password(purpose)
        if self.ask_password("confirm") != first:
            raise UsageError("the two passwords differ", code="U-04", hint="try again")
        return first

    @contextmanager
    def progress(self, title: str, *, clock: Callable[[], float] = time.monotonic) -> Iterator[Progress]:
        """A bar on a terminal; elsewhere a line on stderr every few seconds; silent with --json."""
        if self.json:
            yield Progress()
        elif self._stderr.isatty():
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
            )
            with RichProgress(*columns, console=self._console(self._stderr), transient=False) as bars:
                yield _BarProgress(bars, bars.add_task(title, total=None, note=""))
        else:
            yield _LineProgress(title, self._stderr, clock)

    def _show_error(self, code: str, message: str, hint: str) -> None:
        if self.json and not self._emitted:
            self._emitted = True
            document = {"error": {"code": code, "message": message, "hint": hint}}
            self._stdout.write(json.dumps(document, indent=2) + "\n")
            self._stdout.flush()
            return
        self._stderr.write(f"error [{code}]: {message}\n")
        if hint:
            self._stderr.write(f"  hint: {hint}\n")
        self._stderr.flush()

    def _console(self, stream: TextIO) -> Console:
        from rich.console import Console

        plain = not stream.isatty() or bool(os.environ.get("NO_COLOR"))
        # Off a terminal nothing is wrapped: an address cut by a line break cannot be grepped.
        return Console(
            file=stream, no_color=plain, highlight=False, markup=False, width=None if stream.isatty() else 10_000
        )


class Progress:
    """Takes the state of a long job. This one shows nothing."""

    def update(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units of work; `note` says the rest (loss, spent)."""


class _LineProgress(Progress):
    def __init__(self, title: str, stream: TextIO, clock: Callable[[], float]) -> None:
        self._title = title
        self._stream = stream
        self._clock = clock
        self._last: float | None = None
        self._finished = False

    def update(self, done: int, total: int, note: str = "") -> None:
        now = self._clock()
        finished = done >= total
        due = self._last is None or now - self._last >= PROGRESS_LINE_INTERVAL_S
        if not due and (not finished or self._finished):
            return
        self._last, self._finished = now, finished
        self._stream.write(f"{self._title}: {done}/{total}" + (f"  {note}" if note else "") + "\n")
        self._stream.flush()


class _BarProgress(Progress):
    def __init__(self, bars: Any, task: Any) -> None:
        self._bars = bars
        self._task = task

    def update(self, done: int, total: int, note: str = "") -> None:
        self._bars.update(self._task, completed=done, total=total, note=note)


def format_time(unix_s: int) -> str:
    """ISO 8601 in UTC, whole seconds."""
    return datetime.fromtimestamp(unix_s, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_duration(seconds: float) -> str:
    """Two units at most: 95 -> "1m 35s"."""
    total = max(0, int(seconds))
    for unit_s, name, smaller_s, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if total >= unit_s:
            rest = total % unit_s // smaller_s
            return f"{total // unit_s}{name}" + (f" {rest}{smaller}" if rest else "")
    return f"{total}s"


def _show(console: Console, block: Block) -> None:
    if isinstance(block, str):
        console.print(block, soft_wrap=True)
        return
    if isinstance(block, Fields):
        if block.title:
            console.print(block.title, style="bold", soft_wrap=True)
        width = max((len(label) for label, _ in block.rows), default=0)
        for label, value in block.rows:
            console.print(f"  {label.ljust(width)}  {value}", soft_wrap=True)
        return
    if not block.rows:
        console.print(block.empty)
        return
    from rich import box
    from rich.table import Table as RichTable

    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in block.columns:
        table.add_column(column, overflow="fold")
    for row in block.rows:
        table.add_row(*row)
    console.print(table)
