"""The network and the rounds of its training as one picture: ``python -m medm2g_core.show.diagram``
writes docs/diagram.png.

Which streams there are, what trains in which round, on which pairs, from which weights, and what
stays frozen is read from `medm2g_core.streams` and `medm2g_core.training.rounds`; only the places
on the page are set here.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from matplotlib.text import Text
from PIL import Image

from medm2g_core.profiles import BASE_STAGES, ROUND_STAGES
from medm2g_core.show.figures import Figure
from medm2g_core.storage import atomic_write
from medm2g_core.streams import MODALITIES, STREAMS, stream
from medm2g_core.training.rounds import ROUNDS

__all__ = ["diagram", "main", "never_together", "state"]

FILE = Path(__file__).resolve().parents[2] / "docs" / "diagram.png"
WIDTH, HEIGHT = 1000, 700
"""In the pixels that GitHub shows; all places below are in them, from the lower left corner."""
BORDER = 355
"""Height above which the network stands, and below which the rounds."""
SHARPNESS = 2
"""Pixels of the file to one of these, for screens of high density."""
GIVEN, WANTED = "text", ("xray", "ct")
"""The streams of the example call."""
COLOURS: Mapping[str, str] = {
    "text": "#7a5195",
    "xray": "#2a6f97",
    "ct": "#2e7d4f",
    "mri": "#b3541e",
}
"""Modality -> its colour."""
NAMES: Mapping[str, str] = {"text": "report", "xray": "X-ray", "ct": "CT", "mri": "MR"}
INK, GREY, PALE, FROZEN = "#222222", "#6b7278", "#f3f5f6", "#e4eef5"
_RC: Any = {"font.family": ["DejaVu Sans"], "font.size": 9.0}
_HEAD: Any = {"fontsize": 12, "fontweight": "bold"}


def state(round_name: str, modality: str) -> str:
    """What a round does with the flow of a modality, in words."""
    plan = ROUNDS[round_name]
    if modality in plan.trained:
        source = dict(plan.initialised_from).get(modality)
        return f"trains,\nstarting as the {NAMES[source]} flow" if source else "trains"
    if modality in plan.frozen:
        new = " and ".join(NAMES[m] for m in plan.trained)
        return f"frozen; only what lets it\nlisten to {new} trains"
    return ""


def never_together() -> list[tuple[str, str]]:
    """Pairs of modalities that no round joins: they meet in the aligned prompt alone."""
    met = {
        frozenset(pair)
        for name in ROUND_STAGES
        for mix in ROUNDS[name].mixes
        for pair in combinations({stream(s).modality for s in mix.streams}, 2)
    }
    return [pair for pair in combinations(MODALITIES, 2) if frozenset(pair) not in met]


def _joined(round_name: str) -> str:
    """The pairs of streams that a round is trained on, a line a corpus."""
    corpora: dict[str, set[str]] = {}
    for mix in ROUNDS[round_name].mixes:
        corpora.setdefault(mix.corpus, set()).update(mix.streams)
    lines = []
    for corpus, names in corpora.items():
        titles = [STREAMS[n].title.removesuffix("-weighted") for n in STREAMS if n in names]
        titles = [
            t.replace("MR ", "") if i and "MR" in titles[i - 1] else t for i, t in enumerate(titles)
        ]
        lines.append(f"{corpus}: {', '.join(titles)}")
    return "\n".join(lines)


class _Page:
    """One axes in pixels, with the few shapes that the picture is made of."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        axes.axis("off")

    def words(self, x: float, y: float, text: str, **style: object) -> Text:
        return self.axes.text(
            x,
            y,
            text,
            **{"ha": "left", "va": "center", "color": INK} | style,  # type: ignore[arg-type]
        )

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        text: str = "",
        *,
        edge: str = GREY,
        face: str = "white",
        line: str = "-",
        **style: object,
    ) -> None:
        """A rounded box from its lower left corner, with its words in the middle."""
        self.axes.add_patch(
            FancyBboxPatch(
                (x, y),
                width,
                height,
                boxstyle="round,pad=0,rounding_size=6",
                edgecolor=edge,
                facecolor=face,
                linestyle=line,
                linewidth=1.2,
            )
        )
        if text:
            middle = {"ha": "center", "linespacing": 1.35} | style
            self.words(x + width / 2, y + height / 2, text, **middle)

    def arrow(
        self, start: tuple[float, float], end: tuple[float, float], *, colour: str = INK
    ) -> None:
        self.axes.add_patch(
            FancyArrowPatch(
                start,
                end,
                arrowstyle="-|>",
                mutation_scale=9,
                linewidth=1.2,
                color=colour,
                shrinkA=0,
                shrinkB=1,
            )
        )


def diagram(part: Literal["whole", "network", "rounds"] = "whole") -> Figure:
    """The figure: one call above, the rounds of training below; or one of the two alone."""
    low, high = {"whole": (0, HEIGHT), "network": (BORDER, HEIGHT), "rounds": (0, BORDER)}[part]
    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=(WIDTH / 100, (high - low) / 100), dpi=100)
        page = _Page(figure.add_axes((0, 0, 1, 1)))
        page.axes.set_ylim(low, high)
        if part != "rounds":
            _network(page)
        if part != "network":
            _rounds(page)
    return figure


def _network(page: _Page) -> None:
    page.words(14, 683, "One call: any streams given, any others drawn together", **_HEAD)
    x = 14.0
    for s in STREAMS.values():
        width = 22 + 6.6 * len(s.title)
        page.box(x, 644, width, 22, s.title, edge=COLOURS[s.modality], color=COLOURS[s.modality])
        x += width + 8
    given = stream(GIVEN)
    colour = COLOURS[given.modality]
    high, low = 551.0, 431.0  # middles of the two ways that a given stream takes
    page.box(14, (high + low) / 2 - 30, 86, 60, f"given:\n{given.title}", edge=colour, color=colour)
    for y, first, second, edge in (
        (high, "codec: encoder\nto a latent", "environment\nencoder", colour),
        (low, "aligned encoder\nto an embedding", "prompt: mean of\nall given ones", GREY),
    ):
        page.box(138, y - 26, 118, 52, first)
        page.box(288, y - 26, 118, 52, second, edge=edge)
        page.arrow((100, (y + high + low) / 3), (138, y))
        page.arrow((256, y), (288, y))
    rows = dict(zip(WANTED, (571.0, 411.0), strict=True))
    for name, y in rows.items():
        s, own = stream(name), COLOURS[stream(name).modality]
        page.box(
            512,
            y - 43,
            206,
            86,
            f"{s.title} flow\nnoise to latent, step by step;\ncross-attention to the prompt\n"
            "and, by a gate, to the guides",
            edge=own,
            face=PALE,
        )
        page.arrow((406, low), (512, y - 14), colour=GREY)
        page.arrow((406, high), (512, y + 14), colour=colour)
        page.arrow((718, y), (756, y))
        page.box(756, y - 26, 100, 52, "codec:\ndecoder")
        page.arrow((856, y), (890, y))
        page.box(890, y - 30, 96, 60, f"drawn:\n{s.title}", edge=own, color=own)
    page.words(428, high + 28, "guide", color=colour)
    page.words(428, low - 33, "prompt", color=GREY)
    upper, lower = rows[WANTED[0]] - 43, rows[WANTED[1]] + 43
    middle = (upper + lower) / 2
    for name, x, begin, end in ((WANTED[0], 562, upper, lower), (WANTED[1], 668, lower, upper)):
        own = COLOURS[stream(name).modality]
        side = 18 if begin > end else -18
        page.box(x - 46, middle - 18, 92, 36, "environment\nencoder", edge=own, fontsize=8)
        page.arrow((x, begin), (x, middle + side), colour=own)
        page.arrow((x, middle - side), (x, end), colour=own)
    page.words(
        732,
        middle,
        "the flows guide each other:\nat every step the environment of one\n"
        "half-drawn stream is a guide of the other",
        color=GREY,
        linespacing=1.35,
        fontsize=8.5,
    )


def _rounds(page: _Page) -> None:
    page.words(
        14, 340, "Training: first what the flows build on, then one round after the other", **_HEAD
    )
    left, width, gap = 254.0, 240.0, 8.0
    top, high = 252.0, 44.0
    first = [n.replace("_", " ") for n in BASE_STAGES]
    base = "\n".join(f"{i + 1}  {n}" for i, n in enumerate(first))
    page.words(14, 308, "first, each on its own", fontweight="bold")
    bottom = top - len(MODALITIES) * (high + 6) + 6
    page.box(14, bottom, 140, top - bottom, f"{base}\n\nfrozen from then on", face=PALE)
    for i, name in enumerate(ROUND_STAGES):
        x = left + i * (width + gap)
        page.words(x, 308, name.replace("round", "round "), fontweight="bold")
        page.words(x, 279, _joined(name), color=GREY, fontsize=8.5, linespacing=1.3)
        for k, modality in enumerate(MODALITIES):
            y = top - high - k * (high + 6)
            text, own = state(name, modality), COLOURS[modality]
            if modality in ROUNDS[name].trained:
                page.box(x, y, width, high, text, edge=own, face=own, color="white")
            elif modality in ROUNDS[name].frozen:
                page.box(x, y, width, high, text, edge=own, face=FROZEN, line="--")
            else:
                page.words(
                    x + width / 2, y + high / 2, "not in this round", color="#a8afb4", ha="center"
                )
    for k, modality in enumerate(MODALITIES):
        y = top - high / 2 - k * (high + 6)
        page.words(left - 12, y, f"{NAMES[modality]} flow", color=COLOURS[modality], ha="right")
    pairs = ", ".join(f"{NAMES[a]} and {NAMES[b]}" for a, b in never_together())
    page.words(
        14,
        24,
        f"No round joins {pairs}: these reach each other through the aligned prompt alone.",
        color=GREY,
    )


def main() -> None:
    """Draw docs/diagram.png."""
    drawn = io.BytesIO()
    diagram().savefig(drawn, format="png", dpi=100 * SHARPNESS)
    few = Image.open(drawn).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    atomic_write(FILE, lambda p: few.save(p, format="png", optimize=True))
    print(FILE)


if __name__ == "__main__":
    main()
