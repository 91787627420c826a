"""What exactness costs, and what limits it: exact training steps beside float32 eager PyTorch.

    python -m scripts.bench.exact_step [--json] [--only mlp,gpt,matmul,memory,hash,bits,compile] [--threads 1]

Both sides run in one process, step by step in turn, on the same threads and the same data; medians count. Memory is
measured in a process for each side. The models are scripts/bench/models.py. `make bench-exact` writes the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # before torch is imported: afterwards its pools have their size
    os.environ.setdefault("OMP_NUM_THREADS", "2")

from scripts.bench import exact_bits, exact_limits, exact_memory, exact_speed
from scripts.bench.exact_speed import Prepared

SECTIONS = ("compile", "matmul", "mlp", "gpt", "hash", "memory", "bits")


@dataclass(slots=True)
class Figures:
    """What has been measured so far: the keys that issue trackers read, and what stands behind them."""

    keys: dict[str, float | bool] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    chosen = options.only.split(",")
    unknown = sorted(set(chosen) - set(SECTIONS))
    if unknown:
        parser.error(f"no section {', '.join(unknown)}: {', '.join(SECTIONS)}")
    exact_speed.use_threads(options.threads)
    figures = Figures()
    prepared: dict[str, Prepared] = {}

    def model(name: str) -> Prepared:
        if name not in prepared:
            prepared[name] = exact_speed.prepare(name, options.threads)
        return prepared[name]

    figures.detail["machine"] = asdict(exact_limits.measure(options.threads))
    for section in SECTIONS:
        if section in chosen:
            say(f"{section} ...")
            MEASURES[section](figures, model, options.threads)
    document = json.dumps(figures.keys | {"detail": figures.detail}, indent=1)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(document + "\n", encoding="utf-8")
    print(document if options.json else table(figures))


Model = Callable[[str], Prepared]


def compile_time(figures: Figures, model: Model, threads: int) -> None:
    gpt = model("gpt")
    figures.keys["compile_gpt_s"] = gpt.compile_s
    figures.detail["compile"] = {"gpt_operations": gpt.operations, "gpt_plan_s": gpt.plan_s}


def matmul(figures: Figures, model: Model, threads: int) -> None:
    times = exact_speed.matmul_times(1024)
    figures.keys["matmul_ratio"] = times.ratio
    figures.detail["matmul"] = asdict(times)


def step(name: str) -> Callable[[Figures, Model, int], None]:
    def measure(figures: Figures, model: Model, threads: int) -> None:
        times = exact_speed.step_times(model(name))
        figures.keys[f"{name}_step_ratio"] = times.ratio
        figures.detail[name] = asdict(times)

    return measure


def hashing(figures: Figures, model: Model, threads: int) -> None:
    for name in ("gpt", "mlp"):
        times = exact_speed.hash_times(model(f"{name}_million"))
        figures.detail[f"{name}_hash"] = asdict(times) | {"overhead": times.overhead}
    # The transformer is the figure; the MLP's step is over in a tenth of the time, and its share is in the detail.
    figures.keys["hash_overhead"] = figures.detail["gpt_hash"]["overhead"]


def memory(figures: Figures, model: Model, threads: int) -> None:
    for name in ("mlp", "gpt"):
        use = exact_memory.measure(model(name), threads)
        figures.keys[f"{name}_memory_ratio"] = use.ratio
        figures.detail[f"{name}_memory"] = asdict(use)


def bits(figures: Figures, model: Model, threads: int) -> None:
    roots = exact_bits.compare_roots()
    figures.keys["bit_equal"] = all(each.equal for each in roots)
    figures.detail["bits"] = [asdict(each) for each in roots]


MEASURES: dict[str, Callable[[Figures, Model, int], None]] = {
    "compile": compile_time,
    "matmul": matmul,
    "mlp": step("mlp"),
    "gpt": step("gpt"),
    "hash": hashing,
    "memory": memory,
    "bits": bits,
}

ROWS: dict[str, tuple[str, str]] = {
    "mlp_step_ratio": ("step, MLP 784-1024-1024-10, batch 256: exact / float32", "1.5, reach 1.0"),
    "gpt_step_ratio": ("step, GPT 6 layers, width 256, 8 heads, context 128, batch 16", "2.0, reach 1.2"),
    "matmul_ratio": ("product n = 1024 of 16 x 16 bits, 1 thread: exact / float32", "1.8, reach 1.0"),
    "mlp_memory_ratio": ("peak memory, MLP: exact / float32", "2.0, reach 1.2"),
    "gpt_memory_ratio": ("peak memory, GPT: exact / float32", "2.0, reach 1.2"),
    "hash_overhead": ("hashing a GPT of 1M parameters every 10 steps / those steps", "0.03, reach 0.01"),
    "compile_gpt_s": ("compiling the GPT, s", "30, reach 5"),
    "bit_equal": ("one root for every kernel, thread count and order", "true"),
}


def table(figures: Figures) -> str:
    """For people."""
    lines = []
    for key, (what, wanted) in ROWS.items():
        if key in figures.keys:
            value = figures.keys[key]
            shown = str(value).lower() if isinstance(value, bool) else f"{value:.3f}"
            lines.append(f"{what:<62} {shown:>8}   (at most {wanted})")
    if "mlp_hash" in figures.detail:
        lines.append(f"hashing an MLP of 1M parameters every 10 steps: {figures.detail['mlp_hash']['overhead']:.3f}")
    machine = figures.detail["machine"]
    lines.append("limits: " + ", ".join(f"{name} {value:.3g}" for name, value in machine.items()))
    for name in ("mlp", "gpt"):
        if name in figures.detail:
            times = figures.detail[name]
            lines.append(f"{name}: exact {times['exact']['ms']:.1f} ms, float32 {times['float32']['ms']:.1f} ms a step")
    return "\n".join(lines)


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
