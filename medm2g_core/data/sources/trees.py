"""The files and folders of a data set's tree, wherever people put them: links are followed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

__all__ = ["files_below", "folders_below", "is_file", "words"]

_LEAVINGS = ("__MACOSX",)
"""Folders that packers leave behind; what they hold looks like data by name. So do names that begin
with a dot."""


def folders_below(root: Path) -> Iterator[Path]:
    """``root`` and all folders below it, each folder once.

    Links to folders are followed, after the folders that are really there, so that a folder that
    can be reached on two ways is given under its own name; one that leads to a folder that was seen
    before, as a link to a folder above it does, is passed over. A link may lead out of the tree:
    people keep large parts on another disk.
    """
    seen: set[tuple[int, int]] = set()
    links: list[Path] = []

    def walk(folder: Path) -> Iterator[Path]:
        try:
            status = folder.stat()
            inside = sorted(folder.iterdir())
        except OSError:  # a broken link, or no permission: what is missing is told by the table
            return
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        yield folder
        for path in inside:
            if path.name.startswith(".") or path.name in _LEAVINGS:
                continue
            if path.is_symlink():
                if path.is_dir():
                    links.append(path)
            elif path.is_dir():
                yield from walk(path)

    yield from walk(root)
    while links:  # a linked folder may hold further links
        yield from walk(links.pop(0))


def files_below(root: Path, *patterns: str) -> list[Path]:
    """All files below ``root`` whose name matches one of the patterns (`fnmatch`, in any case),
    sorted; folders as by `folders_below`, and names that begin with a dot are passed over."""
    found = []
    wanted = [p.lower() for p in patterns]
    for folder in folders_below(root):
        for path in folder.iterdir():
            name = path.name.lower()
            if (
                not name.startswith(".")
                and any(fnmatch(name, p) for p in wanted)
                and path.is_file()
            ):
                found.append(path)
    return sorted(found)


def is_file(path: Path) -> bool:
    """Whether a file is there; no is also the answer to a name out of a table that no file can
    have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def words(name: str) -> set[str]:
    """The words of a file's or folder's name in small letters: ``"TestScans_2"`` has ``"test"`` and
    ``"scans"``, ``"latest"`` has only itself."""
    return {w.lower() for w in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
