"""Tables that come with data sets: CSV files, packed or not, wherever they lie."""

from __future__ import annotations

import csv
import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

from medm2g_core.data.sources.base import SourceError

__all__ = ["NOT_THAT_FORM", "find_file", "open_table", "read_table"]


NOT_THAT_FORM = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError)
"""What reading a JSON file raises that cannot be read, holds something else, or is nested without
end."""

DEPTH = 4
"""So many folders deep a table is looked for: ``wget -r`` makes physionet.org/files/name/2.0.0."""

_PATIENTS = re.compile(r"[ps]\d+|images?(_\d+)?|figures", re.IGNORECASE)
"""Folders of people and pictures: there are many, and no table lies in them."""


def find_file(folder: Path, *patterns: str) -> Path | None:
    """The first file that matches, pattern by pattern, plain or with ``.gz``; at ``folder`` or at
    most `DEPTH` levels below it, the nearest one."""
    level = [folder]
    files: list[list[Path]] = []
    for _ in range(DEPTH + 1):
        here: list[Path] = []
        deeper: list[Path] = []
        for each in level:
            for entry in os.scandir(each):
                if entry.name.startswith("."):  # "._name" files are what macOS leaves in archives
                    continue
                if entry.is_file():
                    here.append(Path(entry.path))
                elif entry.is_dir() and not _PATIENTS.fullmatch(entry.name):
                    deeper.append(Path(entry.path))
        files.append(sorted(here))
        level = sorted(deeper)
    for pattern in patterns:
        for inside in files:
            for wanted in (pattern, f"{pattern}.gz"):
                for path in inside:
                    if fnmatchcase(path.name, wanted):
                        return path
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
        raise SourceError(
            f"{path}: this table cannot be read ({error}); download it again"
        ) from error


def read_table(path: Path, needed: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Rows of a table, every value stripped, missing ones ``""``; names of columns are stripped
    too. Columns are parted by commas, semicolons or tabs, whichever the header has most of.

    Args:
        needed: columns that must be there.

    Raises:
        SourceError: not readable, a needed column is missing, or a row is longer than the header.
    """
    with open_table(path) as text:
        lines = iter(text)
        first = next(lines, "")
        # Spreadsheets of many countries write ';' where a comma is the decimal sign.
        parted = max((",", ";", "\t"), key=first.count)
        reader = csv.reader(chain((first,), lines), delimiter=parted)
        header = [name.strip() for name in next(reader, [])]
        if missing := [n for n in needed if n not in header]:
            raise SourceError(
                f"{path}: no column {', '.join(missing)}; there are: {', '.join(header) or 'none'}"
            )
        rows = []
        for cells in reader:
            if any(c.strip() for c in cells[len(header) :]):
                raise SourceError(
                    f"{path}: line {reader.line_num} has {len(cells)} cells and the header"
                    f" {len(header)}; a cell that holds the separator must stand in quotes"
                )
            padded = [c.strip() for c in cells] + [""] * (len(header) - len(cells))
            if any(padded):
                rows.append(dict(zip(header, padded, strict=False)))
    return rows
