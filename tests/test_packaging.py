"""Set-up files agree, what is imported is declared and the reverse, and the commands do what is
documented."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import yaml
from oldest import NAME, pins, requirements
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import medm2g_core

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "medm2g_core"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

FOR_NOTEBOOKS = {
    "show/execute.py",
    "show/demo.py",
    "show/figures.py",
    "explore/controls.py",
    "explore/panel.py",
}
"""Files of the package that may import what only the ``notebooks`` extra brings."""
FOR_APP = {"explore/app.py", "explore/warm.py"}
"""The same of the ``app`` extra."""
FOR_VIEWER = {"explore/viewer_box.py"}
"""The same of the ``viewer`` extra."""
NEVER_IMPORTED = {
    "nilearn": "its MNI152 maps are read as files",
    "pip": "fetches the packages that carry the embedded data",
    "setuptools": "pip's metadata step of pyradiomics",
    "wheel": "pip's metadata step of pyradiomics",
    "jupyterlab": "make lab",
    "nbval": "make test, as a plugin of pytest",
    "pytest-xdist": "make test, which runs files of tests in several processes",
    "ruff": "make lint",
    "mypy": "make lint",
}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _names(*extras: str) -> set[str]:
    """What the project asks for, with these extras."""
    listed = [*requirements(PROJECT), *(r for e in extras for r in requirements(PROJECT, e))]
    return {_plain(requirement.name) for requirement in listed}


# --- what is declared


def test_conda_environment_agrees_with_pyproject() -> None:
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    plain = [entry for entry in entries if isinstance(entry, str)]
    python = next(entry.removeprefix("python") for entry in plain if re.match(r"python\b", entry))
    assert SpecifierSet(python) == SpecifierSet(PROJECT["requires-python"])
    named = {re.split(r"[<>=!]", entry)[0] for entry in plain}
    assert named == {"python", "pip"}, "packages are named in pyproject"
    (pip,) = [entry["pip"] for entry in entries if isinstance(entry, dict)]
    assert pip == ["-e .[dev]"]


def test_the_environment_of_make_holds_every_tool_of_the_documented_commands() -> None:
    needed = (
        "torch diffusers transformers accelerate safetensors matplotlib ipywidgets jupyterlab"
        " nibabel pydicom nilearn papermill nbval pytest setuptools wheel ruff mypy"
    )
    assert set(needed.split()) <= _names("dev")
    assert _names("notebooks") <= _names("app") <= _names("test") <= _names("dev")


def test_the_library_alone_brings_no_notebook_and_no_test_tools() -> None:
    assert _names().isdisjoint(
        ["jupyterlab", "ipywidgets", "ipython", "papermill", "nbconvert", "pytest"]
    )


def test_installed_versions_satisfy_the_lower_bounds() -> None:
    for requirement in [*requirements(PROJECT), *requirements(PROJECT, "test")]:
        version = importlib.metadata.version(requirement.name)
        assert requirement.specifier.contains(version, prereleases=True), (
            f"{requirement} but {version} is installed"
        )


def test_the_oldest_environment_is_that_of_the_lower_bounds() -> None:
    pinned = pins(PROJECT)
    assert {_plain(Requirement(pin).name) for pin in pinned} == _names("test")
    listed = {r.name: r for r in [*requirements(PROJECT), *requirements(PROJECT, "test")]}
    for pin in map(Requirement, pinned):
        (exact,) = pin.specifier
        assert exact.operator == "==" and listed[pin.name].specifier.contains(exact.version)


@pytest.mark.parametrize("requirement", ["numpy", "numpy<3", "numpy>=2,<3", "numpy==2.0"])
def test_control_a_requirement_without_one_lower_bound_is_refused(requirement: str) -> None:
    with pytest.raises(ValueError, match="needed one lower bound"):
        pins({"dependencies": [requirement], "optional-dependencies": {"test": []}})


# --- what is imported


def _imported(sources: Iterable[str]) -> set[str]:
    """Top-level names that sources import, wherever in them, of neither Python nor this project."""
    names: set[str] = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names.add(node.module.split(".")[0])
    folders = ("tests", "tests/replicas", "benchmarks", "data_scripts")
    own = {path.stem for folder in folders for path in (ROOT / folder).glob("*.py")}
    return names - set(sys.stdlib_module_names) - own - {"medm2g_core", "replicas", "tests"}


def _texts(paths: Iterable[Path]) -> Iterator[str]:
    for path in paths:
        text = path.read_text(encoding="utf-8")
        if path.suffix != ".ipynb":
            yield text
            continue
        for cell in json.loads(text)["cells"]:
            if cell["cell_type"] == "code":
                lines = "".join(cell["source"]).splitlines()
                yield "\n".join(line for line in lines if not line.startswith(("%", "!")))


def _undeclared(paths: Iterable[Path], *extras: str) -> set[str]:
    declared, owners = _names(*extras), importlib.metadata.packages_distributions()
    return {
        name
        for name in _imported(_texts(paths))
        if declared.isdisjoint(map(_plain, owners.get(name, [name])))
    }


def test_what_the_library_imports_is_a_dependency() -> None:
    apart = FOR_NOTEBOOKS | FOR_APP | FOR_VIEWER
    files = [p for p in PACKAGE.rglob("*.py") if str(p.relative_to(PACKAGE)) not in apart]
    assert not _undeclared(files)


def test_what_notebooks_tests_and_scripts_import_is_in_an_extra() -> None:
    assert not _undeclared((PACKAGE / name for name in FOR_NOTEBOOKS), "notebooks")
    assert not _undeclared((PACKAGE / name for name in FOR_APP), "app")
    assert not _undeclared((PACKAGE / name for name in FOR_VIEWER), "viewer")
    assert not _undeclared((ROOT / "notebooks").rglob("*.ipynb"), "notebooks")
    assert not _undeclared((ROOT / "tests").rglob("*.py"), "test")
    scripts = [p for folder in ("benchmarks", "data_scripts") for p in (ROOT / folder).glob("*.py")]
    assert not _undeclared(scripts, "bench", "meteor")


def test_control_an_undeclared_import_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "def f():\n    from nbformat import read\n    import nothing_x\n"
    )
    assert _undeclared([tmp_path / "a.py"]) == {"nbformat", "nothing_x"}
    assert _undeclared([tmp_path / "a.py"], "notebooks") == {"nothing_x"}


def test_what_is_declared_is_imported() -> None:
    owners = importlib.metadata.packages_distributions()

    def used(*folders: str) -> set[str]:
        files = [p for f in folders for p in (ROOT / f).rglob("*") if p.suffix in (".py", ".ipynb")]
        names = _imported(_texts(files))
        return {_plain(owner) for name in names for owner in owners.get(name, [])}

    reasons = set(NEVER_IMPORTED)
    assert not _names() - used("medm2g_core") - reasons
    assert not _names("dev") - used("medm2g_core", "tests", "notebooks") - reasons
    assert reasons <= _names("dev"), "a reason for what is not declared"
    assert reasons.isdisjoint(used("medm2g_core")), "a reason for what is imported after all"


# --- a process without the packages of notebooks

BLOCKED = ("IPython", "ipywidgets", "jupyterlab", "nbconvert", "nbformat", "nbval", "papermill")


def _modules() -> list[str]:
    out = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name != "__main__.py":
            out.append(".".join(parts[:-1] if path.name == "__init__.py" else parts))
    return out


def test_the_library_needs_no_notebook_packages_and_says_which_extra_brings_them() -> None:
    code = f"""
import importlib, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED!r} + ("pytest", "_pytest"):
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Blocked())
refused = {{}}
for name in {_modules()!r}:
    try:
        importlib.import_module(name)
    except ImportError as error:
        refused[name] = type(error).__name__ + ": " + str(error)

from medm2g_core.cli import main
from medm2g_core.explore.panel import findings_panel
try:
    findings_panel(None)
except ImportError as error:
    refused["panel"] = type(error).__name__ + ": " + str(error)
print(json.dumps(refused), main(["demo", "--out", "nowhere"]), sep="\\n")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    refused, code_of_demo = done.stdout.splitlines()[-2:]
    said = json.loads(refused)
    assert set(said) == {
        "medm2g_core.show.demo",
        "medm2g_core.show.execute",
        "medm2g_core.show.execute_all",
        "panel",
    }, said
    for sentence in [*said.values(), done.stderr.splitlines()[-1]]:
        assert "pip install 'medm2g-core[notebooks]'" in sentence
    assert code_of_demo == "2" and not (ROOT / "nowhere").exists()
    assert all(words.startswith("NotebookPackageError: the package ") for words in said.values())


def test_the_blocked_packages_are_those_of_the_notebooks_extra() -> None:
    owners = importlib.metadata.packages_distributions()
    blocked = {_plain(owner) for name in BLOCKED for owner in owners[name]}
    assert blocked == (_names("notebooks") | {"nbval"}) - _names()


# --- this version


def test_citation_and_licence_name_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == medm2g_core.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert PROJECT["name"] == NAME
    (paper,) = citation["references"]
    assert (
        "Visual Invariant" in paper["title"]
        and paper["identifiers"][0]["value"] == "arXiv:2403.04290"
    )
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


# --- commands


def _make(*arguments: str) -> str:
    if shutil.which("make") is None:
        pytest.skip("make is not installed here")
    done = subprocess.run(
        ["make", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_makefile_has_the_documented_targets() -> None:
    listed = set(re.findall(r"make (\w+)", _make("help")))
    assert {
        "demo",
        "test",
        "lab",
        "prepare",
        "train",
        "smoke",
        "results",
        "bench",
        "lint",
        "clean",
    } <= listed
    readme = ROOT / "README.md"
    if readme.exists():
        named = set(
            re.findall(
                r"(?m)(?:^|`)make (?:[A-Z_]+=\S+ )*(\w+)", readme.read_text(encoding="utf-8")
            )
        )
        assert named <= listed, "README.md names targets that the Makefile lacks"
        assert {"demo", "test"} <= named


def test_demo_and_test_set_up_a_fresh_clone_by_themselves() -> None:
    for target in ("demo", "test"):
        plan = _make("--dry-run", "VENV=nowhere", target)
        steps = ["-m venv nowhere", '"torch==2.13.0"', '-e ".[dev]"', "medm2g_core prepare"]
        at = [plan.index(step) for step in steps]
        assert at == sorted(at), plan


def test_make_test_lints_types_tests_and_replays_notebooks() -> None:
    plan = _make("--dry-run", "NOTEBOOKS=notebooks/a.ipynb", "test")
    for step in (
        "ruff check .",
        "-m mypy",
        "-m pytest ",
        " tests --nbval ",
        "--nbval-sanitize-with tests/nbval_sanitize.cfg",
    ):
        assert step in plan
    assert (ROOT / "tests" / "nbval_sanitize.cfg").is_file()
    assert "|| true" not in plan and not re.search(r"^\s*-", plan, re.MULTILINE), (
        "a failure would be hidden"
    )


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    lines = script.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("#!") and "set -euo pipefail" in lines
    assert lines[-1] == "make test"
    assert os.access(script, os.X_OK)
