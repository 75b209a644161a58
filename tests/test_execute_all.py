"""`make notebooks`: which notebooks are executed, in which order, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from medm2g_core.show.execute import NotebookError
from medm2g_core.show.execute_all import execute_all, in_order, what_they_read


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("medm2g_core", "checkpoints", "results", "notebooks/solutions"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "medm2g_core" / "a.py").write_text("A = 1\n")
    (tmp_path / "checkpoints" / "w.safetensors").write_bytes(b"weights")
    (tmp_path / "results" / "r.json").write_text("{}")
    for name in ("00_a", "01_b", "solutions/00_a", "solutions/01_b"):
        cells = [
            nbformat.v4.new_code_cell("K: int = 3  # a number", metadata={"tags": ["parameters"]}),
            nbformat.v4.new_code_cell("print(2 * K)"),
        ]
        notebook = nbformat.v4.new_notebook(cells=cells)
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    return tmp_path


class Runs:
    """Stands for `execute`: notes what it was asked for, and fails at one name."""

    def __init__(self, fails: str = "") -> None:
        self.names: list[str] = []
        self.fails = fails

    def __call__(self, path: Path) -> None:
        self.names.append(f"{path.parent.name}/{path.stem}")
        if path.parent.name == "notebooks" and path.stem == self.fails:
            raise NotebookError("boom")


ALL = ["notebooks/00_a", "solutions/00_a", "notebooks/01_b", "solutions/01_b"]


def test_each_notebook_is_followed_by_its_solution(root: Path) -> None:
    assert [f"{p.parent.name}/{p.stem}" for p in in_order(root)] == ALL


def test_a_second_call_executes_nothing_and_anew_all(root: Path) -> None:
    for expected, anew in ((ALL, False), ([], False), (ALL, True)):
        runs = Runs()
        assert execute_all(root, anew=anew, run=runs) == {}
        assert runs.names == expected


def test_it_goes_on_where_it_was_interrupted(root: Path) -> None:
    def until(path: Path) -> None:
        if path.name.startswith("01"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute_all(root, run=until)
    runs = Runs()
    execute_all(root, run=runs)
    assert runs.names == ALL[2:]


def test_a_failure_is_told_and_only_the_failed_one_stays_to_do(root: Path) -> None:
    first, second = Runs(fails="00_a"), Runs()
    assert execute_all(root, run=first) == {"00_a.ipynb": "boom"}
    assert first.names == ALL
    execute_all(root, run=second)
    assert second.names == ALL[:1]


@pytest.mark.parametrize(
    "file", ["medm2g_core/a.py", "checkpoints/w.safetensors", "results/r.json", "results/new.json"]
)
def test_a_change_of_code_weights_or_scores_makes_all_due(root: Path, file: str) -> None:
    execute_all(root, run=Runs())
    (root / file).write_text("changed\n")
    runs = Runs()
    execute_all(root, run=runs)
    assert runs.names == ALL


def test_a_picture_of_the_results_makes_nothing_due(root: Path) -> None:
    before = what_they_read(root)
    (root / "results" / "sheet.png").write_bytes(b"picture")
    assert what_they_read(root) == before


def test_an_edited_notebook_alone_is_due(root: Path) -> None:
    execute_all(root, run=Runs())
    path = root / "notebooks" / "01_b.ipynb"
    path.write_text(path.read_text().replace("2 * K", "3 * K"))
    runs = Runs()
    execute_all(root, run=runs)
    assert runs.names == ["notebooks/01_b"]


def test_names_choose_and_unknown_ones_are_refused(root: Path) -> None:
    runs = Runs()
    execute_all(root, only=["01"], run=runs)
    assert runs.names == ALL[2:]
    with pytest.raises(NotebookError, match=r"begins with '02'; there are: 00_a, 01_b"):
        execute_all(root, only=["02"], run=Runs())


@pytest.mark.parametrize("text", ["{", "[1]", "3"])
def test_a_damaged_record_is_said_and_all_is_due(
    text: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "outputs").mkdir()
    (root / "outputs" / "notebooks.json").write_text(text)
    runs = Runs()
    execute_all(root, run=runs)
    assert runs.names == ALL and "cannot be read" in capsys.readouterr().out


def test_the_notebooks_are_executed_and_nothing_else_is_written(root: Path) -> None:
    def files() -> dict[str, bytes]:
        return {
            p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()
        }

    before = files()
    assert execute_all(root, only=["00"]) == {}
    after = files()
    changed = {name for name in after if before.get(name) != after[name]}
    assert changed == {
        "notebooks/00_a.ipynb",
        "notebooks/solutions/00_a.ipynb",
        "outputs/notebooks.json",
    }
    (output,) = nbformat.read(root / "notebooks" / "00_a.ipynb", as_version=4).cells[1].outputs
    assert output.text == "6\n"
