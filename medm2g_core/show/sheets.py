"""Contact sheets of tasks: what was given, the truth, draws, their mean, and rivals, for patients that nobody chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from medm2g_core.evaluation.baselines.regression import TASKS, ImageTask
from medm2g_core.evaluation.bench import Bench
from medm2g_core.evaluation.metrics import psnr
from medm2g_core.evaluation.translation import Predict
from medm2g_core.model import atomic_write
from medm2g_core.show.figures import Cell, Figure, Panel, contact_sheet
from medm2g_core.streams import STREAMS, Finding

__all__ = ["LARGEST", "REPORT_TASKS", "first_patients", "report_sheets", "task_sheet", "translation_sheets"]

LARGEST = 600_000
"""Bytes that a sheet may have."""

REPORT_TASKS: tuple[tuple[str, str, str], ...] = (
    ("chest", "text", "xray"), ("chest", "text", "ct"), ("chest", "text", "mri_t2"), ("brain", "text", "mri_flair"),
    ("chest", "xray", "text"), ("chest", "ct", "text"),
)  # fmt: skip
"""(region, given, wanted) of the tasks with a report."""


def first_patients(bench: Bench, region: str, count: int = 3) -> list[int]:
    """The first held-out studies with a finding, by index: no choice of good ones."""
    return [i for i, findings in enumerate(bench.data[region].findings) if findings][:count]


def task_sheet(
    bench: Bench,
    region: str,
    given: Sequence[str],
    target: str,
    *,
    rivals: Mapping[str, torch.Tensor | Sequence[str]] | None = None,
    patients: Sequence[int] | None = None,
    draws: int = 4,
    count: int = 8,
) -> Figure:
    """One task: given | truth | draws | mean of draws | rivals, a row a patient; PSNR in dB under each picture.

    Args:
        given, target: streams; either may be the report.
        rivals: name -> what it drew for these patients, in their order.
        patients: indices of the bench's studies; by default `first_patients`.
        draws: the first so many draws are shown.  count: draws in the mean (pictures only; 0 for no mean).

    Returns:
        the figure; ``figure.png()`` is small enough for a repository.
    """
    who = list(first_patients(bench, region) if patients is None else patients)
    data, image = bench.data[region], STREAMS[target].is_image
    drawn = [bench.draw(region, given, [target], draw=d)[target] for d in range(max(draws, count if image else 0))]
    columns = [*("given" for _ in given), "truth", *(f"drawn {d + 1}" for d in range(draws))]
    if image and count:
        columns.append(f"mean of {count}")
    columns += [name.removeprefix("baseline: ").replace(" ", "\n", 1) for name in rivals or {}]
    rows: list[tuple[str, list[Cell]]] = []
    for k, i in enumerate(who):
        truth, findings = bench.value(region, target, [i])[0], data.findings[i]
        cells: list[Cell] = [
            Panel(bench.value(region, g, [i])[0], STREAMS[g].title, g, region=region) for g in given
        ]
        cells.append(Panel(truth, STREAMS[target].title, target, region=region))
        shown: list[torch.Tensor | str] = [x[i] for x in drawn[:draws]]
        if image and count:
            shown.append(torch.stack([x[i] for x in drawn[:count]]).mean(0))
        shown += [x[k] for x in (rivals or {}).values()]
        for x in shown:
            if isinstance(x, str) or isinstance(truth, str):
                cells.append(Panel(x, "", target, findings=findings, region=region))
            else:
                cells.append(Panel(x, f"{psnr(x[None], truth[None]).item():.1f} dB", target, region=region))
        rows.append((_label(findings), cells))
    title = f"{' + '.join(STREAMS[g].title for g in given)} → {STREAMS[target].title} ({region})"
    return contact_sheet(rows, columns=columns, title=f"{title}: first held-out patients with findings, first seeds",
                         text_width=2.6)  # fmt: skip


def _label(findings: Sequence[Finding]) -> str:
    """A patient's findings in lines that fit the gutter."""
    lines = []
    for f in findings:
        words = [w for w in (f.size, f.side, f.location, *f.name.split("_")) if w]
        line = ""
        for word in words:
            if len(line) + len(word) > 15 and line:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
        lines.append(line)
    return "\n".join(lines)


def _write(figure: Figure, file: Path) -> Path:
    for greys in (64, 48, 32, 24, 16):
        data = figure.png(greys)
        if len(data) < LARGEST:
            break
    atomic_write(file, lambda p: p.write_bytes(data))
    return file


def translation_sheets(
    bench: Bench,
    folder: Path,
    baselines: Mapping[str, Predict] | None = None,
    tasks: Sequence[ImageTask] = TASKS,
    *,
    count: int = 8,
) -> list[Path]:
    """``sheet_<region>_<given>_to_<wanted>.png`` of each image-to-image task.

    Args:
        baselines: rivals to show, as `medm2g_core.evaluation.translation.translation` takes them.
        count: draws in the mean; that of the tables costs nothing more, as the bench keeps its draws.
    """
    files = []
    for task in tasks:
        who = first_patients(bench, task.region)
        given = {g: bench.data[task.region].stack(g, who) for g in task.given}
        drawn = {name: predict(task, given) for name, predict in (baselines or {}).items()}
        figure = task_sheet(
            bench, task.region, task.given, task.target, patients=who, count=count,
            rivals={name: x for name, x in drawn.items() if x is not None},
        )  # fmt: skip
        name = f"sheet_{task.region}_{'+'.join(task.given)}_to_{task.target}.png"
        files.append(_write(figure, folder / name))
    return files


def report_sheets(
    bench: Bench, folder: Path, tasks: Sequence[tuple[str, str, str]] = REPORT_TASKS
) -> list[Path]:
    """``sheet_<region>_<given>_to_<wanted>.png`` of each task with a report; sentences are coloured by their truth."""
    files = []
    for region, given, target in tasks:
        draws = 4 if STREAMS[target].is_image else 2
        figure = task_sheet(bench, region, [given], target, draws=draws, count=0)
        files.append(_write(figure, folder / f"sheet_{region}_{given}_to_{target}.png"))
    return files
