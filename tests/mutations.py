"""Whole files of every kind that is read, and seeded damage to them: shared by the tests, which try
some hundred of each, and by ``benchmarks/robustness.py``, which tries a million."""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from film_helpers import dicom_film, film
from PIL import Image
from replicas import chestxray14, iu_xray, medicat
from replicas.files import chest, dicom_slice, save_nifti

from medm2g_core.data.files import FileError, read_stream, read_text
from medm2g_core.data.labeller import label_report, other_findings
from medm2g_core.data.sources import open_source
from medm2g_core.data.sources.base import SourceError
from medm2g_core.streams import StreamError

__all__ = ["IMAGES", "TEXTS", "Case", "attempt", "mutated", "whole_files"]

HEADER_BYTES = 700
"""Where the damage falls: the pixels' own bytes may be anything."""

SPECIAL = (np.nan, np.inf, 0.0, -1.0, 1e38, 1e-30)
TOKENS = (
    b"-1",
    b"0",
    b"1e999",
    b"99999999999999999999",
    b"\0",
    b"\xff\xfe",
    b'"',
    b"\n\n",
    b",,,,,,,,",
    b"\r",
    "\u2028\U0001f600".encode(),
    b"[" * 100_000,
    b"<a>" * 20_000,
    b"9" * 5_000,
)
"""What is put between: numbers out of range, ends of lines and of texts, nesting without end."""

GZIP = b"\x1f\x8b"

MAX_LETTERS, MAX_LINES = 600, 3
"""Of a refusal. How a data set's folders should lie comes after it and does not count."""

LAYOUT = "is expected like this:"

IMAGES = {
    "a.nii": "ct",
    "a.nii.gz": "ct",
    "a.mha": "ct",
    "a.nrrd": "ct",
    "ct.dcm": "ct",
    "enhanced.dcm": "ct",
    "film.dcm": "xray",
    "a.png": "xray",
    "deep.png": "xray",
    "a.jpg": "xray",
}
"""File -> the stream that it is read as."""

TEXTS = ("report.txt", "iu.xml", "iu.csv", "iu.json", "chestxray14.csv", "medicat.jsonl")


@dataclass(frozen=True)
class Case:
    """One kind of file.

    Attributes:
        path: where the damaged file is put.
        whole: the undamaged bytes.
        read: reads the file at ``path``.
    """

    path: Path
    whole: bytes
    read: Callable[[], object]


def whole_files(folder: Path) -> dict[str, Case]:
    """Every case by name, each with the files that it needs beside it below ``folder``."""
    small = chest((24, 32, 32))
    save_nifti(folder / "a.nii", small)
    save_nifti(folder / "a.nii.gz", small)
    image = sitk.GetImageFromArray(small)
    image.SetSpacing((5.0, 5.0, 6.0))
    for name in ("a.mha", "a.nrrd"):
        sitk.WriteImage(image, str(folder / name))
    stored = (chest()[20] + 1024).astype(np.int16)
    dicom_slice(stored, KVP=120).save_as(folder / "ct.dcm")
    several = dicom_slice(stored, SpacingBetweenSlices=6.0)
    several.NumberOfFrames, several.PixelData = 3, stored.tobytes() * 3
    several.save_as(folder / "enhanced.dcm")
    dicom_film((film() * 4000).astype(np.uint16), WindowCenter=2000, WindowWidth=4000).save_as(
        folder / "film.dcm"
    )
    for name in ("a.png", "a.jpg"):
        Image.fromarray((film() * 255).astype(np.uint8)).save(folder / name)
    Image.fromarray((film() * 65535).astype(np.uint16)).save(folder / "deep.png")
    cases = {}
    for name, stream in IMAGES.items():
        path = folder / name
        cases[name] = Case(path, path.read_bytes(), lambda p=path, s=stream: _picture(p, s))  # type: ignore[misc]
    report = folder / "report.txt"
    report.write_text("Findings: Large left pleural effusion, 24 mm nodule. No pneumothorax.\n" * 4)
    cases["report.txt"] = Case(report, report.read_bytes(), lambda: _report(report))
    iu_xray.raw(folder / "raw", images=False)
    (folder / "kaggle").mkdir()
    iu_xray.kaggle(folder / "kaggle")
    iu_xray.r2gen(folder / "r2gen")
    chestxray14.chestxray14(folder / "chestxray14")
    medicat.medicat(folder / "medicat")
    for name, source, path in (
        ("iu.xml", "iu_xray", "raw/NLMCXR_reports/ecgen-radiology/1.xml"),
        ("iu.csv", "iu_xray", "kaggle/indiana_reports.csv"),
        ("iu.json", "iu_xray", "r2gen/iu_xray/annotation.json"),
        ("chestxray14.csv", "chestxray14", "chestxray14/Data_Entry_2017_v2020.csv"),
        (
            "medicat.jsonl",
            "medicat",
            "medicat/s2_full_figures_oa_nonroco_combined_medicat_public.jsonl",
        ),
    ):
        at, root = folder / path, folder / path.split("/")[0]
        cases[name] = Case(at, at.read_bytes(), lambda s=source, r=root: _tables(s, r))  # type: ignore[misc]
    return cases


def _picture(path: Path, stream: str) -> None:
    read_stream(path, stream, size=32)


def _report(path: Path) -> None:
    text = read_text(path)
    label_report(text)
    other_findings(text)


def _tables(source: str, root: Path) -> None:
    open_source(source, root).report()


def mutated(whole: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes of the header changed, replaced by a special number, left out, or a token put
    between them, and sometimes the end cut off; of a packed file mostly of what is packed."""
    if whole[:2] == GZIP and rng.random() < 0.8:
        return gzip.compress(mutated(gzip.decompress(whole), rng), 1, mtime=0)
    raw = bytearray(whole)
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(max(1, min(len(raw), HEADER_BYTES))))
        kind = int(rng.integers(9))  # a token is rare, for it breaks a binary file at once
        if kind < 2:
            raw[at : at + 1] = bytes([int(rng.integers(256))])
        elif kind < 4:
            raw[at : at + 4] = rng.integers(0, 256, 4, dtype=np.uint8).tobytes()
        elif kind < 6:
            raw[at : at + 4] = np.float32(rng.choice(SPECIAL)).tobytes()
        elif kind < 8:
            del raw[at : at + int(rng.integers(1, 9))]
        else:
            raw[at:at] = TOKENS[int(rng.integers(len(TOKENS)))]
    return bytes(raw[: int(rng.integers(len(raw)))] if raw and rng.random() < 0.1 else raw)


def attempt(case: Case, data: bytes) -> str:
    """``"read"``, ``"refused"``, or what went wrong in words."""
    case.path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning of a library must not reach the user either
            case.read()
    except (FileError, SourceError, StreamError) as error:
        said = str(error).partition(LAYOUT)[0]
        if not said.strip() or len(said) > MAX_LETTERS or said.count("\n") >= MAX_LINES:
            return f"no sentence: {said[:200]!r}"
        cause = error.__cause__
        return "memory ran out" if isinstance(cause, MemoryError) else "refused"
    except Exception as error:  # the very thing that must not happen
        return f"{type(error).__name__}: {str(error)[:200]}"
    return "read"
