"""Score against training time: every point comes from a stored result, and says which training it
was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medm2g_core.evaluation.store import load_results, save_section
from medm2g_core.evaluation.table import Row, SectionResult
from medm2g_core.experiments.budget import CURVES, budget_points
from medm2g_core.experiments.sections import ALL_SECTIONS
from medm2g_core.experiments.trainings import SHIPPED, Training, load_trainings, side_by_side
from medm2g_core.experiments.unseen import SEEN
from medm2g_core.profiles import ROUND_STAGES
from medm2g_core.show.effects import RESULTS, budget_figure

TITLE = "Chest X-ray → Report, strict F1"


def row(who: str, value: float) -> Row:
    _, task, metric, _ = CURVES[TITLE]
    return Row(task, metric, who, value, value - 0.1, value + 0.1, 9)


def test_each_training_gives_a_point_with_its_minutes_and_its_interval():
    spent = {
        "a": {"alignment": 999.0, "round1": 60.0, "round2": 30.0, "round3": 30.0},
        "b": {"round1": 240.0},
    }
    outcomes = {
        "report_xray": SectionResult([row("model", 0.5), row("model, mean of 5", 0.9)]),
        "unseen": SectionResult([row(SEEN, 0.3)], facts={"CPU seconds": spent}),
    }
    short = [
        {"arm": "three rounds", "seconds": 60.0, "scores": {CURVES[TITLE][3]: v}}
        for v in (0.1, 0.2)
    ]
    other = [
        {"arm": "all pairs at once, same time", "seconds": 1.0, "scores": {CURVES[TITLE][3]: 9.0}}
    ]
    trainings = [Training(SHIPPED, outcomes, 60.0, "")]
    points = [p for p in budget_points(trainings, short + other) if p.curve == TITLE]
    assert [(p.what, p.minutes, round(p.value, 2)) for p in points] == [
        ("ablation, 2 seeds", 1.0, 0.15),
        ("two people of three", 3.0, 0.3),
        ("full training", 60.0, 0.5),
    ]
    assert (points[0].low, points[0].high) == (0.1, 0.2) and points[2].low == 0.4
    figure = budget_figure(points)
    assert len(figure.axes) == 1 and figure.axes[0].get_xscale() == "log"


def folder(
    path: Path, *, steps: int, batch: int, seconds: float, device: str = "cpu", **facts: str
) -> Path:
    """Of a training whose rounds are all alike."""
    stage = {"steps": steps, "seconds": seconds, "threads": 2, "device": device}
    path.mkdir(parents=True)
    (path / "training.json").write_text(
        json.dumps({"stages": dict.fromkeys(ROUND_STAGES, stage), **facts})
    )
    settings = {"profile": {"stages": {r: {"batch": batch} for r in ROUND_STAGES}}}
    (path / "config.json").write_text(json.dumps(settings))
    return path


def keep(path: Path, model: float) -> None:
    rows = [row("model", model), row("model, mean of 5", model + 0.2), row("baseline: x", 0.6)]
    save_section(path, "report_xray", "k", SectionResult(rows))


def test_more_training_is_placed_by_the_studies_that_it_saw(tmp_path):
    shipped, results = (
        folder(tmp_path / "shipped", steps=100, batch=32, seconds=600.0),
        tmp_path / "results",
    )
    keep(results, 0.5)
    assert [t.name for t in load_trainings(results, shipped)] == ["shipped"]
    more = folder(
        results / "longer", steps=50, batch=128, seconds=9.0, device="cuda (X)", start="cpu, abc"
    )
    keep(more, 0.7)
    trainings = load_trainings(results, shipped)
    assert [(t.name, t.minutes) for t in trainings] == [("shipped", 60.0), ("longer", 180.0)]
    seen = [(p.what, p.minutes, p.value) for p in budget_points(trainings, [])]
    assert seen == [("full training", 60.0, 0.5), ("more, on a GPU", 180.0, 0.7)]
    table = side_by_side(trainings)
    heads = "shipped, one draw | longer, one draw | strongest baseline | real images"
    assert f"| task | metric | n | {heads} |" in table
    assert "| 9 | 0.50 [0.40, 0.60] | 0.70 [0.60, 0.80] | 0.60 [0.50, 0.70] x |  |" in table
    assert "27 more seconds of the three rounds on cuda (X), from the shipped weights" in table
    assert "120 CPU minutes" in table


@pytest.mark.parametrize(("start", "minutes"), [("cpu, abc", 30 + 60), ("cpu, other", 60 + 60)])
def test_longer_training_counts_from_the_weights_that_it_went_on_from(tmp_path, start, minutes):
    """From the first cycle of the shipped training (half its time) if its weights say so."""
    shipped, results = (
        folder(tmp_path / "shipped", steps=100, batch=32, seconds=600.0),
        tmp_path / "results",
    )
    earlier = folder(results / "earlier", steps=50, batch=32, seconds=300.0, weights="cpu, abc")
    folder(results / "longer", steps=25, batch=128, seconds=9.0, device="cuda (X)", start=start)
    keep(results, 0.5)
    keep(earlier, 0.4)
    trainings = {t.name: t for t in load_trainings(results, shipped)}
    assert [t.minutes for t in trainings.values()] == [30.0, 60.0, minutes]
    assert "round1 50 of 100" in trainings["earlier"].told


def test_what_less_training_left_as_it_was_is_taken_over_and_gives_no_second_point(tmp_path):
    shipped, results = (
        folder(tmp_path / "shipped", steps=100, batch=32, seconds=600.0),
        tmp_path / "results",
    )
    folder(results / "earlier", steps=50, batch=32, seconds=300.0, weights="cpu, abc")
    keep(results, 0.5)
    trainings = load_trainings(results, shipped)
    assert trainings[0].outcomes == trainings[1].outcomes
    assert [p.what for p in budget_points(trainings, [])] == ["full training"]


def test_what_was_not_measured_gives_no_point():
    assert budget_points([Training(SHIPPED, {}, 1.0, "")], []) == []


def test_the_curves_name_rows_that_the_results_have():
    trainings = [Training(SHIPPED, load_results(RESULTS, ALL_SECTIONS), 1.0, "")]
    assert {p.curve for p in budget_points(trainings, [])} == set(CURVES)
