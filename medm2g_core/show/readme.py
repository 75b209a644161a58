"""The README's numbers and its picture come from this program: ``python -m medm2g_core.show.readme
[--picture]``."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from medm2g_core.evaluation.results import handicap, summary_rows
from medm2g_core.evaluation.sections import titles
from medm2g_core.evaluation.store import load_results
from medm2g_core.evaluation.table import below_simple, compact
from medm2g_core.experiments.ablation import load_runs, summary
from medm2g_core.experiments.bars import bar_summary, verdicts
from medm2g_core.experiments.sections import ALL_SECTIONS
from medm2g_core.experiments.trainings import load_trainings, side_by_side
from medm2g_core.experiments.unseen import person_table
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.show.figures import Cell, Figure, Panel, contact_sheet
from medm2g_core.storage import atomic_write
from medm2g_core.streams import STREAMS, Study

__all__ = ["blocks", "fill", "main", "picture"]

ROOT = Path(__file__).resolve().parents[2]


def blocks(root: Path = ROOT) -> dict[str, str]:
    """Name of each block of the README -> its text, from the files in ``results/``."""
    out = {}
    outcomes = load_results(root / "results", ALL_SECTIONS)
    if outcomes:
        rows = summary_rows(outcomes)
        out["results"] = "\n".join(
            [compact(rows), below_simple(rows), f"{handicap(outcomes, ALL_SECTIONS)}\n"]
        )
        out["bars"] = bar_summary(verdicts(outcomes), titles(ALL_SECTIONS))
    if "unseen" in outcomes:
        out["unseen"] = person_table(outcomes["unseen"])
    trainings = load_trainings(root / "results", root / "checkpoints" / "cpu")
    if len(trainings) > 1:
        out["trainings"] = side_by_side(trainings)
    runs = load_runs(root / "results" / "ablation")
    if any(runs.values()):
        out["ablation"] = summary(runs)
    limits = root / "results" / "limits.json"
    if limits.is_file():
        out["limits"] = _limits(json.loads(limits.read_text(encoding="utf-8")))
    speed = root / "results" / "speed.json"
    if speed.is_file():
        rows = json.loads(speed.read_text(encoding="utf-8"))
        lines = ["| what | measured | aim | where |", "|---|---|---|---|"]
        lines += [
            f"| {r['what']} | {r['measured']} | {r['aim']} | {r['where']} |" for r in rows.values()
        ]
        out["speed"] = "\n".join(lines) + "\n"
    return out


def _limits(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of `medm2g_core.experiments.what_limits`."""
    lines = [
        "| the MR flow, T1 + T2 → FLAIR | CPU seconds more | n | one step, dB | ten steps, dB |",
        "|---|--:|--:|---|---|",
    ]
    for r in rows:
        cells = [
            f"{value:.1f} [{low:.1f}, {high:.1f}]"
            for value, low, high in (r["PSNR"]["1"], r["PSNR"]["10"])
        ]
        lines.append(
            f"| {r['training']} | {r['CPU seconds']:.0f} | {r['n']} | {' | '.join(cells)} |"
        )
    return "\n".join(lines) + "\n"


def fill(text: str, parts: dict[str, str]) -> str:
    """``text`` with every ``<!-- name:begin --> ... <!-- name:end -->`` block replaced.

    Raises:
        ValueError: the text has no such block.
    """
    for name, part in parts.items():
        pattern = re.compile(rf"<!-- {name}:begin -->\n.*?<!-- {name}:end -->", re.S)
        if not pattern.search(text):
            raise ValueError(f"the README has no block {name!r}")
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        text = pattern.sub(lambda _, block=begin + part + end: block, text)  # type: ignore[misc]
    return text


def picture(pipe: MedM2GPipeline, chest: Study, brain: Study, seed: int = 0) -> Figure:
    """Given and truth beside one draw, for each of the five tasks: the first draw of a fixed seed,
    not a chosen one."""

    def row(label: str, study: Study, given: list[str], want: list[str]) -> tuple[str, list[Cell]]:
        out = pipe(study.pick(given), want, generator=torch.Generator().manual_seed(seed))
        cells: list[Cell] = [
            Panel(study[n], f"given: {STREAMS[n].title}", n, region=study.region) for n in given
        ]
        for n in want:
            drawn = out[n][0]
            judged = study.findings if n == "text" else None
            cells += [
                Panel(study[n], f"true {STREAMS[n].title}", n, region=study.region),
                Panel(drawn, f"drawn {STREAMS[n].title}", n, findings=judged, region=study.region),
            ]
        return label, cells

    rows = [
        row("1 report", chest, ["xray"], ["text"]),
        row("2 from text", chest, ["text"], ["xray", "ct"]),
        row("3 MR contrast", brain, ["mri_t1", "mri_t2"], ["mri_flair"]),
        row("4 CT to MR", chest, ["ct"], ["mri_t1", "mri_t2"]),
        row("5 CT to X-ray", chest, ["ct"], ["xray"]),
    ]
    return contact_sheet(rows, text_width=2.6)


def main() -> None:
    """Rewrite README.md in place; with ``--picture`` draw docs/overview.png with the shipped
    weights as well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", action="store_true")
    if parser.parse_args().picture:
        from medm2g_core.data.cohort import VirtualCohort

        chests, brains = VirtualCohort("test", "chest", 16), VirtualCohort("test", "brain", 16)
        # The first patients with two findings, so that there is something to see.
        chest = next(
            s for s in map(chests.__getitem__, range(len(chests))) if len(s.findings or ()) >= 2
        )
        brain = next(
            s for s in map(brains.__getitem__, range(len(brains))) if len(s.findings or ()) >= 2
        )
        png = picture(MedM2GPipeline.from_pretrained(), chest, brain).png()
        atomic_write(ROOT / "docs" / "overview.png", lambda p: p.write_bytes(png))
    file = ROOT / "README.md"
    text = fill(file.read_text(encoding="utf-8"), blocks())
    atomic_write(file, lambda p: p.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
