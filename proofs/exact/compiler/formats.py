"""Which integers stand for a real number: the scale and width of every node of a traced step.

The recipe and its reasons: docs/exact-engine.md, "Numbers".
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from proofs.exact.tensor_type import MAX_FRAC, TensorType

OPERAND_LIMIT = 32639
"""127 * 256 + 127: the greatest magnitude that two int8 slices hold on both sides of zero."""

LEAST_PARAMETER = 2.0**-4
"""A parameter counts as at least this large: biases and adapters start at 0 and do not stay there."""
LEAST_MASKED = 4.0
"""Numbers that are masked with -inf count as at least this large: with 6 bits of headroom the mask is at -512, whose
exponential is 0 beside whatever a row may hold."""
MAX_EXPONENT = 120
"""Formats stay within ±2^120: no scale leaves the range that programs allow, whatever was calibrated."""


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """A number r is held as round(r * 2^frac), saturated to `bits` (two's complement)."""

    frac: int
    bits: int

    @classmethod
    def for_magnitude(cls, magnitude: float, bits: int, headroom: int) -> NumberFormat:
        """Room for `magnitude` * 2^headroom and no more. `magnitude` 0 is taken as 1."""
        exponent = math.frexp(magnitude)[1] if magnitude > 0 else 0  # magnitude <= 2^exponent
        exponent = min(max(exponent, -MAX_EXPONENT), MAX_EXPONENT)
        return cls(bits - 1 - headroom - exponent, bits)

    def type(self, shape: tuple[int, ...]) -> TensorType:
        return TensorType(shape, self.bits, self.frac)


@dataclass(frozen=True, slots=True)
class Role:
    """How wide the numbers of one role are, and by how many bits they may outgrow calibration."""

    bits: int
    headroom: int

    def format(self, magnitude: float) -> NumberFormat:
        return NumberFormat.for_magnitude(magnitude, self.bits, self.headroom)


@dataclass(frozen=True, slots=True)
class Options:
    """What a requester may set about numbers. `overrides` maps a pattern of a module path ("head", "blocks.*.mlp") or
    parameter name ("params.head.weight") to the operand role used there; the last match wins.
    """

    operand: Role = Role(16, 3)
    weight: Role = Role(16, 5)
    wide: Role = Role(32, 6)
    square: Role = Role(52, 8)
    overrides: dict[str, Role] = field(default_factory=dict)
    calibration_steps: int = 3
    overflow: str = "saturate"
    """"saturate", or "assert": state that leaves its type ends the unit in the OVERFLOW state instead."""

    def __post_init__(self) -> None:
        if self.overflow not in ("saturate", "assert"):
            raise ValueError(f'overflow is "saturate" or "assert", not {self.overflow!r}')
        if self.calibration_steps < 1:
            raise ValueError(f"{self.calibration_steps} calibration steps: at least 1")

    def operand_role(self, *paths: str, weight: bool) -> Role:
        """The role of an operand that goes by these names: the module it is used in, its parameter's name."""
        chosen = self.weight if weight else self.operand
        for pattern, role in self.overrides.items():
            if any(fnmatchcase(path, pattern) for path in paths):
                chosen = role
        return chosen


@dataclass(frozen=True, slots=True)
class DataType:
    """What a stored integer of a data tensor means: s stands for (s + offset) * multiplier * 2^-frac.

    Bytes 0..255 as x / 255 are DataType(bits=8, frac=16, offset=128, multiplier=257): stored as x - 128 in 8 bits.
    """

    bits: int
    frac: int = 0
    offset: int = 0
    multiplier: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 32 or abs(self.frac) > MAX_FRAC or self.multiplier < 1:
            raise ValueError(f"{self}: 1 to 32 bits, a positive multiplier, frac within ±{MAX_FRAC}")

    @property
    def stored_frac(self) -> int:
        """`frac` of the stored tensor. Where there is a multiplier the program applies it, and frac with it."""
        return self.frac if self.multiplier == 1 else 0

    @property
    def step(self) -> float:
        """The difference between two neighbouring numbers."""
        return self.multiplier * 2.0**-self.frac

    def stored(self, shape: tuple[int, ...]) -> TensorType:
        return TensorType(shape, self.bits, self.stored_frac)
