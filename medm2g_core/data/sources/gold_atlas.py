"""Gold Atlas male pelvis: T1- and T2-weighted MR with a CT that the publisher deformed onto them,
as loose DICOM files.

A patient is one zip archive or one folder in which all series lie together. The archives are read
where they are: nothing is unpacked.
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from scipy import ndimage

from medm2g_core.data.intensity import check_hu, mr_to_unit
from medm2g_core.data.sources.archives import (
    member_names,
    open_member,
    opened,
    patient_places,
)
from medm2g_core.data.sources.base import (
    DataCard,
    Entry,
    Expectation,
    Found,
    Skip,
    Source,
    SourceStudy,
)
from medm2g_core.data.sources.grids import axial_entries
from medm2g_core.data.sources.imaging import ct_to_unit, paired_slices
from medm2g_core.data.volumes import MAX_VOXELS, FileError, blame

__all__ = ["GoldAtlas"]

PADDING_HU = (-1, -1025)
"""What the deformed CT holds where there was no CT: the registration's DefaultPixelValue -1, as HU
or as stored."""
MIN_SEEN = 0.05
"""A slice of which less than this part is seen by all streams is no picture."""

# "set1" and "T2*" are neither
_T1 = re.compile(r"(?<![a-z0-9])t1(?!\d)", re.IGNORECASE)
_T2 = re.compile(r"(?<![a-z0-9])t2(?!\d|\s*\*|[\s_-]*star)", re.IGNORECASE)
# What is computed from pictures, or weighted by diffusion, however long its echo is.
_NO_PICTURE = re.compile(
    r"\b(?:adc|dwi|diff|ep2d|trace|map|sub(?:traction)?|mask|seg|swi|dixon[ _]?f)(?![a-z])"
    r"|(?<![a-z])(?:t2\s*\*|t2[\s_-]*star|b[ _=]?\d{2,4}\b)",
    re.IGNORECASE,
)
_MIN_AXIAL = 0.85
"""Cosine of the angle between the slices' normal and the body's long axis."""
_DEFORMED = re.compile(r"deform|warp|regist|elastix|\breg\b|_reg|dir\b", re.IGNORECASE)
_LATE_ECHO_MS = 60.0  # later than this is T2 weighting, earlier than 30 ms T1
_TAGS = [
    "Modality",
    "SeriesInstanceUID",
    "SeriesDescription",
    "ProtocolName",
    "FrameOfReferenceUID",
    "ImageType",
    "EchoTime",
    "Rows",
    "Columns",
    "ImagePositionPatient",
    "ImageOrientationPatient",
]


@dataclass(frozen=True)
class _Series:
    """Images of one SeriesInstanceUID, of one size and orientation.

    Attributes:
        names: of its files within the patient's folder or archive, from the feet to the head.
        depths: position of each along the normal of the slices, in mm, rising.
    """

    header: Dataset
    names: tuple[str, ...]
    depths: tuple[float, ...]

    @property
    def axial(self) -> bool:
        row, column = np.split(np.array(self.header.ImageOrientationPatient, dtype=float), 2)
        return bool(abs(np.cross(row, column)[2]) > _MIN_AXIAL)

    @property
    def words(self) -> str:
        parts = (self.header.get(key, "") for key in ("SeriesDescription", "ProtocolName"))
        return " ".join(str(part) for part in parts).strip()


class GoldAtlas(Source):
    """Axial slices of the deformed CT with the MR brought onto its grid, where all of them see the
    patient."""

    name = "gold_atlas"
    region = "pelvis"
    streams = ("ct", "mri_t1", "mri_t2")
    card = DataCard(
        title="Gold Atlas male pelvis",
        homepage="https://doi.org/10.5281/zenodo.583096",
        licence="the publisher's terms, agreed to with the request for access",
        access="on request, on Zenodo",
        paper_use="T2 to CT of the pelvis [S]",
        lost=(
            (
                "the contours (RTSTRUCT) and the CT before its deformation, which lies elsewhere"
                " than the MR"
            ),
            "what one of the streams does not see is set to air and background in all",
            (
                "MR is interpolated linearly to the grid of the deformed CT; HU outside -1000..600;"
                " signal scale"
            ),
        ),
        faults=(
            (
                "all series lie in one folder: grouped by SeriesInstanceUID, told apart by Modality"
                " and description, else by frame of reference (CT) and echo time (MR)"
            ),
            "slices are sorted by position along their normal, not by file name or InstanceNumber",
            (
                "the deformed CT holds -1 outside its field of view: such regions that reach the"
                " edge are masked"
            ),
            "circular field of view of the MR: zeros that reach the edge are masked",
            (
                "series have different numbers of slices (first subject: T1 70, T2 84, CT 84): only"
                " slices in the range of all are used, and the MR is resampled in patient space"
                " with the identity transform"
            ),
            "a series without one of its slices is refused rather than interpolated over the gap",
        ),
        layout=(
            "  1_01_P.zip (or a folder 1_01_P)   one a patient, 19 of them, all DICOM files side by"
            " side:\n    T1w and T2w MR, CT, deformed CT, RTSTRUCT"
        ),
        recalled=("names of archives", "wording of the series descriptions", "licence"),
    )

    def scan(self, root: Path) -> Found:
        skips: list[Skip] = []
        places: dict[str, Path] = {}
        for place in patient_places(root):
            name = place.name if place.is_dir() else place.stem
            if name in places:
                skips.append(
                    Skip("duplicate patient", str(place), f"the same patient is in {places[name]}")
                )
            else:
                places[name] = place
        entries: list[Entry] = []
        for name, place in sorted(places.items()):
            try:
                groups, broken = _groups(place)
            except FileError as error:
                skips.append(Skip("unreadable archive", place.name, str(error)))
                continue
            skips += [Skip("not a DICOM file", f"{place.name}/{n}", why) for n, why in broken]
            chosen, others = _choose(groups)
            skips += [Skip(kind, name, why) for kind, why in others]
            if not chosen:
                skips.append(
                    Skip("no usable series", name, f"neither MR nor a deformed CT in {place}")
                )
                continue
            names = {s: x.names for s, x in chosen.items()}
            depths = {s: x.depths for s, x in chosen.items()}
            files = {s: place for s in self.streams if s in chosen}
            entries.append(
                Entry(name, name, "", files, sex="male", extra={"names": names, "depths": depths})
            )
        if not entries:
            reasons = ", ".join(sorted({s.kind for s in skips}))
            raise self.not_here(
                root, f"no patient's DICOM series{f' ({reasons})' if reasons else ''}"
            )
        complete = sum(len(e.files) == 3 for e in entries)
        table = (
            Expectation.count("patients", 19, len(entries)),
            Expectation.count("patients with T1, T2 and deformed CT", 19, complete),
        )
        return Found(tuple(entries), tuple(skips), table)

    def slices(self, entry: Entry) -> Sequence[Entry]:
        """The slices of the reference series that lie within the range of all others, from the head
        down."""
        depths: Mapping[str, tuple[float, ...]] = entry.extra["depths"]
        own = depths[_reference(depths)]
        reach = [(min(d) - _step(d) / 2, max(d) + _step(d) / 2) for d in depths.values()]
        low, high = max(r[0] for r in reach), min(r[1] for r in reach)
        kept = [len(own) - 1 - k for k, d in enumerate(own) if low <= d <= high]
        if not kept:
            raise FileError(
                f"{entry.id}: its series lie in different places and have no slice in common"
            )
        return axial_entries(entry, sorted(kept))

    def read(self, entry: Entry, size: int) -> SourceStudy:
        index = entry.slice_index
        place = next(iter(entry.files.values()))
        units, seen, spacing, notes = _volumes(place, tuple(sorted(entry.extra["names"].items())))
        images, pixel = paired_slices(units, index, spacing, size)
        if seen[index].mean() < MIN_SEEN:
            raise FileError(f"{entry.id}: hardly any of slice {index} is seen by all streams")
        return self.study(
            entry,
            images,
            spacing_mm=pixel,
            units={n: "HU" if n == "ct" else "signal" for n in images},
            orientation="radiological axial",
            notes=(*notes, f"axial slice {index} of {len(seen)}"),
        )


def _reference(streams: Mapping[str, Any]) -> str:
    """The stream whose grid is kept: the deformed CT, else the T2, which was the target of its
    deformation."""
    return next(s for s in ("ct", "mri_t2", "mri_t1") if s in streams)


def _step(depths: Sequence[float] | np.ndarray) -> float:
    return float(np.median(np.diff(depths))) if len(depths) > 1 else 1.0


def _groups(place: Path) -> tuple[list[_Series], list[tuple[str, str]]]:
    """The image series of a patient, from headers alone, and the files that are no DICOM with the
    reason."""
    found: dict[tuple, list[tuple[float, str, Dataset]]] = defaultdict(list)
    broken = []
    with opened(place) as archive:
        for name in member_names(place, archive):
            try:
                with (
                    blame(Path(name), "reading the header"),
                    open_member(place, archive, name) as stream,
                ):
                    ds = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=_TAGS)
                    position, orientation = (
                        ds.get("ImagePositionPatient"),
                        ds.get("ImageOrientationPatient"),
                    )
                    if (
                        ds.get("Modality") not in ("MR", "CT")
                        or position is None
                        or orientation is None
                    ):
                        continue  # a structure set, a report, a localiser without a place
                    if "LOCALIZER" in (ds.get("ImageType") or ()):
                        continue
                    cosines = [float(v) for v in orientation]
                    depth = float(
                        np.dot(np.cross(cosines[:3], cosines[3:]), [float(v) for v in position])
                    )
                    turned = tuple(round(c, 2) for c in cosines)
                    key = (
                        str(ds.get("SeriesInstanceUID", "")),
                        ds.get("Rows"),
                        ds.get("Columns"),
                        turned,
                    )
            except FileError as error:
                plain = isinstance(error.__cause__, InvalidDicomError)
                broken.append((name, "no DICOM header" if plain else str(error)))
                continue
            found[key].append((depth, name, ds))
    series = []
    for images in found.values():
        images.sort(key=lambda x: x[:2])
        first_at = [0] + [
            k for k in range(1, len(images)) if images[k][0] - images[k - 1][0] > 1e-3
        ]
        kept = [images[k] for k in first_at]  # a position that comes again is the same slice again
        series.append(
            _Series(kept[0][2], tuple(n for _, n, _ in kept), tuple(d for d, _, _ in kept))
        )
    return series, broken


def _choose(series: Sequence[_Series]) -> tuple[dict[str, _Series], list[tuple[str, str]]]:
    """Stream -> its series, and (kind, reason) of each series that is left out; the plain CT is,
    without a word."""
    frames = {
        s.header.get("FrameOfReferenceUID") for s in series if s.header.get("Modality") == "MR"
    } - {None, ""}
    candidates: dict[str, list[_Series]] = defaultdict(list)
    left: list[tuple[str, str]] = []
    plain = 0
    for s in series:
        if s.header.get("Modality") == "MR":
            stream = _contrast(s)
            if stream and s.axial:
                candidates[stream].append(s)
            elif stream:
                left.append(
                    ("not axial", f"{s.words!r} is a {stream} of {len(s.names)} slices, not axial")
                )
            else:
                left.append(
                    (
                        "unknown series",
                        f"MR {s.words!r} is neither T1 nor T2 by description or echo time",
                    )
                )
        elif _DEFORMED.search(s.words) or s.header.get("FrameOfReferenceUID") in frames:
            candidates["ct"].append(s)
        else:
            plain += 1
    if plain and "ct" not in candidates:
        left.append(
            ("no deformed CT", "the CT as acquired is not registered to the MR and cannot stand in")
        )
    chosen = {}
    for stream, several in candidates.items():
        # Both CT may be in the frame of the MR: the word in the description decides, then the
        # number of slices.
        named = [s for s in several if _DEFORMED.search(s.words)]
        if stream == "ct" and len(several) > 1 and not named:
            left.append(
                (
                    "CT unclear",
                    f"{len(several)} CT lie in the frame of the MR and none says that it was"
                    " deformed; the plain one must not stand in",
                )
            )
            continue
        several.sort(
            key=lambda s: (stream == "ct" and bool(_DEFORMED.search(s.words)), len(s.names)),
            reverse=True,
        )
        chosen[stream] = several[0]
        if stream != "ct":
            left += [
                ("second series", f"{s.words!r} is another {stream} of {len(s.names)} slices")
                for s in several[1:]
            ]
    return chosen, left


def _contrast(series: _Series) -> str:
    """``"mri_t1"``, ``"mri_t2"`` or ``""``."""
    if _NO_PICTURE.search(series.words):
        return ""
    is_t1, is_t2 = bool(_T1.search(series.words)), bool(_T2.search(series.words))
    if is_t1 != is_t2:
        return "mri_t1" if is_t1 else "mri_t2"
    echo = series.header.get("EchoTime")
    if echo is None:
        return ""
    return (
        "mri_t2"
        if float(echo) >= _LATE_ECHO_MS
        else "mri_t1"
        if float(echo) < _LATE_ECHO_MS / 2
        else ""
    )


def _image(place: Path, archive: zipfile.ZipFile | None, names: Sequence[str]) -> sitk.Image:
    """A series as a SimpleITK image at its place in the patient.

    Raises:
        FileError: a broken slice, slices that differ in size or spacing, or a gap in the stack.
    """
    slices, positions = [], []
    first: Dataset | None = None
    for name in names:
        with blame(place / name, "reading the slice"), open_member(place, archive, name) as stream:
            ds = pydicom.dcmread(stream)
            first = first if first is not None else ds
            if (
                ds.PixelSpacing != first.PixelSpacing
                or len(names) * int(ds.Rows) * int(ds.Columns) > MAX_VOXELS
            ):
                raise FileError(
                    f"{place / name}: its pixel spacing or size is not that of the series"
                )
            slope, intercept = ds.get("RescaleSlope"), ds.get("RescaleIntercept")
            values = ds.pixel_array.astype(np.float32)
            slices.append(
                values * float(1 if slope is None else slope)
                + float(0 if intercept is None else intercept)
            )
            positions.append([float(v) for v in ds.ImagePositionPatient])
    assert first is not None
    with blame(place, "placing the series"):
        row, column = (np.array(first.ImageOrientationPatient[k : k + 3], float) for k in (0, 3))
        normal = np.cross(row, column)
        depths = np.array(positions) @ normal
        step = _step(depths) if len(depths) > 1 else float(first.get("SliceThickness") or 1)
        if any(abs(b - a - step) > 0.05 * step for a, b in pairwise(depths)):
            raise FileError(
                f"{place}: slices of {first.get('SeriesDescription', 'a series')!r} are missing or"
                " uneven"
            )
        image = sitk.GetImageFromArray(np.stack(slices))
        image.SetSpacing([float(first.PixelSpacing[1]), float(first.PixelSpacing[0]), step])
        image.SetOrigin(positions[0])
        image.SetDirection(np.stack([row, column, normal], axis=1).ravel().tolist())
    return image


def _at_edge(flag: np.ndarray) -> np.ndarray:
    """The parts of (slices, rows, columns) that are connected, within their slice, to the edge of
    the picture."""
    out = np.zeros_like(flag)
    for k, plane in enumerate(flag):
        framed = np.pad(plane, 1, constant_values=True)
        labels, _ = ndimage.label(framed)
        out[k] = (labels == labels[0, 0])[1:-1, 1:-1]
    return out


@lru_cache(maxsize=1)
def _volumes(
    place: Path, series: tuple[tuple[str, tuple[str, ...]], ...]
) -> tuple[dict[str, np.ndarray], np.ndarray, tuple[float, float], tuple[str, ...]]:
    """Stream -> (S, A, R) in -1..1 on the reference's grid; what all see (bool); (row, column)
    spacing; notes."""
    with opened(place) as archive:
        images = {stream: _image(place, archive, names) for stream, names in series}
    reference = _reference(images)
    target = sitk.DICOMOrient(images[reference], "LPI")  # index 0: head, front, patient's right
    if not np.allclose(
        np.diag(np.array(target.GetDirection()).reshape(3, 3)), (1, 1, -1), atol=0.15
    ):
        raise FileError(f"{place}: the slices of {reference} are not axial")
    notes = [
        f"on the grid of {reference}; what one stream does not see is air and background in all"
    ]
    arrays, seen = {}, np.ones(target.GetSize()[::-1], dtype=bool)
    for stream, image in images.items():
        own = sitk.GetArrayFromImage(image)
        # Where there is no measurement, before any interpolation mixes it with what is beside it.
        unseen = _at_edge(np.isin(own, PADDING_HU if stream == "ct" else (0,)))
        if stream == "ct":
            if unseen.all():
                raise FileError(f"{place}: the deformed CT holds nothing but its padding")
            own = np.where(unseen, own[~unseen].min(), own)
            check_hu(own, f"{place} (deformed CT)")
        mask = sitk.GetImageFromArray((~unseen).astype(np.uint8))
        mask.CopyInformation(image)
        filled = sitk.GetImageFromArray(own)
        filled.CopyInformation(image)
        identity = sitk.Transform(3, sitk.sitkIdentity)
        lowest = float(own.min())
        arrays[stream] = sitk.GetArrayFromImage(
            sitk.Resample(filled, target, identity, sitk.sitkLinear, lowest)
        )
        seen &= (
            sitk.GetArrayFromImage(
                sitk.Resample(mask, target, identity, sitk.sitkNearestNeighbor, 0)
            )
            > 0
        )
        if stream != reference:
            notes.append(f"{stream} resampled in patient space")
    if not seen.any():
        raise FileError(f"{place}: there is no place that all its series see")
    units = {}
    for stream, array in arrays.items():
        unit = ct_to_unit(array) if stream == "ct" else mr_to_unit(array, stream_name=stream)
        units[stream] = np.where(seen, unit, np.float32(-1))
    spacing = target.GetSpacing()
    return units, seen, (spacing[1], spacing[0]), tuple(notes)
