"""Broken headers, strange names and absurd numbers: a right picture or one sentence, never a
foreign error."""

from __future__ import annotations

import json
import os
import sys
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from conftest import untrained
from film_helpers import film
from PIL import Image
from replicas.files import SPACING, chest, dicom_slice, lpi_affine, save_nifti, save_series

from medm2g_core.cli import main
from medm2g_core.data.files import FileError, read_stream, read_volume
from medm2g_core.profiles import PROFILES


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    untrained(PROFILES["smoke"]).save_pretrained(folder)
    return folder


def with_header(path: Path, **fields: object) -> Path:
    """The chest as NIfTI with fields of its header overwritten, unchecked."""
    save_nifti(path, chest())
    data = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_sform_that_is_no_matrix_is_refused(tmp_path: Path, value: float) -> None:
    path = with_header(tmp_path / "a.nii", srow_x=[value, 0, 0, 0])
    with pytest.raises(FileError, match="its sform holds NaN or has no extent"):
        read_stream(path, "ct")


def test_a_good_qform_stands_in_for_a_broken_sform(tmp_path: Path) -> None:
    expected = read_stream(save_nifti(tmp_path / "good.nii", chest()), "ct")
    image = nib.Nifti1Image(chest().transpose(2, 1, 0), lpi_affine(SPACING))
    image.set_qform(lpi_affine(SPACING), code=1)
    image.header["srow_y"] = np.nan
    image.header["sform_code"] = 1
    data = image.header.binaryblock
    nib.save(nib.Nifti1Image(image.dataobj, lpi_affine(SPACING)), tmp_path / "a.nii")
    whole = bytearray((tmp_path / "a.nii").read_bytes())
    whole[252:344] = data[252:344]  # qform_code to intent_name
    whole[76:108] = data[76:108]  # pixdim with qfac
    (tmp_path / "a.nii").write_bytes(bytes(whole))
    loaded = read_stream(tmp_path / "a.nii", "ct")
    assert torch.equal(loaded.image, expected.image)
    assert any("the qform is used" in n for n in loaded.notes)


@pytest.mark.parametrize("length", [1.0 + 1e-6, 1.001, 1.03])
def test_a_quaternion_that_is_a_little_too_long_is_shortened(tmp_path: Path, length: float) -> None:
    expected = read_stream(save_nifti(tmp_path / "good.nii", chest()), "ct")
    turned = np.array([0.0, 0.0, 1.0]) * length  # half a turn about z: RAS to LPS
    image = nib.Nifti1Image(chest()[::-1].transpose(2, 1, 0), None)
    image.header.set_zooms((5, 5, 6))
    nib.save(image, tmp_path / "raw.nii")
    data = bytearray((tmp_path / "raw.nii").read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    header["qform_code"], header["sform_code"] = 1, 0
    header["pixdim"][0] = 1
    for axis, value in zip("bcd", turned, strict=True):
        header[f"quatern_{axis}"] = value
    data[:348] = header.binaryblock
    (tmp_path / "a.nii").write_bytes(bytes(data))
    loaded = read_stream(tmp_path / "a.nii", "ct")
    assert torch.allclose(loaded.image, expected.image, atol=1e-4)
    assert any("too long" in n for n in loaded.notes) == (length > 1.0001)


def test_a_code_that_nobody_knows_does_not_throw_the_sform_away(tmp_path: Path) -> None:
    expected = read_stream(save_nifti(tmp_path / "good.nii", chest()), "ct")
    loaded = read_stream(with_header(tmp_path / "a.nii", sform_code=9), "ct")
    assert torch.equal(loaded.image, expected.image)


def test_an_sform_and_a_qform_that_disagree_are_told(tmp_path: Path) -> None:
    image = nib.Nifti1Image(chest().transpose(2, 1, 0), lpi_affine(SPACING))
    image.set_qform(lpi_affine(SPACING) @ np.diag([-1.0, 1, 1, 1]), code=1)
    nib.save(image, tmp_path / "a.nii")
    loaded = read_stream(tmp_path / "a.nii", "ct")
    assert any("check left and right" in n for n in loaded.notes)


@pytest.mark.parametrize("mm", [1e-12, 1e12, 3e38])
def test_absurd_voxels_are_refused(tmp_path: Path, mm: float) -> None:
    row = {"srow_x": [-mm, 0, 0, 0], "srow_y": [0, -mm, 0, 0], "srow_z": [0, 0, -mm, 0]}
    with pytest.raises(FileError, match=r"voxels of .* the header is broken|NaN"):
        read_stream(with_header(tmp_path / "a.nii", **row), "ct")


@pytest.mark.parametrize(("unit", "scale"), [(1, 1000.0), (3, 0.001)])
def test_metres_and_micrometres_become_mm(tmp_path: Path, unit: int, scale: float) -> None:
    expected = read_stream(save_nifti(tmp_path / "good.nii", chest()), "ct")
    rows = lpi_affine(SPACING)[:3] / scale
    fields = {f"srow_{a}": row for a, row in zip("xyz", rows, strict=True)}
    path = with_header(tmp_path / "a.nii", xyzt_units=unit, **fields)
    loaded = read_stream(path, "ct")
    assert torch.allclose(loaded.image, expected.image, atol=1e-4)
    assert any("turned to mm" in n for n in loaded.notes)


@pytest.mark.parametrize("axis", range(3))
def test_an_axis_of_nothing_is_refused(tmp_path: Path, axis: int) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(chest()), str(tmp_path / "a.mha"))
    size = ["64", "64", "40"]
    whole = (tmp_path / "a.mha").read_bytes()
    old = b"DimSize = " + " ".join(size).encode()
    size[axis] = "0"
    assert old in whole
    (tmp_path / "a.mha").write_bytes(whole.replace(old, b"DimSize = " + " ".join(size).encode()))
    with pytest.raises(FileError) as caught:
        read_stream(tmp_path / "a.mha", "ct")
    assert "\n" not in str(caught.value)


def test_a_header_without_spacing_is_not_counted_as_1_mm(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(chest()[::-1].copy())
    sitk.WriteImage(image, str(tmp_path / "a.mhd"))
    text = (tmp_path / "a.mhd").read_text()
    kept = [line for line in text.splitlines() if not line.startswith("ElementSpacing")]
    (tmp_path / "a.mhd").write_text("\n".join(kept) + "\n")
    loaded = read_stream(tmp_path / "a.mhd", "ct")
    assert loaded.plane == "axial" and np.isnan(loaded.spacing_mm[0])
    with pytest.raises(FileError, match="proportions of a coronal slice are not known"):
        read_stream(tmp_path / "a.mhd", "ct", plane="coronal")


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes are Linux's")
@pytest.mark.parametrize("kind", ["nii.gz", "mha", "mhd", "nrrd", "dicom", "png"])
def test_a_folder_with_a_name_of_any_bytes_is_read_and_written(
    tmp_path: Path, kind: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller"))
    folder.mkdir()
    plain, name = tmp_path / f"a.{kind}", "xray" if kind == "png" else "ct"
    if kind == "nii.gz":
        save_nifti(plain, chest())
    elif kind == "dicom":
        save_series(plain, chest())
    elif kind == "png":
        Image.fromarray((film() * 255).astype(np.uint8)).save(plain)
    else:
        image = sitk.GetImageFromArray(chest())
        image.SetSpacing(SPACING[::-1])
        sitk.WriteImage(image, str(plain))
    for path in tmp_path.glob("a.*"):
        path.rename(folder / path.name)
    given, out = f"{name}={folder / plain.name}", folder / "out"
    want = "ct" if name == "xray" else "xray"
    arguments = ["--model", str(model_folder), "--steps", "1", "--formats", "png"]
    assert main(["generate", "--given", given, "--want", want, "--out", str(out), *arguments]) == 0
    record = json.loads((out / "generation.json").read_text(encoding="utf-8"))
    assert record["given"][name]["source"] == str(folder / plain.name)
    assert "ller" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--num-samples", "99999999999"),
        ("--num-samples", "1001"),
        ("--best-of", "10000000"),
        ("--steps", "99999999999"),
        ("--seed", "18446744073709551616"),
        ("--seed", "9223372036854775807"),
        ("--seed", "9" * 5000),
    ],
)
def test_numbers_that_no_machine_can_follow_are_refused(
    tmp_path: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "--want", "xray", "--out", str(tmp_path), option, value]) == 2
    err = capsys.readouterr().err
    assert "needed a whole number from" in err and " to " in err and len(err) < 300
    assert err.count("\n") == 1


def test_many_samples_are_those_of_one_call(tmp_path: Path, model_folder: Path) -> None:
    base = ["generate", "--want", "xray", "--steps", "1", "--formats", "nifti"]
    base += ["--model", str(model_folder), "--given", "text=Large left pleural effusion."]
    assert main([*base, "--num-samples", "18", "--out", str(tmp_path / "many")]) == 0
    assert main([*base, "--seed", "17", "--out", str(tmp_path / "one")]) == 0
    last = read_stream(tmp_path / "many" / "xray-18.nii.gz", "xray", size=32).image
    alone = read_stream(tmp_path / "one" / "xray.nii.gz", "xray", size=32).image
    assert torch.allclose(last, alone, atol=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="arguments of any bytes are Linux's")
def test_a_report_of_bytes_that_are_no_text_is_refused(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = os.fsdecode(b"Effusion in M\xfcller")
    arguments = ["--model", str(model_folder), "--out", str(tmp_path)]
    assert main(["generate", "--given", f"text={words}", "--want", "xray", *arguments]) == 2
    assert "no UTF-8" in capsys.readouterr().err


def test_check_says_what_a_file_is_and_writes_the_picture(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_series(tmp_path / "s" / "a", chest(), SeriesDescription="thin")
    save_series(tmp_path / "s" / "b", chest()[:12], SeriesInstanceUID="1.9", KVP=80)
    out = tmp_path / "seen.png"
    arguments = ["--as", "ct", "--out", str(out), "--model", str(model_folder)]
    assert main(["check", str(tmp_path / "s"), *arguments]) == 0
    said = capsys.readouterr().out
    for words in ("dicom, 40 x 64 x 64 voxels", "->", "thin: 40 images", "80 kVp", "coronal slice"):
        assert words in said, words
    seen = np.asarray(Image.open(out)).astype(float) / 127.5 - 1
    loaded = read_stream(tmp_path / "s", "ct", size=32).image[0].numpy()
    assert np.abs(seen - loaded).max() < 0.01
    assert main(["check", str(tmp_path / "s"), "--as", "xray"]) == 2
    said = capsys.readouterr().err
    assert "none of which can be the stream xray; name the stream that fits: ct" in said


def test_check_reads_a_report(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "Large left pleural effusion. No pneumothorax."
    assert main(["check", words, "--as", "text", "--model", str(model_folder)]) == 0
    said = capsys.readouterr().out
    assert "large left pleural_effusion" in said and "denied in it: pneumothorax" in said


def test_a_long_line_of_an_nrrd_header_is_refused_before_itk_sees_it(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((4, 20, 20), np.float32))
    sitk.WriteImage(image, str(tmp_path / "a.nrrd"))
    whole = (tmp_path / "a.nrrd").read_bytes()
    for line, refused in ((b"x" * 2000, True), (b"#" + b"x" * 2000, False)):
        (tmp_path / "b.nrrd").write_bytes(whole.replace(b"\nkinds:", b"\n" + line + b"\nkinds:"))
        if refused:
            with pytest.raises(FileError, match="a line of 2000 bytes in the NRRD header"):
                read_volume(tmp_path / "b.nrrd", "ct")
        else:
            assert read_volume(tmp_path / "b.nrrd", "ct").array.shape == (4, 20, 20)


def test_a_length_beyond_the_end_takes_no_memory(tmp_path: Path) -> None:
    """Of a DICOM element: four bytes of a header must not take gigabytes."""
    ds = dicom_slice((chest()[20] + 1024).astype(np.int16), KVP=120)
    ds.save_as(tmp_path / "a.dcm")
    whole = (tmp_path / "a.dcm").read_bytes()
    at = whole.index(b"\xe0\x7f\x10\x00OW") + 8  # PixelData, its length
    (tmp_path / "a.dcm").write_bytes(whole[:at] + b"\xfe\xff\xff\x7f" + whole[at + 4 :])
    tracemalloc.start()
    array = read_volume(tmp_path / "a.dcm", "ct").array
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6 and np.abs(array[0] - chest()[20]).max() < 1  # the data are all there
