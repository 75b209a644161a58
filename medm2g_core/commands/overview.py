"""One picture of a generation: what was given beside what was generated."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Mapping, Sequence

import torch

from medm2g_core.streams import stream

__all__ = ["overview_png"]

MAX_ROWS = 4
PANEL_IN = 3.0
TEXT_WIDTH = 1.25  # of a report's panel, in widths of a picture's
WRAP = 50
MAX_LINES = 22


def overview_png(
    given: Mapping[str, torch.Tensor | str],
    samples: Sequence[Mapping[str, torch.Tensor | str]],
    *,
    mark: str,
    caption: str,
    notes: str = "",
) -> bytes:
    """PNG with the given streams on the left and each sample's streams right of them, a row a
    sample.

    Args:
        given: stream -> image (1, H, W) in -1..1, or a report.
        samples: the same for what was generated; at most `MAX_ROWS` of them are drawn.
        mark: the words that tell readers that this is synthetic; written above the picture.
        caption: seed, steps and the like, written below.
        notes: written into the PNG as ``Comment`` after the mark.
    """
    from matplotlib.figure import Figure

    rows = samples[:MAX_ROWS]
    names = [*((n, "given") for n in given), *((n, "generated") for n in rows[0])]
    widths = [1.0 if stream(n).is_image else TEXT_WIDTH for n, _ in names]
    inches = (max(6.0, PANEL_IN * sum(widths) + 0.2), (PANEL_IN + 0.35) * len(rows) + 0.6)
    figure = Figure(figsize=inches, layout="constrained")
    axes = figure.subplots(
        len(rows), len(names), squeeze=False, gridspec_kw={"width_ratios": widths}
    )
    for r, sample in enumerate(rows):
        for axis, (name, role) in zip(axes[r], names, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            if role == "given" and r > 0:  # given once, for all samples
                axis.axis("off")
                continue
            value = given[name] if role == "given" else sample[name]
            number = f" {r + 1}" if role == "generated" and len(samples) > 1 else ""
            colour = "#1b5e20" if role == "given" else "#b71c1c"
            axis.set_title(f"{role}{number}: {stream(name).title}", fontsize=10, color=colour)
            if isinstance(value, str):
                axis.text(
                    0.03,
                    0.97,
                    _wrapped(value),
                    transform=axis.transAxes,
                    va="top",
                    fontsize=7.5,
                    family="monospace",
                    parse_math=False,
                )
                axis.set_box_aspect(1 / TEXT_WIDTH)  # as high as the pictures
            else:
                axis.imshow(
                    value[0].float().cpu().numpy(),
                    cmap="gray",
                    vmin=-1,
                    vmax=1,
                    interpolation="nearest",
                )
    more = f"  (first {len(rows)} of {len(samples)} samples)" if len(samples) > len(rows) else ""
    figure.suptitle(mark, fontsize=11, fontweight="bold")
    figure.supxlabel(caption + more, fontsize=8)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Glyph"
        )  # a model may write what the font does not have
        figure.savefig(
            buffer, format="png", dpi=150, metadata={"Comment": f"{mark}; {notes}".strip("; ")}
        )
    return buffer.getvalue()


def _wrapped(text: str) -> str:
    lines: list[str] = []
    for paragraph in text.splitlines() or [""]:
        clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in paragraph)
        lines += textwrap.wrap(clean, WRAP) or [""]
    return "\n".join(lines if len(lines) <= MAX_LINES else [*lines[: MAX_LINES - 1], "..."])
