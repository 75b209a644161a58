"""The numbers of README.md and docs/ come from this program: ``python -m medm2g_core.show.readme``;
with ``--picture`` it draws docs/overview.png as well."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from pathlib import Path

import torch
from PIL import Image

from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.show.blocks import blocks
from medm2g_core.show.figures import Cell, Panel, contact_sheet
from medm2g_core.storage import atomic_write
from medm2g_core.streams import STREAMS, Study

__all__ = ["PAGES", "fill", "main", "pages", "picture"]

ROOT = Path(__file__).resolve().parents[2]


PAGES: Mapping[str, tuple[str, ...]] = {
    "README.md": ("facts", "headline"),
    "docs/results.md": (
        "results",
        "bars",
        "trainings",
        "behind",
        "limits",
        "unseen",
        "ablation",
        "speed",
    ),
    "docs/profiles.md": ("profiles",),
    "docs/own_files.md": ("file_checks",),
    "docs/house.md": ("rooms",),
}
"""File -> the blocks that are printed into it; every block stands in one file, once."""


def fill(text: str, parts: Mapping[str, str]) -> str:
    """``text`` with every ``<!-- name:begin --> ... <!-- name:end -->`` block replaced.

    Raises:
        ValueError: the text does not have such a block exactly once.
    """
    for name, part in parts.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if (text.count(begin), text.count(end)) != (1, 1):
            raise ValueError(
                f"block {name!r}: needed {begin.strip()} and {end} on lines of their own, once each"
            )
        head, rest = text.split(begin)
        text = f"{head}{begin}{part}{end}{rest.split(end)[1]}"
    return text


def pages(root: Path = ROOT) -> dict[str, str]:
    """File of `PAGES` -> its text as it should be; a block that was not measured stays as it is."""
    known = blocks(root)
    return {
        file: fill(
            (root / file).read_text(encoding="utf-8"), {n: known[n] for n in names if n in known}
        )
        for file, names in PAGES.items()
    }


def picture(pipe: MedM2GPipeline, chest: Study, brain: Study, seed: int = 0) -> Image.Image:
    """Given and truth beside one draw, a strip for each of the five tasks: the first draw of a
    fixed seed, not a chosen one."""

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
    # A sheet a task, since one sheet would give every column the width of its widest report.
    sheets = [contact_sheet([each], text_width=2.6).png() for each in rows]
    strips = [Image.open(io.BytesIO(sheet)).convert("RGB") for sheet in sheets]
    page = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    below = 0
    for strip in strips:
        page.paste(strip, (0, below))
        below += strip.height
    return page.quantize(256, dither=Image.Dither.NONE)


def main() -> None:
    """Rewrite the blocks of `PAGES` in place; with ``--picture`` draw docs/overview.png with the
    shipped weights as well."""
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
        page = picture(MedM2GPipeline.from_pretrained(), chest, brain)
        atomic_write(ROOT / "docs" / "overview.png", lambda p: page.save(p, "png", optimize=True))
    for name, text in pages().items():
        file = ROOT / name
        if file.read_text(encoding="utf-8") != text:  # a file that is right keeps its time stamp
            atomic_write(file, lambda p, text=text: p.write_text(text, encoding="utf-8"))
            print(file)


if __name__ == "__main__":
    main()
