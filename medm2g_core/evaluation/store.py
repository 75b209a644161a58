"""Finished sections on disk, one ``<section>.json`` each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from medm2g_core.evaluation.table import SectionResult
from medm2g_core.storage import CacheFile

__all__ = ["load_results", "load_section", "save_section"]


def _file(folder: Path, name: str, key: str) -> CacheFile:
    return CacheFile(folder / f"{name}.json", key)


def load_section(folder: Path, name: str, key: str) -> SectionResult | None:
    """The stored result if it was stored with this key (`medm2g_core.storage.digest` of all that it
    depends on), else ``None``."""
    plain = _file(folder, name, key).load_json()
    return None if plain is None else SectionResult.from_dict(plain)


def save_section(folder: Path, name: str, key: str, outcome: SectionResult) -> None:
    """Store a result in one step."""
    _file(folder, name, key).save_json(outcome.to_dict())


def load_results(folder: Path, sections: Iterable[str]) -> dict[str, SectionResult]:
    """The stored results of these sections, whatever they were measured with: for tables.

    Returns:
        section -> result, in the order of ``sections``; a section without a file is left out.
    """
    out = {}
    for name in sections:
        file = folder / f"{name}.json"
        if file.is_file():
            plain = json.loads(file.read_text(encoding="utf-8"))
            out[name] = SectionResult.from_dict(plain["result"])
    return out
