"""A closer look at a drawing says what was asked, and refuses what makes no sense."""

from __future__ import annotations

import re
import threading

import pytest
import torch
from explore_helpers import SENTENCE, SIZE, patient, quiet

from medm2g_core.explore import closer
from medm2g_core.explore.drawing import Settings, draw
from medm2g_core.explore.given import from_patient, typed
from medm2g_core.explore.line import StoppedError
from medm2g_core.explore.panel import ExplorerPanel
from medm2g_core.model import MedM2G
from medm2g_core.streams import StreamError

OTHER = "Findings: There is a large right pneumothorax."
ONE_STEP = Settings(want=("xray", "text"), steps=1)


def test_a_change_shows_before_after_and_difference_of_every_seed(model: MedM2G) -> None:
    asked = Settings(want=("xray", "ct"), steps=1, draws=2)
    shown = closer.changed_html(quiet(model), [typed(SENTENCE)], [typed(OTHER)], asked)
    assert shown.count("<img") == 2 * 2 * 3
    assert shown.count("after minus before") == 2 * 2 * 2  # as caption and for who cannot see it
    with pytest.raises(StreamError, match="nothing differs"):
        closer.changed_html(quiet(model), [typed(SENTENCE)], [typed(SENTENCE)], asked)


@pytest.mark.parametrize(
    ("words", "kind", "values"),
    [("2, 5,10", int, (2, 5, 10)), ("0.5; 2", float, (0.5, 2.0)), (" 3 ,", int, (3,))],
)
def test_values_of_a_grid_are_read(words: str, kind: type, values: tuple) -> None:
    assert closer.numbers(words, kind) == values


@pytest.mark.parametrize("words", ["", " , ", "two", "1.5", "1 2"])
def test_what_are_no_whole_numbers_is_refused_with_an_example(words: str) -> None:
    with pytest.raises(ValueError, match="such as 2, 5, 10"):
        closer.numbers(words, int)


def test_a_grid_has_a_row_for_each_value_of_one_setting(model: MedM2G) -> None:
    pipe, given = quiet(model), [typed(SENTENCE)]
    shown = closer.grid_html(pipe, given, ONE_STEP, ("seed", (4, 5)), ("guidance", (0.0, 2.0, 8.0)))
    assert shown.count("<img") == 6
    assert [title for title in ("seed 4", "seed 5") if f", {title}<" in shown] == [
        "seed 4",
        "seed 5",
    ]
    with pytest.raises(ValueError, match="same setting"):
        closer.grid_html(pipe, given, ONE_STEP, ("seed", (1,)), ("seed", (2,)))
    with pytest.raises(ValueError, match=f"at most {closer.MAX_GRID}"):
        closer.grid_html(pipe, given, ONE_STEP, ("seed", range(6)), ("steps", range(1, 6)))


def test_a_walk_has_a_picture_for_each_part_of_the_way(model: MedM2G) -> None:
    shown = closer.walk_html(
        quiet(model), [typed(SENTENCE)], [typed(OTHER)], ONE_STEP, parts=(0.0, 0.5, 1.0)
    )
    assert shown.count("<img") == 3 and "50 % of the way" in shown


def test_who_wants_only_a_report_is_told_to_want_a_picture(model: MedM2G) -> None:
    asked = Settings(want=("text",), steps=1)
    with pytest.raises(StreamError, match="tick a picture"):
        closer.walk_html(quiet(model), [typed(SENTENCE)], [typed(OTHER)], asked)


def test_a_place_is_marked_and_its_looks_are_shown_for_every_layer(model: MedM2G) -> None:
    pipe, given = quiet(model), [from_patient(patient(), "ct", SIZE)]
    asked = Settings(want=("mri_t2",), steps=1)
    drawn, tape = closer.record_looks(pipe, given, asked)
    pairs = closer.pairs_that_looked(drawn, tape)
    assert pairs == [("mri_t2", "ct")]
    shown = closer.looked_html(drawn, tape, *pairs[0], (3, 7))
    assert shown.count("onclick") == 1 and "row 3, column 7" in shown
    assert shown.count("at the same place") == 2 * (shown.count("<img") - 1)
    with pytest.raises(ValueError, match=f"from 0 to {SIZE - 1}"):
        closer.looked_html(drawn, tape, *pairs[0], (0, SIZE))
    with pytest.raises(StreamError, match="no picture is given"):
        closer.record_looks(pipe, [typed(SENTENCE)], asked)


def test_a_look_ends_when_it_is_told_to(model: MedM2G) -> None:
    stop = threading.Event()
    stop.set()
    given = [from_patient(patient(), "ct", SIZE)]
    with pytest.raises(StoppedError):
        closer.record_looks(quiet(model), given, Settings(want=("mri_t2",), steps=3), stop)


def test_gates_are_one_picture_with_words_for_who_cannot_see_it(model: MedM2G) -> None:
    shown = closer.gates_html(model)
    assert shown.count("<img") == 1 and 'alt="how much' in shown


def test_a_copy_of_a_training_picture_is_found_at_distance_0(
    model: MedM2G, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw(quiet(model), [typed(SENTENCE)], Settings(want=("xray",), steps=1))
    picture = drawn.images()["xray"][0]
    pool = torch.stack([-picture, picture, torch.zeros_like(picture)])
    monkeypatch.setattr(closer, "_training", lambda region, name, size: pool)
    distances = re.findall(r">nearest \d: distance ([\d.]+)<", closer.copies_html(drawn, "chest"))
    assert distances[0] == "0.00" and float(distances[1]) > 0
    monkeypatch.setattr(closer, "_training", lambda region, name, size: pool[:0])
    with pytest.raises(StreamError, match="no brain patient has a"):
        closer.copies_html(drawn, "brain")


def test_the_panel_shows_what_a_tool_found_and_says_what_it_lacks(model: MedM2G) -> None:
    panel = ExplorerPanel(quiet(model), settings=Settings(steps=1), words=SENTENCE)

    def look(tool: str) -> str:
        panel.closer.tool.value = tool
        panel.closer.go.click()
        assert panel.thread is not None
        panel.thread.join(60)
        return panel.message.value

    assert "nothing was drawn yet" in look("copies")
    assert "no picture is given" in look("looked")
    panel.closer.other.value = OTHER
    assert "done" in look("change") and panel.closer.shown.value.count("<img") == 3
    panel.closer.row_values.value = "many"
    assert "needed whole numbers" in look("grid") and not panel.closer.go.disabled
    panel.state.patient = patient()
    panel.state.from_patient = ("ct",)
    assert "done" in look("looked")
    panel.closer.place.value = "5, 9"
    assert "row 5, column 9" in panel.closer.shown.value
    panel.closer.place.value = "5"
    assert "needed a row and a column" in panel.closer.shown.value
