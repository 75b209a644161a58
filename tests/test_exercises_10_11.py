"""The checks of notebooks 10 and 11: what they accept, and the mistakes that they name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from medm2g_core.show.exercises_results import (
    CLAIMS,
    check_claims,
    check_paired_low,
    check_smallest_n,
)
from medm2g_core.show.exercises_unified import (
    check_agreement,
    check_follower_level,
    check_order,
    check_roads,
)


def _pearson(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    u, w = (a - a.mean(0)) / a.std(0), (b - b.mean(0)) / b.std(0)
    return (u * w).sum(0).div(len(a) - 1).mean()


def _paired(x: np.ndarray, y: np.ndarray, index: np.ndarray, at: float = 0.025) -> float:
    return float(np.quantile((x - y)[index].mean(1), at))


def _smallest(gap: float, deviation: float) -> int:
    return math.floor((1.96 * deviation / gap) ** 2) + 1


CARRIED = [name for name, (carried, _) in CLAIMS.items() if carried]
ROADS = {
    "xray to ct": "prompt",
    "ct to mri": "both",
    "text to mri": "prompt",
    "text to ct": "both",
    "mri to xray": "prompt",
    "ct to mri, prompt weight 0": "guide",
}
ANSWERS: list[tuple[Callable[..., None], Any, str]] = [
    (check_agreement, _pearson, "Right:"),
    (check_agreement, lambda a, b: F.cosine_similarity(a, b).mean(), "Not yet: a judge who always"),
    (
        check_agreement,
        lambda a, b: _pearson(a.T, b.T),
        "Not yet: the correlation runs over studies",
    ),
    (
        check_agreement,
        lambda a, b: ((a - a.mean(0)) * (b - b.mean(0))).mean(),
        "Not yet: a louder judge",
    ),
    (
        check_agreement,
        lambda a, b: _pearson(a.reshape(-1, 1), b.reshape(-1, 1)),
        "Not yet: correlate each finding apart",
    ),
    (check_agreement, lambda a, b: 2 * _pearson(a, b), "Not yet: in case 1"),
    (check_follower_level, lambda k, n, lead: min(1, max(0, 1 - (k - lead) / n)), "Right:"),
    (check_follower_level, lambda k, n, lead: max(0, 1 - (k - lead) / n), "Not yet: it is above 1"),
    (check_follower_level, lambda k, n, lead: min(1, 1 - (k - lead) / n), "Not yet: it goes on"),
    (check_follower_level, lambda k, n, lead: 1 - (k - lead) / n, "Not yet: it leaves 0 to 1"),
    (
        check_follower_level,
        lambda k, n, lead: min(1, max(0, 1 - k / n)),
        "Not yet: that is the leader's",
    ),
    (
        check_follower_level,
        lambda k, n, lead: min(1, max(0, 1 - (k + lead) / n)),
        "Not yet: there the follower is ahead",
    ),
    (check_order, ["xray", "text", "ct", "mri"], "Right:"),
    (check_order, ("mri", "ct", "text", "xray"), "Right:"),
    (check_order, ["ct", "mri", "text", "xray"], "Right:"),
    (check_order, ["text", "xray", "ct", "mri"], "Not yet: that begins with the report"),
    (check_order, ["xray", "ct", "text", "mri"], "Not yet: ct never trained with xray"),
    (check_order, ["mri", "ct", "xray", "text"], "Not yet: xray never trained with mri and ct"),
    (check_order, ["xray", "text"], "Not yet: ct, mri is missing"),
    (check_order, ["xray", "text", "ct", "pet"], "Not yet: the order holds 'pet'"),
    (check_roads, ROADS, "Right:"),
    (check_roads, ROADS | {"xray to ct": "both"}, "Not yet: xray to ct is not by both"),
    (check_roads, ROADS | {"text to ct": "prompt"}, "Not yet: text to ct is not by prompt"),
    (
        check_roads,
        ROADS | {"ct to mri, prompt weight 0": "both"},
        "Not yet: ct to mri, prompt weight 0 is not by both: its weight",
    ),
    (check_roads, ROADS | {"ct to mri": 1}, "Not yet: ct to mri: needed one of"),
    (check_roads, {"ct to mri": "both"}, "Not yet: needed a dict with the keys"),
    (check_paired_low, _paired, "Right:"),
    (
        check_paired_low,
        lambda x, y, i: np.quantile(x[i].mean(1) - y[np.roll(i, 1, 0)].mean(1), 0.025),
        "Not yet: x and y must get the same patients",
    ),
    (check_paired_low, lambda x, y, i: _paired(x, y, i, 0.05), "Not yet: that is the end at 5 %"),
    (check_paired_low, lambda x, y, i: _paired(x, y, i, 0.975), "Not yet: that is the upper end"),
    (
        check_paired_low,
        lambda x, y, i: np.quantile((x - y)[i], 0.025),
        "Not yet: that is the interval of single patients",
    ),
    (
        check_paired_low,
        lambda x, y, i: (x - y).mean() - 1.96 * (x - y).std(ddof=1) / len(x) ** 0.5,
        "Not yet: that is a normal interval",
    ),
    (check_paired_low, lambda x, y, i: _paired(y, x, i), "Not yet: the difference is the other"),
    (check_smallest_n, _smallest, "Right:"),
    (
        check_smallest_n,
        lambda gap, deviation: math.floor(1.96 * deviation / gap) + 1,
        "Not yet: n stands under a root",
    ),
    (
        check_smallest_n,
        lambda gap, deviation: math.floor((deviation / gap) ** 2) + 1,
        "Not yet: a 95 % interval has 1.96",
    ),
    (
        check_smallest_n,
        lambda gap, deviation: math.floor(2 * (1.96 * deviation / gap) ** 2) + 1,
        "Not yet: that is for two groups",
    ),
    (
        check_smallest_n,
        lambda gap, deviation: (1.96 * deviation / gap) ** 2,
        "Not yet: patients are whole",
    ),
    (
        check_smallest_n,
        lambda gap, deviation: _smallest(gap, deviation) - 1,
        "Not yet: with that many 0 is still",
    ),
    (check_claims, CARRIED, "Right:"),
    (check_claims, CARRIED[:1], 'Not yet: "A\'s control is at chance" is missing'),
    (check_claims, [*CARRIED, "A beats D"], "Not yet: not 'A beats D': D was measured"),
    (check_claims, ["A beats C"], "Not yet: the answer holds 'A beats C'"),
]


@pytest.mark.parametrize(("check", "answer", "says"), ANSWERS)
def test_right_answers_are_accepted_and_mistakes_are_named(
    check: Callable[..., None], answer: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(answer)
    assert capsys.readouterr().out.startswith(says)
