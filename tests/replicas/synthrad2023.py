"""A small SynthRAD2023 Task 1: the names, formats, headers and faults of the real one, generated
pixels."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (
    6,
    40,
    56,
)  # slices from head to feet, rows from front to back, columns from the patient's right to left
EMPTY_SLICES = 1  # at the top, outside the mask


def pelvis() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """MR signal, HU and mask (S, A, R); bone at the patient's left front; a table behind the back,
    outside the mask."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(np.linspace(-1, 1, SHAPE[1]), np.linspace(-1, 1, SHAPE[2]), indexing="ij")
    body = np.broadcast_to((x / 0.8) ** 2 + (y / 0.7) ** 2 < 1, SHAPE).copy()
    outline = np.broadcast_to((x / 0.88) ** 2 + (y / 0.8) ** 2 < 1, SHAPE).copy()
    bone = np.broadcast_to((x > 0.2) & (x < 0.5) & (y > -0.5) & (y < -0.2), SHAPE)
    hu = np.where(body, 40.0, -1000.0) + rng.normal(0, 5, SHAPE)
    hu[bone] = 580
    hu[:, 37:39] = 300  # the table
    mr = np.abs(np.where(body, 400.0, 4.0) + rng.normal(0, 8, SHAPE))
    mr[bone] = 150
    mr[:, 37:39] = 900  # nothing there in truth: shows that the outside is not used
    for array in (body, outline):
        array[:EMPTY_SLICES] = False
    return mr, hu, outline


def save(
    path: Path,
    volume: np.ndarray,
    spacing: tuple[float, float, float] = (2.5, 1.0, 1.0),
    axes: str = "LPS",
) -> None:
    """(S, A, R) as int16 NIfTI with the axes that SimpleITK writes, at a place in space that
    depends on nothing."""
    affine = np.diag([-spacing[2], -spacing[1], -spacing[0], 1.0])
    affine[:3, 3] = (30, 20, 100)
    image = nib.Nifti1Image(volume.transpose(2, 1, 0).astype(np.int16), affine)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("LPI"), nib.orientations.axcodes2ornt(tuple(axes))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turn), path)


def case(
    folder: Path,
    *,
    without: tuple[str, ...] = (),
    spacing: tuple[float, float, float] = (2.5, 1.0, 1.0),
) -> Path:
    """One case folder."""
    for name, volume in zip(("mr", "ct", "mask"), pelvis(), strict=True):
        if name not in without:
            save(folder / f"{name}.nii.gz", volume, spacing)
    return folder


def build(root: Path) -> Path:
    """``Task1`` with five pelves of centres A and C, a head, and the overview folder."""
    for name in ("1PA001", "1PA004", "1PA005", "1PC000"):
        case(root / "Task1" / "pelvis" / name)
    case(root / "Task1" / "pelvis" / "1PC004", without=("ct",))  # as the validation cases come
    case(root / "Task1" / "brain" / "1BA001", spacing=(1.0, 1.0, 1.0))
    overview = root / "Task1" / "pelvis" / "overview"
    overview.mkdir()
    (overview / "1PA001_train.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return root / "Task1"
