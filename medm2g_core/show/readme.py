"""The README's numbers are printed by this program, never typed: ``python -m medm2g_core.show.readme``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from medm2g_core.evaluation.quick import markdown
from medm2g_core.model import atomic_write

__all__ = ["blocks", "fill", "main"]

ROOT = Path(__file__).resolve().parents[2]


def blocks(root: Path = ROOT) -> dict[str, str]:
    """Name of each block of the README -> its text, from the files in ``results/``."""
    out = {}
    quick = root / "results" / "quick.json"
    if quick.is_file():
        out["results"] = markdown(json.loads(quick.read_text(encoding="utf-8")))
    speed = root / "results" / "speed.json"
    if speed.is_file():
        rows = json.loads(speed.read_text(encoding="utf-8"))
        lines = ["| what | measured | aim | where |", "|---|---|---|---|"]
        lines += [f"| {r['what']} | {r['measured']} | {r['aim']} | {r['where']} |" for r in rows.values()]
        out["speed"] = "\n".join(lines) + "\n"
    return out


def fill(text: str, parts: dict[str, str]) -> str:
    """``text`` with every ``<!-- name:begin --> ... <!-- name:end -->`` block replaced.

    Raises:
        ValueError: the text has no such block.
    """
    for name, part in parts.items():
        pattern = re.compile(rf"<!-- {name}:begin -->\n.*?<!-- {name}:end -->", re.S)
        if not pattern.search(text):
            raise ValueError(f"the README has no block {name!r}")
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        text = pattern.sub(lambda _, block=begin + part + end: block, text)  # type: ignore[misc]
    return text


def main() -> None:
    """Rewrite README.md in place."""
    file = ROOT / "README.md"
    text = fill(file.read_text(encoding="utf-8"), blocks())
    atomic_write(file, lambda p: p.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
