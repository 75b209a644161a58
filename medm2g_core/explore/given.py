"""What is given to the model, and where it came from: typed words, a virtual patient, the user's
own files.

A `Given` knows its origin, so that the same call can be written down and made again
(`medm2g_core.explore.export`). Of an uploaded file only the picture is kept: not its name, and no
word of its header.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.files import FileError, LoadedImage, picture_of, read_text, read_volume
from medm2g_core.data.slices import Plane
from medm2g_core.data.volumes import Volume
from medm2g_core.streams import StreamError, Study, stream

__all__ = [
    "MAX_UPLOAD_BYTES",
    "PATIENTS",
    "Given",
    "Patient",
    "Scan",
    "digest",
    "from_file",
    "from_patient",
    "from_upload",
    "scan_file",
    "scan_upload",
    "typed",
]

MAX_UPLOAD_BYTES = 64 * 1024 * 1024
"""Of all files of one upload: a chest CT of 512 by 512 by 120 slices. It travels through the
browser and lies in memory twice."""

PATIENTS = 64
"""Virtual patients of a split and region that a menu offers: one shard of the cohort's cache."""

UPLOADED = "the uploaded file"


@dataclass(frozen=True)
class Given:
    """One given stream.

    Attributes:
        stream: its name.
        value: image (1, H, W) in -1..1, or a report.
        origin: ``kind`` (``"typed"``, ``"patient"``, ``"file"`` or ``"upload"``) and what is needed
            to get it again.
        notes: what was found and done when a file was read.
        plane: of an image from a file: ``"axial"``, ``"coronal"`` or ``"flat"``; else empty.
        spacing_mm: (row, column) spacing of an image; ``None`` where nobody knows.
        index: number of the slice of a volume; ``None`` where there is none.
    """

    stream: str
    value: torch.Tensor | str
    origin: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    plane: str = ""
    spacing_mm: tuple[float, float] | None = None
    index: int | None = None

    @property
    def kind(self) -> str:
        return str(self.origin["kind"])


@dataclass(frozen=True)
class Patient:
    """A virtual patient by number.

    Attributes:
        region: ``"chest"`` or ``"brain"``.
        number: from 0.
        split: ``"test"``, ``"val"`` or ``"train"``.
        seed: of the cohort.
    """

    region: str
    number: int
    split: str = "test"
    seed: int = 0
    _loaded: dict[int, Study] = field(default_factory=dict, compare=False, repr=False)

    def study(self, resolution: int) -> Study:
        """All streams of the patient, drawn now if they are not in the cache of the cohort.

        Raises:
            ValueError: a number outside 0..`PATIENTS`-1, or no such split or region.
        """
        if not 0 <= self.number < PATIENTS:
            raise ValueError(f"patient {self.number}: needed a number from 0 to {PATIENTS - 1}")
        if resolution not in self._loaded:
            cohort = VirtualCohort(
                self.split, self.region, self.number + 1, self.seed, resolution, workers=0
            )
            self._loaded[resolution] = cohort[self.number]
        return self._loaded[resolution]

    @property
    def facts(self) -> dict[str, Any]:
        return {
            "region": self.region,
            "number": self.number,
            "split": self.split,
            "seed": self.seed,
        }


def digest(image: torch.Tensor) -> str:
    """SHA-256 of a picture's values, to tell whether two pictures are the same bit for bit."""
    array = np.ascontiguousarray(image.detach().float().cpu().numpy().astype("<f4"))
    return hashlib.sha256(array.tobytes()).hexdigest()


def typed(words: str) -> Given:
    """Words of the user.

    Raises:
        StreamError: there are none.
    """
    if not words.strip():
        raise StreamError("there are no words yet: type a sentence, or choose a finding")
    return Given("text", words.strip(), {"kind": "typed"})


def from_patient(patient: Patient, name: str, resolution: int) -> Given:
    """One stream of a virtual patient.

    Raises:
        StreamError: the patient has no such stream.
    """
    study = patient.study(resolution)
    value = study[name]
    plane = "" if isinstance(value, str) else {"chest": "coronal"}.get(study.region, "axial")
    spacing = None if isinstance(value, str) else study.spacing_mm
    return Given(name, value, {"kind": "patient", **patient.facts}, (), plane, spacing)


def from_file(
    path: str | Path, name: str, size: int, *, plane: Plane = "auto", index: int | None = None
) -> Given:
    """A file of this machine, by its path.

    Args:
        path: as `medm2g_core.data.files.read_stream` takes it; for a report a text file.
        name: stream to read it as.  size: side of the image in pixels.
        plane, index: of the slice, as in `medm2g_core.data.files.read_stream`.

    Raises:
        FileError: it cannot be that stream.
    """
    if not stream(name).is_image:
        origin = {"kind": "file", "path": str(path), "plane": plane, "slice": index}
        return Given(name, read_text(Path(path)), origin)
    return scan_file(path, name).slice(size, plane=plane, index=index)


def from_upload(
    files: Sequence[bytes],
    name: str,
    size: int,
    *,
    plane: Plane = "auto",
    index: int | None = None,
) -> Given:
    """A picture from the content of one file, or of the files of one DICOM series.

    Args:
        files, name: as in `scan_upload`.  size, plane, index: as in `from_file`.

    Raises:
        FileError: as `scan_upload`, or nothing that can be that stream.
    """
    return scan_upload(files, name).slice(size, plane=plane, index=index)


@dataclass(frozen=True)
class Scan:
    """A file as it was read, of which any slice can be given.

    Attributes:
        stream: name of the stream that it was read as.
        volume: its values. Of an upload no name of a file is in it.
        origin: where it came from, as in `Given`.
        called: what a complaint calls it.
    """

    stream: str
    volume: Volume = field(repr=False)
    origin: Mapping[str, Any]
    called: str

    def slice(self, size: int, *, plane: Plane = "auto", index: int | None = None) -> Given:
        """One slice as the model takes it; a flat picture as it is.

        Args:
            size, plane, index: as in `medm2g_core.data.files.read_stream`.

        Raises:
            FileError: it cannot be that stream, or there is no such slice.
        """
        try:
            loaded = picture_of(self.volume, self.stream, size, plane, index)
        except FileError as error:
            raise FileError(f"{self.called}: {error}") from error
        return _picture(loaded, self.stream, {**self.origin, "plane": plane, "slice": index})


def scan_file(path: str | Path, name: str) -> Scan:
    """An image file of this machine, or a folder with a DICOM series.

    Raises:
        FileError: it cannot be read.
    """
    origin = {"kind": "file", "path": str(path)}
    return Scan(name, read_volume(Path(path), name), origin, str(path))


def scan_upload(files: Sequence[bytes], name: str) -> Scan:
    """The content of one image file, or of the files of one DICOM series.

    The content is written to a temporary folder, read, and deleted before this returns.

    Args:
        files: contents. Names are not taken: they often hold a patient's.
        name: an image stream.

    Raises:
        FileError: nothing, too much, or nothing that can be read; the sentence names neither file
            nor folder.
    """
    if not stream(name).is_image:
        raise FileError("a report is typed or pasted, not uploaded")
    total = sum(map(len, files))
    if not total:
        raise FileError(f"{UPLOADED} is empty")
    if total > MAX_UPLOAD_BYTES:
        raise FileError(
            f"{UPLOADED} has {total / 2**20:.0f} MB; at most {MAX_UPLOAD_BYTES / 2**20:.0f} MB are"
            " taken: give one slice or a coarser volume, or name a path in the notebook"
        )
    with tempfile.TemporaryDirectory(prefix="medm2g-upload-") as folder:
        paths = [Path(folder) / f"{i}" for i in range(len(files))]
        for path, content in zip(paths, files, strict=True):
            path.write_bytes(content)
        source = paths[0] if len(paths) == 1 else Path(folder)
        try:
            volume = read_volume(source, name)
        except FileError as error:
            raise FileError(_nameless(str(error), source, folder)) from None
    volume.notes = [_nameless(note, source, folder) for note in volume.notes]
    return Scan(name, volume, {"kind": "upload"}, UPLOADED)


def _nameless(sentence: str, source: Path, folder: str) -> str:
    return sentence.replace(str(source), UPLOADED).replace(folder, UPLOADED)


def _picture(loaded: LoadedImage, name: str, origin: Mapping[str, Any]) -> Given:
    known = bool(np.isfinite(loaded.spacing_mm).all())
    return Given(
        name,
        loaded.image,
        {**origin, "sha256": digest(loaded.image)},
        loaded.notes,
        loaded.plane,
        loaded.spacing_mm if known else None,
        loaded.index,
    )
