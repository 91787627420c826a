"""Exact tensors: integers in torch together with what they mean, their canonical bytes and their root."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from eth_abi.abi import encode
from numpy.typing import NDArray

from proofs.exact.tensor_type import TensorError, TensorType
from proofs.hashing import keccak, leaf_hashes, tag
from proofs.merkle import MerkleTree

__all__ = ["DTYPES", "LEAF_BYTES", "ExactTensor", "TensorError", "TensorType", "dequantise", "quantise", "tensor_root"]

LEAF_BYTES = 1024

DTYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By `TensorType.width`: elements lie in memory as they lie in a leaf (on a little-endian machine)."""

_TAKEN = {*DTYPES.values(), torch.uint8}

_ROOT_TYPES = ["bytes32", "uint256[]", "uint256", "int256", "bytes32"]


@dataclass(frozen=True, eq=False)
class ExactTensor:
    """A type and values of that shape on the CPU: contiguous, of the narrowest dtype that the type allows (`DTYPES`).

    Values of any signed integer dtype (or uint8) are taken, checked, and narrowed if they are wider. Nobody writes to
    `values` after construction. Raises TensorError if shape, dtype or any element does not fit the type.
    """

    type: TensorType
    values: torch.Tensor

    def __post_init__(self) -> None:
        self._check_form()
        lo, hi = (int(bound) for bound in torch.aminmax(self.values))
        if lo < self.type.lo or hi > self.type.hi:
            raise TensorError(f"values in {lo}..{hi} do not fit {self.type}")
        self._narrow()

    @classmethod
    def proven(cls, type_: TensorType, values: torch.Tensor) -> ExactTensor:
        """Without looking at the elements: for results whose range the static analysis has proved. Values that are
        contiguous and of the narrow dtype already are shared, not copied."""
        tensor = object.__new__(cls)
        object.__setattr__(tensor, "type", type_)
        object.__setattr__(tensor, "values", values)
        tensor._check_form()
        tensor._narrow()
        return tensor

    def _check_form(self) -> None:
        if self.values.dtype not in _TAKEN or tuple(self.values.shape) != self.type.shape:
            raise TensorError(f"{self.values.dtype} values of shape {list(self.values.shape)} for {self.type}")

    def _narrow(self) -> None:
        object.__setattr__(self, "values", self.values.to(DTYPES[self.type.width]).contiguous())

    def copy(self) -> ExactTensor:
        """The same elements in memory of their own."""
        return ExactTensor.proven(self.type, self.values.clone())

    def elements(self) -> NDArray[np.signedinteger]:
        """The elements in canonical form: row-major, little-endian, `type.width` bytes each. Flat. A view of `values`,
        not to be written to; on a big-endian machine a copy."""
        return self.values.reshape(-1).numpy().astype(f"<i{self.type.width}", copy=False)

    def to_bytes(self) -> bytes:
        return self.elements().tobytes()

    @classmethod
    def from_bytes(cls, type_: TensorType, data: bytes | memoryview) -> ExactTensor:
        """The reverse of `to_bytes`. Raises TensorError for another length or an element out of range."""
        if len(data) != type_.nbytes:
            raise TensorError(f"{len(data)} bytes for {type_}, which has {type_.nbytes}")
        # A copy, because torch does not take memory that may not be written to; in the machine's byte order.
        values = np.frombuffer(data, dtype=f"<i{type_.width}").astype(f"=i{type_.width}").reshape(type_.shape)
        return cls(type_, torch.from_numpy(values))

    def root(self, threads: int = 1) -> bytes:
        """The tensor root of docs/protocol.md section 1: binds shape, bits, frac and every element."""
        return tensor_root(self, threads)

    def __eq__(self, other: object) -> bool:
        """Same type and same elements."""
        return isinstance(other, ExactTensor) and self.type == other.type and torch.equal(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]


def tensor_root(tensor: ExactTensor, threads: int = 1) -> bytes:
    """H(abi.encode(tag("avenue.tensor.v1"), shape, bits, frac, elements_root)), leaves of 1 KiB."""
    elements_root = MerkleTree(leaf_hashes(tensor.elements().view(np.uint8), LEAF_BYTES, threads=threads)).root
    before, after = _encoded_type(tensor.type)
    return keccak(before + elements_root + after)


@lru_cache(maxsize=4096)
def _encoded_type(type_: TensorType) -> tuple[bytes, bytes]:
    """What abi.encode puts before and after the elements' root, the fifth of its five words: 50 us a time."""
    values = [tag("avenue.tensor.v1"), list(type_.shape), type_.bits, type_.frac, bytes(32)]
    encoded = encode(_ROOT_TYPES, values)
    return encoded[: 4 * 32], encoded[5 * 32 :]


def quantise(numbers: torch.Tensor | NDArray[np.floating], type_: TensorType) -> ExactTensor:
    """Nearest integers (ties to even) of numbers * 2^frac, saturated to the type: how data enters. Shape as the type's.

    For the requester, before anything is committed to: the result is then the specification. It is computed in
    float64, so beyond 53 bits it is as coarse as its input. Raises TensorError on NaN.
    """
    scaled = np.asarray(numbers, dtype=np.float64) * 2.0**type_.frac
    if np.isnan(scaled).any():
        raise TensorError("NaN has no integer")
    # float(type_.hi) rounds up to 2^63 for 64 bits, which int64 cannot hold: cut there with integers.
    top = float(2 ** (type_.bits - 1))
    rounded = np.rint(scaled)
    values = np.where(rounded >= top, 0, np.maximum(rounded, -top)).astype(np.int64)
    values[rounded >= top] = type_.hi
    return ExactTensor(type_, torch.from_numpy(values))


def dequantise(tensor: ExactTensor) -> torch.Tensor:
    """The numbers that the elements mean, rounded to float32: for people and ordinary PyTorch, never for a hash."""
    return (tensor.values.to(torch.float64) * 2.0**-tensor.type.frac).to(torch.float32)
