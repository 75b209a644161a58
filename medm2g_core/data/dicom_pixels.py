"""The grey values of DICOM images: decoding, the modality's own scale, display look-up tables and
padding."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.processing import (
    apply_modality_lut,
    apply_presentation_lut,
    apply_voi_lut,
)

from medm2g_core.data.headers import functional
from medm2g_core.data.volumes import MAX_VOXELS, FileError, blame

__all__ = ["Grey", "grey_frames", "has_pixels"]

GREY_SPREAD = 2
"""Levels that the channels of a grey picture stored in colour may differ by."""

_DICOMDIR = "1.2.840.10008.1.3.10"
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


@dataclass
class Grey:
    """The frames of one file.

    Attributes:
        frames: float32 (rows, columns) each, on the modality's scale (HU for CT).
        window: (low, high) for display in the same values, or ``None``.
        inverted: large values are shown dark.
    """

    frames: list[np.ndarray]
    window: tuple[float, float] | None
    inverted: bool


def has_pixels(ds: Dataset) -> bool:
    return bool(ds.get("Rows") and ds.get("Columns") and ds.get("BitsAllocated"))


def _note(notes: list[str], text: str) -> None:
    if text not in notes:
        notes.append(text)


def grey_frames(path: Path, ds: Dataset, notes: list[str], *, display: bool) -> Grey:
    """All frames of a file as values of its modality.

    Args:
        display: also apply the file's VOI LUT, sigmoid window, presentation LUT and shutter: for
            films, whose values mean what is shown; not for CT and MR, whose values are the signal.

    Raises:
        FileError: no pixels, colour, or not decodable.
    """
    pixels = _stored(path, ds)
    stored = pixels if pixels.ndim == 3 else pixels[None]
    inverted = ds.get("PhotometricInterpretation") == "MONOCHROME1"
    window = _window(ds)
    frames = []
    with blame(path, "applying the rescaling and look-up tables"):
        if display and str(ds.get("PresentationLUTShape", "")).strip().upper() == "INVERSE":
            inverted = True  # of a MONOCHROME1 image this states the same thing again
        for index, frame in enumerate(stored):
            values = _rescaled(ds, frame, index, notes)
            shown = window
            if display:
                values, shown = _displayed(ds, values, window, notes)
            hidden = _padding(ds, frame)
            if hidden is not None and hidden.any():
                true = values[~hidden]
                if true.size:
                    values[hidden] = true.max() if inverted else true.min()
                _note(notes, "padding pixels set to the lowest true value")
            if display:
                _shutter(ds, values, inverted, notes)
            frames.append(values)
    return Grey(frames, shown, inverted)


def _rescaled(ds: Dataset, frame: np.ndarray, index: int, notes: list[str]) -> np.ndarray:
    """Stored values on the modality's scale."""
    if ds.get("ModalityLUTSequence"):
        _note(notes, "the file's modality look-up table is applied")
        # Signed and wide: pydicom subtracts the first entry in the array's own type.
        return apply_modality_lut(frame.astype(np.int64), _sixteen_bits(ds)).astype(np.float32)

    def get(tag: str) -> Any:
        value = functional(ds, index, "PixelValueTransformationSequence", tag)
        return ds.get(tag) if value is None else value

    slope, intercept = get("RescaleSlope"), get("RescaleIntercept")
    if slope is None:
        _note(notes, "no rescale slope: 1/0 used")
    return frame.astype(np.float32) * float(1 if slope is None else slope) + float(
        0 if intercept is None else intercept
    )


def _sixteen_bits(ds: Dataset) -> Dataset:
    """A modality LUT as pydicom takes it: it makes an array of the type ``uint12`` of one of 12
    bits, and there is none. The entries are words of 16 bits whatever they use."""
    item = copy.deepcopy(ds.ModalityLUTSequence[0])
    count, first, _ = item.LUTDescriptor
    item.LUTDescriptor = [count, first, 16]
    out = Dataset()
    out.file_meta = ds.file_meta
    out.ModalityLUTSequence = [item]
    return out


def _window(ds: Dataset) -> tuple[float, float] | None:
    """The first display window, if it is one."""
    centre = ds.get("WindowCenter")
    width = ds.get("WindowWidth")
    if centre is None:
        centre = functional(ds, 0, "FrameVOILUTSequence", "WindowCenter")
        width = functional(ds, 0, "FrameVOILUTSequence", "WindowWidth")
    if centre is None or width is None:
        return None
    try:
        c, w = (
            float(v[0] if isinstance(v, pydicom.multival.MultiValue) else v)
            for v in (centre, width)
        )
    except (TypeError, ValueError, IndexError):
        return None
    usable = np.isfinite(c) and np.isfinite(w) and w > 0
    return (c - w / 2, c + w / 2) if usable else None


def _displayed(
    ds: Dataset, values: np.ndarray, window: tuple[float, float] | None, notes: list[str]
) -> tuple[np.ndarray, tuple[float, float] | None]:
    """The values after the VOI LUT, sigmoid window and presentation LUT, and the window of the
    result."""
    if ds.get("VOILUTSequence"):
        bits = int(ds.VOILUTSequence[0].LUTDescriptor[2])
        values = apply_voi_lut(np.rint(values).astype(np.int64), ds, prefer_lut=True)
        values, window = values.astype(np.float32), (0.0, float(2**bits - 1))
        _note(notes, "the file's VOI look-up table is applied")
    elif window and str(ds.get("VOILUTFunction", "")).upper() == "SIGMOID":
        centre, width = sum(window) / 2, window[1] - window[0]
        # PS3.3 C.11.2.1.3.1
        values = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -80, 80)))
        values, window = values.astype(np.float32), (0.0, 1.0)
        _note(notes, "the file's sigmoid window is applied")
    if ds.get("PresentationLUTSequence"):
        low, high = window or (float(values.min()), float(values.max()))
        bits = int(ds.PresentationLUTSequence[0].LUTDescriptor[2])
        values = apply_presentation_lut(np.clip(values, low, high), ds).astype(np.float32)
        window = (0.0, float(2**bits - 1))
        _note(notes, "the file's presentation look-up table is applied")
    return values, window


def _padding(ds: Dataset, frame: np.ndarray) -> np.ndarray | None:
    """Which stored pixels are no measurements."""
    first = ds.get("PixelPaddingValue")
    if not isinstance(first, int):
        return None
    last = ds.get("PixelPaddingRangeLimit", first)
    last = last if isinstance(last, int) else first
    if frame.dtype.kind not in "iu":
        return frame == first
    bits = frame.dtype.itemsize * 8
    if frame.dtype.kind == "i":  # a value written as unsigned for signed pixels, and the reverse
        first, last = ((v + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1) for v in (first, last))
    else:
        first, last = first % 2**bits, last % 2**bits
    return (frame >= min(first, last)) & (frame <= max(first, last))


_EDGES = (
    "ShutterUpperHorizontalEdge",
    "ShutterLowerHorizontalEdge",
    "ShutterLeftVerticalEdge",
    "ShutterRightVerticalEdge",
)


def _shutter(ds: Dataset, values: np.ndarray, inverted: bool, notes: list[str]) -> None:
    """What a rectangular or round display shutter hides becomes black, in place."""
    shapes = ds.get("ShutterShape") or ()
    shapes = {str(s) for s in ([shapes] if isinstance(shapes, str) else shapes)}
    keep = np.ones(values.shape, bool)
    rows, columns = np.ogrid[1 : values.shape[0] + 1, 1 : values.shape[1] + 1]
    if "RECTANGULAR" in shapes and all(edge in ds for edge in _EDGES):
        top, bottom, left, right = (int(ds[edge].value) for edge in _EDGES)
        keep &= (rows >= top) & (rows <= bottom) & (columns >= left) & (columns <= right)
    if "CIRCULAR" in shapes and "CenterOfCircularShutter" in ds and "RadiusOfCircularShutter" in ds:
        row, column = (float(v) for v in ds.CenterOfCircularShutter)
        keep &= (rows - row) ** 2 + (columns - column) ** 2 <= float(
            ds.RadiusOfCircularShutter
        ) ** 2
    if keep.any() and not keep.all():
        values[~keep] = values[keep].max() if inverted else values[keep].min()
        _note(notes, "what the file's display shutter hides is black")


def _stored(path: Path, ds: Dataset) -> np.ndarray:
    """Stored pixels (rows, columns) or (frames, rows, columns), grey, before any rescaling."""
    if not any(tag in ds for tag in _PIXELS):
        meta = getattr(ds, "file_meta", {})
        uid = ds.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID", "")
        what = getattr(uid, "name", "") or str(ds.get("Modality", "")) or "unknown object"
        if str(uid) == _DICOMDIR:
            raise FileError(f"{path}: a DICOMDIR, a list of files; give the folder that it lies in")
        raise FileError(
            f"{path}: DICOM without pixel data that can be read here ({what[:80]}); needed an image"
            " object"
        )
    if not has_pixels(ds):
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
        if np.quantile(np.ptp(pixels.astype(np.float32), axis=-1), 0.999) > GREY_SPREAD:
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
