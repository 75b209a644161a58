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

import pytest

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
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


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
