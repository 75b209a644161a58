"""Checks of the exercises in notebook 06, see `medm2g_core.show.answers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from medm2g_core.data.labeller import label_report
from medm2g_core.metrics.findings import finding_counts, finding_f1
from medm2g_core.metrics.report_scores import bleu, bleu_counts
from medm2g_core.show.answers import check_function, say, unanswered

__all__ = [
    "CANDIDATES",
    "TRUE_REPORT",
    "check_f_beta",
    "check_majority",
    "check_orders",
]

TRUE_REPORT = (
    "Findings: There is a large left pleural effusion. The heart is mildly enlarged."
    " No sign of pneumothorax. Impression: Large left pleural effusion and mild cardiomegaly."
)
CANDIDATES: Mapping[str, str] = MappingProxyType(
    {
        "A": (
            "Findings: There is a large right pleural effusion. The heart is mildly enlarged."
            " No sign of pneumothorax. Impression: Large right pleural effusion and mild"
            " cardiomegaly."
        ),
        "B": (
            "Mild cardiomegaly. Marked pleural fluid on the left. Pneumothorax is absent."
            " The bones are intact."
        ),
        "C": (
            "Findings: There is no pleural effusion. The heart is of normal size. No sign of"
            " pneumothorax. Impression: No active disease."
        ),
    }
)
"""Reports that exercise 1 of notebook 06 has ordered, and what is true."""


def _ranks() -> tuple[str, str]:
    """The candidates from best to worst, by BLEU-4 and by strict F1."""
    true = label_report(TRUE_REPORT, "chest").findings

    def f1(text: str) -> float:
        return finding_f1([finding_counts(label_report(text, "chest").findings, true, strict=True)])

    def overlap(text: str) -> float:
        return bleu(bleu_counts([text], [TRUE_REPORT])[0], sentence=True)

    by = [sorted(CANDIDATES, key=lambda n: -score(CANDIDATES[n])) for score in (overlap, f1)]
    return "".join(by[0]), "".join(by[1])


def check_orders(by_bleu: Any, by_f1: Any) -> None:
    """`CANDIDATES` from best to worst, by BLEU-4 and by strict F1: two strings such as "ABC"."""
    if unanswered(by_bleu, by_f1):
        return None
    for what, order in (("by_bleu", by_bleu), ("by_f1", by_f1)):
        if not isinstance(order, str) or sorted(order) != sorted(CANDIDATES):
            return say(False, f"{what}: needed a string of the letters {', '.join(CANDIDATES)}")
    bleu_order, f1_order = _ranks()
    if by_bleu != bleu_order and by_bleu == f1_order:
        return say(False, "that is the order of the findings; BLEU counts shared words in a row")
    if by_bleu != bleu_order:
        return say(False, "by BLEU: which shares the longest runs of words with the true report?")
    if by_f1 != f1_order:
        return say(False, "by F1: read only what is asserted; a wrong side is a wrong finding")
    return say(True, "the one with the wrong side sounds best, and the best one sounds worst.")


def check_f_beta(function: Callable[..., Any] | None) -> None:
    """F_beta = (1 + beta^2) P R / (beta^2 P + R) of counts (tp, fp, fn), none of them 0."""

    def f(tp: float, fp: float, fn: float, b2: float) -> float:
        return (1 + b2) * tp / ((1 + b2) * tp + b2 * fn + fp)

    check_function(
        function,
        lambda tp, fp, fn, beta: f(tp, fp, fn, beta**2),
        [(6, 2, 3, 2.0), (1, 5, 2, 0.5), (4, 1, 7, 3.0)],
        takes="a function of tp, fp, fn and beta that returns one number",
        hints={
            "that is F1: beta does nothing": lambda tp, fp, fn, beta: f(tp, fp, fn, 1),
            "beta is squared": lambda tp, fp, fn, beta: f(tp, fp, fn, beta),
            "a beta above 1 must weigh what is missed, fn, not what is invented": (
                lambda tp, fp, fn, beta: f(tp, fn, fp, beta**2)
            ),
        },
        right="with beta = 1 it is F1; the clinic chooses beta, not the programmer.",
    )


# (findings of several draws, those that more than half of them name)
_VOTES: tuple[tuple[list[set[str]], set[str]], ...] = (
    ([{"a", "b"}, {"a"}, {"a", "c"}], {"a"}),
    ([{"a"}, {"b"}], set()),
    ([{"a", "b"}, {"b"}, {"b", "c"}, {"c", "b"}, {"c"}], {"b", "c"}),
    ([set(), set(), {"a"}], set()),
)


def check_majority(function: Callable[..., Any] | None) -> None:
    """The findings that more than half of several draws (a list of sets) name, as a set."""
    if unanswered(function):
        return None
    if not callable(function):
        return say(False, f"the answer is a {type(function).__name__}; needed a function")
    answers = []
    for draws, _ in _VOTES:
        try:
            answer = function([set(d) for d in draws])
        except Exception as error:  # whatever the student's function raises is the message
            return say(False, f"the function raised {type(error).__name__}: {error}")
        if not isinstance(answer, set | frozenset):
            return say(False, f"the function returns a {type(answer).__name__}; needed a set")
        answers.append(set(answer))
    if answers == [wanted for _, wanted in _VOTES]:
        return say(True, "the answer need not be one of the draws: somebody must still write it.")
    if answers == [set.union(*draws) for draws, _ in _VOTES]:
        return say(False, "that is everything that any draw names")
    if answers == [set.intersection(*draws) for draws, _ in _VOTES]:
        return say(False, "that is only what all draws name")
    i = next(i for i, (_, wanted) in enumerate(_VOTES) if answers[i] != wanted)
    draws, wanted = _VOTES[i]
    named, got = (sorted(map(str, x)) or "nothing" for x in (wanted, answers[i]))
    return say(False, f"of {len(draws)} draws more than half name {named}; the function: {got}")
