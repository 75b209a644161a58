"""Tables that come with data sets: CSV files, packed or not, wherever they lie."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medm2g_core.data.sources.base import SourceError

__all__ = ["find_file", "open_table", "read_table"]


def find_file(folder: Path, *patterns: str) -> Path | None:
    """The first file that matches, pattern by pattern, plain or with ``.gz``; at ``folder`` or one
    level below it."""
    for pattern in patterns:
        for glob in (pattern, f"{pattern}.gz", f"*/{pattern}", f"*/{pattern}.gz"):
            # "._name" files are what macOS leaves in archives
            found = sorted(
                p for p in folder.glob(glob) if p.is_file() and not p.name.startswith(".")
            )
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
        raise SourceError(
            f"{path}: this table cannot be read ({error}); download it again"
        ) from error


def read_table(path: Path, needed: tuple[str, ...] = ()) -> list[dict[str, str]]:
    """Rows of a table, every value stripped, missing ones ``""``; names of columns are stripped
    too.

    Args:
        needed: columns that must be there.

    Raises:
        SourceError: not readable, or a needed column is missing.
    """
    with open_table(path) as text:
        reader = csv.reader(text)
        header = [name.strip() for name in next(reader, [])]
        if missing := [n for n in needed if n not in header]:
            raise SourceError(
                f"{path}: no column {', '.join(missing)}; there are: {', '.join(header) or 'none'}"
            )
        rows = []
        for cells in reader:
            padded = [c.strip() for c in cells] + [""] * (len(header) - len(cells))
            if any(padded):
                rows.append(dict(zip(header, padded, strict=False)))
    return rows
