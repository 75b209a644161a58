"""SynthRAD2023 Task 1: MR and CT of the pelvis or the head of one patient, rigidly registered, on
one grid."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from medm2g_core.data.files import read_volume
from medm2g_core.data.intensity import check_hu, mr_to_unit
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
    check_placed,
    check_same_grid,
    nifti_grid,
)
from medm2g_core.data.sources.imaging import check_whole, ct_to_unit, paired_slices
from medm2g_core.data.sources.trees import files_below, folders_below, words
from medm2g_core.data.volumes import FileError

__all__ = ["SynthRAD2023"]

_CASE = re.compile(r"(?<![A-Za-z0-9])1([BP])([ABC])\d{3}(?![A-Za-z0-9])", re.IGNORECASE)
_OTHER_TASK = re.compile(r"2[BP][ABC]\d{3}")
_ROLES = {"mr": "mr", "mri": "mr", "ct": "ct", "mask": "mask", "masks": "mask"}
MIN_INSIDE = 0.01
"""A slice counts when the mask covers at least this part of it."""


class SynthRAD2023(Source):
    """Axial slices inside the patient's outline, as ``ct`` with ``mri_t1`` (or ``mri_t2``: pelvis
    of centre C)."""

    name = "synthrad2023"
    region = "any"  # each study says "pelvis" or "brain"
    streams = ("ct", "mri_t1", "mri_t2")
    card = DataCard(
        title="SynthRAD2023 Task 1 (MR to CT)",
        homepage="https://doi.org/10.5281/zenodo.7260705",
        licence="CC BY-NC 4.0",
        access="free download from Zenodo; the test cases stay with the organisers",
        paper_use=(
            "none: a public substitute for Gold Atlas, which the paper used for pelvis T2 to CT [S]"
        ),
        lost=(
            (
                "everything outside the published outline (table, immobilisation, air) is set to"
                " air and to MR background"
            ),
            "signal scale of the MR; HU outside -1000..600",
            "slices of which the outline covers less than 1 %",
        ),
        faults=(
            (
                "pelvis of centre C is T2-weighted, all other MR T1-weighted: kept apart as mri_t2"
                " and mri_t1"
            ),
            "there is no pelvis of centre B (no 1PB case)",
            "MR and CT were registered rigidly: bladder, bowel and gas differ between them",
            "air near -1000 and tissue near 0 are checked in every CT; padding below -1024 is air",
            "a volume on another grid than its mask is refused, whatever its axis order",
        ),
        layout=(
            "  Task1/pelvis/1PA001/{mr,ct,mask}.nii.gz   180 cases, 1x1x2.5 mm\n"
            "  Task1/brain/1BA001/{mr,ct,mask}.nii.gz    1x1x1 mm\n"
            "(the folder given may be Task1, one above it, or one of its two parts; flat folders\n"
            "ct/1PA001.nii.gz, mr/..., mask/... and names such as 1PA001_ct.nii.gz are read too)"
        ),
        recalled=(
            "licence",
            "contrast by centre (some heads of centre A are contrast-enhanced T1)",
            "spacing of the heads",
            "the overview folder beside the cases, which is not read",
        ),
    )

    def scan(self, root: Path) -> Found:
        cases: dict[str, dict[str, Path]] = {}
        skips: list[Skip] = []
        copies: set[tuple[str, Path]] = set()
        for path in files_below(root, "*.nii", "*.nii.gz"):
            name, role = _case_and_role(path)
            if not name or not role:
                continue
            first = cases.setdefault(name, {}).setdefault(role, path)
            if first != path and (name, path.parent) not in copies:
                copies.add((name, path.parent))
                skips.append(
                    Skip("duplicate case", str(path), f"the same case is in {first.parent}")
                )
        if not cases:
            if any(_OTHER_TASK.fullmatch(p.name) for p in folders_below(root)):
                raise self.not_here(
                    root, "this is Task 2 (cone-beam CT to CT), which has no MR; Task 1 is needed"
                )
            raise self.not_here(root, "no case folder such as 1PA001")
        entries = []
        for name, found in sorted(cases.items()):
            entry = _entry(name, found)
            if entry is None:
                missing = [role for role in ("mr", "ct", "mask") if role not in found]
                where = next(iter(found.values())).parent
                skips.append(
                    Skip("missing file", name, f"no {' and no '.join(missing)} in {where}")
                )
            else:
                entries.append(entry)
        pairs = [e for e in entries if len(e.files) == 2]
        heads = sum(e.extra["region"] == "brain" for e in pairs)
        alone = len(entries) - len(pairs)
        table = (
            Expectation.count(
                "pelvis cases with MR and CT", 180, len(pairs) - heads, needed=not heads
            ),
            Expectation("brain cases with MR and CT", "", f"{heads}"),
            Expectation(
                "cases with MR or CT alone",
                "",
                f"{alone}",
                "surprising" if alone else "ok",
                "the validation cases come without CT" if alone else "",
            ),
        )
        return Found(tuple(entries), tuple(skips), table)

    def slices(self, entry: Entry) -> Sequence[Entry]:
        """The axial slices inside the mask, from the head down. The mask is read, of the images
        nothing."""
        check_placed(entry.extra["mask"])
        inside = _mask(entry.extra["mask"]).mean(axis=(1, 2)) >= MIN_INSIDE
        if not inside.any():
            raise FileError(f"{entry.extra['mask']}: the mask is empty")
        return axial_entries(entry, np.flatnonzero(inside).tolist())

    def read(self, entry: Entry, size: int) -> SourceStudy:
        units, spacing, notes = _volumes(entry.extra["mask"], tuple(sorted(entry.files.items())))
        images, pixel = paired_slices(units, entry.slice_index, spacing, size)
        depth = len(next(iter(units.values())))
        return self.study(
            entry,
            images,
            region=entry.extra["region"],
            spacing_mm=pixel,
            units={n: "HU" if n == "ct" else "signal" for n in images},
            orientation="radiological axial",
            notes=(*notes, f"axial slice {entry.index} of {depth}"),
        )


def _case_and_role(path: Path) -> tuple[str, str]:
    """The case and what of it a file is (``"mr"``, ``"ct"`` or ``"mask"``), each from the file's
    own name, else from its folder's; ``""`` where neither says it."""
    stem = re.sub(r"\.nii(?:\.gz)?$", "", path.name, flags=re.IGNORECASE)
    places = (stem, path.parent.name)
    case = next((m[0].upper() for p in places if (m := _CASE.search(p))), "")
    role = next((_ROLES[w] for p in places for w in sorted(words(p)) if w in _ROLES), "")
    return case, role


def _entry(name: str, found: Mapping[str, Path]) -> Entry | None:
    """The case, or ``None`` where its mask or both images are missing."""
    match = _CASE.fullmatch(name)
    assert match is not None
    part, centre = match.groups()
    contrast = "mri_t2" if (part, centre) == ("P", "C") else "mri_t1"
    files = {s: found[r] for s, r in (("ct", "ct"), (contrast, "mr")) if r in found}
    if "mask" not in found or not files:
        return None
    region = "pelvis" if part == "P" else "brain"
    # No public split holds CT for all its parts, so it is left to the seed.
    extra = {"mask": found["mask"], "region": region, "centre": centre}
    return Entry(name, name, "", files, extra=extra)


@lru_cache(maxsize=2)
def _mask(path: Path) -> np.ndarray:
    """(S, A, R) bool."""
    return read_volume(path, "mri_t1").array > 0.5


@lru_cache(maxsize=1)
def _volumes(
    mask_path: Path, files: tuple[tuple[str, Path], ...]
) -> tuple[dict[str, np.ndarray], tuple[float, float], tuple[str, ...]]:
    """Stream -> (S, A, R) in -1..1 with everything outside the mask at -1; (row, column) spacing in
    mm; notes."""
    mask = _mask(mask_path)
    grid = nifti_grid(mask_path)
    units: dict[str, np.ndarray] = {}
    notes = ["outside the published outline: air and MR background"]
    spacing = (1.0, 1.0)
    for name, path in files:
        check_same_grid(nifti_grid(path), path, grid, mask_path)
        volume = read_volume(path, name)
        array = volume.array
        if not np.isfinite(array).all():
            raise FileError(f"{path}: holds NaN or infinite values")
        # Above and below the outline a scan may have nothing.
        check_whole(array[mask.any(axis=(1, 2))], str(path))
        notes += [n for n in volume.notes if n not in notes]
        spacing = (volume.spacing_mm[1], volume.spacing_mm[2])
        if name == "ct":
            check_hu(array, str(path))
            units[name] = np.where(mask, ct_to_unit(array), np.float32(-1))
        else:
            # The outline is wider than the body, so that its darkest voxels are background.
            background = np.float32(np.quantile(array[mask], 0.005))
            units[name] = mr_to_unit(np.where(mask, array, background), stream_name=name)
    return units, spacing, tuple(notes)
