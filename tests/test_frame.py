"""The repository's frame: what is tracked, and the shape of the package."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import medm2g_core

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "medm2g_core"

RANK = {  # imports point from a higher number to a lower one, or stay within one number
    "streams": 0,
    "profiles": 0,
    "storage": 0,
    "data": 1,
    "codecs": 2,
    "alignment": 2,
    "flows": 2,
    "metrics": 2,
    "model": 3,
    "familiarity": 4,
    "inputs": 4,
    "sampling": 4,
    "pipeline": 5,
    "training": 6,
    "judges": 7,
    "rivals": 7,
    "evaluation": 8,
    "experiments": 9,
    "show": 10,
    "commands": 11,
    "explore": 12,
    "cli": 11,
    "__main__": 13,
}


def _tracked(*patterns: str) -> list[str]:
    try:
        done = subprocess.run(
            ["git", "ls-files", "-z", *patterns],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout, so nothing is tracked")
    return [name for name in done.stdout.split("\0") if name]


# --- what is tracked


def test_no_pickled_weights_are_tracked() -> None:
    assert not _tracked("*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.bin", "*.joblib")


def test_tracked_weights_stay_small() -> None:
    sizes = {
        name: (ROOT / name).stat().st_size
        for name in _tracked("*.safetensors")
        if (ROOT / name).exists()
    }
    judges = {name: size for name, size in sizes.items() if name.startswith("checkpoints/judges/")}
    assert sum(sizes.values()) - sum(judges.values()) <= 40e6, sizes
    assert sum(judges.values()) <= 2.5e6, judges


def test_no_file_of_the_package_is_longer_than_500_lines() -> None:
    lengths = {
        str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines())
        for p in PACKAGE.rglob("*.py")
    }
    assert not {name: length for name, length in lengths.items() if length > 500}


def test_no_test_file_is_longer_than_500_lines() -> None:
    lengths = {
        str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines())
        for p in (ROOT / "tests").rglob("*.py")
    }
    assert not {name: length for name, length in lengths.items() if length > 500}


# --- the arrows between the parts


def _component(module: str) -> str:
    """``medm2g_core.data.wheels`` -> ``data``; the bare package -> an empty string."""
    return [*module.split("."), ""][1]


def _imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Full names of the modules of this package that a source imports when it runs, wherever in the
    file.

    What stands under ``if TYPE_CHECKING:`` names a type and is never run.
    """
    tree = ast.parse(source)
    typing = [
        n
        for n in ast.walk(tree)
        if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")
    ]
    never_run = {id(inner) for n in typing for body in n.body for inner in ast.walk(body)}
    for node in ast.walk(tree):
        if id(node) in never_run:
            continue
        if isinstance(node, ast.Import):
            yield from (
                alias.name for alias in node.names if alias.name.split(".")[0] == "medm2g_core"
            )
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                keep = parts[: len(parts) - node.level + is_package]
                base = ".".join([*keep, base]) if base else ".".join(keep)
            if base == "medm2g_core":  # from medm2g_core import data, MedM2G
                for alias in node.names:
                    lazy = medm2g_core._LAZY.get(alias.name)
                    yield lazy or (f"{base}.{alias.name}" if alias.name in RANK else base)
            elif base.startswith("medm2g_core."):
                yield base


def _arrows() -> Iterator[tuple[str, str, str]]:
    """(file, its part, the part it imports) for every import inside the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(ROOT).with_suffix("")
        is_package = relative.name == "__init__"
        module = ".".join(relative.parts[:-1] if is_package else relative.parts)
        if module == "medm2g_core":  # the package itself only names, lazily, what it offers
            continue
        for target in _imports(path.read_text(encoding="utf-8"), module, is_package):
            yield str(relative), _component(module), _component(target)


def test_imports_point_downward() -> None:
    upward = {
        f"{f}: {a} -> {b}" for f, a, b in _arrows() if b and RANK.get(b, 99) > RANK.get(a, -1)
    }
    assert not upward, f"upward, or a part that is missing in the table of ranks: {sorted(upward)}"


def test_parts_of_one_rank_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for _, part, target in _arrows():
        if target and target != part:
            graph[part].add(target)
    tuple(graphlib.TopologicalSorter(graph).static_order())


@pytest.mark.parametrize(
    "source",
    [
        "from medm2g_core.pipeline import MedM2GPipeline",
        "from ..pipeline import MedM2GPipeline",
        "def f():\n    import medm2g_core.training.loop",
        "from medm2g_core import MedM2G",
    ],
)
def test_control_an_upward_import_is_seen(source: str) -> None:
    (target,) = _imports(source, "medm2g_core.data.cohort", is_package=False)
    assert RANK[_component(target)] > RANK["data"]


def test_control_a_type_only_import_is_no_arrow() -> None:
    source = (
        "if TYPE_CHECKING:\n    from medm2g_core.model import MedM2G\nelse:\n    import"
        " medm2g_core.cli"
    )
    assert list(_imports(source, "medm2g_core.sampling", is_package=False)) == ["medm2g_core.cli"]


# --- no side effects


def _python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = _python("import sys, medm2g_core; print(*sys.modules)").split()
    assert {"torch", "diffusers", "transformers", "numpy", "matplotlib"}.isdisjoint(loaded)


def test_importing_every_module_leaves_global_state_alone() -> None:
    modules = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.name != "__main__.py":
            modules.append(".".join(parts[:-1] if path.name == "__init__.py" else parts))
    code = f"""
import importlib, os, random
import diffusers, matplotlib, nilearn, numpy, torch, transformers  # these change what they like
def state():
    return (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
            torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(), matplotlib.rcParams.copy(), os.getcwd())
before = state()
for name in {json.dumps(modules)}:
    importlib.import_module(name)
    assert state() == before, name + " changes global state when imported"
"""
    _python(code)
