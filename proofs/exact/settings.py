"""How a program is run: choices of speed, none of which can change a bit of the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proofs.exact.backend.matmul import MatmulKernel
    from proofs.exact.ranges import ValueInfo

MatmulChoice = Callable[["ValueInfo", "ValueInfo", "Settings"], "MatmulKernel"]


@dataclass(frozen=True, slots=True)
class Settings:
    """`threads` for fused kernels and products; `matmul` is "auto", "float64", "int64", "int8", or for trials a
    function that takes the place of backend/matmul.py's `choose`; `fuse=False` runs the torch kernels one by one.

    Raises ValueError for what cannot be.
    """

    threads: int = 1
    matmul: str | MatmulChoice = "auto"
    fuse: bool = True

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"{self.threads} threads: at least one")
        if isinstance(self.matmul, str) and self.matmul not in ("auto", "float64", "int64", "int8"):
            raise ValueError(f"no matrix product named {self.matmul!r}: auto, float64, int64 or int8")
