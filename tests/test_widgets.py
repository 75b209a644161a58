"""The panel of the quickstart and the checks of the exercises: what they accept, and what they say
when they do not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from medm2g_core.data.mri import TISSUES
from medm2g_core.data.xray import MU_WATER
from medm2g_core.show import exercises
from medm2g_core.show.widgets import findings_panel, make_finding
from medm2g_core.streams import Finding, StreamError


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


def _mse(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().item()


FAT = TISSUES["fat"].t1_ms
ANSWERS: list[tuple[str, tuple[Any, ...], str]] = [
    ("check_call", (["mri_pd", "mri_t1"], ["mri_flair", "mri_t2"]), "Right:"),
    ("check_call", (["mri_t1"], ["mri_t1"]), "Not yet: mri_t1 cannot be given and wanted"),
    ("check_call", (["mri_t1", "ct"], ["mri_t2", "mri_flair"]), "Not yet:"),
    ("check_call", ("mri_t1", ["mri_t2"]), "Not yet: two lists"),
    ("check_call", (None, None), "No answer"),
    ("check_psnr", (lambda a, b: 10 * math.log10(4 / _mse(a, b)),), "Right:"),
    (
        "check_psnr",
        (lambda a, b: 10 * math.log10(1 / _mse(a, b)),),
        "Not yet: that is right for values 0..1",
    ),
    ("check_psnr", (_mse,), "Not yet: an error of"),
    ("check_psnr", (lambda a: 0.0,), "Not yet: the function raised TypeError"),
    ("check_unseen_pair", (("text", "mri"),), "Right:"),
    ("check_unseen_pair", (("mri", "ct"),), "Not yet: mri and ct are trained"),
    ("check_unseen_pair", ("ct",), "Not yet: two of"),
    ("check_hounsfield", (lambda mu: 1000 * (mu / MU_WATER - 1),), "Right:"),
    ("check_hounsfield", (lambda mu: 1000 * mu / MU_WATER,), "Not yet: mu ="),
    ("check_null_time", (FAT * math.log(2),), "Right:"),
    ("check_null_time", (FAT,), "Not yet:"),
    (
        "check_statement",
        (
            (
                Finding("nodule", "right", "middle", "moderate", 20),
                Finding("pleural_effusion", "left", size="small"),
            ),
        ),
        "Right:",
    ),
    (
        "check_statement",
        ((Finding("nodule", "right", "middle", "moderate", 12),),),
        "Not yet: nodule: 12 mm",
    ),
    (
        "check_statement",
        ((Finding("pleural_effusion", "left", size="small"),),),
        "Not yet: exactly",
    ),
]


@pytest.mark.parametrize(("check", "answer", "says"), ANSWERS)
def test_checks_accept_right_answers_and_explain_wrong_ones(
    check: str, answer: tuple[Any, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    getattr(exercises, check)(*answer)
    assert capsys.readouterr().out.startswith(says)
