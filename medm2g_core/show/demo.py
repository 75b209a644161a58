"""The demonstration: the quickstart notebook, run and written as one web page that needs no
network."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medm2g_core.show.execute import NotebookError, parameter_names, run, scrub
from medm2g_core.show.extras import notebook_packages

with notebook_packages():
    import nbformat
    from nbconvert import HTMLExporter

__all__ = ["QUICKSTART", "run_demo", "to_html"]

QUICKSTART = Path(__file__).resolve().parents[2] / "notebooks" / "00_quickstart.ipynb"
"""The notebook in a clone of the repository; an installed wheel does not carry it."""

_TOGGLE = """
<style>
  body:not(.with-code) .jp-CodeCell .jp-Cell-inputWrapper { display: none; }
  body:not(.with-code) .jp-InputPrompt, body:not(.with-code) .jp-OutputPrompt { display: none; }
  body { max-width: 1320px; margin: 0 auto; padding: 0 24px; }
  .jp-RenderedImage img { max-width: 100%; height: auto; }
  #code-toggle { position: fixed; top: 10px; right: 14px; z-index: 99; padding: 6px 12px;
    font: 14px sans-serif;
    border: 1px solid #888; border-radius: 6px; background: #fff; color: #111; cursor: pointer; }
  @media print { #code-toggle { display: none; } }
</style>
<button id="code-toggle" type="button" aria-pressed="false"
  onclick="const on = document.body.classList.toggle('with-code');
           this.textContent = on ? 'Hide the code' : 'Show the code';
           this.setAttribute('aria-pressed', on)">
  Show the code</button>
"""
_REMOTE = re.compile(
    r"<(script|link)\b[^>]*\b(?:src|href)=\"https?://[^>]*>(?:\s*</script>)?", re.IGNORECASE
)
_LOCAL_LINK = re.compile(
    r"<a\b[^>]*\bhref=\"(?!https?:|#|data:)[^\"]*\"[^>]*>(.*?)</a>", re.IGNORECASE | re.DOTALL
)
_MATHJAX = re.compile(
    r"<script\b[^>]*type=\"text/x-mathjax-config\".*?</script>", re.IGNORECASE | re.DOTALL
)


def to_html(notebook: nbformat.NotebookNode, title: str) -> str:
    """A notebook as one HTML page: pictures embedded, code folded behind a button, nothing loaded
    from elsewhere.

    Equations would need MathJax from the network, so they stay as typed.
    """
    exporter = HTMLExporter(
        embed_images=True,
        mathjax_url="",
        require_js_url="",
        jquery_url="",
        mermaid_js_url="",
        widget_renderer_url="",
    )
    page, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    page = _MATHJAX.sub("", _REMOTE.sub("", page))
    page = re.sub(
        r"<script type=\"module\">.*?</script>", "", page, flags=re.DOTALL
    )  # mermaid: loads from a CDN
    page = _LOCAL_LINK.sub(r"\1", page)  # other notebooks are not beside the page
    return re.sub(r"(<body\b[^>]*>)", lambda m: m.group(1) + _TOGGLE, page, count=1)


def _check_ready(parameters: Mapping[str, Any]) -> None:
    from medm2g_core.pipeline import SHIPPED_WEIGHTS

    if not QUICKSTART.is_file():
        raise NotebookError(
            f"the quickstart notebook is not at {QUICKSTART}: the demo needs a clone of the"
            " repository; an installed wheel carries neither notebooks nor weights"
        )
    if not parameters.get("MODEL") and not SHIPPED_WEIGHTS.is_dir():
        raise NotebookError(
            f"there are no weights at {SHIPPED_WEIGHTS}: fetch the whole repository, or train your"
            " own (make train) and name its folder: parameters={'MODEL': 'outputs/...'}"
        )


def run_demo(out: Path, parameters: Mapping[str, Any] | None = None) -> Path:
    """Run the quickstart and write ``out/index.html`` (and the executed notebook beside it).

    Args:
        out: folder of the result; made if absent.
        parameters: of the notebook, for example ``{"SEED": 1}``. A relative MODEL is meant from the
            working directory.

    Returns:
        The path of the page.

    Raises:
        NotebookError: no notebook or weights here, an unknown parameter, or a cell that failed.
    """
    chosen = dict(parameters or {})
    _check_ready(chosen)
    if chosen.get("MODEL"):
        chosen["MODEL"] = str(
            Path(chosen["MODEL"]).resolve()
        )  # the kernel runs in the notebook's folder
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    executed = out / QUICKSTART.name
    names = parameter_names(nbformat.read(QUICKSTART, as_version=4))
    print(
        f"running {QUICKSTART.name} (two to three minutes on two cores; parameters:"
        f" {', '.join(names)})",
        flush=True,
    )
    notebook = scrub(run(QUICKSTART, executed, chosen))
    nbformat.write(notebook, str(executed))
    page = out / "index.html"
    handle, temporary = tempfile.mkstemp(dir=out, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(to_html(notebook, "MedM2G, reproduced: quickstart"))
        os.chmod(temporary, 0o644)
        os.replace(temporary, page)
    finally:
        Path(temporary).unlink(missing_ok=True)
    print(f"open {page.resolve()} in a browser")
    return page
