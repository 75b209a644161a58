"""The marks that this reproduction set itself before it was trained, and which of them the measured scores reach."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medm2g_core.evaluation.table import Piece, Row

__all__ = ["BARS", "Bar", "Verdict", "bar_summary", "bar_table", "verdicts"]

ANY_SETTING = "model, "


@dataclass(frozen=True)
class Bar:
    """One mark: a score must be at least (``less``: at most) ``factor`` times a reference plus ``offset``.

    Attributes:
        what: in a few words.
        section, task, metric: rows that it is about; ``task`` is a regular expression that a row's task contains.
        against: beginnings of the ``who`` of the references, of which the best counts; empty for a fixed mark.
        who: the row that is measured; where it is ``"model"``, the best of the model's other settings is told too.
    """

    what: str
    section: str
    task: str
    metric: str
    against: tuple[str, ...] = ()
    factor: float = 1.0
    offset: float = 0.0
    less: bool = False
    who: str = "model"


_REAL, _REGRESSION = ("ceiling: real images",), ("baseline: regression",)
BARS: tuple[Bar, ...] = (
    Bar("X-ray codec, 33 dB", "image_codec", "X-ray", "PSNR, dB", offset=33),
    Bar("CT codec, 32 dB", "image_codec", ": CT", "PSNR, dB", offset=32),
    Bar("MR codec, 29 dB", "image_codec", ": MR", "PSNR, dB", offset=29),
    Bar("findings through the codec, .985 of real AUC", "image_codec", "", "finding AUC", _REAL, 0.985),
    Bar("reports through their codec, 90 % exact", "text_codec", "Report", "exact match, share", offset=0.9),
    Bar("reports through their codec, BLEU-4 .97", "text_codec", "Report", "BLEU-4, corpus", offset=0.97),
    Bar("reports through their codec, strict F1 .95", "text_codec", "Report", "finding F1, strict", offset=0.95),
    Bar("same findings at 1, .75", "alignment", "Report → Chest X-ray", "same findings@1", offset=0.75),
    Bar("R@5, .8 of the ceiling", "alignment", "Report → Chest X-ray", "R@5", ("ceiling",), 0.8),
    Bar("findings drawn from a report, .98 of real AUC", "text_to_image", "Chest X-ray|→ CT", "finding AUC", _REAL,
        0.98),
    Bar("side drawn from a report, .95 of real", "text_to_image", "", "side accuracy", _REAL, 0.95),
    Bar("Fréchet distance, at most twice that of real images", "text_to_image", "", "Fréchet distance", _REAL, 2.0,
        less=True),
    Bar("strict F1 of reports: decoder and retrieval", "report_xray", "", "finding F1, strict",
        ("baseline: autoregressive", "baseline: nearest image")),
    Bar("strict F1 of reports: decoder and retrieval", "report_ct", "", "finding F1, strict",
        ("baseline: autoregressive", "baseline: nearest image")),
    Bar("distinct reports, .8 of real", "report_xray", "", "distinct reports / real ones", offset=0.8),
    Bar("distinct reports, .8 of real", "report_ct", "", "distinct reports / real ones", offset=0.8),
    Bar("image to image, mean of 8 within .5 dB of regression", "translation", "", "PSNR, dB", _REGRESSION, offset=-0.5,
        who="model, mean of 8"),
    Bar("image to image, Fréchet below regression's", "translation", "", "Fréchet distance", _REGRESSION, less=True),
    Bar("X-ray from CT, .97 of real AUC", "unified", "^CT → Chest X-ray", "finding AUC", _REAL, 0.97),
    Bar("agreement of streams drawn together, .95 of real", "unified", "^Report → .*:", "agreement: correlation", _REAL,
        0.95),
    Bar("pairs never trained together, .9 of trained AUC", "unified", "never trained", "finding AUC",
        ("ceiling: trained pair",), 0.9),
    Bar("right guide less none, 4 dB", "guidance", "", "right guide less none, dB", offset=4),
)  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """A bar for one task: what was needed, the score, and the best of the model's other settings (if there are any)."""

    bar: Bar
    task: str
    needed: float
    score: float
    best: float | None

    def _reaches(self, value: float) -> bool:
        return value <= self.needed if self.bar.less else value >= self.needed

    @property
    def met(self) -> bool:
        """By the row that the bar names: one draw, mostly."""
        return self._reaches(self.score)

    @property
    def met_at_best(self) -> bool:
        """By that row or another setting of the model."""
        return self.met or (self.best is not None and self._reaches(self.best))


def verdicts(pieces: Mapping[str, Piece], bars: Sequence[Bar] = BARS) -> list[Verdict]:
    """Every bar for every task whose rows were measured; point values, without their intervals."""
    out = []
    for bar in bars:
        rows = pieces[bar.section].rows if bar.section in pieces else []
        mine = [r for r in rows if r.metric == bar.metric and re.search(bar.task, r.task)]
        better = min if bar.less else max
        for task in dict.fromkeys(r.task for r in mine):
            own = [r for r in mine if r.task == task]
            score = _values(own, (bar.who,), exact=True)
            reference = _values(own, bar.against) if bar.against else [0.0]
            if not score or not reference:
                continue
            others = _values(own, (ANY_SETTING,)) if bar.who == "model" and bar.section != "translation" else []
            needed = bar.factor * (better if bar.against else max)(reference) + bar.offset
            out.append(Verdict(bar, task, needed, score[0], better(others) if others else None))
    return out


def _values(rows: Sequence[Row], who: tuple[str, ...], exact: bool = False) -> list[float]:
    return [r.value for r in rows if (r.who in who if exact else r.who.startswith(who))]


def bar_table(found: Sequence[Verdict]) -> str:
    """Markdown, one line a bar and task."""
    lines = ["| bar | task | needed | score | another setting | met |", "|---|---|--:|--:|--:|---|"]
    for v in found:
        best = "" if v.best is None else f"{v.best:.2f}"
        met = "yes" if v.met else "at its best setting" if v.met_at_best else "**no**"
        sign = "≤" if v.bar.less else "≥"
        lines.append(f"| {v.bar.what} | {v.task} | {sign} {v.needed:.2f} | {v.score:.2f} | {best} | {met} |")
    return "\n".join(lines) + "\n"


def bar_summary(found: Sequence[Verdict]) -> str:
    """Markdown, one line a bar: for how many tasks it is met."""
    lines = ["| bar | tasks | met by one draw | or by another setting |", "|---|--:|--:|--:|"]
    for what in dict.fromkeys(v.bar.what for v in found):
        own = [v for v in found if v.bar.what == what]
        lines.append(f"| {what} | {len(own)} | {sum(v.met for v in own)} | {sum(v.met_at_best for v in own)} |")
    return "\n".join(lines) + "\n"
