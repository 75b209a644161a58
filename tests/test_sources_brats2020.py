"""BraTS2020 from a replica of its tree, with the faults of the real files."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from replicas import brats2020
from replicas.checks import marker, no_subject_twice, well_formed
from replicas.volumes import head, save_nifti, truncate

from medm2g_core.data.sources.base import SourceDataset, SourceError
from medm2g_core.data.sources.brats2020 import BraTS2020, parse_survival
from medm2g_core.data.volumes import FileError

# BraTS2020


@pytest.fixture(scope="module")
def brats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return brats2020.write_brats2020(tmp_path_factory.mktemp("brats"))


def case_slices(data: SourceDataset, case: str) -> list[int]:
    return [i for i, e in enumerate(data.entries) if e.id.startswith(case)]


def test_brats_gives_the_kept_slices_with_three_contrasts_and_t1ce_aside(brats: Path) -> None:
    data = SourceDataset(BraTS2020(), brats, size=48)
    mine = case_slices(data, "BraTS20_Training_001")
    assert len(mine) == 155 - 80 - 26
    study = data[mine[10]]
    well_formed(study, 48)
    assert (
        study.streams == ("mri_t1", "mri_t2", "mri_flair")
        and study.region == "brain"
        and study.age == 60
    )
    assert data.entries[mine[0]].extra["t1ce"].name == "BraTS20_Training_001_t1ce.nii.gz"
    assert study.labels["high_grade"] == 1
    assert data[case_slices(data, "BraTS20_Training_002")[0]].labels["high_grade"] == 0
    no_subject_twice(data)


def test_brats_slices_are_shown_radiologically(brats: Path) -> None:
    data = SourceDataset(BraTS2020(), brats, size=48)
    study = data[case_slices(data, "BraTS20_Training_001")[10]]
    assert {marker(x) for x in study.images.values()} == {"upper right"}
    assert study.spacing_mm == pytest.approx((5, 5)) and study.orientation == "radiological axial"


def test_brats_drops_the_lowest_and_the_top_slices_of_the_head(brats: Path) -> None:
    data = SourceDataset(BraTS2020(), brats)
    indices = [data.entries[i].index for i in case_slices(data, "BraTS20_Training_001")]
    assert indices == list(range(26, 75))  # counted from the head, as everywhere in this project
    other = SourceDataset(BraTS2020(drop_lowest=100, drop_top=50), brats)
    assert [other.entries[i].index for i in case_slices(other, "BraTS20_Training_001")] == list(
        range(50, 55)
    )


def test_brats_clips_at_percentiles_of_the_volume(tmp_path: Path) -> None:
    folder = brats2020.case(tmp_path / "BraTS20_Training_001", contrasts="t1", seg=None)
    signal = head(brats2020.SHAPE)
    signal[0, 0, 0] = 30000  # one hot voxel must not darken the brain
    save_nifti(folder / "BraTS20_Training_001_t1.nii.gz", signal, spacing=brats2020.SPACING)
    image = SourceDataset(BraTS2020(), tmp_path, size=24)[20].images["mri_t1"]
    low, high = np.percentile(signal, (0.1, 99.9))
    assert image[0, 15:19, 5:9].mean() == pytest.approx(
        (400 - low) / (high - low) * 2 - 1, abs=0.15
    )  # brain
    assert image[0, 15:19, 5:9].mean() > -0.2


def test_brats_finds_the_segmentation_of_case_355(brats: Path) -> None:
    data = SourceDataset(BraTS2020(), brats)
    i = case_slices(data, "BraTS20_Training_355")[0]
    assert data.entries[i].extra["seg"].name == "W39_1998.09.19_Segm.nii.gz"
    assert data[i].labels["tumour"] == 0


def test_brats_labels_say_per_slice_where_the_tumour_is(brats: Path) -> None:
    data = SourceDataset(BraTS2020(), brats, size=24)
    labels = {
        data.entries[i].index: data[i].labels for i in case_slices(data, "BraTS20_Training_001")
    }
    assert {k for k, v in labels.items() if v["tumour"]} == set(brats2020.TUMOUR_SLICES)
    assert {k for k, v in labels.items() if v["enhancing_tumour"]} == set(range(40, 45))
    assert not any(v["necrotic_core"] for v in labels.values())


def test_brats_validation_has_no_segmentation_so_labels_are_unknown(brats: Path) -> None:
    data = SourceDataset(BraTS2020(), brats, size=24)
    study = data[case_slices(data, "BraTS20_Validation_001")[0]]
    assert study.split == "val" and study.streams == ("mri_t1", "mri_t2", "mri_flair")
    assert all(math.isnan(v) for v in study.labels.values()) and "tumour" in study.labels


@pytest.mark.parametrize("contrasts", ["t1n t1c t2w t2f"])
def test_brats_reads_the_names_and_labels_of_2023_and_keeps_time_points_of_one_person_together(
    tmp_path: Path, contrasts: str
) -> None:
    for case in (
        "BraTS-GLI-00005-000",
        "BraTS-GLI-00005-001",
        "BraTS-GLI-00006-000",
        "BraTS-GLI-00007-000",
    ):
        brats2020.case(tmp_path / case, contrasts, seg="{case}-seg", between="-")
    data = SourceDataset(BraTS2020(), tmp_path, size=24)
    first = data[case_slices(data, "BraTS-GLI-00005-000")[14]]  # slice 40
    assert first.streams == ("mri_t1", "mri_t2", "mri_flair") and first.subject == "BraTS-GLI-00005"
    assert first.labels["enhancing_tumour"] == 1
    no_subject_twice(data)
    assert "names of 2023" in data.report()


def test_brats_refuses_a_segmentation_with_both_label_schemes(tmp_path: Path) -> None:
    folder = brats2020.case(tmp_path / "BraTS20_Training_001")
    seg = brats2020.segmentation(4)
    for label, words in ((3, "labels 3 and 4"), (7, "labels 0, 2, 4, 7")):
        seg[60, 2, 2] = label
        save_nifti(
            folder / "BraTS20_Training_001_seg.nii.gz",
            seg,
            spacing=brats2020.SPACING,
            dtype=np.uint8,
        )
        with pytest.raises(FileError, match=words):
            SourceDataset(BraTS2020(drop_top=20 + label), tmp_path)[
                0
            ]  # a fresh case, not the one kept in memory


def test_brats_takes_packed_and_plain_mirrors_whatever_the_name_says(
    brats: Path, tmp_path: Path
) -> None:
    data = SourceDataset(BraTS2020(), brats, size=24)
    packed, plain = (data[case_slices(data, f"BraTS20_Training_00{n}")[3]] for n in (1, 2))
    assert torch.equal(packed.images["mri_t2"], plain.images["mri_t2"])
    case = brats2020.case(tmp_path / "BraTS20_Training_001")
    for path in list(case.iterdir()):
        path.rename(case / path.name.removesuffix(".gz"))  # gzip bytes under .nii
    assert torch.equal(
        SourceDataset(BraTS2020(), tmp_path, size=24)[3].images["mri_t2"], packed.images["mri_t2"]
    )


def test_survival_days_of_the_living_are_read() -> None:
    assert parse_survival("289") == (289, 0)
    assert parse_survival("ALIVE (361 days later)") == (361, 1)
    assert all(math.isnan(v) for v in parse_survival("NA"))


def test_brats_survival_and_grade_come_from_the_tables_and_are_unknown_without(brats: Path) -> None:
    entries = {e.id: e for e in BraTS2020().scan(brats).entries}
    two, three = entries["BraTS20_Training_002"], entries["BraTS20_Training_003"]
    assert (two.extra["survival_days"], two.extra["alive"], two.age) == (361, 1, 52)
    assert (
        math.isnan(three.extra["alive"])
        and three.age is None
        and math.isnan(three.labels["high_grade"])
    )


def test_brats_lost_contrast_is_a_missing_stream(brats: Path) -> None:
    data = SourceDataset(BraTS2020(), brats, size=24)
    assert data[case_slices(data, "BraTS20_Training_003")[0]].streams == ("mri_t1", "mri_t2")


def test_brats_h5_mirror_is_recognised_and_refused_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "volume_1_slice_0.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(
        SourceError, match=r"volume_1_slice_0\.h5 belongs to the HDF5 mirror.*get the NIfTI files"
    ):
        SourceDataset(BraTS2020(), tmp_path)


def test_brats_corrupt_case_is_counted_and_the_rest_loads(brats: Path, tmp_path: Path) -> None:
    root = shutil.copytree(brats, tmp_path / "copy")
    broken = root / "MICCAI_BraTS2020_TrainingData" / "BraTS20_Training_001"
    truncate(broken / "BraTS20_Training_001_t2.nii.gz")
    (
        root / "MICCAI_BraTS2020_TrainingData/BraTS20_Training_002/BraTS20_Training_002_flair.nii"
    ).write_bytes(b"")
    data = SourceDataset(BraTS2020(drop_lowest=127), root, size=24)
    read = list(data.studies())
    assert {s.subject for s in read} == {
        "BraTS20_Training_003",
        "BraTS20_Training_355",
        "BraTS20_Validation_001",
    }
    kinds = [s.kind for s in data.skipped]
    assert kinds.count("unreadable file") == 2 and kinds.count("unreadable volume") == 1
    assert "left out, unreadable file: 2" in data.report()


def test_brats_blank_contrast_is_an_error_and_no_black_picture(tmp_path: Path) -> None:
    folder = brats2020.case(tmp_path / "BraTS20_Training_001", contrasts="t1", seg=None)
    save_nifti(
        folder / "BraTS20_Training_001_t2.nii.gz",
        np.zeros(brats2020.SHAPE),
        spacing=brats2020.SPACING,
    )
    with pytest.raises(FileError, match="blank"):
        SourceDataset(BraTS2020(), tmp_path)[0]


@pytest.mark.parametrize("slope", [0.0, float("nan")])
def test_a_rescale_slope_of_0_or_nan_means_none(tmp_path: Path, slope: float) -> None:
    folder = brats2020.case(tmp_path / "BraTS20_Training_001", contrasts="t1", seg=None)
    plain = SourceDataset(BraTS2020(), tmp_path, size=24)[5].images["mri_t1"]
    other = tmp_path / "other" / folder.name
    save_nifti(
        other / "BraTS20_Training_001_t1.nii.gz",
        head(brats2020.SHAPE),
        spacing=brats2020.SPACING,
        scl_slope=slope,
        scl_inter=slope,
    )
    assert torch.equal(SourceDataset(BraTS2020(), other.parent, size=24)[5].images["mri_t1"], plain)


def test_a_fourth_axis_is_dropped_only_when_it_has_one_entry(tmp_path: Path) -> None:
    folder = brats2020.case(tmp_path / "BraTS20_Training_001", contrasts="t1", seg=None)
    plain = SourceDataset(BraTS2020(), tmp_path, size=24)[5].images["mri_t1"]
    one, two = tmp_path / "one", tmp_path / "two"
    dims = [4, 24, 24, 155, 1, 1, 1, 1]
    save_nifti(
        one / folder.name / "a_t1.nii", head(brats2020.SHAPE), spacing=brats2020.SPACING, dim=dims
    )
    dims[4] = 2
    save_nifti(
        two / folder.name / "a_t1.nii", head((310, 24, 24)), spacing=brats2020.SPACING, dim=dims
    )
    assert torch.equal(SourceDataset(BraTS2020(), one, size=24)[5].images["mri_t1"], plain)
    data = SourceDataset(BraTS2020(), two)
    assert len(data) == 0 and "needed one 3-D volume" in data.skipped[0].why


def test_brats_says_what_is_surprising(brats: Path) -> None:
    report = SourceDataset(BraTS2020(), brats).report()
    assert "surprising  training cases: found 4, published 369" in report
    assert "surprising  validation cases: found 1, published 125" in report


# Mirrors of the download


def test_brats_cases_in_one_flat_folder_stay_apart(tmp_path: Path) -> None:
    cases = [f"BraTS20_Training_00{k}" for k in (1, 2, 3)]
    for case in cases:
        folder = brats2020.case(tmp_path / "made" / case)
        for path in folder.iterdir():
            (tmp_path / "flat").mkdir(exist_ok=True)
            path.rename(tmp_path / "flat" / path.name)
    found = BraTS2020().scan(tmp_path / "flat")
    assert [e.id for e in found.entries] == cases and not found.skips
    for entry in found.entries:
        assert set(entry.files) == {"mri_t1", "mri_t2", "mri_flair"}
        assert {p.name[:20] for p in (*entry.files.values(), entry.extra["seg"])} == {entry.id}


def test_brats_contrasts_in_folders_of_their_own_are_joined_by_case(tmp_path: Path) -> None:
    for case in ("BraTS20_Training_001", "BraTS20_Training_002"):
        for path in brats2020.case(tmp_path / "made" / case).iterdir():
            place = tmp_path / "mirror" / path.name[21:].split(".")[0]
            place.mkdir(parents=True, exist_ok=True)
            path.rename(place / path.name)
    found = BraTS2020().scan(tmp_path / "mirror")
    assert [len(e.files) for e in found.entries] == [3, 3]
    assert [e.extra["seg"].name[:20] for e in found.entries] == [e.id for e in found.entries]


def test_brats_case_that_is_there_twice_is_one_and_counted(brats: Path, tmp_path: Path) -> None:
    root = shutil.copytree(brats, tmp_path / "root")
    shutil.copytree(root / "MICCAI_BraTS2020_TrainingData", root / "again")
    data = SourceDataset(BraTS2020(), root)
    assert len(data) == 5 * 49 and data.found.counts()["second copy"] == 4 * 4 - 1
    no_subject_twice(data)


def test_brats_prediction_is_never_taken_for_the_segmentation(tmp_path: Path) -> None:
    folder = brats2020.case(tmp_path / "BraTS20_Training_001")
    for name in ("A_pred_seg", "BraTS20_Training_001_seg_auto", "BraTS20_Training_001_output_t1"):
        shutil.copy(folder / "BraTS20_Training_001_t1.nii.gz", folder / f"{name}.nii.gz")
    (entry,) = BraTS2020().scan(tmp_path).entries
    assert entry.extra["seg"].name == "BraTS20_Training_001_seg.nii.gz"
    assert entry.files["mri_t1"].name == "BraTS20_Training_001_t1.nii.gz"
    (folder / "BraTS20_Training_001_seg.nii.gz").unlink()
    found = BraTS2020().scan(tmp_path)
    assert found.entries[0].extra["seg"] is None and not found.skips
    for name in ("W39_Segm", "W40_Segm"):
        shutil.copy(folder / "BraTS20_Training_001_t1.nii.gz", folder / f"{name}.nii.gz")
    found = BraTS2020().scan(tmp_path)
    assert found.entries[0].extra["seg"] is None
    assert found.counts() == {"segmentation unclear": 1}


@pytest.mark.parametrize(
    ("case", "called"),
    [
        ("Brats18_CBICA_AAB_1", "2018"),
        ("BraTS19_CBICA_AAB_1", "2019"),
        ("BraTS2021_00000", "2021"),
        ("BraTS-GLI-00000-000", "2023 or later"),
        ("BraTS20_Training_001", ""),
    ],
)
def test_brats_says_of_which_year_the_names_are(tmp_path: Path, case: str, called: str) -> None:
    brats2020.case(tmp_path / case)
    report = SourceDataset(BraTS2020(), tmp_path).report()
    assert ("year of the names: found " in report) is bool(called)
    assert f"names of {called}: another year's cases" in report or not called


def test_brats_of_two_years_is_refused_as_the_people_are_the_same(tmp_path: Path) -> None:
    brats2020.case(tmp_path / "a" / "BraTS19_CBICA_AAB_1")
    brats2020.case(tmp_path / "b" / "BraTS20_Training_001")
    with pytest.raises(SourceError, match=r"several years \(BraTS19_CBICA_AAB_1, BraTS20"):
        SourceDataset(BraTS2020(), tmp_path)


def test_brats_grade_of_2019_is_the_folder(tmp_path: Path) -> None:
    for grade, case in (("HGG", "BraTS19_CBICA_AAB_1"), ("LGG", "BraTS19_TCIA10_103_1")):
        brats2020.case(tmp_path / grade / case)
    grades = [e.labels["high_grade"] for e in BraTS2020().scan(tmp_path).entries]
    assert grades == [1, 0]


def test_brats_validation_folder_decides_where_the_names_do_not_say_it(tmp_path: Path) -> None:
    for part, case in (("TrainingData", "00001-000"), ("ValidationData", "00002-000")):
        brats2020.case(tmp_path / f"ASNR-MICCAI-{part}" / f"BraTS-GLI-{case}", "t1n t2w t2f", None)
    splits = {e.id[-9:]: e.split for e in BraTS2020().scan(tmp_path).entries}
    assert splits == {"00001-000": "", "00002-000": "val"}


def test_brats_label_4_of_later_years_is_no_enhancing_tumour(tmp_path: Path) -> None:
    folder = brats2020.case(tmp_path / "BraTS-GLI-00005-000", "t1n t2w t2f", None, between="-")
    save_nifti(
        folder / "BraTS-GLI-00005-000-seg.nii.gz",
        brats2020.segmentation(4),
        spacing=brats2020.SPACING,
        dtype=np.uint8,
    )
    with pytest.raises(FileError, match="label 4, which since 2024 is the cavity"):
        SourceDataset(BraTS2020(), tmp_path)[0]
    brats2020.case(
        tmp_path / "ped" / "BraTS-PED-00005-000", "t1n t2w t2f", "{case}-seg", between="-"
    )
    (entry,) = BraTS2020().scan(tmp_path / "ped").entries
    assert entry.extra["seg"] is None  # labels of another meaning
