"""A closer look at a question, as HTML: one thing changed, a grid, a walk, where a picture looked,
the gates, and whether a draw is a copy. Pure functions; `medm2g_core.explore.closer_box` has the
controls."""

from __future__ import annotations

import base64
import html
import io
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import matplotlib
import torch

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.explore.compare import Pair, counterfactual, sweep, walk
from medm2g_core.explore.drawing import Drawn, Settings
from medm2g_core.explore.given import Given
from medm2g_core.explore.inside import draw_and_record, gate_map, looked_at, overlay
from medm2g_core.explore.line import StoppedError
from medm2g_core.explore.pictures import Shown, gallery, grey
from medm2g_core.metrics.distributions import nearest
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.show.record import Tape
from medm2g_core.streams import StreamError, stream

__all__ = [
    "GRID",
    "changed_html",
    "copies_html",
    "gates_html",
    "grid_html",
    "looked_html",
    "numbers",
    "pairs_that_looked",
    "record_looks",
    "walk_html",
]

GRID = {"steps": int, "guidance": float, "guide_guidance": float, "seed": int}
"""Settings that a grid can vary, and what their values are."""

MAX_GRID = 25
"""Pictures of a grid: a wait of ten seconds on two cores, and five in a row."""

MAX_CHANGE = 1.0  # of a range of 2: has full colour

TRAINING = 64
"""Training patients among which copies are looked for: one shard of the cohort's cache."""

NEAREST = 2  # pictures shown below a draw

MARK = 2  # half of the side of the white square, in pixels of a picture of 128
OF = 128


def _images(settings: Settings) -> Settings:
    """The same question, for pictures only.

    Raises:
        StreamError: none is wanted.
    """
    want = tuple(n for n in settings.want if stream(n).is_image)
    if not want:
        raise StreamError("only a report is wanted; tick a picture to compare")
    return replace(settings, want=want)


def changed_html(
    pipe: MedM2GPipeline,
    given: Sequence[Given],
    changed: Sequence[Given],
    settings: Settings,
    stop: threading.Event | None = None,
) -> str:
    """Before, after and after minus before, from the same noise, for every wanted picture.

    Raises:
        StreamError: nothing differs between the two, or no picture is wanted.
        StoppedError: ``stop`` was set.
    """
    if [g.value for g in given] == [g.value for g in changed]:
        raise StreamError("nothing differs yet: change a word, such as left to right")
    pair = counterfactual(pipe, given, changed, _images(settings), stop=stop)
    return "".join(_pair(pair, name) for name in pair.before.images())


def _pair(pair: Pair, name: str) -> str:
    cells = []
    for i, seed in enumerate(pair.before.settings.seeds):
        before, after = (d.images()[name][i] for d in (pair.before, pair.after))
        part = (pair.difference(name)[i, 0] / MAX_CHANGE).clamp(-1, 1)
        colours = matplotlib.colormaps["RdBu_r"](((part + 1) / 2).numpy(), bytes=True)[..., :3]
        cells += [
            Shown(grey(before, name), f"seed {seed}: before"),
            Shown(grey(after, name), f"seed {seed}: after"),
            Shown(colours, "after minus before: red brighter, blue darker", sides=False),
        ]
    return gallery(stream(name).title, cells)


def numbers(words: str, kind: type) -> tuple[int | float, ...]:
    """Values from typed words such as ``2, 5, 10``.

    Raises:
        ValueError: they are no numbers, or none.
    """
    parts = [p for p in words.replace(";", ",").split(",") if p.strip()]
    try:
        found = tuple(kind(p) for p in parts)
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"{words!r}: needed {what} between commas, such as 2, 5, 10") from None
    if not found:
        raise ValueError("no values yet: type some between commas, such as 2, 5, 10")
    return found


def grid_html(
    pipe: MedM2GPipeline,
    given: Sequence[Given],
    settings: Settings,
    rows: tuple[str, Sequence[float]],
    columns: tuple[str, Sequence[float]],
    stop: threading.Event | None = None,
) -> str:
    """One seed under two settings: a row for each value of one, a column for each of the other.

    Args:
        rows, columns: a name out of `GRID`, and its values.

    Raises:
        ValueError: the same setting twice, too many pictures, or a value out of its range.
        StoppedError: ``stop`` was set.
    """
    if rows[0] == columns[0]:
        raise ValueError("rows and columns are the same setting; choose two")
    count = len(rows[1]) * len(columns[1])
    if count > MAX_GRID:
        raise ValueError(f"a grid of {count} pictures; at most {MAX_GRID} are drawn")
    asked = replace(_images(settings), draws=1)
    values = {rows[0]: rows[1], columns[0]: columns[1]}
    table = sweep(pipe, given, asked, stop=stop, **values)
    said = {name: name.replace("_", " ") for name in values}
    out = []
    for name in asked.want:
        for row in rows[1]:
            cells = [
                Shown(
                    grey(table[row, column].images()[name][0], name),
                    f"{said[columns[0]]} {column:g}",
                )
                for column in columns[1]
            ]
            out.append(gallery(f"{stream(name).title}, {said[rows[0]]} {row:g}", cells))
    return "".join(out)


def walk_html(
    pipe: MedM2GPipeline,
    start: Sequence[Given],
    end: Sequence[Given],
    settings: Settings,
    parts: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    stop: threading.Event | None = None,
) -> str:
    """Pictures on the way from one prompt to another, a row for each seed.

    Raises:
        StreamError: as `medm2g_core.explore.compare.walk`.
        StoppedError: ``stop`` was set.
    """
    asked = _images(settings)
    out = []
    for name, steps in walk(pipe, start, end, asked, parts, stop=stop).items():
        for i, seed in enumerate(asked.seeds):
            cells = [
                Shown(grey(steps[k, i], name), f"{100 * part:.0f} % of the way")
                for k, part in enumerate(parts)
            ]
            out.append(gallery(f"{stream(name).title}, seed {seed}", cells))
    return "".join(out)


def record_looks(
    pipe: MedM2GPipeline,
    given: Sequence[Given],
    settings: Settings,
    stop: threading.Event | None = None,
) -> tuple[Drawn, Tape]:
    """One draw with all its looks.

    Raises:
        StreamError: no picture is given that another could look at.
        StoppedError: ``stop`` was set.
    """
    if not any(stream(g.stream).is_image for g in given):
        raise StreamError("no picture is given, so there is nothing to look at: give a CT or an MR")
    drawn, tape = draw_and_record(pipe, given, replace(_images(settings), draws=1), stop=stop)
    if drawn.cancelled:
        raise StoppedError("cancelled")
    return drawn, tape


def pairs_that_looked(drawn: Drawn, tape: Tape) -> list[tuple[str, str]]:
    """(drawn stream, given stream) of which the first looked at places of the second."""
    guides = [g.stream for g in drawn.given if stream(g.stream).is_image]
    return [
        (name, guide)
        for name in drawn.images()
        for guide in guides
        if any(k.query_grid and k.key_grid for k in tape.select(flow=name, guide=guide))
    ]


def looked_html(drawn: Drawn, tape: Tape, name: str, guide: str, place: tuple[int, int]) -> str:
    """The drawn picture with a place, and where this place looked in the given one, layer by layer.

    A click on the drawn picture writes ``row, column`` into the field of class ``m2g-place`` of the
    same panel.

    Args:
        place: (row, column) in pixels.

    Raises:
        ValueError: a place outside the picture.
    """
    picture = drawn.images()[name][0]
    size = picture.shape[-1]
    row, column = place
    if not (0 <= row < size and 0 <= column < size):
        raise ValueError(f"place {row}, {column}: needed two numbers from 0 to {size - 1}")
    given = next(g.value for g in drawn.given if g.stream == guide)
    assert isinstance(given, torch.Tensor)
    shown = grey(picture, name).copy()
    half = max(1, MARK * size // OF)
    shown[max(row - half, 0) : row + half + 1, max(column - half, 0) : column + half + 1] = 255
    spot = ((row + 0.5) / size, (column + 0.5) / size)
    cells = [Shown(shown, f"drawn {stream(name).title}: click a place", sides=False)]
    for gaze in looked_at(tape, name, guide, spot):
        near, even = 100 * gaze.near, 100 * gaze.chance
        words = f"{gaze.site}: {near:.0f} % at the same place (evenly {even:.0f} %)"
        cells.append(Shown(overlay(given, gaze.heat), words, sides=False))
    title = f"Where row {row}, column {column} looked in the given {stream(guide).title}"
    clicked = f'<img onclick="{_click(size)}" style="cursor:crosshair" '
    return gallery(title, cells).replace("<img ", clicked, 1)


def _click(size: int) -> str:
    """JavaScript of a click: pixels of the picture go into the field, as if they were typed."""
    return html.escape(
        "const b=this.getBoundingClientRect(),"
        "p=[(event.clientY-b.top)/b.height,(event.clientX-b.left)/b.width],"
        f"q=p.map(x=>Math.min({size - 1},Math.floor({size}*x))),"
        "i=this.closest('.m2g-explorer').querySelector('.m2g-place input');"
        "i.value=q.join(', ');i.dispatchEvent(new Event('change',{bubbles:true}))"
    )


def gates_html(model: MedM2G) -> str:
    """Every gate of the model as a heat map."""
    out = io.BytesIO()
    gate_map(model).savefig(out, format="png")
    data = base64.b64encode(out.getvalue()).decode()
    words = "how much of what a flow hears is let in, for each pair and layer"
    return (
        f'<div class="m2g-head">Gates</div><img style="max-width:100%" alt="{words}"'
        f' src="data:image/png;base64,{data}"><div>{words}; white: never trained together</div>'
    )


@lru_cache(maxsize=4)
def _training(region: str, name: str, size: int) -> torch.Tensor:
    cohort = VirtualCohort("train", region, TRAINING, resolution=size)
    having = cohort.indices_with(name)
    return cohort.stack(name, having)


def copies_html(drawn: Drawn, region: str) -> str:
    """Each drawn picture over the two training pictures that are most like it.

    Args:
        region: ``"chest"`` or ``"brain"``, whose patients are looked through.

    Raises:
        StreamError: no picture was drawn, or one that no patient of this region has.
    """
    if not drawn.images():
        raise StreamError("no picture was drawn, so nothing can be a copy")
    out = []
    for name, pictures in drawn.images().items():
        pool = _training(region, name, pictures.shape[-1])
        if len(pool) < NEAREST:
            raise StreamError(f"no {region} patient has a {stream(name).title} to compare with")
        found, distance = nearest(pictures, pool, NEAREST)
        for i, seed in enumerate(drawn.settings.seeds):
            cells = [Shown(grey(pictures[i], name), "drawn")]
            cells += [
                Shown(grey(pool[k], name), f"nearest {n + 1}: distance {distance[i, n]:.2f}")
                for n, k in enumerate(found[i].tolist())
            ]
            out.append(gallery(f"{stream(name).title}, seed {seed}", cells))
    words = (
        f"Looked through {TRAINING} training patients ({region}). Root mean square difference, of a"
        " range of 2; 0 is a copy."
    )
    return "".join(out) + f"<div>{words}</div>"
