"""The explorer's app in a real browser: what its users do, and what they must never meet.

Screenshots of every state are kept in ``outputs/browser`` to be looked at.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from zipfile import ZipFile

import pytest
import torch

from medm2g_core.data.export import write_stream
from medm2g_core.explore.closer_box import TOOLS
from medm2g_core.explore.given import Patient
from medm2g_core.profiles import profile

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "outputs" / "browser"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

PATIENCE_S = 240
"""For any state to come: far more than it takes, since other tests share the machine."""

WIDE, NARROW = (1280, 900), (420, 800)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt install chromium"),
]


# --- the app, a browser, and what a user can do


@pytest.fixture(scope="module")
def app() -> Iterator[str]:
    """The address of the app, which runs while this file's tests do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "medm2g_core.explore.app", "--no-browser", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert f":{port}/" in process.stdout.readline()
        _until(lambda: _listens(port))  # a request would start a kernel
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _listens(port: int) -> bool:
    with socket.socket() as door:
        return door.connect_ex(("127.0.0.1", port)) == 0


def _until(state: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not state():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium refuses root otherwise
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(app: str, browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the app for a new user. Nothing that they do may ask another machine for anything."""
    asked: list[str] = []
    refused: list[str] = []
    contexts = []

    def open_app(size: tuple[int, int] = WIDE) -> Page:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda opened: asked.append(opened.url))
        page.on("console", lambda said: "violates" in said.text and refused.append(said.text))
        page.goto(app)
        _button(page, "Draw").wait_for()
        return page

    yield open_app
    for context in contexts:
        context.close()
    own = urlsplit(app).netloc
    assert any(urlsplit(url).scheme == "ws" for url in asked), "control: requests are seen"
    assert {u for u in asked if urlsplit(u).scheme not in ("data", "blob")} == {
        u for u in asked if urlsplit(u).netloc == own
    }
    assert not refused, "the content security policy had to refuse something"


def _button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def _tick(page: Page, name: str) -> None:
    page.get_by_role("checkbox", name=name, exact=True).check()  # the one that is not hidden


def _said(page: Page, words: str, role: str = "status") -> Locator:
    """Waits until the panel says these words."""
    found = page.get_by_role(role).filter(has_text=words)  # type: ignore[arg-type]
    found.wait_for()
    return found


def _slide(page: Page, label: str, key: str) -> None:
    """Press a key on a slider: Home, End, an arrow."""
    slider = page.locator(".widget-slider").filter(has=page.get_by_text(label, exact=True))
    slider.locator(".noUi-handle").press(key)


def _shoot(page: Page, name: str) -> None:
    """The whole page, which scrolls inside the window."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    window, box = page.viewport_size, page.locator(".m2g-explorer").bounding_box()
    assert window is not None and box is not None
    page.set_viewport_size({"width": window["width"], "height": int(box["height"]) + 160})
    page.screenshot(path=SHOTS / f"{name}.png")
    page.set_viewport_size(window)


def _upload(page: Page, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a scan").click()
    chooser.value.set_files(path)


@pytest.fixture(scope="module")
def ct_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CT of a virtual patient, as a NIfTI file whose name holds a patient's."""
    study = Patient("chest", 0).study(profile("cpu").resolution)
    image = study["ct"]
    assert isinstance(image, torch.Tensor) and study.spacing_mm is not None
    stem = tmp_path_factory.mktemp("scans") / "Doe_Jane"
    (path,) = write_stream(image, "ct", stem, spacing_mm=study.spacing_mm, formats=["nifti"])
    return path


# --- drawing


def test_typed_words_are_read_and_drawn_to_the_end(opened: Callable[..., Page]) -> None:
    page = opened()
    page.get_by_label("words", exact=True).fill("Findings: There is a small right effusion.")
    _said(page, "small right pleural effusion")
    _button(page, "Draw").click()
    _said(page, "drawn in")
    assert "SYNTHETIC" in _said(page, "drawn in").inner_text()
    picture = page.locator(".m2g-gallery img").first
    assert picture.evaluate("image => image.complete && image.naturalWidth > 0")
    assert re.search("X-ray", page.locator(".m2g-explorer").inner_text())
    _shoot(page, "drawn_from_words")


def test_one_word_is_changed_and_only_that_change_is_seen(opened: Callable[..., Page]) -> None:
    page = opened()
    _button(page, "Draw").click()
    _said(page, "drawn in")
    words = page.get_by_label("words", exact=True).input_value()
    page.get_by_label("other words").fill(words.replace("left", "right"))
    _button(page, "Look closer").click()
    page.get_by_text("after minus before").first.wait_for()
    _shoot(page, "closer_change")


def test_a_click_on_a_picture_asks_where_this_place_looked(
    opened: Callable[..., Page], ct_file: Path
) -> None:
    page = opened()
    page.get_by_label("read it as").select_option("CT")
    _upload(page, ct_file)
    page.get_by_text("given: CT").wait_for()
    _tick(page, "MR T2-weighted")
    _slide(page, "steps", "Home")
    _button(page, "Draw").click()
    _said(page, "drawn in")
    page.get_by_label("look at", exact=True).select_option(label=TOOLS["looked"])
    _button(page, "Look closer").click()
    picture = page.get_by_alt_text("click a place").first
    before = page.get_by_label("row, column").input_value()
    picture.click(position={"x": 40, "y": 100})
    page.wait_for_function(
        "before => document.querySelector('.m2g-place input').value != before", arg=before
    )
    row, column = map(int, page.get_by_label("row, column").input_value().split(","))
    page.get_by_text(f"Where row {row}, column {column} looked").wait_for()
    assert column < row, "a click far down and to the left"
    _shoot(page, "closer_looked")


@pytest.mark.parametrize("tool", ["grid", "gates"])
def test_a_tool_shows_pictures(opened: Callable[..., Page], tool: str) -> None:
    page = opened()
    _slide(page, "steps", "Home")
    _button(page, "Draw").click()
    _said(page, "drawn in")
    page.get_by_label("look at", exact=True).select_option(label=TOOLS[tool])
    if tool == "grid":
        page.get_by_label("their values").fill("1, 2")
        page.get_by_label("and theirs").fill("0, 4")
    _button(page, "Look closer").click()
    _said(page, "done.")
    _shoot(page, f"closer_{tool}")


def test_cancel_stops_a_drawing_and_what_it_expected_stays(opened: Callable[..., Page]) -> None:
    page = opened()
    _slide(page, "steps", "End")
    _button(page, "Draw").click()
    page.get_by_text("Taking shape").first.wait_for()
    _button(page, "Cancel").click()
    _said(page, "cancelled after step")
    assert page.locator(".m2g-gallery img").count() > 0
    assert _button(page, "Draw").is_enabled() and _button(page, "Cancel").is_disabled()
    assert not _button(page, "Make the files").is_visible(), "half a drawing cannot be kept"
    _shoot(page, "cancelled")


def test_steps_are_looked_at_and_the_drawing_is_kept(
    opened: Callable[..., Page], tmp_path: Path
) -> None:
    page = opened()
    _tick(page, "CT")
    _button(page, "Draw").click()
    _said(page, "drawn in")
    _slide(page, "look at step", "Home")
    page.get_by_text("What step 1 expected").wait_for()
    for kind in ("NIfTI", "DICOM", "film (GIF)"):
        _tick(page, kind)
    _button(page, "Make the files").click()
    link = page.get_by_role("link", name="Save medm2g-synthetic.zip")
    with page.expect_download() as download:
        link.click()
    kept = tmp_path / "kept.zip"
    download.value.save_as(kept)
    with ZipFile(kept) as files:
        assert files.testzip() is None
        names = files.namelist()
    for stream in ("xray", "ct"):
        assert {f"{stream}.png", f"{stream}.nii.gz", f"{stream}.dcm"} <= set(names)
    assert {"generation.json", "again.py"} <= set(names)
    assert any(name.endswith(".gif") for name in names)
    page.get_by_text("Copy as code").click()
    _shoot(page, "steps_and_files")


# --- the user's own files


def test_junk_is_refused_in_a_sentence(opened: Callable[..., Page], tmp_path: Path) -> None:
    junk = tmp_path / "Doe_Jane.bin"
    junk.write_bytes(b"no picture " * 300)
    page = opened()
    page.get_by_label("read it as").select_option("CT")
    _upload(page, junk)
    alert = _said(page, "the uploaded file", role="alert").inner_text()
    assert "Traceback" not in alert and "Error" not in alert and "Doe" not in alert
    _button(page, "Draw").click()
    _said(page, "drawn in")
    _shoot(page, "junk_refused")


def test_an_uploaded_ct_is_given_and_drawn_from(opened: Callable[..., Page], ct_file: Path) -> None:
    page = opened()
    page.get_by_label("words", exact=True).fill("")
    page.get_by_label("read it as").select_option("CT")
    _upload(page, ct_file)
    page.get_by_text("given: CT").wait_for()
    _button(page, "Draw").click()
    _said(page, "drawn in")
    page.get_by_label("CT window").select_option("lung")
    assert "Doe" not in page.content(), "the name of a file is nobody's business"
    _shoot(page, "drawn_from_ct")


# --- users, screens, keyboards


def test_two_users_wait_in_one_line_and_see_only_their_own(opened: Callable[..., Page]) -> None:
    first, second = opened(), opened()
    for page, words in ((first, "The heart is severely enlarged."), (second, "Lungs are clear.")):
        page.get_by_label("words", exact=True).fill(words)
        _said(page, "Read in these words")
    _slide(first, "steps", "End")
    _button(first, "Draw").click()
    first.get_by_text("Taking shape").first.wait_for()
    _button(second, "Draw").click()
    _said(second, "1 before you in the line")
    _shoot(second, "waiting_in_line")
    _said(second, "drawn in")
    _said(first, "drawn in")
    for page, own, other in ((first, "enlarged", "clear"), (second, "clear", "enlarged")):
        given = page.locator(".m2g-report").all_inner_texts()
        assert any(own in words for words in given)
        assert not any(other in words for words in given)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "420"])
def test_nothing_is_wider_than_the_screen(
    opened: Callable[..., Page], size: tuple[int, int]
) -> None:
    page = opened(size)
    _tick(page, "CT")
    _button(page, "Draw").click()
    _said(page, "drawn in")
    _slide(page, "look at step", "Home")
    page.get_by_text("What step 1 expected").wait_for()
    wide = page.evaluate(
        """() => [...document.querySelectorAll("#rendered_cells *")].filter(x => x.offsetParent
           && x.getBoundingClientRect().right > innerWidth + 1).map(x => x.className)"""
    )
    assert not wide
    scrolled = """() => [...document.querySelectorAll("*")].filter(x => x.offsetParent
        && x.clientWidth > 300 && x.scrollWidth > x.clientWidth + 1
        && ["auto", "scroll"].includes(getComputedStyle(x).overflowX)).map(x => x.className)"""
    assert not page.evaluate(scrolled)
    _shoot(page, f"width_{size[0]}")


FOCUSED = """() => {
  const at = document.activeElement;
  const label = at.labels?.[0]?.textContent;
  return (at.getAttribute("aria-label") || label || at.textContent || "").trim();
}"""


def test_everything_is_reached_with_the_keyboard_and_has_a_name(
    opened: Callable[..., Page],
) -> None:
    page = opened()
    page.get_by_label("example", exact=True).focus()
    reached = [page.evaluate(FOCUSED)]
    while reached[-1] != "Draw" and len(reached) < 60:
        page.keyboard.press("Tab")
        reached.append(page.evaluate(FOCUSED))
    assert "" not in reached, f"something without a name among {reached}"
    names = "words, patient, read it as, Forget my files, Report, CT, seed, steps, guidance, order"
    assert set(names.split(", ")) <= set(reached)
    assert any(name.startswith("Upload a scan") for name in reached)
    page.keyboard.press("Enter")
    _said(page, "drawn in")
