"""Sphinx configuration of the book. `make site` puts it beside copies of the pages and of the
executed notebooks (`medm2g_core.show.site`) and builds from there; nothing is executed."""

import re

from sphinx.application import Sphinx

import medm2g_core

project = "MedM2G, reproduced"
author = "The medm2g_core maintainers"
release = medm2g_core.__version__
root_doc = "index"
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]

# --- pages and notebooks
nb_execution_mode = "off"  # outputs are those that are committed
nb_ipywidgets_js = {}  # else every page would load widgets from the network
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 4  # as GitHub makes them, so that links work in both places

# --- the package
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # torch's words on forward() say nothing of ours
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {
    "members": True,
    "exclude-members": "set",  # matplotlib gives one to every subclass
}
default_role = "py:obj"  # docstrings write names in single backticks
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes are described once
python_maximum_signature_line_length = 80
add_module_names = False

# --- the look
html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "home_page_in_toc": True,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "use_repository_button": False,
}
# MathJax 3 in one file that brings its glyphs along; `make site` fetches it once.
mathjax_path = "mathjax/tex-svg-full.js"

_CODE = re.compile(r"(``.+?``|`[^`]+`)")
_STARS = re.compile(r"(^\s*\* |\*\*\S(?:.*?\S)?\*\*|(?<![\w(])\*\w(?:[^*]*\w)?\*(?!\w))|([*|])")


def _as_restructured_text(
    app: object, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Our docstrings are plain text: stars and bars of shapes and norms are no markup, and what is
    indented behind a colon is code."""
    for i, line in enumerate(lines):
        parts = _CODE.split(line)
        parts[::2] = [_STARS.sub(lambda m: m[1] or f"\\{m[2]}", part) for part in parts[::2]]
        lines[i] = "".join(parts)
    for i in range(len(lines) - 2):
        indent = [len(x) - len(x.lstrip()) for x in (lines[i], lines[i + 2])]
        if lines[i].strip() and not lines[i + 1].strip() and indent[1] >= indent[0] + 4:
            lines[i] += " ::" if not lines[i].endswith(":") else ":"


def setup(app: Sphinx) -> None:
    """Before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=400)
