"""The checks of notebooks 06 and 07: what they accept, and the mistakes they name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from medm2g_core.show.exercises_pictures import (
    ILL,
    WELL,
    check_interval_guidance,
    check_pairs,
    check_watchdogs,
)
from medm2g_core.show.exercises_reports import check_f_beta, check_majority, check_orders


def _f(tp: float, fp: float, fn: float, b2: float) -> float:
    p, r = tp / (tp + fp), tp / (tp + fn)
    return (1 + b2) * p * r / (b2 * p + r)


def _votes(draws: list[set], least: float) -> set:
    return {f for f, n in Counter(f for d in draws for f in d).items() if n > least * len(draws)}


ABOVE = sum(a > b for a in ILL for b in WELL)
PAIRS = len(ILL) * len(WELL)
DOGS = {
    "ignores the report": "finding AUC",
    "draws one picture for all": "diversity",
    "copies training pictures": "nearest distance",
    "draws findings on a checkerboard": "Fréchet distance",
}
SWAPPED = DOGS | {
    "ignores the report": "diversity",
    "draws one picture for all": "finding AUC",
}
ANSWERS: list[tuple[Callable[..., None], tuple[Any, ...], str]] = [
    (check_orders, ("ACB", "BAC"), "Right:"),
    (check_orders, ("BAC", "BAC"), "Not yet: that is the order of the findings"),
    (check_orders, ("CAB", "BAC"), "Not yet: by BLEU"),
    (check_orders, ("ACB", "ABC"), "Not yet: by F1"),
    (check_orders, ("ACB", "AB"), "Not yet: by_f1: needed a string"),
    (check_orders, (None, "BAC"), "No answer yet."),
    (check_f_beta, (lambda tp, fp, fn, b: _f(tp, fp, fn, b * b),), "Right:"),
    (check_f_beta, (lambda tp, fp, fn, b: _f(tp, fp, fn, 1),), "Not yet: that is F1"),
    (check_f_beta, (lambda tp, fp, fn, b: _f(tp, fp, fn, b),), "Not yet: beta is squared"),
    (check_f_beta, (lambda tp, fp, fn, b: _f(tp, fn, fp, b * b),), "Not yet: a beta above 1"),
    (check_f_beta, (lambda tp, fp, fn, b: tp,), "Not yet: in case 1"),
    (check_majority, (lambda draws: _votes(draws, 0.5),), "Right:"),
    (check_majority, (lambda draws: _votes(draws, 0),), "Not yet: that is everything"),
    (check_majority, (lambda draws: set.intersection(*draws),), "Not yet: that is only what all"),
    (check_majority, (lambda draws: _votes(draws, 0.49),), "Not yet: of 2 draws more than half"),
    (check_majority, (lambda draws: sorted(draws[0]),), "Not yet: the function returns a list"),
    (check_majority, (lambda: set(),), "Not yet: the function raised TypeError"),
    (check_pairs, ((ABOVE + 0.5) / PAIRS,), "Right:"),
    (check_pairs, (round((ABOVE + 0.5) / PAIRS, 2),), "Right:"),
    (check_pairs, (ABOVE / PAIRS,), "Not yet: the pair of equal scores counts half"),
    (check_pairs, (1 - (ABOVE + 0.5) / PAIRS,), "Not yet: that is the share of pairs in the wrong"),
    (check_pairs, (ABOVE + 0.5,), "Not yet: a share"),
    (check_pairs, (0.1,), "Not yet: 0.1 is not it"),
    (
        check_interval_guidance,
        (lambda e0, e, w, t, a, b: e0 + (w if a <= t <= b else 1) * (e - e0),),
        "Right:",
    ),
    (
        check_interval_guidance,
        (lambda e0, e, w, t, a, b: e0 + (w if a <= t <= b else 0) * (e - e0),),
        "Not yet: outside the interval",
    ),
    (
        check_interval_guidance,
        (lambda e0, e, w, t, a, b: e0 + w * (e - e0),),
        "Not yet: t is never looked at",
    ),
    (
        check_interval_guidance,
        (lambda e0, e, w, t, a, b: e if a <= t <= b else e0 + w * (e - e0),),
        "Not yet: that is inside and outside",
    ),
    (
        check_interval_guidance,
        (lambda e0, e, w, t, a, b: e + w * (e - e0) if a <= t <= b else e,),
        "Not yet: the push starts at e_0",
    ),
    (check_watchdogs, (DOGS,), "Right:"),
    (check_watchdogs, (SWAPPED,), "Not yet: 'ignores the report': not diversity"),
    (
        check_watchdogs,
        (DOGS | {"ignores the report": "diversity"},),
        "Not yet: each score is meant for one",
    ),
    (
        check_watchdogs,
        (DOGS | {"ignores the report": "PSNR"},),
        "Not yet: 'ignores the report': needed one of",
    ),
]


@pytest.mark.parametrize(("check", "answer", "says"), ANSWERS)
def test_right_answers_are_accepted_and_mistakes_are_named(
    check: Callable[..., None],
    answer: tuple[Any, ...],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    check(*answer)
    assert capsys.readouterr().out.startswith(says)
