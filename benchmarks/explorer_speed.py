"""How fast the explorer answers in a browser, whether its memory grows, and ten users at once.

Needs the package's extra ``bench`` and Debian's chromium; Linux only (memory of a process).

python benchmarks/explorer_speed.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, sync_playwright
from record import record
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_MS = 240_000
SETTLED = 10  # draws after which caches are full
MB = 2**20

READY = """() =>
  [...document.querySelectorAll("button")].some(b => b.textContent == "Draw" && !b.disabled)
"""

MEASURE = """() => new Promise(resolve => {
  const panel = document.querySelector(".m2g-explorer");
  const draw = [...document.querySelectorAll("button")].find(b => b.textContent == "Draw");
  let preview = null;
  const look = new MutationObserver(() => {
    const now = performance.now() - begin, words = panel.textContent;
    if (preview === null && words.includes("Taking shape")) preview = now;
    const drawn = words.includes("drawn in") && !words.includes("Taking shape");
    if (preview !== null && drawn && panel.querySelector(".m2g-gallery img")) {
      look.disconnect();
      resolve({ preview: preview / 1000, drawn: now / 1000 });
    }
  });
  look.observe(panel, { childList: true, subtree: true, characterData: true });
  const begin = performance.now();
  draw.click();
})"""
"""Clicks *Draw*; seconds until a first preview stands in the page, and until the picture does."""


@contextmanager
def running_app() -> Iterator[tuple[str, psutil.Process]]:
    """The app's address and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "medm2g_core.explore.app", "--no-browser", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # says where it is, once the model is loaded
        while True:
            with socket.socket() as door:
                if door.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                raise SystemExit("the app has ended; the reason stands above")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def open_page(browser: Browser, address: str) -> Page:
    """The app for a new user, ready to be clicked on."""
    page = browser.new_context().new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    page.get_by_role("button", name="Draw", exact=True).wait_for()
    return page


def kernels(app: psutil.Process) -> list[psutil.Process]:
    """One for each user: children of the warm process."""
    (warm,) = (p for p in app.children() if "medm2g_core.explore.warm" in p.cmdline())
    return warm.children()


def draws(browser: Browser, address: str, app: psutil.Process, number: int) -> None:
    """One user who draws again and again: times, and the memory that is this user's alone."""
    page = open_page(browser, address)
    (kernel,) = kernels(app)
    slider = page.locator(".widget-slider").filter(has=page.get_by_text("steps", exact=True))
    steps = slider.locator(".widget-readout").inner_text()
    times, memory = [], []
    for _ in tqdm(range(number), desc="draws"):
        page.wait_for_function(READY)
        times.append(page.evaluate(MEASURE))
        memory.append(kernel.memory_full_info().uss / MB)
    for key, what, aim in (
        ("preview", "explorer in a browser, click to first preview", "< 1 s"),
        ("drawn", f"explorer in a browser, click to finished X-ray ({steps} steps)", "< 3 s"),
    ):
        seconds = sorted(t[key] for t in times)
        typical, slow = statistics.median(seconds), seconds[int(0.95 * len(seconds))]
        text = f"{typical:.2f} s (first {times[0][key]:.2f} s, 95 % within {slow:.2f} s)"
        record(f"explorer_{key}", what, text, aim)
    record(
        "explorer_memory",
        f"explorer, memory of one user's process after draw {SETTLED} and {number}",
        f"{memory[SETTLED - 1]:.0f} MB and {memory[-1]:.0f} MB (most: {max(memory):.0f} MB)",
        "flat",
    )
    page.context.close()


def crowd(browser: Browser, address: str, app: psutil.Process, number: int) -> None:
    """Users who click in the same moment and wait in one line."""
    pages = [open_page(browser, address) for _ in tqdm(range(number), desc="users")]
    begin = time.perf_counter()
    for page in pages:
        page.get_by_role("button", name="Draw", exact=True).click()
    waits = []
    for page in pages:
        page.get_by_role("status").filter(has_text="drawn in").wait_for()
        waits.append(time.perf_counter() - begin)
    alerts = [a for page in pages for a in page.get_by_role("alert").all_inner_texts() if a.strip()]
    memory = sum(kernel.memory_full_info().uss for kernel in kernels(app)) / MB
    record(
        "explorer_users",
        f"explorer, {number} users who click at once",
        f"all drawn after {max(waits):.0f} s, {len(alerts)} errors, {memory:.0f} MB more in all",
        "0 errors",
    )
    for page in pages:
        page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--users", type=int, default=10)
    args = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if chromium is None:
        raise SystemExit("needs chromium: apt install chromium")
    flags = ["--no-sandbox"] if os.geteuid() == 0 else []  # chromium refuses root otherwise
    with running_app() as (address, app), sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=flags)
        draws(browser, address, app, args.draws)
        crowd(browser, address, app, args.users)
        browser.close()


if __name__ == "__main__":
    main()
