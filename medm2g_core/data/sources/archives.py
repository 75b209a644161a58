"""Patients as zip archives or folders, read alike and where they are."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from medm2g_core.data.sources.trees import files_below
from medm2g_core.data.volumes import FileError, blame

__all__ = ["member_names", "open_member", "opened", "patient_places"]

MAX_ARCHIVE_BYTES = 8_000_000_000
"""More than any patient has, unpacked: a larger archive is refused."""


def patient_places(root: Path) -> list[Path]:
    """Archives and folders of patients; wrapper folders are passed, a folder with DICOM files in it
    is one patient."""
    while True:
        inside = sorted(p for p in root.iterdir() if not p.name.startswith((".", "__MACOSX")))
        if len(inside) == 1 and inside[0].is_dir() and any(p.is_dir() for p in inside[0].iterdir()):
            root = inside[0]
            continue
        break
    heads = {p: _head(p) for p in inside if p.is_file()}
    if any(head[128:132] == b"DICM" for head in heads.values()):
        return [root]
    return [
        p for p in inside if p.is_dir() or heads[p][:4] == b"PK\x03\x04"
    ]  # a cut-off archive too


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(132)


@contextmanager
def opened(place: Path) -> Iterator[zipfile.ZipFile | None]:
    """The archive, or ``None`` for a folder.

    Raises:
        FileError: a broken archive, one with names that lead out of it, or one that is far too
            large.
    """
    if place.is_dir():
        yield None
        return
    with blame(place, "opening the archive"):
        archive = zipfile.ZipFile(place)
    with archive:
        for info in archive.infolist():
            name = PurePosixPath(info.filename.replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts or re.match(r"[A-Za-z]:", info.filename):
                raise FileError(
                    f"{place}: the member {info.filename!r} leads out of the archive; it is not"
                    " trusted"
                )
        if sum(i.file_size for i in archive.infolist()) > MAX_ARCHIVE_BYTES:
            raise FileError(
                f"{place}: unpacks to more than {MAX_ARCHIVE_BYTES} bytes, which no patient of the"
                " set does"
            )
        yield archive


def member_names(place: Path, archive: zipfile.ZipFile | None) -> list[str]:
    if archive is None:
        return [str(p.relative_to(place)) for p in files_below(place, "*")]
    return sorted(i.filename for i in archive.infolist() if not i.is_dir())


def open_member(place: Path, archive: zipfile.ZipFile | None, name: str) -> IO[bytes]:
    return (place / name).open("rb") if archive is None else archive.open(name)
