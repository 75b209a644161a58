"""Run a notebook and keep its outputs fit for version control.

``python -m medm2g_core.show.execute notebooks/00_quickstart.ipynb`` runs it in place with its
default parameters and removes what differs from machine to machine (times, paths, widget states).
``-p NAME VALUE`` changes parameters; then ``--out`` must name another file, because committed
outputs always come from the defaults.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medm2g_core.show.extras import notebook_packages

with notebook_packages():
    import nbformat
    from nbformat import NotebookNode

__all__ = ["NotebookError", "execute", "parameter_names", "run", "scrub"]

_WIDGET = "application/vnd.jupyter.widget-view+json"
_ASSIGNMENT = re.compile(r"^(\w+)\s*(?::[^=]+)?=(?!=)", re.MULTILINE)


class NotebookError(RuntimeError):
    """A notebook cannot be run as asked; the message says why and what to do."""


def parameter_names(notebook: NotebookNode) -> list[str]:
    """Names assigned in the cell tagged ``parameters``.

    Raises:
        NotebookError: there is not exactly one such cell.
    """
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise NotebookError(f"{len(cells)} cells are tagged 'parameters'; needed exactly one")
    return _ASSIGNMENT.findall(cells[0].source)


@contextmanager
def _kernel_environment() -> Iterator[None]:
    """No progress bars in the kernel (its tqdm reads this when imported), and this environment's
    own kernel first."""
    wanted = {
        "TQDM_DISABLE": "1",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    before = {k: os.environ.get(k) for k in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def run(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
) -> NotebookNode:
    """Execute ``source`` with papermill into ``target`` and return it. The kernel is this Python.

    Raises:
        NotebookError: no such notebook, an unknown parameter, or a cell that failed (``target``
            then shows where).
        NotebookPackageError: papermill is not installed.
    """
    with notebook_packages():
        import papermill
        from papermill.exceptions import PapermillExecutionError

    source = Path(source)
    if not source.is_file():
        raise NotebookError(
            f"there is no notebook {source}: run this from a clone of the repository"
        )
    names = parameter_names(nbformat.read(source, as_version=4))
    unknown = sorted(set(parameters or {}) - set(names))
    if unknown:  # papermill would only warn
        raise NotebookError(
            f"{source.name} has no parameter {unknown[0]!r}; it has: {', '.join(names)}"
        )
    with _kernel_environment():
        try:
            return papermill.execute_notebook(
                str(source),
                str(target),
                parameters=dict(parameters or {}),
                kernel_name="python3",
                language="python",
                cwd=str(source.resolve().parent),
                progress_bar=progress,
                log_output=False,
            )
        except PapermillExecutionError as error:
            raise NotebookError(f"{source.name} failed:\n{error}") from error


def scrub(notebook: NotebookNode) -> NotebookNode:
    """Remove, in place, what differs from run to run: times, paths, cell states, widget views and
    their state."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {
                "name": "python",
                "file_extension": ".py",
                "mimetype": "text/x-python",
            },
        }
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if _WIDGET not in o.get("data", {})]
            cell.outputs = _joined(cell.outputs)
            for output in cell.outputs:
                if "metadata" in output:
                    output.metadata = nbformat.from_dict({})
    return notebook


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring pieces of one stream as one: where they break is a matter of timing."""
    out: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and out and out[-1].get("name") == output.name:
            out[-1].text += output.text
        else:
            out.append(output)
    return out


def _complaints(notebook: NotebookNode) -> list[str]:
    """Outputs that must not be committed."""
    out = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                out.append(f"cell {number} wrote to stderr: {output.text[:200]!r}")
    return out


def execute(
    path: Path, parameters: Mapping[str, Any] | None = None, out: Path | None = None
) -> Path:
    """Execute and scrub one notebook, in place unless ``out`` is given; written whole or not at
    all.

    Raises:
        NotebookError: as `run`, or the notebook wrote to stderr.
    """
    path = Path(path)
    target = path if out is None else Path(out)
    if parameters and target.resolve() == path.resolve():
        raise NotebookError(
            "committed outputs come from the default parameters: name another file with --out"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.stem}-", suffix=".tmp"
    )
    os.close(handle)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            notebook = scrub(run(path, Path(scratch) / path.name, parameters))
        problems = _complaints(notebook)
        if problems:
            raise NotebookError(f"{path.name} is not fit to be committed: {'; '.join(problems)}")
        nbformat.validate(notebook)
        nbformat.write(notebook, temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def main(arguments: list[str] | None = None) -> int:
    """Command line; exit code 1 with one message on failure."""
    parser = argparse.ArgumentParser(
        prog="python -m medm2g_core.show.execute", description=__doc__.split("\n")[0]
    )
    parser.add_argument("notebooks", nargs="+", type=Path)
    parser.add_argument(
        "-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE")
    )
    parser.add_argument(
        "--out", type=Path, help="write here instead of in place (one notebook only)"
    )
    options = parser.parse_args(arguments)
    if options.out and len(options.notebooks) > 1:
        parser.error("--out takes one notebook")
    parameters = {name: _value(text) for name, text in options.parameter}
    for path in options.notebooks:
        try:
            print(execute(path, parameters, options.out))
        except NotebookError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
