"""Curves of training, from the logs that it writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from medm2g_core.show.figures import DPI, STYLE, Figure

__all__ = ["gate_curves", "training_curves"]


def training_curves(
    path: str | Path | Sequence[str | Path], *, keys: Sequence[str] = (), smooth: int = 9
) -> Figure:
    """Logged values of training against the step, one panel a value, one line a file.

    Args:
        path: ``<stage>.log.jsonl`` of one or more stages: a JSON object a line with ``step``,
            ``seconds`` and values.
        keys: which values; all of them if empty.
        smooth: width of the running median drawn over the raw values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no lines with steps, or none of the keys in them.
    """
    files = [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]
    logs = {f.name.removesuffix(".log.jsonl"): _read_log(f) for f in files}
    names = keys or list(
        dict.fromkeys(k for log in logs.values() for k in log if k not in ("step", "seconds"))
    )
    names = [n for n in names if any(n in log for log in logs.values())]
    if not names:
        raise ValueError(f"none of {list(keys)} is logged in {', '.join(str(f) for f in files)}")
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(2.4 * columns + 0.2, 1.75 * rows + 0.1), dpi=DPI, layout="constrained"
        )
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, name in zip(grid.flat, names, strict=False):
            for label, log in logs.items():
                if name in log:
                    steps, values = log["step"], log[name]
                    keep = np.isfinite(values)
                    (line,) = axes.plot(steps[keep], values[keep], linewidth=0.5, alpha=0.35)
                    middle = _median(values[keep], smooth)
                    axes.plot(
                        steps[keep], middle, linewidth=1.2, color=line.get_color(), label=label
                    )
            axes.set_title(name, fontsize=8)
            axes.set_xlabel("step", fontsize=7)
            axes.tick_params(labelsize=6.5)
            axes.grid(alpha=0.25, linewidth=0.5)
        for axes in list(grid.flat)[len(names) :]:
            axes.set_axis_off()
        if len(logs) > 1:
            grid.flat[0].legend(fontsize=6)
    return figure


def gate_curves(paths: Sequence[str | Path]) -> Figure:
    """Gates of cross-guidance against the step: a row a pair of flow and guide, a column a log, a
    line a layer.

    Args:
        paths: logs of rounds, in the order in which these were trained.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a log holds no gates, as those do that were written before gates were logged.
    """
    logs = {}
    for path in map(Path, paths):
        lines = [line for line in _lines(path) if "gates" in line]
        if not lines:
            raise ValueError(
                f"{path} holds no gates; needed the log of a round that was trained with this"
                " version"
            )
        logs[path.name.removesuffix(".jsonl").removesuffix(".log")] = lines
    pairs = list(dict.fromkeys(p for lines in logs.values() for x in lines for p in x["gates"]))
    with matplotlib.rc_context(STYLE):
        size = (2.4 * len(logs) + 0.6, 1.3 * len(pairs) + 0.3)
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        grid = figure.subplots(len(pairs), len(logs), squeeze=False, sharey="row", sharex="col")
        for column, (name, lines) in zip(grid.T, logs.items(), strict=True):
            column[0].set_title(name, fontsize=8)
            column[-1].set_xlabel("step", fontsize=7)
            for axes, pair in zip(column, pairs, strict=True):
                axes.tick_params(labelsize=6.5)
                axes.axhline(0, color="#999999", linewidth=0.5)
                known = [line for line in lines if pair in line["gates"]]
                steps = [line["step"] for line in known]
                for i, gates in enumerate(zip(*(x["gates"][pair] for x in known), strict=True)):
                    axes.plot(steps, gates, linewidth=1.0, label=f"layer {i + 1}")
        for axes, pair in zip(grid[:, 0], pairs, strict=True):
            axes.set_ylabel(pair.replace("<-", " ← "), fontsize=7)
        handles, labels = max(
            (a.get_legend_handles_labels() for a in grid.flat), key=lambda found: len(found[1])
        )
        figure.legend(handles, labels, fontsize=6, loc="outside right upper")
    return figure


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log that have a step."""
    text = path.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if "step" in line]
    if not lines:
        raise ValueError(f"{path} has no lines with a step; needed one JSON object a line")
    return lines


def _read_log(path: Path) -> dict[str, np.ndarray]:
    """Key -> values of a jsonl log; NaN where a line lacks the key, without what is no number."""
    lines = _lines(path)
    keys = dict.fromkeys(k for line in lines for k, v in line.items() if isinstance(v, int | float))
    return {k: np.array([float(line.get(k, "nan")) for line in lines]) for k in keys}


def _median(values: np.ndarray, width: int) -> np.ndarray:
    """Running median, shorter at the ends."""
    half = max(0, width // 2)
    return np.array(
        [np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
    )
