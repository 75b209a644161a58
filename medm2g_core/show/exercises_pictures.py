"""Checks of the exercises in notebook 07, see `medm2g_core.show.answers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from medm2g_core.show.answers import check_function, check_number, say, unanswered

__all__ = ["ILL", "WELL", "check_interval_guidance", "check_pairs", "check_watchdogs"]

ILL: tuple[float, ...] = (2.1, 0.4, -0.3)
WELL: tuple[float, ...] = (-1.0, 0.4, 0.1, -2.2)
"""Scores of a judge in exercise 1 of notebook 07; two of them are equal."""


def check_pairs(value: Any) -> None:
    """AUC of `ILL` against `WELL`."""
    pairs = [(a, b) for a in ILL for b in WELL]
    above, ties = sum(a > b for a, b in pairs), sum(a == b for a, b in pairs)
    n = len(pairs)
    check_number(
        value,
        (above + ties / 2) / n,
        hints={
            "the pair of equal scores counts half": above / n,
            "the pair of equal scores counts half, not whole": (above + ties) / n,
            "that is the share of pairs in the wrong order": 1 - (above + ties / 2) / n,
            "a share: divide by the number of pairs": above + ties / 2,
        },
        ask="write down all pairs of one ill and one well patient and count",
        right="nothing but the order counts: ten times every score has the same AUC.",
    )


def check_interval_guidance(function: Callable[..., Any] | None) -> None:
    """e_0 + w (e - e_0) for levels low <= t <= high, and plain e elsewhere."""
    cases = [
        (0.5, 2.0, 3.0, 0.5, 0.2, 0.8),
        (0.5, 2.0, 3.0, 0.9, 0.2, 0.8),
        (-1.0, 1.0, 5.0, 0.1, 0.2, 0.8),
        (1.0, 0.0, 2.0, 0.7, 0.6, 0.8),
    ]

    def inside(e0: float, e: float, w: float, t: float, low: float, high: float) -> float:
        return e0 + w * (e - e0) if low <= t <= high else e

    check_function(
        function,
        inside,
        cases,
        takes="a function of e_0, e, w, t, low and high that returns one number",
        hints={
            "outside the interval the draw is still told the report: w = 1, not 0": (
                lambda e0, e, w, t, low, high: e0 + w * (e - e0) if low <= t <= high else e0
            ),
            "t is never looked at": lambda e0, e, w, t, low, high: e0 + w * (e - e0),
            "that is inside and outside the wrong way round": (
                lambda e0, e, w, t, low, high: e if low <= t <= high else e0 + w * (e - e0)
            ),
            "the push starts at e_0, not at e": (
                lambda e0, e, w, t, low, high: e + w * (e - e0) if low <= t <= high else e
            ),
        },
        right="and outside the interval one of the two predictions need not be computed at all.",
    )


_FAULTS: Mapping[str, tuple[str, str]] = {  # fault -> the score that sees it, and why
    "ignores the report": ("finding AUC", "only the judge compares a picture with its own report"),
    "draws one picture for all": ("diversity", "all are then at distance 0 of each other"),
    "copies training pictures": (
        "nearest distance",
        "a copy is a real picture for every judge, and only its twin in the training set tells",
    ),
    "draws findings on a checkerboard": (
        "Fréchet distance",
        "it compares the look of all drawn pictures with that of all real ones",
    ),
}
_SCORES = tuple(score for score, _ in _FAULTS.values())


def check_watchdogs(answer: Mapping[str, Any] | None) -> None:
    """Which score notices which fault: a dict fault -> score."""
    if unanswered(answer) or answer is None:
        return None
    if not isinstance(answer, Mapping) or set(answer) != set(_FAULTS):
        return say(False, f"needed a dict with the keys {', '.join(map(repr, _FAULTS))}")
    for fault, score in answer.items():
        if not isinstance(score, str) or score not in _SCORES:
            return say(False, f"{fault!r}: needed one of {', '.join(_SCORES)}")
    if len(set(answer.values())) < len(_SCORES):
        return say(False, "each score is meant for one fault")
    for fault, (score, why) in _FAULTS.items():
        if answer[fault] != score:
            return say(False, f"{fault!r}: not {answer[fault]}; {why}")
    return say(True, "four faults, four scores: one number would have missed three of them.")
