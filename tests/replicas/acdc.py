"""A small ACDC: tree, names, Info.cfg and known faults of the real one, with a generated heart."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from replicas.volumes import save_nifti

SHAPE = (5, 70, 64)  # S, A, R; the real ones are about 10 x 256 x 216
SPACING = (10.0, 3.125, 3.125)
LV_MM = (-12.0, 18.0)
"""The left ventricle: so far in front of the middle and to the patient's left."""


def heart(es: bool) -> tuple[np.ndarray, np.ndarray]:
    """Signal and segmentation (S, A, R): bright blood in a dark wall, the right ventricle on the
    patient's right."""
    _, a, r = np.meshgrid(
        *(((np.arange(n) - (n - 1) / 2) * d) for n, d in zip(SHAPE, SPACING, strict=True)),
        indexing="ij",
    )
    distance = np.hypot(a - LV_MM[0], r - LV_MM[1])
    rv = np.hypot((a - LV_MM[0]) / 1.4, r - LV_MM[1] + 45) < 22
    radius = 18 if es else 25
    gt = np.where(distance < radius, 3, np.where(distance < 35, 2, np.where(rv, 1, 0)))
    body = np.hypot(a / 100, r / 95) < 1
    signal = np.choose(gt, [np.where(body, 120.0, 5.0), 480.0, 90.0, 500.0])
    return signal + np.random.default_rng(0).random(SHAPE), gt


def write_patient(
    folder: Path,
    ed: int,
    es: int,
    group: str | None,
    gt: bool = True,
    sform: tuple[float, float, float] | None = (-1, -1, 1),
) -> Path:
    """One patient. ``sform`` is the diagonal of the header's sform, wrong as in reality; ``None``
    leaves it right."""
    folder.mkdir(parents=True)
    lines = [
        f"ED: {ed}",
        f"ES: {es}",
        *([f"Group: {group}"] if group else []),
        "Height: 184.0",
        "NbFrame: 30",
        "Weight: 95.0",
    ]
    (folder / "Info.cfg").write_text("\n".join(lines) + "\n")
    wrong = (
        {}
        if sform is None
        else {
            f"srow_{axis}": [sform[k] if j == k else 0 for j in range(4)]
            for k, axis in enumerate("xyz")
        }
    )
    for frame, systole in ((ed, False), (es, True)):
        signal, mask = heart(systole)
        save_nifti(
            folder / f"{folder.name}_frame{frame:02d}.nii.gz", signal, spacing=SPACING, **wrong
        )
        if gt:
            save_nifti(
                folder / f"{folder.name}_frame{frame:02d}_gt.nii.gz",
                mask,
                spacing=SPACING,
                dtype=np.uint8,
                **wrong,
            )
    save_nifti(
        folder / f"{folder.name}_4d.nii.gz", np.zeros((10, 4, 4)), dim=[4, 4, 4, 5, 2, 1, 1, 1]
    )
    return folder


def write_acdc(root: Path) -> Path:
    training, testing = root / "database" / "training", root / "database" / "testing"
    write_patient(training / "patient001", 1, 12, "DCM")
    write_patient(training / "patient002", 4, 9, "NOR")
    write_patient(training / "patient003", 1, 15, None)
    write_patient(testing / "patient101", 1, 14, "RV", gt=False)
    return root
