"""Beside the truth, where there is one: scores that apply, differences, and reports in colour."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from medm2g_core.data.labeller import label_report
from medm2g_core.explore.drawing import Drawn
from medm2g_core.explore.given import Given
from medm2g_core.metrics.findings import finding_counts
from medm2g_core.metrics.lesions import LESIONS, SEGMENTED, dice, lesion_mask
from medm2g_core.metrics.pixels import ct_mae_hu, psnr, ssim
from medm2g_core.metrics.report_scores import self_contradictions
from medm2g_core.show.report import COLOURS, SIGNS, judge_report
from medm2g_core.streams import Finding, Study, stream, unit_to_hu

__all__ = ["Truth", "difference", "report_html", "report_scores", "scores", "truth_of"]


@dataclass(frozen=True)
class Truth:
    """What is known of the patient that everything given is of.

    Attributes:
        streams: stream -> the real picture or report.
        findings: true findings; ``None`` where nobody knows.
        region: ``"chest"`` or ``"brain"``.
        exact: whether a picture was given. From words alone a model cannot know the body, so a
            distance in pixels would measure the body and not the model.
    """

    streams: Mapping[str, torch.Tensor | str]
    findings: tuple[Finding, ...] | None
    region: str
    exact: bool


def truth_of(given: Iterable[Given], study: Study | None) -> Truth | None:
    """The truth about a question; ``None`` if what is given is not all of one virtual patient.

    Args:
        study: the patient that is chosen, if one is.
    """
    given = tuple(given)
    if study is None or not given or any(g.kind != "patient" for g in given):
        return None
    exact = any(stream(g.stream).is_image for g in given)
    return Truth(study.pick(study.streams), study.findings, study.region, exact)


def scores(drawn: Drawn, truth: Truth | None) -> dict[str, list[str]]:
    """Stream -> for each draw the scores that apply, in words; nothing where there is no truth."""
    if truth is None:
        return {}
    out: dict[str, list[str]] = {}
    for name, value in drawn.streams.items():
        if isinstance(value, list):
            if truth.findings is not None:
                out[name] = [report_scores(text, truth.findings, truth.region) for text in value]
        elif truth.exact and isinstance(true := truth.streams.get(name), torch.Tensor):
            out[name] = _pixel_scores(name, value, true, truth.findings)
    return out


def _pixel_scores(
    name: str, drawn: torch.Tensor, true: torch.Tensor, findings: Sequence[Finding] | None
) -> list[str]:
    same = true.expand_as(drawn)
    columns = [
        [f"PSNR {x:.1f} dB" for x in psnr(drawn, same).tolist()],
        [f"SSIM {x:.2f}" for x in ssim(drawn, same).tolist()],
    ]
    if name == "ct":
        columns.append([f"mean error {x:.0f} HU" for x in ct_mae_hu(drawn, same).tolist()])
    if name in SEGMENTED and any(f.name in LESIONS for f in findings or ()):
        overlap = dice(lesion_mask(drawn.clamp(-1, 1), name), lesion_mask(same, name))
        columns.append([f"lesion Dice {x:.2f}" for x in overlap.tolist()])
    return [", ".join(row) for row in zip(*columns, strict=True)]


def report_scores(text: str, true: Sequence[Finding], region: str) -> str:
    """Findings of a report against the true ones, and whether it contradicts itself, in words."""
    said = label_report(text, region).findings
    right, invented, missed = finding_counts(said, true, strict=False)
    exact = finding_counts(said, true, strict=True)[0]
    words = (
        f"{right} of {right + missed} true findings named ({exact} exactly), {invented} invented"
    )
    contradictions = len(self_contradictions(text, region))
    return words + (f", {contradictions} self-contradictions" if contradictions else "")


def difference(name: str, drawn: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Drawn minus true, (1, H, W): in HU for a CT, else in units of the stream (range 2)."""
    if name == "ct":
        return unit_to_hu(drawn) - unit_to_hu(true)
    return drawn.float() - true.float()


def report_html(text: str, true: Sequence[Finding] | None, region: str) -> str:
    """A report as HTML, every sentence in the colour and with the sign of its verdict; findings
    that it does not name are listed below.

    Args:
        true: findings of the patient; ``None`` colours nothing.
    """
    said, missed = [], []
    for piece in judge_report(text, true, region):
        words, colour = html.escape(piece.text), COLOURS[piece.verdict]
        if piece.verdict == "missed":
            missed.append(words)
        else:
            sign = f"&nbsp;{SIGNS[piece.verdict]}" if SIGNS[piece.verdict] else ""
            said.append(f'<span style="color:{colour}">{words}{sign}</span>')
    body = " ".join(said) or "<em>(the model wrote no words)</em>"
    if missed:
        body += f'<br><span style="color:{COLOURS["missed"]}">missed: {", ".join(missed)}</span>'
    return f'<p class="m2g-report">{body}</p>'
