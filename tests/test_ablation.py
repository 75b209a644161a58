"""The ablation harness: every arm differs in what it says, runs are kept, and the table shows the
spread."""

from __future__ import annotations

import json

import pytest

from medm2g_core.experiments.ablation import (
    GROUPS,
    LEADING,
    Budget,
    ablate,
    load_runs,
    summary,
    table,
)
from medm2g_core.profiles import profile
from medm2g_core.show.effects import ablation_figure

TINY = Budget(alignment=2, guidance=2, rounds=1, chest=8, brain=8, held_out=4, draws=2)


def test_arms_of_a_group_are_different_profiles():
    for name, arms in GROUPS.items():
        parts = [{k: dict(v) for k, v in a.changes.items()} for a in arms]
        made = [
            (str(profile("cpu").replace(**p).to_dict()), a.rounds)
            for p, a in zip(parts, arms, strict=True)
        ]
        assert len(set(made)) == len(arms), name


def test_every_group_runs_is_kept_and_is_not_run_again(model, tmp_path):
    model.save_pretrained(tmp_path / "weights")
    runs = ablate(tmp_path / "weights", tmp_path / "out", seeds=(0,), budget=TINY, progress=False)
    assert {g: len(r) for g, r in runs.items()} == {g: len(a) for g, a in GROUPS.items()}
    scores = [json.dumps(r["scores"]) for r in runs["guidance"]]
    assert len(set(scores)) > 1, "the arms do not differ"
    assert all(set(LEADING[g]) <= set(r["scores"]) for g, own in runs.items() for r in own)
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.json")}
    assert (
        ablate(tmp_path / "weights", tmp_path / "out", seeds=(0,), budget=TINY, progress=False)
        == runs
    )
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.json")}
    text = table(runs)
    assert all(a.name in text for arms in GROUPS.values() for a in arms)
    with pytest.raises(ValueError, match="unknown group 'x'"):
        ablate(tmp_path / "weights", tmp_path / "out", groups=("x",))


def test_the_table_shows_the_lowest_and_the_highest_seed():
    run = {"group": "guidance", "arm": "a", "n": 4, "seconds": 1.0}
    runs = {
        "guidance": [
            run | {"seed": s, "scores": {"t, dB": v}} for s, v in ((0, 10.0), (1, 12.0), (2, 11.0))
        ]
    }
    assert "| a | 1 | 11.0 [10.0, 12.0] |" in table(runs)


def runs_of(group: str, arm: str, values: list[float]) -> list[dict]:
    return [
        {
            "group": group,
            "arm": arm,
            "seed": k,
            "seconds": 60.0,
            "n": 4,
            "scores": dict.fromkeys(LEADING[group], v),
        }
        for k, v in enumerate(values)
    ]


def test_stored_runs_come_back_in_order_and_without_arms_that_are_gone(tmp_path):
    arms = [a.name for a in GROUPS["alignment"]]
    for k, run in enumerate(
        [
            *runs_of("alignment", arms[1], [0.2, 0.1]),
            *runs_of("alignment", arms[0], [0.3]),
            *runs_of("alignment", "an old one", [0.9]),
        ]
    ):
        (tmp_path / "alignment").mkdir(exist_ok=True)
        (tmp_path / "alignment" / f"{k}.json").write_text(
            json.dumps({"key": "", "result": run}), encoding="utf-8"
        )
    runs = load_runs(tmp_path)
    assert [(r["arm"], r["seed"]) for r in runs["alignment"]] == [
        (arms[0], 0),
        (arms[1], 0),
        (arms[1], 1),
    ]
    assert runs["guidance"] == runs["rounds"] == []
    assert f"| alignment | {arms[1]} | 2 | 0.15 [0.10, 0.20] " in summary(runs)


def test_the_picture_has_a_panel_a_leading_score_and_a_dot_a_seed():
    runs = {
        "alignment": runs_of("alignment", "a", [0.1, 0.2]) + runs_of("alignment", "b", [0.3]),
        "rounds": runs_of("rounds", "c", [1.0, 2.0, 3.0]),
        "guidance": [],
    }
    figure = ablation_figure(runs)
    assert len(figure.axes) == len(LEADING["alignment"]) + len(LEADING["rounds"])
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [[0.1, 0.2], [0.3]]
    with pytest.raises(ValueError, match="no ablation was run"):
        ablation_figure({"alignment": []})
