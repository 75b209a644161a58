"""The explorer's logic: what is given, how it is drawn and stopped, and what is said of it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EFFUSION
from explore_helpers import SENTENCE, SIZE, body_ct, made_up, patient, quiet

from medm2g_core.data.export import write_stream
from medm2g_core.data.files import FileError
from medm2g_core.explore import given as given_module
from medm2g_core.explore.drawing import MAX_DRAWS, Settings, Step, draw, expected
from medm2g_core.explore.given import Patient, from_file, from_patient, from_upload, typed
from medm2g_core.explore.line import Line, LineFullError, StoppedError
from medm2g_core.explore.pictures import WINDOWS, Window, difference_rgb, film_frames, grey
from medm2g_core.explore.state import Explorer
from medm2g_core.explore.verdict import difference, report_html, scores, truth_of
from medm2g_core.explore.words import EXAMPLES, read_words
from medm2g_core.model import MedM2G
from medm2g_core.streams import Finding, StreamError

# --- what is given


def test_an_upload_is_read_like_a_file_and_nothing_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = write_stream(body_ct(), "ct", tmp_path / "DOE^JANE", formats=["nifti"])
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    uploaded = from_upload([path.read_bytes()], "ct", SIZE)
    assert torch.equal(uploaded.value, from_file(path, "ct", SIZE).value)  # type: ignore[arg-type]
    assert not list((tmp_path / "scratch").iterdir())
    assert "DOE" not in str(uploaded.origin) + str(uploaded.notes)


def test_a_refused_upload_is_named_neither_by_file_nor_by_folder() -> None:
    with pytest.raises(FileError, match="unknown format") as refused:
        from_upload([b"junk" * 100], "ct", SIZE)
    assert "the uploaded file" in str(refused.value) and "medm2g-upload" not in str(refused.value)


def test_an_upload_that_is_too_large_is_refused_before_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(given_module, "MAX_UPLOAD_BYTES", 2**20)
    with pytest.raises(FileError, match="at most 1 MB"):
        from_upload([b"\0" * (2**20 + 1)], "ct", SIZE)


def test_no_words_and_no_such_patient_are_refused_in_a_sentence() -> None:
    with pytest.raises(StreamError, match="no words"):
        typed("  \n")
    with pytest.raises(ValueError, match="from 0 to"):
        Patient("chest", 1000).study(SIZE)


@pytest.mark.parametrize(
    "wrong",
    [{"want": ()}, {"seed": -1}, {"steps": 0}, {"draws": MAX_DRAWS + 1}, {"guidance": 99.0}],
)
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=r"needed|nothing is wanted"):
        Settings(**wrong)


# --- drawing


def test_each_draw_has_its_own_seed_and_every_step_is_reported(model: MedM2G) -> None:
    seen: list[int] = []
    asked = Settings(want=("xray",), seed=3, steps=2, draws=2)
    two = draw(quiet(model), [typed(SENTENCE)], asked, on_step=lambda s: seen.append(s.number))
    second = draw(quiet(model), [typed(SENTENCE)], Settings(want=("xray",), seed=4, steps=2))
    assert seen == [1, 2] and not two.cancelled
    torch.testing.assert_close(two.streams["xray"][1], second.streams["xray"][0])  # type: ignore[index]
    last = expected(model, two.film)["xray"]
    torch.testing.assert_close(last, two.streams["xray"])


@pytest.mark.parametrize("order", ["joint", "cascade"])
def test_cancel_ends_within_one_step_and_shows_what_was_expected(model: MedM2G, order: str) -> None:
    stop = threading.Event()

    def after(step: Step) -> None:
        if step.number == 2:
            stop.set()

    asked = Settings(want=("xray", "text"), steps=5, order=order)  # type: ignore[arg-type]
    drawn = draw(quiet(model), [], asked, on_step=after, stop=stop)
    assert drawn.steps_done == 2 and drawn.cancelled
    assert set(drawn.streams) == {"xray"}, "a half-finished report is no report"
    assert torch.equal(drawn.streams["xray"], expected(model, drawn.film)["xray"])  # type: ignore[arg-type]


def test_guidance_of_the_guides_can_be_set_apart(model: MedM2G) -> None:
    given = [typed(SENTENCE), from_patient(patient(), "ct", SIZE)]
    base = {"want": ("mri_t2",), "steps": 2, "guidance": 2.0}
    tied, same, strong = (
        draw(quiet(model), given, Settings(**base, guide_guidance=g)).images()["mri_t2"]
        for g in (None, 2.0, 6.0)
    )
    torch.testing.assert_close(tied, same, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(tied, strong, atol=1e-3)


def test_the_users_own_pipeline_is_left_as_it_was(model: MedM2G) -> None:
    pipe = quiet(model)
    pipe.set_progress_bar_config(desc="mine")
    stop = threading.Event()
    stop.set()
    draw(pipe, [], Settings(steps=2), stop=stop)
    assert pipe._progress_bar_config == {"desc": "mine"} and not pipe.interrupt


# --- the line


def test_the_line_serves_in_order_and_tells_the_place() -> None:
    line, served, places = Line(), [], []
    first_may_go = threading.Event()

    def customer(name: str) -> None:
        with line.turn(threading.Event(), lambda p: places.append((name, p))):
            if name == "a":
                first_may_go.wait(5)
            served.append(name)

    threads = []
    for name in "abc":
        threads.append(threading.Thread(target=customer, args=(name,)))
        threads[-1].start()
        while len(line) < len(threads):
            time.sleep(0.01)
    first_may_go.set()
    for thread in threads:
        thread.join(5)
    assert served == ["a", "b", "c"] and len(line) == 0
    assert ("c", 2) in places and places[-1] == ("c", 0)


def test_a_full_line_says_so_and_who_is_told_to_stop_leaves_it() -> None:
    line, stop = Line(limit=2), threading.Event()
    left: list[str] = []

    def waits() -> None:
        try:
            with line.turn(stop):
                pass
        except StoppedError as error:
            left.append(str(error))

    with line.turn(threading.Event()):
        thread = threading.Thread(target=waits)
        thread.start()
        while len(line) < 2:
            time.sleep(0.01)
        with pytest.raises(LineFullError, match="2 drawings"), line.turn(threading.Event()):
            pass
        stop.set()
        thread.join(5)
        assert left and len(line) == 1
    assert len(line) == 0


# --- the words


def test_what_was_read_is_told_with_place_and_size(model: MedM2G) -> None:
    reading = read_words(SENTENCE, model.tokenizer)
    assert str(reading) == "chest: small left pleural effusion" and not reading.notes
    nothing = read_words("The weather is fine today.", model.tokenizer)
    assert "no finding" in str(nothing) and nothing.notes


@pytest.mark.parametrize("title", EXAMPLES)
def test_every_example_is_read_as_its_title_says(model: MedM2G, title: str) -> None:
    reading = read_words(EXAMPLES[title], model.tokenizer)
    assert ("normal" in title) == (not reading.findings) and len(reading.findings) <= 1
    assert reading.region == ("brain" if "ventricles" in title else "chest")


# --- beside the truth


def test_pixels_are_compared_only_where_a_picture_of_that_patient_was_given(model: MedM2G) -> None:
    pipe, asked = quiet(model), Settings(want=("mri_t2", "text"), steps=1)
    by_picture = draw(pipe, [from_patient(patient(), "ct", SIZE)], asked)
    said = scores(by_picture, truth_of(by_picture.given, made_up()))
    assert "PSNR" in said["mri_t2"][0] and "findings named" in said["text"][0]
    by_words = draw(
        pipe, [from_patient(patient(), "text", SIZE)], Settings(want=("mri_t2",), steps=1)
    )
    assert scores(by_words, truth_of(by_words.given, made_up())) == {}
    assert truth_of([typed(SENTENCE)], made_up()) is None, "words of another origin"
    mixed = [typed(SENTENCE), from_patient(patient(), "ct", SIZE)]
    assert truth_of(mixed, made_up()) is None, "a body of one patient, words of another"


def test_a_difference_of_ct_is_in_hounsfield_units() -> None:
    same = torch.zeros(1, 4, 4)
    assert torch.allclose(difference("ct", same + 0.1, same), torch.tensor(80.0))
    assert torch.allclose(difference("mri_t2", same + 0.1, same), torch.tensor(0.1))
    red, blue = (difference_rgb("ct", same + d, same)[0, 0].astype(int) for d in (0.5, -0.5))
    assert red[0] > red[2] and blue[2] > blue[0]
    assert difference_rgb("ct", same, same)[0, 0].min() > 240


def test_a_report_is_coloured_by_verdict_and_what_is_missed_is_listed() -> None:
    true = (EFFUSION, Finding("cardiomegaly", "", "", "large"))
    written = "There is a small right pleural effusion. There is a right pneumothorax."
    page = report_html(written + " <b>", true, "chest")
    assert "~" in page and "✗" in page and "missed: large cardiomegaly" in page
    assert "<b>" not in page, "a report is words, not markup"
    assert "✓" in report_html("There is a small left pleural effusion.", true, "chest")


def test_a_window_shows_its_own_part_of_the_scale() -> None:
    hu = torch.tensor([-1000.0, -600.0, 0.0, 40.0, 600.0])
    ct = ((hu + 1000) / 800 - 1)[None, None]  # (1, 1, 5)
    whole, soft = (grey(ct, "ct", WINDOWS[w])[0].tolist() for w in ("whole scale", "soft tissue"))
    assert whole[0] == 0 and whole[-1] == 255 and soft[:2] == [0, 0] and soft[3] in (127, 128)
    assert np.array_equal(grey(ct, "xray", Window(0, 1)), grey(ct, "xray"))
    with pytest.raises(ValueError, match="wide"):
        grey(ct, "ct", Window(0, 0))


# --- the state of one user


def test_results_of_a_patient_stand_beside_the_truth(model: MedM2G) -> None:
    explorer = Explorer(quiet(model))
    explorer.patient, explorer.from_patient = patient(), ("ct",)
    explorer.draw(Settings(want=("mri_t2", "text"), steps=1, draws=2))
    page = explorer.result_html()
    assert page.count("<img") == 1 + 2 * 2, "the truth, two draws, two differences"
    assert "true MR T2-weighted" in page and "PSNR" in page and "seed 1" in page
    assert explorer.result_html(show_difference=False).count("<img") == 1 + 2
    assert explorer.given_html().count("<img") == 1


def test_a_stream_given_twice_is_refused(model: MedM2G) -> None:
    explorer = Explorer(quiet(model))
    explorer.words = SENTENCE
    explorer.patient, explorer.from_patient = patient(), ("text",)
    with pytest.raises(StreamError, match="twice"):
        explorer.draw(Settings(steps=1))


def test_a_film_has_a_frame_for_each_step_with_the_mark(model: MedM2G) -> None:
    drawn = draw(quiet(model), [], Settings(want=("xray", "ct", "text"), steps=3))
    frames = film_frames(model, drawn)
    assert len(frames) == 3 and frames[0].width == 2 * 2 * SIZE
    assert np.asarray(frames[0])[2 * SIZE :].max() > 200, "the mark is written below"
