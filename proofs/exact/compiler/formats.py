"""Which integers stand for a real number: the scale and width of every node of a traced step.

The recipe and its reasons: docs/exact-engine.md, "Numbers".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

OPERAND_LIMIT = 32639
"""127 * 256 + 127: the greatest magnitude that two int8 slices hold on both sides of zero."""


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """A number r is held as round(r * 2^frac), saturated to `bits` (two's complement)."""

    frac: int
    bits: int

    @classmethod
    def for_magnitude(cls, magnitude: float, bits: int, headroom: int) -> NumberFormat:
        """Room for `magnitude` * 2^headroom and no more. `magnitude` 0 is taken as 1."""
        exponent = math.frexp(magnitude)[1] if magnitude > 0 else 0  # magnitude <= 2^exponent
        return cls(bits - 1 - headroom - exponent, bits)


@dataclass(frozen=True, slots=True)
class Role:
    """How wide the numbers of one role are, and by how many bits they may outgrow calibration."""

    bits: int
    headroom: int


@dataclass(frozen=True, slots=True)
class Options:
    """What a requester may set about numbers. `overrides` maps a pattern of a module path ("head", "blocks.*.mlp") or
    parameter name to the operand role used there; the last match wins.
    """

    operand: Role = Role(16, 3)
    weight: Role = Role(16, 5)
    wide: Role = Role(32, 6)
    square: Role = Role(52, 8)
    overrides: dict[str, Role] = field(default_factory=dict)
    calibration_steps: int = 4
    overflow: str = "saturate"
    """"saturate", or "assert": state that leaves its type ends the unit in the OVERFLOW state instead."""

    def operand_role(self, path: str, *, weight: bool) -> Role:
        chosen = self.weight if weight else self.operand
        for pattern, role in self.overrides.items():
            if fnmatchcase(path, pattern):
                chosen = role
        return chosen
