"""The ablation harness: every arm differs in what it says, runs are kept, and the table shows the spread."""

from __future__ import annotations

import json

import pytest

from medm2g_core.evaluation.ablation import GROUPS, Budget, ablate, table
from medm2g_core.profiles import profile

TINY = Budget(alignment=2, guidance=2, rounds=1, chest=8, brain=8, held_out=4, draws=2)


def test_arms_of_a_group_are_different_profiles():
    for name, arms in GROUPS.items():
        parts = [{k: dict(v) for k, v in a.changes.items()} for a in arms]
        made = [(str(profile("cpu").replace(**p).to_dict()), a.rounds) for p, a in zip(parts, arms, strict=True)]
        assert len(set(made)) == len(arms), name


def test_every_group_runs_is_kept_and_is_not_run_again(model, tmp_path):
    model.save_pretrained(tmp_path / "weights")
    runs = ablate(tmp_path / "weights", tmp_path / "out", seeds=(0,), budget=TINY, progress=False)
    assert {g: len(r) for g, r in runs.items()} == {g: len(a) for g, a in GROUPS.items()}
    scores = [json.dumps(r["scores"]) for r in runs["guidance"]]
    assert len(set(scores)) > 1, "the arms do not differ"
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.json")}
    assert ablate(tmp_path / "weights", tmp_path / "out", seeds=(0,), budget=TINY, progress=False) == runs
    assert stamps == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.json")}
    text = table(runs)
    assert all(a.name in text for arms in GROUPS.values() for a in arms)
    with pytest.raises(ValueError, match="unknown group 'x'"):
        ablate(tmp_path / "weights", tmp_path / "out", groups=("x",))


def test_the_table_shows_the_lowest_and_the_highest_seed():
    run = {"group": "guidance", "arm": "a", "n": 4, "seconds": 1.0}
    runs = {"guidance": [run | {"seed": s, "scores": {"t, dB": v}} for s, v in ((0, 10.0), (1, 12.0), (2, 11.0))]}
    assert "| a | 1 | 11.0 [10.0, 12.0] |" in table(runs)
