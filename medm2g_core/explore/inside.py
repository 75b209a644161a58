"""Where a drawn picture looked, and how open its ears are: attention and gates as pictures.

Attention says where a flow looked, not why it drew what it drew.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import torch

from medm2g_core.explore.drawing import Drawn, Settings, draw
from medm2g_core.explore.given import Given
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.show.figures import DPI, STYLE, Figure
from medm2g_core.show.record import Look, Tape, gate_table, record

__all__ = ["Gaze", "draw_and_record", "gate_map", "looked_at", "overlay"]

GLOW = 0.6
"""Opacity of the heat where it is strongest: the picture below must still be seen."""


@dataclass(frozen=True)
class Gaze:
    """Where one place of a drawn picture looked, at one layer.

    Attributes:
        site: name of the layer, see `medm2g_core.show.record.sites`.
        heat: (rows, columns) of the guide's tokens, mean over steps and heads, of sum 1.
        cell: (row, column) of the place on the layer's own grid.
        grid: (rows, columns) of that grid.
        near: part of the heat within one token of the same place.
        chance: the same for attention that is spread evenly.
    """

    site: str
    heat: torch.Tensor
    cell: tuple[int, int]
    grid: tuple[int, int]
    near: float
    chance: float


def draw_and_record(
    pipe: MedM2GPipeline,
    given: Sequence[Given],
    settings: Settings,
    *,
    stop: threading.Event | None = None,
) -> tuple[Drawn, Tape]:
    """`medm2g_core.explore.drawing.draw` with every look of cross-guidance written down.

    The model must not draw anything else meanwhile.
    """
    with record(pipe.model) as tape:
        return draw(pipe, given, settings, stop=stop), tape


def looked_at(
    tape: Tape, name: str, guide: str, place: tuple[float, float], draw_number: int = 0
) -> list[Gaze]:
    """Where a place of a drawn picture looked in a guide, layer by layer.

    Args:
        tape: of the drawing.
        name: the drawn stream.  guide: the stream that is looked at.
        place: (row, column) as parts 0..1 of the picture's side: a click, divided by the size.
        draw_number: of the draw.

    Raises:
        ValueError: a place outside, or a pair that has no looks with places.
    """
    if not all(0 <= p <= 1 for p in place):
        raise ValueError(f"place {place}: needed two numbers from 0 to 1")
    by_site: dict[str, list[Look]] = {}
    for look in tape.select(flow=name, guide=guide):
        if look.query_grid and look.key_grid:
            by_site.setdefault(look.site, []).append(look)
    if not by_site:
        raise ValueError(f"{name} never looked at places of {guide} in this drawing")
    return [_gaze(site, looks, place, draw_number) for site, looks in by_site.items()]


def _cell(place: tuple[float, float], grid: tuple[int, int]) -> tuple[int, int]:
    row, column = (min(int(p * n), n - 1) for p, n in zip(place, grid, strict=True))
    return row, column


def _gaze(site: str, looks: Sequence[Look], place: tuple[float, float], number: int) -> Gaze:
    query, key = looks[0].query_grid, looks[0].key_grid
    assert query is not None and key is not None
    cell = _cell(place, query)
    row = cell[0] * query[1] + cell[1]
    heat = torch.stack([k.weights[number, :, row].mean(0) for k in looks]).mean(0)  # (M,)
    heat = heat.float().cpu().unflatten(0, key)
    r, c = _cell(place, key)
    around = (slice(max(r - 1, 0), r + 2), slice(max(c - 1, 0), c + 2))
    near = heat[around]
    return Gaze(site, heat, cell, query, float(near.sum()), near.numel() / heat.numel())


def overlay(picture: torch.Tensor, heat: torch.Tensor) -> np.ndarray:
    """A picture with heat laid over it, (H, W, 3) uint8.

    Args:
        picture: (1, H, W) in -1..1.
        heat: (rows, columns), not negative; its largest value glows most.
    """
    size = picture.shape[-2:]
    smooth = torch.nn.functional.interpolate(heat[None, None], size=size, mode="bilinear")[0, 0]
    strength = (smooth / smooth.max().clamp_min(1e-12)).numpy()[..., None]  # (H, W, 1)
    base = ((picture[0].float() + 1) / 2).clamp(0, 1).numpy()[..., None].repeat(3, 2)
    colours = matplotlib.colormaps["inferno"](strength[..., 0])[..., :3]
    mixed = base * (1 - GLOW * strength) + colours * GLOW * strength
    return (mixed * 255).round().astype(np.uint8)


def gate_map(model: MedM2G) -> Figure:
    """Every gate as a heat map: a row a flow and guide, a column a layer.

    Pairs that were never trained together are left white: their gates still stand where they began.
    """
    gates = gate_table(model)
    rows = list(dict.fromkeys((g.flow, g.guide) for g in gates))
    columns = list(dict.fromkeys(g.site for g in gates))
    values = np.full((len(rows), len(columns)), np.nan)
    for g in gates:
        if g.trained or g.inherited:
            values[rows.index((g.flow, g.guide)), columns.index(g.site)] = g.value
    largest = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 1.0
    with matplotlib.rc_context(STYLE):
        size = (1.6 + 0.62 * len(columns), 0.9 + 0.26 * len(rows))
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        axes = figure.subplots()
        shown = axes.imshow(values, cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
        axes.set_xticks(range(len(columns)), columns, fontsize=7, rotation=30, ha="right")
        axes.set_yticks(range(len(rows)), [f"{f} hears {g}" for f, g in rows], fontsize=7)
        for (y, x), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = abs(value) > 0.6 * largest
                axes.text(
                    x,
                    y,
                    f"{value:.2f}",
                    ha="center",
                    va="center",
                    fontsize=6,
                    color="white" if dark else "black",
                )
        figure.colorbar(shown, ax=axes, fraction=0.06, pad=0.02).set_label("gate", fontsize=7)
    return figure
