"""A contact sheet a task: given, truth, what the codec keeps of it, four draws, their mean, a
baseline.

``python -m medm2g_core.show.task_sheets`` writes ``results/sheet_<task>.png``. The patients are the
first of the test split that have a finding, the draws the first of a fixed seed: nothing is chosen.
A sheet says in its file what it was drawn from, and is drawn again only when that has changed.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from medm2g_core.data.cohort import VirtualCohort, cohort_version
from medm2g_core.evaluation.results import weights_digest
from medm2g_core.pipeline import SHIPPED_WEIGHTS, MedM2GPipeline
from medm2g_core.show.figures import Cell, Figure, Panel, contact_sheet
from medm2g_core.storage import atomic_write, digest
from medm2g_core.streams import STREAMS, Study

__all__ = ["SHEETS", "joint_sheet", "main", "report_sheet", "translation_sheet"]

DRAWS = 4
VERSION = 1
"""Of the sheets; raised when they show something else."""

SHEETS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "text_to_xray": ("chest", ("text",), "xray"),
    "text_to_ct": ("chest", ("text",), "ct"),
    "t1_t2_to_flair": ("brain", ("mri_t1", "mri_t2"), "mri_flair"),
    "t1_flair_to_t2": ("brain", ("mri_t1", "mri_flair"), "mri_t2"),
    "ct_to_t2": ("chest", ("ct",), "mri_t2"),
    "mr_to_ct": ("chest", ("mri_t1", "mri_t2"), "ct"),
    "ct_to_xray": ("chest", ("ct",), "xray"),
}
"""Name of the file -> region, given streams, wanted image stream."""


def first_with_findings(pipe: MedM2GPipeline, region: str, count: int = 3) -> list[Study]:
    """The first studies of the test split that have a finding, in the model's resolution."""
    cohort = VirtualCohort("test", region, 24, resolution=pipe.model.profile.resolution)
    return [s for s in map(cohort.__getitem__, range(len(cohort))) if s.findings][:count]


def _draws(
    pipe: MedM2GPipeline, study: Study, given: Sequence[str], want: Sequence[str], count: int
) -> Any:
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    scale = 2.0 if list(given) == ["text"] or "text" in want else 1.0
    return pipe(
        study.pick(list(given)),
        list(want),
        num_samples=count,
        generator=generators,
        guidance_scale=scale,
    )


def translation_sheet(
    pipe: MedM2GPipeline, region: str, given: Sequence[str], target: str
) -> Figure:
    """Rows of patients: given | truth | through the codec | four draws | their mean | the mean
    training image."""
    mean = (
        VirtualCohort("train", region, 64, resolution=pipe.model.profile.resolution)
        .stack(target)
        .mean(0)
    )
    rows: list[tuple[str, list[Cell]]] = []
    for study in first_with_findings(pipe, region):
        out = _draws(pipe, study, given, [target], DRAWS)[target]
        truth = study.images[target]
        codec = pipe.model.decode(target, pipe.model.encode(target, truth[None]))[0]
        cells: list[Cell] = [Panel(study[n], STREAMS[n].title, n, region=region) for n in given]
        cells += [
            Panel(truth, "truth", target, region=region),
            Panel(codec, "codec", target, region=region),
        ]
        cells += [Panel(x, f"draw {i + 1}", target, region=region) for i, x in enumerate(out)]
        cells += [
            Panel(out.mean(0), f"mean of {DRAWS}", target, region=region),
            Panel(mean, "mean image", target, region=region),
        ]
        rows.append(("", cells))
    names = " + ".join(STREAMS[n].title for n in given)
    return contact_sheet(
        rows, title=f"{names} → {STREAMS[target].title}: generated, for research and teaching only"
    )


def report_sheet(pipe: MedM2GPipeline, given: str) -> Figure:
    """Rows of patients: image | true report | two draws, coloured by whether what they say is
    true."""
    rows: list[tuple[str, list[Cell]]] = []
    for study in first_with_findings(pipe, "chest"):
        out = _draws(pipe, study, [given], ["text"], 2)["text"]
        cells: list[Cell] = [Panel(study[given], STREAMS[given].title, given)]
        cells.append(Panel(study["text"], "true report", "text"))
        cells += [
            Panel(t, f"draw {i + 1}", "text", findings=study.findings, region="chest")
            for i, t in enumerate(out)
        ]
        rows.append(("", cells))
    title = f"{STREAMS[given].title} → Report: generated, for research and teaching only"
    return contact_sheet(rows, size=1.9, text_width=2.7, title=title)


def joint_sheet(pipe: MedM2GPipeline) -> Figure:
    """Rows of patients: the report | truth and draw of X-ray, CT, T2, drawn together and one after
    another."""
    want = ["xray", "ct", "mri_t2"]
    rows: list[tuple[str, list[Cell]]] = []
    for study in first_with_findings(pipe, "chest", 2):
        cells: list[Cell] = [Panel(study["text"], "given report", "text")]
        cells += [Panel(study[n], f"true {STREAMS[n].title}", n) for n in want]
        for order in ("joint", "cascade"):
            out = pipe(
                study.pick(["text"]), want, order=order, generator=torch.Generator().manual_seed(0)
            )
            cells += [Panel(out[n][0], f"{order}: {STREAMS[n].title}", n) for n in want]
        rows.append(("", cells))
    return contact_sheet(
        rows, title="One sentence → X-ray, CT and T2: generated, for research and teaching only"
    )


def drawn_from(file: Path) -> str:
    """The key that a sheet was written with; empty where there is no such sheet."""
    try:
        with Image.open(file) as picture:
            return str(picture.info.get(_KEY, ""))
    except (OSError, UnidentifiedImageError):
        return ""


_KEY = "drawn from"
"""Name of the PNG's text entry."""


def write_sheet(figure: Figure, file: Path, key: str) -> None:
    """A figure as PNG, with the key of what it was drawn from."""
    info, out = PngInfo(), io.BytesIO()
    info.add_text(_KEY, key)
    with Image.open(io.BytesIO(figure.png())) as picture:
        picture.save(out, "png", optimize=True, pnginfo=info)
    atomic_write(file, lambda p: p.write_bytes(out.getvalue()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw every sheet that was not drawn with these weights yet; the shipped ones by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--model", type=Path)
    args = parser.parse_args(arguments)
    pipe = MedM2GPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    key = digest(
        weights=weights_digest(args.model or SHIPPED_WEIGHTS),
        cohort={r: cohort_version(r) for r in ("chest", "brain")},
        version=VERSION,
    )
    figures: dict[str, Callable[[], Figure]] = {
        n: partial(translation_sheet, pipe, *t) for n, t in SHEETS.items()
    }
    figures |= {f"{n}_to_report": partial(report_sheet, pipe, n) for n in ("xray", "ct")}
    figures["joint"] = partial(joint_sheet, pipe)
    for name, draw in figures.items():
        file = args.out / f"sheet_{name}.png"
        if drawn_from(file) != key:
            write_sheet(draw(), file, key)
            print(file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
