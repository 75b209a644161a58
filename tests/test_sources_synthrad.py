"""SynthRAD2023 Task 1 on a replica."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from replicas import synthrad2023 as replica

from medm2g_core.data.sources.base import SourceDataset, SourceError, SourceStudy
from medm2g_core.data.sources.synthrad2023 import SynthRAD2023
from medm2g_core.data.volumes import FileError
from medm2g_core.streams import unit_to_hu


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return replica.build(tmp_path)


def one(root: Path, size: int = 56) -> SourceStudy:
    """The first slice of the only case under ``root``."""
    return SourceDataset(SynthRAD2023(), root, size=size)[0]


def test_slices_pair_ct_with_the_mr_contrast_of_the_centre(tree: Path) -> None:
    data = SourceDataset(SynthRAD2023(), tree, size=32)
    streams = {e.subject: (set(e.files), data.source.read(e, 32).region) for e in data.entries}
    assert streams["1PA001"] == ({"ct", "mri_t1"}, "pelvis") and streams["1BA001"] == (
        {"ct", "mri_t1"},
        "brain",
    )
    assert streams["1PC000"] == ({"ct", "mri_t2"}, "pelvis")
    assert streams["1PC004"] == (
        {"mri_t2"},
        "pelvis",
    )  # no CT: no such stream, and nothing in its place
    assert (
        len({e.id for e in data.entries})
        == len(data)
        == 6 * (replica.SHAPE[0] - replica.EMPTY_SLICES)
    )
    report = data.report()
    assert "surprising  pelvis cases with MR and CT: found 4, published 180" in report
    assert "surprising  cases with MR or CT alone: found 1" in report


def test_values_are_in_range_and_left_is_on_the_right_of_the_picture(tmp_path: Path) -> None:
    study = one(replica.case(tmp_path / "1PA001").parent)
    hu = unit_to_hu(study.images["ct"])[0]
    rows, columns = np.nonzero(hu.numpy() > 500)
    assert (
        columns.mean() > 30 and rows.mean() < 28
    )  # the patient's left front: right of and above the middle
    dark = study.images["mri_t1"][0].numpy()
    assert dark[rows, columns].mean() < dark[28, 15]  # the same bone in the same place of the MR
    assert hu[28, 15] == pytest.approx(40, abs=25)
    assert study.spacing_mm == (1.0, 1.0) and study.units == {"ct": "HU", "mri_t1": "signal"}
    assert all(i.min() >= -1 and i.max() <= 1 for i in study.images.values())
    assert study.orientation == "radiological axial" and study.person == "1PA001"


def test_outside_the_mask_is_air_and_background_in_both(tmp_path: Path) -> None:
    study = one(replica.case(tmp_path / "1PA001").parent)
    first = (56 - 40) // 2  # rows are padded to a square
    for image in study.images.values():
        assert (
            image[0, first + 36 : first + 40].max() == -1
        )  # the table, and the bright MR in its place
    assert study.images["mri_t1"][0, 28, 28] > 0


def test_slices_outside_the_mask_are_no_studies(tmp_path: Path) -> None:
    data = SourceDataset(SynthRAD2023(), replica.case(tmp_path / "1PA001").parent)
    assert [e.index for e in data.entries] == list(range(replica.EMPTY_SLICES, replica.SHAPE[0]))


def test_axis_order_is_canonicalised_and_another_grid_refused(tmp_path: Path) -> None:
    folder = replica.case(tmp_path / "1PA001")
    before = one(tmp_path)
    replica.save(folder / "ct.nii.gz", replica.pelvis()[1], axes="RAS")
    folder.rename(tmp_path / "1PA002")  # another name: nothing remembered
    after = one(tmp_path)
    assert np.allclose(before.images["ct"], after.images["ct"])
    replica.save(tmp_path / "1PA002" / "ct.nii.gz", replica.pelvis()[1][1:])
    (tmp_path / "1PA002").rename(tmp_path / "1PA003")
    with pytest.raises(FileError, match="is not that of mask"):
        one(tmp_path)


def test_a_ct_that_lost_its_intercept_is_refused(tmp_path: Path) -> None:
    folder = replica.case(tmp_path / "1PA001")
    replica.save(folder / "ct.nii.gz", replica.pelvis()[1] + 1024)
    with pytest.raises(FileError, match="no plausible HU range"):
        one(tmp_path)


def test_padding_of_the_ct_is_air(tmp_path: Path) -> None:
    folder = replica.case(tmp_path / "1PA001")
    hu = replica.pelvis()[1]
    hu[:, :5] = -2048
    replica.save(folder / "ct.nii.gz", hu)
    assert unit_to_hu(one(tmp_path).images["ct"]).min() == -1000


def test_slope_of_zero_and_a_fourth_axis_of_one_and_an_unpacked_file_are_read(
    tmp_path: Path,
) -> None:
    plain = one(replica.case(tmp_path / "a" / "1PA001").parent)
    folder = replica.case(tmp_path / "b" / "1PA001")
    image = nib.Nifti1Image.from_filename(folder / "mr.nii.gz")
    image = nib.Nifti1Image(np.asarray(image.dataobj)[..., None], image.affine)
    raw = bytearray(image.to_bytes())
    raw[112:116] = np.float32(0).tobytes()  # scl_slope
    (folder / "mr.nii.gz").write_bytes(bytes(raw))  # not packed, in spite of the name
    other = one(tmp_path / "b")
    assert np.allclose(plain.images["mri_t1"], other.images["mri_t1"])


def test_a_broken_volume_is_counted_and_the_rest_still_loads(tree: Path) -> None:
    victim = tree / "pelvis" / "1PA004"
    (victim / "ct.nii.gz").write_bytes((victim / "ct.nii.gz").read_bytes()[:2000])
    (tree / "pelvis" / "1PA005" / "mask.nii.gz").write_bytes(b"")
    replica.case(tree / "pelvis" / "1PA006", without=("mask",))
    replica.case(tree / "copy" / "1PA001")
    data = SourceDataset(SynthRAD2023(), tree, size=32)
    studies = list(data.studies())
    each = replica.SHAPE[0] - replica.EMPTY_SLICES
    assert {s.subject for s in studies} == {"1BA001", "1PA001", "1PC000", "1PC004"} and len(
        studies
    ) == 4 * each
    kinds = [s.kind for s in data.skipped]
    assert kinds.count("unreadable file") == each and kinds.count("unreadable volume") == 1
    assert kinds.count("missing file") == 1 and kinds.count("duplicate case") == 1
    assert "left out, missing file: 1 (first: 1PA006: no mask in" in data.report()


def test_no_subject_is_in_two_splits(tree: Path) -> None:
    subjects = SourceDataset(SynthRAD2023(), tree, size=32).subjects()
    assert set(subjects) == {"train", "val", "test"}
    assert (
        sum(len(s) for s in subjects.values())
        == len({n for s in subjects.values() for n in s})
        == 6
    )


def test_a_wrong_folder_shows_the_layout_and_task_2_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"Task1/pelvis/1PA001/\{mr,ct,mask\}\.nii\.gz"):
        SourceDataset(SynthRAD2023(), tmp_path)
    (tmp_path / "Task2" / "pelvis" / "2PA001").mkdir(parents=True)
    with pytest.raises(SourceError, match="Task 2"):
        SourceDataset(SynthRAD2023(), tmp_path)


def test_an_empty_mask_is_an_error(tmp_path: Path) -> None:
    folder = replica.case(tmp_path / "1PA001")
    with gzip.open(folder / "mask.nii.gz") as packed:
        raw = bytearray(packed.read())
    raw[352:] = bytes(len(raw) - 352)
    (folder / "mask.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    data = SourceDataset(SynthRAD2023(), tmp_path)
    assert len(data) == 0 and "the mask is empty" in data.report()


@pytest.mark.parametrize("form", ["folders", "names", "folder and name"])
def test_flat_copies_give_the_studies_of_the_published_tree(tmp_path: Path, form: str) -> None:
    wanted = one(replica.case(tmp_path / "a" / "1PA001").parent)
    for path in sorted((tmp_path / "a" / "1PA001").iterdir()):
        role = path.name.split(".")[0]
        name = {
            "folders": f"{role}/1PA001.nii.gz",
            "names": f"1PA001_{role}.nii.gz",
            "folder and name": f"{role.upper()}/{role}_1PA001.nii.gz",
        }[form]
        (tmp_path / "b" / name).parent.mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "b" / name)
    read = one(tmp_path / "b")
    assert read.id == wanted.id and all(
        np.array_equal(read.images[s], wanted.images[s]) for s in wanted.images
    )


def test_heads_alone_are_no_missing_part(tmp_path: Path) -> None:
    replica.case(tmp_path / "Task1" / "brain" / "1BA001", spacing=(1.0, 1.0, 1.0))
    for root in (tmp_path, tmp_path / "Task1" / "brain", tmp_path / "Task1" / "brain" / "1BA001"):
        data = SourceDataset(SynthRAD2023(), root, size=32)
        assert {e.subject for e in data.entries} == {"1BA001"}
        assert not [e for e in data.found.table if e.state == "missing"]
