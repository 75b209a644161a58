"""The marks that this reproduction set itself, and which of them the measured scores reach."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medm2g_core.evaluation.table import (
    LESS_IS_BETTER,
    SectionResult,
    best_row,
    is_trained,
    strongest,
)

__all__ = ["BARS", "Bar", "Verdict", "bar_section", "bar_summary", "bar_table", "verdicts"]


@dataclass(frozen=True)
class Bar:
    """One mark: a score must be at least (of `LESS_IS_BETTER`: at most) ``factor`` times a
    reference plus ``offset``.

    Attributes:
        section, task, metric: rows that it is about; ``task`` is a regular expression that a row's
            task contains.
        against: beginnings of the ``who`` of the references, of which the strongest counts; none
            for a fixed mark.
        who: the row that is measured; of ``"model"``, the single draw, the setting that was chosen
            on validation studies is told too.
    """

    section: str
    task: str
    metric: str
    against: tuple[str, ...] = ()
    factor: float = 1.0
    offset: float = 0.0
    who: str = "model"

    @property
    def sign(self) -> str:
        return "≤" if self.metric in LESS_IS_BETTER else "≥"

    def __str__(self) -> str:
        """What is wanted, such as ``finding AUC ≥ 0.98 x real images``."""
        who = "" if self.who == "model" else f" ({self.who.removeprefix('model, ')})"
        if not self.against:
            return f"{self.metric}{who} {self.sign} {self.offset:g}"
        names = " and ".join(a.split(": ")[-1] for a in self.against)
        factor = "" if self.factor == 1 else f"{self.factor:g} x "
        offset = f" {self.offset:+g}" if self.offset else ""
        return f"{self.metric}{who} {self.sign} {factor}{names}{offset}"


_REAL, _REGRESSION = ("ceiling: real images",), ("baseline: regression",)
_RIVALS = ("baseline: autoregressive decoder, greedy", "baseline: nearest image by embedding")
BARS: tuple[Bar, ...] = (
    Bar("image_codec", "X-ray", "PSNR, dB", offset=33),
    Bar("image_codec", ": CT", "PSNR, dB", offset=32),
    Bar("image_codec", ": MR", "PSNR, dB", offset=29),
    Bar("image_codec", "", "finding AUC", _REAL, 0.985),
    Bar("text_codec", "Report", "exact match, share", offset=0.9),
    Bar("text_codec", "Report", "BLEU-4, corpus", offset=0.97),
    Bar("text_codec", "Report", "finding F1, strict", offset=0.95),
    Bar("alignment", "Report → Chest X-ray", "same findings@1", offset=0.75),
    Bar("alignment", "Report → Chest X-ray", "R@5", ("ceiling: knows all findings",), 0.8),
    Bar("text_to_image", "→ Chest X-ray|→ CT", "finding AUC", _REAL, 0.98),
    Bar("text_to_image", "", "side accuracy", _REAL, 0.95),
    Bar("text_to_image", "", "Fréchet distance", _REAL, 2),
    Bar("report_xray", "", "finding F1, strict", _RIVALS),
    Bar("report_xray", "", "distinct reports / real ones", offset=0.8),
    Bar("report_ct", "", "finding F1, strict", _RIVALS),
    Bar("report_ct", "", "distinct reports / real ones", offset=0.8),
    Bar("translation", "", "PSNR, dB", _REGRESSION, offset=-0.5, who="model, mean of 8"),
    Bar("translation", "", "Fréchet distance", _REGRESSION),
    Bar("unified", "^CT → Chest X-ray", "finding AUC", _REAL, 0.97),
    Bar("unified", "^Report → .*:", "agreement: correlation", _REAL, 0.95),
    Bar("unified", "never trained", "finding AUC", ("ceiling: trained pair",), 0.9),
    Bar("guidance", "", "right guide less none, dB", offset=4),
)


@dataclass(frozen=True)
class Verdict:
    """A bar for one task: what was needed, the score of one draw, and that of the setting that was
    chosen on validation studies (if it is another), which faces the settings of trained rivals that
    were chosen in the same way."""

    bar: Bar
    task: str
    needed: float
    score: float
    chosen: float | None
    needed_as_chosen: float

    def _reaches(self, value: float, needed: float) -> bool:
        return value <= needed if self.bar.sign == "≤" else value >= needed

    @property
    def met(self) -> bool:
        """By the row that the bar names."""
        return self._reaches(self.score, self.needed)

    @property
    def met_as_chosen(self) -> bool:
        """By that row, or by the setting that was chosen on validation studies."""
        return self.met or (
            self.chosen is not None and self._reaches(self.chosen, self.needed_as_chosen)
        )


def verdicts(outcomes: Mapping[str, SectionResult], bars: Sequence[Bar] = BARS) -> list[Verdict]:
    """Every bar for every task whose rows were measured; point values, without their intervals."""
    out = []
    for bar in bars:
        rows = outcomes[bar.section].rows if bar.section in outcomes else []
        mine = [r for r in rows if r.metric == bar.metric and re.search(bar.task, r.task)]
        for task in dict.fromkeys(r.task for r in mine):
            own = [r for r in mine if r.task == task]
            score, reference = (
                strongest(own, bar.who),
                (strongest(own, bar.against) if bar.against else None),
            )
            if score is None or (bar.against and reference is None):
                continue
            chosen = next((r for r in own if r.chosen and r.who.startswith("model, ")), None)
            other = chosen.value if chosen and bar.who == "model" else None
            needed = needed_as_chosen = bar.offset
            if reference is not None:
                rivals = [reference, *(r for r in own if r.chosen and is_trained(r))]
                stronger = best_row(rivals) or reference
                needed += bar.factor * reference.value
                needed_as_chosen += bar.factor * stronger.value
            out.append(Verdict(bar, task, needed, score.value, other, needed_as_chosen))
    return out


def bar_table(found: Sequence[Verdict]) -> str:
    """Markdown, one line a bar and task."""
    lines = [
        "| bar | task | needed | score | setting chosen on validation | met |",
        "|---|---|--:|--:|--:|---|",
    ]
    for v in found:
        chosen = "" if v.chosen is None else f"{v.chosen:.2f}"
        met = "yes" if v.met else "with that setting" if v.met_as_chosen else "**no**"
        needed = f"{v.bar.sign} {v.needed:.2f}"
        lines.append(f"| {v.bar} | {v.task} | {needed} | {v.score:.2f} | {chosen} | {met} |")
    return "\n".join(lines) + "\n"


def bar_section(outcomes: Mapping[str, SectionResult]) -> str:
    """The bars of the results as a section of their page; empty where none was measured."""
    found = verdicts(outcomes)
    return f"## Bars\n\n{bar_table(found)}" if found else ""


def bar_summary(found: Sequence[Verdict], titles: Mapping[str, str]) -> str:
    """Markdown, one line a bar: for how many tasks it is met.

    Args:
        titles: section -> its title.
    """
    lines = [
        "| section | bar | of | tasks | met | met with the setting chosen on validation |",
        "|---|---|---|--:|--:|--:|",
    ]
    for bar in dict.fromkeys(v.bar for v in found):
        own = [v for v in found if v.bar == bar]
        of = own[0].task + (f" and {len(own) - 1} more" if len(own) > 1 else "")
        counts = f"{len(own)} | {sum(v.met for v in own)} | {sum(v.met_as_chosen for v in own)}"
        lines.append(f"| {titles[bar.section]} | {bar} | {of} | {counts} |")
    return "\n".join(lines) + "\n"
