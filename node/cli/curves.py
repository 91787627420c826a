"""Curves of two runs, for a terminal and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import UsageError

INK = {"float32": "#c2571a", "exact": "#2457d6"}


@dataclass(frozen=True, slots=True)
class Series:
    """A named line; y may hold NaN where nothing was measured."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: its title and lines, float32 and exact of one seed or of several."""

    title: str
    series: Sequence[Series]


def text_plot(panel: Panel, *, width: int = 72, height: int = 14) -> str:
    """The lines as characters: `o` float32, `x` exact, `*` where both fall on one place."""
    points = [(s.name, x, y) for s in panel.series for x, y in zip(s.x, s.y, strict=True) if math.isfinite(y)]
    if not points:
        return f"{panel.title}: nothing to draw"
    xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)
    grid = [[" "] * width for _ in range(height)]
    for name, x, y in points:
        column = round((x - x0) / (x1 - x0 or 1) * (width - 1))
        row = round((y1 - y) / (y1 - y0 or 1) * (height - 1))
        mark = "x" if name.startswith("exact") else "o"
        grid[row][column] = mark if grid[row][column] in (" ", mark) else "*"
    labels = {0: f"{y1:.4g}", height - 1: f"{y0:.4g}"}
    margin = max(map(len, labels.values()))
    lines = [f"{panel.title}   o float32   x exact   * both"]
    lines += [f"{labels.get(i, '').rjust(margin)} |{''.join(row).rstrip()}" for i, row in enumerate(grid)]
    ends = f"{x0:g}".ljust(width - len(f"{x1:g}")) + f"{x1:g}"
    return "\n".join([*lines, f"{' ' * margin} +{'-' * width}", f"{' ' * margin}  {ends}"])


def write_png(path: Path, panels: Sequence[Panel], *, title: str = "") -> None:
    """The panels side by side. float32 is dashed and lies under exact. Raises OSError, UsageError U-54."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "pictures need matplotlib, which is not installed", code="U-54", hint="pip install 'avenue[train]'"
        ) from error
    # A figure of its own, not pyplot: no global state, no window, no back end to choose.
    figure = Figure(figsize=(5.6 * len(panels), 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        named: set[str] = set()
        for series in sorted(panel.series, key=lambda each: each.name.startswith("exact")):
            kind = "exact" if series.name.startswith("exact") else "float32"
            label = series.name if series.name not in named else "_again"
            named.add(series.name)
            style = "-" if kind == "exact" else (0, (4, 2))
            width = 1.3 if kind == "exact" else 2.2
            axes.plot(list(series.x), list(series.y), linestyle=style, linewidth=width, color=INK[kind], label=label)
        axes.set_ylim(*_window(panel))
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.legend(frameon=False, fontsize=9)
    if title:
        figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", metadata={"Software": None})


def _window(panel: Panel) -> tuple[float, float] | tuple[None, None]:
    """The range of y after the first twentieth of the steps: the fall at the start would flatten all that follows."""
    last = max((x for series in panel.series for x in series.x), default=0.0)
    settled = [y for s in panel.series for x, y in zip(s.x, s.y, strict=True) if x >= last / 20 and math.isfinite(y)]
    if not settled:
        return None, None
    margin = 0.05 * (max(settled) - min(settled)) or 0.05 * abs(settled[0]) or 1.0
    return min(settled) - margin, max(settled) + margin
