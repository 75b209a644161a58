"""Reading of DICOM, a file or a folder of one or more series, into a
`medm2g_core.data.volumes.Volume`."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from medm2g_core.data.volumes import (
    MAX_VOXELS,
    SYNTHETIC_MARK,
    FileError,
    Volume,
    blame,
    oriented,
    sniff,
)

__all__ = ["read_dicom_file", "read_dicom_folder"]

MAX_FILES = 20_000
_OTHER = {
    "SEG",
    "RTDOSE",
    "RTIMAGE",
    "PT",
    "NM",
    "US",
    "MG",
    "ES",
    "SM",
    "OP",
    "OPT",
    "ECG",
    "PR",
    "KO",
    "SR",
}
_XRAY = {"CR", "DX", "DR", "RG", "RF", "XA", "PX"}
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def fits(modality: str, stream_name: str) -> bool:
    """Whether a DICOM Modality can hold the stream; unspecific ones (SC, OT, none) may."""
    if modality in _OTHER:
        return False
    kind = {"CT": "ct", "MR": "mri"}.get(modality, "xray" if modality in _XRAY else "")
    return not kind or stream_name.startswith(kind)


def read_dicom_file(path: Path) -> Volume:
    """One DICOM file: a slice, a radiograph, or a multi-frame volume."""
    with blame(
        path, "reading DICOM"
    ):  # pydicom parses a value when it is first asked for, so anywhere below
        ds = _header(path, pixels=True)
        if ds is None:
            raise FileError(f"{path}: not a readable DICOM file")
        return _volume(path, [(path, ds)], [])


def read_dicom_folder(folder: Path, stream_name: str) -> Volume:
    """The series of a folder (searched with its subfolders) that suits the stream best.

    Files are grouped by SeriesInstanceUID, then by image size, orientation and echo time.
    Localisers and other modalities lose; among the rest the one with the most slices wins.
    """
    with blame(folder, "reading the DICOM series"):
        return _read_folder(folder, stream_name)


def _read_folder(folder: Path, stream_name: str) -> Volume:
    found = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    if not found:
        raise FileError(f"{folder}: the folder is empty")
    if len(found) > MAX_FILES:
        raise FileError(
            f"{folder}: {len(found)} files; give the folder of one series or study (at most"
            f" {MAX_FILES})"
        )
    groups: dict[tuple, list[tuple[Path, Dataset]]] = defaultdict(list)
    broken, other = [], 0
    for path in found:
        try:
            if sniff(path) != "dicom":
                other += 1
                continue
            ds = _header(path, pixels=False)
        except FileError as error:
            broken.append(str(error))
            continue
        if ds is None or not _has_pixels(ds):
            other += 1
            continue
        orientation = tuple(round(float(v), 2) for v in ds.get("ImageOrientationPatient") or ())
        echo = str(ds.get("EchoTime", "")) if stream_name.startswith("mri") else ""
        key = (
            ds.get("SeriesInstanceUID", ""),
            ds.get("Rows"),
            ds.get("Columns"),
            orientation,
            echo,
        )
        groups[key].append((path, ds))
    if not groups:
        why = f"; the first problem: {broken[0]}" if broken else ""
        raise FileError(f"{folder}: no DICOM image among {len(found)} files{why}")
    fitting = {
        k: v for k, v in groups.items() if fits(str(v[0][1].get("Modality", "")), stream_name)
    }
    if not fitting:
        kinds = sorted({str(v[0][1].get("Modality", "?")) for v in groups.values()})
        raise FileError(
            f"{folder}: holds {', '.join(kinds)} images, none of which can be the stream"
            f" {stream_name}"
        )
    real = {
        k: v for k, v in fitting.items() if "LOCALIZER" not in (v[0][1].get("ImageType") or ())
    } or fitting
    most = max(len(v) for v in real.values())
    best = [k for k, v in real.items() if len(v) == most]
    # Equal stacks of one series differ in echo time: the T2 is the late echo, T1 and PD the early
    # one.
    best.sort(
        key=lambda k: float(k[4]) if k[4] not in ("", "None") else 0.0,
        reverse=stream_name == "mri_t2",
    )
    files, notes = real[best[0]], []
    if len(groups) > 1:
        name = str(files[0][1].get("SeriesDescription", "")).strip() or "no description"
        notes.append(
            f"{len(groups)} image stacks in the folder: took the one with {most} images ({name})"
        )
    if broken:
        notes.append(f"{len(broken)} unreadable files left out: slices may be missing")
    if other:
        notes.append(f"{other} files without an image left out")
    return _volume(folder, files, notes)


def _header(path: Path, *, pixels: bool) -> Dataset | None:
    with blame(path, "reading DICOM"):
        ds = pydicom.dcmread(path, force=True, stop_before_pixels=not pixels)
        return ds if len(ds) else None


def _has_pixels(ds: Dataset) -> bool:
    return bool(ds.get("Rows") and ds.get("Columns") and ds.get("BitsAllocated"))


def _pixels(path: Path, ds: Dataset) -> np.ndarray:
    """Stored pixels (rows, columns) or (frames, rows, columns), grey, before any rescaling."""
    if "PixelData" not in ds:
        meta = getattr(ds, "file_meta", {})
        uid = ds.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID", "")
        what = getattr(uid, "name", "") or str(ds.get("Modality", "")) or "unknown object"
        raise FileError(
            f"{path}: DICOM without pixel data that can be read here ({what}); needed an image"
            " object"
        )
    if not _has_pixels(ds):
        raise FileError(f"{path}: DICOM without Rows, Columns or BitsAllocated; the file is broken")
    syntax = getattr(ds.file_meta, "TransferSyntaxUID", None) if hasattr(ds, "file_meta") else None
    with blame(path, "decoding the pixels"):
        frames = int(ds.get("NumberOfFrames") or 1)
        if frames * int(ds.Rows) * int(ds.Columns) > MAX_VOXELS:
            raise FileError(f"{path}: more than {MAX_VOXELS} voxels")
        if syntax is None:
            raw = ds.original_encoding
            syntax = (
                pydicom.uid.ImplicitVRLittleEndian if raw[0] else pydicom.uid.ExplicitVRLittleEndian
            )
            syntax = syntax if raw[1] is not False else pydicom.uid.ExplicitVRBigEndian
            if not hasattr(ds, "file_meta"):
                ds.file_meta = pydicom.dataset.FileMetaDataset()
            ds.file_meta.TransferSyntaxUID = syntax
        if syntax.is_compressed:
            decoder = pydicom.pixels.get_decoder(syntax) if _decodable_syntax(syntax) else None
            if decoder is None or not decoder.is_available:
                raise _undecodable(path, syntax, "")
    with blame(path, "decoding the pixels"):
        try:
            pixels = pydicom.pixels.pixel_array(ds)
        except (
            RuntimeError
        ) as error:  # what pydicom raises when none of its decoder plugins manages
            if not syntax.is_compressed:
                raise
            raise _undecodable(path, syntax, str(error).strip().splitlines()[-1].strip()) from error
    if int(ds.get("SamplesPerPixel") or 1) > 1:
        if np.quantile(np.ptp(pixels.astype(np.float32), axis=-1), 0.999) > 2:
            raise FileError(
                f"{path}: a colour DICOM ({ds.get('PhotometricInterpretation', '?')}); needed a"
                " grey image"
            )
        pixels = pixels[..., 0]
    elif ds.get("PhotometricInterpretation") == "PALETTE COLOR":
        raise FileError(f"{path}: a colour DICOM (PALETTE COLOR); needed a grey image")
    return pixels


def _undecodable(path: Path, syntax: Any, why: str) -> FileError:
    return FileError(
        f"{path}: compressed with {syntax.name} ({syntax}), which cannot be decoded"
        f" here{f' ({why[:120]})' if why else ''}; pip install pylibjpeg pylibjpeg-libjpeg"
        " pylibjpeg-openjpeg, or export it uncompressed"
    )


def _decodable_syntax(syntax: Any) -> bool:
    try:
        pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        return False
    return True


def _functional(ds: Dataset, frame: int, group: str, tag: str) -> Any:
    """A value of an enhanced multi-frame object's functional groups (own frame first, then shared),
    or ``None``."""
    per = ds.get("PerFrameFunctionalGroupsSequence") or []
    for item in ([per[frame]] if frame < len(per) else []) + list(
        ds.get("SharedFunctionalGroupsSequence") or []
    ):
        inner = item.get(group)
        if inner and tag in inner[0]:
            return inner[0][tag].value
    return None


def _slices(path: Path, ds: Dataset, notes: list[str]) -> list[tuple[np.ndarray, Any, Any, Any]]:
    """(values, position, orientation, pixel spacing) of each frame; values rescaled, by slope 1 and
    0 if absent."""
    pixels = _pixels(path, ds)
    frames = pixels if pixels.ndim == 3 else pixels[None]
    out = []
    for index, frame in enumerate(frames):

        def get(tag: str, group: str, index: int = index) -> Any:
            value = ds.get(tag)
            return _functional(ds, index, group, tag) if value is None else value

        slope, intercept = (
            get(t, "PixelValueTransformationSequence") for t in ("RescaleSlope", "RescaleIntercept")
        )
        if slope is None and "no rescale slope: 1/0 used" not in notes:
            notes.append("no rescale slope: 1/0 used")
        values = frame.astype(np.float32)
        padding = ds.get("PixelPaddingValue")
        values = values * float(1 if slope is None else slope) + float(
            0 if intercept is None else intercept
        )
        if isinstance(padding, int) and (frame == padding).any():
            values[frame == padding] = (
                values[frame != padding].min() if (frame != padding).any() else 0
            )
            text = "padding pixels set to the lowest true value"
            if text not in notes:
                notes.append(text)
        position = get("ImagePositionPatient", "PlanePositionSequence")
        orientation = get("ImageOrientationPatient", "PlaneOrientationSequence")
        out.append((values, position, orientation, get("PixelSpacing", "PixelMeasuresSequence")))
    return out


def _volume(path: Path, files: list[tuple[Path, Dataset]], notes: list[str]) -> Volume:
    slices: list[tuple[np.ndarray, Any, Any, Any]] = []
    first: Dataset | None = None
    skipped = 0
    for file, header in files:
        try:
            ds = header if "PixelData" in header else _header(file, pixels=True)
            assert ds is not None
            got = _slices(file, ds, notes)
        except FileError:
            if len(files) == 1:
                raise
            skipped += 1
            if skipped > len(files) // 4:
                raise
            continue
        first = first if first is not None else ds
        slices += got
    assert first is not None
    if skipped:
        notes.append(f"{skipped} of {len(files)} slices could not be decoded and were left out")
    with blame(path, "reading the geometry"):
        volume = _assemble(slices, first, notes)
        volume.modality = str(first.get("Modality", ""))
        volume.inverted = first.get("PhotometricInterpretation") == "MONOCHROME1"
        centre, width = first.get("WindowCenter"), first.get("WindowWidth")
        if centre is not None and width is not None:
            c, w = (
                float(v[0] if isinstance(v, pydicom.multival.MultiValue) else v)
                for v in (centre, width)
            )
            volume.window = (c - w / 2, c + w / 2) if w > 0 else None
        for name, label in (("RepetitionTime", "TR"), ("EchoTime", "TE"), ("InversionTime", "TI")):
            if volume.modality == "MR" and first.get(name) is not None:
                notes.append(f"{label} {float(first.get(name)):.4g} ms")
        if str(first.get("ImageComments", "")).startswith(SYNTHETIC_MARK):
            description = str(first.get("SeriesDescription", "")).split()
            volume.tags = {"stream": description[-1] if description else ""}
    return volume


def _assemble(
    slices: list[tuple[np.ndarray, Any, Any, Any]], ds: Dataset, notes: list[str]
) -> Volume:
    values = [s[0] for s in slices]
    if len({v.shape for v in values}) > 1:
        raise FileError("the images differ in size")
    positions, orientation, pixel = [s[1] for s in slices], slices[0][2], slices[0][3]
    if (
        orientation is None
        or len(orientation) != 6
        or any(p is None or len(p) != 3 for p in positions)
    ):
        return _flat(values, ds, pixel, notes)
    along_row, along_column = (
        np.array(orientation[:3], float),
        np.array(orientation[3:], float),
    )  # LPS
    normal = np.cross(along_row, along_column)
    where = np.array([[float(c) for c in p] for p in positions])
    depth = where @ normal
    order = np.argsort(depth, kind="stable")
    keep = [order[0]] + [b for a, b in pairwise(order) if depth[b] - depth[a] > 1e-3]
    if len(keep) < len(order):
        notes.append(
            f"{len(order) - len(keep)} images repeat a position (time points?): first used"
        )
    spacing = (
        [float(v) for v in pixel] if pixel is not None else [1.0, 1.0]
    )  # row distance, column distance
    if pixel is None:
        notes.append("no pixel spacing: 1 mm assumed")
    if len(keep) > 2:
        keep = _longest_run(keep, depth, notes)
    if len(keep) > 1:
        gaps = np.diff(depth[keep])
        step = float(np.median(gaps))
        vector = (where[keep[-1]] - where[keep[0]]) / (depth[keep[-1]] - depth[keep[0]]) * step
        stack = np.stack([values[i] for i in keep])
        if gaps.max() > 1.05 * step or gaps.min() < 0.95 * step:
            apart = f"{gaps.min():.3g}..{gaps.max():.3g} mm"
            notes.append(f"uneven slice distances ({apart}) interpolated to {step:.3g} mm")
            stack = _even(stack, depth[keep], step)
    else:
        thick = ds.get("SpacingBetweenSlices") or ds.get("SliceThickness") or 1.0
        vector, stack = normal * abs(float(thick)), np.stack([values[keep[0]]])
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ np.stack(
        [along_row * spacing[1], along_column * spacing[0], vector], axis=1
    )
    return oriented(stack.transpose(2, 1, 0), affine, "dicom", notes)


def _longest_run(keep: list[Any], depth: np.ndarray, notes: list[str]) -> list[Any]:
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


def _flat(values: list[np.ndarray], ds: Dataset, pixel: Any, notes: list[str]) -> Volume:
    """An image without a place in space: a radiograph or a secondary capture. Of several frames,
    the middle one."""
    if len(values) > 1:
        notes.append(f"{len(values)} frames without positions: the middle one is used")
    array = values[len(values) // 2]
    if pixel is None:
        pixel = ds.get("ImagerPixelSpacing") or ds.get("NominalScannedPixelSpacing")
    rows_columns = [str(v) for v in ds.get("PatientOrientation") or ()]
    if len(rows_columns) == 2:
        if rows_columns[0][:1] == "R":
            array = array[:, ::-1]
            notes.append("columns ran to the patient's right: mirrored to display convention")
        if rows_columns[1][:1] in ("H", "A"):
            array = array[::-1]
            notes.append("rows ran upward: turned to display convention")
    spacing = (
        tuple(float(v) for v in pixel)
        if pixel is not None and len(pixel) == 2
        else (float("nan"),) * 2
    )
    return Volume(np.ascontiguousarray(array), spacing, "dicom", notes)
