"""The explorer's panel: its controls reach the state, and it stays usable whatever happens."""

from __future__ import annotations

import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from explore_helpers import SENTENCE, body_ct, patient, quiet

from medm2g_core.data.export import write_stream
from medm2g_core.explore.drawing import Settings
from medm2g_core.explore.line import Line
from medm2g_core.explore.panel import ExplorerPanel, findings_panel
from medm2g_core.model import MedM2G
from medm2g_core.show.report import make_finding


def _panel(model: MedM2G, **options: Any) -> ExplorerPanel:
    return ExplorerPanel(quiet(model), settings=Settings(steps=2), **options)


def _drawn(panel: ExplorerPanel) -> None:
    panel.draw.click()
    assert panel.thread is not None
    panel.thread.join(60)


def test_the_first_panel_writes_a_report_of_the_chosen_finding_and_draws_it(model: MedM2G) -> None:
    panel = findings_panel(quiet(model), want=["xray"], steps=1)
    words = panel.words
    words.finding.value, words.side.value, words.extent.value = "pleural_effusion", "left", "large"
    words.compose.click()
    assert "left" in words.text.value and "large left pleural effusion" in words.reading.value
    _drawn(panel)
    assert panel.result.value.count("<img") == 1 and "SYNTHETIC" in panel.message.value
    assert not panel.draw.disabled and panel.cancel.disabled


def test_menus_leave_typed_words_alone_until_told(model: MedM2G) -> None:
    words = _panel(model, words=SENTENCE).words
    words.finding.value, words.side.value = "nodule", "left"
    assert words.text.value == SENTENCE
    words.lobe.value = "middle"
    words.compose.click()
    assert words.text.value == SENTENCE and "middle lobe" in words.reading.value


def test_words_that_say_nothing_to_the_model_are_marked(model: MedM2G) -> None:
    panel = _panel(model, words="Hello there.")
    assert "no finding" in panel.words.reading.value and "alert" in panel.words.reading.value


def test_a_patient_is_drawn_beside_the_truth_and_scrubbed_and_exported(model: MedM2G) -> None:
    panel = _panel(model)
    panel.state.patient = patient()
    panel.give["ct"].value = True
    panel.want["xray"].value, panel.want["mri_t2"].value = False, True
    _drawn(panel)
    assert "true MR T2-weighted" in panel.result.value and "PSNR" in panel.result.value
    panel.step.value = 1
    assert "step 1 expected" in panel.film.value and panel.film.value.count("<img") == 1
    before = panel.given_shown.value
    panel.preset.value = "soft tissue"
    assert panel.given_shown.value != before, "the given CT follows the window"
    panel.make.click()
    assert "download" in panel.link.value and "VirtualCohort" in panel.code.value


def test_an_upload_is_given_and_its_content_is_let_go(model: MedM2G, tmp_path: Path) -> None:
    (path,) = write_stream(body_ct(), "ct", tmp_path / "scan", formats=["nifti"])
    panel = _panel(model, paths=False)
    panel.kind.value = "ct"
    content = memoryview(path.read_bytes())
    file = {"name": "DOE.nii.gz", "type": "", "size": len(content), "content": content}
    panel.upload.set_trait("value", ({**file, "last_modified": datetime.now()},))
    assert "ct" in panel.state.own and panel.upload.value == ()
    assert panel.given_shown.value.count("<img") == 1 and "DOE" not in panel.file_notes.value
    _drawn(panel)
    assert panel.result.value.count("<img") == 1
    panel.forget.click()
    assert not panel.state.own


def test_what_cannot_be_is_said_in_red_and_the_panel_stays_usable(
    model: MedM2G, tmp_path: Path
) -> None:
    panel = _panel(model)
    (tmp_path / "junk").write_bytes(b"junk" * 99)
    panel.path.value = str(tmp_path / "junk")
    panel.read_path.click()
    assert "unknown format" in panel.file_notes.value and "alert" in panel.file_notes.value
    panel.want["xray"].value = False
    panel.draw.click()
    assert "nothing is wanted" in panel.message.value and not panel.draw.disabled
    panel.want["xray"].value = True
    panel.words.text.value = "word " * 2000
    _drawn(panel)
    assert "alert" in panel.message.value and not panel.draw.disabled
    panel.words.text.value = ""
    _drawn(panel)
    assert panel.result.value.count("<img") == 1


def test_cancel_ends_within_one_step(model: MedM2G) -> None:
    panel = ExplorerPanel(quiet(model), settings=Settings(steps=40))
    stepped = panel._stepped

    def cancel_after_two(step: Any) -> None:
        stepped(step)
        if step.number == 2:
            panel.cancel.click()

    panel._stepped = cancel_after_two  # type: ignore[method-assign]
    _drawn(panel)
    assert panel.state.drawn is not None and panel.state.drawn.steps_done == 2
    assert "cancelled after step 2 of 40" in panel.message.value
    assert panel.keep.layout.display == "none"


def test_two_users_have_their_own_state_and_one_line(model: MedM2G) -> None:
    pipe, line = quiet(model), Line(limit=1)
    a, b = (ExplorerPanel(pipe, line=line, settings=Settings(steps=1)) for _ in range(2))
    a.words.text.value = SENTENCE
    assert b.state.words == ""
    with line.turn(threading.Event()):
        _drawn(b)
    assert "try again" in b.message.value
    _drawn(b)
    assert b.state.drawn is not None and a.state.drawn is None


def test_a_made_finding_fits_its_size_class() -> None:
    assert make_finding("mass", "left", "upper", "large").size_mm in range(48, 71)
    with pytest.raises(ValueError, match="size"):
        make_finding("nodule", "left", "upper", "large")


def test_an_unknown_source_is_refused(model: MedM2G) -> None:
    with pytest.raises(ValueError, match="words, patient, file"):
        _panel(model, sources=["internet"])


def test_no_menu_offers_none_which_ipywidgets_shows_as_an_empty_menu(model: MedM2G) -> None:
    """In some processes only: what it does then depends on the seed of Python's hashes."""
    panel = _panel(model)
    menus = [x for x in (*vars(panel).values(), *vars(panel.closer).values()) if _is_menu(x)]
    assert panel.patient in menus and panel.closer.pair in menus
    assert all(value is not None for menu in menus for _, value in _options(menu))


def _is_menu(thing: Any) -> bool:
    return type(thing).__name__ == "Dropdown"


def _options(menu: Any) -> list[tuple[str, Any]]:
    return [x if isinstance(x, tuple) else (str(x), x) for x in menu.options]
