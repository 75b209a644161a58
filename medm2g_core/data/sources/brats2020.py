"""BraTS2020: T1, T2 and FLAIR of people with a glioma, skull-stripped, on one 1 mm grid. Also the
names of 2023."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
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
    SourceError,
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
from medm2g_core.data.sources.tables import read_table
from medm2g_core.data.volumes import FileError

__all__ = ["BraTS2020", "parse_survival", "tumour_labels"]

_SUFFIX = re.compile(r"[_-](flair|t1ce|t1|t2|t1n|t1c|t2w|t2f)\.nii(?:\.gz)?$", re.IGNORECASE)
_CONTRAST = {
    "t1": "mri_t1",
    "t2": "mri_t2",
    "flair": "mri_flair",
    "t1ce": "t1ce",
    "t1n": "mri_t1",
    "t2w": "mri_t2",
    "t2f": "mri_flair",
    "t1c": "t1ce",
}
_H5 = re.compile(r"volume_\d+_slice_\d+\.h5$")
_LABELS = ("tumour", "necrotic_core", "oedema", "enhancing_tumour")

_CARD = DataCard(
    title="BraTS2020, multimodal brain tumour segmentation challenge",
    homepage="https://www.med.upenn.edu/cbica/brats2020/",
    licence=(
        "data use terms of the challenge: research only, cite its three papers, no redistribution"
    ),
    access=(
        "registration with the organisers (CBICA Image Processing Portal, later Synapse); mirrors"
        " exist on Kaggle"
    ),
    paper_use=(
        "synthesis of a missing MR contrast (task 3); named for the paper by secondary sources [S],"
        " as is its range of PSNR/SSIM over BraTS and IXI [S]; the preparation is not known, the"
        " usual one is used [C]"
    ),
    lost=(
        "the lowest 80 and the top 26 of 155 axial slices (drop_lowest, drop_top)",
        (
            "signal outside the 0.1th to 99.9th percentile of a volume (percentiles); the rest goes"
            " to -1..1 volume by volume, so brightness compares within a volume and not between"
            " people"
        ),
        "contrast-enhanced T1: no stream stands for it; its path is in Entry.extra['t1ce']",
        (
            "the skull, which the publisher removed: mixing with whole heads changes what the"
            " background means"
        ),
    ),
    faults=(
        "case 355 names its segmentation W39_1998.09.19_Segm.nii: found by *seg* in any case",
        (
            "tumour labels 0, 1, 2, 4, in 2023 0-3: 3 and 4 are both enhancing tumour; both in one"
            " file is an error"
        ),
        "mirrors are packed or not, under either name: told from the bytes",
        "Survival_days 'ALIVE (361 days later)': 361 days, alive (Entry.extra)",
        (
            "the mirror of volume_V_slice_S.h5 files does not say which channel is which contrast:"
            " refused"
        ),
        "validation cases have no segmentation: their labels are NaN",
        "2023 names end in a time point: the subject is the name without it",
    ),
    layout="""\
  MICCAI_BraTS2020_TrainingData/            (also each of these folders alone)
    name_mapping.csv, survival_info.csv     (optional)
    BraTS20_Training_001/BraTS20_Training_001_{flair,t1,t1ce,t2,seg}.nii[.gz]      369 cases
  MICCAI_BraTS2020_ValidationData/
    BraTS20_Validation_001/BraTS20_Validation_001_{flair,t1,t1ce,t2}.nii[.gz]      125 cases
  or the names of 2023: BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii[.gz]""",
    recalled=(
        "licence and access",
        (
            "the columns of name_mapping.csv (Grade, BraTS_2020_subject_ID) and survival_info.csv"
            " (Brats20ID, Age, Survival_days): other columns are ignored, missing ones leave the"
            " grade and the age unknown"
        ),
        (
            "the header's directions (array axes run left, posterior, superior); they are followed"
            " whatever they are"
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class BraTS2020(Source):
    """One entry an axial slice, with T1, T2 and FLAIR of it.

    The usual 80/20 split is of the training cases: ``shares=(0.8, 0, 0.2)``. The publisher's
    validation cases are ``"val"``; they have no segmentation.

    Attributes:
        drop_lowest: slices left out at the neck.  drop_top: at the vertex.
        percentiles: of all voxels of a volume, that become -1 and 1.
    """

    name = "brats2020"
    region = "brain"
    streams = ("mri_t1", "mri_t2", "mri_flair")
    card = _CARD

    drop_lowest: int = 80
    drop_top: int = 26
    percentiles: tuple[float, float] = (0.1, 99.9)

    def scan(self, root: Path) -> Found:
        cases: dict[Path, dict[str, Path]] = {}
        new_names = False
        for path in sorted(root.rglob("*.nii*")):
            if path.is_file() and (match := _SUFFIX.search(path.name)):
                contrast = match[1].lower()
                new_names |= contrast in ("t1n", "t2w", "t2f")
                cases.setdefault(path.parent, {}).setdefault(_CONTRAST[contrast], path)
        if not cases:
            raise self._nothing(root)
        grades, survival = _table(root, "name_mapping*.csv"), _table(root, "survival_*.csv")
        entries, skips = [], []
        for folder, files in cases.items():
            wanted = {s: files[s] for s in self.streams if s in files}
            if not wanted:
                skips.append(
                    Skip(
                        "no usable contrast",
                        folder.name,
                        "there is no T1, T2 or FLAIR; T1ce has no stream",
                    )
                )
                continue
            entries.append(_entry(folder, wanted, files.get("t1ce"), grades, survival))
        return Found(tuple(entries), tuple(skips), _expected(entries, new_names))

    def slices(self, entry: Entry) -> Sequence[Entry]:
        shapes = {s: nifti_grid(path).shape for s, path in entry.files.items()}
        if len(set(shapes.values())) != 1:
            raise FileError(f"{entry.id}: the contrasts are not on one grid: {shapes}")
        depth = next(iter(shapes.values()))[0]
        if depth <= self.drop_lowest + self.drop_top:
            raise FileError(
                f"{entry.id}: {depth} slices, and {self.drop_lowest} + {self.drop_top} are to be"
                " dropped; set drop_lowest and drop_top"
            )
        return axial_entries(
            entry, range(self.drop_top, depth - self.drop_lowest)
        )  # counted from the head

    def read(self, entry: Entry, size: int) -> SourceStudy:
        units, seg, spacing, notes = _case(
            tuple(entry.files.items()), entry.extra.get("seg"), self.percentiles
        )
        index = entry.slice_index
        images, pixel = paired_slices(units, index, (spacing[1], spacing[2]), size)
        return self.study(
            entry,
            images,
            spacing_mm=pixel,
            labels={**entry.labels, **tumour_labels(None if seg is None else seg[index])},
            units=dict.fromkeys(units, "signal"),
            orientation="radiological axial",
            notes=(
                *notes,
                (
                    f"clipped to percentiles {self.percentiles[0]:g} and {self.percentiles[1]:g} of"
                    " the volume"
                ),
            ),
        )

    def _nothing(self, root: Path) -> SourceError:
        mirror = next((p for p in root.rglob("*.h5") if _H5.search(p.name)), None)
        if mirror is None:
            return self.not_here(root, "no file such as *_t1.nii or *-t1n.nii.gz")
        need = (
            ""
            if importlib.util.find_spec("h5py")
            else "; opening it would also need the package h5py"
        )
        return self.not_here(
            root,
            f"{mirror.name} belongs to the HDF5 mirror, whose slices are normalised one by one and"
            " do not say which channel is which contrast, so it cannot be used; get the NIfTI"
            f" files{need}",
        )


def tumour_labels(seg: np.ndarray | None) -> dict[str, float]:
    """Presence (1 or 0) of the tumour and its parts in a slice of the segmentation; NaN for all
    without one.

    Args:
        seg: values 0, 1 (necrotic core), 2 (oedema), and 4, or 3 since 2023 (enhancing tumour).
    """
    if seg is None:
        return dict.fromkeys(_LABELS, math.nan)
    parts = (seg > 0, seg == 1, seg == 2, seg >= 3)
    return {name: float(part.any()) for name, part in zip(_LABELS, parts, strict=True)}


def parse_survival(text: str) -> tuple[float, float]:
    """``Survival_days`` as (days, alive): ``"289"`` is (289, 0), ``"ALIVE (361 days later)"`` is
    (361, 1), else NaN."""
    text = text.strip()
    if match := re.fullmatch(r"ALIVE\D*(\d+)?.*", text, re.IGNORECASE):
        return (float(match[1]) if match[1] else math.nan), 1.0
    return (float(text), 0.0) if re.fullmatch(r"\d+(\.\d+)?", text) else (math.nan, math.nan)


@lru_cache(maxsize=1)
def _case(
    files: tuple[tuple[str, Path], ...], seg: Path | None, percentiles: tuple[float, float]
) -> tuple[Mapping[str, np.ndarray], np.ndarray | None, tuple[float, ...], tuple[str, ...]]:
    """The volumes of a case in -1..1, its segmentation, spacing and notes; kept until another case
    is asked for."""
    units: dict[str, np.ndarray] = {}
    notes: list[str] = []
    spacing: tuple[float, ...] = ()
    for name, path in files:
        volume = load_volume(path, name)
        units[name] = percentile_unit(volume.array, percentiles, str(path))
        notes += [n for n in volume.notes if n not in notes]
        spacing = volume.spacing_mm
    if seg is None:
        return units, None, spacing, tuple(notes)
    mask = load_mask(
        seg,
        next(iter(units.values())).shape,
        (0, 1, 2, 3, 4),
        "0, 1, 2, 4 (2020) and 0, 1, 2, 3 (2023)",
    )
    if (mask == 3).any() and (mask == 4).any():
        raise FileError(
            f"{seg}: labels 3 and 4 in one file; one of them is enhancing tumour, and which is not"
            " known"
        )
    return units, mask, spacing, tuple(notes)


def _entry(
    folder: Path,
    files: Mapping[str, Path],
    t1ce: Path | None,
    grades: Mapping[str, Mapping[str, str]],
    survival: Mapping[str, Mapping[str, str]],
) -> Entry:
    case = folder.name
    seg = next((p for p in sorted(folder.glob("*[Ss][Ee][Gg]*.nii*")) if p.is_file()), None)
    grade = grades.get(case, {}).get("grade", "").upper()
    row = survival.get(case, {})
    days, alive = parse_survival(row.get("survival_days", ""))
    age = re.fullmatch(r"\s*(\d+)(\.\d*)?\s*", row.get("age", ""))
    point = re.fullmatch(r"(BraTS-\w+-\d+)-\d{3}", case)  # 2023: the same person at another time
    return Entry(
        id=case,
        subject=point[1] if point else case,
        split="val" if "validation" in case.lower() else "",
        files=files,
        labels={"high_grade": {"HGG": 1.0, "LGG": 0.0}.get(grade, math.nan)},
        age=int(age[1]) if age else None,
        extra={"seg": seg, "t1ce": t1ce, "survival_days": days, "alive": alive},
    )


def _table(root: Path, pattern: str) -> dict[str, dict[str, str]]:
    """Rows of all CSVs of that name: case -> column in small letters -> value."""
    rows: dict[str, dict[str, str]] = {}
    for path in sorted(root.rglob(pattern)):
        for row in read_table(path):
            values = {k.lower(): v for k, v in row.items()}
            rows.update(dict.fromkeys((v for v in row.values() if v.startswith("BraTS20")), values))
    return rows


def _expected(entries: Sequence[Entry], new_names: bool) -> tuple[Expectation, ...]:
    validation = [e for e in entries if e.split == "val"]
    training = [e for e in entries if e.split != "val"]
    whole = sum(len(e.files) == 3 for e in entries)
    all_three = Expectation.count(
        "cases with T1, T2 and FLAIR", len(entries), whole, "the others have fewer streams"
    )
    if new_names:
        return (
            Expectation(
                "cases", "", f"{len(entries):,}", "ok", "names of 2023: another year's cases"
            ),
            all_three,
        )
    with_seg = sum(e.extra["seg"] is not None for e in training)
    return (
        Expectation.count("training cases", 369, len(training)),
        Expectation.count("training cases with a segmentation", 369, with_seg),
        Expectation.count(
            "validation cases",
            125,
            len(validation),
            "a download of its own, not needed to train",
            needed=False,
        ),
        all_three,
    )
