"""The checks of notebook 12: what they accept, and the mistakes that they name."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest

from medm2g_core.explore.exercises import check_denied, check_misled, check_paired_error


def _error(a: list[float], b: list[float]) -> float:
    return statistics.stdev([y - x for x, y in zip(a, b, strict=True)]) / math.sqrt(len(a))


ANSWERS: list[tuple[Any, Any, str]] = [
    (check_denied, "There is no pneumothorax.", "Right:"),
    (check_denied, "There is a pneumothorax.", "Not yet: the labeller reads a pneumothorax"),
    (check_denied, "The sky is blue.", "Not yet: the labeller reads nothing"),
    (check_paired_error, _error, "Right:"),
    (check_paired_error, lambda a, b: _error(a, b) * math.sqrt(len(a)), "Not yet: that is the spr"),
    (
        check_paired_error,
        lambda a, b: math.sqrt((statistics.variance(a) + statistics.variance(b)) / len(a)),
        "Not yet: that treats the two lists as strangers",
    ),
    (
        check_paired_error,
        lambda a, b: _error(a, b) * math.sqrt(1 - 1 / len(a)),
        "Not yet: with n in place",
    ),
    (check_paired_error, lambda a, b: sum(b) / len(b) - sum(a) / len(a), "Not yet: that is the m"),
    (check_misled, 1 - 0.9**9, "Right:"),
    (check_misled, 0.9, "Not yet: chances of several seeds"),
    (check_misled, 0.9**9, "Not yet: that is the chance that none"),
    (check_misled, 0.5, "Not yet: 0.5 is not it"),
]


@pytest.mark.parametrize(("check", "answer", "said"), ANSWERS)
def test_answers_get_the_verdict_that_helps(
    check: Any, answer: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(answer)
    assert capsys.readouterr().out.startswith(said)
