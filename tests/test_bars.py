"""The marks: read from the rows that they name, in the direction of their metric."""

from __future__ import annotations

import pytest

from medm2g_core.evaluation.sections import SECTIONS
from medm2g_core.evaluation.store import load_results
from medm2g_core.evaluation.table import LESS_IS_BETTER, Row, SectionResult
from medm2g_core.experiments.bars import BARS, Bar, bar_summary, bar_table, verdicts
from medm2g_core.show.effects import RESULTS

LESS = LESS_IS_BETTER[0]


def outcome(metric: str, values: dict[str, float], chosen: str = "") -> dict[str, SectionResult]:
    rows = [
        Row("a → b", metric, who, v, v, v, 9, chosen=who == chosen) for who, v in values.items()
    ]
    return {"s": SectionResult([*rows, Row("other", metric, "model", 99, 99, 99, 9)])}


def test_a_fixed_mark_is_met_from_its_value_on():
    bar = Bar("s", "a →", "m", offset=0.5)
    assert [
        v.met for score in (0.49, 0.5) for v in verdicts(outcome("m", {"model": score}), [bar])
    ] == [False, True]
    assert str(bar) == "m ≥ 0.5"


@pytest.mark.parametrize(
    ("metric", "score", "met"),
    [("m", 0.5, False), ("m", 0.6, True), (LESS, 0.6, False), (LESS, 0.5, True)],
)
def test_a_reference_is_the_strongest_of_those_named_times_the_factor(metric, score, met):
    """References 1.0 and 1.1 at factor .5: at least .55 is needed, or at most .5."""
    values = {
        "model": score,
        "baseline: one": 1.0,
        "baseline: two": 1.1,
        "control: z": 9.0,
        "ceiling: w": 0.01,
    }
    (v,) = verdicts(outcome(metric, values), [Bar("s", "a →", metric, ("baseline",), 0.5)])
    assert v.met is met and v.needed == pytest.approx(0.5 if metric == LESS else 0.55)


def test_the_setting_chosen_on_validation_is_told_apart_from_one_draw():
    bar, titles = Bar("s", "a →", "m", offset=0.5), {"s": "Title"}
    values = {"model": 0.4, "model, best of 4": 0.6, "model, mean of 8": 0.45}
    found = verdicts(outcome("m", values, chosen="model, best of 4"), [bar])
    assert (found[0].met, found[0].met_as_chosen) == (False, True)
    assert "with that setting" in bar_table(found)
    assert "| Title | m ≥ 0.5 | a → b | 1 | 0 | 1 |" in bar_summary(found, titles)
    found = verdicts(outcome("m", values, chosen="model, mean of 8"), [bar])
    assert not found[0].met_as_chosen, "a better setting on the test studies does not count"
    assert "**no**" in bar_table(found) and "| 1 | 0 | 0 |" in bar_summary(found, titles)


def test_a_mean_of_draws_is_judged_as_itself():
    bar = Bar("s", "a →", "m", ("baseline: r",), offset=-0.5, who="model, mean of 8")
    (v,) = verdicts(
        outcome("m", {"model": 9.0, "model, mean of 8": 20.0, "baseline: regression": 20.4}), [bar]
    )
    assert v.score == 20.0 and v.met and v.chosen is None and str(bar) == "m (mean of 8) ≥ r -0.5"


def test_a_task_without_the_reference_has_no_verdict():
    assert verdicts(outcome("m", {"model": 9.0}), [Bar("s", "a →", "m", ("baseline",))]) == []


def test_every_bar_finds_what_it_is_about_in_the_shipped_results():
    found = verdicts(load_results(RESULTS, SECTIONS))
    assert {v.bar for v in found} == set(BARS)
    assert len([v for v in found if v.bar.section == "translation"]) == 18


def test_a_chosen_setting_faces_what_the_rival_chose_too():
    """With the consensus of many the model must beat the rival's own, not its single answer."""
    rival = "baseline: autoregressive decoder"
    values = {"model": 0.4, "model, of 16": 0.6, f"{rival}, greedy": 0.5, f"{rival}, of 16": 0.7}
    rows = [
        Row("a → b", "m", who, v, v, v, 9, chosen=who.endswith("16")) for who, v in values.items()
    ]
    (v,) = verdicts({"s": SectionResult(rows)}, [Bar("s", "a", "m", (f"{rival}, greedy",))])
    assert (v.needed, v.needed_as_chosen) == (0.5, 0.7) and not v.met and not v.met_as_chosen
