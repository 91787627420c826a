"""The rules' registry, and what a rule sees while it lowers one ATen node to opcodes.

The driver that walks the graph is proofs/exact/compiler/drive.py; what it knows of the numbers, formats of nodes above
all, is proofs/exact/compiler/assign.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import fx

from proofs.exact.builder import Handle, ProgramBuilder
from proofs.exact.compiler.arithmetic import to
from proofs.exact.compiler.assign import Formats
from proofs.exact.compiler.formats import OPERAND_LIMIT, NumberFormat, Options
from proofs.exact.opcodes import Opcode
from proofs.exact.program import Input, InputKind, Op

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


class Unsupported(Exception):  # noqa: N818 — a verdict on the user's code, no failure of ours
    """Raised by a rule; the driver adds the user's line and collects it with the others."""

    def __init__(self, why: str, instead: str) -> None:
        super().__init__(why)
        self.why = why
        self.instead = instead


@dataclass(frozen=True, slots=True)
class Facts:
    """What calibration says of a handle: its magnitude, and the parameter that it is, or a view of ("" if none)."""

    magnitude: float
    parameter: str = ""


@dataclass(frozen=True, slots=True)
class Labels:
    """Least and greatest value that an integer data input may hold, because the step indexes by it."""

    lo: int
    hi: int

    def within(self, other: Labels) -> Labels:
        return Labels(max(self.lo, other.lo), min(self.hi, other.hi))


_VIEWS = frozenset({Opcode.TRANSPOSE, Opcode.RESHAPE, Opcode.BROADCAST, Opcode.SLICE, Opcode.GATHER, Opcode.CLAMP})
"""Opcodes whose result has elements of the first operand and no others."""


class Lowering:
    """One compilation in progress. `node` and `format` are those of the node in hand."""

    node: fx.Node
    format: NumberFormat

    def __init__(self, b: ProgramBuilder, t: Handle, options: Options, formats: Formats) -> None:
        self.b = b
        self.t = t
        """Steps done, a whole scalar: what PERMUTE and RANDOM count by."""
        self.options = options
        self.formats = formats
        self.labels: dict[str, Labels] = {}
        """Bounds that rules have asked for, by data input."""
        self._facts: dict[Handle, Facts] = {}
        self._operands: dict[Handle, Handle] = {}
        self._streams = 0

    def format_of(self, node: fx.Node) -> NumberFormat:
        """The calibrated format of any float node of the graph."""
        return self.formats.of(node)

    def operand(self, x: Handle) -> Handle:
        """The rounded copy of `x` that products read: 16 bits within ±OPERAND_LIMIT. One per handle.

        Where the interval of `x` is narrower than calibration with its headroom, the scale follows the interval.
        """
        known = self._operands.get(x)
        if known is None:
            known = self._operands[x] = self._rounded(x)
        return known

    def settle(self, x: Handle) -> Handle:
        """`x` in the format of the node in hand: at most that wide and that fine, saturated where it might not fit.

        What is narrow enough already stays as it is: no operation is spent on widening, or on rounding for its own
        sake.
        """
        return settled(self.b, x, self.format)

    def bounded(self, index: Handle, lo: int, hi: int) -> Handle:
        """`index` with its interval within lo..hi. As it is where the interval says so already; where it comes
        unchanged from an int data input, encode_data will refuse labels outside (CompiledStep.labels); else
        Unsupported. All rules that index by data go through here.
        """
        if index.lo >= lo and index.hi <= hi:
            return index
        source = data_source(index)
        if source is None:
            raise self.unsupported(
                f"a computed index, in {index.lo}..{index.hi}, where {lo}..{hi} is needed",
                "index by a tensor of the batch as it is, or by constants",
            )
        asked = _before_clamps(index, Labels(lo, hi))
        self.labels[source] = self.labels.get(source, asked).within(asked)
        return self.b.clamp(index, lo, hi)

    def stream(self) -> int:
        """A number of its own for each RANDOM of the program."""
        self._streams += 1
        return self._streams

    def unsupported(self, why: str, instead: str) -> Unsupported:
        return Unsupported(why, instead)

    def know(self, x: Handle, facts: Facts) -> None:
        """What calibration says of a handle. The first word counts: a view is what it is a view of."""
        self._facts.setdefault(x, facts)

    def facts_of(self, x: Handle) -> Facts | None:
        """Also where a rule made the handle out of a known one by views alone."""
        seen: Handle | None = x
        while seen is not None:
            if seen in self._facts:
                return self._facts[seen]
            seen = seen.operands[0] if isinstance(seen.source, Op) and seen.source.opcode in _VIEWS else None
        return None

    def _rounded(self, x: Handle) -> Handle:
        facts = self.facts_of(x)
        name = facts.parameter if facts is not None else ""
        module = self.formats.module_of(self.node)
        role = self.options.operand_role(*filter(None, (module, name)), weight=bool(name))
        limit = min(OPERAND_LIMIT, (1 << (role.bits - 1)) - 1) if role.bits <= 16 else (1 << (role.bits - 1)) - 1
        if -limit <= x.lo and x.hi <= limit:
            return x
        # The finest scale at which nothing can saturate.
        frac = x.frac
        while max(-x.lo, x.hi) > limit << (x.frac - frac):
            frac -= 1
        if facts is not None:
            frac = min(max(frac, role.format(facts.magnitude).frac), x.frac)
        return self.b.clamp(to(self.b, x, NumberFormat(frac, role.bits)), -limit, limit)


def settled(b: ProgramBuilder, x: Handle, form: NumberFormat) -> Handle:
    """At most `form.bits` wide, with as many of its fraction bits as that leaves room for, `form.frac` at the least."""
    if x.bits <= form.bits:
        return x
    lossless = x.frac - (x.bits - form.bits)  # the finest scale at which no element can saturate
    if x.frac <= form.frac:
        # Coarser than its format: the same range, in its own steps.
        return b.saturate(x, bits=max(form.bits - (form.frac - x.frac), 8))
    return to(b, x, NumberFormat(max(form.frac, lossless), form.bits))


def data_source(x: Handle) -> str | None:
    """The data input that a handle holds the integers of, unchanged."""
    while isinstance(x.source, Op) and x.source.opcode in _VIEWS:
        x = x.operands[0]
    return x.source.name if isinstance(x.source, Input) and x.source.kind is InputKind.DATA else None


def _before_clamps(index: Handle, wanted: Labels) -> Labels:
    """What the data may hold for an index to be as wanted: anything, on a side that the step clamps by itself."""
    x, lo, hi = index, wanted.lo, wanted.hi
    while isinstance(x.source, Op):
        held = x.operands[0]
        if x.source.opcode is Opcode.CLAMP:
            lo = held.lo if lo <= x.lo > held.lo else lo
            hi = held.hi if hi >= x.hi < held.hi else hi
        x = held
    return Labels(lo, hi)
