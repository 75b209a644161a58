"""Every test file inside the pydicom and nibabel wheels either loads or is refused with one
sentence.

The files are oddities on purpose: compressed, truncated, big-endian, colour, without pixels, other
formats, plain text.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from nibabel.testing import data_path as nibabel_data_path
from test_files import dicom_slice

from medm2g_core.data.files import read_stream, read_volume
from medm2g_core.data.volumes import FileError
from medm2g_core.streams import StreamError, check_image

SECONDS_A_FILE = (
    60.0  # a hang, not slowness, is what it tells; the slowest file takes about one second
)
ROOTS = {"pydicom": Path(pydicom.data.__file__).parent, "nibabel": Path(nib.__file__).parent}
# Measured with pydicom 3.0, nibabel 5.4 and pydicom's own decoders: how many files must go on
# loading.
LOADED = {
    # The others are projections, scouts, mosaics, films of the neck and a negative.
    "pydicom": {"volume": 64, "ct": 7, "mri_t1": 31, "xray": 12},
    "nibabel": {"volume": 10, "ct": 0, "mri_t1": 2, "xray": 0},
}


def shipped(library: str) -> list[Path]:
    """All files of the library that are no program."""
    files = (
        p
        for p in ROOTS[library].rglob("*")
        if p.is_file() and p.suffix not in (".py", ".pyc", ".pyi", ".so")
    )
    return sorted(files)


def attempts(path: Path) -> dict[str, Callable[[], Any]]:
    """What is tried with each file."""
    return {
        "volume": lambda: read_volume(path, "mri_t1"),
        **{n: lambda n=n: read_stream(path, n, size=48) for n in ("ct", "mri_t1", "xray")},  # type: ignore[misc]
    }


def outcome(doing: Callable[[], Any]) -> tuple[str, Any]:
    """``("loaded", result)``, ``("refused", message)``, or what went wrong in words."""
    start = time.monotonic()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a warning of a library must not reach the user either
            result = doing()
    except (FileError, StreamError) as error:
        text = str(error)
        if not text.strip() or "\n" in text or len(text) > 600:
            return f"a message that is not one sentence: {text[:100]!r}", None
        state, result = "refused", text
    except Exception as error:  # the very thing that must not happen; named in the list of failures
        return f"{type(error).__name__} escaped: {error}", None
    else:
        state = "loaded"
    taken = time.monotonic() - start
    return (state, result) if taken < SECONDS_A_FILE else (f"{taken:.0f} s", None)


def wrong_picture(kind: str, result: Any) -> str:
    """What is wrong with a result, or nothing."""
    if kind == "volume":
        fine = (
            result.array.dtype == np.float32
            and result.array.ndim in (2, 3)
            and result.array.size > 0
        )
        return "" if fine else f"an array of {result.array.dtype} {result.array.shape}"
    image = check_image(result.image, kind)
    return (
        ""
        if image.shape == (1, 48, 48) and np.ptp(image.numpy()) > 0.1
        else "a blank or misshapen picture"
    )


@pytest.mark.parametrize("library", list(ROOTS))
def test_every_shipped_file_loads_or_is_refused(library: str) -> None:
    failures, loaded = [], Counter[str]()
    for path in shipped(library):
        for kind, doing in attempts(path).items():
            state, result = outcome(doing)
            if state == "loaded":
                loaded[kind] += 1
                state = wrong_picture(kind, result) or state
            if state not in ("loaded", "refused"):
                failures.append(f"{path.name} as {kind}: {state}")
    assert not failures, "\n".join(failures)
    fewer = {k: (loaded[k], n) for k, n in LOADED[library].items() if loaded[k] < n}
    assert not fewer, f"fewer files load than did (now, then): {fewer}"


def test_the_files_looked_at_are_the_test_files_of_both_libraries() -> None:
    # Not pydicom.data.get_testdata_files: it fetches further files from the network.
    dicom, nifti = shipped("pydicom"), shipped("nibabel")
    assert {"CT_small.dcm", "MR_truncated.dcm", "rtplan.dcm", "DICOMDIR"} <= {p.name for p in dicom}
    of_nibabel = {p for p in Path(nibabel_data_path).iterdir() if p.is_file() and p.suffix != ".py"}
    assert of_nibabel <= set(nifti) and len(dicom) > 150 and len(of_nibabel) > 40


@pytest.mark.parametrize("library", list(ROOTS))
def test_every_shipped_folder_loads_or_is_refused(library: str) -> None:
    folders = sorted({p.parent for p in shipped(library)})
    failures = [
        f"{folder}: {state}"
        for folder in folders
        for state, _ in [outcome(lambda folder=folder: read_stream(folder, "mri_t1", size=48))]  # type: ignore[misc]
        if state not in ("loaded", "refused")
    ]
    assert folders and not failures, "\n".join(failures)


@pytest.mark.parametrize("library", list(ROOTS))
def test_damaged_copies_load_or_are_refused(library: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    failures, states = [], Counter[str]()
    for path in (p for p in shipped(library) if 200 < p.stat().st_size < 40_000):
        whole = path.read_bytes()
        flipped = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 1500), 3):
            flipped[place] = int(rng.integers(256))
        for damage, data in (("cut", whole[: len(whole) // 2]), ("flipped", bytes(flipped))):
            copy = tmp_path / "damaged"
            copy.write_bytes(data)
            state, _ = outcome(lambda copy=copy: read_stream(copy, "mri_t1", size=48))  # type: ignore[misc]
            states[state] += 1
            if state not in ("loaded", "refused"):
                failures.append(f"{path.name}, {damage}: {state}")
    assert not failures, "\n".join(failures)
    assert states["refused"] > 50


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert outcome(lambda: read_stream(tmp_path / "loop", "ct"))[0] == "refused"
    copy = tmp_path / "a" / "CT_small.dcm"
    copy.parent.mkdir()
    shutil.copy(ROOTS["pydicom"] / "test_files" / "CT_small.dcm", copy)
    assert outcome(lambda: read_stream(copy / "inside_a_file", "ct"))[0] == "refused"


def test_line_breaks_of_a_header_do_not_reach_the_message(tmp_path: Path) -> None:
    ds = dicom_slice(np.eye(32, dtype=np.int16))
    del ds.PixelData
    ds.SOPClassUID = "1.2\n\x1b[31m3"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom says that the value is not allowed
        ds.save_as(tmp_path / "a.dcm")
    with pytest.raises(FileError, match="without pixel data") as caught:
        read_stream(tmp_path / "a.dcm", "ct")
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert str(FileError("one\r\ntwo")) == "one two"
