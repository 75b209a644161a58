"""The drawing of the model: exactly the part that is asked for is in colour."""

from __future__ import annotations

from typing import get_args

import pytest
from matplotlib.colors import to_hex

from medm2g_core.show.here import ARROWS, BOXES, HERE, Part, you_are_here


@pytest.mark.parametrize("part", get_args(Part))
def test_only_the_part_that_is_asked_for_is_in_colour(part: Part) -> None:
    axes = you_are_here(part).axes[0]
    coloured = sum(to_hex(p.get_facecolor()) == HERE for p in axes.patches)
    bold = [t.get_text() for t in axes.texts if t.get_weight() == "bold"]
    own = [box.words for box in BOXES.values() if box.part == part]
    assert own and bold == own and coloured == len(own)
    assert len(axes.patches) == len(BOXES) + len(ARROWS)


def test_boxes_do_not_overlap_and_lie_on_the_page() -> None:
    figure = you_are_here("flow")
    figure.canvas.draw()
    boxes = [p.get_window_extent() for p in figure.axes[0].patches[: len(BOXES)]]
    page = figure.bbox
    for i, a in enumerate(boxes):
        assert page.x0 <= a.x0 and a.x1 <= page.x1 and page.y0 <= a.y0 and a.y1 <= page.y1
        assert not any(a.overlaps(b) for b in boxes[i + 1 :])
    for text in figure.axes[0].texts:
        words = text.get_window_extent()
        assert any(b.x0 <= words.x0 and words.x1 <= b.x1 for b in boxes), text.get_text()


def test_another_part_is_refused() -> None:
    with pytest.raises(ValueError, match="needed one of codecs"):
        you_are_here("heart")  # type: ignore[arg-type]
