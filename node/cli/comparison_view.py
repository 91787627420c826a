"""Two trainings of one step beside each other: as tables, as curves, as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from node.cli.curves import Panel, Series
from node.cli.output import Table
from node.training.compare import Comparison, Curve


def point_note(now: Comparison) -> str:
    """The last look, for the progress line."""
    return f"loss {now.float32.losses[-1]:.4f} float32, {now.exact.losses[-1]:.4f} exact"


def comparison_document(file: str, data: str, runs: Sequence[Comparison]) -> dict[str, Any]:
    """All runs for --json; gaps are exact minus float32 at the end."""
    return {"file": file, "data": data, "runs": [_run_document(run) for run in runs]}


def _run_document(run: Comparison) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "steps": run.steps,
        "float32": asdict(run.float32),
        "exact": asdict(run.exact),
        "gap": gaps(run),
        "float32_seconds": run.float32_s,
        "exact_seconds": run.exact_s,
        "overflow": run.overflow or None,
    }


def gaps(run: Comparison) -> dict[str, float]:
    """Exact minus float32 at the end: of the training loss and of each of evaluate()'s means."""
    found = {"training_loss": run.exact.losses[-1] - run.float32.losses[-1]}
    for name in run.metric_names:
        found[name] = run.exact.metrics[-1][name] - run.float32.metrics[-1][name]
    return found


def comparison_blocks(runs: Sequence[Comparison]) -> list[Table | str]:
    """A table for each run, and under several the mean gap."""
    blocks: list[Table | str] = []
    for run in runs:
        names = ("training loss", *run.metric_names)
        columns = ["step", *(column for name in names for column in (f"{name}: float32", "exact", "gap"))]
        rows = [[str(step), *_cells(run, i)] for i, step in enumerate(run.steps)]
        ratio = run.exact_s / run.float32_s if run.float32_s else math.nan
        blocks.append(f"seed {run.seed}")
        blocks.append(Table(columns, rows))
        both = f"float32 {run.float32_s:.1f} s, exact {run.exact_s:.1f} s, ratio {ratio:.2f}"
        blocks.append(f"time of {run.steps[-1]} steps: {both}")
        if run.overflow:
            blocks.append(f"the exact run ended in an overflow: {run.overflow}")
    if len(runs) > 1:
        for name in gaps(runs[0]):
            each = [gaps(run)[name] for run in runs]
            mean = sum(each) / len(each)
            blocks.append(
                f"{name.replace('_', ' ')}: mean gap {mean:+.4f}, of seeds {min(each):+.4f} to {max(each):+.4f}"
            )
    return blocks


def _cells(run: Comparison, look: int) -> list[str]:
    pairs = [(run.float32.losses[look], run.exact.losses[look])]
    pairs += [(run.float32.metrics[look][name], run.exact.metrics[look][name]) for name in run.metric_names]
    return [text for a, b in pairs for text in (f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}")]


def curve_panels(runs: Sequence[Comparison]) -> list[Panel]:
    """Training loss, then each of evaluate()'s means: both sides of every run."""
    panels = [Panel("training loss", [series for run in runs for series in _losses(run)])]
    for name in runs[0].metric_names:

        def values(curve: Curve, name: str = name) -> list[float]:
            return [metrics[name] for metrics in curve.metrics]

        panels.append(Panel(name, [series for run in runs for series in _pair(run, values)]))
    return panels


def _losses(run: Comparison) -> list[Series]:
    """After every step, after the look at the start."""
    sides = (("float32", run.float32), ("exact", run.exact))
    return [Series(name, range(1, len(c.every_loss) + 1), c.every_loss) for name, c in sides]


def _pair(run: Comparison, values: Any) -> list[Series]:
    return [Series("float32", run.steps, values(run.float32)), Series("exact", run.steps, values(run.exact))]
