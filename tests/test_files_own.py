"""Files as a newcomer has them: screenshots, archives, other formats, documents, other parts of the
body. Each gives the right picture, or a note or refusal that says what to do."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from film_helpers import SIDE, dicom_film, film, likeness, shown
from PIL import Image, ImageDraw
from replicas.files import SPACING, chest, dicom_slice, lpi_affine, save_nifti, save_series

from medm2g_core.data.files import FileError, read_stream, read_text, read_volume
from medm2g_core.data.foreign_files import foreign_file

REPORT = "Findings: Large left pleural effusion. No pneumothorax."


def grey() -> Image.Image:
    return Image.fromarray((film() * 255).astype(np.uint8))


def told(path: Path, stream: str = "xray") -> str:
    return " | ".join(read_stream(path, stream).notes)


# --- pictures


def test_a_screenshot_of_a_viewer_is_told(tmp_path: Path) -> None:
    screen = Image.new("L", (2 * SIDE, SIDE + 40))
    screen.paste(grey(), (80, 20))
    ImageDraw.Draw(screen).text((4, 4), "DOE JOHN\nCHEST PA", fill=255)
    screen.save(tmp_path / "a.png")
    assert "the film takes 33% of the picture (a screenshot?)" in told(tmp_path / "a.png")
    screen.crop((80, 20, 80 + SIDE, 20 + SIDE)).save(tmp_path / "cut.png")
    assert "the film takes" not in told(tmp_path / "cut.png")
    assert likeness(shown(tmp_path / "cut.png")) > 0.99


def test_coloured_words_of_a_viewer_are_refused(tmp_path: Path) -> None:
    screen = grey().convert("RGB")
    ImageDraw.Draw(screen).text((4, 4), "DOE JOHN 1970-01-01", fill=(255, 255, 0))
    screen.save(tmp_path / "a.png")
    with pytest.raises(FileError, match="a colour picture"):
        read_stream(tmp_path / "a.png", "xray")


def test_two_films_in_one_picture_are_told(tmp_path: Path) -> None:
    Image.fromarray(np.hstack([np.asarray(grey())] * 2)).save(tmp_path / "a.png")
    assert "2.0 times as wide as high: two films side by side?" in told(tmp_path / "a.png")


def test_a_picture_of_something_else_is_told(tmp_path: Path) -> None:
    y, x = np.meshgrid(*[np.linspace(-1, 1, SIDE)] * 2, indexing="ij")
    ripples = ((np.sin(20 * x) * np.sin(17 * y) + 1) * 120).astype(np.uint8)
    Image.fromarray(ripples).save(tmp_path / "ripples.png")
    assert "hardly like a frontal chest film" in told(tmp_path / "ripples.png")
    grey().save(tmp_path / "film.png")
    assert "hardly like" not in told(tmp_path / "film.png")


def test_of_a_secondary_capture_with_frames_the_middle_one_is_shown(tmp_path: Path) -> None:
    stored = (film() * 255).astype(np.uint8)
    tags = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "Modality": "OT"}
    ds = dicom_film(stored, SOPClassUID="1.2.840.10008.5.1.4.1.1.7.2", **tags)
    ds.NumberOfFrames = 3
    ds.PixelData = (255 - stored).tobytes() + stored.tobytes() + (255 - stored).tobytes()
    ds.save_as(tmp_path / "a.dcm")
    assert likeness(shown(tmp_path / "a.dcm")) > 0.99
    assert "3 frames without positions: the middle one is used" in told(tmp_path / "a.dcm")


@pytest.mark.parametrize(("side", "coarse"), [(40, True), (64, False), (500, False)])
def test_a_thumbnail_is_told(tmp_path: Path, side: int, coarse: bool) -> None:
    grey().resize((side, side)).save(tmp_path / "a.png")
    assert ("coarse: one pixel of the file is 3.2" in told(tmp_path / "a.png")) == coarse


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_film_that_does_not_stand_upright_is_told_or_refused(tmp_path: Path, turns: int) -> None:
    values = film()
    values[3 * SIDE // 4 :], values[: SIDE // 6, : SIDE // 4] = 0.85, 0.0  # a belly, a shoulder
    values[: SIDE // 6, -SIDE // 4 :] = 0.0
    picture = Image.fromarray((values * 255).astype(np.uint8))
    picture.save(tmp_path / "a.png")
    assert not re.search("lie|upside|upright", told(tmp_path / "a.png"))
    picture.rotate(90 * turns).save(tmp_path / "a.png")
    try:
        said = told(tmp_path / "a.png")
    except FileError as error:
        said = str(error)
    assert re.search("lie on its side|upside down|does not stand upright", said)


# --- volumes


def test_an_inverted_head_is_refused(tmp_path: Path) -> None:
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in (20, 48, 48)], indexing="ij")
    inside = (x / 0.7) ** 2 + (y / 0.8) ** 2 + (z / 0.95) ** 2
    signal = np.random.default_rng(0).normal(np.where(inside < 1, 300 - 100 * inside, 5), 5)
    for name, values in (("right", signal), ("wrong", signal.max() - signal)):
        save_nifti(tmp_path / f"{name}.nii", values.astype(np.float32), (4, 4, 4))
    assert "negative" not in told(tmp_path / "right.nii", "mri_t1")
    with pytest.raises(FileError, match="its background is as bright as anything in it"):
        read_stream(tmp_path / "wrong.nii", "mri_t1")


def test_a_scan_of_the_whole_body_is_to_be_cut(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", np.concatenate([chest()] * 7))
    with pytest.raises(FileError, match=r"measures 1680 mm; .*cut a scan of the whole body"):
        read_stream(path, "ct")


def reference(folder: Path) -> torch.Tensor:
    return read_stream(save_series(folder / "reference", chest()), "ct").image


def test_a_series_without_identifiers_is_one_volume(tmp_path: Path) -> None:
    for k, pixels in enumerate(chest()):
        ds = dicom_slice((pixels + 1024).astype(np.int16), InstanceNumber=k)
        ds.ImagePositionPatient = [0, 0, -SPACING[0] * k]
        del ds.SOPInstanceUID, ds.SeriesInstanceUID
        (tmp_path / "a").mkdir(exist_ok=True)
        ds.save_as(tmp_path / "a" / f"{k}")
    assert torch.equal(read_stream(tmp_path / "a", "ct").image, reference(tmp_path))


@pytest.mark.parametrize("name", ["packed.nii", "plain.nii.gz", "volume"])
def test_the_name_of_a_file_says_nothing(tmp_path: Path, name: str) -> None:
    whole = save_nifti(tmp_path / "a.nii", chest()).read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(whole) if name == "packed.nii" else whole)
    assert torch.allclose(read_stream(tmp_path / name, "ct").image, reference(tmp_path), atol=1e-5)


def test_an_axis_that_runs_the_other_way_is_turned(tmp_path: Path) -> None:
    affine = lpi_affine(SPACING)
    affine[0] = [SPACING[2], 0, 0, -160]
    array = chest().transpose(2, 1, 0)[::-1]
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "a.nii")
    assert torch.allclose(
        read_stream(tmp_path / "a.nii", "ct").image, reference(tmp_path), atol=1e-5
    )


def test_a_tilted_gantry_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    along = [1, 0, 0, 0, float(np.cos(np.radians(20))), -float(np.sin(np.radians(20)))]
    for k, pixels in enumerate(chest()):
        ds = dicom_slice((pixels + 1024).astype(np.int16), ImageOrientationPatient=along)
        ds.ImagePositionPatient = [0, 0, -SPACING[0] * k]
        ds.save_as(tmp_path / "a" / f"{k}")
    assert "acquired 20 degrees oblique" in told(tmp_path / "a", "ct")


def test_a_chest_counted_in_centimetres_is_refused(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii", chest(), (0.6, 0.5, 0.5))
    with pytest.raises(FileError, match="cm or inches written as mm"):
        read_stream(path, "ct")


@pytest.mark.parametrize("part", ["chest", "abdomen", "head"])
def test_a_ct_without_lungs_is_told(tmp_path: Path, part: str) -> None:
    hu = chest()
    if part != "chest":
        hu = np.where((hu > -1000) & (hu < -500), 30.0, hu).astype(np.float32)
    path = save_nifti(tmp_path / "a.nii", hu, (6.0, 3.0, 2.5) if part == "head" else SPACING)
    assert ("no lungs in it" in told(path, "ct")) == (part != "chest")


def test_a_segmentation_is_refused(tmp_path: Path) -> None:
    labels = np.zeros((24, 64, 64), np.uint8)
    labels[6:18, 20:40, 20:40], labels[8:12, 24:30, 24:30] = 1, 2
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(tmp_path / "a.seg.nrrd"))
    for stream, words in (("mri_t1", "not an image"), ("ct", "no plausible HU range")):
        with pytest.raises(FileError, match=words):
            read_stream(tmp_path / "a.seg.nrrd", stream)


def test_a_dicomdir_names_the_folder_to_give() -> None:
    path = Path(pydicom.data.__file__).parent / "test_files" / "dicomdirtests" / "DICOMDIR"
    with pytest.raises(FileError, match="a list of files; give the folder that it lies in"):
        read_stream(path, "ct")


# --- formats that are not read


def foreign(folder: Path) -> dict[str, str]:
    """Writes files; name -> words of the refusal."""
    grey().save(folder / "a.webp")
    grey().save(folder / "a.bmp")
    grey().save(folder / "a.gif")
    Image.fromarray(film().astype(np.float32)).save(folder / "a.tif")
    np.save(folder / "a.npy", chest())
    (folder / "a.mgz").write_bytes(
        gzip.compress(nib.MGHImage(chest((20, 20, 20)), np.eye(4)).to_bytes())
    )
    whole = save_nifti(folder / "a.nii.gz", chest()).read_bytes()
    (folder / "twice.nii.gz").write_bytes(gzip.compress(whole))
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.write(folder / "a.nii.gz", "a.nii.gz")
    with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
        archive.add(folder / "a.nii.gz", "a.nii.gz")
    nib.save(nib.AnalyzeImage(chest((20, 20, 20)).astype(np.int16), np.eye(4)), folder / "b.img")
    (folder / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\1" * 500)
    return {
        "a.webp": "a WebP picture; save it as PNG",
        "a.bmp": "a BMP picture; save it as PNG",
        "a.gif": "a GIF picture; save it as PNG",
        "a.tif": "a TIFF picture; save it as PNG",
        "a.heic": "a HEIC picture; save it as PNG",
        "a.npy": "a NumPy array; write it as NIfTI",
        "a.mgz": "a FreeSurfer volume .* mri_convert",
        "twice.nii.gz": "packed with gzip twice; unpack it",
        "a.zip": "a zip archive .*; unpack it",
        "a.tar.gz": "a tar archive; unpack it",
        "b.hdr": "an Analyze header .* which does not say left from right",
        "b.img": r"half of a NIfTI or Analyze pair \(.hdr with .img\)",
    }


def test_a_format_that_is_not_read_is_named(tmp_path: Path) -> None:
    for name, words in foreign(tmp_path).items():
        with pytest.raises(FileError, match=words) as caught:
            read_volume(tmp_path / name, "ct")
        assert len(str(caught.value)) < 600
    assert not foreign_file(b"just some words" * 50)


def test_a_folder_with_an_archive_says_to_unpack_it(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with zipfile.ZipFile(tmp_path / "a" / "series.zip", "w") as archive:
        archive.writestr("x", "y")
    with pytest.raises(FileError, match=r"no DICOM image .* unpack series\.zip first"):
        read_stream(tmp_path / "a", "ct")


# --- reports


PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\nBT (Large left pleural effusion.) Tj ET\n%%EOF"
DOCUMENTS = {
    "plain.pdf": (PDF, "a PDF, not a plain report"),
    "binary.pdf": (
        PDF.replace(b"\n", b"\n%\xe2\xe3\xcf\xd3\n", 1),
        "a PDF; copy the report's words",
    ),
    "a.html": (f"<html><body><p>{REPORT}</p></body></html>".encode(), "an HTML page"),
    "b.html": (f"<!DOCTYPE html>\n<p>{REPORT}</p>".encode(), "an HTML page"),
    "a.xml": (f"<?xml version='1.0'?><r><t>{REPORT}</t></r>".encode(), "XML, not a plain report"),
    "b.xml": (f'<eCitation id="1"><t>{REPORT}</t></eCitation>'.encode(), "XML, not a plain"),
    "a.rtf": (rb"{\rtf1\ansi Large left pleural effusion.\par}", "an RTF document"),
    "a.json": (json.dumps({"report": REPORT}).encode(), "JSON, not a plain report"),
    "a.hl7": (f"MSH|^~\\&|RIS|HOSP\rOBX|1|TX|GDT||{REPORT}|".encode(), "an HL7 message"),
    "a.csv": (f"uid,findings\n1,{REPORT}\n2,Normal chest.\n".encode(), "a table, not a plain"),
    "a.txt": ("Gro\u00dfer Erguss".encode("latin-1"), "not UTF-8 text"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_no_plain_report(tmp_path: Path, name: str) -> None:
    content, words = DOCUMENTS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=words):
        read_text(tmp_path / name)


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("start", ["", "[removed] ", "<5 mm nodule. ", "{a} "])
def test_plain_words_are_read_in_every_coding_with_a_mark(
    tmp_path: Path, coding: str, start: str
) -> None:
    (tmp_path / "a.txt").write_bytes((start + REPORT).encode(coding))
    assert read_text(tmp_path / "a.txt") == start + REPORT


def test_an_office_document_is_refused(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", "effusion" * 200)
    (tmp_path / "a.docx").write_bytes(packed.getvalue())
    with pytest.raises(FileError, match="a zip archive or an Office document"):
        read_text(tmp_path / "a.docx")
