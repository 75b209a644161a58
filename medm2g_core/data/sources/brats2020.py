"""BraTS2020: T1, T2 and FLAIR of people with a glioma, skull-stripped, on one 1 mm grid. Also the
names of 2023."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
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
    check_placed,
    check_same_grid,
    load_mask,
    load_volume,
    nifti_grid,
    percentile_unit,
)
from medm2g_core.data.sources.imaging import paired_slices
from medm2g_core.data.sources.tables import read_table
from medm2g_core.data.sources.trees import files_below, words
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
_CASE = re.compile(
    r"(?P<old>BraTS(?:18|19|20|2021|2020|2019|2018)[_-]\w+)"
    r"|BraTS-(?P<task>[A-Za-z]+)-\d+-\d{3}",
    re.IGNORECASE,
)
"""A case's name. The years differ in it: ``Brats18_CBICA_AAB_1``, ``BraTS19_CBICA_AAB_1``,
``BraTS20_Training_001``, ``BraTS2021_00000``, and from 2023 on ``BraTS-GLI-00000-000``."""

_YEARS = {"18": 285, "19": 335, "20": 369, "21": 1251, "2023 or later": 1251}
"""Year of the names -> published training cases."""

_GUESSED = {"pred", "prediction", "predicted", "auto", "output", "result", "prob", "unet", "nnunet"}
"""Words of file names that are a program's guesses and not the publisher's."""

_MEANINGS = ("GLI", "MET", "SSA", "MEN")
"""Tasks since 2023 whose labels 1, 2 and 3 mean what they do for gliomas; those of children (PED)
do not."""

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
        cases: dict[str, dict[str, Path]] = {}
        skips: list[Skip] = []
        found = files_below(root, "*.nii", "*.nii.gz")
        for path in sorted(found, key=lambda p: (not _CASE.fullmatch(_stem(p)), p)):
            match = _SUFFIX.search(path.name)
            if match is None or words(_stem(path)) & _GUESSED:
                continue
            first = cases.setdefault(_case_name(path), {}).setdefault(
                _CONTRAST[match[1].lower()], path
            )
            if first != path:
                skips.append(Skip("second copy", str(path), f"{first} is the same and is used"))
        if not cases:
            raise self._nothing(root)
        year = _year(root, cases)
        segs = [p for p in found if "seg" in p.name.lower()]
        grades, survival = _table(root, "name_mapping*.csv"), _table(root, "survival_*.csv")
        entries = []
        for case, files in sorted(cases.items()):
            wanted = {s: files[s] for s in self.streams if s in files}
            if not wanted:
                skips.append(
                    Skip(
                        "no usable contrast",
                        case,
                        "there is no T1, T2 or FLAIR; T1ce has no stream",
                    )
                )
                continue
            seg, why = _segmentation(case, wanted, segs, len(cases))
            if why:
                skips.append(Skip("segmentation unclear", case, why))
            entries.append(_entry(case, root, wanted, files.get("t1ce"), seg, grades, survival))
        return Found(tuple(entries), tuple(skips), _expected(entries, year))

    def inputs(self, entry: Entry) -> tuple[Path, ...]:
        kept = {k: v for k, v in entry.extra.items() if k != "t1ce"}  # never read
        return super().inputs(replace(entry, extra=kept))

    def slices(self, entry: Entry) -> Sequence[Entry]:
        (_, first), *others = entry.files.items()
        grid = nifti_grid(first)
        for _, path in others:
            check_same_grid(nifti_grid(path), path, grid, first)
        for path in entry.files.values():
            check_placed(path)
        depth = grid.shape[0]
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
        mirror = next((p for p in files_below(root, "*.h5") if _H5.search(p.name)), None)
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
    if match := re.fullmatch(r"ALIVE\D*(\d{1,9})?.*", text, re.IGNORECASE):
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
        files[0][1],
        (0, 1, 2, 3, 4),
        "0, 1, 2, 4 (2020) and 0, 1, 2, 3 (2023)",
    )
    if _is_new(files[0][1]) and (mask == 4).any():
        raise FileError(
            f"{seg}: label 4, which since 2024 is the cavity of an operation; only data without"
            " operations are read"
        )
    if (mask == 3).any() and (mask == 4).any():
        raise FileError(
            f"{seg}: labels 3 and 4 in one file; one of them is enhancing tumour, and which is not"
            " known"
        )
    return units, mask, spacing, tuple(notes)


def _stem(path: Path) -> str:
    """A file's name without its contrast, which is the name of its case in the published tree."""
    return _SUFFIX.sub("", path.name)


def _is_new(path: Path) -> bool:
    """Whether a file is called as since 2023."""
    match = _CASE.search(path.name) or _CASE.search(path.parent.name)
    return match is not None and match["old"] is None


def _case_name(path: Path) -> str:
    """The case that a file belongs to, by its own name, else by its folder's."""
    stem = _stem(path)
    if _CASE.fullmatch(stem) or not _CASE.fullmatch(path.parent.name):
        return stem
    return path.parent.name


def _year(root: Path, cases: Iterable[str]) -> str:
    """The year of the names.

    Raises:
        SourceError: several years, in which the same people have other names.
    """
    years: dict[str, str] = {}
    for case in sorted(cases):
        match = _CASE.fullmatch(case)
        if match is None:
            continue
        old = re.match(r"BraTS(?:20)?(18|19|20|21)", case, re.IGNORECASE) if match["old"] else None
        years.setdefault(old[1] if old else "2023 or later", case)
    if len(years) > 1:
        named = ", ".join(years.values())
        raise SourceError(
            f"{root}: cases of several years ({named}); the same people come again under other"
            " names and would stand in two splits. Give the folder of one year"
        )
    return next(iter(years), "20")


def _segmentation(
    case: str, files: Mapping[str, Path], segs: Sequence[Path], cases: int
) -> tuple[Path | None, str]:
    """The publisher's segmentation of a case, and why there is none although files look like it."""
    exact = re.compile(rf"{re.escape(case)}[_-]seg\.nii(?:\.gz)?", re.IGNORECASE)
    if named := [p for p in segs if exact.fullmatch(p.name)]:
        return named[0], ""
    folders = {p.parent for p in files.values()}
    near = [p for p in segs if p.parent in folders and not words(p.name) & _GUESSED]
    # In a folder of many cases another name says nothing; that of case 355 stands in its own.
    own = [p for p in near if p.name.startswith(case) or p.parent.name == case or cases == 1]
    if len(own) > 1:
        return None, f"{', '.join(p.name for p in own[:3])}: which is the publisher's is not known"
    return (own[0], "") if own else (None, "")


def _entry(
    case: str,
    root: Path,
    files: Mapping[str, Path],
    t1ce: Path | None,
    seg: Path | None,
    grades: Mapping[str, Mapping[str, str]],
    survival: Mapping[str, Mapping[str, str]],
) -> Entry:
    above = [part for p in files.values() for part in (root.name, *p.relative_to(root).parts[:-1])]
    grade = grades.get(case, {}).get("grade", "").upper()
    row = survival.get(case, {})
    days, alive = parse_survival(row.get("survival_days", ""))
    age = re.fullmatch(r"\s*(\d{1,9})(\.\d*)?\s*", row.get("age", ""))
    grade = grade or next((p for p in ("HGG", "LGG") if p in above), "")  # the folders until 2019
    point = re.fullmatch(r"(BraTS-\w+-\d+)-\d{3}", case)  # 2023: the same person at another time
    task = _CASE.fullmatch(case)
    meaning = task is None or task["task"] is None or task["task"].upper() in _MEANINGS
    validation = "validation" in case.lower() or any(_VALIDATION.search(p) for p in above)
    return Entry(
        id=case,
        subject=point[1] if point else case,
        split="val" if validation else "",
        files=files,
        labels={"high_grade": {"HGG": 1.0, "LGG": 0.0}.get(grade, math.nan)},
        age=int(age[1]) if age else None,
        extra={
            "seg": seg if meaning else None,
            "t1ce": t1ce,
            "survival_days": days,
            "alive": alive,
        },
    )


_VALIDATION = re.compile(r"validation[_-]?data|^validation$", re.IGNORECASE)


def _table(root: Path, pattern: str) -> dict[str, dict[str, str]]:
    """Rows of all CSVs of that name: case -> column in small letters -> value."""
    rows: dict[str, dict[str, str]] = {}
    for path in files_below(root, pattern):
        for row in read_table(path):
            values = {k.lower(): v for k, v in row.items()}
            rows.update(dict.fromkeys((v for v in row.values() if v.startswith("BraTS20")), values))
    return rows


def _expected(entries: Sequence[Entry], year: str) -> tuple[Expectation, ...]:
    validation = [e for e in entries if e.split == "val"]
    training = [e for e in entries if e.split != "val"]
    whole = sum(len(e.files) == 3 for e in entries)
    all_three = Expectation.count(
        "cases with T1, T2 and FLAIR", len(entries), whole, "the others have fewer streams"
    )
    if year != "20":
        called = year if len(year) > 2 else f"20{year}"
        return (
            Expectation(
                "year of the names",
                "2020",
                called,
                "surprising",
                f"names of {called}: another year's cases, {_YEARS[year]:,} to train with",
            ),
            Expectation("cases", "", f"{len(entries):,}"),
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
