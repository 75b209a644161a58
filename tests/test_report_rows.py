"""Rows of reports: what equal, shuffled and partly right reports score."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import EDEMA, EFFUSION, NODULE

from medm2g_core.data.reports import write_report
from medm2g_core.evaluation import report_rows as rows_module
from medm2g_core.evaluation.report_generation import minimum_risk, reworded
from medm2g_core.evaluation.report_rows import Truth, report_rows
from medm2g_core.evaluation.table import Row
from medm2g_core.metrics import report_scores
from medm2g_core.streams import Finding


def truth(n: int = 60, seed: int = 0) -> Truth:
    """Patients of four kinds in random order."""
    rng = np.random.default_rng(seed)
    pool = [(), (EFFUSION,), (NODULE,), (EDEMA, EFFUSION)]
    findings = [pool[int(i)] for i in rng.integers(len(pool), size=n)]
    texts = [
        write_report(
            f, "chest", int(rng.integers(20, 90)), ("female", "male")[int(rng.integers(2))], rng
        )
        for f in findings
    ]
    return Truth("chest", texts, findings)


def by(rows: list[Row]) -> dict[tuple[str, str], Row]:
    return {(r.metric, r.who): r for r in rows}


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """METEOR takes seconds: only the test that is about it looks for java."""
    if "java" not in request.node.name:
        monkeypatch.setattr(rows_module, "meteor", lambda a, b: None)


def test_identical_reports_score_one_everywhere_with_no_spread() -> None:
    t = truth()
    rows = by(report_rows("x", {"model": t.texts}, t))
    for (metric, _), r in rows.items():
        if metric != "METEOR":
            assert r.value == 1.0 and r.n == len(t), metric
            if (
                "finding sets" not in metric
            ):  # several patients share their findings, so a draw of patients varies
                assert r.low == r.high == 1.0, metric
    assert {f"BLEU-{n}, corpus" for n in (1, 2, 3, 4)} < {m for m, _ in rows}


def test_shuffled_reports_score_what_random_ones_do() -> None:
    t, other = truth(200), truth(200, seed=1)
    rows = by(
        report_rows(
            "x", {"shuffled": t.texts[7:] + t.texts[:7], "random": other.texts, "own": t.texts}, t
        )
    )
    for metric in (
        "finding F1, strict",
        "finding F1, presence",
        "BLEU-4, corpus",
        "ROUGE-L",
        "sex right, share",
    ):
        shuffled, random, own = (rows[metric, who] for who in ("shuffled", "random", "own"))
        assert shuffled.low <= random.high and random.low <= shuffled.high, metric
        assert shuffled.high < own.low, metric


def test_strict_is_never_above_presence_and_partial_scores_lie_between() -> None:
    t = truth(100)
    wrong = {
        EFFUSION: Finding("pleural_effusion", "right", "", "small"),  # side
        NODULE: Finding("nodule", "right", "lower", "small", 14),  # lobe
        EDEMA: Finding("pulmonary_edema", "", "", "large"),  # size
    }
    rng = np.random.default_rng(3)
    said = [tuple(wrong[f] if rng.random() < 0.5 else f for f in fs) for fs in t.findings]
    texts = [write_report(f, "chest", 50, "male", rng) for f in said]
    rows = by(report_rows("x", {"m": texts}, t))
    for kind in ("F1", "precision", "recall"):
        assert (
            rows[f"finding {kind}, strict", "m"].value
            < rows[f"finding {kind}, presence", "m"].value
            == 1.0
        )
    for part in ("side", "lobe", "size"):
        assert 0 < rows[f"finding F1, name and {part}", "m"].value < 1
    assert (
        rows["age right, share", "m"].value
        < 0.2
        < rows["age within 10 years, share", "m"].value
        < 0.6
    )


def test_a_normal_report_for_everyone_finds_nothing() -> None:
    t = truth()
    rows = by(
        report_rows(
            "x",
            {"m": [write_report((), "chest", 60, "male", np.random.default_rng(0))] * len(t)},
            t,
        )
    )
    for metric in ("F1", "precision", "recall"):
        assert rows[f"finding {metric}, presence", "m"].value == 0.0
    assert rows["distinct reports / real ones", "m"].value == pytest.approx(
        1 / len(set(t.texts)), abs=1e-4
    )


def test_without_java_meteor_is_left_out_and_the_rest_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(report_scores.shutil, "which", lambda name: None)
    t = truth(8)
    rows = report_rows("x", {"model": t.texts}, t)
    assert rows and not [r for r in rows if r.metric == "METEOR"]
    assert all(math.isfinite(r.value) for r in rows)  # NaN is no JSON
    assert len(rows) > 15


def test_minimum_risk_picks_the_majority_and_leaves_the_odd_one_out() -> None:
    rng = np.random.default_rng(0)

    def write(*findings: Finding) -> str:
        return write_report(findings, "chest", 40, "male", rng)

    draws = [
        [write(NODULE), write()],
        [write(EFFUSION), write()],
        [write(EDEMA), write()],
        [write(EFFUSION), write()],
        [write(EFFUSION), write(NODULE)],
    ]
    assert minimum_risk(draws, "chest") == [draws[1][0], draws[0][1]]


def test_reworded_reports_say_the_same_in_other_words() -> None:
    t = truth(60)
    rows = by(report_rows("x", {"m": reworded(t)}, t))
    assert rows["finding F1, strict", "m"].value == 1.0 == rows["age right, share", "m"].value
    assert rows["BLEU-4, corpus", "m"].value < 0.6
