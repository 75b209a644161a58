"""What the replicas of volume data sets share: an asymmetric head, a NIfTI writer that can write
faults."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np


def head(shape: tuple[int, int, int], contrast: float = 1.0, seed: int = 0) -> np.ndarray:
    """(S, A, R) signal: a noisy ellipsoid with a bright block at the patient's left front (upper
    right).

    Args:
        contrast: of the block and the ventricle-like core; 1 makes the core dark, -1 bright.
    """
    s, a, r = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    inside = (s / 0.99) ** 2 + (a / 0.9) ** 2 + (r / 0.8) ** 2 < 1
    core = (s / 0.5) ** 2 + (a / 0.3) ** 2 + (r / 0.25) ** 2 < 1
    signal = np.where(inside, 400.0 + 20 * np.random.default_rng(seed).standard_normal(shape), 0.0)
    signal[core] = 400 - 250 * contrast
    signal[(np.abs(a + 0.45) < 0.2) & (np.abs(r - 0.4) < 0.15) & inside] = 800
    return np.maximum(signal, 0).astype(np.float32)


def save_nifti(
    path: Path,
    array: np.ndarray,
    axes: str = "LPS",
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    dtype: type = np.int16,
    centred: bool = False,
    **header: object,
) -> Path:
    """Write (S, A, R) with its voxels stored along ``axes``, packed if the name ends in ``.gz``.

    Args:
        spacing: along S, A, R.  centred: the middle voxel is the scanner's origin.
        header: raw fields that are set last, such as ``scl_slope=0``.
    """
    affine = np.diag([-spacing[2], -spacing[1], -spacing[0], 1.0])
    if centred:
        affine[:3, 3] = [
            (n - 1) / 2 * d for n, d in zip(array.shape[::-1], spacing[::-1], strict=True)
        ]
    image = nib.Nifti1Image(array.astype(dtype).transpose(2, 1, 0), affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("LPI"), nib.orientations.axcodes2ornt(axes)
    )
    image = image.as_reoriented(turn)
    data = bytearray(image.to_bytes())
    if header:
        raw = nib.Nifti1Header(bytes(data[:348]), check=False)
        for key, value in header.items():
            raw[key] = value
        data[:348] = raw.binaryblock
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(bytes(data), 1) if path.name.endswith(".gz") else bytes(data))
    return path


def truncate(path: Path, keep: float = 0.5) -> None:
    """Cut a file short, as an interrupted download does."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
