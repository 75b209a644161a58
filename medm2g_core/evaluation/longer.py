"""The shipped weights beside the same network after more training: what does training alone still bring?

``benchmarks/gpu_training.py`` makes the second; its tables lie in ``results/longer``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medm2g_core.evaluation.table import Piece, Row
from medm2g_core.profiles import ROUND_STAGES

__all__ = ["LONGER", "Longer", "load_longer", "side_by_side"]

LONGER = "longer"
"""Folder below ``results``."""

LEADING: tuple[tuple[str, str, str], ...] = (
    ("text_to_image", "", "finding AUC"),
    ("text_to_image", "", "side accuracy"),
    ("text_to_image", "", "Fréchet distance"),
    ("report_xray", "", "finding F1, strict"),
    ("report_xray", "", "finding F1, presence"),
    ("report_ct", "", "finding F1, strict"),
    ("report_ct", "", "finding F1, presence"),
    ("guidance", "", "right guide less none, dB"),
    ("unified", "CT → Chest X-ray", "finding AUC"),
    ("unified", "Report → Chest X-ray + CT", "agreement: correlation"),
)
"""(section, beginning of the task, metric) of the rows that are compared."""

LESS_IS_BETTER = ("Fréchet distance",)


@dataclass(frozen=True)
class Longer:
    """More training.

    Attributes:
        pieces: sections that were measured with its weights.
        seconds: of its rounds.  device: that they ran on.
        cpu_minutes: what as many studies would have taken at the speed of the shipped training, summed over threads.
    """

    pieces: Mapping[str, Piece]
    seconds: float
    device: str
    cpu_minutes: float


def load_longer(results: Path, shipped: Path) -> Longer | None:
    """What lies in ``results/longer``, or ``None``.

    Args:
        shipped: folder of the weights that it went on from.
    """
    from medm2g_core.evaluation.results import load_pieces

    folder = results / LONGER
    if not (folder / "training.json").is_file():
        return None
    (more, sizes), (base, base_sizes) = (_training(f) for f in (folder, shipped))
    minutes = 0.0
    for name in ROUND_STAGES:
        studies, known = (s[name]["steps"] * b[name]["batch"] for s, b in ((more, sizes), (base, base_sizes)))
        minutes += base[name]["seconds"] * base[name]["threads"] / 60 * studies / known
    seconds = sum(more[name]["seconds"] for name in ROUND_STAGES)
    return Longer(load_pieces(folder), seconds, more[ROUND_STAGES[-1]]["device"], minutes)


def _training(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results of the stages, and their settings."""
    stages = json.loads((folder / "training.json").read_text(encoding="utf-8"))["stages"]
    return stages, json.loads((folder / "config.json").read_text(encoding="utf-8"))["profile"]["stages"]


def side_by_side(shipped: Mapping[str, Piece], longer: Longer) -> str:
    """A Markdown table, and a sentence on what the second training was."""
    lines = [
        "| task | metric | n | shipped, one draw | longer, one draw | shipped, best setting | longer, best setting | "
        "strongest baseline | real images |",
        "|---|---|--:|---|---|---|---|---|---|",
    ]
    for section, task, metric in LEADING:
        if section not in shipped or section not in longer.pieces:
            continue
        of_metric = [r for r in shipped[section].rows if r.metric == metric and r.task.startswith(task)]
        for title in dict.fromkeys(r.task for r in of_metric):
            old = [r for r in of_metric if r.task == title]
            new = [r for r in longer.pieces[section].rows if (r.task, r.metric) == (title, metric)]
            cells = [
                _cell(old, "model"), _cell(new, "model"), _cell(old, "model, "), _cell(new, "model, "),
                _cell(old, "baseline"), _cell(old, "ceiling: real"),
            ]  # fmt: skip
            lines.append(f"| {title} | {metric} | {old[0].n} | {' | '.join(cells)} |")
    told = (
        f"Longer: {longer.seconds:.0f} more seconds of the three rounds on {longer.device}, the trained rivals beside "
        f"it; as many studies would take {longer.cpu_minutes:.0f} CPU minutes at the speed of the shipped training. "
        "The baselines of this table are those of the shipped weights."
    )
    return "\n".join(lines) + f"\n\n{told}\n"


def _cell(rows: list[Row], kind: str) -> str:
    """The row of that kind (for ``model, `` and baselines the best one) with its interval."""
    own = [r for r in rows if r.who == kind or (kind != "model" and r.who.startswith(kind))]
    if not own:
        return ""
    best = (min if own[0].metric in LESS_IS_BETTER else max)(own, key=lambda r: r.value)
    digits = 1 if "dB" in best.metric or best.metric in LESS_IS_BETTER else 2
    value = f"{best.value:.{digits}f} [{best.low:.{digits}f}, {best.high:.{digits}f}]"
    name = best.who.split(": ")[-1].removeprefix("model, ")
    return value if kind in ("model", "ceiling: real") else f"{value} {name}"
