"""The shipped weights beside less and more training of the same network: what does training alone
bring?

``results/earlier`` holds what was measured before the last cycle of the shipped training,
``results/longer`` what ``medm2g_core.experiments.gpu_training`` reached by going on on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medm2g_core.evaluation.store import load_results
from medm2g_core.evaluation.table import Row, SectionResult, cell
from medm2g_core.experiments.sections import ALL_SECTIONS
from medm2g_core.profiles import ROUND_STAGES

__all__ = ["EARLIER", "LONGER", "SHIPPED", "Training", "load_trainings", "side_by_side"]

EARLIER, SHIPPED, LONGER = "earlier", "shipped", "longer"
"""Names of the trainings; `EARLIER` and `LONGER` are folders below ``results`` too."""

LEADING: tuple[tuple[str, str, str], ...] = (
    ("text_to_image", "", "finding AUC"),
    ("text_to_image", "", "side accuracy"),
    ("text_to_image", "", "Fréchet distance"),
    ("report_xray", "", "finding F1, strict"),
    ("report_xray", "", "finding F1, presence"),
    ("report_ct", "", "finding F1, strict"),
    ("report_ct", "", "finding F1, presence"),
    ("translation", "", "PSNR, dB"),
    ("guidance", "", "right guide less none, dB"),
    ("unified", "CT → Chest X-ray", "finding AUC"),
    ("unified", "Report → Chest X-ray + CT", "agreement: correlation"),
)
"""(section, beginning of the task, metric) of the rows that are compared."""


@dataclass(frozen=True)
class Training:
    """One state of the same network.

    Attributes:
        name: `EARLIER`, `SHIPPED` or `LONGER`.
        outcomes: sections that were measured with its weights.
        minutes: CPU minutes of its three rounds, summed over threads. What was trained on a GPU
            counts as the minutes that as many studies would have taken at the speed of the training
            that it went on from.
        told: how it came about, a sentence.
    """

    name: str
    outcomes: Mapping[str, SectionResult]
    minutes: float
    told: str


def load_trainings(results: Path, shipped: Path) -> list[Training]:
    """What there is of the trainings, least first; the shipped one is always there.

    ``results/earlier/training.json`` also tells its ``weights``, as the ``start`` of a training
    that went on from them does.

    Args:
        results: folder of the shipped weights' tables.
        shipped: folder of the shipped weights.
    """
    stages = _stages(shipped)
    own = Training(SHIPPED, load_results(results, ALL_SECTIONS), _minutes(stages), "")
    out, base, base_folder = [own], own, shipped
    before = results / EARLIER
    if (before / "training.json").is_file():
        less = _stages(before)
        grown = [
            f"{n} {less[n]['steps']} of {stages[n]['steps']}"
            for n in ROUND_STAGES
            if less[n]["steps"] != stages[n]["steps"]
        ]
        told = (
            f"Earlier: the shipped training after its first cycle ({', '.join(grown)} steps); what"
            " reads none of the weights that moved since is the same."
        )
        # A section that was not kept is one that these weights leave as it is.
        earlier = Training(
            EARLIER, {**own.outcomes, **load_results(before, ALL_SECTIONS)}, _minutes(less), told
        )
        out.insert(0, earlier)
        if _facts(results / LONGER).get("start") == _facts(before)["weights"]:
            base, base_folder = earlier, before
    if (results / LONGER / "training.json").is_file():
        more, sizes, base_sizes = (
            _stages(results / LONGER),
            _sizes(results / LONGER),
            _sizes(base_folder),
        )
        known = _stages(base_folder)
        minutes = sum(
            _minutes(known, [n])
            * more[n]["steps"]
            * sizes[n]["batch"]
            / known[n]["steps"]
            / base_sizes[n]["batch"]
            for n in ROUND_STAGES
        )
        seconds = sum(more[n]["seconds"] for n in ROUND_STAGES)
        told = (
            f"Longer: {seconds:.0f} more seconds of the three rounds on"
            f" {more[ROUND_STAGES[-1]]['device']}, from the {base.name} weights; as many studies"
            f" would take {minutes:.0f} CPU minutes at the speed of that training."
        )
        out.append(
            Training(
                LONGER, load_results(results / LONGER, ALL_SECTIONS), base.minutes + minutes, told
            )
        )
    return out


def _facts(folder: Path) -> dict[str, Any]:
    file = folder / "training.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _stages(folder: Path) -> dict[str, Any]:
    return _facts(folder)["stages"]


def _sizes(folder: Path) -> dict[str, Any]:
    """Settings of the stages."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["profile"]["stages"]


def _minutes(stages: Mapping[str, Any], names: Sequence[str] = ROUND_STAGES) -> float:
    return sum(stages[n]["seconds"] * stages[n]["threads"] for n in names) / 60


def side_by_side(trainings: Sequence[Training]) -> str:
    """A Markdown table of single draws of each training, and sentences on what they were.

    Baselines and ceilings are those of the shipped weights' tables. Other settings are not
    compared: those of `EARLIER` and `LONGER` were not chosen on validation studies, and SSIM is
    not, because theirs was computed on another range; neither can be measured again.
    """
    shipped = next(t for t in trainings if t.name == SHIPPED)
    heads = [f"{t.name}, one draw" for t in trainings]
    lines = [
        f"| task | metric | n | {' | '.join(heads)} | strongest baseline | real images |",
        f"|---|---|--:|{'---|' * (len(heads) + 2)}",
    ]
    for section, task, metric in LEADING:
        if section not in shipped.outcomes:
            continue
        of_metric = [
            r
            for r in shipped.outcomes[section].rows
            if r.metric == metric and r.task.startswith(task)
        ]
        for title in dict.fromkeys(r.task for r in of_metric):
            own = [r for r in of_metric if r.task == title]
            of_each = [_rows(t, section, title, metric) for t in trainings]
            cells = [cell(rows, "model") for rows in of_each]
            cells += [
                cell(own, "baseline"),
                cell(own, "ceiling: real").removesuffix(" real images"),
            ]
            lines.append(f"| {title} | {metric} | {own[0].n} | {' | '.join(cells)} |")
    minutes = ", ".join(f"{t.name} {t.minutes:.0f}" for t in trainings)
    told = " ".join(t.told for t in trainings if t.told)
    text = (
        f"CPU minutes of the three rounds: {minutes}. {told} Baselines are those of the shipped"
        " weights' tables."
    )
    return "\n".join(lines) + f"\n\n{text}\n"


def _rows(training: Training, section: str, task: str, metric: str) -> list[Row]:
    rows = training.outcomes[section].rows if section in training.outcomes else []
    return [r for r in rows if (r.task, r.metric) == (task, metric)]
