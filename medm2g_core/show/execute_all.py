"""All notebooks and their solutions executed anew, in order, in place: ``make notebooks``.

``python -m medm2g_core.show.execute_all`` is for after a change of the weights or of the code.
It may be interrupted: started again, it goes on with the notebooks that are still to do.

**The rule.** A notebook is up to date if its file is byte for byte what this program wrote last,
and if the program text of the package, the weights and judges in ``checkpoints/`` and the stored
scores in ``results/`` are the same as then. What was written when is kept in
``outputs/notebooks.json``; without that file (a fresh clone, ``make clean``) nothing counts as up
to date. Versions of other packages are not part of the rule: after an upgrade use ``--anew``.

Nothing but the notebooks and that record is written. A notebook that fails keeps its old outputs;
the others are executed all the same, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from medm2g_core.show.execute import NotebookError, execute
from medm2g_core.storage import atomic_write

__all__ = ["READ", "execute_all", "in_order", "main", "state_of", "what_they_read"]

ROOT = Path(__file__).resolve().parents[2]

READ: Mapping[str, tuple[str, ...]] = {
    "medm2g_core": (".py",),
    "checkpoints": (".safetensors", ".json", ".jsonl"),
    "results": (".json", ".jsonl"),
}
"""Folder of the repository -> endings of its files that the outputs of notebooks depend on."""


def in_order(root: Path = ROOT) -> list[Path]:
    """The notebooks by number, each followed by its solution."""
    folder = root / "notebooks"
    found = [*folder.glob("*.ipynb"), *(folder / "solutions").glob("*.ipynb")]
    return sorted(found, key=lambda path: (path.name, path.parent != folder))


def what_they_read(root: Path = ROOT) -> str:
    """SHA-256 of the names and contents of all files of `READ`, hexadecimal."""
    h = hashlib.sha256()
    for folder, endings in READ.items():
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in endings and path.is_file():
                h.update(f"{path.relative_to(root).as_posix()}\0".encode())
                h.update(hashlib.sha256(path.read_bytes()).digest())
    return h.hexdigest()


def state_of(path: Path, read: str) -> dict[str, str]:
    """What is recorded of an executed notebook: its file, and `what_they_read`."""
    return {"file": hashlib.sha256(path.read_bytes()).hexdigest(), "read": read}


def _recorded(record: Path) -> dict[str, dict[str, str]]:
    """What a record holds; a damaged one is said and holds nothing."""
    if not record.is_file():
        return {}
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:  # no JSON, or JSON of something else
        print(f"{record} cannot be read ({error}): no notebook counts as up to date")
        return {}


def execute_all(
    root: Path = ROOT,
    only: Iterable[str] = (),
    *,
    anew: bool = False,
    run: Callable[[Path], object] = execute,
) -> dict[str, str]:
    """Execute, in order, the notebooks that are not up to date; the module says what that means.

    Args:
        root: of the repository.
        only: beginnings of file names, such as ``05``; by default all notebooks.
        anew: execute those as well that are up to date.
        run: what executes one notebook in place.

    Returns:
        Notebook, as a path below ``notebooks/`` -> why it could not be executed; empty if all is
        well.

    Raises:
        NotebookError: no notebook has such a name.
    """
    starts = tuple(only)
    names = {p: p.relative_to(root / "notebooks").as_posix() for p in in_order(root)}
    unknown = [s for s in starts if not any(p.name.startswith(s) for p in names)]
    if unknown:
        raise NotebookError(
            f"no notebook begins with {unknown[0]!r}; there are:"
            f" {', '.join(dict.fromkeys(p.stem for p in names))}"
        )
    record = root / "outputs" / "notebooks.json"
    done, read = _recorded(record), what_they_read(root)
    chosen = [p for p in names if not starts or p.name.startswith(starts)]
    todo = [p for p in chosen if anew or done.get(names[p]) != state_of(p, read)]
    print(f"{len(chosen) - len(todo)} of {len(chosen)} notebooks are up to date")
    failed = {}
    with tqdm(todo, unit="notebook", disable=not todo) as bar:
        for path in bar:
            bar.set_description(names[path])
            try:
                run(path)
            except NotebookError as error:
                failed[names[path]] = str(error)
                bar.write(str(error), file=sys.stderr)
                continue
            done[names[path]] = state_of(path, read)
            text = json.dumps(done, indent=1) + "\n"
            atomic_write(record, lambda p, text=text: p.write_text(text, encoding="utf-8"))
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 1 if a notebook failed."""
    parser = argparse.ArgumentParser(
        prog="python -m medm2g_core.show.execute_all", description=__doc__.split("\n")[0]
    )
    parser.add_argument("only", nargs="*", metavar="NAME", help="such as 05; by default all")
    parser.add_argument("--anew", action="store_true", help="also those that are up to date")
    options = parser.parse_args(arguments)
    try:
        failed = execute_all(only=options.only, anew=options.anew)
    except NotebookError as error:
        print(error, file=sys.stderr)
        return 1
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
