"""Which public symbols of the core no notebook shows: ``python tests/public_symbols.py``.

A symbol is public if its module lists it in ``__all__``. It is *shown* if a code cell of a notebook
or of a solution imports it or names it as an attribute of an imported module, or if it stands in
the signature of a symbol that is shown (what a shown function returns is met there). The rest needs
a reason in `EXEMPT`.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import nbformat

ROOT = Path(__file__).resolve().parent.parent

EXEMPT: Mapping[str, str] = {
    # --- not the method
    "medm2g_core.cli": "the command line; the pages of docs/ show its commands",
    "medm2g_core.commands": "the work behind the command line",
    "medm2g_core.storage": "atomic writes and caches",
    "medm2g_core.inputs": "checks of arguments: a reader meets their messages",
    "medm2g_core.data.sources": "readers of data sets that may not be redistributed",
    "medm2g_core.judges": "the examiners; their verdicts are in the stored results",
    "medm2g_core.rivals": "what the model is compared with, from the stored results",
    "medm2g_core.evaluation": "measures for an hour; notebooks read what it stored",
    "medm2g_core.experiments": "trains for hours; notebooks read what it stored",
    "medm2g_core.training": "notebooks train small networks in plain torch; make train the rest",
    # --- data: what a notebook meets through read_stream, VirtualCohort and the renderers
    "medm2g_core.data.acquisition": "an augmentation of training",
    "medm2g_core.data.blurring": "arithmetic of the acquisitions",
    "medm2g_core.data.brain": "parts of render_brain",
    "medm2g_core.data.chest": "parts of the chest renderer",
    "medm2g_core.data.cohort": "parts of VirtualCohort",
    "medm2g_core.data.dicom": "part of read_stream",
    "medm2g_core.data.dicom_pixels": "part of read_stream",
    "medm2g_core.data.dicom_stacks": "part of read_stream",
    "medm2g_core.data.export": "the writer behind the command generate",
    "medm2g_core.data.fields": "noise of the renderers",
    "medm2g_core.data.burnt_in": "part of read_stream",
    "medm2g_core.data.chest_directions": "part of read_stream",
    "medm2g_core.data.film_sides": "part of read_stream",
    "medm2g_core.data.film_views": "part of read_stream",
    "medm2g_core.data.foreign_files": "part of read_stream",
    "medm2g_core.data.itk_files": "part of read_stream",
    "medm2g_core.data.files": "parts of read_stream",
    "medm2g_core.data.findings": "the tables behind Finding",
    "medm2g_core.data.header_evidence": "part of read_stream",
    "medm2g_core.data.headers": "part of read_stream",
    "medm2g_core.data.held_out": "phrasings that only the evaluation may see",
    "medm2g_core.data.intensity": "part of read_stream",
    "medm2g_core.data.iu_reports": "real reports, which may not be quoted",
    "medm2g_core.data.labeller": "parts of label_report",
    "medm2g_core.data.lexicon": "patterns of the labeller",
    "medm2g_core.data.mri": "parts of the MR renderer",
    "medm2g_core.data.phrasing": "texts of training",
    "medm2g_core.data.phrasing_words": "words of the texts of training",
    "medm2g_core.data.pictures": "part of read_stream",
    "medm2g_core.data.odd_slices": "part of read_stream",
    "medm2g_core.data.plausibility": "part of read_stream",
    "medm2g_core.data.reports": "parts of write_report",
    "medm2g_core.data.series": "part of read_stream",
    "medm2g_core.data.slices": "part of read_stream",
    "medm2g_core.data.study_cache": "the cache behind VirtualCohort",
    "medm2g_core.data.volumes": "part of read_stream",
    "medm2g_core.data.wheels": "the download behind make prepare",
    "medm2g_core.data.xray": "parts of the radiograph",
    # --- the network: what the public calls are made of
    "medm2g_core.alignment.encoders": "reached through MedM2G.embed",
    "medm2g_core.alignment.objective.cross_correlation": "notebook 04 builds it by hand",
    "medm2g_core.alignment.objective.normal": "part of a mask of training",
    "medm2g_core.alignment.objective.shared_studies": "part of a mask of training",
    "medm2g_core.codecs.text": "reached through MedM2G.decode",
    "medm2g_core.codecs.tokenizer": "reached through MedM2G.encode",
    "medm2g_core.familiarity": "its note comes with every call of the pipeline",
    "medm2g_core.flows.environment": "reached through MedM2G.predict",
    "medm2g_core.flows.guidance": "reached through show.record",
    "medm2g_core.flows.image": "reached through MedM2G.flows",
    "medm2g_core.flows.prompt": "reached through the call of the pipeline",
    "medm2g_core.flows.schedule.TRAIN_STEPS": "of the profile paper",
    "medm2g_core.flows.text": "reached through MedM2G.flows",
    "medm2g_core.model": "how weights lie on disk",
    "medm2g_core.profiles": "sizes and budgets: docs/profiles.md has them side by side",
    "medm2g_core.sampling.ORDERS": "the words of an argument",
    "medm2g_core.sampling.draw_noise": "part of sample_latents",
    "medm2g_core.streams": "checks and tables behind Study",
    # --- scores: a notebook shows those that it needs, stored results hold the rest
    "medm2g_core.metrics.agreement": "in the stored results",
    "medm2g_core.metrics.bootstrap": "in the stored results",
    "medm2g_core.metrics.classification": "in the stored results",
    "medm2g_core.metrics.distributions": "in the stored results",
    "medm2g_core.metrics.findings": "in the stored results",
    "medm2g_core.metrics.lesions": "in the stored results",
    "medm2g_core.metrics.report_scores": "in the stored results",
    # --- the explorer: a notebook meets its panel
    **{
        f"medm2g_core.explore.{part}": "part of the panel"
        for part in (
            "app",
            "closer",
            "closer_box",
            "controls",
            "drawing",
            "folder_line",
            "viewer_box",
            "viewing",
            "warm",
            "export",
            "given",
            "line",
            "panel",
            "pictures",
            "state",
            "verdict",
            "words",
            "words_box",
        )
    },
    # --- programs that write files, and what the tools of notebooks are made of
    "medm2g_core.show.answers": "parts of the checks of exercises",
    "medm2g_core.show.blocks": "prints the README",
    "medm2g_core.show.curves": "reads logs of one's own training",
    "medm2g_core.show.data_cards": "prints a page of docs/",
    "medm2g_core.show.demo": "the command demo",
    "medm2g_core.show.diagram": "draws a picture of docs/",
    "medm2g_core.show.effects": "draws pictures of results/",
    "medm2g_core.show.execute": "executes notebooks",
    "medm2g_core.show.execute_all": "executes notebooks",
    "medm2g_core.show.extras": "the message where a package is missing",
    "medm2g_core.show.figures": "parts of the contact sheet",
    "medm2g_core.show.paper_figures": "the command make figures",
    "medm2g_core.show.readme": "prints the README",
    "medm2g_core.show.record.sites": "part of record",
    "medm2g_core.show.report": "colours of a judged report",
    "medm2g_core.show.set_up": "writes a cell of notebooks",
    "medm2g_core.show.site": "builds the web site",
    "medm2g_core.show.source_sheets": "draws pictures of results/",
    "medm2g_core.show.task_sheets": "draws pictures of results/",
}
"""Beginning of a full name (a part, a module, or a symbol) -> why no notebook has to show it."""


class Symbol(NamedTuple):
    """A public name and the module that defines it."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class _Module(NamedTuple):
    tree: ast.Module
    public: list[str]
    imported: dict[str, Symbol]  # local name -> where it comes from, inside this package


def _imports(tree: ast.AST) -> dict[str, Symbol]:
    """Local name -> symbol or module of the package that it stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medm2g_core"):
            for alias in node.names:
                found[alias.asname or alias.name] = Symbol(str(node.module), alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                package, _, name = alias.name.rpartition(".")
                if package.startswith("medm2g_core"):
                    found[alias.asname or alias.name] = Symbol(package, name)
    return found


@cache
def _modules(root: Path) -> dict[str, _Module]:
    out = {}
    for path in sorted((root / "medm2g_core").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        public: list[str] = []
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else None
            if isinstance(target, ast.Name) and target.id == "__all__":
                public = ast.literal_eval(node.value)  # type: ignore[attr-defined]
        out[name] = _Module(tree, public, _imports(tree))
    return out


def _origin(modules: Mapping[str, _Module], symbol: Symbol) -> Symbol:
    """Follow a name to the module that defines it."""
    for _ in modules:  # a chain of imports is never longer than the number of modules
        module = modules.get(symbol.module)
        if module is None or symbol.name not in module.imported:
            break
        symbol = module.imported[symbol.name]
    return symbol


def _signature(tree: ast.Module, name: str) -> Iterator[str]:
    """Names in the annotations, base classes and alias of a top-level definition."""
    for node in tree.body:
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            for inner in ast.walk(node):
                if isinstance(inner, ast.FunctionDef):
                    parts += [
                        inner.returns,
                        *(a.annotation for a in ast.walk(inner.args) if isinstance(a, ast.arg)),
                    ]
                elif isinstance(inner, ast.AnnAssign):
                    parts.append(inner.annotation)
                elif isinstance(inner, ast.ClassDef):
                    parts += inner.bases
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            parts.append(node.value)
        elif isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
            parts += [node.annotation, node.value]
        for part in parts:
            yield from (n.id for n in ast.walk(part) if isinstance(n, ast.Name)) if part else ()


def public(root: Path = ROOT) -> set[Symbol]:
    """Every public symbol, once, where it is defined."""
    modules = _modules(root)
    return {
        _origin(modules, Symbol(module, name))
        for module, content in modules.items()
        for name in content.public
        if not name.startswith("__")
    }


def _named(source: str, modules: Mapping[str, _Module]) -> Iterator[Symbol]:
    """Symbols that a piece of code imports or names as attributes of imported modules."""
    tree = ast.parse(source)
    for symbol in _imports(tree).values():
        if str(symbol) not in modules:
            yield symbol
    local = {name: str(symbol) for name, symbol in _imports(tree).items() if str(symbol) in modules}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in local:
            yield Symbol(local[ast.unparse(node.value)], node.attr)


def shown(sources: Iterable[str], root: Path = ROOT) -> set[Symbol]:
    """Public symbols that pieces of code name, with those in their signatures."""
    modules, everything = _modules(root), public(root)
    todo = [_origin(modules, s) for source in sources for s in _named(source, modules)]
    seen: set[Symbol] = set()
    while todo:
        symbol = todo.pop()
        if symbol in seen or symbol not in everything:
            continue
        seen.add(symbol)
        names = _signature(modules[symbol.module].tree, symbol.name)
        todo += [_origin(modules, Symbol(symbol.module, name)) for name in names]
    return seen


def notebook_sources(root: Path = ROOT) -> list[str]:
    """The code of each notebook and solution, without lines for the shell."""
    out = []
    for path in sorted((root / "notebooks").rglob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        lines = [x for c in cells if c.cell_type == "code" for x in c.source.splitlines()]
        out.append("\n".join(x for x in lines if not x.startswith(("%", "!"))))
    return out


def reason(symbol: Symbol) -> str | None:
    """Why no notebook has to show it, if there is a reason."""
    name = str(symbol)
    return next((why for start, why in EXEMPT.items() if f"{name}.".startswith(f"{start}.")), None)


def main() -> None:
    """Print what no notebook shows and nothing exempts, by module, and exemptions that nothing
    needs."""
    unseen = public() - shown(notebook_sources())
    missing = defaultdict(list)
    for symbol in sorted(unseen):
        if reason(symbol) is None:
            missing[symbol.module].append(symbol.name)
    for module, names in missing.items():
        print(f"{module}: {', '.join(names)}")
    idle = [s for s in EXEMPT if not any(f"{u}.".startswith(f"{s}.") for u in unseen)]
    print(f"{sum(map(len, missing.values()))} of {len(public())} public symbols are in no notebook")
    print(f"exempt, but all of it is shown: {', '.join(idle) or 'none'}")


if __name__ == "__main__":
    main()
