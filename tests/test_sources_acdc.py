"""ACDC from a replica of its tree, with the faults of the real files."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from replicas import acdc
from replicas.checks import named, well_formed
from replicas.volumes import save_nifti, truncate

from medm2g_core.data.sources.acdc import ACDC
from medm2g_core.data.sources.base import SourceDataset, SourceError


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return acdc.write_acdc(tmp_path_factory.mktemp("acdc"))


def test_acdc_gives_both_frames_of_every_patient_on_the_official_split(hearts: Path) -> None:
    data = SourceDataset(ACDC(), hearts, size=96)
    assert data.subjects() == {
        "train": ("patient001", "patient002", "patient003"),
        "test": ("patient101",),
    }
    assert {e.id.rsplit("_", 1)[0] for e in data.entries} == {
        f"patient{n}_{p}" for n in ("001", "002", "003", "101") for p in ("ED", "ES")
    }
    assert len(data) == 4 * 2 * acdc.SHAPE[0]
    well_formed(data[2], 96)
    assert data[2].streams == ("mri_t2",) and data[2].region == "heart"
    assert any(
        "bSSFP" in n for n in data[2].notes
    )  # no stream is right for the contrast, and every study says so


def test_acdc_frames_come_from_info_cfg_zero_padded(hearts: Path, tmp_path: Path) -> None:
    files = {e.id: e.files["mri_t2"].name for e in ACDC().scan(hearts).entries}
    assert files["patient002_ED"] == "patient002_frame04.nii.gz"
    assert files["patient001_ES"] == "patient001_frame12.nii.gz"
    folder = acdc.write_patient(tmp_path / "patient007", 1, 9, "HCM")
    (folder / "Info.cfg").write_text("ED: 1\nES: 10\nGroup: HCM\n")
    found = ACDC().scan(tmp_path)
    assert [e.id for e in found.entries] == ["patient007_ED"]
    assert "no patient007_frame10.nii.gz" in found.skips[0].why
    (folder / "Info.cfg").unlink()
    with pytest.raises(SourceError, match=r"1 x no Info\.cfg"):
        SourceDataset(ACDC(), tmp_path)


def test_acdc_4d_cine_is_never_read(hearts: Path) -> None:
    assert all("_4d" not in p.name for e in ACDC().scan(hearts).entries for p in e.files.values())


def test_acdc_zooms_win_over_a_sform_that_claims_1_mm(hearts: Path, tmp_path: Path) -> None:
    acdc.write_patient(tmp_path / "patient001", 1, 12, "DCM", sform=None)
    wrong, right = (
        named(SourceDataset(ACDC(), root, size=96), "patient001_ED_s002")
        for root in (hearts, tmp_path)
    )
    assert torch.equal(wrong.images["mri_t2"], right.images["mri_t2"])
    assert any("header's spacing is used" in n for n in wrong.notes)
    cavity = (wrong.images["mri_t2"][0, 34:62, 34:62] > 0.6).sum().item() * 2.0**2
    assert cavity == pytest.approx(
        np.pi * 25**2, rel=0.2
    )  # the radius is 25 mm, the pixels are 2 mm


def test_acdc_is_cut_out_about_the_left_ventricle_with_the_right_one_on_the_left(
    hearts: Path,
) -> None:
    study = named(SourceDataset(ACDC(), hearts, size=192), "patient001_ED_s002")
    assert study.spacing_mm == (1.0, 1.0)  # 192 mm in 192 pixels
    image = study.images["mri_t2"][0]
    assert (
        image[92:100, 92:100].mean() > 0.7 and image[96, 92 - 45] > 0.7
    )  # left ventricle, right ventricle
    assert image[96, 96 + 45] < 0  # and no blood on the other side
    assert not any("mirrored" in n for n in study.notes)


def test_acdc_without_segmentation_is_cut_out_about_the_middle(hearts: Path) -> None:
    study = named(SourceDataset(ACDC(), hearts, size=192), "patient101_ED_s002")
    assert any("no segmented left ventricle" in n for n in study.notes)
    assert study.images["mri_t2"][0, 96 - 12, 96 + 18] > 0.7  # the ventricle lies off the middle


def test_acdc_mirrored_study_is_marked(tmp_path: Path) -> None:
    acdc.write_patient(tmp_path / "patient001", 1, 12, "DCM", sform=(1, -1, 1))
    assert any("probably mirrored" in n for n in SourceDataset(ACDC(), tmp_path, size=96)[2].notes)


def test_acdc_groups_are_labels_and_an_unknown_group_is_nan(hearts: Path) -> None:
    labels = {e.subject: e.labels for e in ACDC().scan(hearts).entries}
    assert (
        labels["patient001"]["dilated_cardiomyopathy"] == 1
        and sum(labels["patient001"].values()) == 1
    )
    assert (
        labels["patient002"]["normal"] == 1
        and labels["patient101"]["abnormal_right_ventricle"] == 1
    )
    assert all(math.isnan(v) for v in labels["patient003"].values())


def test_acdc_corrupt_frame_is_counted_and_the_rest_loads(hearts: Path, tmp_path: Path) -> None:
    root = shutil.copytree(hearts, tmp_path / "copy")
    training = root / "database" / "training"
    truncate(training / "patient001" / "patient001_frame01.nii.gz")
    save_nifti(training / "patient002" / "patient002_frame04_gt.nii.gz", np.ones((5, 9, 9)))
    data = SourceDataset(ACDC(), root, size=24)
    read = {s.id.rsplit("_", 1)[0] for s in data.studies()}
    assert len(read) == 6 and "patient001_ED" not in read and "patient002_ED" not in read
    assert "left out, unreadable file: 10" in data.report()


def test_acdc_folder_decides_on_the_split_and_the_number_only_without_one(tmp_path: Path) -> None:
    acdc.write_patient(tmp_path / "a" / "testing" / "patient051", 1, 12, "DCM")
    acdc.write_patient(tmp_path / "a" / "training" / "patient120", 1, 12, "DCM")
    acdc.write_patient(tmp_path / "a" / "latest" / "patient002", 1, 12, "DCM")
    acdc.write_patient(tmp_path / "a" / "others" / "patient130", 1, 12, "DCM")
    assert SourceDataset(ACDC(), tmp_path / "a").subjects() == {
        "test": ("patient051", "patient130"),
        "train": ("patient002", "patient120"),
    }


def test_acdc_patient_twice_is_counted_once_and_in_both_parts_refused(
    hearts: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(hearts, tmp_path / "copy")
    shutil.copytree(root / "database" / "training", root / "again" / "training")
    data = SourceDataset(ACDC(), root)
    assert len(data) == 4 * 2 * acdc.SHAPE[0] and data.found.counts()["second copy"] == 3
    shutil.copytree(
        root / "database" / "training" / "patient002", root / "database" / "testing" / "patient002"
    )
    with pytest.raises(SourceError, match="subject patient002 is in train and in test"):
        SourceDataset(ACDC(), root)
