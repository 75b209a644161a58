"""The marks: read from the rows that they name, in the direction that they say."""

from __future__ import annotations

import pytest

from medm2g_core.evaluation.bars import BARS, Bar, bar_summary, bar_table, verdicts
from medm2g_core.evaluation.results import load_pieces
from medm2g_core.evaluation.table import Piece, Row
from medm2g_core.show.effects import RESULTS


def piece(metric: str, **values: float) -> dict[str, Piece]:
    rows = [Row("a → b", metric, who.replace("__", ": ").replace("_", " "), v, v, v, 9) for who, v in values.items()]
    rows = [Row(r.task, r.metric, r.who.replace("model best", "model, best"), r.value, r.low, r.high, 9) for r in rows]
    return {"s": Piece([*rows, Row("other", metric, "model", 99, 99, 99, 9)])}


def test_a_fixed_mark_is_met_from_its_value_on():
    bar = Bar("x", "s", "a →", "m", offset=0.5)
    assert [v.met for score in (0.49, 0.5) for v in verdicts(piece("m", model=score), [bar])] == [False, True]


@pytest.mark.parametrize(("less", "score", "met"), [(False, 0.5, False), (False, 0.6, True), (True, 0.6, False),
                                                    (True, 0.5, True)])  # fmt: skip
def test_a_reference_is_the_strongest_of_those_named_times_the_factor(less, score, met):
    """References 1.0 and 1.1 at factor .5: at least .55 is needed, or at most .5."""
    bar = Bar("x", "s", "a →", "m", ("baseline",), 0.5, less=less)
    (v,) = verdicts(piece("m", model=score, baseline__one=1.0, baseline__two=1.1, control__z=9.0), [bar])
    assert v.met is met and v.needed == pytest.approx(0.5 if less else 0.55)


def test_another_setting_is_told_apart_from_one_draw():
    bar = Bar("x", "s", "a →", "m", offset=0.5)
    found = verdicts(piece("m", model=0.4, model_best_of_4=0.6), [bar])
    assert (found[0].met, found[0].met_at_best) == (False, True)
    assert "at its best setting" in bar_table(found) and "| x | 1 | 0 | 1 |" in bar_summary(found)
    found = verdicts(piece("m", model=0.4, model_best_of_4=0.45), [bar])
    assert "**no**" in bar_table(found) and "| x | 1 | 0 | 0 |" in bar_summary(found)


def test_a_mean_of_draws_is_judged_as_itself():
    bar = Bar("x", "s", "a →", "m", ("baseline",), offset=-0.5, who="model, best of 4")
    (v,) = verdicts(piece("m", model=9.0, model_best_of_4=20.0, baseline__regression=20.4), [bar])
    assert v.score == 20.0 and v.met and v.best is None


def test_every_bar_finds_what_it_is_about_in_the_shipped_results():
    found = verdicts(load_pieces(RESULTS))
    assert {id(v.bar) for v in found} == {id(b) for b in BARS}
    assert len([v for v in found if v.bar.section == "translation"]) == 18
