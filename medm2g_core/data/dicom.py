"""Reading of DICOM, a file or a folder of one or more series, into a
`medm2g_core.data.volumes.Volume`."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from medm2g_core.data.dicom_pixels import Grey, grey_frames, has_pixels
from medm2g_core.data.dicom_stacks import Frame, depths, frames_of, same_place, stacks_of
from medm2g_core.data.headers import XRAY_MODALITIES, number
from medm2g_core.data.series import Choice, choose
from medm2g_core.data.volumes import (
    PLANES,
    SYNTHETIC_MARK,
    FileError,
    Volume,
    blame,
    oriented,
    sniff,
)

__all__ = ["read_dicom_file", "read_dicom_folder"]

MAX_FILES = 20_000
_ARCHIVES = frozenset({".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"})
NO_DISPLAY = frozenset({"CT", "MR", "PT", "NM"})
"""Modalities whose values are measurements; in the others the picture shown is what counts."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_dicom_file(path: Path, stream_name: str) -> Volume:
    """One DICOM file: a slice, a radiograph, or a multi-frame object, of which the stack that suits
    the stream best."""
    with blame(
        path, "reading DICOM"
    ):  # pydicom parses a value when it is first asked for, so anywhere below
        ds = _header(path, pixels=True)
        if ds is None:
            raise FileError(f"{path}: not a readable DICOM file")
        notes: list[str] = []
        grey = _grey(path, ds, notes)
        frames = frames_of(path, ds)[: len(grey.frames)]
        stacks = stacks_of(frames)
        # What one stack alone contradicts is said by the check of the picture, as of any file.
        one = Choice(stacks[0], (), ())
        choice = one if len(stacks) == 1 else choose(stacks, stream_name, str(path))
        notes[:0] = [n.replace("in the folder", "in the file") for n in choice.notes]
        return _volume(path, choice, ds, {path: grey}, notes)


def read_dicom_folder(folder: Path, stream_name: str) -> Volume:
    """The stack of a folder (searched with its subfolders) that suits the stream best.

    Files are parted by `medm2g_core.data.dicom_stacks` and chosen among by
    `medm2g_core.data.series`.
    """
    with blame(folder, "reading the DICOM series"):
        return _read_folder(folder, stream_name)


def _read_folder(folder: Path, stream_name: str) -> Volume:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    if not found:
        raise FileError(f"{folder}: the folder is empty; give one with a DICOM series, or a file")
    if len(found) > MAX_FILES:
        raise FileError(
            f"{folder}: {len(found)} files; give the folder of one series or study (at most"
            f" {MAX_FILES})"
        )
    frames: list[Frame] = []
    broken, other = [], 0
    for path in found:
        try:
            if sniff(path) != "dicom":
                other += 1
                continue
            ds = _header(path, pixels=False)
            if ds is None or not has_pixels(ds):
                other += 1
                continue
            with blame(path, "reading the header"):
                frames += frames_of(path, ds)
        except FileError as error:
            broken.append(str(error))
    if not frames:
        why = f"; the first problem: {broken[0]}" if broken else ""
        packed = [p.name for p in found if p.suffix.lower() in _ARCHIVES]
        if packed:
            why = f"; unpack {packed[0]} first"
        raise FileError(
            f"{folder}: no DICOM image among {len(found)} files; of other formats give the"
            f" file itself{why}"
        )
    choice = choose(stacks_of(frames), stream_name, str(folder))
    notes = list(choice.notes)
    if broken:
        notes.append(f"{len(broken)} unreadable files left out: slices may be missing")
    if other:
        notes.append(f"{other} files without an image left out")
    first, pixels = None, {}
    skipped, files = 0, sorted({f.path for f in choice.stack.frames})
    for path in files:
        try:
            ds = _header(path, pixels=True)
            assert ds is not None
            pixels[path] = _grey(path, ds, notes)
        except FileError:
            skipped += 1
            if len(files) == 1 or skipped > len(files) // 4:
                raise
            continue
        first = ds if first is None else first
    assert first is not None
    if skipped:
        notes.append(f"{skipped} of {len(files)} slices could not be decoded and were left out")
    return _volume(folder, choice, first, pixels, notes)


def _header(path: Path, *, pixels: bool) -> Dataset | None:
    with blame(path, "reading DICOM"), io.FileIO(path) as raw, _Bounded(raw) as file:
        ds = pydicom.dcmread(file, force=True, stop_before_pixels=not pixels)
        return ds if len(ds) else None


class _Bounded(io.BufferedReader):
    """A file that is never asked for more than it has: a broken length of a DICOM element would
    take up to 4 GB of memory before the end of the file is met."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def _grey(path: Path, ds: Dataset, notes: list[str]) -> Grey:
    return grey_frames(path, ds, notes, display=ds.get("Modality", "") not in NO_DISPLAY)


def _volume(
    path: Path, choice: Choice, first: Dataset, pixels: dict[Path, Grey], notes: list[str]
) -> Volume:
    """The frames of a stack that were read, as one volume."""
    stack = choice.stack
    frames = [f for f in stack.frames if f.path in pixels]
    frames.sort(key=lambda f: (number(f.facts.get("InstanceNumber")) or 0.0, f.path, f.index))
    values = [pixels[f.path].frames[f.index] for f in frames]
    with blame(path, "reading the geometry"):
        volume = _assemble(path, frames, values, first, notes)
    volume.facts = dict(stack.facts)
    volume.table = list(choice.table)
    volume.modality = str(first.get("Modality", ""))
    grey = pixels[frames[0].path]
    volume.inverted, volume.window = grey.inverted, grey.window
    with blame(path, "reading the header"):
        for name, label in (("RepetitionTime", "TR"), ("EchoTime", "TE"), ("InversionTime", "TI")):
            time = number(stack.facts.get(name))
            if volume.modality == "MR" and time is not None:
                notes.append(f"{label} {time:.4g} ms")
        if str(first.get("ImageComments", "")).startswith(SYNTHETIC_MARK):
            description = str(first.get("SeriesDescription", "")).split()
            volume.tags = {"stream": description[-1] if description else ""}
    return volume


def _assemble(
    path: Path,
    frames: Sequence[Frame],
    values: list[np.ndarray],
    ds: Dataset,
    notes: list[str],
) -> Volume:
    if len({v.shape for v in values}) > 1:
        raise FileError(f"{path}: the images differ in size")
    depth = depths(frames)
    if depth is None or ds.get("Modality") in XRAY_MODALITIES:
        return _flat(values, frames[len(frames) // 2], ds, notes)
    orientation = frames[0].orientation
    assert orientation is not None
    along_row, along_column = orientation[:3], orientation[3:]  # LPS
    normal = np.cross(along_row, along_column)
    keep = _one_each(path, depth, values, notes)
    spacing = frames[0].spacing
    pixel = spacing or (1.0, 1.0)
    if len(keep) > 2:
        keep = _longest_run(keep, depth, notes)
    if len(keep) > 1:
        where = np.array([f.position for f in frames])
        gaps = np.diff(depth[keep])
        step = float(np.median(gaps))
        vector = (where[keep[-1]] - where[keep[0]]) / (depth[keep[-1]] - depth[keep[0]]) * step
        stack = np.stack([values[i] for i in keep])
        if frames[0].step is not None:
            notes.append(
                f"one position for all frames: {step:.3g} mm apart along the normal, by the header"
            )
        if gaps.max() > 1.05 * step or gaps.min() < 0.95 * step:
            apart = f"{gaps.min():.3g}..{gaps.max():.3g} mm"
            notes.append(f"uneven slice distances ({apart}) interpolated to {step:.3g} mm")
            stack = _even(stack, depth[keep], step)
    else:
        stated = (number(ds.get(t)) for t in ("SpacingBetweenSlices", "SliceThickness"))
        thick = next((abs(s) for s in stated if s), 1.0)
        vector, stack = normal * thick, np.stack([values[keep[0]]])
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ np.stack(
        [along_row * pixel[1], along_column * pixel[0], vector], axis=1
    )
    volume = oriented(stack.transpose(2, 1, 0), affine, "dicom", notes)
    if spacing is None:
        # The axis that the slices are counted along keeps its distance.
        counted = int(np.argmax(np.abs(normal[[2, 1, 0]])))
        volume.spacing_mm = tuple(
            s if axis == counted else float("nan") for axis, s in enumerate(volume.spacing_mm)
        )
        volume.acquired = PLANES[counted]
    elif ds.get("PixelSpacing") is None and ds.get("ReconstructionDiameter") is not None:
        notes.append(f"no pixel spacing: {spacing[0]:.3g} mm from the reconstructed diameter")
    return volume


def _one_each(
    path: Path, depth: np.ndarray, values: list[np.ndarray], notes: list[str]
) -> list[int]:
    """One frame for each position, in order of depth.

    Raises:
        FileError: different images at one position, which no header parted.
    """
    places: dict[int, list[int]] = defaultdict(list)
    for index, place in enumerate(same_place(depth)):
        places[int(place)].append(index)
    copies = len(depth) - len(places)
    for members in places.values():
        for a, b in pairwise(members):
            if not np.array_equal(values[a], values[b]):
                raise FileError(
                    f"{path}: {copies} images lie at positions that others have too, and nothing"
                    " in their headers parts them (time points? phases?); give the files of one"
                    " acquisition"
                )
    if copies:
        notes.append(f"{copies} images are copies of others at their positions: left out")
    return [places[place][0] for place in sorted(places)]


def _longest_run(keep: list[int], depth: np.ndarray, notes: list[str]) -> list[int]:
    """The longest part of a stack without a gap of more than three slices: such a gap must not be
    interpolated."""
    gaps = np.diff(depth[keep])
    cuts = np.flatnonzero(gaps > 3.5 * np.median(gaps)) + 1
    if not len(cuts):
        return keep
    run = max(np.split(np.arange(len(keep)), cuts), key=len)
    notes.append(f"slices are missing: {len(run)} of {len(keep)} lie together and are used")
    return [keep[i] for i in run]


def _even(stack: np.ndarray, depth: np.ndarray, step: float) -> np.ndarray:
    """Linear interpolation of slices (n, rows, columns) at ``depth`` onto even distances
    ``step``."""
    count = round((depth[-1] - depth[0]) / step) + 1
    at = np.interp(np.linspace(depth[0], depth[-1], count), depth, np.arange(len(depth)))
    low = np.minimum(at.astype(int), len(depth) - 2)
    part = (at - low)[:, None, None].astype(np.float32)
    return stack[low] * (1 - part) + stack[low + 1] * part


def _flat(values: list[np.ndarray], frame: Frame, ds: Dataset, notes: list[str]) -> Volume:
    """An image without a place in space: a radiograph or a secondary capture. Of several frames,
    the middle one."""
    if len(values) > 1:
        notes.append(f"{len(values)} frames without positions: the middle one is used")
    array = values[len(values) // 2]
    rows_columns = [str(v) for v in ds.get("PatientOrientation") or ()]
    if len(rows_columns) == 2:
        if rows_columns[0][:1] == "R":
            array = array[:, ::-1]
            notes.append("columns ran to the patient's right: mirrored to display convention")
        if rows_columns[1][:1] in ("H", "A"):
            array = array[::-1]
            notes.append("rows ran upward: turned to display convention")
    spacing = frame.spacing or (float("nan"),) * 2
    return Volume(
        np.ascontiguousarray(array), spacing, "dicom", notes, aspect=_pixel_aspect(ds.get(_ASPECT))
    )


_ASPECT = "PixelAspectRatio"


def _pixel_aspect(value: Any) -> float:
    """Height over width of a pixel from PixelAspectRatio (vertical, horizontal); 1 without one."""
    if value is None or len(value) != 2:
        return 1.0
    down, across = number(value[0]), number(value[1])
    return down / across if down and across and down > 0 and across > 0 else 1.0
