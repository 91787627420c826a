"""What this machine can do at most: the rates that a step's time stands beside."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

N = 1024
BYTES = 2**27
"""More than any cache holds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Rates on `threads` threads: products of n = 1024 in billions of operations (2 per multiply-accumulate) a second,
    and memory in GB/s read and written by a copy.
    """

    threads: int
    float32_gops: float
    float64_gops: float
    int8_gops: float
    memory_gb_s: float


def measure(threads: int) -> Limits:
    x = torch.randint(-100, 100, (N, N), dtype=torch.int8)
    single, double = x.to(torch.float32), x.to(torch.float64)
    source = torch.zeros(BYTES, dtype=torch.uint8)
    target = torch.zeros(BYTES, dtype=torch.uint8)
    gops = 2 * N**3 / 1e9
    return Limits(
        threads=threads,
        float32_gops=gops / _least_s(lambda: single @ single.t()),
        float64_gops=gops / _least_s(lambda: double @ double.t()),
        int8_gops=gops / _least_s(lambda: torch._int_mm(x, x.t())),
        memory_gb_s=2 * BYTES / 1e9 / _least_s(lambda: target.copy_(source)),
    )


def _least_s(work: Callable[[], object], runs: int = 7) -> float:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)
