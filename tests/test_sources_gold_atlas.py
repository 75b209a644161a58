"""Gold Atlas male pelvis on a replica."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from replicas import gold_atlas as replica
from test_files import dicom_slice

from medm2g_core.data.sources.base import SourceDataset, SourceError
from medm2g_core.data.sources.gold_atlas import GoldAtlas
from medm2g_core.data.volumes import FileError
from medm2g_core.streams import unit_to_hu

SIZE = replica.COLUMNS  # one pixel of 4 mm a pixel of the picture
ROW0 = (SIZE - replica.ROWS) // 2  # the picture is padded to a square


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return replica.build(tmp_path_factory.mktemp("gold"))


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """The folder of one patient, to be damaged, alone in its tree."""
    return replica.write_patient(tmp_path / "tree" / "1_01_P")


def series_of(folder: Path, description: str) -> list[Path]:
    found = [p for p in folder.iterdir() if pydicom.dcmread(p).SeriesDescription == description]
    return sorted(found, key=lambda p: float(pydicom.dcmread(p).ImagePositionPatient[2]))


def describe(folder: Path, description: str, **tags: object) -> None:
    """Change tags of a series; ``None`` takes one away."""
    for path in series_of(folder, description):
        ds = pydicom.dcmread(path)
        for key, value in tags.items():
            setattr(ds, key, value)
            if value is None:
                delattr(ds, key)
        ds.save_as(path)


def test_mixed_series_are_grouped_and_told_apart(shared: Path) -> None:
    data = SourceDataset(GoldAtlas(), shared, size=SIZE)
    assert {e.subject for e in data.entries} == {"1_01_P", "2_03_P", "3_02_P"}
    assert (
        all(set(e.files) == {"ct", "mri_t1", "mri_t2"} for e in data.entries) and not data.skipped
    )
    names = data.entries[0].extra["names"]
    assert {s: len(n) for s, n in names.items()} == {"ct": 6, "mri_t1": 5, "mri_t2": 6}
    assert "surprising  patients: found 3, published 19" in data.report()
    assert set(data.subjects()) == {"train", "val", "test"}
    assert sum(len(s) for s in data.subjects().values()) == 3


def test_slices_are_sorted_by_position_and_left_is_on_the_right(shared: Path) -> None:
    data = SourceDataset(GoldAtlas(), shared, size=SIZE)
    studies = [s for s in data.studies() if s.id.startswith("1_01_P")]
    assert [s.id for s in studies] == [f"1_01_P_s{k:03d}" for k in range(6)]
    for number, study in enumerate(studies):
        hu = unit_to_hu(study.images["ct"])[0].numpy()
        assert hu[ROW0 + 12, 32] > 500 and hu[ROW0 + 12, 15] < 100  # left front
        top = (
            hu[ROW0 + 20, 16] > 500
        )  # the bone at the right is only in the uppermost slices (z 20 and 25)
        assert top == (number < 2), number
        assert study.orientation == "radiological axial" and study.spacing_mm == pytest.approx(
            (4.0, 4.0)
        )
        assert study.units == {"ct": "HU", "mri_t1": "signal", "mri_t2": "signal"}
        assert all(i.min() >= -1 and i.max() <= 1 for i in study.images.values())


def test_mr_of_another_grid_lies_on_the_deformed_ct(shared: Path) -> None:
    data = SourceDataset(GoldAtlas(), shared, size=SIZE)
    study = next(s for s in data.studies() if s.id == "1_01_P_s003")
    bone = unit_to_hu(study.images["ct"])[0].numpy() > 500
    for name in ("mri_t1", "mri_t2"):
        image = study.images[name][0].numpy()
        inner = (
            bone
            & np.roll(bone, 1, 0)
            & np.roll(bone, -1, 0)
            & np.roll(bone, 1, 1)
            & np.roll(bone, -1, 1)
        )
        assert image[inner].max() < 0 < image[ROW0 + 20, 24], name  # dark bone in the same place
    assert "mri_t1 resampled in patient space" in study.notes


def test_the_plain_ct_is_never_the_pair(patient: Path) -> None:
    for path in series_of(patient, "CT deformed"):
        path.unlink()
    data = SourceDataset(GoldAtlas(), patient.parent, size=SIZE)
    assert all(set(e.files) == {"mri_t1", "mri_t2"} for e in data.entries)
    assert [s.kind for s in data.skipped] == ["no deformed CT"] and data[0].streams == (
        "mri_t1",
        "mri_t2",
    )
    assert "missing     patients with T1, T2 and deformed CT: found 0" in data.report()


def test_without_descriptions_frame_of_reference_and_echo_time_tell(patient: Path) -> None:
    for kind in replica.SERIES:
        describe(patient, kind, SeriesDescription="series")
    data = SourceDataset(GoldAtlas(), patient.parent, size=SIZE)
    assert data[0].streams == ("ct", "mri_t1", "mri_t2")
    assert unit_to_hu(data[3].images["ct"])[0, ROW0 + 12, 32] > 500  # the plain CT has it elsewhere
    assert data[3].images["mri_t1"].shape == (1, SIZE, SIZE)


def test_an_mr_that_nothing_tells_is_left_out(patient: Path) -> None:
    describe(patient, "T1w", SeriesDescription="ax", EchoTime=None)
    data = SourceDataset(GoldAtlas(), patient.parent, size=SIZE)
    assert data[0].streams == ("ct", "mri_t2") and [s.kind for s in data.skipped] == [
        "unknown series"
    ]


@pytest.mark.parametrize("intercept", [-1024, 0])
def test_padding_of_the_deformed_ct_and_the_round_field_are_masked_in_all(
    patient: Path, intercept: int
) -> None:
    if intercept == 0:  # HU as stored, without a rescale slope or intercept
        for path in series_of(patient, "CT deformed"):
            ds = pydicom.dcmread(path)
            ds.PixelData = (ds.pixel_array.astype(np.int16) - 1024).tobytes()
            del ds.RescaleSlope, ds.RescaleIntercept
            ds.save_as(path)
    study = SourceDataset(GoldAtlas(), patient.parent, size=SIZE)[3]
    for name, image in study.images.items():
        assert image[0, :, : replica.PADDED_COLUMNS].max() == -1, name
        assert image[0, ROW0, 0] == image[0, ROW0, -1] == -1, name
        assert image[0, ROW0 + 20, 24] > -0.5, name  # the body is still there


def test_soft_tissue_of_minus_one_is_not_padding(patient: Path) -> None:
    path = series_of(patient, "CT deformed")[2]
    ds = pydicom.dcmread(path)
    pixels = ds.pixel_array.copy()
    pixels[18:22, 22:26] = 1023  # -1 HU, inside the body
    ds.PixelData = pixels.tobytes()
    ds.save_as(path)
    image = unit_to_hu(SourceDataset(GoldAtlas(), patient.parent, size=SIZE)[3].images["ct"])
    assert image[0, ROW0 + 20, 24] == pytest.approx(-1, abs=1)


def test_only_slices_within_the_range_of_all_series_are_used(patient: Path) -> None:
    for path in series_of(patient, "T2w")[:2]:
        path.unlink()
    data = SourceDataset(GoldAtlas(), patient.parent, size=SIZE)
    assert [e.index for e in data.entries] == [0, 1, 2, 3]
    assert all(s.streams == ("ct", "mri_t1", "mri_t2") for s in data.studies())


def test_a_gap_is_refused_and_a_repeated_position_is_not(patient: Path) -> None:
    shutil.copy(series_of(patient, "T2w")[0], patient / "again.dcm")
    assert len(list(SourceDataset(GoldAtlas(), patient.parent, size=SIZE).studies())) == 6
    series_of(patient, "T2w")[3].unlink()
    with pytest.raises(FileError, match="'T2w' are missing or uneven"):
        SourceDataset(GoldAtlas(), patient.parent, size=SIZE)[0]


def test_broken_files_are_counted_and_other_patients_still_load(tmp_path: Path) -> None:
    tree = replica.build(tmp_path)
    victim = series_of(tree / "3_02_P", "CT deformed")[0]
    victim.write_bytes(victim.read_bytes()[:-500])
    (tree / "3_02_P" / "notes.dcm").write_text("no image" * 40)
    whole = (tree / "2_03_P.zip").read_bytes()
    (tree / "2_03_P.zip").write_bytes(whole[:40_000] + bytes(4000) + whole[44_000:])
    replica.pack(tree / "3_02_P", tree / "3_02_P.zip")
    (tree / "4_01_P.zip").write_bytes(b"PK\x03\x04 cut off")
    (tree / "5_01_P").mkdir()
    data = SourceDataset(GoldAtlas(), tree, size=SIZE)
    subjects = {s.subject for s in data.studies()}
    assert "1_01_P" in subjects and "3_02_P" not in subjects
    kinds = {s.kind for s in data.skipped}
    assert {"unreadable file", "not a DICOM file", "duplicate patient", "no usable series"} <= kinds
    assert ("unreadable archive", "4_01_P.zip") in {(s.kind, s.where) for s in data.skipped}


def test_a_ct_without_its_rescale_is_refused(patient: Path) -> None:
    describe(patient, "CT deformed", RescaleSlope=None, RescaleIntercept=None)
    with pytest.raises(FileError, match="no plausible HU range"):
        SourceDataset(GoldAtlas(), patient.parent, size=SIZE)[0]


@pytest.mark.parametrize(
    "name", ["../outside.dcm", "/etc/outside.dcm", "a/../../b.dcm", "..\\b.dcm", "C:\\b.dcm"]
)
def test_an_archive_with_names_that_lead_out_of_it_is_refused(
    tmp_path: Path, patient: Path, name: str
) -> None:
    archive = replica.pack(patient, tmp_path / "tree" / "2_01_P.zip")
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(name, b"x")
    data = SourceDataset(GoldAtlas(), tmp_path / "tree", size=SIZE)
    assert {e.subject for e in data.entries} == {"1_01_P"}
    assert [s.kind for s in data.skipped] == ["unreadable archive"] and "leads out" in data.skipped[
        0
    ].why
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tree"]


def test_a_wrong_folder_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"1_01_P\.zip"):
        SourceDataset(GoldAtlas(), tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("no DICOM")
    with pytest.raises(SourceError, match="not a DICOM file"):
        SourceDataset(GoldAtlas(), tmp_path)


def test_a_patient_s_own_folder_may_be_given(patient: Path) -> None:
    assert {e.subject for e in SourceDataset(GoldAtlas(), patient, size=SIZE).entries} == {"1_01_P"}


def test_two_ct_in_the_frame_of_the_mr_without_a_word_are_no_pair(patient: Path) -> None:
    for kind in ("CT", "CT deformed"):
        describe(
            patient, kind, SeriesDescription=f"series {len(kind)}", FrameOfReferenceUID="1.2.0"
        )
    data = SourceDataset(GoldAtlas(), patient.parent, size=SIZE)
    assert data[0].streams == ("mri_t1", "mri_t2")
    assert [s.kind for s in data.skipped] == ["CT unclear"]
    assert "none says that it was deformed" in data.skipped[0].why


def test_two_ct_in_the_frame_of_the_mr_are_told_by_one_word(patient: Path) -> None:
    describe(patient, "CT", FrameOfReferenceUID="1.2.0")
    study = SourceDataset(GoldAtlas(), patient.parent, size=SIZE)[3]
    assert unit_to_hu(study.images["ct"])[0, ROW0 + 12, 32] > 500  # the plain CT has it elsewhere


@pytest.mark.parametrize("count", [5, 30])
def test_an_axial_series_is_taken_however_many_slices_a_sagittal_one_has(
    patient: Path, count: int
) -> None:
    for k in range(count):
        dicom_slice(
            np.full((20, 20), 300, np.int16),
            Modality="MR",
            SeriesDescription="T2w sagittal",
            SeriesInstanceUID="1.2.3.99",
            FrameOfReferenceUID="1.2.0",
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
            ImagePositionPatient=[4.0 * k - 50, -40, 40],
            PixelSpacing=[4.0, 4.0],
            EchoTime=90,
        ).save_as(patient / f"sagittal{k}.dcm")
    data = SourceDataset(GoldAtlas(), patient.parent, size=SIZE)
    assert len(data.entries[0].extra["names"]["mri_t2"]) == 6
    assert [s.kind for s in data.skipped] == ["not axial"]
    for path in series_of(patient, "T2w"):
        path.unlink()
    assert SourceDataset(GoldAtlas(), patient.parent, size=SIZE)[3].streams == ("ct", "mri_t1")


@pytest.mark.parametrize(
    ("description", "echo", "stream"),
    [
        ("T2w TSE tra", 90, "mri_t2"),
        ("t1_vibe_tra", 2, "mri_t1"),
        ("ADC map T2", 90, ""),
        ("ep2d_diff_b800", 80, ""),
        ("T2*w", 20, ""),
        ("t2_star", 80, ""),
        ("set1 tra", 45, ""),
        ("T1 subtraction", 5, ""),
        ("T10 level", 90, "mri_t2"),
    ],
)
def test_the_contrast_is_told_by_whole_words(
    patient: Path, description: str, echo: float, stream: str
) -> None:
    for path in series_of(patient, "T1w"):
        path.unlink()
    describe(patient, "T2w", SeriesDescription=description, EchoTime=echo)
    entry = SourceDataset(GoldAtlas(), patient.parent, size=SIZE).entries[0]
    assert set(entry.files) - {"ct"} == ({stream} if stream else set())
