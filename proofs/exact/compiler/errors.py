"""What can be wrong with a step, with its data, and where: collected whole, readable by people and by programs.

CompileError      every Problem of a step that cannot be compiled, each at the user's own line
EncodeError       parameters, state or data that do not fit a compiled step
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

RUN_IT = "run the step once in plain PyTorch: it must work there with this example"
"""What helps against whatever PyTorch itself refuses."""


@dataclass(frozen=True, slots=True)
class Location:
    """A line of the user's code. `line` 0 and empty texts where nothing is known."""

    file: str = ""
    line: int = 0
    code: str = ""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.file else "(line unknown)"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an operation comes from: the user's line, the ATen operation and the module path ("blocks.0.mlp")."""

    location: Location = Location()
    target: str = ""
    module: str = ""
    backward: bool = False
    """The line is the one whose derivative this is part of."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that keeps a step from compiling: what, why, and what to write instead."""

    why: str
    instead: str
    origin: Origin = Origin()

    def __str__(self) -> str:
        origin = self.origin
        lines = []
        if origin.location.file:
            lines.append(f"{origin.location}" + (f" (in {origin.module})" if origin.module else ""))
            if origin.location.code:
                lines.append(f"    {origin.location.code}")
        operation = f"{origin.target}{' (of the backward pass)' if origin.backward else ''}: " if origin.target else ""
        lines.append(f"  {operation}{self.why}")
        if self.instead:
            lines.append(f"  instead: {self.instead}")
        return "\n".join(lines)


class CompileError(ValueError):
    """A step that cannot be compiled: all its problems, in the order of the program."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = merged(problems)
        count = len(self.problems)
        heading = f"this step cannot be compiled: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n\n".join([heading, *map(str, self.problems)]))

    def as_data(self) -> list[dict[str, Any]]:
        """The problems as JSON values: file, line, code, module, target, backward, why, instead."""
        listed = []
        for problem in self.problems:
            origin = problem.origin
            flat = {"target": origin.target, "module": origin.module, "backward": origin.backward}
            listed.append({**asdict(origin.location), **flat, "why": problem.why, "instead": problem.instead})
        return listed


class EncodeError(ValueError):
    """Numbers that cannot enter a compiled step: `name` is the tensor's, `why` says what is wrong with it."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name}: {why}")
        self.name = name
        self.why = why


def merged(problems: Sequence[Problem]) -> tuple[Problem, ...]:
    """Without repetitions: one line whose forward and backward operations fail for one reason is told once each."""
    return tuple(dict.fromkeys(problems))
