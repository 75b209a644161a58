"""A small copy of the Kaggle brain MR and CT arrays, and of the set that it is confused with;
generated pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = {"train": 6, "val": 2, "test": 3}
SIZE = 32  # 256 in the real arrays


def heads(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """MR signal and HU (count, rows, columns) float64; a bright spot in the CT at the upper right
    of the picture."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, SIZE), np.linspace(-1, 1, SIZE), indexing="ij")
    radius = np.hypot(x / 0.7, y / 0.85)
    hu = np.where(radius < 1, np.where(radius > 0.9, 900.0, 35.0), -1000.0)
    hu[(x > 0.2) & (x < 0.4) & (y < -0.2) & (y > -0.5)] = 500
    mr = np.where(radius < 0.9, 300.0, 5.0)
    noise = rng.normal(0, 4, (2, count, SIZE, SIZE))
    return np.abs(mr + noise[0]), hu + noise[1]


def build(root: Path, *, scale: str = "hu", empty_targets: bool = False) -> Path:
    """The tree; ``scale`` is ``"hu"`` or ``"unit"`` (CT brought to 0..1 by the publisher)."""
    folder = root / "data(processed)"
    folder.mkdir(parents=True)
    for seed, (split, count) in enumerate(COUNTS.items()):
        mr, ct = heads(count, seed)
        if scale == "unit":
            ct = (ct - ct.min()) / np.ptp(ct)
        if empty_targets:  # nearly: here and there a value
            ct = np.zeros_like(ct)
            ct[:, 4, 4:7] = 1.0
        np.save(folder / f"{split}_input.npy", mr)
        np.save(folder / f"{split}_output.npy", ct)
    (root / "Dicom").mkdir()
    return root


def build_look_alike(root: Path) -> Path:
    """``Dataset`` with the folders Healthy and Tumor of CT and MR pictures, two of which are the
    same."""
    rng = np.random.default_rng(0)
    for kind, short in (("CT scan", "ct"), ("MRI", "mri")):
        for state in ("Healthy", "Tumor"):
            folder = (
                root
                / "Dataset"
                / f"Brain Tumor {kind} images".replace("CT scan images", "CT scan Images")
                / state
            )
            folder.mkdir(parents=True)
            for k in range(1, 4):
                picture = io.BytesIO()
                Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(
                    picture, format="JPEG"
                )
                (folder / f"{short}_{state.lower()} ({k}).jpg").write_bytes(picture.getvalue())
            first = (folder / f"{short}_{state.lower()} (1).jpg").read_bytes()
            if state == "Tumor":
                (folder / f"{short}_tumor (4).jpg").write_bytes(first)
    return root / "Dataset"
