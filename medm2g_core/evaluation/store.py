"""Finished sections on disk: measured again only when something that they depend on has changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medm2g_core.evaluation.table import SectionResult
from medm2g_core.storage import atomic_write

__all__ = ["ResultStore", "load_results"]


class ResultStore:
    """A folder with one ``<section>.json`` a section.

    Args:
        folder: made when something is stored.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def key(**depends: Any) -> str:
        """A digest of plain values (weights, cohort, settings, version of the section)."""
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:16]

    def get(self, name: str, key: str) -> SectionResult | None:
        """The stored result, or ``None`` if there is none for that key (also when the file is
        damaged)."""
        file = self.folder / f"{name}.json"
        try:
            plain = json.loads(file.read_text(encoding="utf-8"))
            return SectionResult.from_dict(plain["result"]) if plain["key"] == key else None
        except (OSError, json.JSONDecodeError, KeyError, TypeError):
            return None

    def put(self, name: str, key: str, outcome: SectionResult) -> Path:
        """Store a result in one step."""
        file = self.folder / f"{name}.json"
        text = json.dumps({"key": key, "result": outcome.to_dict()}, indent=1) + "\n"
        atomic_write(file, lambda p: p.write_text(text, encoding="utf-8"))
        return file


def load_results(folder: Path, sections: Iterable[str]) -> dict[str, SectionResult]:
    """The stored results of these sections, whatever weights they were measured with.

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
