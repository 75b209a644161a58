"""The panel of the quickstart: it writes a report, draws it, and explains what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medm2g_core.show.widgets import findings_panel, make_finding
from medm2g_core.streams import StreamError


class _Pipe:
    """Stands in for the pipeline: remembers what it was asked, draws grey."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def __call__(self, given: dict[str, str], want: list[str], **_: Any) -> dict[str, torch.Tensor]:
        if not given["text"].strip():
            raise StreamError("text: needed a report")
        self.asked.append((given["text"], want))
        return {n: torch.zeros(1, 1, 16, 16) for n in want}


def _parts(panel: Any) -> tuple[Any, ...]:
    menus, text, buttons, message, picture = panel.children
    return (*menus.children, text, *buttons.children, message, picture)


def test_the_panel_writes_a_report_of_the_chosen_finding_and_draws_it() -> None:
    pipe = _Pipe()
    finding, side, _, size, text, number, button, message, picture = _parts(
        findings_panel(pipe, want=["xray"])
    )
    finding.value, side.value, size.value = "pleural_effusion", "left", "large"
    assert "left" in text.value and "large" in text.value
    button.click()
    assert pipe.asked == [(text.value, ["xray"])] and bytes(picture.value).startswith(b"\x89PNG")
    assert number.value == 1 and "diagnosis" in message.value and not button.disabled


def test_the_panel_explains_what_cannot_be_and_stays_usable() -> None:
    finding, side, place, size, text, _, button, message, _ = _parts(findings_panel(_Pipe()))
    finding.value, side.value, place.value = "nodule", "left", "middle"
    assert "middle lobe" in message.value
    place.value = "lower"
    assert message.value == "" and "left lower lobe" in text.value.lower() and size.value
    text.value = ""
    button.click()
    assert "needed a report" in message.value and not button.disabled


def test_a_made_finding_fits_its_size_class() -> None:
    assert make_finding("mass", "left", "upper", "large").size_mm in range(48, 71)
    with pytest.raises(ValueError, match="size"):
        make_finding("nodule", "left", "upper", "large")
