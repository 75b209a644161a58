"""The Kaggle brain MR and CT arrays on a replica."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from replicas import brain_mri_ct as replica

from medm2g_core.data.sources import open_source
from medm2g_core.data.sources.base import SourceDataset, SourceError
from medm2g_core.data.sources.brain_mri_ct import BrainMRICT, BrainMRICTInputs
from medm2g_core.data.volumes import FileError
from medm2g_core.streams import unit_to_hu


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return replica.build(tmp_path / "kaggle")


def array(tree: Path, name: str) -> Path:
    return tree / "data(processed)" / f"{name}.npy"


def test_pairs_keep_the_publisher_s_split_and_orientation_as_stored(tree: Path) -> None:
    data = open_source("brain_mri_ct", tree, size=replica.SIZE)
    studies = list(data.studies())
    assert len(studies) == 11 and not data.skipped
    assert {s.split: sum(t.split == s.split for t in studies) for s in studies} == replica.COUNTS
    study = studies[0]
    assert study.streams == ("ct", "mri_t1") and study.units == {"ct": "HU", "mri_t1": "signal"}
    assert all(i.min() >= -1 and i.max() <= 1 for s in studies for i in s.images.values())
    hu = unit_to_hu(study.images["ct"])[0]
    assert hu[10, 20] > 400 and hu[10, 11] < 100  # the spot stays on the right of the picture
    assert study.orientation == "as stored" and np.isnan(study.spacing_mm[0])


def test_missing_patient_ids_are_said_in_card_and_report(tree: Path) -> None:
    data = SourceDataset(BrainMRICT(), tree)
    assert "no patient ids: leakage cannot be audited" in data.report()
    assert any("leakage cannot be audited" in f for f in data.source.card.faults)
    assert "surprising  train images: found 6, published 570" in data.report()


def test_nearly_empty_targets_fail_loudly_and_inputs_alone_load(tmp_path: Path) -> None:
    tree = replica.build(tmp_path, empty_targets=True)
    with pytest.raises(
        SourceError, match=r"train_output\.npy: 6 of 6 images.*nearly empty.*brain_mri_ct_inputs"
    ):
        SourceDataset(BrainMRICT(), tree)
    data = open_source("brain_mri_ct_inputs", tree)
    assert len(data) == 11 and all(s.streams == ("mri_t1",) for s in data.studies())


@pytest.mark.parametrize("value", [0.0, 7.0, np.nan, 1e-9])
def test_constant_nan_and_tiny_targets_are_empty(tree: Path, value: float) -> None:
    noise = np.random.default_rng(0).normal(0, 1, (6, replica.SIZE, replica.SIZE))
    np.save(
        array(tree, "train_output"), noise * 1e-9 if value == 1e-9 else np.full(noise.shape, value)
    )
    with pytest.raises(SourceError, match="nearly empty"):
        SourceDataset(BrainMRICT(), tree)


def test_a_blank_image_in_a_good_array_is_counted_and_never_shown(tree: Path) -> None:
    targets = np.load(array(tree, "train_output"))
    targets[2] = 0
    targets[4, 3, 3] = np.nan
    np.save(array(tree, "train_output"), targets)
    data = SourceDataset(BrainMRICT(), tree, split="train")
    assert [s.id for s in data.studies()] == [
        "train_0000",
        "train_0001",
        "train_0003",
        "train_0005",
    ]
    assert [s.where for s in data.skipped] == ["train_0002", "train_0004"]
    with pytest.raises(FileError, match="image 2 is blank"):
        data[2]


def test_ct_without_hu_is_scaled_by_its_own_range_and_says_so(tmp_path: Path) -> None:
    study = SourceDataset(BrainMRICT(), replica.build(tmp_path, scale="unit"))[0]
    assert study.units["ct"] == "display intensity" and any("not in HU" in n for n in study.notes)
    assert study.images["ct"].min() < -0.95 and study.images["ct"].max() > 0.9


def test_images_that_do_not_pair_one_to_one_are_refused(tree: Path) -> None:
    np.save(array(tree, "val_output"), replica.heads(1)[1])
    with pytest.raises(SourceError, match=r"2 in val_input\.npy and 1 in val_output\.npy"):
        SourceDataset(BrainMRICT(), tree)


class Trap:
    """Something that must not run when a file is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (pytest.fail, ("a pickle was loaded",))


def test_pickled_and_broken_arrays_are_counted_and_the_rest_still_loads(tree: Path) -> None:
    array(tree, "train_input").write_bytes(pickle.dumps(Trap()))
    whole = array(tree, "val_output").read_bytes()
    array(tree, "val_output").write_bytes(whole[: len(whole) // 2])
    objects = np.empty((3, 1, 1), dtype=object)
    np.save(array(tree, "test_output"), objects, allow_pickle=True)
    data = SourceDataset(BrainMRICT(), tree)
    assert sorted(s.where for s in data.skipped) == [
        "test_output.npy",
        "train_input.npy",
        "val_output.npy",
    ]
    streams = {s.split: s.streams for s in data.studies()}  # what is left of each split
    assert streams == {"train": ("ct",), "val": ("mri_t1",), "test": ("mri_t1",)}
    assert "missing     train images: found 0, published 570" in data.report()


def test_a_last_axis_of_one_is_squeezed_and_colours_are_not(tree: Path) -> None:
    path = array(tree, "train_input")
    np.save(path, np.load(path)[..., None])
    assert len(SourceDataset(BrainMRICTInputs(), tree, split="train")) == 6
    other = array(tree, "val_input")
    np.save(other, np.repeat(np.load(other)[..., None], 3, axis=-1))
    assert any(
        "needed (images, rows, columns)" in s.why
        for s in SourceDataset(BrainMRICTInputs(), tree).skipped
    )


def test_the_look_alike_is_recognised_its_duplicates_counted_and_refused(tmp_path: Path) -> None:
    other = replica.build_look_alike(tmp_path)
    for root in (other, tmp_path, other / "Brain Tumor CT scan Images"):
        pictures, twice = (7, 1) if root.name.startswith("Brain") else (14, 2)
        with pytest.raises(
            SourceError, match=rf"{pictures} pictures, {twice} exact duplicates.*not paired"
        ):
            SourceDataset(BrainMRICT(), root)


def test_a_wrong_folder_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"data\(processed\)/\{train,val,test\}_input\.npy"):
        SourceDataset(BrainMRICT(), tmp_path)


def test_a_clipped_slice_of_an_array_in_hu_keeps_the_scale_of_the_array(tree: Path) -> None:
    targets = np.load(array(tree, "train_output"))
    targets[2] = np.maximum(targets[2], -400)
    np.save(array(tree, "train_output"), targets)
    data = SourceDataset(BrainMRICT(), tree, split="train", size=replica.SIZE)
    clipped, whole = data[2], data[3]
    assert clipped.units["ct"] == whole.units["ct"] == "HU"
    hu = unit_to_hu(clipped.images["ct"])[0]
    assert hu[16, 12] == pytest.approx(35, abs=25) and hu[0, 0] == pytest.approx(-400, abs=1)


def test_a_slice_in_other_units_than_its_array_is_refused(tree: Path) -> None:
    targets = np.load(array(tree, "train_output"))
    targets[2] = (targets[2] + 1000) / 2000
    np.save(array(tree, "train_output"), targets)
    with pytest.raises(FileError, match="no plausible HU range"):
        SourceDataset(BrainMRICT(), tree, split="train")[2]


def test_slices_of_an_array_without_hu_share_one_scale(tmp_path: Path) -> None:
    tree = replica.build(tmp_path, scale="unit")
    targets = np.load(array(tree, "train_output"))
    targets[2] = np.minimum(targets[2], 0.6)  # no bone in it
    np.save(array(tree, "train_output"), targets)
    data = SourceDataset(BrainMRICT(), tree, split="train", size=replica.SIZE)
    soft = [float(data[k].images["ct"][0, 16, 12]) for k in (1, 2)]
    assert soft[0] == pytest.approx(soft[1], abs=0.05)


@pytest.mark.parametrize("kind", ["copy", "scaled", "inverted", "noise", "one picture"])
def test_targets_that_are_no_pictures_of_their_own_are_refused(tree: Path, kind: str) -> None:
    inputs, targets = np.load(array(tree, "train_input")), np.load(array(tree, "train_output"))
    made = {
        "copy": inputs,
        "scaled": inputs / 255 * 2 - 1,
        "inverted": 1 - inputs / inputs.max(),
        "noise": np.random.default_rng(0).normal(0, 300, targets.shape),
        "one picture": np.repeat(targets[:1], len(targets), axis=0),
    }[kind]
    np.save(array(tree, "train_output"), made)
    words = {"noise": "are noise", "one picture": "are the same picture"}.get(kind, "copies")
    with pytest.raises(SourceError, match=rf"train_output\.npy: .*{words}.*brain_mri_ct_inputs"):
        SourceDataset(BrainMRICT(), tree)
    assert len(SourceDataset(BrainMRICTInputs(), tree)) == 11


def test_a_single_noisy_target_is_counted(tree: Path) -> None:
    targets = np.load(array(tree, "train_output"))
    targets[2] = np.random.default_rng(0).uniform(-1000, 1000, targets[2].shape)
    np.save(array(tree, "train_output"), targets)
    data = SourceDataset(BrainMRICT(), tree, split="train")
    assert len(list(data.studies())) == 5 and "noise" in data.skipped[0].why


def test_arrays_that_are_there_twice_are_counted(tree: Path) -> None:
    shutil.copytree(tree / "data(processed)", tree / "old")
    data = SourceDataset(BrainMRICT(), tree)
    assert len(data) == 11 and data.found.counts()["second copy"] == 6
