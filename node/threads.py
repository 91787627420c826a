"""Thread pools are sized once, before torch or numpy is imported: afterwards it is too late.

Several pools fighting over the cores turned a 38 ms training step into 1197 ms, so one process gets
`threads` and no more.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proofs.exact.settings import Settings

_POOL_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)


def pin_threads(threads: int) -> None:
    """Limits every pool to `threads`; what the environment says already stands.

    Raises RuntimeError if torch is loaded, because its pools exist then.
    """
    if "torch" in sys.modules:
        raise RuntimeError("pin_threads must run before torch is imported")
    for name in _POOL_VARIABLES:
        os.environ.setdefault(name, str(threads))


def run_settings() -> Settings:
    """How this process runs programs: with as many threads as its pools were given. Loads torch."""
    import torch

    from proofs.exact.settings import Settings

    return Settings(threads=torch.get_num_threads())
