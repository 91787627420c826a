"""What exact arithmetic costs in quality: float32 and exact beside each other, same weights, same batches, same order.

    make bench-quality                    writes build/bench/quality.json and curves as PNG, in 20 to 40 minutes
    python -m scripts.bench.quality --quick         a taste: one seed, few steps, in a few minutes
    python -m scripts.bench.quality --only gpt      one of mlp, cnn, gpt

A gap is what exact loses: float32 minus exact in points of test accuracy, exact minus float32 in nats of validation
loss. Below 0 exact is better. Beside each gap stands what float32 does to itself: its spread over seeds, and the gap
between two float32 runs of one seed whose initial weights differ in the last bit, which no arithmetic can undercut.

Each finished run is kept in build/bench/quality/ under its program's root, so a run that was cut short goes on where it
stopped, and a changed compiler measures anew. Everything runs on one thread.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean

import torch
from torch.utils import _pytree as pytree

from node.cli.comparison_view import curve_panels
from node.cli.curves import write_png
from node.request.task_file import DataSection
from node.training.compare import (
    Comparison,
    Curve,
    Material,
    Prepared,
    compare,
    evaluate,
    float32_steps,
    load_material,
    prepare,
)
from node.training.step_file import TrainingStep, load_step_file
from proofs.exact.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "bench" / "quality"
LOOKS = 12
"""Along the way, for the curves."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A step file of examples/, its data, and how long it trains. `metric` of evaluate() times `unit` is what the key
    counts.
    """

    name: str
    key: str
    data: DataSection
    batch: int
    metric: str
    unit: float
    steps: int
    seeds: int
    quick_steps: int
    tail: int = 1
    """Looks over the last tenth whose mean counts. At a constant learning rate accuracy moves by 0.3 points from one
    step to the next, in float32 as much as in exact; one look would measure that."""


MNIST = DataSection(source="mnist")
NOVEL = DataSection(source="moby-dick", context=64)
TRIALS = (
    Trial("mlp", "mnist_mlp_gap_points", MNIST, 128, "accuracy", 100.0, steps=2345, seeds=3, quick_steps=200, tail=10),
    Trial("cnn", "mnist_cnn_gap_points", MNIST, 64, "accuracy", 100.0, steps=940, seeds=3, quick_steps=60, tail=10),
    Trial("gpt", "gpt_gap_nats", NOVEL, 16, "loss", -1.0, steps=1500, seeds=2, quick_steps=60),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One seed of a trial. `again`: the metric of float32 from weights that differ in the last bit."""

    comparison: Comparison
    again: float


def measure(trial: Trial, seed: int, steps: int) -> Run:
    """Runs it, or reads what an earlier call kept. Raises CompileError."""
    step, material = subject(trial)
    prepared = prepare(step, material, seed=seed, steps=steps)
    looks = {*range(0, steps, max(1, steps // LOOKS)), *tail_of(trial, steps)}
    kept = KEPT / f"{trial.name}-{seed}-{steps}-{prepared.compiled.program.root().hex()[:12]}.json"
    if kept.exists():
        return _read(kept)
    began = time.perf_counter()

    def watch(done: int, now: Comparison) -> None:
        if done == now.steps[-1]:
            pair = (
                f"{now.float32.metrics[-1][trial.metric]:.4f} float32, {now.exact.metrics[-1][trial.metric]:.4f} exact"
            )
            times = (
                f"{1e3 * now.float32_s / max(1, done - 1):.0f} and {1e3 * now.exact_s / max(1, done - 1):.0f} ms a step"
            )
            _say(f"{trial.name} seed {seed}: step {done}/{steps}  {trial.metric} {pair}  {times}")

    comparison = compare(
        step,
        material,
        prepared,
        seed=seed,
        steps=steps,
        looks=looks,
        settings=Settings(threads=1),
        watch=watch,
    )
    run = Run(comparison, _again(trial, step, material, prepared, seed, steps))
    _say(f"{trial.name} seed {seed}: {time.perf_counter() - began:.0f} s; float32 again {run.again:.4f}")
    KEPT.mkdir(parents=True, exist_ok=True)
    fresh = kept.with_suffix(".new")
    fresh.write_text(json.dumps(_document(run)))
    fresh.replace(kept)
    return run


def subject(trial: Trial) -> tuple[TrainingStep, Material]:
    """The example's step, and the data."""
    step = load_step_file(ROOT / "examples" / f"{trial.name}.py")
    return step, load_material(step, trial.data, trial.batch)


def tail_of(trial: Trial, steps: int) -> list[int]:
    """The steps whose looks count, the last one last."""
    return [steps - i * steps // (10 * trial.tail) for i in reversed(range(trial.tail))]


def level(trial: Trial, comparison: Comparison, curve: Curve) -> float:
    """The metric over the tail."""
    tail = tail_of(trial, comparison.steps[-1])
    return mean(look[trial.metric] for step, look in zip(comparison.steps, curve.metrics, strict=True) if step in tail)


def _again(trial: Trial, step: TrainingStep, material: Material, prepared: Prepared, seed: int, steps: int) -> float:
    """float32 once more, every initial weight moved by about one unit in the last place."""
    moved = pytree.tree_map(lambda w: w * (1 + 2.0**-23) if w.is_floating_point() else w, prepared.params)
    tail = tail_of(trial, steps)
    run = float32_steps(step, material, moved, prepared.state, seed=seed, steps=steps)
    return mean(evaluate(step, material, params)[trial.metric] for done, params in run if done in tail)


def summary(trial: Trial, runs: Sequence[Run]) -> dict[str, object]:
    """The gap of greatest magnitude under the trial's own key, and beside it what it is made of."""
    ends = [
        (level(trial, run.comparison, run.comparison.float32), level(trial, run.comparison, run.comparison.exact))
        for run in runs
    ]
    gaps = [trial.unit * (float32 - exact) for float32, exact in ends]
    noise = [trial.unit * (float32 - run.again) for (float32, _), run in zip(ends, runs, strict=True)]
    levels = [abs(trial.unit) * float32 for float32, _ in ends]
    return {
        trial.key: max(gaps, key=abs),
        "steps": runs[0].comparison.steps[-1],
        "seeds": [run.comparison.seed for run in runs],
        "gap_per_seed": gaps,
        "gap_mean": mean(gaps),
        "float32_per_seed": levels,
        "exact_per_seed": [abs(trial.unit) * exact for _, exact in ends],
        "float32_seed_spread": max(levels) - min(levels),
        "float32_last_bit_gap_per_seed": noise,
        "seconds_per_step": {
            "float32": mean(run.comparison.float32_s / (run.comparison.steps[-1] - 1) for run in runs),
            "exact": mean(run.comparison.exact_s / (run.comparison.steps[-1] - 1) for run in runs),
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, few steps; written to quality-quick.json")
    parser.add_argument("--only", choices=[trial.name for trial in TRIALS], action="append")
    parser.add_argument("--json", action="store_true", help="the document on stdout as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    document: dict[str, object] = {"quick": options.quick}
    for trial in TRIALS:
        if options.only and trial.name not in options.only:
            continue
        seeds, steps = (1, trial.quick_steps) if options.quick else (trial.seeds, trial.steps)
        runs = [measure(trial, seed, steps) for seed in range(1, seeds + 1)]
        found = summary(trial, runs)
        document |= {trial.key: found.pop(trial.key), trial.name: found}
        picture = KEPT / f"{trial.name}{'-quick' if options.quick else ''}.png"
        write_png(picture, curve_panels([run.comparison for run in runs]), title=f"examples/{trial.name}.py")
        _say(f"{trial.name}: gap {document[trial.key]:+.4f}, curves in {picture.relative_to(ROOT)}")
        target = KEPT.parent / ("quality-quick.json" if options.quick else "quality.json")
        target.write_text(json.dumps(document, indent=2) + "\n")
    if options.json:
        print(json.dumps(document, indent=2))
    return 0


def _document(run: Run) -> dict[str, object]:
    c = run.comparison
    both = {"float32": asdict(c.float32), "exact": asdict(c.exact)}
    return {"seed": c.seed, "steps": c.steps, "times_s": [c.float32_s, c.exact_s], "again": run.again, **both}


def _read(path: Path) -> Run:
    kept = json.loads(path.read_text())
    float32, exact = (Curve(**kept[side]) for side in ("float32", "exact"))
    return Run(Comparison(kept["seed"], tuple(kept["steps"]), float32, exact, *kept["times_s"]), kept["again"])


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
