"""Scores: their values on cases that can be worked out, and what the first evaluation writes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from medm2g_core.evaluation.results import (
    evaluate,
    failed,
    handicap,
    report,
    trained_long_enough,
    weights_digest,
    write_report,
)
from medm2g_core.evaluation.sections import SECTIONS
from medm2g_core.evaluation.store import load_results, load_section, save_section
from medm2g_core.evaluation.table import (
    LESS_IS_BETTER,
    Check,
    Row,
    SectionResult,
    below_simple,
    choose_setting,
    compact,
    make_row,
    markdown,
)
from medm2g_core.evaluation.training_time import flow_device, flow_seconds
from medm2g_core.model import MedM2G
from medm2g_core.rivals.shares import parse_shares
from medm2g_core.training.clock import stopwatch, unit

ROOT = Path(__file__).resolve().parents[1]


def test_a_stored_section_comes_back_only_for_what_it_was_measured_with(tmp_path: Path) -> None:
    outcome = SectionResult(
        [make_row("t", "m", "model", [1.0, 2.0])], [Check("c", True, "d")], 1.0, {"a": 1}
    )
    save_section(tmp_path, "x", "key", outcome)
    assert load_section(tmp_path, "x", "key") == outcome
    assert load_section(tmp_path, "x", "other") is None
    assert load_section(tmp_path, "y", "key") is None


def test_the_table_has_a_line_a_metric_and_keeps_rivals_apart() -> None:
    rows = [
        Row("a → b", "PSNR, dB", "model", 20.0, 19.0, 21.0, 8),
        Row("a → b", "PSNR, dB", "ceiling: codec", 30, 29, 31, 8),
        Row("a → b", "PSNR, dB", "baseline: mean image", 15, 14, 16, 8),
        Row("a → b", "SSIM", "model", 0.5, 0.4, 0.6, 8),
    ]
    lines = markdown(rows).splitlines()
    assert len(lines) == 4
    cells = [
        "a → b",
        "PSNR, dB",
        "8",
        "20.0 [19.0, 21.0]",
        "mean image 15.0 [14.0, 16.0]",
        "codec 30.0 [29.0, 31.0]",
    ]
    assert lines[2] == f"| {' | '.join(cells)} |"


def row(who: str, value: float, metric: str = "finding F1", chosen: bool = False) -> Row:
    return Row("task", metric, who, value, value - 0.1, value + 0.1, 9, chosen=chosen)


def columns_of(table: str) -> dict[str, str]:
    """Heading -> cell of the first line of a compact table."""
    head, _, first = (line.strip("|").split("|") for line in table.splitlines()[:3])
    return {h.strip(): c.strip() for h, c in zip(head, first, strict=True)}


RIVALS = [
    row("model", 0.3),
    row("model, best of 8", 0.4, chosen=True),
    row("model, mean", 0.5),
    row("baseline: random report", 0.2),
    row("baseline: nearest image by embedding", 0.35),
    row("baseline: regression", 0.25),
    row("baseline: autoregressive decoder, greedy", 0.6),
    row("baseline: autoregressive decoder, minimum Bayes risk of 16", 0.7, chosen=True),
    row("baseline: autoregressive decoder, sampled", 0.9),
    row("control: shuffled", 0.1),
    row("ceiling: codec", 0.8),
    row("ceiling: real images", 0.9),
]


def test_the_short_table_shows_one_answer_beside_one_answer_and_simple_beside_trained() -> None:
    assert columns_of(compact(RIVALS)) == {
        "task": "task",
        "metric": "finding F1",
        "n": "9",
        "model, one draw": "0.30 [0.20, 0.40]",
        "model, setting chosen on validation": "0.40 [0.30, 0.50] best of 8",
        "strongest trained baseline": (
            "0.60 [0.50, 0.70] autoregressive decoder, greedy; chosen: 0.70 [0.60, 0.80]"
            " autoregressive decoder, minimum Bayes risk of 16"
        ),
        "strongest simple baseline": "0.35 [0.25, 0.45] nearest image by embedding",
        "control": "0.10 [0.00, 0.20] shuffled",
        "ceiling": "0.90 [0.80, 1.00] real images",
    }
    alone = compact([Row("other", "PSNR, dB", "model", 20.04, 19, 21, 4)])
    assert (
        list(columns_of(alone).values())
        == ["other", "PSNR, dB", "4", "20.0 [19.0, 21.0]"] + [""] * 5
    )
    assert "Kumar and Byrne" in compact(RIVALS) and "Kumar and Byrne" not in alone


def test_the_best_setting_of_the_table_is_chosen_on_validation_not_on_the_rows_it_shows() -> None:
    """The mean is best on the test studies, best of 8 on the validation studies."""
    rows = [row("model", 0.3), row("model, best of 8", 0.4), row("model, mean", 0.5)]
    outcome = SectionResult(
        [*rows, Row("other task", "finding F1", "model, best of 8", 1, 1, 1, 9)]
    )
    told = {"model": 0.3, "model, best of 8": 0.9, "model, mean": float("nan")}
    assert choose_setting(outcome, ["task"], told, by="finding F1", n=5) == "model, best of 8"
    column = columns_of(compact(outcome.rows))["model, setting chosen on validation"]
    assert column == "0.40 [0.30, 0.50] best of 8"
    assert "best of 8 0.40 [0.30, 0.50] (chosen on validation)" in markdown(outcome.rows)
    assert [r.chosen for r in outcome.rows] == [False, True, False, False]
    (kept,) = outcome.facts["settings chosen on validation"]
    assert kept["chosen"] == "model, best of 8" and kept["n"] == 5
    assert kept["scores"]["model, mean"] is None, "JSON has no NaN"
    assert choose_setting(outcome, ["task"], dict.fromkeys(told, 0.5), by="", n=5) == "model"


@pytest.mark.parametrize("metric", ["finding F1", LESS_IS_BETTER[0]])
def test_a_model_below_a_simple_baseline_is_said_in_words(metric: str) -> None:
    sign = -1 if metric in LESS_IS_BETTER else 1
    rows = [
        row("model", sign * 0.3, metric),
        row("baseline: regression", sign * 0.9, metric),  # trained: not what this is about
        row("baseline: mean image", sign * 0.55, metric),
        row("baseline: random", sign * 0.1, metric),
    ]
    said = below_simple(rows)
    assert "mean image" in said and "regression" not in said and "random" not in said
    assert "overlap" not in said and "overlap" in below_simple(
        [*rows[:1], row("baseline: a", sign * 0.35, metric)]
    )
    chosen = row("model, mean of 8", sign * 0.6, metric, chosen=True)
    assert "mean of 8" in below_simple([*rows, chosen])
    assert "below too" not in below_simple([*rows, chosen])
    assert "In no row" in below_simple([rows[0], rows[1], rows[3]])


def test_trained_baselines_get_the_time_of_the_flow_they_face(tmp_path: Path) -> None:
    stages = {
        n: {"seconds": s, "threads": 2}
        for n, s in (("round1", 50.0), ("round2", 25.0), ("round3", 35.0))
    }
    (tmp_path / "training.json").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    assert flow_seconds(tmp_path) == {"text": 50.0, "xray": 50.0, "ct": 50.0, "mri": 70.0}
    assert flow_seconds(tmp_path, 0.5)["mri"] == 35.0
    writer = {"reports": {"seconds": 20.0, "threads": 2}}  # a report is its work too
    (tmp_path / "training.json").write_text(json.dumps({"stages": stages | writer}))
    assert flow_seconds(tmp_path) == {"text": 90.0, "xray": 50.0, "ct": 50.0, "mri": 70.0}
    assert set(flow_seconds(tmp_path / "nothing")) == {"text", "xray", "ct", "mri"}


def test_a_rival_of_flows_trained_on_a_gpu_gets_seconds_of_the_wall(tmp_path: Path) -> None:
    """Eight threads feed a GPU, but it is the GPU's time that both spend."""
    stage = {"seconds": 70.0, "threads": 8, "device": "cuda (NVIDIA H200)"}
    training = {"stages": dict.fromkeys(("round1", "round2", "round3"), stage)}
    (tmp_path / "training.json").write_text(json.dumps(training))
    assert flow_seconds(tmp_path, "1,mri=0.5") == {
        "text": 35.0,
        "xray": 35.0,
        "ct": 70.0,
        "mri": 35.0,
    }
    assert flow_device(tmp_path) == "cuda" and flow_device(tmp_path / "nothing") == "cpu"


def test_the_clock_of_a_cpu_stands_still_while_nothing_is_computed() -> None:
    spent = stopwatch("cpu")
    time.sleep(0.3)
    idle = spent()
    while spent() < idle + 0.05:
        pass
    assert idle < 0.1 and unit("cpu") == "CPU seconds" and unit("cuda:1") == "GPU seconds"


def test_evaluation_keeps_its_sections_and_measures_again_with_other_weights(
    model: MedM2G, tmp_path: Path
) -> None:
    """An untrained model: its tables are complete, its controls that need a trained model fail, and
    that is said. Without new weights no file is touched."""
    folder, out = tmp_path / "weights", tmp_path / "results"
    model.save_pretrained(folder)
    sizes = {"n_chest": 8, "n_brain": 4, "reference": 4, "steps": 1}
    sections = ("alignment", "guidance")
    outcomes = evaluate(folder, out, sections=sections, **sizes)
    assert set(outcomes) == set(sections)
    for outcome in outcomes.values():
        assert outcome.rows and all(r.low <= r.value <= r.high for r in outcome.rows)
    bad = failed(outcomes)
    assert any(
        "a wrong guide is visibly wrong" in c.name for _, c in bad
    ) and "does not hold" in report(outcomes)
    write_report(report(outcomes), out)
    stamp = {p.name: p.stat().st_mtime_ns for p in out.iterdir()}
    assert set(stamp) == {"alignment.json", "guidance.json", "results.md"}
    assert evaluate(folder, out, sections=sections, **sizes) == outcomes
    write_report(report(load_results(out, SECTIONS)), out)
    assert evaluate(folder, out, sections=sections, time_fraction=1.0, **sizes) == outcomes, (
        "they train no baselines"
    )
    assert {p.name: p.stat().st_mtime_ns for p in out.iterdir()} == stamp
    before = weights_digest(folder)
    with torch.no_grad():
        next(model.flows["mri"].parameters()).add_(0.5)
    model.save_pretrained(folder)
    assert weights_digest(folder) != before
    evaluate(folder, out, sections=("guidance",), **sizes)
    changed = {p.name for p in out.iterdir() if p.stat().st_mtime_ns != stamp[p.name]}
    assert changed == {"guidance.json"}
    with pytest.raises(ValueError, match="unknown section 'x'"):
        evaluate(folder, out, sections=("x",))


@pytest.mark.parametrize(
    ("had", "asked", "kept"),
    [
        ({}, {}, True),  # no trained baseline
        ({"mri": 0.1}, {}, True),  # nothing asked: what is stored stays
        ({"mri": 0.1}, {"mri": 0.1}, True),
        ({"mri": 1.0}, {"mri": 0.1}, True),
        ({"mri": 0.1, "ct": 1.0}, {"mri": 1.0, "ct": 1.0}, False),
    ],
)
def test_scores_are_kept_unless_their_baselines_were_trained_for_less_than_asked(
    had, asked, kept
) -> None:
    outcome = SectionResult(facts={"settings": {"time_fraction": had}})
    assert trained_long_enough(outcome, asked) is kept


def test_the_training_time_of_the_baselines_is_told_with_what_it_is_worth() -> None:
    def said(shares: dict[str, float]) -> str:
        none = SectionResult(facts={"settings": {"time_fraction": {}}})
        own = SectionResult(facts={"settings": {"time_fraction": shares}})
        return handicap({"translation": own, "guidance": none})

    few = said({"mri": 1.0, "ct": 0.1, "xray": 0.1, "pix2pix": 0.1})
    assert "10 % (Image to image: to CT, to X-ray, pix2pix); 100 % (Image to image: to MR)" in few
    assert "beating them shows little" in few and "Is the guidance" not in few
    whole = said(dict.fromkeys(("mri", "ct", "xray", "pix2pix"), 1.0))
    assert "100 % (Image to image)." in whole and "shows little" not in whole


def test_shares_of_the_training_time_are_read_or_refused_in_words() -> None:
    assert set(parse_shares(0.5).values()) == {0.5}
    assert parse_shares("0.1,mri=1") == {
        "text": 0.1,
        "xray": 0.1,
        "ct": 0.1,
        "mri": 1.0,
        "pix2pix": 1.0,
    }
    assert parse_shares("0.1,mri=1,pix2pix=0.2")["pix2pix"] == 0.2
    for bad in ("0", "x", "-1", "0.1,pet=1", "0.1,mri=", "inf"):
        with pytest.raises(ValueError, match="time fraction"):
            parse_shares(bad)


def test_seconds_of_another_kind_of_machine_are_called_not_comparable() -> None:
    outcome = SectionResult(
        facts={
            "settings": {"time_fraction": {"mri": 1.0}},
            "devices": {"flows": "cuda", "baselines": "cpu"},
        }
    )
    assert "not comparable" in handicap({"translation": outcome})
    outcome.facts["devices"] = {"flows": "cuda", "baselines": "cuda"}
    assert "not comparable" not in handicap({"translation": outcome})
