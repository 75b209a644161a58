"""The set-up cell of the notebooks: it does nothing in a clone, and what is needed elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from medm2g_core.show.set_up import badge, repository, set_up_source, with_set_up

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "https://github.com/someone/medm2g-core"
FOLDER = ROOT / "notebooks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda p: p.name)
def test_every_notebook_has_it_behind_its_parameters(path: Path) -> None:
    """If this fails: python -m medm2g_core.show.set_up"""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert with_set_up(notebook, path.name, repository()) == notebook


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """What a cell runs, where the package is not installed."""
    said: list[list[str]] = []

    def run(command: list[str], **options: object) -> None:
        assert options["check"], "a failure would pass in silence"
        said.append(command)
        if command[:2] == ["git", "clone"]:
            (Path(command[-1]) / "notebooks").mkdir(parents=True)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    return said


def _execute(address: str) -> None:
    exec(compile(set_up_source(address), "set-up", "exec"), {})


def test_where_the_package_is_installed_nothing_happens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(subprocess, "run", None)
    before = os.getcwd()
    _execute("")
    assert os.getcwd() == before and capsys.readouterr() == ("", "")


def test_in_a_clone_without_the_package_it_is_installed_from_there(
    commands: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "medm2g_core").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    _execute(ADDRESS)
    install, prepare = commands
    assert install[1:3] == ["-m", "pip"] and install[-1] == f"{tmp_path}[notebooks]"
    assert prepare[1:] == ["-m", "medm2g_core", "prepare"]
    assert sys.path[0] == str(tmp_path)


def test_without_a_clone_the_repository_is_fetched(
    commands: list[list[str]], tmp_path: Path
) -> None:
    _execute(ADDRESS)
    assert commands[0][:2] == ["git", "clone"] and commands[0][-2] == ADDRESS
    assert len(commands) == 3
    assert Path.cwd() == tmp_path / "medm2g-core" / "notebooks"


def test_without_a_clone_and_an_address_the_error_says_what_to_do(
    commands: list[list[str]],
) -> None:
    with pytest.raises(RuntimeError, match="into REPOSITORY"):
        _execute("")
    assert not commands


def test_a_badge_stands_only_where_colab_can_fetch() -> None:
    assert badge("00_a.ipynb", "") == badge("00_a.ipynb", "https://example.org/x") == ""
    assert "/github/someone/medm2g-core/blob/main/notebooks/00_a.ipynb)" in badge(
        "00_a.ipynb", f"{ADDRESS}.git"
    )


def test_putting_it_in_keeps_all_else_and_can_be_repeated() -> None:
    cells = [
        nbformat.v4.new_markdown_cell("# 00"),
        nbformat.v4.new_code_cell("K: int = 3", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print(K)"),
    ]
    for count, cell in enumerate(cells[1:], start=1):
        cell.execution_count = count
    old = json.loads(nbformat.writes(nbformat.v4.new_notebook(cells=cells)))
    new = with_set_up(old, "00_a.ipynb", ADDRESS)
    nbformat.validate(nbformat.from_dict(new))
    kinds = ["".join(c["source"]).split()[0] for c in new["cells"]]
    assert kinds == ["#", "[![Open", "K:", "#", "print(K)"]
    assert [c.get("execution_count") for c in new["cells"][2:]] == [1, 2, 3]
    assert with_set_up(new, "00_a.ipynb", ADDRESS) == new
    back = with_set_up(new, "00_a.ipynb", "")
    assert [c["source"] for c in back["cells"][:2]] == [c["source"] for c in old["cells"][:2]]


def test_a_notebook_without_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="no cell is tagged 'parameters'"):
        with_set_up({"cells": []}, "x.ipynb", "")
