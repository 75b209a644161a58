"""What the chest X-ray sets share: tables in .csv or .csv.gz, and one film as a square picture."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from medm2g_core.data.files import read_volume
from medm2g_core.data.sources.base import SourceError
from medm2g_core.data.sources.imaging import film
from medm2g_core.data.volumes import FileError

__all__ = ["Film", "find_file", "open_table", "read_film", "read_table"]


@dataclass(frozen=True)
class Film:
    """A radiograph that was read.

    Attributes:
        image: (1, size, size), -1..1, bone bright, as displayed.
        spacing_mm: of `image`; NaN where the file does not tell.
        kind: ``"dicom"``, ``"png"`` or ``"jpeg"``.
        notes: what was done, in words.
    """

    image: torch.Tensor
    spacing_mm: tuple[float, float]
    kind: str
    notes: tuple[str, ...]


def read_film(path: Path, size: int) -> Film:
    """A radiograph from DICOM, PNG or JPEG, told apart by content; MONOCHROME1 is inverted.

    Raises:
        FileError: missing, broken, blank, a colour picture, or not one flat picture.
    """
    volume = read_volume(path, "xray")
    if volume.kind not in ("dicom", "png", "jpeg"):
        raise FileError(f"{path}: a {volume.kind} file; radiographs come as DICOM, PNG or JPEG")
    notes = list(volume.notes)
    try:
        image = film(volume, size, notes)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
    # The film was padded to a square of its longer side. Unequal spacings would need a resampling that no set needs.
    rows, columns = volume.array.shape[-2:]
    spacing = float(volume.spacing_mm[-1]) * max(rows, columns) / size
    return Film(image, (spacing, spacing), volume.kind, tuple(notes))


def find_file(folder: Path, *patterns: str) -> Path | None:
    """The first file that matches, pattern by pattern, plain or with ``.gz``; at ``folder`` or one level below it."""
    for pattern in patterns:
        for glob in (pattern, f"{pattern}.gz", f"*/{pattern}", f"*/{pattern}.gz"):
            # "._name" files are what macOS leaves in archives
            found = sorted(p for p in folder.glob(glob) if p.is_file() and not p.name.startswith("."))
            if found:
                return found[0]
    return None


@contextmanager
def open_table(path: Path) -> Iterator[Iterable[str]]:
    """A text file, packed with gzip or not, whatever it is called; a byte order mark is dropped.

    Raises:
        SourceError: it cannot be read as UTF-8 text.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        if packed:
            with gzip.open(path, "rt", encoding="utf-8-sig", newline="") as text:
                yield text
        else:
            with path.open(encoding="utf-8-sig", newline="") as text:
                yield text
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: this table cannot be read ({error}); download it again") from error


def read_table(path: Path, needed: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Rows of a table, every value stripped, missing ones ``""``; names of columns are stripped too.

    Args:
        needed: columns that must be there.

    Raises:
        SourceError: not readable, or a needed column is missing.
    """
    with open_table(path) as text:
        reader = csv.reader(text)
        header = [name.strip() for name in next(reader, [])]
        if missing := [n for n in needed if n not in header]:
            raise SourceError(f"{path}: no column {', '.join(missing)}; there are: {', '.join(header) or 'none'}")
        rows = []
        for cells in reader:
            padded = [c.strip() for c in cells] + [""] * (len(header) - len(cells))
            if any(padded):
                rows.append(dict(zip(header, padded, strict=False)))
    return rows
