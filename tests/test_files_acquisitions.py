"""A volume is never patched together from several acquisitions, planes or times."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset
from replicas.files import SPACING, chest, dicom_slice, save_series

from medm2g_core.data.files import FileError, LoadedImage, read_stream, read_volume
from medm2g_core.streams import unit_to_hu

COUNT = 40


def two_acquisitions(folder: Path, *tags: dict[str, object], seed: int = 0) -> Path:
    """One series with a chest for each of ``tags`` at the same positions, 200 HU brighter each,
    under random file names."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    names = iter(rng.permutation(COUNT * len(tags)))
    for number, extra in enumerate(tags):
        hu = np.where(chest() == 40, 40 + 200 * number, chest())
        for k in range(COUNT):
            extra_tags = {n: v(k) if callable(v) else v for n, v in extra.items()}
            ds = dicom_slice((hu[k] + 1024).astype(np.int16), **extra_tags)
            ds.ImagePositionPatient = [0, 0, -float(k) * SPACING[0]]
            ds.save_as(folder / f"IM{next(names):04d}")
    return folder


def tissue(loaded: LoadedImage) -> list[int]:
    """Which of the two kinds of tissue the rows of the coronal slice show."""
    hu = unit_to_hu(loaded.image[0])
    middle = hu[:, 63:66].median(dim=1).values
    return sorted({round(float(v) / 200) for v in middle if v > -100})


@pytest.mark.parametrize(
    ("first", "second", "words", "shown"),
    [
        ({"KVP": 120}, {"KVP": 80}, "kVp 120", 0),
        ({"KVP": 80}, {"KVP": 120}, "kVp 120", 1),
        ({"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}, "acquisition 1", 0),
        ({"TemporalPositionIdentifier": 2}, {"TemporalPositionIdentifier": 1}, "time point", None),
        ({"ContrastBolusAgent": "Iopromide"}, {}, "contrast agent", None),
        ({"ConvolutionKernel": "B70f"}, {"ConvolutionKernel": "B30f"}, "kernel B30f", 1),
        ({"AcquisitionTime": "101500"}, {"AcquisitionTime": "101400"}, "acquisition time", 1),
        (
            {"InstanceNumber": lambda k: k + 1},
            {"InstanceNumber": lambda k: k + 1 + COUNT},
            "pass 1 by instance number",
            0,
        ),
        (
            {"InstanceNumber": lambda k: 2 * k + 2},
            {"InstanceNumber": lambda k: 2 * k + 1},
            "pass 1 by instance number",
            1,
        ),
        (  # times that differ from slice to slice part nothing by themselves
            {"AcquisitionTime": lambda k: f"10{k:02d}00", "AcquisitionNumber": 1},
            {"AcquisitionTime": lambda k: f"11{k:02d}00", "AcquisitionNumber": 2},
            "acquisition 1",
            0,
        ),
    ],
)
def test_one_whole_acquisition_is_shown_and_named(
    tmp_path: Path,
    first: dict[str, object],
    second: dict[str, object],
    words: str,
    shown: int | None,
) -> None:
    for seed in (0, 1):
        loaded = read_stream(two_acquisitions(tmp_path / str(seed), first, second, seed=seed), "ct")
        assert len(tissue(loaded)) == 1, "the slice shows both"
        assert shown is None or tissue(loaded) == [shown]
        note = next(n for n in loaded.notes if "acquisitions at the same positions" in n)
        assert "holds 2" in note and words in note
        assert loaded.plane == "coronal" and any(f"of {64}" in n for n in loaded.notes)


def test_three_values_in_two_facts_are_parted_too(tmp_path: Path) -> None:
    tags = [
        {"KVP": 80, "AcquisitionNumber": 1},
        {"KVP": 120, "AcquisitionNumber": 1},
        {"KVP": 120, "AcquisitionNumber": 2},
    ]
    loaded = read_stream(two_acquisitions(tmp_path / "s", *tags), "ct")
    assert tissue(loaded) == [1]
    assert any("kVp 120, acquisition 1" in n for n in loaded.notes)


def test_what_nothing_parts_is_refused(tmp_path: Path) -> None:
    folder = two_acquisitions(tmp_path / "s", {}, {})
    with pytest.raises(FileError, match=r"40 images lie at positions .* give the files of one"):
        read_stream(folder, "ct")


def test_a_second_copy_of_the_files_changes_nothing(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "s", chest())
    alone = read_stream(folder, "ct")
    for path in list(folder.iterdir()):
        (folder / f"copy of {path.name}").write_bytes(path.read_bytes())
    both = read_stream(folder, "ct")
    assert torch.equal(both.image, alone.image)
    assert "40 files are copies of others and were left out" in both.notes
    for path in folder.glob("copy*"):
        ds = pydicom.dcmread(path)
        ds.SOPInstanceUID = pydicom.uid.generate_uid()  # as anonymisers do
        ds.save_as(path)
    again = read_stream(folder, "ct")
    assert torch.equal(again.image, alone.image)


def item(**values: object) -> Dataset:
    out = Dataset()
    for key, value in values.items():
        setattr(out, key, value)
    return out


def multi_frame(frames: np.ndarray, per_frame: list[Dataset], **tags: object) -> Dataset:
    ds = dicom_slice(frames[0], PixelSpacing=None, ImagePositionPatient=None, **tags)
    if "ImageOrientationPatient" not in tags:
        del ds.ImageOrientationPatient
    ds.NumberOfFrames, ds.PixelData = len(frames), frames.tobytes()
    ds.PerFrameFunctionalGroupsSequence = per_frame
    return ds


def frame_item(position: list[float], orientation: list[float], **more: list[Dataset]) -> Dataset:
    return item(
        PlanePositionSequence=[item(ImagePositionPatient=position)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=orientation)],
        PixelMeasuresSequence=[item(PixelSpacing=[5, 5], SliceThickness=5)],
        **more,
    )


AXIAL, CORONAL, SAGITTAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]


def test_three_planes_of_one_object_are_not_stacked(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((15, 40, 40), np.uint16)
    pixels[:, 6:34, 6:34] = rng.integers(100, 300, (15, 28, 28))
    directions = ((AXIAL, [0, 0, 1]), (CORONAL, [0, 1, 0]), (SAGITTAL, [1, 0, 0]))
    items = [
        frame_item([5.0 * k * c for c in normal], orientation)
        for orientation, normal in directions
        for k in range(5)
    ]
    ds = multi_frame(pixels, items, Modality="MR", RescaleSlope=None, RescaleIntercept=None)
    ds.save_as(tmp_path / "a.dcm")
    volume = read_volume(tmp_path / "a.dcm", "mri_t1")
    assert volume.array.shape == (5, 40, 40) and volume.spacing_mm == pytest.approx((5, 5, 5))
    assert any("3 image stacks in the file" in n for n in volume.notes)


def test_b_values_of_one_object_are_parted(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = np.zeros((10, 40, 40), np.uint16)
    pixels[:, 6:34, 6:34] = rng.integers(100, 300, (10, 28, 28))
    pixels[1::2] //= 4  # every position: b = 0, then b = 1000
    items = [
        frame_item(
            [0, 0, 5.0 * (k // 2)], AXIAL, MRDiffusionSequence=[item(DiffusionBValue=b * 1.0)]
        )
        for k, b in enumerate([0, 1000] * 5)
    ]
    ds = multi_frame(pixels, items, Modality="MR", RescaleSlope=None, RescaleIntercept=None)
    ds.save_as(tmp_path / "a.dcm")
    volume = read_volume(tmp_path / "a.dcm", "mri_t2")
    assert volume.array.shape == (5, 40, 40) and volume.array[:, 10:30, 10:30].min() >= 100
    assert any("took b-value 0, not b-value 1000" in n for n in volume.notes)


def test_frames_with_one_position_are_spread_along_the_normal(tmp_path: Path) -> None:
    hu = chest()[::-1]  # from the feet up, along the normal
    ds = dicom_slice((hu[0] + 1024).astype(np.int16), SpacingBetweenSlices=SPACING[0])
    ds.NumberOfFrames = len(hu)
    ds.PixelData = (hu + 1024).astype(np.int16).tobytes()
    ds.save_as(tmp_path / "a.dcm")
    loaded = read_stream(tmp_path / "a.dcm", "ct")
    expected = read_stream(save_series(tmp_path / "s", chest()), "ct")
    assert torch.allclose(loaded.image, expected.image, atol=1e-5)
    assert any("one position for all frames: 6 mm apart" in n for n in loaded.notes)


def test_frames_in_time_are_no_volume(tmp_path: Path) -> None:
    hu = chest()
    ds = dicom_slice((hu[0] + 1024).astype(np.int16), SpacingBetweenSlices=6, FrameTime=40)
    ds.FrameIncrementPointer = 0x00181063
    ds.NumberOfFrames, ds.PixelData = 5, (hu[18:23] + 1024).astype(np.int16).tobytes()
    ds.save_as(tmp_path / "a.dcm")
    loaded = read_stream(tmp_path / "a.dcm", "ct")
    assert any("5 frames without positions: the middle one is used" in n for n in loaded.notes)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_mosaic_is_refused(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    pixels = np.kron(np.ones((6, 6)), np.pad(rng.integers(100, 300, (24, 24)), 4)).astype(np.int16)
    types = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    tags = {"Modality": "MR", "ImageType": types, "RescaleSlope": None, "RescaleIntercept": None}
    dicom_slice(pixels, **tags).save_as(tmp_path / "a.dcm")
    with pytest.raises(FileError, match=r"Siemens mosaic, .* convert it \(dcm2niix\)"):
        read_stream(tmp_path / "a.dcm" if kind == "file" else tmp_path, "mri_t1")


def test_a_ct_without_spacing_has_no_measured_size(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "s", chest(), PixelSpacing=None)
    loaded = read_stream(folder, "ct")
    assert np.isnan(loaded.spacing_mm[0]) and loaded.plane == "axial"
    assert any("no pixel spacing" in n for n in loaded.notes)
    with pytest.raises(FileError, match="proportions of a coronal slice are not known"):
        read_stream(folder, "ct", plane="coronal")
    known = save_series(tmp_path / "d", chest(), PixelSpacing=None, ReconstructionDiameter=320.0)
    loaded = read_stream(known, "ct")
    assert loaded.plane == "coronal" and loaded.spacing_mm == pytest.approx((2.8, 2.8))
    assert any("5 mm from the reconstructed diameter" in n for n in loaded.notes)


def test_an_anonymiser_that_gives_all_images_one_uid_does_no_harm(tmp_path: Path) -> None:
    expected = read_stream(save_series(tmp_path / "a", chest()), "ct")
    loaded = read_stream(save_series(tmp_path / "b", chest(), SOPInstanceUID="1.2.3.4"), "ct")
    assert torch.equal(loaded.image, expected.image)
    assert loaded.notes == expected.notes


def test_two_patients_are_never_one_volume(tmp_path: Path) -> None:
    expected = read_stream(save_series(tmp_path / "a", chest()), "ct")
    for person, hu in (("A", chest()), ("B", chest()[:, ::-1] + 100 * (chest() == 40))):
        save_series(tmp_path / "two" / person, hu, PatientID=person, InstanceNumber=None)
    with pytest.raises(FileError, match=r"2 image stacks could be ct and they are of 2 patients"):
        read_stream(tmp_path / "two", "ct")
    for path in sorted((tmp_path / "two" / "B").iterdir())[10:]:
        path.unlink()  # what is left of B is no rival
    loaded = read_stream(tmp_path / "two", "ct")
    assert torch.equal(loaded.image, expected.image)
    assert any("images of 2 patients" in n for n in loaded.notes)


def test_images_without_a_place_are_counted_by_their_numbers(tmp_path: Path) -> None:
    gone = {"ImagePositionPatient": None, "ImageOrientationPatient": None}
    for name, number in (("a", 3), ("b", 1), ("c", 2)):
        hu = np.where(chest()[20] == 40, 40.0 + 10 * number, chest()[20])
        ds = dicom_slice((hu + 1024).astype(np.int16), InstanceNumber=number, **gone)
        ds.save_as(tmp_path / name)
    loaded = read_stream(tmp_path, "ct")
    assert unit_to_hu(loaded.image)[0, 64, 64] == pytest.approx(60, abs=1)  # of the second
