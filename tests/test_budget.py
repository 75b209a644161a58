"""Score against training time: every point comes from a stored result, and says which training it was."""

from __future__ import annotations

import json
from pathlib import Path

from medm2g_core.evaluation.budget import CURVES, budget_points
from medm2g_core.evaluation.longer import load_longer, side_by_side
from medm2g_core.evaluation.results import load_pieces
from medm2g_core.evaluation.table import Piece, Row, Shelf
from medm2g_core.evaluation.unseen import SEEN
from medm2g_core.profiles import ROUND_STAGES
from medm2g_core.show.effects import RESULTS, budget_figure

TRAINING = {"stages": {r: {"seconds": 600.0, "threads": 2} for r in ("round1", "round2", "round3")}}
TITLE = "Chest X-ray → Report, strict F1"


def row(who: str, value: float) -> Row:
    _, task, metric, _ = CURVES[TITLE]
    return Row(task, metric, who, value, value - 0.1, value + 0.1, 9)


def test_each_training_gives_a_point_with_its_minutes_and_its_interval():
    spent = {"a": {"alignment": 999.0, "round1": 60.0, "round2": 30.0, "round3": 30.0}, "b": {"round1": 240.0}}
    pieces = {"report_xray": Piece([row("model", 0.5), row("model, consensus of 5", 0.9)]),
              "unseen": Piece([row(SEEN, 0.3)], facts={"CPU seconds": spent})}  # fmt: skip
    short = [{"arm": "three rounds", "seconds": 60.0, "scores": {CURVES[TITLE][3]: v}} for v in (0.1, 0.2)]
    other = [{"arm": "all pairs at once, same time", "seconds": 1.0, "scores": {CURVES[TITLE][3]: 9.0}}]
    points = [p for p in budget_points(pieces, TRAINING, short + other) if p.curve == TITLE]
    assert [(p.what, p.minutes, round(p.value, 2)) for p in points] == [
        ("ablation, 2 seeds", 1.0, 0.15), ("two people of three", 3.0, 0.3), ("full training", 60.0, 0.5),
    ]  # fmt: skip
    assert (points[0].low, points[0].high) == (0.1, 0.2) and points[2].low == 0.4
    figure = budget_figure(points)
    assert len(figure.axes) == 1 and figure.axes[0].get_xscale() == "log"


def test_more_training_is_placed_by_the_studies_that_it_saw(tmp_path):
    def folder(name: str, steps: int, batch: int, seconds: float, device: str = "cpu") -> Path:
        stage = {"steps": steps, "seconds": seconds, "threads": 2, "device": device}
        path = tmp_path / name
        path.mkdir(parents=True)
        (path / "training.json").write_text(json.dumps({"stages": dict.fromkeys(ROUND_STAGES, stage)}))
        settings = {"profile": {"stages": {r: {"batch": batch} for r in ROUND_STAGES}}}
        (path / "config.json").write_text(json.dumps(settings))
        return path

    assert load_longer(tmp_path, tmp_path) is None
    shipped = folder("shipped", steps=100, batch=32, seconds=600.0)
    more = folder("results/longer", steps=50, batch=128, seconds=9.0, device="cuda (X)")
    Shelf(more).put("report_xray", "k", Piece([row("model", 0.7), row("model, consensus of 5", 0.9)]))
    longer = load_longer(tmp_path / "results", shipped)
    assert longer is not None and (longer.seconds, longer.device, longer.cpu_minutes) == (27.0, "cuda (X)", 120.0)
    pieces = {"report_xray": Piece([row("model", 0.5), row("baseline: x", 0.6)])}
    points = budget_points(pieces, TRAINING, [], longer)
    seen = [(p.what, p.minutes, p.value) for p in points]
    assert seen == [("full training", 60.0, 0.5), ("more, on a GPU", 180.0, 0.7)]
    table = side_by_side(pieces, longer)
    assert "| 9 | 0.50 [0.40, 0.60] | 0.70 [0.60, 0.80] |  | 0.90 [0.80, 1.00] consensus of 5 | 0.60" in table
    assert "27 more seconds of the three rounds on cuda (X)" in table and "120 CPU minutes" in table


def test_what_was_not_measured_gives_no_point():
    assert budget_points({}, TRAINING, []) == []


def test_the_curves_name_rows_that_the_results_have():
    pieces = load_pieces(RESULTS)
    assert {p.curve for p in budget_points(pieces, TRAINING, [])} == set(CURVES)
