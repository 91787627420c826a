"""The rules' registry, and what a rule sees while it lowers one ATen node to opcodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import fx

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.compiler.formats import NumberFormat, Options

Rule = Callable[..., Any]
AnyRule = TypeVar("AnyRule", bound=Rule)

RULES: dict[object, Rule] = {}
"""By ATen overload (torch.ops.aten.add.Tensor, ...)."""
EXACT: set[object] = set()
"""Targets whose result keeps the scale that the rule gave it."""


def rule(*targets: object, exact: bool = False) -> Callable[[AnyRule], AnyRule]:
    """Registers a lowering. A target has one rule."""

    def register(function: AnyRule) -> AnyRule:
        for target in targets:
            if target in RULES:
                raise ValueError(f"two rules for {target}")
            RULES[target] = function
            if exact:
                EXACT.add(target)
        return function

    return register


class Unsupported(Exception):
    """Raised by a rule; the driver adds the user's line and collects it with the others."""

    def __init__(self, why: str, instead: str) -> None:
        super().__init__(why)
        self.why = why
        self.instead = instead


class Lowering:
    """One compilation in progress. `node` and `format` are those of the node in hand."""

    b: ProgramBuilder
    t: Handle
    """Steps done, a whole scalar: what PERMUTE and RANDOM count by."""
    options: Options
    node: fx.Node
    format: NumberFormat

    def format_of(self, node: fx.Node) -> NumberFormat:
        """The calibrated format of any float node of the graph."""
        raise NotImplementedError

    def operand(self, x: Handle) -> Handle:
        """The rounded copy of `x` that products read: 16 bits within ±OPERAND_LIMIT. One per handle."""
        raise NotImplementedError

    def settle(self, x: Handle) -> Handle:
        """`x` in the format of the node in hand, saturated."""
        raise NotImplementedError

    def bounded(self, index: Handle, lo: int, hi: int) -> Handle:
        """`index` with its interval within lo..hi. As it is where the interval says so already; where it comes
        unchanged from an int data input, encode_data will refuse labels outside (CompiledStep.labels); else
        Unsupported. All rules that index by data go through here.
        """
        raise NotImplementedError

    def stream(self) -> int:
        """A number of its own for each RANDOM of the program."""
        raise NotImplementedError

    def unsupported(self, why: str, instead: str) -> Unsupported:
        return Unsupported(why, instead)
