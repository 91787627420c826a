"""Peak memory of training: what a process grows by, from after its imports to its worst moment, in each arithmetic.

Each side is a process of its own. It imports everything, resets the kernel's high-water mark of resident memory
(/proc/self/clear_refs), notes what it has (VmRSS), loads model and data, trains a few steps, and reports VmHWM less
that. The exact side gets the compiled program as a file, as a node does: compiling is not training. Linux only.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scripts.bench.exact_speed import Prepared

STEPS = 3


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Growth of resident memory, MB (10^6 bytes)."""

    exact_mb: float
    float32_mb: float

    @property
    def ratio(self) -> float:
        return self.exact_mb / self.float32_mb


def measure(prepared: Prepared, threads: int) -> MemoryUse:
    """Both sides of a workload that this process has compiled."""
    from proofs.exact.encoding import encode_program
    from proofs.exact.state import encode_state

    name = prepared.workload.name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        path.joinpath("program").write_bytes(encode_program(prepared.compiled.program))
        path.joinpath("state").write_bytes(encode_state(prepared.state))
        path.joinpath("data").write_bytes(encode_state(prepared.data))
        sides = [_child(side, name, path, threads) for side in ("exact", "float32")]
    return MemoryUse(*(size / 1e6 for size in sides))


def _child(side: str, workload: str, folder: Path, threads: int) -> int:
    command = [sys.executable, "-m", "scripts.bench.exact_memory", side, workload, str(folder), str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("exact", "float32"))
    parser.add_argument("workload")
    parser.add_argument("folder", type=Path)
    parser.add_argument("threads", type=int)
    options = parser.parse_args()
    run = _exact if options.side == "exact" else _float32
    print(run(options.workload, options.folder, options.threads))


def _exact(workload: str, folder: Path, threads: int) -> int:
    from proofs import keccak_bulk  # noqa: F401
    from proofs.exact import permutation_bulk  # noqa: F401
    from proofs.exact.backend import amx_support, jit
    from proofs.exact.encoding import decode_program
    from proofs.exact.plan import Plan
    from proofs.exact.settings import Settings
    from proofs.exact.state import decode_state

    # What a plan would import on its own when it first needs it: numba, LLVM and what they keep of it.
    jit.compiler()
    if amx_support.usable():
        from proofs.exact.backend import amx  # noqa: F401
    had = _reset_peak()
    plan = Plan.of(decode_program(folder.joinpath("program").read_bytes()), Settings(threads=threads))
    state = decode_state(folder.joinpath("state").read_bytes())
    bound = plan.bind(decode_state(folder.joinpath("data").read_bytes()), 0)
    for _ in range(STEPS):
        state = plan.run(state, bound, consume=True)
    return _status("VmHWM") - had


def _float32(workload: str, folder: Path, threads: int) -> int:
    import torch

    from scripts.bench import models
    from scripts.bench.exact_speed import WORKLOADS

    # What torch imports on its own when it first needs it: autograd's and the optimisers' parts.
    models.mlp((2, 2), batch=1, samples=1).float32_step()(torch.tensor([0]))
    models.gpt(1, 2, 1, 2, batch=1, samples=1).float32_step()(torch.tensor([0]))
    had = _reset_peak()
    given = WORKLOADS[workload]()
    step = given.float32_step()
    for _ in range(STEPS):
        step(torch.randperm(len(given.data["x"]))[: given.batch])
    return _status("VmHWM") - had


def _reset_peak() -> int:
    """Bytes resident now, from where the high-water mark counts anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


if __name__ == "__main__":
    main()
