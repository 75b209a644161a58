"""Reports for the eye: what each sentence claims, whether it is true, and the text as coloured,
wrapped words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

from medm2g_core.data.findings import FINDINGS, check_finding, size_class
from medm2g_core.data.labeller import label_report
from medm2g_core.streams import Finding

__all__ = [
    "COLOURS",
    "Judged",
    "finding_words",
    "judge_report",
    "make_finding",
    "write_report_on",
]

COLOURS = {
    "right": "#1a7f37",
    "partly": "#9a6700",
    "wrong": "#cf222e",
    "missed": "#8a8a8a",
    "": "#1f1f1f",
}
"""Verdict -> colour. The verdict is also written as a sign, for who cannot tell the colours
apart."""
SIGNS = {"right": "✓", "partly": "~", "wrong": "✗", "missed": "–", "": ""}

_SENTENCE = re.compile(r"(?<=\.)\s+")
_HEADING = re.compile(r"\b(Findings:|Impression:)\s*")


@dataclass(frozen=True)
class Judged:
    """A piece of a report and what came of it.

    Attributes:
        text: a sentence, a heading, or (``"missed"``) a finding that the report does not assert.
        verdict: ``"right"``: asserts a true finding, and every attribute that it states is true;
            ``"partly"``: a true finding at a wrong place or of a wrong size; ``"wrong"``: asserts
            what is not there, or denies what is; ``"missed"``; ``""``: claims nothing that can be
            judged.
    """

    text: str
    verdict: str


def _is_heading(text: str) -> bool:
    return _HEADING.fullmatch(text) is not None


def finding_words(finding: Finding) -> str:
    """A finding as people write it: ``"moderate left pleural effusion"``, ``"12 mm right upper lobe
    nodule"``."""
    size = f"{finding.size_mm} mm" if finding.size_mm is not None else finding.size
    side = "bilateral" if finding.side == "both" else finding.side
    place = f"{finding.location} lobe" if finding.location else ""
    kind = FINDINGS.get(finding.name)
    title = kind.title if kind else finding.name.replace("_", " ")
    return " ".join(word for word in (size, side, place, title) if word)


def make_finding(name: str, side: str = "", location: str = "", size: str = "") -> Finding:
    """A valid finding; a measured one gets a diameter in the middle of its size class.

    Raises:
        ValueError: its kind does not have that side, location or size.
    """
    kind = FINDINGS[name]
    size_mm = None
    if kind.millimetres is not None:
        low, high = kind.millimetres
        fitting = [mm for mm in range(low, high + 1) if size_class(name, mm) == size]
        if not fitting:
            raise ValueError(f"{name}: size {size!r} is not one of {kind.sizes}")
        size_mm = fitting[len(fitting) // 2]
    return check_finding(Finding(name, side, location, size, size_mm))


def _agrees(claim: Finding, truth: Finding) -> bool:
    stated = (
        (claim.side, truth.side),
        (claim.location, truth.location),
        (claim.size, truth.size),
        (claim.size_mm, truth.size_mm),
    )
    return all(said in ("", None) or said == is_so for said, is_so in stated)


def _verdict(sentence: str, truth: Sequence[Finding], region: str) -> str:
    labels = label_report(sentence, region)
    names = {t.name for t in truth}
    if labels.negated & names or any(c.name not in names for c in labels.findings):
        return "wrong"
    if not labels.findings:
        return ""
    right = all(any(c.name == t.name and _agrees(c, t) for t in truth) for c in labels.findings)
    return "right" if right else "partly"


def judge_report(text: str, truth: Sequence[Finding] | None, region: str) -> list[Judged]:
    """Split a report into sentences and judge each against what is true of the patient.

    Args:
        text: the report.
        truth: findings of the patient; ``None`` judges nothing.
        region: ``"chest"`` or ``"brain"``: whose words to look for.

    Returns:
        The pieces in order, then the findings that the whole report does not assert (verdict
        ``"missed"``).
    """
    pieces = [p for p in _HEADING.split(text) if p.strip()]
    out: list[Judged] = []
    for piece in pieces:
        if _is_heading(piece):
            out.append(Judged(piece.strip(), ""))
            continue
        for sentence in _SENTENCE.split(piece.strip()):
            out.append(Judged(sentence, "" if truth is None else _verdict(sentence, truth, region)))
    if truth is not None:
        said = {f.name for f in label_report(text, region).findings}
        out += [Judged(finding_words(t), "missed") for t in truth if t.name not in said]
    return out


def _wrapped(
    pieces: Sequence[Judged], size: float, width: float, measure: RendererAgg
) -> list[list[tuple[float, str, Judged]]]:
    """Lines of (x in points, words, piece) runs. Headings and missed findings begin a line;
    sentences flow."""
    fonts = {
        b: FontProperties(family="DejaVu Sans", size=size, weight="bold" if b else "normal")
        for b in (0, 1)
    }

    def extent(text: str, piece: Judged) -> float:
        pixels = measure.get_text_width_height_descent(text, fonts[_is_heading(piece.text)], False)[
            0
        ]
        return float(pixels) * 72 / measure.dpi

    space = size * 0.32
    lines: list[list[tuple[float, str, Judged]]] = [[]]
    x = 0.0  # where the next run begins
    for piece in pieces:
        if (_is_heading(piece.text) or piece.verdict == "missed") and lines[-1]:
            lines.append([])
            x = 0.0
        words = (f"missed: {piece.text}" if piece.verdict == "missed" else piece.text).split()
        if words and piece.verdict != "missed" and SIGNS[piece.verdict]:
            words[-1] += (  # the sign never stands alone at the start of a line
                f"\u00a0{SIGNS[piece.verdict]}"
            )
        run = ""
        for word in words:
            longer = f"{run} {word}".strip()
            if x + extent(longer, piece) > width and (run or x > 0):
                if run:
                    lines[-1].append((x, run, piece))
                lines.append([])
                x, longer = 0.0, word
            run = longer
        if run:
            lines[-1].append((x, run, piece))
            x += extent(run, piece) + space
    return lines


def write_report_on(
    axes: Axes,
    text: str,
    truth: Sequence[Finding] | None = None,
    *,
    region: str = "chest",
    size: float = 7.5,
    smallest: float = 4.5,
) -> list[Judged]:
    """Write a report into an axes, wrapped to its width, each sentence in the colour of its
    verdict.

    The letters shrink from ``size`` to ``smallest`` points until the text fits; what still does not
    fit is cut, and the last line says so.

    Returns:
        The judged pieces, as from `judge_report`.
    """
    box = axes.get_position()
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("these axes are in no figure; needed one to measure the words in")
    measure = RendererAgg(8, 8, figure.dpi)
    inches = figure.get_size_inches()
    width, height = float(box.width * inches[0] * 72) - 6, float(box.height * inches[1] * 72) - 6
    pieces = judge_report(text, truth, region)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color="#d0d0d0", linewidth=0.6)
    while True:
        lines = _wrapped(pieces, size, width * 0.97, measure)
        leading = size * 1.32
        if len(lines) * leading <= height or size <= smallest:
            break
        size = max(smallest, size - 0.5)
    room = max(1, int(height / leading))
    if len(lines) > room:
        lines = [*lines[: room - 1], [(0.0, "... (cut)", Judged("", ""))]]
    for number, line in enumerate(lines):
        for x, words, piece in line:
            axes.text(
                x + width * 0.015,
                (number + 0.85) * leading,
                words,
                color=COLOURS[piece.verdict],
                fontsize=size,
                family="DejaVu Sans",
                fontweight="bold" if _is_heading(piece.text) else "normal",
                va="baseline",
                clip_on=True,
                parse_math=False,
            )
    return pieces
