"""Files of one study that do not lie on one grid by their headers: refused, whatever their
shape."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from replicas import acdc, brats2020, ixi, sliver07, synthrad2023
from replicas.volumes import head, save_nifti

from medm2g_core.data.sources.acdc import ACDC
from medm2g_core.data.sources.base import Source, SourceDataset
from medm2g_core.data.sources.brats2020 import BraTS2020
from medm2g_core.data.sources.ixi import IXI
from medm2g_core.data.sources.sliver07 import SLIVER07
from medm2g_core.data.sources.synthrad2023 import SynthRAD2023

CASE = "BraTS20_Training_001"


def move(path: Path, affine: np.ndarray) -> None:
    """Change where a NIfTI file says that it lies, not its voxels."""
    image = nib.Nifti1Image.from_bytes(nib.load(path).to_bytes())
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine, image.header), path)


def forget(path: Path) -> None:
    """Set qform_code and sform_code to 0; nibabel itself would not write that."""
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[252:256] = bytes(4)
    path.write_bytes(gzip.compress(bytes(data)))


def shifted(path: Path, mm: tuple[float, float, float] = (0, 0, 0), scale: float = 1) -> np.ndarray:
    affine = nib.load(path).affine.copy()
    affine[:3, :3] *= scale
    affine[:3, 3] += mm
    return affine


def why(source: Source, root: Path, size: int = 24) -> str:
    """Nothing of the tree can be read; the reasons in one text."""
    data = SourceDataset(source, root, size=size)
    assert not list(data.studies())
    return " | ".join(s.why for s in data.skipped)


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    return brats2020.case(tmp_path / CASE)


def test_a_contrast_that_lies_elsewhere_is_refused(brats: Path) -> None:
    path = brats / f"{CASE}_t2.nii.gz"
    move(path, shifted(path, (20, 0, 0)))
    assert f"by its header it lies up to 20.0 mm beside {CASE}_t1.nii.gz" in why(
        BraTS2020(), brats.parent
    )


def test_a_contrast_with_other_voxels_is_refused(brats: Path) -> None:
    path = brats / f"{CASE}_t2.nii.gz"
    move(path, shifted(path, scale=1.25))
    assert "mm beside" in why(BraTS2020(), brats.parent)


@pytest.mark.parametrize("which", ["t2", "t1 t1ce t2 flair seg"], ids=["one", "all"])
@pytest.mark.parametrize("lost", ["identity", "no codes"])
def test_headers_without_an_orientation_are_refused(brats: Path, which: str, lost: str) -> None:
    for name in which.split():
        path = brats / f"{CASE}_{name}.nii.gz"
        if lost == "identity":
            move(path, np.eye(4))
        else:
            forget(path)
    reason = why(BraTS2020(), brats.parent)
    if len(which) > 2:
        assert "left and right are not known" in reason
    else:
        assert "mm beside" in reason or "left and right are not known" in reason


def test_a_segmentation_that_lies_elsewhere_is_refused(brats: Path) -> None:
    path = brats / f"{CASE}_seg.nii.gz"
    move(path, shifted(path, (0, 0, 30)))
    assert f"{CASE}_seg.nii.gz: by its header it lies up to 30.0 mm beside" in why(
        BraTS2020(drop_top=70), brats.parent
    )


def test_what_a_writer_rounds_is_no_other_grid(brats: Path) -> None:
    path = brats / f"{CASE}_t2.nii.gz"
    move(path, shifted(path, (0.3, -0.2, 0.1)))
    assert len(list(SourceDataset(BraTS2020(drop_top=60), brats.parent, size=24).studies())) == 15


def test_a_liver_segmentation_60_mm_off_is_refused(tmp_path: Path) -> None:
    hu, liver = sliver07.abdomen()
    sliver07.save(tmp_path / "liver-orig001.mhd", hu)
    path = sliver07.save(tmp_path / "liver-seg001.mhd", liver, dtype=np.uint8)
    path.write_text(path.read_text().replace("Offset = 0 0 0", "Offset = 0 60 0"))
    assert "liver-seg001.mhd: by its header it lies up to 60.0 mm beside liver-orig001.mhd" in why(
        SLIVER07(), tmp_path
    )


def test_a_heart_segmentation_with_another_header_is_refused(tmp_path: Path) -> None:
    folder = acdc.write_patient(tmp_path / "patient001", 1, 12, "DCM", sform=None)
    for path in folder.glob("*_gt.nii.gz"):
        move(path, shifted(path, (0, 40, 0)))
    assert "_gt.nii.gz: by its header it lies up to 40.0 mm beside" in why(ACDC(), tmp_path)


def test_an_mr_beside_its_ct_is_refused(tmp_path: Path) -> None:
    folder = synthrad2023.case(tmp_path / "1PA001")
    move(folder / "mr.nii.gz", shifted(folder / "mr.nii.gz", (0, 12, 0)))
    assert "mr.nii.gz: by its header it lies up to 12.0 mm beside mask.nii.gz" in why(
        SynthRAD2023(), tmp_path
    )


def test_a_t2_without_an_orientation_is_not_registered_into_place(tmp_path: Path) -> None:
    for k in range(3):
        ixi.write_person(tmp_path, f"IXI00{k}-Guys-082{k}")
    for path in (tmp_path / "IXI-T2").iterdir():
        forget(path)
    reason = why(IXI(register=False, count=2), tmp_path)
    assert "T2.nii.gz: no orientation in the header, so left and right are not known" in reason


def test_notes_of_the_other_contrasts_are_kept(tmp_path: Path) -> None:
    ixi.write_person(tmp_path, "IXI002-Guys-0828", "T1 PD")
    turn = math.radians(12)
    affine = np.diag([-4.5, -4.5, -2.9, 1.0])
    affine[:3, :3] = [
        [1, 0, 0],
        [0, math.cos(turn), -math.sin(turn)],
        [0, math.sin(turn), math.cos(turn)],
    ] @ affine[:3, :3]
    affine[:3, 3] = -affine[:3, :3] @ (19.5, 19.5, 20.5)
    path = save_nifti(tmp_path / "IXI-T2" / "IXI002-Guys-0828-T2.nii.gz", head((42, 40, 40)))
    move(path, affine)
    data = SourceDataset(IXI(register=False, count=1), tmp_path, size=24)
    assert "mri_t2: acquired 12 degrees oblique: shown along the nearest axes, not resampled" in (
        data[0].notes
    )
