"""The set-up cell of the notebooks: the same text in all, so that each opens from a clone, and from
nothing, as on Colab.

``python -m medm2g_core.show.set_up`` puts it behind the parameters of every notebook, and brings it
up to date where it stands already. In a clone whose environment is ready the cell does nothing and
prints nothing: so the other outputs stay as they are, and execution counts move by one. If
pyproject.toml names the repository, its address stands in the cell and each notebook gets a badge
that opens it on Colab.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medm2g_core.storage import atomic_write

__all__ = ["badge", "main", "repository", "set_up_source", "with_set_up"]

ROOT = Path(__file__).resolve().parents[2]

_FIRST_LINE = (
    "# Set-up. Where the package is installed this does nothing; elsewhere it installs it."
)
_SOURCE = """{first}
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = "{repository}"  # address to clone from, where there is no clone, as on Colab
if importlib.util.find_spec("medm2g_core") is None:
    here = Path.cwd()
    clone = next((p for p in (here, *here.parents) if (p / "medm2g_core").is_dir()), None)
    if clone is None:
        if not REPOSITORY:
            raise RuntimeError("no clone here: write the repository's address into REPOSITORY")
        clone = here / "medm2g-core"
        subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, str(clone)], check=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--editable", f"{{clone}}[notebooks]"]
    subprocess.run(pip, check=True)
    subprocess.run([sys.executable, "-m", "medm2g_core", "prepare"], check=True, cwd=clone)
    sys.path.insert(0, str(clone))
    os.chdir(clone / "notebooks")"""


def repository(root: Path = ROOT) -> str:
    """Address of the repository as pyproject.toml has it; empty where it names none."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project.get("urls", {}).get("Repository", ""))


def set_up_source(address: str) -> str:
    """Text of the cell."""
    return _SOURCE.format(first=_FIRST_LINE, repository=address)


def badge(name: str, address: str) -> str:
    """Markdown of the badge that opens a notebook on Colab; empty where Colab cannot fetch it."""
    prefix = "https://github.com/"
    if not address.startswith(prefix):
        return ""
    place = address.removeprefix(prefix).removesuffix(".git").strip("/")
    target = f"https://colab.research.google.com/github/{place}/blob/main/notebooks/{name}"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({target})"


def with_set_up(notebook: Mapping[str, Any], name: str, address: str) -> dict[str, Any]:
    """The notebook (as JSON) with the cell behind its parameters, and the badge if there is one.

    Raises:
        ValueError: no cell is tagged ``parameters``.
    """
    cells: list[dict[str, Any]] = json.loads(json.dumps(notebook["cells"]))
    cells = [c for c in cells if not "".join(c["source"]).startswith((_FIRST_LINE, "[![Open in"))]
    places = [i for i, c in enumerate(cells) if "parameters" in c["metadata"].get("tags", [])]
    if not places:
        raise ValueError(f"{name}: no cell is tagged 'parameters'")
    lines = set_up_source(address).splitlines(keepends=True)
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": "set-up",
        "metadata": {"tags": ["hide-input"]},
        "outputs": [],
        "source": lines,
    }
    cells.insert(places[0] + 1, cell)
    if shown := badge(name, address):
        mark = {"cell_type": "markdown", "id": "badge", "metadata": {}, "source": [shown]}
        cells.insert(1, mark)
    code = [c for c in cells if c["cell_type"] == "code" and "".join(c["source"]).strip()]
    if any(c["execution_count"] for c in code):  # as if executed with it, see above
        for count, c in enumerate(code, start=1):
            c["execution_count"] = count
    return {**notebook, "cells": cells}


def main() -> None:
    """Bring every notebook up to date."""
    address = repository()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        changed = with_set_up(notebook, path.name, address)
        if changed != notebook:
            text = json.dumps(changed, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
            atomic_write(path, lambda p, text=text: p.write_text(text, encoding="utf-8"))
            print(path)


if __name__ == "__main__":
    main()
