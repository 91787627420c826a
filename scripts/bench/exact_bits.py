"""One root or none: a few models trained 100 steps by every kernel, on one and two threads, in every order of sums.

The models are small so that all runs end in about a minute; every product of every step goes through the kernel and
order on trial (backend/matmul_trials.py). One run without fused kernels stands beside them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product as every_pair

import torch

from proofs.exact import compile as compile_step
from proofs.exact.backend.matmul_trials import ORDERS, kernels_here, variant
from proofs.exact.execute import run_unit
from proofs.exact.settings import Settings
from scripts.bench import models
from scripts.bench.models import Workload

STEPS = 100
THREADS = (1, 2)

SMALL: dict[str, Callable[[], Workload]] = {
    "mlp": lambda: models.mlp((32, 40, 10), batch=16, samples=64),
    "cnn": lambda: models.cnn(side=8, channels=2, batch=4, samples=16),
    "gpt": lambda: models.gpt(layers=1, width=16, heads=2, context=8, batch=2, samples=16),
}


@dataclass(frozen=True, slots=True)
class Roots:
    """The state root of every run of a model after `STEPS` steps, hex, by what ran it."""

    model: str
    roots: dict[str, str]

    @property
    def equal(self) -> bool:
        return len(set(self.roots.values())) == 1


def compare_roots() -> list[Roots]:
    """In a process whose threads sleep while they wait: a small product on two spinning threads takes a hundred times
    its time where a core is busy with something else.
    """
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(max(THREADS))}
    command = [sys.executable, "-m", "scripts.bench.exact_bits"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return [Roots(name, roots) for name, roots in json.loads(done.stdout).items()]


def main() -> None:
    print(json.dumps({name: roots_of(workload()) for name, workload in SMALL.items()}))


def roots_of(workload: Workload, steps: int = STEPS) -> dict[str, str]:
    """By kernel, order, threads; and what the default settings give, and the unfused kernels."""
    compiled = compile_step(workload.step, workload.example(), samples=len(workload.data["x"]), steps=steps)
    state, data = compiled.encode_state(workload.params, workload.state), compiled.encode_data(workload.data)
    before = torch.get_num_threads()
    roots = {}
    for name, settings in trials():
        torch.set_num_threads(settings.threads)
        run = run_unit(compiled.program, state, data, 7, steps, steps, settings=settings)
        roots[name] = run.checkpoint_roots[-1].hex()
    torch.set_num_threads(before)
    return roots


def trials() -> Iterator[tuple[str, Settings]]:
    yield "as nodes run it", Settings()
    yield "one by one", Settings(fuse=False)
    for kernel, threads, order in every_pair(kernels_here(), THREADS, ORDERS):
        yield f"{kernel}, {threads} threads, {order}", Settings(threads=threads, matmul=variant(kernel, order, threads))


if __name__ == "__main__":
    main()
