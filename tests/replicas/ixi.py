"""A small IXI: the tree, names, table and known faults of the real one, with a generated head.

T1 is stored sagittally (array axes P, S, R), T2 and PD axially on a grid of their own, all in
scanner coordinates.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from replicas.volumes import save_nifti

T1_SHAPE, T1_STEP = (
    (40, 36, 24),
    (
        5.0,
        5.0,
        6.0,
    ),
)  # S, A, R; the real one is 256 x 256 x 150 at 0.94, 0.94, 1.2 mm
T2_SHAPE, T2_STEP = (
    (42, 40, 40),
    (
        2.9,
        4.5,
        4.5,
    ),
)  # the real one is 130 x 256 x 256 at 1.25, 0.94, 0.94 mm
T2_SHIFT_MM = (0.0, 14.0, -11.0)
"""The head moved between T1 and T2: to the feet, to the back, to the left (S, A, R axes)."""


def head_at(s: np.ndarray, a: np.ndarray, r: np.ndarray, contrast: str) -> np.ndarray:
    """Signal at places in mm, axes to the feet, the back and the left; a bright block at the left
    front."""
    scalp, brain, deep, fluid, block = {
        "T1": (650, 500, 580, 120, 1100),
        "T2": (250, 450, 300, 600, 1000),
        "PD": (300, 600, 520, 620, 1000),
    }[contrast]
    value = np.zeros(np.broadcast_shapes(s.shape, a.shape, r.shape))
    for (cs, ca, cr), (hs, ha, hr), level in (
        ((0, 0, 0), (72, 76, 62), scalp),
        ((0, 0, 0), (66, 70, 56), brain),
        ((-8, 10, 8), (48, 54, 44), deep),
        ((-6, -8, -14), (24, 24, 9), fluid),
        ((4, -4, 18), (14, 20, 8), fluid),
        ((0, -42, 26), (60, 13, 13), block),
    ):
        distance = ((s - cs) / hs) ** 2 + ((a - ca) / ha) ** 2 + ((r - cr) / hr) ** 2
        soft = 1 / (1 + np.exp((np.sqrt(distance) - 1) * 25))
        value = value * (1 - soft) + level * soft
    return value


def _save(
    path: Path,
    contrast: str,
    shape: tuple[int, int, int],
    step: tuple[float, float, float],
    shift: tuple[float, float, float],
    axes: str,
) -> None:
    places = [(np.arange(n) - (n - 1) / 2) * d for n, d in zip(shape, step, strict=True)]
    s, a, r = np.meshgrid(*(p - x for p, x in zip(places, shift, strict=True)), indexing="ij")
    noise = 8 * np.random.default_rng(0).standard_normal(shape)
    save_nifti(path, np.maximum(head_at(s, a, r, contrast) + noise, 0), axes, step, centred=True)


def write_person(
    root: Path,
    name: str,
    contrasts: str = "T1 T2 PD",
    shift: tuple[float, float, float] = T2_SHIFT_MM,
) -> None:
    for c in contrasts.split():
        path = root / f"IXI-{c}" / f"{name}-{c}.nii.gz"
        if c == "T1":
            _save(path, c, T1_SHAPE, T1_STEP, (0, 0, 0), "PSR")
        else:
            _save(path, c, T2_SHAPE, T2_STEP, shift, "LPS")


def write_ixi(root: Path) -> Path:
    """Three complete people, IXI014 with its thick T2, IXI116 without T2, IXI580 without T1, and
    the table."""
    for name in ("IXI002-Guys-0828", "IXI012-HH-1211", "IXI035-IOP-0873"):
        write_person(root, name)
    write_person(root, "IXI014-HH-1236", "T1 PD")
    _save(
        root / "IXI-T2" / "IXI014-HH-1236-T2.nii.gz",
        "T2",
        (28, 40, 40),
        (5.0, 4.5, 4.5),
        (0, 0, 0),
        "LPS",
    )
    write_person(root, "IXI116-Guys-0740", "T1")
    write_person(root, "IXI580-IOP-1157", "T2 PD")
    (root / "IXI.csv").write_text(
        'IXI_ID,"SEX_ID (1=m,'
        ' 2=f)",HEIGHT,WEIGHT,ETHNIC_ID,MARITAL_ID,OCCUPATION_ID,QUALIFICATION_ID,DOB,'
        "DATE_AVAILABLE,STUDY_DATE,AGE\n"
        "2,2,164,58,1,4,1,5,1970-01-28,1,2005-11-18,35.80\n"
        "12,1,175,70,1,2,1,5,1966-08-20,1,2005-06-01,38.78\n"
        "12,2,175,70,1,2,1,5,1966-08-20,1,2005-06-01,38.78\n"  # an id twice, with another sex
        "35,1,,,,,,,,0,,\n"  # no age
    )
    return root
