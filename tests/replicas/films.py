"""Generated radiographs for replicas: nothing of them is real, only their formats and faults."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid


def frontal(rows: int = 60, columns: int = 48, seed: int = 0) -> np.ndarray:
    """uint8 (rows, columns): two dark lungs beside a bright middle, a bright marker at the
    patient's upper left."""
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    film = np.full((rows, columns), 150.0)
    film[(np.abs(np.abs(x) - 0.45) < 0.25) & (np.abs(y) < 0.6)] = 50
    film[(x > 0.6) & (x < 0.95) & (y < -0.75)] = 250  # columns run to the patient's left
    return (
        (film + np.random.default_rng(seed).normal(0, 3, film.shape)).clip(0, 255).astype(np.uint8)
    )


def lateral(rows: int = 60, columns: int = 48, seed: int = 0) -> np.ndarray:
    """uint8 (rows, columns): one lung in front of a bright spine."""
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    film = 120 + 100 * x
    film[(x > -0.7) & (x < 0.3) & (np.abs(y) < 0.6)] = 40
    return (
        (film + np.random.default_rng(seed).normal(0, 3, film.shape)).clip(0, 255).astype(np.uint8)
    )


def save(path: Path, film: np.ndarray, mode: str = "L", kind: str = "PNG") -> Path:
    """A film as PNG or JPEG bytes, whatever the path ends in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(film).convert(mode).save(path, format=kind)
    return path


def save_dicom(
    path: Path, film: np.ndarray, *, inverted: bool = False, spacing_mm: float | None = 0.15
) -> Path:
    """A film as 12-bit DICOM without RescaleSlope, as 2,943 of IU's have none; optionally
    MONOCHROME1."""
    ds = FileDataset(None, Dataset(), preamble=b"\0" * 128)  # type: ignore[arg-type]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    ds.Modality, ds.PhotometricInterpretation = "DX", "MONOCHROME1" if inverted else "MONOCHROME2"
    ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = (
        1,
        16,
        12,
        11,
        0,
    )
    ds.Rows, ds.Columns = film.shape
    if spacing_mm:
        ds.PixelSpacing = [spacing_mm, spacing_mm]
    stored = film.astype(np.uint16) * 16
    ds.PixelData = (4095 - stored if inverted else stored).astype(np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, ds)
    return path
