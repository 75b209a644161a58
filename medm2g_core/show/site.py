"""The book: pages, executed notebooks and the package's documentation as one web site that needs no
network: ``make site``.

``python -m medm2g_core.show.site`` copies the pages and notebooks side by side into
``outputs/site/source``, as they lie in the repository, writes a page for every part of the package,
fetches MathJax once from npm, and has Sphinx (the ``site`` extra) build ``outputs/site/html`` with
every warning an error. Notebooks are shown as they were executed. What is linked and not part of
the book (folders, tests, results) stays as plain words.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from medm2g_core.storage import atomic_write

__all__ = [
    "CHAPTERS",
    "SiteError",
    "api_pages",
    "contents",
    "main",
    "pages_of",
    "relinked",
    "stage",
]

ROOT = Path(__file__).resolve().parents[2]

CHAPTERS: Mapping[str, tuple[str, ...]] = {
    "Start": ("README.md", "docs/projects.md", "docs/glossary.md"),
    "Use": ("docs/own_files.md", "docs/real_data.md", "docs/training.md", "docs/profiles.md"),
    "What it was made of, and what it does": (
        "docs/data_sets.md",
        "checkpoints/cpu/README.md",
        "docs/results.md",
    ),
    "For reviewers": ("docs/deviations.md", "docs/pitfalls.md", "docs/house.md"),
}
"""Chapter -> its pages; notebooks, solutions and the package are chapters of their own."""

TITLES: Mapping[str, str] = {
    "README.md": "The repository at a glance",
    "docs/data_sets.md": "Data cards",
    "checkpoints/cpu/README.md": "Model card",
}
"""Page -> its name in the table of contents, where that is not its heading."""

MATHJAX = "mathjax@3.2.2"
MATHJAX_SHA256 = "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09"
MATHJAX_FILE = "package/es5/tex-svg-full.js"
"""TeX in, SVG out, all extensions and glyphs in one file."""

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


class SiteError(RuntimeError):
    """The site cannot be built; the message says what is missing and how to get it."""


def pages_of(root: Path = ROOT) -> list[str]:
    """Markdown pages of the book, as paths below the root; `CHAPTERS` must name them all."""
    docs = sorted(p.relative_to(root).as_posix() for p in (root / "docs").glob("*.md"))
    return ["README.md", "checkpoints/cpu/README.md", *(d for d in docs if d != "docs/README.md")]


def _notebooks(root: Path, folder: str) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in (root / folder).glob("*.ipynb"))


def contents(root: Path = ROOT) -> dict[str, list[str]]:
    """Chapter -> its pages in the order in which the book shows them, API pages left out."""
    chapters = {"Notebooks": _notebooks(root, "notebooks")}
    chapters |= {title: list(pages) for title, pages in CHAPTERS.items()}
    chapters["Solutions of the exercises"] = _notebooks(root, "notebooks/solutions")
    return chapters


def _modules(root: Path) -> dict[str, list[str]]:
    """Page -> full names of the modules on it: one page a part, one for the files beside them, and
    one for each folder within a part."""
    pages: dict[str, list[str]] = {}
    for path in sorted((root / "medm2g_core").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[-1] == "__main__":
            continue
        folder = parts[:-1]
        name = ".".join(folder if parts[-1] == "__init__" else parts)
        pages.setdefault(".".join(folder), []).append(name)
    return dict(sorted(pages.items()))


def api_pages(root: Path = ROOT) -> dict[str, str]:
    """File below ``api/`` -> its text: what the docstrings of the public names say."""
    out = {}
    for page, modules in _modules(root).items():
        lines = [f"# {page}", ""]
        for name in modules:
            package = (root.joinpath(*name.split(".")) / "__init__.py").is_file()
            # What a package hands on is described where it is defined.
            members = "   :no-members:\n" if package and name != "medm2g_core" else ""
            if not package and (handed := _handed_on(root, name)):
                members = f"   :exclude-members: {', '.join(handed)}\n"
            if name != page:
                lines += [f"## {name.removeprefix(page + '.')}", ""]
            lines += ["```{eval-rst}", f".. automodule:: {name}", f"{members}```", ""]
        out[f"{page}.md"] = "\n".join(lines)
    return out


def _handed_on(root: Path, module: str) -> list[str]:
    """Public names of a module that another one defines."""
    tree = ast.parse(root.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8"))
    imported = {
        alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return sorted(imported & set(ast.literal_eval(node.value)))
    return []


@cache
def _targets(root: Path) -> tuple[frozenset[str], frozenset[str]]:
    """What a link may lead to: pages and notebooks of the book, and modules of the package."""
    inside = {*pages_of(root), *(name for names in contents(root).values() for name in names)}
    return frozenset(inside), frozenset(n for names in _modules(root).values() for n in names)


def relinked(text: str, page: str, root: Path = ROOT) -> str:
    """The Markdown of a page with its links as the book needs them.

    Args:
        text: Markdown; code in it stays as it is.
        page: where it lies, as a path below the root.
    """
    inside, modules = _targets(root)

    def change(match: re.Match[str]) -> str:
        bang, words, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path = target.partition("#")[0]
        place = _below(PurePosixPath(page).parent / path)
        if bang or place in inside:
            return match[0]
        name = place.removesuffix(".py").replace("/", ".")
        if name in modules:
            return f"[{words}](#{name})"
        if place in ("docs/README.md", "notebooks", "notebooks/solutions"):
            up = "../" * (len(PurePosixPath(page).parts) - 1)
            return f"[{words}]({up}index.md)"
        return words

    return "".join(
        part if part.startswith("```") else _LINK.sub(change, part) for part in _FENCE.split(text)
    )


def _below(path: PurePosixPath) -> str:
    """A path without ``..`` and without a slash at its end."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def _index(root: Path) -> str:
    """The first page: what this is, and the table of contents."""
    lines = [
        "# MedM2G, reproduced",
        "",
        "One diffusion model for reports, X-rays, CT and MR, any to any: an open, notebook-first"
        " reproduction of MedM2G (Zhan et al., CVPR 2024). Everything that it generates is for"
        " research and teaching, never for diagnosis.",
        "",
        "**Students** read the notebooks in their order. **Reviewers** begin with 00, the"
        " [deviation ledger](docs/deviations.md) and the [results](docs/results.md)."
        " **Explorers** take 00 and a [project](docs/projects.md).",
        "",
        "![The network in one call, and what trains in which round](docs/diagram.png)",
        "",
    ]
    chapters = contents(root) | {"The package": [f"api/{name}" for name in api_pages(root)]}
    for title, pages in chapters.items():
        lines += ["```{toctree}", f":caption: {title}", ":maxdepth: 1", ""]
        for page in pages:
            name = page.rsplit(".", 1)[0]
            lines.append(f"{TITLES[page]} <{name}>" if page in TITLES else name)
        lines += ["```", ""]
    return "\n".join(lines)


def _staged(root: Path) -> Iterator[tuple[str, bytes]]:
    """File of the source folder -> its content."""
    yield "index.md", _index(root).encode()
    yield "conf.py", (root / "docs" / "conf.py").read_bytes()
    yield "_static/site.css", (root / "docs" / "site.css").read_bytes()
    for name, text in api_pages(root).items():
        yield f"api/{name}", text.encode()
    for page in pages_of(root):
        text = (root / page).read_text(encoding="utf-8")
        for bang, _, target in _LINK.findall(_FENCE.sub("", text)):
            if bang and not target.startswith("http"):
                picture = _below(PurePosixPath(page).parent / target)
                yield picture, (root / picture).read_bytes()
        yield page, relinked(text, page, root).encode()
    for page in [*_notebooks(root, "notebooks"), *_notebooks(root, "notebooks/solutions")]:
        notebook = json.loads((root / page).read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = relinked("".join(cell["source"]), page, root)
        yield page, json.dumps(notebook).encode()


def stage(folder: Path, root: Path = ROOT) -> list[str]:
    """Write the sources of the book; a file that is already so is not touched, and one that does
    not belong there any more is removed.

    Returns:
        What was removed, as paths below ``folder``.
    """
    wanted, removed = dict(_staged(root)), []
    for name, content in wanted.items():
        file = folder / name
        if not file.is_file() or file.read_bytes() != content:
            atomic_write(file, lambda p, content=content: p.write_bytes(content))
    for file in [p for p in folder.rglob("*") if p.is_file()]:
        name = file.relative_to(folder).as_posix()
        if name not in wanted and not name.startswith("_static/mathjax/"):
            file.unlink()
            removed.append(name)
    return removed


def _fetch_mathjax(file: Path) -> None:
    """MathJax from npm, checked by hash, unless it is there."""
    if file.is_file():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(
            ["npm", "pack", "--silent", MATHJAX], cwd=file.parent, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise SiteError(
            "equations need MathJax, which npm fetches once, and there is no npm here; install"
            " Node.js (Debian: apt install npm)"
        ) from error
    if done.returncode:
        raise SiteError(f"npm could not fetch {MATHJAX}: {done.stderr.strip()[-300:]}")
    archive = file.parent / done.stdout.split()[-1]
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != MATHJAX_SHA256:
        archive.unlink()
        raise SiteError(
            f"npm sent {archive.name} with sha256 {found}, needed {MATHJAX_SHA256}: try again, or"
            " from another network"
        )
    with tarfile.open(archive) as tar:
        member = tar.extractfile(MATHJAX_FILE)
        assert member is not None  # it is a file in the archive of that hash
        content = member.read()
    atomic_write(file, lambda p: p.write_bytes(content))
    archive.unlink()


def main() -> int:
    """Build the site; exit code 1 with one message on failure."""
    if find_spec("sphinx") is None or find_spec("myst_nb") is None:
        print(
            "the site needs Sphinx: pip install 'medm2g-core[site]' (in a clone: pip install -e"
            " '.[site]')",
            file=sys.stderr,
        )
        return 1
    out = ROOT / "outputs" / "site"
    if stage(out / "source"):  # Sphinx would leave the pages of what is gone
        shutil.rmtree(out / "html", ignore_errors=True)
        shutil.rmtree(out / "doctrees", ignore_errors=True)
    try:
        _fetch_mathjax(out / "source" / "_static" / "mathjax" / Path(MATHJAX_FILE).name)
    except SiteError as error:
        print(error, file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "-q"]
    command += ["-d", str(out / "doctrees"), str(out / "source"), str(out / "html")]
    code = subprocess.run(command, cwd=ROOT).returncode
    if code == 0:
        print(out / "html" / "index.html")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
