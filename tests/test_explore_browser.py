"""The explorer's app in a real browser: what its users do, and what they must never meet.

Screenshots of every state are kept in ``outputs/browser`` to be looked at.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from browser_helpers import (
    NARROW,
    WIDE,
    button,
    chromium,
    draw,
    free_port,
    loaded,
    look_closer,
    needs_browser,
    said,
    serving,
    shoot,
    slide,
    tick,
    until_enabled,
    upload,
    visits,
    write_words,
)
from film_helpers import dicom_film
from PIL import Image

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.export import write_stream
from medm2g_core.explore.closer import TRAINING
from medm2g_core.explore.closer_box import TOOLS
from medm2g_core.explore.given import Patient
from medm2g_core.profiles import profile
from medm2g_core.streams import Study

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = needs_browser

NAME = "Featherstone_Prudence"
"""Of files: a person's. So long that no picture in letters (base64) holds it by chance."""

PERSON = {
    "PatientName": "Featherstone^Prudence",
    "PatientID": "FEATHERSTONE-1",
    "PatientBirthDate": "19610704",
    "InstitutionName": "Featherstone Hospital",
}
"""In a DICOM header."""


def _tells_who(content: str | bytes) -> bool:
    text = content if isinstance(content, str) else content.decode("latin-1")
    return any(word in text.lower() for word in ("featherstone", "prudence", "19610704"))


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the app, which runs while this file's tests do."""
    port = free_port()
    command = [sys.executable, "-m", "medm2g_core.explore.app", "--no-browser", "--port", str(port)]
    with serving(command, port, tmp_path_factory.mktemp("app") / "log") as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as launched:
        yield launched


@pytest.fixture
def opened(app: str, browser: Browser) -> Iterator[Callable[..., Page]]:
    """Opens the app for a new user. Nothing that they do may ask another machine for anything."""
    with visits(browser, app) as visit:

        def open_app(size: tuple[int, int] = WIDE) -> Page:
            page = visit(size)
            button(page, "Draw").wait_for()
            return page

        yield open_app


@pytest.fixture(scope="module")
def study() -> Study:
    return Patient("chest", 0).study(profile("cpu").resolution)


@pytest.fixture(scope="module")
def ct_file(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CT of a virtual patient, as a NIfTI file whose name holds a patient's."""
    image = study["ct"]
    assert isinstance(image, torch.Tensor) and study.spacing_mm is not None
    stem = tmp_path_factory.mktemp("scans") / NAME
    (path,) = write_stream(image, "ct", stem, spacing_mm=study.spacing_mm, formats=["nifti"])
    return path


@pytest.fixture(scope="module")
def training_patients() -> None:
    """Drawn before a page waits for them, if they are not in the cache."""
    VirtualCohort("train", "chest", TRAINING, resolution=profile("cpu").resolution)


# --- drawing


def test_typed_words_are_read_and_drawn_to_the_end(opened: Callable[..., Page]) -> None:
    page = opened()
    write_words(page, "Findings: There is a small right effusion.", "small right pleural effusion")
    draw(page)
    assert "SYNTHETIC" in said(page, "drawn in").inner_text()
    assert loaded(page.locator(".m2g-gallery img").first)
    assert re.search("X-ray", page.locator(".m2g-explorer").inner_text())
    shoot(page, "drawn_from_words")


def test_one_word_is_changed_and_only_that_change_is_seen(opened: Callable[..., Page]) -> None:
    page = opened()
    draw(page)
    words = page.get_by_label("words", exact=True).input_value()
    page.get_by_label("other words").fill(words.replace("left", "right"))
    look_closer(page, TOOLS["change"])
    assert loaded(page.get_by_alt_text("after minus before").first)
    shoot(page, "closer_change")


def test_a_click_on_a_picture_asks_where_this_place_looked(
    opened: Callable[..., Page], ct_file: Path
) -> None:
    page = opened()
    upload(page, ct_file, "CT")
    page.get_by_text("given: CT").wait_for()
    tick(page, "MR T2-weighted")
    slide(page, "steps", "Home")
    draw(page)
    look_closer(page, TOOLS["looked"])
    picture = page.get_by_alt_text("click a place").first
    before = page.get_by_label("row, column").input_value()
    picture.click(position={"x": 40, "y": 100})
    page.wait_for_function(
        "before => document.querySelector('.m2g-place input').value != before", arg=before
    )
    row, column = map(int, page.get_by_label("row, column").input_value().split(","))
    page.get_by_text(f"Where row {row}, column {column} looked").wait_for()
    assert column < row, "a click far down and to the left"
    shoot(page, "closer_looked")


@pytest.mark.parametrize(
    ("tool", "caption", "number"),
    [
        ("grid", "guidance", 4),
        ("walk", "% of the way", 5),
        ("gates", "how much of what a flow hears is let in", 1),
    ],
    ids=["grid", "walk", "gates"],
)
def test_a_tool_shows_its_pictures(
    opened: Callable[..., Page], tool: str, caption: str, number: int
) -> None:
    page = opened()
    slide(page, "steps", "Home")
    draw(page)
    if tool == "grid":
        page.get_by_label("look at", exact=True).select_option(label=TOOLS[tool])
        page.get_by_label("their values").fill("1, 2")
        page.get_by_label("and theirs").fill("0, 4")
    if tool == "walk":
        words = page.get_by_label("words", exact=True).input_value()
        page.get_by_label("other words").fill(words.replace("left", "right"))
    look_closer(page, TOOLS[tool])
    pictures = page.get_by_alt_text(caption)
    pictures.first.wait_for()
    assert pictures.count() == number
    sources = [picture.get_attribute("src") for picture in pictures.all()]
    assert len(set(sources)) == number, "every picture is another"
    assert all(map(loaded, pictures.all()))
    shoot(page, f"closer_{tool}")


def test_the_nearest_training_patients_come_in_their_order(
    opened: Callable[..., Page], training_patients: None
) -> None:
    page = opened()
    draw(page)
    look_closer(page, TOOLS["copies"])
    pictures = page.get_by_alt_text("nearest")
    assert loaded(pictures.first)
    captions = [picture.get_attribute("alt") or "" for picture in pictures.all()]
    distances = [float(caption.split()[-1]) for caption in captions]
    assert len(distances) == 2 and 0 < distances[0] <= distances[1], "0 would be a copy"
    shoot(page, "closer_copies")


def test_cancel_stops_a_drawing_and_what_it_expected_stays(opened: Callable[..., Page]) -> None:
    page = opened()
    slide(page, "steps", "End")
    slide(page, "draws", "End")  # so long that nobody is late to stop it
    button(page, "Draw").click()
    page.get_by_text("Taking shape").first.wait_for()
    button(page, "Cancel").click()
    said(page, "cancelled after step")
    assert page.locator(".m2g-gallery img").count() > 0
    until_enabled(button(page, "Draw"))
    assert button(page, "Cancel").is_disabled()
    assert not button(page, "Make the files").is_visible(), "half a drawing cannot be kept"
    shoot(page, "cancelled")


def _kept(page: Page, folder: Path) -> dict[str, bytes]:
    """Make the files that are ticked and save them: name -> content."""
    button(page, "Make the files").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="Save medm2g-synthetic.zip").click()
    path = folder / "kept.zip"
    download.value.save_as(path)
    with ZipFile(path) as files:
        assert files.testzip() is None
        return {name: files.read(name) for name in files.namelist()}


def test_steps_are_looked_at_and_the_drawing_is_kept(
    opened: Callable[..., Page], tmp_path: Path
) -> None:
    page = opened()
    tick(page, "CT")
    draw(page)
    slide(page, "look at step", "Home")
    page.get_by_text("What step 1 expected").wait_for()
    for kind in ("NIfTI", "DICOM", "film (GIF)"):
        tick(page, kind)
    names = set(_kept(page, tmp_path))
    for stream in ("xray", "ct"):
        assert {f"{stream}.png", f"{stream}.nii.gz", f"{stream}.dcm"} <= names
    assert {"generation.json", "again.py"} <= names
    assert any(name.endswith(".gif") for name in names)
    page.get_by_text("Copy as code").click()
    shoot(page, "steps_and_files")


# --- the user's own files


def test_junk_is_refused_in_a_sentence(opened: Callable[..., Page], tmp_path: Path) -> None:
    junk = tmp_path / f"{NAME}.bin"
    junk.write_bytes(b"no picture " * 300)
    page = opened()
    upload(page, junk, "CT")
    alert = said(page, "the uploaded file", alert=True).inner_text()
    assert "Traceback" not in alert and "Error" not in alert and not _tells_who(page.content())
    draw(page)
    shoot(page, "junk_refused")


def test_an_uploaded_ct_is_given_and_drawn_from(opened: Callable[..., Page], ct_file: Path) -> None:
    page = opened()
    page.get_by_label("words", exact=True).fill("")
    upload(page, ct_file, "CT")
    page.get_by_text("given: CT").wait_for()
    draw(page)
    page.get_by_label("CT window").select_option("lung")
    assert not _tells_who(page.content()), "the name of a file is nobody's business"
    shoot(page, "drawn_from_ct")


@pytest.fixture(params=["png", "dicom"])
def film_file(request: pytest.FixtureRequest, study: Study, tmp_path: Path) -> Path:
    """The X-ray of a virtual patient as a file with a person's name in and on it."""
    image = study["xray"]
    assert isinstance(image, torch.Tensor)
    unit = (image[0].numpy() + 1) / 2
    path = tmp_path / f"{NAME}.{request.param}"
    if request.param == "png":
        Image.fromarray((unit * 255).round().astype(np.uint8)).save(path)
    else:
        dicom_film((unit * 4000).astype(np.uint16), **PERSON).save_as(path)
    return path


def test_an_uploaded_film_is_given_and_drawn_from_and_its_person_stays_unknown(
    opened: Callable[..., Page], film_file: Path, tmp_path: Path
) -> None:
    page = opened()
    page.get_by_label("words", exact=True).fill("")
    upload(page, film_file, "Chest X-ray")
    given = page.get_by_alt_text("given: Chest X-ray")
    assert loaded(given)
    page.get_by_role("checkbox", name="Chest X-ray", exact=True).uncheck()
    tick(page, "CT")
    draw(page)
    assert loaded(page.get_by_alt_text("drawn, seed 0"))
    tick(page, "DICOM")
    kept = _kept(page, tmp_path)
    assert "SYNTHETIC" in page.content() and b"SYNTHETIC" in kept["ct.dcm"], "control"
    assert not any(map(_tells_who, [page.content(), *kept.values(), *kept]))
    shoot(page, f"drawn_from_{film_file.suffix[1:]}")


# --- users, screens, keyboards


def test_two_users_wait_in_one_line_and_see_only_their_own(opened: Callable[..., Page]) -> None:
    first, second = opened(), opened()
    write_words(first, "The heart is severely enlarged.", "cardiomegaly")
    write_words(second, "Lungs are clear.", "no finding")
    slide(first, "steps", "End")
    slide(first, "draws", "End")  # so long that the second comes in time to wait
    button(first, "Draw").click()
    first.get_by_text("Taking shape").first.wait_for()
    button(second, "Draw").click()
    said(second, "1 before you in the line")
    shoot(second, "waiting_in_line")
    button(first, "Cancel").click()
    said(first, "cancelled after step")
    said(second, "drawn in")
    for page, own, other in ((first, "enlarged", "clear"), (second, "clear", "enlarged")):
        page.locator(".m2g-report").first.wait_for()
        given = page.locator(".m2g-report").all_inner_texts()
        assert any(own in words for words in given)
        assert not any(other in words for words in given)


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["1280", "420"])
def test_nothing_is_wider_than_the_screen(
    opened: Callable[..., Page], size: tuple[int, int]
) -> None:
    page = opened(size)
    tick(page, "CT")
    draw(page)
    slide(page, "look at step", "Home")
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
    shoot(page, f"width_{size[0]}")


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
    said(page, "drawn in")
