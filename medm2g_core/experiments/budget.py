"""Scores against the CPU minutes that the flows trained: the shipped training and its first cycle,
the two short ones that exist anyway, and the one that went on on a GPU.

The points differ in more than time: the short trainings of the ablation have half the studies and
are measured on the validation split, those of `medm2g_core.experiments.unseen` saw two people of
three, the longest was warmed up again after the learning rate had fallen. They show how steep the
way still is, not what a single training looks like over time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medm2g_core.evaluation.table import Row, SectionResult
from medm2g_core.experiments.trainings import EARLIER, LONGER, SHIPPED, Training
from medm2g_core.experiments.unseen import SEEN
from medm2g_core.profiles import ROUND_STAGES

__all__ = ["CURVES", "Point", "budget_points"]

CURVES: Mapping[str, tuple[str, str, str, str]] = {
    "Report → Chest X-ray, finding AUC": (
        "text_to_image",
        "Report → Chest X-ray (chest)",
        "finding AUC",
        "",
    ),
    "CT → MR T2-weighted, PSNR in dB": (
        "translation",
        "CT → MR T2-weighted (chest)",
        "PSNR, dB",
        "ct → mri_t2, dB",
    ),
    "Chest X-ray → Report, strict F1": (
        "report_xray",
        "Chest X-ray → Report (chest)",
        "finding F1, strict",
        "xray → text, strict F1",
    ),
    "Chest X-ray → Report, presence F1": (
        "report_xray",
        "Chest X-ray → Report (chest)",
        "finding F1, presence",
        "xray → text, presence F1",
    ),
}
"""Title -> section, task and metric of a row, and that score in the ablation (empty: not measured
there)."""


@dataclass(frozen=True)
class Point:
    """One training on a curve: CPU minutes of the three rounds, and a single draw's score with its
    interval."""

    curve: str
    what: str
    minutes: float
    value: float
    low: float
    high: float


_NAMES = {EARLIER: "first cycle", SHIPPED: "full training", LONGER: "more, on a GPU"}


def budget_points(
    trainings: Sequence[Training], ablation: Sequence[Mapping[str, Any]]
) -> list[Point]:
    """All points that the stored results allow, in the order of `CURVES`, cheapest first.

    The first cycle has no point where the shipped weights score the same: its task was not trained
    further.

    Args:
        trainings: the shipped one, and what there is of less and more.
        ablation: runs of the group ``rounds``.
    """
    outcomes = next(t.outcomes for t in trainings if t.name == SHIPPED)
    out = []
    for title, (section, task, metric, short) in CURVES.items():
        runs = [r for r in ablation if r["arm"] == "three rounds" and short in r["scores"]]
        if runs:
            x = [r["scores"][short] for r in runs]
            minutes = float(np.mean([r["seconds"] for r in runs])) / 60
            out.append(
                Point(
                    title,
                    f"ablation, {len(runs)} seeds",
                    minutes,
                    float(np.mean(x)),
                    min(x),
                    max(x),
                )
            )
        if "unseen" in outcomes and (row := _row(outcomes["unseen"], task, metric, SEEN)):
            spent = outcomes["unseen"].facts["CPU seconds"].values()
            minutes = float(np.mean([sum(s.get(r, 0.0) for r in ROUND_STAGES) for s in spent])) / 60
            out.append(Point(title, "two people of three", minutes, row.value, row.low, row.high))
        of_each = {
            t.name: _row(t.outcomes[section], task, metric, "model")
            for t in trainings
            if section in t.outcomes
        }
        for t in trainings:
            row, own = of_each.get(t.name), of_each.get(SHIPPED)
            if row and not (
                t.name == EARLIER and own and round(own.value, 2) == round(row.value, 2)
            ):
                out.append(Point(title, _NAMES[t.name], t.minutes, row.value, row.low, row.high))
    return out


def _row(outcome: SectionResult, task: str, metric: str, who: str) -> Row | None:
    return next((r for r in outcome.rows if (r.task, r.metric, r.who) == (task, metric, who)), None)
