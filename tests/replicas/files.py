"""A made-up chest, and files of it as scanners and converters write them."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    generate_uid,
)


def chest(shape: tuple[int, int, int] = (40, 64, 64)) -> np.ndarray:
    """(S, A, R) HU: an ellipse of soft tissue with two lungs, a bright marker at the patient's
    upper left front."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.where((x / 0.9) ** 2 + (y / 0.7) ** 2 < 1, 40.0, -1000.0)
    hu[(np.abs(np.abs(x) - 0.4) < 0.2) & (np.abs(y) < 0.4)] = -850
    hu[(x > 0.1) & (x < 0.3) & (z < -0.5) & (np.abs(y) < 0.3)] = (
        500  # columns run to the patient's left: x > 0
    )
    return hu.astype(np.float32)


SPACING = (6.0, 5.0, 5.0)  # of the chest: S, A, R


def lpi_affine(spacing: tuple[float, float, float]) -> np.ndarray:
    """RAS affine of an (x, y, z) array whose axes run left, posterior, inferior."""
    return np.diag([-spacing[2], -spacing[1], -spacing[0], 1.0])


def save_nifti(path: Path, hu: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> Path:
    nib.save(nib.Nifti1Image(hu.transpose(2, 1, 0), lpi_affine(spacing)), path)
    return path


def dicom_slice(pixels: np.ndarray, **tags: object) -> FileDataset:
    """A CT slice of int16 HU + 1024 unless ``tags`` say otherwise; a tag of ``None`` is left
    out."""
    ds = FileDataset(None, Dataset(), preamble=b"\0" * 128)  # type: ignore[arg-type]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    defaults: dict[str, object] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": generate_uid(),
        "SeriesInstanceUID": "1.2.3",
        "Modality": "CT",
        "PixelSpacing": [SPACING[1], SPACING[2]],
        "SliceThickness": SPACING[0],
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, 0],
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1 if pixels.dtype == np.int16 else 0,
    }
    for key, value in {**defaults, **tags}.items():
        if value is not None:
            setattr(ds, key, value)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
        ds.SOPClassUID,
        ds.SOPInstanceUID,
    )
    ds.Rows, ds.Columns = pixels.shape
    ds.PixelData = pixels.tobytes()
    return ds


def save_series(folder: Path, hu: np.ndarray, **tags: object) -> Path:
    """One file a slice; file names and InstanceNumber run against the position, as scanners may
    do."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(hu))
    for name, k in enumerate(order):
        ds = dicom_slice((hu[k] + 1024).astype(np.int16), **{"InstanceNumber": name, **tags})
        ds.ImagePositionPatient = [0, 0, -float(k) * SPACING[0]]
        ds.save_as(folder / f"IM{name:04d}")
    return folder
