"""The explorer as an app in the browser: ``make app``, or ``python -m medm2g_core.explore.app``.

What serves it, and why. The page is a notebook of one cell, shown by Voila, so that the panel is
the one of notebook 12 and there is no second one to keep. Voila starts a process for each user,
which keeps users apart but costs each of them the import of all libraries and a copy of the model.
So its kernels are forks of one warm process (`medm2g_core.explore.warm`): no CPU time to speak of,
and of memory only what a user writes, which ``benchmarks/explorer_speed.py`` measures. Users wait
in one line (`medm2g_core.explore.folder_line`). Tried and not taken: Solara, one process for all,
whose newest release asks a CDN for its style sheets and does not start without; Panel with
ipywidgets_bokeh, one process too, which asks two CDNs for icons and cannot receive an upload.

Nothing is asked of other machines: the template leaves out the icons that Voila's own fetches, and
the browser is told to refuse the rest. Uploads are limited in size, read and deleted; no name of a
file or patient is kept or logged. The app listens to this machine only unless told otherwise.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["LIMIT", "LINE", "MODEL", "READY", "TITLE", "main"]

MODEL, LINE, LIMIT = "MEDM2G_APP_MODEL", "MEDM2G_APP_LINE", "MEDM2G_APP_LIMIT"
"""Variables of the environment by which the app tells its kernels the folder of the weights, the
folder of the line and how many may be in it."""

READY = "warm"
"""Printed by the warm process when the first kernel can be asked for."""

ADDRESS = "warm"  # the socket's name in the app's folder

TITLE = "MedM2G explorer"
KERNEL = "medm2g-explorer"
PORT = 8866
LINE_LIMIT = 12
"""Drawings in the line. How long ten of them take, ``benchmarks/explorer_speed.py`` measures."""

IDLE_S, LOOK_S = 600, 60
"""A user who has left costs memory: the kernel ends ten minutes after its last sign of life."""

MAX_MESSAGE_BYTES = 96 * 1024 * 1024
"""Of one message of the browser: an upload of the size that is allowed, and room for what goes with
it. What is too large is so refused in a sentence; only far larger things cut the line."""

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    " style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; worker-src 'self' blob:;"
    " form-action 'self'; frame-ancestors 'self'"
)
"""Content security policy: the browser itself refuses to ask other machines. Voila's own scripts
are inline."""

EXTENSIONS = [
    "@voila-dashboards/widgets-manager8",
    "@jupyter-widgets/jupyterlab-manager",
    "anywidget",
]
"""Of JupyterLab's: the widgets. Others that happen to be installed would cost every user time."""

TEMPLATE_NAME = "medm2g"
TEMPLATE = """\
{%- extends 'voila/templates/lab/index.html.j2' -%}
{% import "spinner.macro.html.j2" as spinner %}
{%- block notebook_css -%}
  {{ resources.include_js("static/voila-style.js") }}
  {{ spinner.css() }}
  <style>.jp-mod-noOutputs.jp-mod-noInput { display: none; }</style>
  {{ super.super() }}
  <style>
    body { margin: 0; }
    body div#main { background: var(--jp-layout-color0); }
    #rendered_cells { max-width: 1240px; margin: 0 auto; padding: 8px; }
    #rendered_cells .jp-Cell, #rendered_cells .jp-OutputArea-output { padding: 0; }
    #rendered_cells .jp-OutputPrompt, #rendered_cells .jp-InputPrompt { display: none; }
  </style>
  <script>
    // Sliders of ipywidgets have no name for a screen reader: give them that of their label.
    new MutationObserver(() => {
      for (const part of document.querySelectorAll(
        ".widget-slider :is(.noUi-handle, .widget-readout):not([aria-label])"
      )) {
        const label = part.closest(".widget-slider").querySelector(".widget-label");
        if (label?.textContent) part.setAttribute("aria-label", label.textContent);
      }
      for (const part of document.querySelectorAll(".m2g-viewer canvas:not([aria-label])")) {
        part.setAttribute("aria-label", "your volume in three planes");
      }
    }).observe(document, { childList: true, subtree: true });
  </script>
{%- endblock notebook_css -%}
"""

CELL = "from medm2g_core.explore.warm import user_panel\n\nuser_panel()"


def _write(folder: Path, warm: bool) -> Path:
    """Kernel, template and notebook in a folder; the notebook."""
    address = str(folder / ADDRESS)
    knock = str(Path(__file__).with_name("knock.py"))
    argv = (
        [sys.executable, "-S", "-E", knock, address, "{connection_file}"]
        if warm
        else [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    )
    spec = {"argv": argv, "display_name": TITLE, "language": "python"}
    kernel = folder / "kernels" / KERNEL
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")

    template = folder / "voila" / "templates" / TEMPLATE_NAME
    template.mkdir(parents=True)
    conf = {"base_template": "lab", "preprocessors": {}}
    (template / "conf.json").write_text(json.dumps(conf), encoding="utf-8")
    (template / "index.html.j2").write_text(TEMPLATE, encoding="utf-8")

    cell: dict[str, Any] = {
        "cell_type": "code",
        "execution_count": None,
        "id": "explorer",
        "metadata": {},
        "outputs": [],
        "source": CELL,
    }
    notebook: dict[str, Any] = {
        "cells": [cell],
        "metadata": {
            "kernelspec": {"name": KERNEL, "display_name": TITLE, "language": "python"},
            "language_info": {"name": "python"},
            "title": TITLE,
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    pages = folder / "pages"
    pages.mkdir()
    path = pages / "explorer.ipynb"
    path.write_text(json.dumps(notebook), encoding="utf-8")
    return path


def _start_warm(address: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "medm2g_core.explore.warm", str(address)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline().strip() != READY:
        process.wait()
        raise SystemExit("the app cannot start: its model was not loaded; the reason stands above")
    return process


def _check_address(ip: str, port: int) -> None:
    """Voila would take another port without a word, and the address that is said be wrong."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    try:
        socket.create_server((ip, port), family=family).close()
    except (OSError, OverflowError) as error:
        raise SystemExit(
            f"the app cannot listen at {ip}, port {port}: {error}; choose another: --port"
            f" {PORT + 1}, --ip 127.0.0.1"
        ) from None


def _configuration(ip: str, port: int, browser: bool) -> dict[str, dict[str, Any]]:
    return {
        "Voila": {
            "ip": ip,
            "port": port,
            "open_browser": browser,
            "log_level": logging.WARNING,
            "tornado_settings": {
                "headers": {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer"},
                "websocket_max_message_size": MAX_MESSAGE_BYTES,
            },
        },
        "VoilaConfiguration": {
            "template": TEMPLATE_NAME,
            "show_tracebacks": False,
            "file_allowlist": [],
            "extension_allowlist": EXTENSIONS,
        },
        "MappingKernelManager": {"cull_idle_timeout": IDLE_S, "cull_interval": LOOK_S},
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the explorer until Ctrl-C; the exit code."""
    parser = argparse.ArgumentParser(prog="medm2g_core.explore.app", description="The explorer.")
    parser.add_argument("--model", default="", help="folder of other weights than the shipped")
    parser.add_argument("--port", type=int, default=PORT, help=f"{PORT} unless told")
    parser.add_argument("--ip", default="127.0.0.1", help="address to listen at: this machine only")
    parser.add_argument("--limit", type=int, default=LINE_LIMIT, help="drawings in the line")
    parser.add_argument("--no-browser", action="store_true", help="open no window")
    parser.add_argument("--cold", action="store_true", help="a whole process for every user")
    told = parser.parse_args(argv)
    if told.limit < 1:
        parser.error(f"--limit {told.limit}: needed 1 or more, or nobody could draw")
    _check_address(told.ip, told.port)
    try:
        from traitlets.config import Config
        from voila.app import Voila
    except ModuleNotFoundError:
        raise SystemExit(
            "the app needs the package voila: pip install 'medm2g-core[app]' (in a clone:"
            " pip install -e '.[app]')"
        ) from None
    fork = hasattr(os, "fork") and not told.cold
    with tempfile.TemporaryDirectory(prefix="medm2g-app-") as name:
        folder = Path(name)
        notebook = _write(folder, fork)
        paths = [str(folder), *filter(None, [os.environ.get("JUPYTER_PATH")])]
        os.environ["JUPYTER_PATH"] = os.pathsep.join(paths)
        os.environ |= {MODEL: told.model, LINE: str(folder / "line"), LIMIT: str(told.limit)}
        warm = _start_warm(folder / ADDRESS) if fork else None
        print(f"the explorer is at http://{told.ip}:{told.port}/ (Ctrl-C ends it)", flush=True)
        try:
            config = Config(_configuration(told.ip, told.port, not told.no_browser))
            Voila.launch_instance([str(notebook)], config=config)
        finally:
            if warm is not None:
                warm.terminate()
                warm.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
