"""Files that cannot be a stream are refused in one clear sentence, any other loads."""

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
from PIL import Image

from medm2g_core.data.files import FileError, read_stream
from medm2g_core.streams import StreamError, check_image

PYDICOM_FILES = Path(pydicom.data.__file__).parent / "test_files"
NIBABEL_FILES = Path(nib.__file__).parent / "tests" / "data"


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
    assert loaded >= (28 if folder == PYDICOM_FILES else 2) and refused > loaded
    assert time.monotonic() - start < 300  # nothing hangs
