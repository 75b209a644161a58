"""BraTS2020, IXI, ACDC and SLIVER07 from replicas of their trees, with the faults of the real
files."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from replicas import acdc, brats2020, ixi, sliver07
from replicas.volumes import head, save_nifti, truncate

from medm2g_core.data.sources.acdc import ACDC
from medm2g_core.data.sources.base import Source, SourceDataset, SourceError, SourceStudy
from medm2g_core.data.sources.brats2020 import BraTS2020, parse_survival
from medm2g_core.data.sources.ixi import IXI
from medm2g_core.data.sources.sliver07 import SLIVER07
from medm2g_core.data.volumes import FileError
from medm2g_core.streams import check_image, unit_to_hu


def marker(image: torch.Tensor) -> str:
    """Where the brightest pixels of a picture are."""
    rows, columns = torch.nonzero(image[0] >= image.max() - 0.1, as_tuple=True)
    middle = (image.shape[-1] - 1) / 2
    up = "upper" if rows.float().mean() < middle else "lower"
    return f"{up} {'right' if columns.float().mean() > middle else 'left'}"


def well_formed(study: SourceStudy, size: int) -> None:
    for name, image in study.images.items():
        assert check_image(image, name).shape == (1, size, size) and image.dtype == torch.float32
        assert study.units[name] and math.isfinite(study.spacing_mm[0])


def named(data: SourceDataset, id: str) -> SourceStudy:
    return data[next(i for i, e in enumerate(data.entries) if e.id == id)]


def no_subject_twice(data: SourceDataset) -> None:
    groups = list(data.subjects().values())
    assert sum(map(len, groups)) == len(set().union(*map(set, groups)))


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
        save_nifti(folder / "BraTS20_Training_001_seg.nii.gz", seg, dtype=np.uint8)
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


# IXI


@pytest.fixture(scope="module")
def london(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ixi.write_ixi(tmp_path_factory.mktemp("ixi"))


@pytest.fixture(scope="module")
def registered(london: Path) -> SourceStudy:
    return named(SourceDataset(IXI(), london, size=48), "IXI002_s020")


@pytest.fixture(scope="module")
def unregistered(london: Path) -> SourceStudy:
    return named(SourceDataset(IXI(register=False), london, size=48), "IXI002_s020")


def block(image: torch.Tensor) -> np.ndarray:
    """(row, column) of the middle of the bright block."""
    return torch.nonzero(image[0] > 0.85).float().mean(0).numpy()


def test_ixi_keeps_people_with_all_three_contrasts(london: Path) -> None:
    found = IXI().scan(london)
    assert [e.id for e in found.entries] == ["IXI002", "IXI012", "IXI035"]
    assert {s.where: s.why for s in found.skips if s.kind == "incomplete"} == {
        "IXI116": "no mri_t2, mri_pd",
        "IXI580": "no mri_t1",
    }
    no_subject_twice(SourceDataset(IXI(), london))


def test_ixi014_with_thick_t2_slices_is_left_out_by_its_shape_with_the_reason(london: Path) -> None:
    (skip,) = (s for s in IXI().scan(london).skips if s.kind == "another protocol")
    assert (
        skip.where == "IXI014-HH-1236-T2.nii.gz"
        and "40 x 40 x 28 voxels, slices 5.0 mm apart" in skip.why
    )


def test_ixi_sagittal_t1_is_shown_in_axial_radiological_slices(registered: SourceStudy) -> None:
    well_formed(registered, 48)
    assert registered.streams == ("mri_t1", "mri_t2", "mri_pd")
    assert marker(registered.images["mri_t1"]) == "upper right"
    assert (
        registered.orientation == "radiological axial"
        and registered.spacing_mm == pytest.approx((3.75, 3.75))
    )
    front = registered.images["mri_t1"][0, :, 24] > -0.5
    assert front.sum() * 3.75 == pytest.approx(152, abs=12)  # the head is 152 mm from front to back


def test_ixi_t2_and_pd_are_registered_to_t1(
    registered: SourceStudy, unregistered: SourceStudy
) -> None:
    target = block(registered.images["mri_t1"])
    for name in ("mri_t2", "mri_pd"):
        moved, stale = (
            np.linalg.norm(block(s.images[name]) - target) * 3.75
            for s in (registered, unregistered)
        )
        assert moved < 5 < 10 < stale, name  # the replica moved by 18 mm; T1's voxels are 5 mm
    assert any("mri_t2 registered to T1" in n for n in registered.notes)
    assert any("mri_pd brought to T1 by the transform of T2" in n for n in registered.notes)


def test_ixi_without_registration_is_marked_in_the_table_and_in_every_study(
    london: Path, unregistered: SourceStudy
) -> None:
    assert (
        "surprising  registration to T1: found off"
        in SourceDataset(IXI(register=False), london).report()
    )
    assert sum("is not registered to T1" in n for n in unregistered.notes) == 2
    assert "registration to T1" not in SourceDataset(IXI(), london).report()


def test_ixi_pairs_by_place_and_never_by_slice_number(
    unregistered: SourceStudy, tmp_path: Path
) -> None:
    for name in ("IXI002-Guys-0828", "IXI003-Guys-0829", "IXI004-Guys-0830"):
        ixi.write_person(tmp_path, name, shift=(0, 0, 0))
    data = SourceDataset(IXI(register=False), tmp_path, size=48)
    assert {e.index for e in data.entries} == set(
        range(8, 32)
    )  # T1's slices within the 119 mm that T2 covers
    still = data[12]  # slice 20 of T1, 2.5 mm below the middle; number 20 of T2 is another place
    for name in ("mri_t2", "mri_pd"):
        assert np.linalg.norm(block(still.images[name]) - block(still.images["mri_t1"])) * 3.75 < 5


def test_ixi_gives_the_middle_slices(london: Path) -> None:
    few = SourceDataset(IXI(count=10), london)
    assert [e.index for e in few.entries if e.subject == "IXI002"] == list(range(15, 25))


def test_ixi_table_is_joined_by_id_and_contradicting_rows_are_unknown(london: Path) -> None:
    found = IXI().scan(london)
    people = {e.id: e for e in found.entries}
    assert (people["IXI002"].age, people["IXI002"].sex) == (35, "female")
    assert (people["IXI012"].age, people["IXI012"].sex) == (38, "")  # two rows of another sex
    assert (people["IXI035"].age, people["IXI035"].sex) == (None, "male")
    assert [s.where for s in found.skips if s.kind == "contradicting age or sex"] == ["IXI012"]


def test_ixi_needs_no_table_and_says_when_only_the_xls_is_there(
    london: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(london, tmp_path / "copy")
    (root / "IXI.csv").unlink()
    assert "ok          table of ages and sexes: found none" in SourceDataset(IXI(), root).report()
    (root / "IXI.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    data = SourceDataset(IXI(), root)
    assert "export it as IXI.csv" in data.report() and data.entries[0].age is None


def test_ixi_corrupt_volume_is_counted_and_the_rest_loads(london: Path, tmp_path: Path) -> None:
    root = shutil.copytree(london, tmp_path / "copy")
    truncate(root / "IXI-PD" / "IXI002-Guys-0828-PD.nii.gz")
    (root / "IXI-T2" / "IXI012-HH-1211-T2.nii.gz").write_bytes(b"not a volume")
    data = SourceDataset(IXI(register=False, count=2), root, size=24)
    assert {s.subject for s in data.studies()} == {"IXI035"}
    kinds = sorted(s.kind for s in data.skipped)
    assert kinds.count("unreadable file") == 2 and kinds.count("unreadable volume") == 1


# ACDC


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


# SLIVER07


@pytest.fixture(scope="module")
def livers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sliver07.write_sliver07(tmp_path_factory.mktemp("sliver"))


@pytest.mark.parametrize("tree", ["A", "B"])
def test_sliver_both_trees_give_the_same_studies(livers: Path, tmp_path: Path, tree: str) -> None:
    data = SourceDataset(SLIVER07(), sliver07.write_sliver07(tmp_path, tree), size=40)
    assert data.subjects() == {
        "train": ("train_001", "train_002", "train_003"),
        "test": ("test_001", "test_002"),
    }
    assert len(data) == 5 * sliver07.SHAPE[0]
    no_subject_twice(data)
    assert torch.equal(
        data[3].images["ct"], SourceDataset(SLIVER07(), livers, size=40)[3].images["ct"]
    )


def train_001(data: SourceDataset) -> dict[int, SourceStudy]:
    return {e.index or 0: data[i] for i, e in enumerate(data.entries) if e.subject == "train_001"}


def test_sliver_is_hu_in_radiological_view(livers: Path) -> None:
    study = train_001(SourceDataset(SLIVER07(), livers, size=40))[4]
    well_formed(study, 40)
    assert (
        study.streams == ("ct",) and study.units == {"ct": "HU"} and study.spacing_mm == (9.0, 9.0)
    )
    hu = unit_to_hu(study.images["ct"])[0]
    assert hu[18, 11] == pytest.approx(110, abs=1) and hu[18, 28] == pytest.approx(
        40, abs=1
    )  # the liver on the left
    assert hu[28, 19] == pytest.approx(500, abs=1)  # the spine below
    assert hu[0, 0] == -1000 and hu[20, 0] == -1000  # padding of -2048 and air look the same


def test_sliver_label_says_where_the_liver_is_and_is_nan_without_segmentation(livers: Path) -> None:
    data = SourceDataset(SLIVER07(), livers, size=24)
    assert [i for i, s in train_001(data).items() if s.labels["liver"]] == list(range(2, 8))
    test = next(i for i, e in enumerate(data.entries) if e.split == "test")
    assert math.isnan(data[test].labels["liver"])


def test_sliver_image_and_mask_are_turned_by_their_own_directions(livers: Path) -> None:
    data = SourceDataset(SLIVER07(), livers, size=24)
    first, turned = (
        [data[i] for i, e in enumerate(data.entries) if e.subject == f"train_00{n}"] for n in (1, 2)
    )  # the second image is stored from head to feet, its segmentation from feet to head
    for a, b in zip(first, turned, strict=True):
        assert torch.equal(a.images["ct"], b.images["ct"]) and a.labels == b.labels


def test_sliver_padding_does_not_shift_the_scale(tmp_path: Path) -> None:
    for n, padding in ((1, -2048), (2, -1024)):
        sliver07.save(tmp_path / f"liver-orig00{n}.mhd", sliver07.abdomen(padding)[0])
    data = SourceDataset(SLIVER07(), tmp_path, size=24)
    assert torch.equal(data[5].images["ct"], data[17].images["ct"])
    assert any("padding" in n for n in data[5].notes) and not any(
        "padding" in n for n in data[17].notes
    )


def test_sliver_values_that_are_no_hu_are_refused(tmp_path: Path) -> None:
    sliver07.save(
        tmp_path / "liver-orig001.mhd", np.maximum(sliver07.abdomen()[0] + 1024, 0)
    )  # the intercept was lost
    with pytest.raises(FileError, match="no plausible HU range"):
        SourceDataset(SLIVER07(), tmp_path)[0]


def test_sliver_corrupt_scans_are_counted_and_the_rest_loads(livers: Path, tmp_path: Path) -> None:
    root = shutil.copytree(livers, tmp_path / "copy")
    truncate(root / "training-scans" / "liver-orig001.raw")
    (root / "training-scans" / "liver-orig003.raw").unlink()
    (root / "test-scans" / "liver-orig001.mhd").write_text(
        "ObjectType = Image\nNDims = 3\nElementDataFile = x.raw\n"
    )
    data = SourceDataset(SLIVER07(), root, size=24)
    assert {s.subject for s in data.studies()} == {"train_002", "test_002"}
    assert all("liver-orig" in s.why for s in data.skipped) and len(data.skipped) >= 3


@pytest.mark.parametrize("source", [BraTS2020(), IXI(), ACDC(), SLIVER07()], ids=lambda s: s.name)
def test_a_wrong_folder_is_refused_and_the_layout_shown(tmp_path: Path, source: Source) -> None:
    (tmp_path / "holiday.png").write_bytes(b"x")
    with pytest.raises(SourceError) as caught:
        SourceDataset(source, tmp_path)
    assert source.card.layout in str(caught.value)
