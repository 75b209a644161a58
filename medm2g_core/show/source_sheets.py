"""Contact sheets of an evaluation on a real data set: given, truth, a draw and the rivals of the
first studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medm2g_core.evaluation.source_scores import Task
from medm2g_core.show.figures import Cell, Figure, Panel, contact_sheet
from medm2g_core.storage import atomic_write

__all__ = ["source_sheet", "write_sheets"]

Columns = Sequence[tuple[str, Sequence[Any]]]
"""Heading -> the values of a few studies."""


def source_sheet(task: Task, columns: Columns) -> Figure:
    """A row a study, a column a heading
    (`medm2g_core.evaluation.source_scores.evaluate_source`)."""
    count = len(columns[0][1])
    rows: list[tuple[str, list[Cell]]] = [
        ("", [Panel(values[i], heading.split(": ")[-1]) for heading, values in columns])
        for i in range(count)
    ]
    title = f"{task.title}: generated, for research and teaching only"
    return contact_sheet(rows, size=1.9, text_width=2.7, title=title)


def write_sheets(examples: Mapping[Task, Columns], folder: Path, prefix: str) -> list[Path]:
    """``<prefix>_<given>_to_<target>.png`` for each task; returns the paths."""
    out = []
    for task, columns in examples.items():
        file = folder / f"{prefix}_{'_'.join(task.given) or 'nothing'}_to_{task.target}.png"
        png = source_sheet(task, columns).png()
        atomic_write(file, lambda p, png=png: p.write_bytes(png))
        out.append(file)
    return out
