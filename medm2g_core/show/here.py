"""The model as one small drawing with a part highlighted: where a notebook stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

import matplotlib
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from medm2g_core.show.figures import DPI, STYLE, Figure

__all__ = ["Part", "you_are_here"]

Part = Literal["codecs", "alignment", "invariant", "flow", "guides"]
"""What can be highlighted."""

WIDTH, HEIGHT = 8.4, 2.5  # inches; places below are in them
BOX = (1.12, 0.5)
HERE, ELSEWHERE, RECORD = "#f6b26b", "#e8edf2", "#ffffff"


class _Box(NamedTuple):
    x: float
    y: float
    words: str
    part: Part | None  # None: a record or a number, no network


BOXES: Mapping[str, _Box] = {
    "record": _Box(0.7, 1.95, "record $x$\npicture or report", None),
    "encoder": _Box(2.2, 1.95, "codec\nencoder", "codecs"),
    "noisy": _Box(3.7, 1.95, "latent $z_t$\nwith noise", None),
    "flow": _Box(5.1, 1.95, "flow\nof one modality", "flow"),
    "decoder": _Box(6.5, 1.95, "codec\ndecoder", "codecs"),
    "drawn": _Box(7.75, 1.95, "drawn\nrecord", None),
    "given": _Box(0.7, 0.45, "what is given\nof the patient", None),
    "aligned": _Box(2.2, 0.45, "aligned\nencoders $h$", "alignment"),
    "invariant": _Box(2.2, 1.2, "visual\ninvariant", "invariant"),
    "prompt": _Box(3.7, 0.45, "prompt $c$", None),
    "others": _Box(7.75, 0.45, "latents of the\nother streams", None),
    "guides": _Box(6.5, 0.45, "environments $V$\n(cross-guidance)", "guides"),
}
ARROWS = (
    ("record", "encoder"),
    ("encoder", "noisy"),
    ("noisy", "flow"),
    ("flow", "decoder"),
    ("decoder", "drawn"),
    ("given", "aligned"),
    ("aligned", "prompt"),
    ("prompt", "flow"),
    ("others", "guides"),
    ("guides", "flow"),
    ("invariant", "aligned"),
)


def you_are_here(part: Part) -> Figure:
    """The parts of MedM2G, one of them in colour.

    Args:
        part: one of ``codecs``, ``alignment``, ``invariant``, ``flow``, ``guides``.

    Raises:
        ValueError: no such part.
    """
    if part not in get_args(Part):
        raise ValueError(f"part {part!r}: needed one of {', '.join(get_args(Part))}")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, WIDTH)
        axes.set_ylim(0, HEIGHT)
        axes.set_axis_off()
        patches = {}
        for name, box in BOXES.items():
            colour = RECORD if box.part is None else HERE if box.part == part else ELSEWHERE
            corner = (box.x - BOX[0] / 2, box.y - BOX[1] / 2)
            patches[name] = FancyBboxPatch(
                corner,
                *BOX,
                boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=colour,
                edgecolor="#444444",
                linewidth=0.5 if box.part is None else 1.0,
                linestyle="--" if box.part is None else "-",
            )
            axes.add_patch(patches[name])
            weight = "bold" if box.part == part else "normal"
            axes.text(
                box.x, box.y, box.words, ha="center", va="center", fontsize=6.8, weight=weight
            )
        for start, end in ARROWS:
            a, b = BOXES[start], BOXES[end]
            arrow = FancyArrowPatch(
                (a.x, a.y),
                (b.x, b.y),
                patchA=patches[start],
                patchB=patches[end],
                arrowstyle="-|>",
                mutation_scale=8,
                linewidth=0.9,
                color="#444444",
            )
            axes.add_patch(arrow)
    return figure
