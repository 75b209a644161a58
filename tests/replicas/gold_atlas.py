"""A small Gold Atlas: loose DICOM files of four image series and a structure set a patient,
generated pixels.

All series show one patient in the same coordinates, on grids of their own, so that the registration
can be checked.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
from pydicom.uid import generate_uid
from test_files import dicom_slice

ROWS, COLUMNS = 40, 48
SERIES = ("T1w", "T2w", "CT", "CT deformed")
STEP = {"T1w": 6.0, "T2w": 5.0, "CT": 5.0, "CT deformed": 5.0}
COUNT = {"T1w": 5, "T2w": 6, "CT": 6, "CT deformed": 6}  # 70, 84, 84 in the first real subject
PIXEL = {"T1w": 3.5, "T2w": 4.0, "CT": 4.0, "CT deformed": 4.0}
PADDED_COLUMNS = 6  # of the deformed CT, at the picture's left


def patient(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Values (slices from the feet up, rows, columns) and positions (slices, 3) in patient
    coordinates, LPS mm.

    A bone lies at the patient's left front, x 20..50 and y -50..-20; the uppermost 8 mm hold a
    second one at the right.
    """
    pixel, count = PIXEL[kind], COUNT[kind]
    left, back = -pixel * (COLUMNS - 1) / 2, -pixel * (ROWS - 1) / 2
    heights = np.arange(count) * STEP[kind]
    z, y, x = np.meshgrid(
        heights, back + pixel * np.arange(ROWS), left + pixel * np.arange(COLUMNS), indexing="ij"
    )
    shift = 30.0 if kind == "CT" else 0.0  # the plain CT lies elsewhere
    body = ((x - shift) / 75) ** 2 + (y / 55) ** 2 < 1
    bone = (x - shift > 20) & (x - shift < 50) & (y > -40) & (y < -20)
    bone |= (z > 17) & (x < -20) & (x > -40) & (np.abs(y) < 10)
    noise = np.random.default_rng(0).normal(0, 3, body.shape)
    if kind.startswith("CT"):
        values = np.where(bone, 580, np.where(body, 40, -1000)) + noise
        if kind == "CT deformed":
            values[..., :PADDED_COLUMNS] = -1
    else:
        values = np.abs(np.where(bone, 60, np.where(body, 300, 5)) + noise) + 1
        values[np.hypot(x, y) > 82] = 0  # circular field of view
    return np.round(values), np.stack([np.full(count, left), np.full(count, back), heights], axis=1)


def write_series(folder: Path, kind: str, *, skip: tuple[int, ...] = (), **tags: object) -> None:
    """Files whose names and InstanceNumber run against the position; ``skip``: slices that are left
    out."""
    values, positions = patient(kind)
    rng = np.random.default_rng(len(kind))
    ct = kind.startswith("CT")
    given = {
        "Modality": "CT" if ct else "MR",
        "SeriesDescription": kind,
        "FrameOfReferenceUID": f"1.2.{int(kind == 'CT')}",
        "SeriesInstanceUID": f"1.2.3.{SERIES.index(kind)}",
        "PixelSpacing": [PIXEL[kind]] * 2,
        "SliceThickness": STEP[kind],
        "RescaleSlope": 1 if ct else None,
        "RescaleIntercept": -1024 if ct else None,
        "EchoTime": None if ct else 90 if kind == "T2w" else 8,
        **tags,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for number, k in enumerate(rng.permutation(len(values))):
        if k in skip:
            continue
        stored = (values[k] + (1024 if ct else 0)).astype(np.int16)
        ds = dicom_slice(
            stored, ImagePositionPatient=list(positions[k]), InstanceNumber=number, **given
        )
        ds.save_as(folder / f"{generate_uid()}.dcm")


def write_patient(folder: Path) -> Path:
    for kind in SERIES:
        write_series(folder, kind)
    contours = dicom_slice(
        np.zeros((2, 2), np.int16), Modality="RTSTRUCT", SeriesDescription="consensus"
    )
    del contours.PixelData
    contours.save_as(folder / "RS.consensus.dcm")
    return folder


def pack(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in sorted(folder.iterdir()):
            packed.write(path, f"{folder.name}/{path.name}")
    return archive


def build(root: Path) -> Path:
    """Two archives and a folder."""
    tree = root / "GoldAtlas"
    tree.mkdir(parents=True)
    folder = write_patient(root / "unpacked" / "1_01_P")
    pack(folder, tree / "1_01_P.zip")
    pack(folder, tree / "2_03_P.zip")
    write_patient(tree / "3_02_P")
    return tree
