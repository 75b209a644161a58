"""Figures: what they show, that they leave no global trace, and that the colours of reports tell
the truth."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from PIL import Image

from medm2g_core.show.curves import gate_curves, training_curves
from medm2g_core.show.figures import (
    Figure,
    Panel,
    compare,
    contact_sheet,
    report_panel,
    show_study,
)
from medm2g_core.show.report import COLOURS, finding_words, judge_report
from medm2g_core.streams import Finding, Study

TRUTH = (
    Finding("pleural_effusion", "left", size="moderate"),
    Finding("nodule", "right", "upper", "small", 12),
)
REPORT = (
    "A 60-year-old man. Findings: Moderate pleural effusion on the left. "
    "A 12 mm nodule is seen in the right upper lobe. "
    "Heart size is normal. Impression: Left pleural effusion and right upper lobe nodule."
)


def _image(value: float = 0.0) -> torch.Tensor:
    return torch.full((1, 16, 16), value)


def _pixels(figure: Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figure.png())).convert("RGB")).astype(int)


def _text(figure: Figure) -> str:
    inside = [t.get_text() for axes in figure.axes for t in axes.texts]
    return " ".join([*(t.get_text() for t in figure.texts), *inside])


@pytest.fixture
def study() -> Study:
    images = {n: _image() for n in ("xray", "ct", "mri_t1")}
    return Study("s1", "s1", "lung1", "chest", REPORT, images, TRUTH, 60, "male", (2.8, 2.8))


# --- reports


def _verdicts(text: str) -> list[str]:
    return [j.verdict for j in judge_report(text, TRUTH, "chest")]


def test_true_statements_are_right_and_neutral_ones_are_not_judged() -> None:
    assert _verdicts(REPORT) == ["", "", "right", "right", "", "", "right"]


@pytest.mark.parametrize(
    ("sentence", "verdict"),
    [
        ("Moderate pleural effusion on the right.", "partly"),
        ("Large left pleural effusion.", "partly"),
        ("Pleural effusion.", "right"),
        ("There is a large left pneumothorax.", "wrong"),
        ("No pleural effusion.", "wrong"),
        ("No pneumothorax.", ""),
        ("The mediastinum is unremarkable.", ""),
    ],
)
def test_a_sentence_is_judged_by_name_place_and_size(sentence: str, verdict: str) -> None:
    assert judge_report(sentence, TRUTH, "chest")[0].verdict == verdict


def test_what_a_report_does_not_assert_is_listed_as_missed() -> None:
    missed = [
        j.text
        for j in judge_report("Impression: Normal chest.", TRUTH, "chest")
        if j.verdict == "missed"
    ]
    assert missed == ["moderate left pleural effusion", "12 mm right upper lobe nodule"]


def test_without_truth_nothing_is_judged() -> None:
    assert {j.verdict for j in judge_report(REPORT, None, "chest")} == {""}


def test_the_panel_draws_each_verdict_in_its_colour() -> None:
    text = "Findings: Moderate pleural effusion on the left. There is a large left pneumothorax."
    colours = {t.get_color() for axes in report_panel(text, TRUTH).axes for t in axes.texts}
    assert {COLOURS["right"], COLOURS["wrong"], COLOURS["missed"]} <= colours
    black = {t.get_color() for axes in report_panel(text).axes for t in axes.texts}
    assert black == {COLOURS[""]}, "control: without truth nothing is coloured"


def test_no_word_of_a_report_is_lost_in_wrapping() -> None:
    for width in (1.5, 3.0, 8.0):
        assert _text(report_panel(REPORT, width=width, height=3.0)).split() == REPORT.split()


def test_a_report_that_cannot_fit_says_that_it_is_cut() -> None:
    assert "(cut)" in _text(report_panel(REPORT * 6, width=1.5, height=0.6))


def test_words_of_findings() -> None:
    assert (
        finding_words(Finding("pleural_effusion", "both", size="small"))
        == "small bilateral pleural effusion"
    )
    assert (
        finding_words(Finding("tumor", "left", "frontal", "large", 45))
        == "45 mm left frontal lobe tumor"
    )


# --- pictures


def test_grey_is_the_value_on_a_fixed_scale_and_not_stretched() -> None:
    figure = contact_sheet(
        [("", [Panel(_image(-1.0), sides=False), Panel(_image(0.0), sides=False)])]
    )
    pixels = _pixels(figure)
    row = pixels[pixels.shape[0] // 2, :, 0]
    width = len(row)
    assert abs(row[width // 4] - 0) < 3 and abs(row[3 * width // 4] - 128) < 4


def test_left_and_right_of_the_patient_are_marked_and_not_mirrored() -> None:
    image = _image(-1.0)
    image[:, :, :8] = 1.0  # the patient's right half is bright
    figure = contact_sheet([("", [image])])
    letters = {t.get_text(): t.get_position()[0] for t in figure.axes[0].texts}
    assert letters["R"] < 0.5 < letters["L"]
    pixels = _pixels(contact_sheet([("", [Panel(image, sides=False)])]))
    row = pixels[pixels.shape[0] // 2, :, 0]
    assert row[len(row) // 4] > 200 > 50 > row[3 * len(row) // 4]


def test_a_study_shows_all_its_streams(study: Study) -> None:
    words = _text(show_study(study))
    for title in (
        "Chest X-ray",
        "CT",
        "MR T1-weighted",
        "Report",
        "lung1",
        "pleural effusion on the left",
    ):
        assert title in words


def test_the_bar_of_a_ct_is_in_hounsfield_units() -> None:
    cells = [Panel(_image(), name="ct"), Panel(_image(), name="xray")]
    with_bar, without = contact_sheet([("", cells)], hu_bar=True), contact_sheet([("", cells)])
    assert len(with_bar.axes) == 3 and len(without.axes) == 2
    low, high = with_bar.axes[1].get_ylim()
    assert (low, high) == (-1000, 600)


def test_comparison_has_given_truth_and_every_draw(study: Study) -> None:
    draws = {"ct": torch.zeros(3, 1, 16, 16), "text": [REPORT] * 3}
    figure = compare(study.pick(["xray"]), study.pick(["ct", "text"]), draws, findings=TRUTH)
    assert len(figure.axes) == 1 + 2 * (1 + 3)
    assert "drawn 3" in _text(figure) and "not true" in _text(figure)


def test_the_few_coloured_words_keep_their_colours_in_the_png() -> None:
    noise = torch.from_numpy(
        np.random.default_rng(0).uniform(-1, 1, (1, 64, 64)).astype(np.float32)
    )
    text = "Findings: Moderate pleural effusion on the left. There is a large left pneumothorax."
    pixels = _pixels(contact_sheet([("", [noise, noise, Panel(text, findings=TRUTH)])])).reshape(
        -1, 3
    )
    for verdict in ("right", "wrong", "missed"):
        wanted = [int(COLOURS[verdict][i : i + 2], 16) for i in (1, 3, 5)]
        assert np.abs(pixels - wanted).max(1).min() < 40, (
            verdict
        )  # thin letters are a blend with white


def test_the_png_is_small_and_grey_survives_it() -> None:
    noise = torch.from_numpy(
        np.random.default_rng(0).uniform(-1, 1, (1, 64, 64)).astype(np.float32)
    )
    figure = contact_sheet([("", [noise])])
    full = io.BytesIO()
    figure.savefig(full, format="png", dpi=100)
    full.seek(0)
    true = np.asarray(Image.open(full).convert("RGB")).astype(int)
    assert np.abs(_pixels(figure) - true).max() <= 8
    assert len(figure.png()) < 0.6 * full.getbuffer().nbytes


@pytest.mark.parametrize("bad", [torch.zeros(2, 1, 8, 8), torch.zeros(8)])
def test_what_is_no_single_image_is_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="one image"):
        contact_sheet([("", [bad])])


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        contact_sheet([])


# --- training


def test_training_curves_show_every_logged_value(tmp_path: Path) -> None:
    log = tmp_path / "round1.log.jsonl"
    lines = [
        {"step": s, "seconds": s * 0.1, "loss": 1 / s, **({"gate": 0.5} if s > 5 else {})}
        for s in range(1, 30)
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = training_curves(log)
    assert [a.get_title() for a in figure.axes] == ["loss", "gate"]
    assert figure.axes[0].lines[0].get_ydata()[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="none of"):
        training_curves(log, keys=["absent"])


def test_a_log_without_steps_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.log.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="no lines"):
        training_curves(tmp_path / "x.log.jsonl")


# --- no trace


def test_making_figures_changes_no_global_option() -> None:
    before = dict(matplotlib.rcParams)
    contact_sheet([("", [_image()])]).png()
    assert dict(matplotlib.rcParams) == before


def test_a_users_dark_style_does_not_reach_the_figures() -> None:
    with matplotlib.rc_context({"figure.facecolor": "black", "text.color": "white"}):
        corner = _pixels(contact_sheet([("", [_image()])], title="x"))[0, 0]
    assert corner.tolist() == [255, 255, 255]


def test_importing_chooses_no_backend_and_does_not_load_pyplot() -> None:
    code = (
        "import sys, medm2g_core.show.figures as f; assert 'matplotlib.pyplot' not in sys.modules"
        " and f.Figure"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_gates_are_drawn_by_round_pair_and_layer_and_leave_the_other_curves_alone(
    tmp_path: Path,
) -> None:
    pairs = {"round1": ["text<-xray"], "round2": ["text<-xray", "ct<-text"]}
    logs = [tmp_path / f"{name}.log.jsonl" for name in pairs]
    for log, known in zip(logs, pairs.values(), strict=True):
        lines = [
            {"step": s, "seconds": 0.1, "loss": 1.0}
            | ({"gates": {pair: [1.0, 0.01 * s] for pair in known}} if s % 100 == 0 else {})
            for s in range(0, 220, 20)
        ]
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    axes = gate_curves(logs).axes
    assert [a.get_title() for a in axes] == ["round1", "round2", "", ""]
    assert [a.get_ylabel() for a in axes] == ["text ← xray", "", "ct ← text", ""]
    curves = [[list(c.get_ydata()) for c in a.lines[1:]] for a in axes]
    both = [[1.0, 1.0, 1.0], [0.0, 1.0, 2.0]]
    assert curves == [both, both, [], both]
    assert [a.get_title() for a in training_curves(logs).axes] == ["loss"]


def test_a_log_from_before_gates_were_logged_says_so(tmp_path: Path) -> None:
    (tmp_path / "x.log.jsonl").write_text('{"step": 0, "loss": 1.0}\n')
    with pytest.raises(ValueError, match="holds no gates"):
        gate_curves([tmp_path / "x.log.jsonl"])
