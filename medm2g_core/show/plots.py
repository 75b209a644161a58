"""Plots of the notebooks, one call each: pictures in a grid, matrices, curves, points.

Like `medm2g_core.show.figures`, from which the style comes, nothing here imports pyplot or sets a
global option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes

from medm2g_core.show.figures import DPI, STYLE, Cell, Figure, Panel, contact_sheet

__all__ = ["Values", "curves", "grid", "matrix", "scatter", "strip"]

Values = torch.Tensor | np.ndarray | Sequence[float]

COLOURS = ("#1f5fa8", "#d1651b", "#2d7d46", "#8b3fa0", "#a31f34", "#6b6b6b", "#0f8a8a", "#b8860b")
"""Told apart by who does not see red and green alike, and dark enough on white."""

MARKS = ("o", "^", "s", "D", "v", "P", "X")
"""Shapes of points, so that a second property does not need a colour."""

SMALL = 7  # points, of what stands on the axes


def _array(values: Values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        return values.detach().float().cpu().numpy()
    return np.asarray(values, dtype=float)


def grid(
    images: torch.Tensor | Sequence[torch.Tensor],
    titles: Sequence[str] = (),
    *,
    columns: int = 6,
    limits: tuple[float, float] = (-1.0, 1.0),
    size: float = 1.28,
    title: str = "",
) -> Figure:
    """Pictures row by row.

    Args:
        images: (N, 1, H, W), (N, H, W), or N pictures of any size, values within ``limits``.
        titles: written under them, one each or none at all.
        columns: pictures a row.
        limits: values of black and white.
        size: side of a picture in inches.
        title: above everything.

    Raises:
        ValueError: no picture, a number of titles that is not theirs, or ``columns`` below 1.
    """
    pictures = list(images)
    if titles and len(titles) != len(pictures):
        raise ValueError(f"{len(titles)} titles for {len(pictures)} pictures; needed one each")
    if columns < 1:
        raise ValueError(f"{columns} columns; needed at least 1")
    words = titles or [""] * len(pictures)
    cells: list[Cell] = [
        Panel(p, w, limits=limits, sides=False) for p, w in zip(pictures, words, strict=True)
    ]
    rows = [("", cells[i : i + columns]) for i in range(0, len(cells), columns)]
    return contact_sheet(rows, title=title, size=size)


def strip(
    images: torch.Tensor | Sequence[torch.Tensor],
    titles: Sequence[str] = (),
    *,
    size: float = 1.28,
    title: str = "",
) -> Figure:
    """`grid` in a single row: one picture as something grows from left to right."""
    pictures = list(images)
    return grid(pictures, titles, columns=max(1, len(pictures)), size=size, title=title)


def _dress(axes: Axes, xlabel: str, ylabel: str, title: str) -> None:
    axes.set_xlabel(xlabel, fontsize=SMALL)
    axes.set_ylabel(ylabel, fontsize=SMALL)
    axes.set_title(title, fontsize=SMALL + 1)
    axes.tick_params(labelsize=SMALL - 0.5)


def matrix(
    panels: Mapping[str, Values],
    *,
    xlabel: str = "",
    ylabel: str = "",
    limits: tuple[float, float] | None = None,
    cmap: str = "viridis",
    rows: Sequence[str] = (),
    unit: str = "",
    size: float = 2.4,
) -> Figure:
    """Matrices side by side with one colour scale, every entry a sharp square.

    Args:
        panels: title -> (rows, columns).
        xlabel, ylabel: what a column and a row are.
        limits: values of the two ends of the scale; the least and largest of all unless told.
        rows: names of the rows, written beside the first panel instead of their numbers.
        unit: what the scale counts.
        size: side of a panel in inches.

    Raises:
        ValueError: nothing to show, or something that is no matrix.
    """
    arrays = {name: _array(values) for name, values in panels.items()}
    wrong = {name: a.shape for name, a in arrays.items() if a.ndim != 2 or a.size == 0}
    if wrong or not arrays:
        raise ValueError(f"needed one or more matrices (rows, columns); got {wrong or 'none'}")
    low, high = limits or (
        min(a.min() for a in arrays.values()),
        max(a.max() for a in arrays.values()),
    )
    with matplotlib.rc_context(STYLE):
        figure = Figure(
            figsize=(size * len(arrays) + 0.9, size + 0.55), dpi=DPI, layout="constrained"
        )
        every = figure.subplots(1, len(arrays), squeeze=False)[0]
        for axes, (name, a) in zip(every, arrays.items(), strict=True):
            shown = axes.imshow(
                a, cmap=cmap, vmin=low, vmax=high, interpolation="nearest", aspect="auto"
            )
            _dress(axes, xlabel, ylabel if axes is every[0] else "", name)
            if rows:
                axes.set_yticks(range(len(rows)), rows if axes is every[0] else [""] * len(rows))
        bar = figure.colorbar(shown, ax=list(every), fraction=0.05, pad=0.02)
        bar.set_label(unit, fontsize=SMALL)
        bar.ax.tick_params(labelsize=SMALL - 0.5)
    return figure


def curves(
    lines: Mapping[str, Values | tuple[Values, Values]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    smooth: int = 1,
    points: bool = False,
    level: tuple[str, float] | None = None,
) -> Figure:
    """Lines over one pair of axes.

    Args:
        lines: label -> values, or (places on the x axis, values); without places they are 0, 1, 2.
        xlabel, ylabel: with their units.
        smooth: values of a running mean; the first is that of ``smooth`` values, so a line gets
            shorter, not bent.
        points: mark each value.
        level: label and height of a dashed line across, such as chance.

    Raises:
        ValueError: no line, or one with another number of places than of values.
    """
    if not lines:
        raise ValueError("needed at least one line")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.5), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        for i, (label, line) in enumerate(lines.items()):
            y = _array(line[1] if isinstance(line, tuple) else line)
            x = _array(line[0]) if isinstance(line, tuple) else np.arange(len(y), dtype=float)
            if x.shape != y.shape or y.ndim != 1:
                raise ValueError(f"{label}: {x.shape} places and {y.shape} values")
            if smooth > 1:
                kernel = np.full(smooth, 1 / smooth)
                x, y = x[smooth - 1 :], np.convolve(y, kernel, "valid")
            axes.plot(
                x,
                y,
                label=label,
                color=COLOURS[i % len(COLOURS)],
                marker=MARKS[i % len(MARKS)] if points else "",
                markersize=4,
                linewidth=1.3,
            )
        if level is not None:
            axes.axhline(level[1], color="black", linestyle="--", linewidth=0.9, label=level[0])
        _dress(axes, xlabel, ylabel, title)
        axes.grid(alpha=0.25, linewidth=0.5)
        if len(axes.lines) > 1:
            axes.legend(fontsize=SMALL - 0.5)
    return figure


def scatter(
    points: Values,
    *,
    colour: Sequence[str],
    mark: Sequence[str] = (),
    joined: Sequence[Sequence[int]] = (),
    xlabel: str,
    ylabel: str,
    title: str = "",
) -> Figure:
    """Points in the plane, by up to two labels each: one is the colour, one the shape.

    Args:
        points: (N, 2).
        colour: N labels; those of one label share a colour.
        mark: N labels; those of one label share a shape.
        joined: lists of rows that are joined by a thin line, such as the records of one patient.
        xlabel, ylabel: with their units.

    Raises:
        ValueError: not (N, 2), or a number of labels other than N.
    """
    xy = _array(points)
    marks = list(mark) or [""] * len(xy)
    if xy.ndim != 2 or xy.shape[1] != 2 or not len(xy) == len(colour) == len(marks):
        raise ValueError(
            f"points {xy.shape}, {len(colour)} colours, {len(marks)} marks; needed (N, 2), N and N"
        )
    names, shapes = list(dict.fromkeys(colour)), list(dict.fromkeys(marks))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 4.2), dpi=DPI, layout="constrained")
        axes = figure.subplots()
        for rows in joined:
            line = xy[list(rows)]
            axes.plot(line[:, 0], line[:, 1], color="#999999", linewidth=0.5, zorder=1)
        for i, name in enumerate(names):
            for k, shape in enumerate(shapes):
                own = [c == name and m == shape for c, m in zip(colour, marks, strict=True)]
                if any(own):
                    axes.scatter(
                        xy[own, 0],
                        xy[own, 1],
                        s=18,
                        color=COLOURS[i % len(COLOURS)],
                        marker=MARKS[k % len(MARKS)],
                        linewidths=0.3,
                        zorder=2,
                    )
        for i, name in enumerate(names):
            axes.scatter([], [], color=COLOURS[i % len(COLOURS)], marker="o", label=name)
        for k, shape in enumerate(shapes):
            if shape:
                axes.scatter([], [], color="#444444", marker=MARKS[k % len(MARKS)], label=shape)
        _dress(axes, xlabel, ylabel, title)
        axes.grid(alpha=0.25, linewidth=0.5)
        figure.legend(fontsize=SMALL - 0.5, loc="outside right upper")
    return figure
