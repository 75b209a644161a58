"""Pictures and volumes that a damaged file gives: refused or counted, never shown as black."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from film_helpers import film as chest_film
from PIL import Image
from replicas import brats2020
from replicas.films import frontal, save, save_dicom
from replicas.volumes import head, save_nifti

from medm2g_core.data.sources.base import Entry, SourceDataset, SourceStudy
from medm2g_core.data.sources.brats2020 import BraTS2020
from medm2g_core.data.sources.chestxray14 import ChestXray14
from medm2g_core.data.sources.grids import load_volume
from medm2g_core.data.sources.imaging import check_shows_something, check_whole
from medm2g_core.data.sources.radiographs import read_film
from medm2g_core.data.volumes import FileError

CASE = "BraTS20_Training_001"


def big(seed: int = 0) -> np.ndarray:
    return frontal(120, 96, seed=seed)


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_16_bit_png_is_shown_on_the_scale_of_the_bits_that_it_uses(
    tmp_path: Path, bits: int
) -> None:
    film = big()
    plain = read_film(save(tmp_path / "8.png", film), 64)
    deep = film.astype(np.uint16) * (2**bits // 256)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    read = read_film(tmp_path / "deep.png", 64)
    assert np.allclose(read.image, plain.image, atol=0.01)
    assert read.image.max() > 0.7
    assert any(f"holds {bits}-bit values" in n for n in read.notes)


def test_a_true_16_bit_png_keeps_its_scale(tmp_path: Path) -> None:
    Image.fromarray(big().astype(np.uint16) * 257).save(tmp_path / "deep.png")
    plain = read_film(save(tmp_path / "8.png", big()), 64)
    read = read_film(tmp_path / "deep.png", 64)
    assert np.allclose(read.image, plain.image, atol=0.01)
    assert not any("bits" in n for n in read.notes)


@pytest.mark.parametrize(
    ("film", "why"),
    [
        ((big() > 100).astype(np.uint8), "only 2 different values"),
        ((big() > 100).astype(np.uint8) * 255, "only 2 different values"),
        ((big() // 64).astype(np.uint8), "label map"),
        ((big() // 10).astype(np.uint8), "nearly blank"),
        (np.random.default_rng(0).integers(0, 255, (90, 90), dtype=np.uint8), "noise"),
        (np.where(np.arange(120)[:, None] < 60, big(), 0).astype(np.uint8), "cut off"),
        (np.where(np.arange(120)[:, None] < 70, big(), 128).astype(np.uint8), "cut off"),
    ],
    ids=["0 and 1", "mask", "two bits", "dark", "noise", "lower half black", "lower part grey"],
)
def test_what_is_no_film_is_refused(tmp_path: Path, film: np.ndarray, why: str) -> None:
    with pytest.raises(FileError, match=why):
        read_film(save(tmp_path / "film.png", film), 64)


def test_a_dicom_film_whose_lower_half_is_zero_is_refused(tmp_path: Path) -> None:
    film = np.where(np.arange(120)[:, None] < 60, big(), 0).astype(np.uint8)
    with pytest.raises(FileError, match="50% of the film is one grey value: it was cut off"):
        read_film(save_dicom(tmp_path / "film.dcm", film), 64)


def test_black_borders_of_a_film_are_no_damage(tmp_path: Path) -> None:
    film = np.pad(big(), ((70, 70), (0, 0)))  # padded to a square by someone
    assert read_film(save(tmp_path / "film.png", film), 64).image.max() > 0.7


def test_a_changed_byte_of_a_png_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = save(tmp_path / "film.png", big())
    data = bytearray(path.read_bytes())
    at = data.index(b"IDAT") + 4
    (length,) = struct.unpack(">I", data[at - 8 : at - 4])
    pixels = bytearray(zlib.decompress(bytes(data[at : at + length])))
    row = 20 * (1 + 96)  # a row is a filter's number and its pixels
    for k in range(row + 10, row + 90):
        pixels[k] ^= 0x3F
    packed = zlib.compress(bytes(pixels), 0)
    # Well packed, so that a decoder has nothing to complain of, but with the checksum of before.
    data[at - 8 : at + length] = struct.pack(">I", len(packed)) + b"IDAT" + packed
    path.write_bytes(bytes(data))
    with pytest.raises(FileError, match=r"film\.png: comparing the PNG's checksums failed"):
        read_film(path, 64)
    path.write_bytes(save(path, big()).read_bytes()[:-12])
    with pytest.raises(FileError, match="truncated PNG"):
        read_film(path, 64)


def holed(case: Path, contrast: str, hole: slice, axis: int = 0) -> Path:
    """The case with zeros in some slices (counted from the head) of one unpacked contrast."""
    signal = head(brats2020.SHAPE)
    np.moveaxis(signal, axis, 0)[hole] = 0
    (case / f"{case.name}_{contrast}.nii.gz").unlink()
    return save_nifti(case / f"{case.name}_{contrast}.nii", signal, spacing=brats2020.SPACING)


@pytest.mark.parametrize(
    "hole", [slice(78, 155), slice(0, 60), slice(60, 62)], ids=["second half", "first", "middle"]
)
def test_a_nifti_with_a_block_of_zeros_is_counted_and_gives_no_blank_picture(
    tmp_path: Path, hole: slice
) -> None:
    case = brats2020.case(tmp_path / CASE)
    path = holed(case, "t2", hole)
    with pytest.raises(FileError, match=r"_t2\.nii: \d+ of 155 axial slices hold nothing but 0"):
        load_volume(path, "mri_t2")
    data = SourceDataset(BraTS2020(drop_lowest=120, drop_top=30), tmp_path, size=24)
    assert not list(data.studies()) and data.found.entries
    assert {s.kind for s in data.skipped} == {"unreadable file"}


def test_a_slice_that_one_contrast_does_not_show_is_counted_and_the_others_load(
    tmp_path: Path,
) -> None:
    case = brats2020.case(tmp_path / CASE)
    holed(case, "t2", slice(0, 26))  # less than a damaged file lacks: a smaller field of view
    data = SourceDataset(BraTS2020(drop_lowest=120, drop_top=24), tmp_path, size=24)
    assert [s.id[-3:] for s in data.studies()] == [f"{k:03d}" for k in range(26, 35)]
    assert [s.where[-3:] for s in data.skipped] == ["024", "025"]
    assert "slice 24 of mri_t2: the picture is blank" in data.skipped[0].why


def test_anatomy_that_tapers_off_is_whole() -> None:
    check_whole(head((60, 40, 40)), "head")
    padded = np.pad(head((60, 40, 40)), ((30, 20), (15, 15), (15, 15)))
    check_whole(padded, "head")  # a skull-stripped brain in a large field of view


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_hole_along_any_axis_is_found(axis: int) -> None:
    volume = head((60, 60, 60))
    np.moveaxis(volume, axis, 0)[30:] = volume.min() - 5
    with pytest.raises(FileError, match=("axial", "coronal", "sagittal")[axis]):
        check_whole(volume, "head")


def test_a_ct_of_zeros_in_part_is_not_soft_tissue() -> None:
    ct = np.full((40, 30, 30), -1000.0)
    ct[:, 5:25, 5:25] = 40 + np.random.default_rng(0).normal(0, 10, (40, 20, 20))
    check_whole(ct, "ct")
    ct[20:] = 0
    with pytest.raises(FileError, match="20 of 40 axial slices hold nothing but 0"):
        check_whole(ct, "ct")


def test_noise_and_blank_slices_are_told_from_anatomy() -> None:
    signal = head((20, 60, 60))[10]
    unit = signal / signal.max() * 2 - 1
    check_shows_something(unit)
    noisy = np.clip(unit + np.random.default_rng(0).normal(0, 0.2, unit.shape), -1, 1)
    check_shows_something(noisy)
    for wrong, why in (
        (np.full((60, 60), -1.0), "blank"),
        (np.where(np.arange(3600).reshape(60, 60) % 720 == 99, 1.0, -1.0), "blank"),
        (np.random.default_rng(0).uniform(-1, 1, (60, 60)), "noise"),
    ):
        with pytest.raises(FileError, match=f"here: the picture is {why}"):
            check_shows_something(wrong, "here")


def test_a_picture_that_the_pipeline_would_refuse_is_no_study_and_its_doubts_are_notes() -> None:
    def study(image: np.ndarray) -> SourceStudy:
        images = {"xray": torch.from_numpy(image.astype(np.float32))[None]}
        return ChestXray14().study(
            Entry("a", "a", "train"), images, units={}, orientation="as displayed", notes=("read",)
        )

    plain = chest_film()
    noise = np.random.default_rng(0).normal(0, 0.01, plain.shape)  # one grey alone is a label
    film = (plain * 2 - 1 + noise).clip(-1, 1)
    assert study(film).notes == ("read",)
    with pytest.raises(FileError, match="a, xray: it is a negative"):
        study(-film)
    with pytest.raises(FileError, match=r"a, xray: .* as a picture in 0\.\.1 has"):
        study((film + 1) / 2)
