"""Matplotlib figures of studies, as pure functions that return a `Figure`.

Nothing here imports pyplot or sets global options: a `Figure` shows itself in a notebook, and is
saved with ``figure.savefig(path)`` elsewhere. Pictures are in radiological convention (the
patient's right on the left, marked R and L) and grey over the fixed range -1..1 of their stream, so
brightness compares between panels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.font_manager import FontProperties
from PIL import Image

from medm2g_core.show.report import COLOURS, SIGNS, write_report_on
from medm2g_core.streams import CT_WINDOW_HU, STREAMS, Finding, Study, stream

__all__ = [
    "Figure",
    "Panel",
    "compare",
    "contact_sheet",
    "report_panel",
    "show_study",
]

STYLE: Any = {  # of every figure, whatever style the reader has set
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "text.color": "black",
    "axes.facecolor": "white",
    "figure.facecolor": "white",
    "axes.edgecolor": "black",
    "text.usetex": False,
}
DPI = 100  # of the PNG in a notebook
_GAP = 0.07  # inches between panels
_TITLE = 0.26
_CAPTION_LINE = 0.145
_LABEL = 0.95
_HU_BAR = 0.52


class Figure(MatplotlibFigure):
    """A matplotlib figure that shows itself in a notebook as a small PNG, whatever the backend."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        FigureCanvasAgg(self)

    def png(self, greys: int = 64) -> bytes:
        """PNG with a palette of so many greys and 32 colours: a fifth of the bytes of full colour.

        A figure that is coloured in more than 5 % of its pixels gets 256 colours of its own choice
        instead.
        """
        plain = io.BytesIO()
        self.savefig(plain, format="png", dpi=DPI, metadata={"Software": None})
        picture = Image.open(plain).convert("RGB")
        pixels = np.asarray(picture).astype(int)
        tinted = np.ptp(pixels, axis=2) > 12
        if tinted.mean() > 0.05:
            picture = picture.quantize(256, dither=Image.Dither.NONE)
        else:  # an adaptive palette of the whole would drop the few coloured words
            index = np.rint(pixels.mean(2) / 255 * (greys - 1)).astype(np.uint8)
            palette = (
                np.linspace(0, 255, greys)
                .round()
                .astype(int)[:, None]
                .repeat(3, 1)
                .ravel()
                .tolist()
            )
            if tinted.any():
                words = Image.fromarray(pixels[tinted][None].astype(np.uint8)).quantize(
                    32, dither=Image.Dither.NONE
                )
                index[tinted] = greys + np.asarray(words)[0]
                palette += words.getpalette() or []
            picture = Image.fromarray(index)
            picture.putpalette(palette[: 3 * 256])
        small = io.BytesIO()
        picture.save(small, format="png", optimize=True)
        return small.getvalue()

    def _ipython_display_(self) -> None:
        import base64

        from IPython.display import display

        data = {
            "image/png": base64.b64encode(self.png()).decode("ascii"),
            "text/plain": self._words(),
        }
        display(data, raw=True)

    def _words(self) -> str:
        width, height = (round(float(n) * DPI) for n in self.get_size_inches())
        return f"<Figure size {width}x{height} with {len(self.axes)} Axes>"


@dataclass(frozen=True)
class Panel:
    """One cell of a sheet.

    Attributes:
        value: image (H, W), (1, H, W) or (1, 1, H, W); a report; or ``None`` for an empty cell.
        caption: written under it.
        name: stream of the value; ``"ct"`` gets a bar in Hounsfield units when the sheet asks for
            one.
        limits: values shown as black and white. Other limits and colours are for differences and
            masks.
        cmap: a matplotlib colour map.
        sides: write R and L on the picture.
        findings: reports only: what is true of the patient; sentences get the colour of their
            verdict.
        region: reports only: ``"chest"`` or ``"brain"``.
    """

    value: torch.Tensor | np.ndarray | str | None
    caption: str = ""
    name: str = ""
    limits: tuple[float, float] = (-1.0, 1.0)
    cmap: str = "gray"
    sides: bool = True
    findings: tuple[Finding, ...] | None = None
    region: str = "chest"

    @property
    def is_text(self) -> bool:
        return isinstance(self.value, str)


Cell = Panel | torch.Tensor | np.ndarray | str | None


def _flat(value: torch.Tensor | np.ndarray) -> np.ndarray:
    """An image tensor or array as (H, W) or (H, W, 3)."""
    array = (
        value.detach().float().cpu().numpy()
        if isinstance(value, torch.Tensor)
        else np.asarray(value)
    )
    if array.ndim == 3 and array.shape[-1] in (3, 4):
        return array
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2:
        raise ValueError(
            f"a panel shows one image (H, W) or (1, H, W); got shape {tuple(value.shape)}"
        )
    return array


def _panel(cell: Cell) -> Panel:
    return cell if isinstance(cell, Panel) else Panel(cell)


def _draw_image(axes: Axes, panel: Panel) -> None:
    assert panel.value is not None and not isinstance(panel.value, str)
    array = _flat(panel.value)
    axes.imshow(
        array,
        cmap=panel.cmap,
        vmin=panel.limits[0],
        vmax=panel.limits[1],
        interpolation="bilinear",
        aspect="equal",
    )
    axes.set_axis_off()
    if panel.sides:
        edge = [patheffects.withStroke(linewidth=1.4, foreground="black")]
        for x, letter, side in ((0.03, "R", "left"), (0.96, "L", "right")):
            axes.text(
                x,
                0.97,
                letter,
                transform=axes.transAxes,
                color="white",
                fontsize=7,
                fontweight="bold",
                ha=side,
                va="top",
                path_effects=edge,
            )


def _hu_bar(
    figure: Figure, box: tuple[float, float, float, float], inches: tuple[float, float]
) -> None:
    """A vertical bar in HU right of a CT. ``box`` is the picture's (left, bottom, width, height) in
    inches."""
    left, bottom, width, height = box
    low, high = CT_WINDOW_HU
    x, y, w, h = left + width + 0.05, bottom + 0.05 * height, 0.08, 0.9 * height
    axes = figure.add_axes((x / inches[0], y / inches[1], w / inches[0], h / inches[1]))
    axes.imshow(
        np.linspace(high, low, 64)[:, None], cmap="gray", aspect="auto", extent=(0, 1, low, high)
    )
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.set_yticks([low, -500, 0, high])
    axes.tick_params(labelsize=5.5, length=2, pad=1, width=0.4)
    axes.set_title("HU", fontsize=5.5, pad=2)
    for spine in axes.spines.values():
        spine.set_linewidth(0.4)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Cell]]],
    *,
    columns: Sequence[str] = (),
    title: str = "",
    hu_bar: bool = False,
    size: float = 1.28,
    text_width: float = 2.3,
) -> Figure:
    """Labelled rows of pictures and reports.

    Args:
        rows: (label, cells) each; a cell is a `Panel`, an image, a report, or ``None`` for a gap.
            Rows may differ in length.
        columns: headings over the columns.
        title: above everything.
        hu_bar: a bar in Hounsfield units beside every ``ct`` panel.
        size: side of a picture in inches; 1.28 shows 128 pixels one to one.
        text_width: width of a column that holds a report, in inches.

    Raises:
        ValueError: no rows, or a cell that is no single image.
    """
    table = [(label, [_panel(c) for c in cells]) for label, cells in rows]
    if not table or not any(cells for _, cells in table):
        raise ValueError("nothing to show: needed at least one row with one cell")
    count = max(len(cells) for _, cells in table)
    text = [any(len(c) > i and c[i].is_text for _, c in table) for i in range(count)]
    bar = [hu_bar and any(len(c) > i and c[i].name == "ct" for _, c in table) for i in range(count)]
    wide = [text_width if t else size for t in text]
    room = [w + (_HU_BAR if b else 0) for w, b in zip(wide, bar, strict=True)]
    gutter = _LABEL if any(label for label, _ in table) else 0.0
    under = [
        max((c.caption.count("\n") + 1 for c in cells if c.caption), default=0) * _CAPTION_LINE
        + 0.06
        for _, cells in table
    ]
    above = 0.0 if title or columns else (0.14 if any(bar) else _GAP)
    headings = max((1 + c.count("\n") for c in columns), default=0)
    head = (
        above + (_TITLE if title else 0.0) + (_CAPTION_LINE * headings + 0.05 if headings else 0.0)
    )
    width = gutter + sum(room) + _GAP * (count + 1)
    judged = any(c.is_text and c.findings is not None for _, cells in table for c in cells)
    height = head + sum(size + u for u in under) + _GAP + (0.16 if judged else 0.0)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI)
        if title:
            figure.text(
                0.5,
                1 - 0.05 / height,
                title,
                ha="center",
                va="top",
                fontsize=9.5,
                fontweight="bold",
            )
        lefts = [gutter + _GAP + sum(room[:i]) + _GAP * i for i in range(count)]
        for i, heading in enumerate(columns):
            figure.text(
                (lefts[i] + wide[i] / 2) / width,
                1 - (head - 0.04) / height,
                heading,
                ha="center",
                va="bottom",
                fontsize=8,
                fontweight="bold",
            )
        top = height - head
        for (label, cells), below in zip(table, under, strict=True):
            if label:
                figure.text(
                    0.06 / width,
                    (top - size / 2) / height,
                    label,
                    ha="left",
                    va="center",
                    fontsize=8,
                )
            for i, panel in enumerate(cells):
                if panel.value is None:
                    continue
                box = (lefts[i], top - size, wide[i], size)
                axes = figure.add_axes(
                    (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
                )
                if isinstance(panel.value, str):
                    write_report_on(axes, panel.value, panel.findings, region=panel.region)
                else:
                    _draw_image(axes, panel)
                    if hu_bar and panel.name == "ct":
                        _hu_bar(
                            figure,
                            (box[0] + (wide[i] - size) / 2, box[1], size, size),
                            (width, height),
                        )
                if panel.caption:
                    middle = (box[0] + box[2] / 2) / width
                    figure.text(
                        middle,
                        (top - size - 0.035) / height,
                        panel.caption,
                        ha="center",
                        va="top",
                        fontsize=7,
                        linespacing=1.15,
                    )
            top -= size + below
        if judged:
            legend(figure)
    return figure


def report_panel(
    text: str,
    findings: tuple[Finding, ...] | None = None,
    *,
    region: str = "chest",
    title: str = "",
    width: float = 5.0,
    height: float = 1.7,
) -> Figure:
    """One report; with ``findings`` (what is true) each sentence has the colour of its verdict.

    Green ✓: a true finding, as stated. Ochre ~: a true finding at a wrong place or of a wrong size.
    Red ✗: not true. Grey: missed. Black: nothing to judge. The verdicts come from
    `medm2g_core.data.labeller.label_report`.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), dpi=DPI)
        top = 1 - (0.24 / height if title else 0.03)
        foot = 0.2 / height if findings is not None else 0.03
        if title:
            figure.text(
                0.5, 1 - 0.04 / height, title, ha="center", va="top", fontsize=9, fontweight="bold"
            )
        axes = figure.add_axes((0.01, foot, 0.98, top - foot))
        write_report_on(axes, text, findings, region=region, size=8.0)
        if findings is not None:
            legend(figure)
    return figure


def legend(figure: Figure) -> None:
    """A line at the bottom of a figure that explains the colours of reports."""
    measure = RendererAgg(8, 8, figure.dpi)
    words = (
        ("right", "true"),
        ("partly", "true, wrong place or size"),
        ("wrong", "not true"),
        ("missed", "missed"),
    )
    width = float(figure.get_size_inches()[0]) * 72
    x = 4.0
    for verdict, meaning in words:
        label = f"{SIGNS[verdict]} {meaning}"
        figure.text(
            x / width, 0.02, label, color=COLOURS[verdict], fontsize=6.5, ha="left", va="bottom"
        )
        font = FontProperties(family="DejaVu Sans", size=6.5)
        x += 8.0 + measure.get_text_width_height_descent(label, font, False)[0] * 72 / figure.dpi


def _cell(
    name: str,
    value: torch.Tensor | str,
    study: Study | None = None,
    caption: str = "",
    judge: tuple[Finding, ...] | None = None,
    region: str = "chest",
) -> Panel:
    title = caption or stream(name).title
    return Panel(value, title, name, findings=judge, region=study.region if study else region)


def show_study(study: Study, *, hu_bar: bool = True, size: float = 1.6) -> Figure:
    """All streams of a study side by side: pictures, then the report."""
    order = [*(n for n in STREAMS if n != "text"), "text"]
    cells = [_cell(n, study[n], study) for n in order if n in study.streams]
    who = f"{study.id}: {study.sex}, {study.age} years" if study.age is not None else study.id
    return contact_sheet(
        [("", cells)],
        title=f"{who} (anatomy of {study.person})",
        hu_bar=hu_bar,
        size=size,
        text_width=2.9,
    )


def compare(
    given: Mapping[str, torch.Tensor | str],
    truth: Mapping[str, torch.Tensor | str],
    samples: Mapping[str, torch.Tensor | Sequence[str]],
    *,
    findings: tuple[Finding, ...] | None = None,
    region: str = "chest",
    title: str = "",
    caption: Callable[[str, torch.Tensor | str], str] | None = None,
    size: float = 1.28,
    text_width: float = 2.6,
) -> Figure:
    """What was given | what is true | what was drawn, one row for each wanted stream.

    With one wanted stream all given ones stand in its row; with several, one in each row.

    Args:
        given: stream -> value, of one patient.
        truth: wanted stream -> the patient's real value; may lack streams.
        samples: wanted stream -> draws (N, 1, H, W) or list of N reports, as the pipeline returns
            them.
        findings: what is true of the patient; drawn reports are then coloured against it.
        region: of the patient, for the labeller.
        title: above everything.
        caption: (stream, one draw) -> words under that draw, for example its PSNR.
    """
    wanted = list(samples)
    left: list[Cell] = [_cell(n, v, region=region) for n, v in given.items()]
    side_by_side = max(len(left), 1) if len(wanted) == 1 else 1
    count = max(len(wanted), -(-len(left) // side_by_side))
    rows: list[tuple[str, list[Cell]]] = []
    for i in range(count):
        cells = left[i * side_by_side : (i + 1) * side_by_side]
        cells += [None] * (side_by_side - len(cells))
        if i < len(wanted):
            name = wanted[i]
            cells.append(_cell(name, truth[name], region=region) if name in truth else None)
            for drawn in samples[name]:
                words = caption(name, drawn) if caption else ""
                cells.append(
                    replace(_cell(name, drawn, judge=findings, region=region), caption=words)
                )
        rows.append(("", cells))
    most = max(len(v) for v in samples.values())
    drawn_titles = ["drawn"] if most == 1 else [f"drawn {k + 1}" for k in range(most)]
    columns = [*["given"] * side_by_side, "truth", *drawn_titles]
    return contact_sheet(rows, columns=columns, title=title, size=size, text_width=text_width)
