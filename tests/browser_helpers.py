"""A server, a real browser, and what a user can do in the explorer, for the browser tests.

Screenshots go to ``outputs/browser``, to be looked at. Everything waits for a state, never for a
time, since other tests may share the machine.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "outputs" / "browser"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)

PATIENCE_S = 400
"""For any state to come: far more than it takes, since other tests share the machine."""

WIDE, NARROW = (1280, 900), (420, 800)

needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt install chromium"),
]


# --- servers


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as door:
        return door.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def serving(
    command: Sequence[str], port: int, log: Path, *, environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A server on this machine while the block runs; its address.

    Args:
        log: where its words go; a failure shows their end.
        environment: variables besides those of this process.
    """
    with log.open("w") as words:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            stdout=words,
            stderr=subprocess.STDOUT,
        )
        try:
            end = time.monotonic() + PATIENCE_S
            while not _listens(port):  # a request would start a kernel
                said = log.read_text()[-2000:]
                assert process.poll() is None, f"the server ended: {said}"
                assert time.monotonic() < end, f"waited in vain for the server: {said}"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(PATIENCE_S)


# --- a browser


@contextmanager
def chromium() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium refuses root otherwise
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield launched
        launched.close()


class Overheard(NamedTuple):
    """What pages asked for, and what their content security policy had to refuse."""

    asked: list[str]
    refused: list[str]


@contextmanager
def visits(browser: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens an address of a server of this machine for new users. At the end it fails if anything
    that they did asked another machine for anything."""
    heard = Overheard([], [])
    contexts = []

    def visit(size: tuple[int, int] = WIDE, path: str = "") -> Page:
        context = browser.new_context(viewport={"width": size[0], "height": size[1]})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_S * 1000)
        page.on("request", lambda request: heard.asked.append(request.url))
        page.on("websocket", lambda opened: heard.asked.append(opened.url))
        page.on("console", lambda said: "violates" in said.text and heard.refused.append(said.text))
        page.goto(address + path)
        return page

    try:
        yield visit
    finally:
        for context in contexts:
            context.close()
    own = urlsplit(address).netloc
    assert any(urlsplit(url).scheme == "ws" for url in heard.asked), "control: requests are seen"
    outward = {u for u in heard.asked if urlsplit(u).scheme not in ("data", "blob")}
    assert not {u for u in outward if urlsplit(u).netloc != own}
    assert not heard.refused, "the content security policy had to refuse something"


# --- what a user can do


def button(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=name, exact=True)


def tick(page: Page, name: str) -> None:
    page.get_by_role("checkbox", name=name, exact=True).check()  # the one that is not hidden


def until_enabled(control: Locator) -> None:
    control.click(trial=True)  # waits until it could be clicked, and leaves it alone


def said(page: Page, words: str, *, alert: bool = False) -> Locator:
    """Waits until the panel says these words; as an alert if it has to be one."""
    where = "[role=alert]" if alert else "[role=alert], [role=status]"
    found = page.locator(f".m2g-explorer :is({where})").filter(has_text=words)
    found.wait_for()
    return found


def write_words(page: Page, words: str, read: str) -> None:
    """Type words to draw from, and wait until the panel says what it read in them."""
    page.get_by_label("words", exact=True).fill(words)
    said(page, read)


def slide(page: Page, label: str, key: str) -> None:
    """Press a key on a slider: Home, End, an arrow."""
    slider = page.locator(".widget-slider").filter(has=page.get_by_text(label, exact=True))
    slider.locator(".noUi-handle").press(key)


def draw(page: Page) -> None:
    """Press Draw, and wait for the end: the controls below the pictures come last."""
    button(page, "Draw").click()
    said(page, "drawn in")
    page.get_by_text("Copy as code").wait_for()


def look_closer(page: Page, tool: str) -> None:
    """Choose a tool by its words, use it, and wait for the end."""
    page.get_by_label("look at", exact=True).select_option(label=tool)
    button(page, "Look closer").click()
    said(page, "done.")


def upload(page: Page, path: Path, read_as: str) -> None:
    page.get_by_label("read it as").select_option(read_as)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Upload a scan").click()
    chooser.value.set_files(path)


def loaded(picture: Locator) -> bool:
    """Whether there really is a picture in an ``img``."""
    picture.wait_for()
    return bool(picture.evaluate("image => image.complete && image.naturalWidth > 0"))


ROOM_PX = 160  # of the page above and below the explorer


def shoot(page: Page, name: str) -> None:
    """A picture of the whole page, which scrolls inside the window."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    window, box = page.viewport_size, page.locator(".m2g-explorer").bounding_box()
    assert window is not None and box is not None
    page.set_viewport_size({"width": window["width"], "height": int(box["height"]) + ROOM_PX})
    page.screenshot(path=SHOTS / f"{name}.png")
    page.set_viewport_size(window)
