"""ACDC: short-axis cine MR of the heart at end-diastole and end-systole, in five groups of
patients."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from medm2g_core.data.sources.base import (
    DataCard,
    Entry,
    Expectation,
    Found,
    Skip,
    Source,
    SourceStudy,
)
from medm2g_core.data.sources.grids import (
    axial_entries,
    load_mask,
    load_volume,
    nifti_grid,
    percentile_unit,
)
from medm2g_core.data.sources.imaging import paired_slices
from medm2g_core.data.sources.trees import files_below, words

__all__ = ["ACDC", "read_info"]

GROUPS = {
    "NOR": "normal",
    "MINF": "myocardial_infarction",
    "DCM": "dilated_cardiomyopathy",
    "HCM": "hypertrophic_cardiomyopathy",
    "RV": "abnormal_right_ventricle",
}
"""Group of Info.cfg -> label."""

_RIGHT, _LEFT = 1, 3  # labels of the ventricles' cavities; 2 is myocardium
LAST_TRAINING = 100
"""Patients up to this number are training patients where no folder says so."""

_CARD = DataCard(
    title="ACDC, Automated Cardiac Diagnosis Challenge",
    homepage="https://www.creatis.insa-lyon.fr/Challenge/acdc/",
    licence=(
        "terms of the challenge: research and teaching, not commercial, cite Bernard et al. 2018"
    ),
    access="free download from the organisers' Girder server",
    paper_use=(
        "generation of cardiac MR (an FID is quoted by secondary sources [S]); that the paper used"
        " this data set is recalled, and its preparation is not known, the usual one is used [C]"
    ),
    lost=(
        (
            "the contrast has no stream of its own. The cine is balanced steady-state free"
            " precession, whose signal goes with T2/T1: blood, fluid and fat bright, muscle dark."
            " It is neither T1, T2, PD nor FLAIR. It is given as mri_t2 because there, too, fluid"
            " is bright; but blood, which is dark in a spin-echo T2 image, is bright here. Do not"
            " mix it with T2 of other organs and call the result T2"
        ),
        "all frames but end-diastole and end-systole",
        "what lies outside 192 mm about the left ventricle",
        "signal outside the 0.5th to 99.5th percentile of a volume",
        (
            "the usual resampling to 10 mm between slices is not done: slices are 5 to 10 mm apart"
            " and given as they are"
        ),
    ),
    faults=(
        "the sform claims 1 mm voxels while pixdim is right: the header's zooms are used",
        (
            "frame numbers of end-diastole and end-systole differ: read from Info.cfg and"
            " zero-padded to two digits"
        ),
        "the 4-D cine file is not read",
        (
            "no true patient directions in the headers (the slices are oblique anyway): they are"
            " followed, and a study whose right ventricle then lies right of the left one, so"
            " mirrored, says so in its notes"
        ),
    ),
    layout="""\
  database/training/patient001/     (patients 001-100; also without database/ above)
    Info.cfg                        ED: 1, ES: 12, Group: DCM, Height, NbFrame, Weight
    patient001_4d.nii.gz
    patient001_frame01.nii.gz, patient001_frame01_gt.nii.gz
    patient001_frame12.nii.gz, patient001_frame12_gt.nii.gz
  database/testing/patient101/      (patients 101-150)""",
    recalled=(
        "licence",
        (
            "labels of the segmentation: 0 background, 1 right ventricle, 2 myocardium, 3 left"
            " ventricle"
        ),
        "array axes run left, posterior, superior as far as the headers say",
    ),
)


@dataclass(frozen=True, kw_only=True)
class ACDC(Source):
    """One entry a short-axis slice of one frame, as ``mri_t2`` (see the card: the contrast is
    bSSFP).

    Attributes:
        fov_mm: side of the picture, about the left ventricle where a segmentation exists, else
            about the middle; with ``size=192`` the default gives the usual 1 mm pixels.
        percentiles: of all voxels of a volume, that become -1 and 1.
    """

    name = "acdc"
    region = "heart"
    streams = ("mri_t2",)
    card = _CARD

    fov_mm: float = 192.0
    percentiles: tuple[float, float] = (0.5, 99.5)

    def scan(self, root: Path) -> Found:
        found = files_below(root, "Info.cfg", "patient*_frame*.nii*")
        # a patient whose Info.cfg was lost still counts
        folders = sorted({p.parent for p in found if re.fullmatch(r"patient\d+", p.parent.name)})
        if not folders:
            raise self.not_here(root, "no folder such as patient001 with Info.cfg and frames")
        infos = {p.parent: p for p in found if p.name.lower() == "info.cfg"}
        entries: list[Entry] = []
        skips: list[Skip] = []
        seen: dict[tuple[str, str], Path] = {}
        for folder in folders:
            split = _split(folder.relative_to(root))
            if folder not in infos:
                skips.append(
                    Skip(
                        "no Info.cfg",
                        folder.name,
                        "which frames are end-diastole and end-systole is not known",
                    )
                )
                continue
            # A patient in both parts is left to the check of splits, which refuses the tree.
            if (first := seen.setdefault((folder.name, split), folder)) != folder:
                skips.append(Skip("second copy", str(folder), f"the same patient is in {first}"))
                continue
            for made in _patient(folder, split, read_info(infos[folder])):
                if isinstance(made, Entry):
                    entries.append(made)
                else:
                    skips.append(made)
        people = {e.subject: e.split for e in entries}
        testing = sum(s == "test" for s in people.values())
        table = (
            Expectation.count("training patients", 100, len(people) - testing),
            Expectation.count("testing patients", 50, testing, "not needed to train", needed=False),
            Expectation.count("frames (two a patient)", 2 * len(people), len(entries)),
        )
        return Found(tuple(entries), tuple(skips), table)

    def slices(self, entry: Entry) -> Sequence[Entry]:
        return axial_entries(entry, range(nifti_grid(entry.files["mri_t2"]).shape[0]))

    def read(self, entry: Entry, size: int) -> SourceStudy:
        unit, spacing, centre, notes = _frame(
            entry.files["mri_t2"], entry.extra.get("gt"), self.percentiles
        )
        images, pixel = paired_slices(
            {"mri_t2": unit}, entry.slice_index, spacing, size, centre=centre, fov_mm=self.fov_mm
        )
        return self.study(
            entry,
            images,
            spacing_mm=pixel,
            units={"mri_t2": "signal"},
            orientation="radiological short axis",
            notes=(*notes, "bSSFP cine (T2/T1 contrast, blood bright) stands as mri_t2"),
        )


def read_info(path: Path) -> dict[str, str]:
    """``Info.cfg``: one ``key: value`` a line."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip().lower(): value.strip() for key, value in pairs}


def _split(folder: Path) -> str:
    """The part of a patient: that whose folder it lies in (``training`` or ``testing``), and by its
    number where there is none."""
    above = set().union(*(words(part) for part in folder.parts[:-1]), ())
    named = [
        split
        for split, names in (("train", {"training", "train"}), ("test", {"testing", "test"}))
        if above & names
    ]
    if len(named) == 1:
        return named[0]
    return "train" if int(folder.name.removeprefix("patient")) <= LAST_TRAINING else "test"


def _patient(folder: Path, split: str, info: dict[str, str]) -> list[Entry | Skip]:
    """Entries of the two frames of a patient, or why there is none."""
    group = info.get("group", "").upper()
    known = group in GROUPS
    labels = {label: float(code == group) if known else math.nan for code, label in GROUPS.items()}
    out: list[Entry | Skip] = []
    for phase in ("ED", "ES"):
        where = f"{folder.name}_{phase}"
        number = info.get(phase.lower(), "")
        if not number.isdigit():
            out.append(Skip("frame unknown", where, f"Info.cfg has no number for {phase}"))
            continue
        stem = f"{folder.name}_frame{int(number):02d}"
        image = _first(folder, stem)
        if image is None:
            out.append(
                Skip(
                    "frame missing",
                    where,
                    f"Info.cfg says frame {number}, and there is no {stem}.nii.gz",
                )
            )
            continue
        out.append(
            Entry(
                id=where,
                subject=folder.name,
                split=split,
                files={"mri_t2": image},
                labels=labels,
                extra={"phase": phase, "gt": _first(folder, f"{stem}_gt"), "group": group},
            )
        )
    return out


def _first(folder: Path, stem: str) -> Path | None:
    return next(
        (p for p in (folder / f"{stem}.nii.gz", folder / f"{stem}.nii") if p.is_file()), None
    )


@lru_cache(maxsize=1)
def _frame(
    image: Path, gt: Path | None, percentiles: tuple[float, float]
) -> tuple[np.ndarray, tuple[float, float], tuple[float, float], tuple[str, ...]]:
    """A frame in -1..1, spacing of rows and columns, (row, column) of the left ventricle or the
    middle, and notes."""
    volume = load_volume(image, "mri_t2")
    notes = list(volume.notes)
    unit = percentile_unit(volume.array, percentiles, str(image))
    _, rows, columns = unit.shape
    spacing = (volume.spacing_mm[1], volume.spacing_mm[2])
    centre = None
    if gt is not None:
        mask = load_mask(
            gt,
            image,
            (0, 1, 2, 3),
            "0 background, 1 right ventricle, 2 myocardium, 3 left ventricle",
        )
        centre, right = _middle(mask == _LEFT), _middle(mask == _RIGHT)
        if centre and right and right[1] > centre[1]:
            notes.append(
                "the right ventricle lies right of the left one: this study is probably mirrored"
            )
    if centre is None:
        centre = (rows / 2, columns / 2)
        notes.append("no segmented left ventricle: cut out about the middle of the picture")
    return unit, spacing, centre, tuple(notes)


def _middle(mask: np.ndarray) -> tuple[float, float] | None:
    """(row, column) of the middle of a structure over all slices, in pixels from the picture's
    edge."""
    if not mask.any():
        return None
    _, rows, columns = np.nonzero(mask)
    return float(rows.mean()) + 0.5, float(columns.mean()) + 0.5
