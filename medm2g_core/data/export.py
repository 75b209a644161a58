"""Generated streams as files: PNG, NIfTI, DICOM and text, each marked as synthetic and not for
diagnosis.

Every file is written whole or not at all (a temporary file in the same folder, then a rename), and
reads back with `medm2g_core.data.files` to the same image within the file's quantisation, left
staying left.
"""

from __future__ import annotations

import gzip
import io
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from torch import Tensor

from medm2g_core.data.volumes import SYNTHETIC_MARK, FileError
from medm2g_core.streams import CT_WINDOW_HU, check_image, stream, unit_to_hu

__all__ = ["FORMATS", "SYNTHETIC_MARK", "write_stream", "write_text"]

SOFTWARE = "medm2g_core"
_WINDOW = f"{CT_WINDOW_HU[0]:.0f}..{CT_WINDOW_HU[1]:.0f} HU"


def write_stream(
    image: Tensor,
    stream_name: str,
    path_stem: str | Path,
    *,
    spacing_mm: tuple[float, float] = (2.8, 2.8),
    plane: str = "coronal",
    formats: Iterable[str] = ("png", "nifti", "dicom"),
    meta: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write one generated image.

    Args:
        image: float (1, H, W), -1..1, in the stream's convention: columns from the patient's right
            to the left.
        stream_name: an image stream.
        path_stem: path without ending; ``.png``, ``.nii.gz`` and ``.dcm`` are put after it. Missing
            folders are made.
        spacing_mm: (row, column) spacing.
        plane: ``"coronal"`` (also for a frontal radiograph) or ``"axial"``.
        formats: any of ``"png"`` (8 bit, -1..1 as 0..255), ``"nifti"`` (CT: HU as int16; else
            float32 -1..1) and ``"dicom"`` (secondary capture; CT in HU, else -1..1, by rescale
            slope and intercept).
        meta: further words about the image (seed, checkpoint, prompt), kept in every file.

    Returns:
        The paths written, in the order of ``formats``.

    Raises:
        FileError: unknown format or plane, bad spacing or shape, or the folder cannot be written.
        StreamError: the image is not what the stream needs.
    """
    check_image(image, stream_name)
    if image.ndim != 3:
        raise FileError(
            f"{stream_name}: got a batch of shape {tuple(image.shape)}; write one (1, H, W) at a"
            " time"
        )
    if plane not in ("coronal", "axial"):
        raise FileError(f"plane {plane!r} is not coronal or axial")
    if len(spacing_mm) != 2 or not all(np.isfinite(s) and s > 0 for s in spacing_mm):
        raise FileError(f"spacing {spacing_mm} mm; needed two positive numbers (row, column)")
    wanted = [formats] if isinstance(formats, str) else list(formats)
    unknown = [f for f in wanted if f not in FORMATS]
    if unknown:
        raise FileError(f"unknown formats {unknown}; known: {', '.join(FORMATS)}")
    unit = image[0].detach().float().cpu().clamp(-1, 1)
    row, column = float(spacing_mm[0]), float(spacing_mm[1])
    stem, words = Path(path_stem), {str(k): str(v) for k, v in (meta or {}).items()}
    written = []
    for name in wanted:
        ending, encode = FORMATS[name]
        path = stem.with_name(stem.name + ending)
        _write(path, encode(unit, stream_name, (row, column), plane, words))
        written.append(path)
    return written


def write_text(text: str, path: str | Path, meta: Mapping[str, str] | None = None) -> Path:
    """Write a generated report as UTF-8 under a heading of ``#`` lines that marks it; `read_text`
    takes them off.

    Raises:
        FileError: the text is empty, or the folder cannot be written.
    """
    if not text.strip():
        raise FileError("the report is empty; nothing was written")
    heading = [f"# {SYNTHETIC_MARK}", f"# Software: {SOFTWARE}"]
    heading += [f"# {_one_line(k)}: {_one_line(v)}" for k, v in (meta or {}).items()]
    path = Path(path)
    _write(path, ("\n".join(heading) + "\n\n" + text.strip() + "\n").encode())
    return path


def _one_line(words: str) -> str:
    return " ".join(str(words).split())


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise FileError(
            f"{path} cannot be written ({error.strerror or error}); choose another folder"
        ) from error


def _png(
    unit: Tensor, name: str, spacing: tuple[float, float], plane: str, meta: Mapping[str, str]
) -> bytes:
    info = PngInfo()
    own = {
        "Title": f"Synthetic {stream(name).title}",
        "Comment": f"{SYNTHETIC_MARK}; {stream(name).meaning}",
        "Software": SOFTWARE,
        "Stream": name,
        "Plane": plane,
        "Spacing": f"{spacing[0]:.6g} {spacing[1]:.6g} mm",
        "Window": _WINDOW if name == "ct" else "-1..1",
    }
    for key, value in {**{k[:79]: v for k, v in meta.items() if k and k.isascii()}, **own}.items():
        info.add_text(key, value)  # tEXt; pillow turns to iTXt where Latin-1 does not suffice
    pixels = ((unit + 1) / 2 * 255).round().numpy().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def _nifti(
    unit: Tensor, name: str, spacing: tuple[float, float], plane: str, meta: Mapping[str, str]
) -> bytes:
    values = unit_to_hu(unit).round().numpy().astype(np.int16) if name == "ct" else unit.numpy()
    flat = values.T[::-1, ::-1]  # columns to right->left turned to left, rows bottom up: RAS+ axes
    array = np.ascontiguousarray(flat[:, None, :] if plane == "coronal" else flat[:, :, None])
    row, column = spacing
    steps = np.array([column, row, row])  # the slice has no true thickness: that of a row
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = -steps * (np.array(array.shape) - 1) / 2
    image = nib.nifti1.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = SYNTHETIC_MARK.encode()
    image.header["intent_name"] = name.encode()
    words = [
        SYNTHETIC_MARK,
        f"software: {SOFTWARE}",
        f"plane: {plane}",
        *(f"{k}: {v}" for k, v in meta.items()),
    ]
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", "\n".join(words).encode()))
    return gzip.compress(image.to_bytes(), mtime=0)


def _dicom(
    unit: Tensor, name: str, spacing: tuple[float, float], plane: str, meta: Mapping[str, str]
) -> bytes:
    if name == "ct":
        stored = (unit_to_hu(unit).round() + 1024).numpy()
        slope, intercept, unit_name, window = "1", "-1024", "HU", (-600.0, 1500.0)
    else:
        stored = ((unit + 1) * 2000).round().numpy()
        slope, intercept, unit_name, window = "0.0005", "-1", "US", (0.0, 2.0)
    now = datetime.now()
    ds = FileDataset(None, Dataset(), preamble=b"\0" * 128)  # type: ignore[arg-type]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID
    ds.PatientName, ds.PatientID = "SYNTHETIC^NOT FOR DIAGNOSIS", "SYNTHETIC"
    ds.PatientBirthDate = ds.PatientSex = ds.ReferringPhysicianName = ds.AccessionNumber = ""
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.StudyID = (
        generate_uid(),
        generate_uid(),
        "SYNTHETIC",
    )
    ds.SeriesNumber, ds.InstanceNumber = "1", "1"
    ds.StudyDate = ds.ContentDate = now.strftime("%Y%m%d")
    ds.StudyTime = ds.ContentTime = now.strftime("%H%M%S")
    ds.Modality = {"ct": "CT", "xray": "DX"}.get(name, "MR")
    ds.ConversionType = "SYN"  # defined term of PS3.3 C.8.6.1: synthetic image
    ds.Manufacturer, ds.ManufacturerModelName = SOFTWARE, "MedM2G latent diffusion"
    ds.StudyDescription, ds.SeriesDescription = SYNTHETIC_MARK, f"{SYNTHETIC_MARK} {name}"
    ds.ImageType = ["DERIVED", "SECONDARY"]
    words = "; ".join(
        [SYNTHETIC_MARK, stream(name).meaning, *(f"{k}: {v}" for k, v in meta.items())]
    )
    ds.ImageComments = words[:10240]
    ds.DerivationDescription = "Generated by a diffusion model; depicts no patient"
    ds.ContentQualification, ds.BurnedInAnnotation, ds.LossyImageCompression = (
        "RESEARCH",
        "NO",
        "00",
    )
    ds.BodyPartExamined = "CHEST" if name in ("ct", "xray") else "BRAIN"
    ds.PatientOrientation = ["L", "F"] if plane == "coronal" else ["L", "P"]
    ds.PixelSpacing = [f"{spacing[0]:.6g}", f"{spacing[1]:.6g}"]
    if name != "xray":  # a projection has no slice plane
        rows, columns = unit.shape
        down = [0, 0, -1] if plane == "coronal" else [0, 1, 0]
        corner = (
            np.array([-(columns - 1) / 2 * spacing[1], 0, 0])
            - np.array(down) * (rows - 1) / 2 * spacing[0]
        )
        ds.ImageOrientationPatient = [1, 0, 0, *down]
        ds.ImagePositionPatient = [f"{c:.6g}" for c in corner]
        ds.SliceThickness = f"{spacing[0]:.6g}"
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.Rows, ds.Columns = unit.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, intercept, unit_name
    ds.WindowCenter, ds.WindowWidth = (f"{w:g}" for w in window)
    ds.PixelData = np.ascontiguousarray(stored.astype("<u2")).tobytes()
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


FORMATS: Mapping[
    str, tuple[str, Callable[[Tensor, str, tuple[float, float], str, Mapping[str, str]], bytes]]
] = {
    "png": (".png", _png),
    "nifti": (".nii.gz", _nifti),
    "dicom": (".dcm", _dicom),
}
"""Name of a format -> (file ending, encoder)."""
