"""A small SLIVER07 in either of its two trees: real names and MetaImage headers, a generated
abdomen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

SHAPE = (12, 40, 40)  # S, A, R; the real ones are 64 to 394 x 512 x 512
SPACING = (5.0, 9.0, 9.0)
LIVER = slice(2, 8)  # slices from the head


def abdomen(padding: float = -2048) -> tuple[np.ndarray, np.ndarray]:
    """HU and segmentation (S, A, R): the liver on the patient's right, a bright spine, padded
    corners."""
    _, a, r = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    body = (a / 0.7) ** 2 + (r / 0.9) ** 2 < 1
    liver = (((a + 0.1) / 0.35) ** 2 + ((r + 0.4) / 0.35) ** 2) < 1
    liver &= np.isin(np.arange(SHAPE[0]), range(LIVER.start, LIVER.stop))[:, None, None]
    hu = np.where(body, 40.0, -1000.0)
    hu[liver] = 110
    hu[np.hypot(a - 0.45, r) < 0.15] = 500  # the spine lies at the back
    hu[np.hypot(a, r) > 1.05] = padding
    return hu, liver


def save(path: Path, sar: np.ndarray, upside_down: bool = False, dtype: type = np.int16) -> Path:
    """Write .mhd and .raw; stored from feet to head, or ``upside_down`` with its direction saying
    so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = sar if upside_down else sar[::-1]
    image = sitk.GetImageFromArray(np.ascontiguousarray(stored.astype(dtype)))
    image.SetSpacing(SPACING[::-1])
    if upside_down:
        image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
        image.SetOrigin(
            (0, 0, (len(sar) - 1) * SPACING[0])
        )  # the same place, counted from the head
    sitk.WriteImage(image, str(path))
    return path


def write_sliver07(root: Path, tree: str = "B") -> Path:
    """Three training scans (the second upside down, its segmentation not), two test scans of the
    same numbers."""
    hu, liver = abdomen()
    for n in (1, 2, 3):
        scans, labels = (
            ("training-part1",) * 2 if tree == "A" else ("training-scans", "training-labels")
        )
        save(root / scans / f"liver-orig{n:03d}.mhd", hu, upside_down=n == 2)
        save(root / labels / f"liver-seg{n:03d}.mhd", liver, dtype=np.uint8)
    for n in (1, 2):
        save(root / ("test" if tree == "A" else "test-scans") / f"liver-orig{n:03d}.mhd", hu)
    return root
