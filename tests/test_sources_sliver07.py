"""SLIVER07 from replicas of its trees, with the faults of the real files."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from replicas import sliver07
from replicas.checks import no_subject_twice, well_formed
from replicas.volumes import truncate

from medm2g_core.data.sources.base import SourceDataset, SourceStudy
from medm2g_core.data.sources.sliver07 import SLIVER07
from medm2g_core.data.volumes import FileError
from medm2g_core.streams import unit_to_hu


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


@pytest.mark.parametrize("above", ["latest", "contest2007", "attested"])
def test_sliver_test_is_a_word_of_a_folder_and_not_a_part_of_one(
    livers: Path, tmp_path: Path, above: str
) -> None:
    shutil.copytree(livers, tmp_path / above)
    splits = {s: len(names) for s, names in SourceDataset(SLIVER07(), tmp_path).subjects().items()}
    assert splits == {"train": 3, "test": 2}


@pytest.mark.parametrize("folder", ["TestScans", "SLIVER07-test", "Testing", "test_scans_1"])
def test_sliver_spellings_of_the_test_folder(tmp_path: Path, folder: str) -> None:
    sliver07.save(tmp_path / folder / "liver-orig001.mhd", sliver07.abdomen()[0])
    assert list(SourceDataset(SLIVER07(), tmp_path).subjects()) == ["test"]


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".NII.GZ"])
def test_sliver_conversions_and_names_in_capitals_give_the_same_studies(
    livers: Path, tmp_path: Path, ending: str
) -> None:
    for kind in ("orig", "seg"):
        image = sitk.ReadImage(next(livers.rglob(f"liver-{kind}002.mhd")))
        name = f"liver-{kind}002{ending}"
        sitk.WriteImage(image, tmp_path / name.lower())
        (tmp_path / name.lower()).rename(tmp_path / (name.upper() if ending.isupper() else name))
    plain = SourceDataset(SLIVER07(), livers, size=24)
    wanted = [plain[i] for i, e in enumerate(plain.entries) if e.subject == "train_002"]
    read = list(SourceDataset(SLIVER07(), tmp_path, size=24).studies())
    assert len(read) == len(wanted) == sliver07.SHAPE[0]
    for a, b in zip(read, wanted, strict=True):
        assert torch.equal(a.images["ct"], b.images["ct"]) and a.labels == b.labels
