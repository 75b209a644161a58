"""A made-up frontal chest film, as an array and as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from pydicom.dataset import FileDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation
from replicas.files import dicom_slice

from medm2g_core.data.files import read_stream

SIDE = 160


def film() -> np.ndarray:
    """(SIDE, SIDE), 0..1, bone bright: air, a body with two dark lungs, a bright middle, and a
    marker at the upper right of the picture."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    values = np.where((np.abs(x) < 0.85) & (y > -0.9), 0.55 + 0.1 * y, 0.0)
    lungs = ((np.abs(x) - 0.42) / 0.28) ** 2 + ((y + 0.1) / 0.6) ** 2 < 1
    values[lungs] = 0.2 + 0.05 * y[lungs]
    values[(np.abs(x) < 0.12) & (y > -0.9)] = 0.9
    values[4:14, -20:-8] = 1.0
    return values.astype(np.float64)


def dicom_film(stored: np.ndarray, **tags: object) -> FileDataset:
    """A DX image without a place in space; a tag of ``None`` is left out."""
    plain: dict[str, object] = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "Modality": "DX",
        "ImageOrientationPatient": None,
        "ImagePositionPatient": None,
        "PixelSpacing": None,
        "RescaleSlope": None,
        "RescaleIntercept": None,
        "SliceThickness": None,
    }
    return dicom_slice(stored, **{**plain, **tags})


def shown(path: Path, size: int = SIDE) -> torch.Tensor:
    """The picture (size, size) that the model would see."""
    return read_stream(path, "xray", size=size).image[0]


def likeness(picture: torch.Tensor, reference: np.ndarray | None = None) -> float:
    """Correlation with the film; -1 for its negative."""
    wanted = film() if reference is None else reference
    return float(np.corrcoef(picture.numpy().ravel(), wanted.ravel())[0, 1])
