"""SLIVER07: contrast-enhanced abdominal CT with the liver segmented."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from medm2g_core.data.intensity import check_hu
from medm2g_core.data.sources.base import (
    DataCard,
    Entry,
    Expectation,
    Found,
    Skip,
    Source,
    SourceStudy,
)
from medm2g_core.data.sources.grids import axial_entries, load_mask, load_volume, volume_grid
from medm2g_core.data.sources.imaging import ct_to_unit, paired_slices
from medm2g_core.data.sources.trees import files_below, words
from medm2g_core.data.volumes import FileError
from medm2g_core.streams import CT_WINDOW_HU

__all__ = ["SLIVER07"]

_NAME = re.compile(r"liver[-_](orig|seg)[-_]?(\d+)\.(?:mh[ad]|nii(?:\.gz)?|nrrd)", re.IGNORECASE)

_CARD = DataCard(
    title="SLIVER07, Segmentation of the Liver Competition 2007",
    homepage="https://sliver07.grand-challenge.org/",
    licence=(
        "rules of the competition: for the evaluation of liver segmentation only; ask the"
        " organisers before any other use, generation included"
    ),
    access="registration at grand-challenge.org",
    paper_use=(
        "generation of CT (an FID is quoted by secondary sources [S]); that the paper used this"
        " data set is recalled, and its preparation is not known, the usual one is used [C]"
    ),
    lost=(
        (
            f"HU outside {CT_WINDOW_HU[0]:.0f}..{CT_WINDOW_HU[1]:.0f}, the window of the ct stream:"
            " soft tissue has less contrast than in an abdominal window"
        ),
        "slices are shown whole, at the size that was asked for",
    ),
    faults=(
        "nibabel cannot read .mhd: read with SimpleITK",
        "two trees are in use: files are found by name wherever they are",
        (
            "numbers of training and test scans may be the same: told apart by a folder that has"
            " 'test' as a word in its name"
        ),
        "image and segmentation are turned by their own directions, and must lie on one grid",
        "conversions to NIfTI or NRRD of the same names are read too",
        (
            "padding below -1024 counts as air; values that cannot be HU (a lost intercept) are"
            " refused"
        ),
        "a .raw shorter than its header says is refused, never filled up with zeros",
    ),
    layout="""\
  tree A: training-part1/liver-orig001.mhd + .raw, training-part1/liver-seg001.mhd + .raw,
          training-part2/...
  tree B: training-scans/liver-orig001.mhd + .raw, training-labels/liver-seg001.mhd + .raw,
          test-scans/liver-orig001.mhd
  20 training and 10 test scans""",
    recalled=("the names of the test scans; that training and test numbers can be the same",),
)


class SLIVER07(Source):
    """One entry an axial slice. Training scans are ``"train"``, the competition's test scans
    ``"test"``."""

    name = "sliver07"
    region = "abdomen"
    streams = ("ct",)
    card = _CARD

    def scan(self, root: Path) -> Found:
        scans: dict[str, Path] = {}
        segs: dict[str, Path] = {}
        skips = []
        for path in files_below(root, "liver*"):
            match = _NAME.fullmatch(path.name)
            if match is None:
                continue
            above = set().union(*(words(p) for p in path.relative_to(root).parts[:-1]), ())
            split = "test" if above & {"test", "testing"} else "train"
            case = f"{split}_{int(match[2]):03d}"
            where = scans if match[1].lower() == "orig" else segs
            if case in where:
                skips.append(
                    Skip("second copy", str(path), f"{where[case]} has the same name and is used")
                )
            where.setdefault(case, path)
        if not scans:
            raise self.not_here(root, "no file such as liver-orig001.mhd")
        entries = tuple(
            Entry(
                id=case,
                subject=case,
                split=case.split("_")[0],
                files={"ct": path},
                extra={"seg": segs.get(case)},
            )
            for case, path in scans.items()
        )
        training = [e for e in entries if e.split == "train"]
        testing = len(entries) - len(training)
        table = (
            Expectation.count("training scans", 20, len(training)),
            Expectation.count(
                "training scans with a segmentation",
                20,
                sum(e.extra["seg"] is not None for e in training),
            ),
            Expectation.count("test scans", 10, testing, "not needed to train", needed=False),
        )
        return Found(entries, tuple(skips), table)

    def slices(self, entry: Entry) -> Sequence[Entry]:
        return axial_entries(entry, range(volume_grid(entry.files["ct"]).shape[0]))

    def read(self, entry: Entry, size: int) -> SourceStudy:
        unit, seg, spacing, notes = _scan(entry.files["ct"], entry.extra.get("seg"))
        index = entry.slice_index
        images, pixel = paired_slices({"ct": unit}, index, spacing, size)
        return self.study(
            entry,
            images,
            spacing_mm=pixel,
            labels={"liver": math.nan if seg is None else float(seg[index].any())},
            units={"ct": "HU"},
            orientation="radiological axial",
            notes=notes,
        )


@lru_cache(maxsize=1)
def _scan(
    path: Path, seg: Path | None
) -> tuple[np.ndarray, np.ndarray | None, tuple[float, float], tuple[str, ...]]:
    """A scan in -1..1, its segmentation, spacing of rows and columns and notes; kept until the next
    scan."""
    volume = load_volume(path, "ct")
    if volume.kind not in ("metaimage", "nifti", "nrrd"):
        raise FileError(f"{path}: a {volume.kind} file under the name of a volume")
    check_hu(volume.array, str(path))
    notes = list(volume.notes)
    if (volume.array < -1024).any():
        notes.append("values below -1024 HU (padding) count as air")
    mask = None
    if seg is not None:
        mask = load_mask(seg, path, (0, 1, 255), "0 and 1 (liver)")
    return (
        ct_to_unit(volume.array),
        mask,
        (volume.spacing_mm[1], volume.spacing_mm[2]),
        tuple(notes),
    )
