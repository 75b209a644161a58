"""The three-plane viewer in a real browser: what is clicked is what is taken.

Screenshots are kept in ``outputs/browser`` to be looked at.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib
import numpy as np
import pytest
from browser_helpers import button, needs_browser, shoot, upload
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from PIL import Image
from replicas.files import SPACING, chest, lpi_affine
from scipy import ndimage
from test_explore_browser import app, browser, opened  # noqa: F401

from medm2g_core.data.files import read_stream
from medm2g_core.explore.pictures import WINDOWS, grey
from medm2g_core.profiles import profile

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = needs_browser

BLOCK = (slice(2, 9), slice(26, 38), slice(44, 52))
"""Of dense bone at the patient's upper left: slices from the head, the front and the right."""

WHITE = 250  # of 255; nothing else in the viewer is as bright
SIDE_PX = (12, 100)  # of the block on the screen; the page beside the viewer is white too
BESIDE_PX = 12  # of the screen; more than a voxel, and still within the block


@pytest.fixture(scope="module")
def volume_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chest of which no two slices are alike, in a file with turned and mirrored axes whose name
    holds a patient's."""
    hu = chest() + np.random.default_rng(0).normal(0, 8, (40, 64, 64)).astype(np.float32)
    hu[BLOCK] = 1500
    image = nib.Nifti1Image(hu.transpose(2, 1, 0), lpi_affine(SPACING))
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(("P", "S", "R")))
    path = tmp_path_factory.mktemp("scans") / "Doe_Jane.nii.gz"
    nib.save(image.as_reoriented(turn), path)
    return path


def _place(page: Page) -> tuple[int, ...]:
    """Axial, coronal and sagittal slice at the cross-hair, as the panel says."""
    words = page.get_by_text("Cross-hair at").inner_text()
    return tuple(int(n) for n in re.findall(r"(\d+) of", words))


def _moves(page: Page, do: Callable[[], None]) -> tuple[int, ...]:
    """Where the cross-hair is after something that has to move it."""
    before = page.get_by_text("Cross-hair at").inner_text()
    do()
    page.get_by_text(before).wait_for(state="detached")
    return _place(page)


def _white(page: Page) -> tuple[float, float]:
    """Middle (x, y) of the white square in the viewer, once it is shown."""
    canvas = page.locator(".m2g-viewer canvas")
    for _ in range(60):
        picture = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"))
        for rows, columns in ndimage.find_objects(ndimage.label(picture.min(axis=2) >= WHITE)[0]):
            sides = (rows.stop - rows.start, columns.stop - columns.start)
            if all(SIDE_PX[0] < side < SIDE_PX[1] for side in sides):
                return (columns.start + columns.stop) / 2, (rows.start + rows.stop) / 2
        page.wait_for_timeout(500)
    raise AssertionError("nothing white was shown")


def test_what_is_clicked_in_the_viewer_is_the_slice_that_is_taken(
    opened: Callable[..., Page],  # noqa: F811
    volume_file: Path,
) -> None:
    pytest.importorskip("ipyniivue", reason="needs the package ipyniivue")
    page = opened()
    canvas = page.locator(".m2g-viewer canvas")
    upload(page, volume_file, "CT")
    canvas.wait_for()
    # The coronal plane in the middle cuts the block, the two others do not.
    middle = _place(page)
    assert BLOCK[1].start <= middle[1] < BLOCK[1].stop and middle[2] < BLOCK[2].start
    x, y = _white(page)
    at = _moves(page, lambda: canvas.click(position={"x": x, "y": y}))
    inside = [part.start <= n < part.stop for part, n in zip(BLOCK, at, strict=True)]
    assert all(inside) and at[1] == middle[1]
    right = _moves(page, lambda: canvas.click(position={"x": x + BESIDE_PX, "y": y}))
    assert right[2] > at[2], "to the right of the picture is to the patient's left"
    lower = _moves(page, lambda: canvas.click(position={"x": x, "y": y + BESIDE_PX}))
    assert lower[0] > at[0], "further down is further from the head"
    assert page.get_by_label("slice plane").input_value() == "coronal"
    scrolled = _moves(page, lambda: page.mouse.wheel(0, 120))
    assert abs(scrolled[1] - lower[1]) == 1 and (scrolled[0], scrolled[2]) == (lower[0], lower[2])
    assert page.get_by_label("slice number").input_value() == str(scrolled[1])
    shoot(page, "viewer")

    page.get_by_label("slice plane").select_option("axial")
    page.get_by_label("slice number").fill("7")
    page.get_by_label("slice number").press("Tab")
    button(page, "Take axial slice 7").wait_for()
    canvas.focus()
    canvas.hover(position={"x": x, "y": y})  # the wheel moves the viewer's own cross-hair
    wheeled = _moves(page, lambda: page.mouse.wheel(0, 120))
    assert wheeled[0] == 7 and abs(wheeled[1] - scrolled[1]) == 1
    before = page.get_by_alt_text("given: CT").get_attribute("src")
    button(page, "Take axial slice 7").click()
    page.get_by_text("axial slice 7 of 40").wait_for()
    page.wait_for_function(
        "before => document.querySelector('img[alt=\"given: CT\"]').src != before", arg=before
    )
    source = page.get_by_alt_text("given: CT").get_attribute("src")
    assert source is not None
    picture = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
    size = profile("cpu").resolution
    read = read_stream(volume_file, "ct", size=size, plane="axial", index=7)
    np.testing.assert_array_equal(
        np.asarray(picture), grey(read.image, "ct", WINDOWS["whole scale"])
    )
    assert "Doe" not in page.content(), "the name of a file is nobody's business"

    page.set_viewport_size({"width": 420, "height": 1600})
    page.wait_for_function(
        """() => [...document.querySelectorAll(".m2g-viewer, .m2g-viewer canvas")].every(
           x => x.getBoundingClientRect().right <= innerWidth)"""
    )
    shoot(page, "viewer_420")
    button(page, "Forget my files").click()
    page.get_by_text("no file is kept").wait_for()
    canvas.wait_for(state="hidden")
    upload(page, volume_file, "CT")
    canvas.wait_for()
    assert _place(page) == middle, "as if it were the first"
    x, y = _white(page)
    again = _moves(page, lambda: canvas.click(position={"x": x, "y": y}))
    assert all(part.start <= n < part.stop for part, n in zip(BLOCK, again, strict=True))
