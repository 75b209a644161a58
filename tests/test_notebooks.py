"""The contract of the notebooks: what a reader, papermill and nbval may rely on. Their numbers are
nbval's job."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat import NotebookNode
from public_symbols import EXEMPT, notebook_sources, public, reason, shown

from medm2g_core.show import demo
from medm2g_core.show.execute import NotebookError, execute, parameter_names, run, scrub

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
MAIN = sorted(FOLDER.glob("*.ipynb"))
SOLUTIONS = sorted((FOLDER / "solutions").glob("*.ipynb"))
LARGEST = 1_500_000
WIDGETS = "application/vnd.jupyter.widget"
# Home and temporary folders of any system, this clone's own place, and what a traceback names.
PATH_MARKS = re.compile(
    rf"(?:/home/|/Users/|/tmp/|[A-Za-z]:\\\\Users|{re.escape(str(ROOT))}|{re.escape(str(Path.home()))}"
    r"|site-packages|ipykernel_\d)"
)
SECTIONS = ("What you will learn", "Exercises", "Recap", "Next")

every = pytest.mark.parametrize(
    "path", [*MAIN, *SOLUTIONS], ids=lambda p: p.relative_to(FOLDER).as_posix()
)
main = pytest.mark.parametrize("path", MAIN, ids=lambda p: p.name)


def _read(path: Path) -> NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [c for c in notebook.cells if c.cell_type == "code"]


def _tags(cell: NotebookNode) -> list[str]:
    return list(cell.metadata.get("tags", []))


def _outputs(notebook: NotebookNode) -> list[Any]:
    return [o for c in _code(notebook) for o in c.outputs]


def _prose(notebook: NotebookNode) -> str:
    return "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")


def test_there_are_notebooks() -> None:
    assert any(p.name == "00_quickstart.ipynb" for p in MAIN)


@every
def test_parameters_are_typed_commented_literals_in_one_tagged_cell(path: Path) -> None:
    notebook = _read(path)
    tagged = [i for i, c in enumerate(notebook.cells) if "parameters" in _tags(c)]
    assert len(tagged) == 1, "exactly one cell is tagged 'parameters'"
    cell = notebook.cells[tagged[0]]
    before = [c for c in notebook.cells[: tagged[0]] if c.cell_type == "code"]
    assert not before, "code runs before the parameters"
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name), (
            ast.unparse(statement)
        )
        assert statement.target.id.isupper()
        assert statement.value is not None
        ast.literal_eval(statement.value)
    lines = [line for line in cell.source.splitlines() if line.strip()]
    assert all("  # " in line for line in lines), "every parameter has a comment"
    assert parameter_names(notebook) == [s.target.id for s in ast.parse(cell.source).body]  # type: ignore[attr-defined]


@every
def test_every_parameter_is_used(path: Path) -> None:
    notebook = _read(path)
    rest = "\n".join(c.source for c in _code(notebook) if "parameters" not in _tags(c))
    for name in parameter_names(notebook):
        assert re.search(rf"\b{name}\b", rest), f"{name} is never used"


def test_a_parameter_of_one_name_has_one_type_everywhere() -> None:
    """Papermill is called the same way for each notebook: `-p SEED 1` must not mean two things."""
    types: dict[str, set[str]] = {}
    for path in [*MAIN, *SOLUTIONS]:
        (cell,) = [c for c in _code(_read(path)) if "parameters" in _tags(c)]
        for statement in ast.parse(cell.source).body:
            assert isinstance(statement, ast.AnnAssign)
            types.setdefault(ast.unparse(statement.target), set()).add(
                ast.unparse(statement.annotation)
            )
    assert not {name: found for name, found in types.items() if len(found) > 1}
    assert types.get("SEED") == {"int"}


@every
def test_it_was_executed_from_top_to_bottom(path: Path) -> None:
    cells = [c for c in _code(_read(path)) if c.source.strip()]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))


@every
def test_outputs_hold_no_errors_no_stderr_no_paths_and_no_widget_state(path: Path) -> None:
    notebook = _read(path)
    for output in _outputs(notebook):
        assert output.output_type != "error"
        assert not (output.output_type == "stream" and output.name == "stderr"), output.text[:200]
        for kind, data in output.get("data", {}).items():
            assert not kind.startswith(WIDGETS), "a widget view is dead without its kernel"
            if not kind.startswith("image/"):
                assert not PATH_MARKS.search(str(data))
        assert not PATH_MARKS.search(output.get("text", ""))
    assert "widgets" not in notebook.metadata


@every
def test_metadata_are_those_of_any_machine(path: Path) -> None:
    notebook = _read(path)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags"}, f"{path.name}: {dict(cell.metadata)}"


@every
def test_it_is_small_enough_to_look_at(path: Path) -> None:
    assert path.stat().st_size <= LARGEST


@every
def test_tags_are_known_and_nothing_is_skipped(path: Path) -> None:
    allowed = {"parameters", "nbval-ignore-output", "hide-input"}
    for cell in _read(path).cells:
        assert set(_tags(cell)) <= allowed, (
            "a skipped or error-tolerant cell needs a reason and a line here"
        )


@every
def test_ignored_outputs_are_only_of_data_and_widgets(path: Path) -> None:
    """Numbers and figures must be in cells that nbval compares."""
    for cell in _code(_read(path)):
        if "nbval-ignore-output" in _tags(cell):
            assert "print(" not in cell.source and not cell.outputs


def _anchors(path: Path) -> set[str]:
    """Anchors of a page or notebook, as GitHub and the book make them from headings."""
    text = _prose(_read(path)) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", h).strip().lower() for h in headings]
    return {re.sub(r"[^\w\- ]", "", h).replace(" ", "-") for h in plain}


@every
def test_links_are_alive(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(_read(path))):
        if not target.startswith(("http://", "https://", "mailto:")):
            name, _, anchor = target.partition("#")
            there = path.parent / name if name else path
            assert there.exists(), f"{path.name} links to {target}"
            assert not anchor or anchor in _anchors(there), f"{path.name} links to {target}"


def test_each_notebook_leads_to_the_next_and_back() -> None:
    """Its last section names the neighbours, so that a reader can go through all of them."""
    assert [p.name[:2] for p in MAIN] == [f"{i:02}" for i in range(len(MAIN))]
    for i, path in enumerate(MAIN):
        end = _prose(_read(path)).rpartition("\n## Next")[2]
        linked = set(re.findall(r"\]\((\d\d_\w+\.ipynb)\)", end))
        neighbours = {p.name for p in (MAIN[max(0, i - 1) : i + 2])} - {path.name}
        assert neighbours <= linked, f"{path.name} does not lead to {neighbours - linked}"


def test_every_public_symbol_is_shown_or_has_a_reason() -> None:
    """`python tests/public_symbols.py` prints the whole list."""
    missing = {s for s in public() - shown(notebook_sources()) if reason(s) is None}
    assert not missing, f"in no notebook and without a reason: {sorted(map(str, missing))}"


def test_reasons_are_for_what_exists() -> None:
    names = [f"{s}." for s in public()]
    assert not [start for start in EXEMPT if not any(n.startswith(f"{start}.") for n in names)]


@pytest.mark.parametrize(
    "source",
    [
        "from medm2g_core import MedM2GPipeline",
        "from medm2g_core.pipeline import MedM2GPipeline as P",
        "from medm2g_core import pipeline\npipeline.MedM2GPipeline",
        "import medm2g_core.pipeline\nmedm2g_core.pipeline.MedM2GPipeline",
    ],
)
def test_control_a_shown_symbol_is_seen_however_it_is_imported(source: str) -> None:
    names = {str(s) for s in shown([source])}
    assert "medm2g_core.pipeline.MedM2GPipeline" in names
    assert "medm2g_core.pipeline.MedM2GOutput" in names, "what it returns is met with it"
    assert "medm2g_core.metrics.pixels.psnr" not in names


@main
def test_the_arc_is_there(path: Path) -> None:
    notebook = _read(path)
    prose = _prose(notebook)
    for section in SECTIONS:
        assert re.search(rf"^## {section}", prose, re.MULTILINE), f"no section {section!r}"
    opening = notebook.cells[0].source
    assert opening.startswith(f"# {path.name[:2]} · ")
    assert "**Time:**" in opening and "**Memory:**" in opening


@main
def test_exercises_have_checks_and_a_solution_that_runs(path: Path) -> None:
    checks = set(
        re.findall(
            r"^\s*(check_\w+)\(", "\n".join(c.source for c in _code(_read(path))), re.MULTILINE
        )
    )
    assert len(checks) >= 2
    solution = FOLDER / "solutions" / path.name
    assert solution.is_file(), "no solution"
    solved = _read(solution)
    assert checks <= set(re.findall(r"\b(check_\w+)\(", "\n".join(c.source for c in _code(solved))))
    said = "".join(o.get("text", "") for o in _outputs(solved))
    assert said.count("Right:") >= len(checks) and "Not yet:" not in said


@main
def test_figures_come_with_numbers(path: Path) -> None:
    """nbval never compares pictures, so some cells must print what the pictures show."""
    notebook = _read(path)
    pictures = sum("image/png" in o.get("data", {}) for o in _outputs(notebook))
    numbers = sum(bool(re.search(r"\d", o.get("text", ""))) for o in _outputs(notebook))
    assert pictures >= 1 and numbers >= 2


# --- the tools


def _notebook(folder: Path, *sources: str, tags: dict[int, str] | None = None) -> Path:
    cells = [nbformat.v4.new_code_cell(s) for s in sources]
    for i, tag in (tags or {0: "parameters"}).items():
        cells[i].metadata["tags"] = [tag]
    path = folder / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def test_execution_leaves_nothing_of_the_machine(tmp_path: Path) -> None:
    bar = "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)): pass\nprint(2 * K)"
    path = _notebook(tmp_path, "K: int = 3  # a number", bar)
    execute(path)
    text = path.read_text()
    assert "papermill" not in text and str(tmp_path) not in text and WIDGETS not in text
    assert [o.text for o in _outputs(_read(path))] == ["6\n"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_failing_notebook_is_not_written(tmp_path: Path) -> None:
    path = _notebook(tmp_path, "K: int = 3  # a number", "raise RuntimeError('boom')")
    before = path.read_bytes()
    with pytest.raises(NotebookError, match="boom"):
        execute(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_stderr_in_a_committed_notebook_is_refused(tmp_path: Path) -> None:
    path = _notebook(
        tmp_path, "K: int = 3  # a number", "import sys; print('careful', file=sys.stderr)"
    )
    with pytest.raises(NotebookError, match="stderr"):
        execute(path)


def test_parameters_reach_the_notebook_and_misspelled_ones_are_refused(tmp_path: Path) -> None:
    path = _notebook(tmp_path, "K: int = 3  # a number", "print(2 * K)")
    with pytest.raises(NotebookError, match="no parameter 'L'; it has: K"):
        run(path, tmp_path / "out.ipynb", {"L": 1})
    with pytest.raises(NotebookError, match="--out"):
        execute(path, {"K": 5})
    other = execute(path, {"K": 5}, tmp_path / "other.ipynb")
    assert [o.text for o in _outputs(_read(other))] == ["10\n"]


def test_scrubbing_keeps_tags_and_drops_views() -> None:
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "0%|"}
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", view)])
    cell.metadata.update({"tags": ["parameters"], "papermill": {"duration": 1}, "execution": {}})
    done = scrub(nbformat.v4.new_notebook(cells=[cell], metadata={"papermill": {}, "widgets": {}}))
    assert done.cells[0].metadata == {"tags": ["parameters"]} and not done.cells[0].outputs
    assert set(done.metadata) == {"kernelspec", "language_info"}


def test_nbval_notices_one_altered_number(tmp_path: Path) -> None:
    """A control: without it, nbval could be passing vacuously."""
    path = _notebook(tmp_path, "K: int = 3  # a number", "print(f'{K / 2:.1f} dB')")
    execute(path)

    def nbval() -> int:
        rules = str(ROOT / "tests" / "nbval_sanitize.cfg")
        options = [
            "--nbval",
            "--nbval-sanitize-with",
            rules,
            "--nbval-current-env",
            "-p",
            "no:cacheprovider",
        ]
        command = [sys.executable, "-m", "pytest", "-q", *options, str(path)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True).returncode

    assert nbval() == 0
    path.write_text(path.read_text().replace("1.5 dB", "1.6 dB"))
    assert nbval() == 1


# --- the demo


def test_the_demo_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "QUICKSTART", tmp_path / "absent.ipynb")
    with pytest.raises(NotebookError, match="clone of the repository"):
        demo.run_demo(tmp_path / "out")
    monkeypatch.setattr(demo, "QUICKSTART", _notebook(tmp_path, "K: int = 3  # a number", "K"))
    monkeypatch.setattr("medm2g_core.pipeline.SHIPPED_WEIGHTS", tmp_path / "no-weights")
    with pytest.raises(NotebookError, match="no weights"):
        demo.run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_demo_page_needs_no_network_and_folds_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imports = "import torch\nfrom medm2g_core.show.figures import contact_sheet"
    picture = "contact_sheet([('', [torch.zeros(1, 8, 8)])])"
    path = _notebook(tmp_path, "MODEL: str = ''  # folder", imports, picture, "print('forty-two')")
    monkeypatch.setattr(demo, "QUICKSTART", path)
    page = demo.run_demo(tmp_path / "out", {"MODEL": str(tmp_path)})
    html = page.read_text(encoding="utf-8")
    assert (
        page == tmp_path / "out" / "index.html" and str(page.resolve()) in capsys.readouterr().out
    )
    assert "forty-two" in html and "data:image/png;base64," in html and "Show the code" in html
    assert not re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"https?:", html)
    assert not re.findall(r"import\s[^;]*https?://|url\(\"?https?:", html)
    assert not re.findall(r'<a\b[^>]*href="(?!https?:|#)', html), (
        "a link to a file that is not there"
    )
    json.loads((tmp_path / "out" / path.name).read_text())
