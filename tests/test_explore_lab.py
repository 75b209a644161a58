"""Notebook 12 in JupyterLab itself: all cells run, and the explorer below them draws.

A copy is opened, with fewer steps, and a JupyterLab of its own: nothing is read from or written to
the user's settings.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import pytest
from browser_helpers import (
    ROOT,
    SHOTS,
    chromium,
    draw,
    free_port,
    loaded,
    needs_browser,
    serving,
    visits,
    write_words,
)

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [*needs_browser, pytest.mark.slow]

NOTEBOOK = ROOT / "notebooks" / "12_explore.ipynb"

FEWER = {"STEPS": 4, "N_PAIRS": 6}
"""Parameters: the notebook is tried here, not the model. A cell cancels after
step 3, and one shows six pairs."""

SETTINGS = {
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": (
        '{"fetchNews": "false", "checkForUpdates": false, "doNotDisturbMode": true}'
    ),
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": '{"windowingMode": "none"}',
}
"""JupyterLab asks other machines for news and newer versions unless told not to, and leaves out
cells that are not in sight."""

WHO = "import sys\n\nprint('kernel', sys.executable)"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The notebook with fewer steps, no outputs, and one more cell that says which Python runs."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    parameters = notebook.cells[1]
    for name, value in FEWER.items():
        pattern = rf"^({name}: int = )\d+"
        parameters.source, found = re.subn(pattern, rf"\g<1>{value}", parameters.source, flags=re.M)
        assert found == 1, name
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.cells.append(nbformat.v4.new_code_cell(WHO))
    path = tmp_path / "work" / NOTEBOOK.name
    path.parent.mkdir()
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def lab(copy: Path, tmp_path: Path) -> Iterator[str]:
    """The address of a JupyterLab that knows nothing of the user's."""
    own = {name: tmp_path / name for name in ("config", "data", "runtime", "settings", "spaces")}
    for name, content in SETTINGS.items():
        file = own["settings"] / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    environment = {
        "JUPYTER_CONFIG_DIR": str(own["config"]),
        "JUPYTER_DATA_DIR": str(own["data"]),
        "JUPYTER_RUNTIME_DIR": str(own["runtime"]),
        "JUPYTERLAB_SETTINGS_DIR": str(own["settings"]),
        "JUPYTERLAB_WORKSPACES_DIR": str(own["spaces"]),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONPATH": str(ROOT),
    }
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", "--allow-root"]
    command += ["--LabApp.extension_manager=readonly", f"--notebook-dir={copy.parent}"]
    with serving(command, port, tmp_path / "log", environment=environment) as address:
        yield address


@pytest.fixture
def opened(lab: str) -> Iterator[Callable[..., Page]]:
    with chromium() as browser, visits(browser, lab) as visit:
        yield visit


def _run_all(page: Page, code_cells: int) -> None:
    """By the menu; waits for one cell after the other, and fails at once if one fails."""
    status = page.locator("#jp-main-statusbar")
    status.get_by_text(re.compile(r"Python 3.*\| Idle")).wait_for()  # a kernel is there
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    stderr = page.locator("[data-mime-type='application/vnd.jupyter.stderr']")
    failed = stderr.filter(has_text="Traceback")  # warnings go there too
    for number in range(1, code_cells + 1):
        ended = page.locator(".jp-InputPrompt").filter(has_text=f"[{number}]:")
        ended.or_(failed).first.wait_for(state="attached")
        assert not failed.count(), failed.first.inner_text()


def test_all_cells_run_and_the_explorer_draws_from_words(
    opened: Callable[..., Page], copy: Path
) -> None:
    page = opened(path=f"/lab/tree/{copy.name}")
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    cells = nbformat.read(copy, as_version=4).cells
    _run_all(page, sum(cell.cell_type == "code" for cell in cells))
    page.get_by_text(f"kernel {sys.executable}").wait_for()
    write_words(page, "Findings: There is a small right effusion.", "small right pleural effusion")
    draw(page)
    drawn = page.locator(".m2g-explorer").get_by_alt_text("drawn, seed")
    assert drawn.count() == 2 and all(map(loaded, drawn.all())), "an X-ray and a CT"
    drawn.first.scroll_into_view_if_needed()
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / "lab.png")
