"""IXI: T1, T2 and proton density of nearly 600 healthy heads, from three London hospitals."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from medm2g_core.data.intensity import mr_to_unit
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
    Grid,
    axial_entries,
    check_placed,
    load_volume,
    nifti_grid,
)
from medm2g_core.data.sources.imaging import paired_slices
from medm2g_core.data.sources.tables import read_table
from medm2g_core.data.sources.trees import files_below
from medm2g_core.data.volumes import FileError

__all__ = ["IXI"]

_NAME = re.compile(r"(IXI(\d{3})-(\w+)-\w+)-(T1|T2|PD)\.nii(?:\.gz)?$", re.IGNORECASE)
_STREAM = {"T1": "mri_t1", "T2": "mri_t2", "PD": "mri_pd"}
_SEX = {"1": "male", "2": "female"}
THICK_MM = 3.0
"""T2 and PD have slices 1.25 mm apart; a scan with gaps beyond this is another protocol."""

_CARD = DataCard(
    title="IXI, Information eXtraction from Images",
    homepage="https://brain-development.org/ixi-dataset/",
    licence="CC BY-SA 3.0",
    access="free download, one tar a contrast (IXI-T1.tar, IXI-T2.tar, IXI-PD.tar) and IXI.xls",
    paper_use=(
        "synthesis of a missing MR contrast (task 3), T2 and PD to T1 among others; named for the"
        " paper by secondary sources [S]; the preparation is not known, the usual one is used [C]"
    ),
    lost=(
        "T2 and PD are interpolated once, onto the grid of T1",
        "only the middle `count` axial slices that all three contrasts cover",
        (
            "the absolute signal: each volume goes to -1..1 by its own percentiles (usual"
            " elsewhere: mean 1)"
        ),
        (
            "the usual subset (first 40 subjects as 25/5/10) is not the publisher's; the split here"
            " is seeded by subject"
        ),
    ),
    faults=(
        "T1 without T2 (IXI116, 182, 309, 500) and T2 without T1 (IXI580): left out and counted",
        "IXI014-HH-1236-T2 is 256 x 256 x 28 with slices 5 mm apart: left out by its header",
        (
            "T1 is sagittal, T2 and PD axial, and nobody registered them: T1 is turned to axial"
            " slices, T2 and PD are registered to it (affine, mutual information); slices are never"
            " paired by number"
        ),
        (
            "others report a PSNR of about 17 of models trained without registration:"
            " register=False is marked in the table and in every study"
        ),
        (
            "IXI.xls repeats ids and lacks ages: joined on IXI_ID, contradicting rows leave the"
            " value unknown; .xls itself is not read, export it as IXI.csv"
        ),
    ),
    layout="""\
  IXI-T1/IXI002-Guys-0828-T1.nii.gz     581 files
  IXI-T2/IXI002-Guys-0828-T2.nii.gz     578 files
  IXI-PD/IXI002-Guys-0828-PD.nii.gz
  IXI.csv                               (optional: IXI.xls exported as CSV)""",
    recalled=(
        "the columns of the table: IXI_ID, 'SEX_ID (1=m, 2=f)', AGE",
        (
            "T2 and PD come from one dual-echo scan: where their grids are equal, PD takes the"
            " transform of T2"
        ),
    ),
)


@dataclass(frozen=True, kw_only=True)
class IXI(Source):
    """One entry an axial slice of T1's grid, with T2 and PD registered to it.

    Registering is by far the slowest part. It is done once while a person's slices are read one
    after the other; reading in another order repeats it.

    Attributes:
        register: bring T2 and PD to T1; otherwise they are placed by their headers alone, which is
            marked.
        count: at most so many axial slices a person, the middle ones of what all contrasts cover.
        seed: of the registration's sample points.
    """

    name = "ixi"
    region = "brain"
    streams = ("mri_t1", "mri_t2", "mri_pd")
    card = _CARD

    register: bool = True
    count: int = 100
    seed: int = 0

    def scan(self, root: Path) -> Found:
        people: dict[str, dict[str, Path]] = {}
        sites: dict[str, str] = {}
        skips: list[Skip] = []
        for path in files_below(root, "*.nii", "*.nii.gz"):
            if (match := _NAME.fullmatch(path.name) or _wrapped(path)) is None:
                continue
            person = f"IXI{match[2]}"
            sites.setdefault(person, match[3])
            first = people.setdefault(person, {}).setdefault(_STREAM[match[4].upper()], path)
            if first != path:
                skips.append(Skip("second copy", str(path), f"{first} is the same and is used"))
        if not people:
            raise self.not_here(root, "no file such as IXI002-Guys-0828-T1.nii.gz")
        have = {s: sum(s in files for files in people.values()) for s in self.streams}
        ages, sexes, contradicting = _demographics(root)
        skips += contradicting
        entries = []
        for person, files in people.items():
            lacking = [s for s in self.streams if s not in files]
            if lacking:
                skips.append(Skip("incomplete", person, f"no {', '.join(lacking)}"))
                continue
            if reason := _other_protocol(files):
                skips.append(reason)
                continue
            entries.append(
                Entry(
                    id=person,
                    subject=person,
                    split="",
                    files={s: files[s] for s in self.streams},
                    age=ages.get(person),
                    sex=sexes.get(person, ""),
                    extra={"site": sites[person]},
                )
            )
        return Found(tuple(entries), tuple(skips), self._table(root, have, entries))

    def _table(
        self, root: Path, have: Mapping[str, int], entries: Sequence[Entry]
    ) -> tuple[Expectation, ...]:
        table = [
            Expectation.count("T1 volumes", 581, have["mri_t1"]),
            Expectation.count("T2 volumes", 578, have["mri_t2"]),
            Expectation.count(
                "people with T1, T2 and PD",
                576,
                len(entries),
                "577 have all three, IXI014's T2 is left out",
            ),
        ]
        if files_below(root, "IXI*.csv"):
            known = sum(e.age is not None or bool(e.sex) for e in entries)
            table.append(
                Expectation(
                    "people with age or sex",
                    "",
                    f"{known:,}",
                    "ok" if known else "surprising",
                    "" if known else "no row of the table is joined: needed IXI_ID, AGE, SEX_ID",
                )
            )
        else:
            xls = bool(files_below(root, "IXI*.xls*"))
            note = "IXI.xls is not read: export it as IXI.csv" if xls else "optional"
            table.append(
                Expectation(
                    "table of ages and sexes", "", "none", "surprising" if xls else "ok", note
                )
            )
        if not self.register:
            note = (
                "T2 and PD lie where their headers say; others report a PSNR of about 17 of models"
                " trained so"
            )
            table.append(Expectation("registration to T1", "on", "off", "surprising", note))
        return tuple(table)

    def slices(self, entry: Entry) -> Sequence[Entry]:
        for path in entry.files.values():
            check_placed(path)
        grids = {s: nifti_grid(path) for s, path in entry.files.items()}
        fixed = grids["mri_t1"]
        first, stop = 0, fixed.shape[0]
        for stream_name in ("mri_t2", "mri_pd"):
            top, bottom = _covered(fixed, grids[stream_name])
            first, stop = max(first, top), min(stop, bottom)
        if stop <= first:
            raise FileError(
                f"{entry.id}: by their headers the contrasts show no common part of the head"
            )
        cut = max(0, stop - first - self.count)
        return axial_entries(entry, range(first + cut // 2, stop - (cut - cut // 2)))

    def read(self, entry: Entry, size: int) -> SourceStudy:
        t1, t2, pd = (entry.files[s] for s in self.streams)
        units, spacing, notes = _person(t1, t2, pd, self.register, self.seed)
        images, pixel = paired_slices(units, entry.slice_index, spacing[1:], size)
        return self.study(
            entry,
            images,
            spacing_mm=pixel,
            units=dict.fromkeys(units, "signal"),
            orientation="radiological axial",
            notes=notes,
        )


def _wrapped(path: Path) -> re.Match[str] | None:
    """The name of a folder such as ``IXI002-Guys-0828-T1.nii`` with one volume of another name in
    it, as some mirrors unpack."""
    match = _NAME.fullmatch(path.parent.name)
    return match if match and len(files_below(path.parent, "*.nii", "*.nii.gz")) == 1 else None


@lru_cache(maxsize=1)
def _person(
    t1: Path, t2: Path, pd: Path, register: bool, seed: int
) -> tuple[Mapping[str, np.ndarray], tuple[float, float, float], tuple[str, ...]]:
    """All contrasts of a person on the grid of T1 in -1..1, with its spacing and notes; kept until
    the next person."""
    import SimpleITK as sitk  # slow to import, as is what uses it

    from medm2g_core.data.sources.registration import itk_image, register_affine, resample

    grid = nifti_grid(t1)
    volume = load_volume(t1, "mri_t1")
    fixed = itk_image(volume.array, grid)
    units = {"mri_t1": mr_to_unit(volume.array, stream_name="mri_t1")}
    notes = [*volume.notes, "axial slices of T1's own grid, in whatever plane it was acquired"]
    known: list[tuple[Grid, sitk.Transform]] = []  # of the contrasts that are done
    for stream_name, path in (("mri_t2", t2), ("mri_pd", pd)):
        own = nifti_grid(path)
        other = load_volume(path, stream_name)
        notes += [f"{stream_name}: {n}" for n in other.notes]
        moving = itk_image(other.array, own)
        transform: sitk.Transform | None = next((t for g, t in known if _same(g, own)), None)
        if not register:
            transform = sitk.Transform(3, sitk.sitkIdentity)
            notes.append(f"{stream_name} is not registered to T1: it lies where its header says")
        elif transform is not None:
            notes.append(f"{stream_name} brought to T1 by the transform of T2, from the same scan")
        else:
            try:
                found = register_affine(fixed, moving, seed=seed)
            except FileError as error:
                raise FileError(f"{path}: {error}") from error
            transform = found.transform
            notes.append(
                f"{stream_name} registered to T1, mutual information {found.before:.2f} to"
                f" {found.information:.2f} nats"
            )
        known.append((own, transform))
        units[stream_name] = mr_to_unit(resample(moving, fixed, transform), stream_name=stream_name)
    return units, grid.spacing_mm, tuple(notes)


def _same(a: Grid, b: Grid) -> bool:
    return a.shape == b.shape and np.allclose(a.affine, b.affine, atol=0.01)


def _covered(fixed: Grid, other: Grid) -> tuple[int, int]:
    """Range of axial slices of ``fixed`` whose middle lies between the first and the last slice of
    ``other``."""
    _, rows, columns = fixed.shape
    middles = np.array([[s, (rows - 1) / 2, (columns - 1) / 2, 1] for s in range(fixed.shape[0])])
    inside = np.linalg.inv(other.affine) @ fixed.affine @ middles.T
    hits = np.flatnonzero((inside[0] >= 0) & (inside[0] <= other.shape[0] - 1))
    return (int(hits[0]), int(hits[-1]) + 1) if hits.size else (0, 0)


def _other_protocol(files: Mapping[str, Path]) -> Skip | None:
    """A skip for a T2 or PD with thick slices (IXI014), or whose header cannot be read."""
    for stream_name in ("mri_t2", "mri_pd"):
        path = files[stream_name]
        try:
            grid = nifti_grid(path)
        except FileError as error:
            return Skip("unreadable volume", path.name, str(error))
        gap = grid.spacing_mm[0]  # from head to feet: both are axial
        if gap > THICK_MM:
            s, a, r = grid.shape
            why = f"{r} x {a} x {s} voxels, slices {gap:.1f} mm apart; the others have 1.25 mm"
            return Skip("another protocol", path.name, why)
    return None


def _demographics(root: Path) -> tuple[dict[str, int], dict[str, str], list[Skip]]:
    """Age in years and sex by person, from IXI.csv if it is there. People with contradicting rows
    have neither."""
    ages: dict[str, set[int]] = {}
    sexes: dict[str, set[str]] = {}
    for path in files_below(root, "IXI*.csv"):
        for row in read_table(path):
            values = {k.upper(): v for k, v in row.items()}
            number = re.fullmatch(r"(?:IXI)?(\d{1,9})(?:[.,]0*)?", values.get("IXI_ID", ""))
            if not number:
                continue
            person = f"IXI{int(number[1]):03d}"
            age = re.fullmatch(r"(\d{1,9})([.,]\d*)?", values.get("AGE", ""))
            if age and int(age[1]) > 0:
                ages.setdefault(person, set()).add(int(age[1]))
            code = next((v for k, v in values.items() if k.startswith("SEX_ID")), "")
            if code[:1] in _SEX:
                sexes.setdefault(person, set()).add(_SEX[code[:1]])
    skips = [
        Skip(
            "contradicting age or sex",
            person,
            "the table has two different rows; the value is unknown",
        )
        for person in sorted(ages.keys() | sexes.keys())
        if len(ages.get(person, ())) > 1 or len(sexes.get(person, ())) > 1
    ]
    return (
        {p: next(iter(v)) for p, v in ages.items() if len(v) == 1},
        {p: next(iter(v)) for p, v in sexes.items() if len(v) == 1},
        skips,
    )
