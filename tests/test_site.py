"""The book holds every notebook and page, and its links lead into it. Sphinx is not run here."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path

import pytest

from medm2g_core.show.site import CHAPTERS, api_pages, pages_of, relinked, stage

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    stage(folder)
    return folder


def test_every_page_stands_in_one_chapter() -> None:
    named = [page for pages in CHAPTERS.values() for page in pages]
    assert sorted(named) == sorted(pages_of())


def test_the_table_of_contents_names_every_notebook_page_and_part(source: Path) -> None:
    index = (source / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^(?:[\w ]+ <)?([\w./-]+)>?$", index, re.MULTILINE))
    notebooks = [p.relative_to(ROOT).as_posix() for p in (ROOT / "notebooks").rglob("*.ipynb")]
    docs = [p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md")]
    api = [f"api/{name}" for name in api_pages()]
    wanted = {*notebooks, *docs, *api, "checkpoints/cpu/README.md", "README.md"}
    wanted -= {"docs/README.md"}  # a list of pages for those who read in the repository
    assert named == {name.rsplit(".", 1)[0] for name in wanted}
    assert all((source / name).is_file() for name in wanted)


def test_every_module_is_documented_once() -> None:
    text = "\n".join(api_pages().values())
    modules = re.findall(r"^\.\. automodule:: (\S+)$", text, re.MULTILINE)
    files = [p for p in (ROOT / "medm2g_core").rglob("*.py") if p.name != "__main__.py"]
    assert len(modules) == len(set(modules)) == len(files)


def test_nothing_in_the_sources_leads_out_of_them(source: Path) -> None:
    """Links, and pictures, of pages and notebooks."""
    seen = 0
    for path in [*source.rglob("*.md"), *source.rglob("*.ipynb")]:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if not re.match(r"[a-z]+:|#", target):
                assert (path.parent / target.split("#")[0]).is_file(), f"{path.name}: {target}"
                seen += 1
    assert seen > 40


def test_links_into_the_package_lead_to_its_pages_and_others_become_words() -> None:
    text = "[a](../medm2g_core/flows) [`b`](../medm2g_core/model.py) [c](../tests/test_site.py)"
    expected = "[a](#medm2g_core.flows) [`b`](#medm2g_core.model) c"
    assert relinked(text, "docs/house.md") == expected
    code = "```\n[c](../tests)\n```"
    assert relinked(code, "docs/house.md") == code


def test_staging_again_touches_nothing_and_removes_what_is_gone(source: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in source.rglob("*") if p.is_file()}
    (source / "docs" / "gone.md").write_text("# gone")
    assert stage(source) == ["docs/gone.md"] and stage(source) == []
    assert {p: p.stat().st_mtime_ns for p in source.rglob("*") if p.is_file()} == before


def test_the_configuration_loads_nothing_from_elsewhere() -> None:
    """Equations and widgets would come from the network by default."""
    tree = ast.parse((ROOT / "docs" / "conf.py").read_text(encoding="utf-8"))
    values = {
        ast.unparse(node.targets[0]): ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        and not isinstance(node.value, ast.Call | ast.Attribute)
        and not isinstance(node.value, ast.Name)
    }
    assert not values["mathjax_path"].startswith("http") and values["nb_ipywidgets_js"] == {}
    assert values["nb_execution_mode"] == "off"


def test_what_sphinx_needs_is_an_extra_of_its_own() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {re.split(r"[<>=]", r)[0] for r in project["optional-dependencies"]["site"]}
    assert names == {"medm2g-core[notebooks]", "myst-nb", "sphinx", "sphinx-book-theme"}
