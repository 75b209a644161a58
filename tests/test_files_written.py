"""Generated streams as files: they read back alike, and say that they are synthetic."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from medm2g_core.data.export import SYNTHETIC_MARK, write_stream, write_text
from medm2g_core.data.files import FileError, read_stream, read_text
from medm2g_core.streams import StreamError


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
