"""Mutated files of every format load or are refused in a sentence; none ends in a foreign error."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from film_helpers import dicom_film, film
from PIL import Image
from replicas.files import chest, dicom_slice, save_nifti

from medm2g_core.data.files import FileError, read_stream

HEADER_BYTES = 700
SPECIAL = (np.nan, np.inf, 0.0, -1.0, 1e38, 1e-30)
EACH = 140
KINDS = {
    "a.nii": "ct",
    "a.mha": "ct",
    "a.nrrd": "ct",
    "ct.dcm": "ct",
    "film.dcm": "xray",
    "a.png": "xray",
    "a.jpg": "xray",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    small = chest((24, 32, 32))
    save_nifti(folder / "a.nii", small)
    image = sitk.GetImageFromArray(small)
    image.SetSpacing((5.0, 5.0, 6.0))
    for name in ("a.mha", "a.nrrd"):
        sitk.WriteImage(image, str(folder / name))
    dicom_slice((chest()[20] + 1024).astype(np.int16), KVP=120).save_as(folder / "ct.dcm")
    dicom_film((film() * 4000).astype(np.uint16), WindowCenter=2000, WindowWidth=4000).save_as(
        folder / "film.dcm"
    )
    for name in ("a.png", "a.jpg"):
        Image.fromarray((film() * 255).astype(np.uint8)).save(folder / name)
    return folder


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes of the header changed, replaced by a special number or left out, and sometimes
    the end cut off."""
    raw = bytearray(whole)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(min(len(raw), HEADER_BYTES)))
        kind = int(rng.integers(4))
        if kind == 0:
            raw[at] = int(rng.integers(256))
        elif kind == 1:
            raw[at : at + 4] = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
        elif kind == 2:
            raw[at : at + 4] = np.float32(rng.choice(SPECIAL)).tobytes()
        else:
            del raw[at : at + int(rng.integers(1, 9))]
    return bytes(raw[: int(rng.integers(len(raw)))] if rng.random() < 0.1 else raw)


@pytest.mark.parametrize("name", KINDS)
def test_mutated_files_load_or_are_refused(files: Path, tmp_path: Path, name: str) -> None:
    rng, whole = np.random.default_rng(0), (files / name).read_bytes()
    refused, failures = 0, []
    for number in range(EACH):
        (tmp_path / name).write_bytes(mutated(whole, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                read_stream(tmp_path / name, KINDS[name], size=32)
        except FileError as error:
            refused += 1
            if "\n" in str(error) or len(str(error)) > 600:
                failures.append(f"{number}: no sentence")
        except Exception as error:  # the very thing that must not happen
            failures.append(f"{number}: {type(error).__name__}: {error}")
    assert not failures, failures[:5]
    assert refused > EACH // 4, "the mutations do some harm"
