"""Pictures of the component effects and of score against training time.

``python -m medm2g_core.show.effects`` draws ``results/ablation/ablation.png`` and
``results/budget.png`` from what was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from medm2g_core.experiments.ablation import LEADING, load_runs
from medm2g_core.experiments.budget import CURVES, Point, budget_points
from medm2g_core.experiments.trainings import load_trainings
from medm2g_core.pipeline import SHIPPED_WEIGHTS
from medm2g_core.show.figures import Figure
from medm2g_core.storage import atomic_write

__all__ = ["ablation_figure", "budget_figure", "main"]

RESULTS = Path(__file__).resolve().parents[2] / "results"
_FONT: dict[Any, Any] = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
_BLUE, _GREY = "#2a6f97", "#9aa5ad"


def ablation_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """A panel a group and leading score: a dot a seed, a line at their mean, arms from top to
    bottom.

    Raises:
        ValueError: no run at all.
    """
    panels = [(g, m) for g, own in runs.items() if own for m in LEADING[g]]
    if not panels:
        raise ValueError("no ablation was run yet: nothing to draw")
    arms = {g: list(dict.fromkeys(r["arm"] for r in own)) for g, own in runs.items() if own}
    rows = [0.32 * len(arms[g]) + 0.75 for g in arms]
    columns = max(sum(g == group for g, _ in panels) for group in arms)
    with matplotlib.rc_context(_FONT):
        figure = Figure(figsize=(3.1 * columns + 2.2, sum(rows)), dpi=110)
        grid = figure.add_gridspec(
            len(arms),
            columns,
            height_ratios=rows,
            hspace=0.55,
            wspace=0.15,
            left=0.27,
            right=0.98,
            top=0.96,
            bottom=0.07,
        )
        for i, group in enumerate(arms):
            for j, metric in enumerate(LEADING[group]):
                axes = figure.add_subplot(grid[i, j])
                for y, arm in enumerate(arms[group]):
                    x = [r["scores"][metric] for r in runs[group] if r["arm"] == arm]
                    axes.plot(x, [y] * len(x), "o", ms=4, color=_BLUE, alpha=0.75)
                    axes.plot([np.mean(x)] * 2, [y - 0.3, y + 0.3], color="black", lw=1.4)
                axes.set_yticks(range(len(arms[group])), arms[group] if j == 0 else [])
                axes.invert_yaxis()
                axes.grid(axis="x", color="#e3e6e8", lw=0.6)
                axes.set_title(f"{group}: {metric}", fontsize=8, loc="left")
        figure.text(0.98, 0.005, "a dot: one seed; the line: their mean", ha="right", fontsize=7)
    return figure


def budget_figure(points: Sequence[Point]) -> Figure:
    """A panel a curve: score with its interval against CPU minutes of the three rounds, on a
    logarithmic axis."""
    curves = [c for c in CURVES if any(p.curve == c for p in points)]
    with matplotlib.rc_context(_FONT):
        figure = Figure(figsize=(3.0 * max(1, len(curves)), 2.5), dpi=110)
        for i, curve in enumerate(curves):
            own = sorted((p for p in points if p.curve == curve), key=lambda p: p.minutes)
            axes = figure.add_subplot(1, len(curves), i + 1)
            x, y = [p.minutes for p in own], [p.value for p in own]
            error = [[p.value - p.low for p in own], [p.high - p.value for p in own]]
            axes.plot(x, y, color=_GREY, lw=1, zorder=1)
            axes.errorbar(x, y, yerr=error, fmt="o", ms=4, color=_BLUE, capsize=2, lw=1)
            for k, p in enumerate(own):
                place = (6, 3 if k % 2 else -8)  # the cheap trainings lie close together
                axes.annotate(
                    p.what,
                    (p.minutes, p.value),
                    textcoords="offset points",
                    xytext=place,
                    fontsize=6,
                )
            axes.set_xscale("log")
            axes.margins(y=0.22)
            axes.set_xlim(min(x) / 1.6, max(x) * 9)
            ticks = [t for t in (10, 30, 100, 300, 1000) if min(x) / 1.6 <= t <= max(x) * 9]
            axes.set_xticks(ticks, [str(t) for t in ticks])
            axes.minorticks_off()
            axes.set_title(curve, fontsize=8, loc="left")
            axes.set_xlabel("CPU minutes of the three rounds")
        caption = "bars: 95 % interval over studies; of the ablation the lowest and highest seed"
        figure.text(0.99, 0.01, caption, ha="right", fontsize=6)
        figure.subplots_adjust(left=0.04, right=0.99, top=0.88, bottom=0.2, wspace=0.25)
    return figure


def main() -> None:
    """Draw what there is."""
    runs = load_runs(RESULTS / "ablation")
    drawn = {"ablation/ablation.png": lambda: ablation_figure(runs)} if any(runs.values()) else {}
    points = budget_points(load_trainings(RESULTS, SHIPPED_WEIGHTS), runs["rounds"])
    if points:
        drawn["budget.png"] = lambda: budget_figure(points)
    for name, draw in drawn.items():
        png = draw().png()
        atomic_write(RESULTS / name, lambda p, png=png: p.write_bytes(png))
        print(RESULTS / name)


if __name__ == "__main__":
    main()
