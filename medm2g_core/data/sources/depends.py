"""What the bytes of a prepared shard depend on: the code that reads the data set, the libraries,
what a scan found out about each study, and the content of the files."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from medm2g_core import __version__
from medm2g_core.data.sources.base import Entry, Source
from medm2g_core.data.sources.shards import file_sha256
from medm2g_core.data.sources.trees import files_below
from medm2g_core.storage import atomic_write

__all__ = ["code_digest", "content_digest", "entry_facts", "option_facts", "versions"]

_HERE = Path(__file__).resolve()
_PACKAGE = _HERE.parents[2]

_LARGEST_HEADER = 65_536  # bytes of a text header; those of real files have a few hundred

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
    """A hash of the program text that reads this data set and writes its shards; line ends do not
    count."""
    own = getattr(sys.modules[type(source).__module__], "__file__", None)  # a notebook has none
    files: set[Path] = set()
    waiting = [_HERE.with_name("shards.py"), *((Path(own).resolve(),) if own else ())]
    while waiting:
        path = waiting.pop()
        if path not in files:
            files.add(path)
            waiting += _imported(path)
    texts = sorted(path.read_bytes().replace(b"\r\n", b"\n") for path in files)
    return hashlib.sha256(b"".join(texts)).hexdigest()


@cache
def _imported(path: Path) -> tuple[Path, ...]:
    """The modules of this package that a file imports, wherever in the file."""
    names = [
        name
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.ImportFrom) and node.module
        for name in (node.module, *(f"{node.module}.{part.name}" for part in node.names))
    ]
    files = (_PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py") for name in names)
    return tuple(f for f in files if f.is_relative_to(_PACKAGE) and f.is_file())


def versions() -> dict[str, str]:
    python = ".".join(map(str, sys.version_info[:3]))
    return {"medm2g_core": __version__, "python": python} | {
        n: importlib.metadata.version(n) for n in _LIBRARIES
    }


def entry_facts(entry: Entry, root: Path) -> Any:
    """All that a scan found out about a study, independent of where the tree is."""
    return [_plain(value, root) for value in vars(entry).values()]


def option_facts(source: Source, root: Path) -> Any:
    """The options of a data set that decide on its pictures."""
    return _plain(source.options(), root)


def content_digest(source: Source, entries: Iterable[Entry], root: Path, cache: Path) -> str:
    """A hash of the bytes of all files that reading these entries opens.

    Args:
        cache: file that keeps the hash of each input beside its size and its times, so that a later
            call reads only what was touched, as git's index does. It may be missing.
    """
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: everything is read
        known = {}
    named = {path for entry in entries for path in source.inputs(entry)}
    files = sorted({file for path in named for file in _files_of(path)})
    now: dict[str, list[Any]] = {}
    digests = []
    for path in files:
        name = str(_plain(path, root))
        digest, stamp = _file_digest(path, known.get(name))
        digests.append([name, digest])
        if stamp is not None:
            now[name] = [*stamp, digest]
    if now != known and cache.parent.is_dir():
        content = json.dumps(now, ensure_ascii=False).encode()
        atomic_write(cache, lambda p: p.write_bytes(content))
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


_RACY_NS = 2_000_000_000
"""A file that was changed so shortly before it was hashed may change again within the same tick of
the file system's clock, so its times prove nothing."""


def _file_digest(path: Path, known: Any) -> tuple[str, list[int] | None]:
    """SHA-256 of a file, and size and times to know it by; ``"missing"`` where it cannot be read
    (reading the study then says so)."""
    try:
        status = path.stat()
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        if isinstance(known, list) and known[:3] == stamp and len(known) == 4:
            return str(known[3]), stamp
        digest = file_sha256(path)
    except OSError:
        return "missing", None
    return digest, stamp if time.time_ns() - status.st_ctime_ns > _RACY_NS else None


def _files_of(path: Path) -> list[Path]:
    """A file, with the one that its voxels are in where that is another; or all of a folder."""
    if path.is_dir():
        return files_below(path, "*")
    if path.suffix.lower() not in (".mhd", ".nhdr") or not path.is_file():
        return [path]
    head = path.read_bytes()[:_LARGEST_HEADER].decode("latin-1")
    named = re.findall(r"^(?:ElementDataFile *=|data ?file *:) *(\S.*?)\s*$", head, re.M | re.I)
    others = [path.parent / name for name in named]
    if all(other.is_file() for other in others):
        return [path, *others]
    return files_below(path.parent, "*")  # a list or a pattern of files: one of them for each slice


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
