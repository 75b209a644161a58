"""A small BraTS2020: the tree, names, tables and known faults of the real one, with generated
voxels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from replicas.volumes import head, save_nifti

SHAPE = (155, 24, 24)
"""As many slices as the real volumes, fewer pixels (240 x 240 at 1 mm there)."""
TUMOUR_SLICES = range(40, 50)  # counted from the head; none in 2..39 of those that are kept
SPACING = (1.0, 10.0, 10.0)


def segmentation(enhancing: int = 4) -> np.ndarray:
    """(S, A, R): oedema around an enhancing core in `TUMOUR_SLICES`, the core in the first five of
    them only."""
    seg = np.zeros(SHAPE)
    seg[TUMOUR_SLICES.start : TUMOUR_SLICES.stop, 6:12, 12:18] = 2
    seg[TUMOUR_SLICES.start : TUMOUR_SLICES.start + 5, 8:10, 14:16] = enhancing
    return seg


def case(
    folder: Path,
    contrasts: str = "t1 t1ce t2 flair",
    seg: str | None = "{case}_seg",
    ending: str = ".nii.gz",
    between: str = "_",
) -> Path:
    """One case folder; ``seg`` is the name of its segmentation without ending."""
    for k, contrast in enumerate(contrasts.split()):
        save_nifti(
            folder / f"{folder.name}{between}{contrast}{ending}",
            head(SHAPE, 1 - k, k),
            spacing=SPACING,
        )
    if seg:
        new = between == "-"
        name = seg.format(case=folder.name)
        save_nifti(
            folder / f"{name}{ending}",
            segmentation(3 if new else 4),
            spacing=SPACING,
            dtype=np.uint8,
        )
    return folder


def write_brats2020(root: Path) -> Path:
    """Four training cases (one is 355 with its odd segmentation, one unpacked) and one validation
    case."""
    training, validation = (
        root / "MICCAI_BraTS2020_TrainingData",
        root / "MICCAI_BraTS2020_ValidationData",
    )
    case(training / "BraTS20_Training_001")
    case(training / "BraTS20_Training_002", ending=".nii")
    case(training / "BraTS20_Training_003", contrasts="t1 t1ce t2")  # FLAIR lost
    case(training / "BraTS20_Training_355", seg="W39_1998.09.19_Segm")
    case(validation / "BraTS20_Validation_001", seg=None)
    (training / "name_mapping.csv").write_text(
        "Grade,BraTS_2017_subject_ID,BraTS_2018_subject_ID,TCGA_TCIA_subject_ID,BraTS_2019_subject_ID,"
        "BraTS_2020_subject_ID\n"
        "HGG,Brats17_CBICA_AAB_1,Brats18_CBICA_AAB_1,NA,BraTS19_CBICA_AAB_1,BraTS20_Training_001\n"
        "LGG,NA,NA,NA,NA,BraTS20_Training_002\n"
    )
    (training / "survival_info.csv").write_text(
        "Brats20ID,Age,Survival_days,Extent_of_Resection\n"
        "BraTS20_Training_001,60.463,289,GTR\n"
        "BraTS20_Training_002,52.26,ALIVE (361 days later),GTR\n"
    )
    return root
