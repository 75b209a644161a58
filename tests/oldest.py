"""The oldest supported versions: makes an environment of exactly the lower bounds in pyproject.toml
and runs the tests in it.

``make oldest``, or ``python tests/oldest.py [options] [arguments of pytest]``. Only the packages
that pyproject.toml names are pinned; what those need in turn is the newest that fits.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
NAME = "medm2g-core"
EXTRA = "test"  # what running the tests takes; the linters of "dev" take no part in a run


def requirements(project: dict, extra: str = "") -> Iterator[Requirement]:
    """What the project asks for, with one of its extras and the extras that this one includes."""
    listed = project["optional-dependencies"][extra] if extra else project["dependencies"]
    for requirement in map(Requirement, listed):
        if requirement.name == NAME:  # "medm2g-core[notebooks]"
            for inner in sorted(requirement.extras):
                yield from requirements(project, inner)
        else:
            yield requirement


def pins(project: dict, extra: str = EXTRA) -> list[str]:
    """``name==version`` of every lower bound.

    Raises:
        ValueError: a requirement is not of the form ``name>=version``.
    """
    out = []
    for requirement in [*requirements(project), *requirements(project, extra)]:
        bounds = list(requirement.specifier)
        if len(bounds) != 1 or bounds[0].operator != ">=":
            raise ValueError(
                f"{requirement}: needed one lower bound, such as {requirement.name}>=1.0"
            )
        out.append(f"{requirement.name}=={bounds[0].version}")
    return out


def make_environment(folder: Path, pinned: list[str], torch_index: str) -> Path:
    """A virtual environment with the pinned versions and this project; its Python.

    Raises:
        FileExistsError: the folder holds something that is no virtual environment.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "pyvenv.cfg").is_file():
        raise FileExistsError(f"{folder} is not empty and no virtual environment; name another")
    venv.create(folder, with_pip=True, symlinks=sys.platform != "win32", clear=True)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    # Not --quiet: that would hide which bounds contradict each other.
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    torch = next(pin for pin in pinned if pin.startswith("torch=="))
    # torch first and on its own: the index of CPU builds has nothing else of what is needed.
    subprocess.run(
        [*pip, *(["--index-url", torch_index] if torch_index else []), torch], check=True
    )
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as constraints:
        constraints.write("\n".join(pinned))
        constraints.flush()
        project = f"{ROOT}[{EXTRA}]"
        subprocess.run([*pip, "--constraint", constraints.name, "--editable", project], check=True)
    return python


def main() -> int:
    """Command line; pytest's exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--venv", type=Path, default=ROOT / "outputs" / "oldest", help="made once")
    parser.add_argument("--torch-index", default="", help="where pip finds a CPU build of torch")
    parser.add_argument("--list", action="store_true", help="print the pinned versions and stop")
    options, pytest_arguments = parser.parse_known_args()
    pinned = pins(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"])
    if options.list:
        print("\n".join(pinned))
        return 0
    done = options.venv / ".ready"  # holds what was installed: other bounds, another environment
    if not done.is_file() or done.read_text(encoding="utf-8") != "\n".join(pinned):
        python = make_environment(options.venv, pinned, options.torch_index)
        done.write_text("\n".join(pinned), encoding="utf-8")
    python = options.venv / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    tests = [str(python), "-m", "pytest", "tests", *pytest_arguments]
    return subprocess.run(tests, cwd=ROOT).returncode


if __name__ == "__main__":
    raise SystemExit(main())
