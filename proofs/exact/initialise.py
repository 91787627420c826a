"""Initial weights from a seed, in integers: no float, no generator state, each element computable alone.

Element i of tensor `name` uses words w_j = mix64(mix64(mix64(seed) ^ name_word) + 3 i + j), j = 0, 1, 2, where
name_word is the first 8 bytes of H(name). Their twelve 16-bit pieces sum to a number whose mean is 393,210 and whose
standard deviation is 65,536 to within 1e-9: an Irwin-Hall approximation of a normal distribution, cut off at six
standard deviations.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from proofs.exact.definitions import IntArray
from proofs.exact.permutation import MASK64, mix64
from proofs.exact.tensor import DTYPES, ExactTensor
from proofs.exact.tensor_type import TensorError, TensorType
from proofs.hashing import tag

PIECES = 12
PIECE_MEAN_SUM = PIECES * (2**16 - 1) // 2
DEVIATION_FRAC = 24
"""Fraction bits of the standard deviation; the sum of pieces has 16 by its nature."""


def deviation(numerator: int, denominator: int) -> int:
    """Standard deviation of a variance given as a fraction (0 to 65536), times 2^24, rounded down.

    Raises ValueError beyond that.
    """
    if numerator < 0 or denominator < 1 or numerator > denominator << 16:
        raise ValueError(f"a variance of {numerator}/{denominator}: 0 to 65536")
    return math.isqrt((numerator << 2 * DEVIATION_FRAC) // denominator)


def normal(seed: int, name: str, type_: TensorType, *, variance: tuple[int, int]) -> ExactTensor:
    """About normal, with mean 0 and the variance numerator/denominator: (2, fan_in) is He initialisation for ReLU
    layers.

    Rounded half up to `type_.frac` (at most 40) and saturated. The vectorised form of `normal_definition`.
    """
    shift, scale = _shift_and_scale(type_, variance)
    base = np.uint64(_base(seed, name))
    counters = np.arange(3 * type_.elements, dtype=np.uint64) + base
    words = _mix64(counters).reshape(-1, 3)
    pieces = [(words >> np.uint64(16 * piece)) & np.uint64(0xFFFF) for piece in range(4)]
    sums = sum(piece.sum(axis=1) for piece in pieces).astype(np.int64) - PIECE_MEAN_SUM
    rounded = (sums * scale + (1 << shift >> 1)) >> shift
    values = np.clip(rounded, type_.lo, type_.hi).reshape(type_.shape)
    return ExactTensor(type_, torch.from_numpy(values))


def normal_definition(seed: int, name: str, type_: TensorType, *, variance: tuple[int, int]) -> IntArray:
    """The same on Python integers: the specification."""
    shift, scale = _shift_and_scale(type_, variance)
    base = _base(seed, name)
    values = []
    for i in range(type_.elements):
        words = [mix64(base + 3 * i + j) for j in range(3)]
        total = sum(word >> 16 * piece & 0xFFFF for word in words for piece in range(4)) - PIECE_MEAN_SUM
        rounded = (total * scale + (1 << shift >> 1)) >> shift
        values.append(min(max(rounded, type_.lo), type_.hi))
    return IntArray(type_.shape, tuple(values))


def zeros(type_: TensorType) -> ExactTensor:
    """All elements 0: biases, momentum, the step counter."""
    return ExactTensor.proven(type_, torch.zeros(type_.shape, dtype=DTYPES[type_.width]))


def _shift_and_scale(type_: TensorType, variance: tuple[int, int]) -> tuple[int, int]:
    shift = 16 + DEVIATION_FRAC - type_.frac
    if not 0 <= shift <= 62:
        raise TensorError(f"initial values for {type_}: frac is within -22..40")
    return shift, deviation(*variance)


def _base(seed: int, name: str) -> int:
    return mix64(mix64(seed) ^ int.from_bytes(tag(name)[:8], "big")) & MASK64


def _mix64(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = word + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
