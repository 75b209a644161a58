"""Checks of the exercises in notebook 12, see `medm2g_core.show.answers`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from medm2g_core.data.labeller import label_report
from medm2g_core.show.answers import check_function, check_number, say, unanswered

__all__ = ["check_denied", "check_misled", "check_paired_error"]

SHARE, SEEDS = 0.1, 9  # of draws that mislead, and how many are looked at


def check_denied(sentence: str | None) -> None:
    """Words that name a pneumothorax and yet deny it, for a labeller that reads negations."""
    if unanswered(sentence) or sentence is None:
        return None
    if not isinstance(sentence, str):
        return say(False, f"the answer is a {type(sentence).__name__}; needed a sentence")
    labels = label_report(sentence, "chest")
    if "pneumothorax" in {f.name for f in labels.findings}:
        return say(False, "the labeller reads a pneumothorax in it; where is the denial?")
    if "pneumothorax" not in labels.negated:
        return say(False, "the labeller reads nothing of a pneumothorax, asserted or denied")
    return say(True, "the word stands there, and the finding is denied.")


def _paired(before: Sequence[float], after: Sequence[float]) -> float:
    steps = [b - a for a, b in zip(before, after, strict=True)]
    return statistics.stdev(steps) / math.sqrt(len(steps))


def _unpaired(before: Sequence[float], after: Sequence[float]) -> float:
    return math.sqrt((statistics.variance(before) + statistics.variance(after)) / len(before))


def check_paired_error(function: Any) -> None:
    """Standard error of the mean difference of paired values, of two lists."""
    cases = [
        ([0.1, 0.5, 0.9], [0.2, 0.7, 1.2]),
        ([1.0, 4.0, 2.0, 8.0], [1.5, 4.1, 2.9, 8.2]),
        ([0.0, -3.0, 5.0, 1.0, 2.0], [1.0, -2.5, 5.5, 3.0, 2.2]),
    ]
    check_function(
        function,
        _paired,
        cases,
        takes="a function of two lists of numbers that returns one number",
        hints={
            "that treats the two lists as strangers; the same seed stands behind each pair": (
                _unpaired
            ),
            "that is the spread of single differences; the mean of n has less": (
                lambda a, b: _paired(a, b) * math.sqrt(len(a))
            ),
            "with n in place of n - 1 the spread of a few values comes out too small": (
                lambda a, b: _paired(a, b) * math.sqrt((len(a) - 1) / len(a))
            ),
            "that is the mean difference itself": (
                lambda a, b: statistics.fmean(b) - statistics.fmean(a)
            ),
        },
        right="what the seed does to both halves of a pair cancels before it can blur.",
    )


def check_misled(answer: Any) -> None:
    """Chance that one or more of nine seeds mislead if one draw in ten does."""
    check_number(
        answer,
        1 - (1 - SHARE) ** SEEDS,
        hints={
            "that is the chance that none of them misleads": (1 - SHARE) ** SEEDS,
            "chances of several seeds do not simply add: think of none of them": SHARE * SEEDS,
            "that is the chance that all of them do": SHARE**SEEDS,
            "that is the chance of a single one": SHARE,
        },
        ask="what is the chance that all nine are honest?",
        right="who looks long enough finds a picture for any story.",
    )
