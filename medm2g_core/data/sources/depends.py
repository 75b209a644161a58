"""What the bytes of a prepared shard depend on: the code that reads the data set, the libraries,
and what a scan found out about each study."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from medm2g_core import __version__
from medm2g_core.data.sources.base import Entry, Source

__all__ = ["code_digest", "entry_facts", "versions"]

_CODE = (
    "../dicom.py",
    "../files.py",
    "../intensity.py",
    "../volumes.py",
    "archives.py",
    "base.py",
    "grids.py",
    "imaging.py",
    "radiographs.py",
    "registration.py",
    "shards.py",
    "tables.py",
)
"""Files besides the source's own whose text decides on the bytes of a shard."""
_LIBRARIES = (
    "numpy",
    "torch",
    "pillow",
    "scipy",
    "scikit-image",
    "SimpleITK",
    "nibabel",
    "pydicom",
)


def code_digest(source: Source) -> str:
    """A hash of the program text that reads this data set; line ends do not count."""
    here = Path(__file__).resolve().parent
    own = sys.modules[type(source).__module__].__file__
    digest = hashlib.sha256()
    for path in (*((here / name).resolve() for name in _CODE), *((Path(own),) if own else ())):
        digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def versions() -> dict[str, str]:
    python = ".".join(map(str, sys.version_info[:3]))
    return {"medm2g_core": __version__, "python": python} | {
        n: importlib.metadata.version(n) for n in _LIBRARIES
    }


def entry_facts(entry: Entry, root: Path) -> Any:
    """All that a scan found out about a study, and the sizes of its files, independent of where the
    tree is."""
    return [_plain(value, root) for value in vars(entry).values()] + [
        _bytes(p) for p in entry.files.values()
    ]


def _plain(value: Any, root: Path) -> Any:
    """As JSON values; a path relative to the tree, and of unknown objects only their type."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return (
            value.relative_to(root).as_posix() if value.is_relative_to(root) else value.as_posix()
        )
    if isinstance(value, Mapping):
        return [[str(k), _plain(v, root)] for k, v in value.items()]
    if isinstance(value, Sequence):
        return [_plain(v, root) for v in value]
    if is_dataclass(value):
        return _plain(vars(value), root)
    return type(value).__name__


def _bytes(path: Path) -> int:
    """Size of a file, or of the files in a folder; -1 where nothing is (reading it then says
    so)."""
    try:
        if path.is_dir():
            return sum(p.stat().st_size for p in path.iterdir() if p.is_file())
        return path.stat().st_size
    except OSError:
        return -1
