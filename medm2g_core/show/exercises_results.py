"""Checks of the exercises in notebook 11, see `medm2g_core.show.answers`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medm2g_core.show.answers import check_function, say, unanswered, wrong_names

__all__ = ["CLAIMS", "check_claims", "check_paired_low", "check_smallest_n"]

LEVEL, NORMAL = 0.95, 1.96
"""Level of the intervals, and how many deviations each side of a normal one has."""

CLAIMS: Mapping[str, tuple[bool, str]] = {
    "A beats B on these patients": (
        True,
        "the paired interval of their difference lies above 0",
    ),
    "B is as good as C": (
        False,
        "a difference whose interval holds 0 may still be large: nothing was shown",
    ),
    "A beats D": (False, "D was measured on other data, so their numbers have no difference"),
    "A would beat B on new people": (
        False,
        "studies were drawn again, not people: three people are in all of them",
    ),
    "A's control is at chance": (True, "its interval holds the chance of a half"),
    "E, the best of ten settings on the test studies, beats A": (
        False,
        "the best of ten is best by luck too; it must be chosen on other studies",
    ),
}
"""Claim -> whether the rows of the third exercise carry it, and why."""


def _low(d: np.ndarray, level: float = LEVEL) -> float:
    """Lower end of a percentile interval of drawn means (B,)."""
    return float(np.quantile(d, (1 - level) / 2))


def _paired(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> float:
    return _low((x - y)[index].mean(1))


def _unpaired(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> float:
    return _low(x[index].mean(1) - y[np.roll(index, 1, 0)].mean(1))


def _normal(x: np.ndarray, y: np.ndarray, index: np.ndarray) -> float:
    d = x - y
    return float(d.mean() - NORMAL * d.std(ddof=1) / len(d) ** 0.5)


def check_paired_low(function: Callable[..., Any] | None) -> None:
    """Lower end of the 95 % percentile interval of mean(x - y), for given draws of patients."""
    rng = np.random.default_rng(0)
    cases = []
    for n, gap in ((12, 0.3), (25, 0.1), (40, 1.0)):
        patient = 2 * rng.standard_normal(n)
        x, y = patient + gap + rng.gamma(1.0, 0.5, n), patient + 0.3 * rng.standard_normal(n)
        cases.append((x, y, rng.integers(0, n, (400, n))))
    check_function(
        function,
        _paired,
        cases,
        takes="a function of x (N,), y (N,) and index (B, N) that returns one number",
        hints={
            "x and y must get the same patients in each draw": _unpaired,
            "that is the end at 5 %, of a 90 % interval": (
                lambda x, y, index: _low((x - y)[index].mean(1), 0.9)
            ),
            "that is the upper end": (
                lambda x, y, index: float(np.quantile((x - y)[index].mean(1), 0.975))
            ),
            "that is the interval of single patients; each draw gives a mean": (
                lambda x, y, index: _low((x - y)[index].ravel())
            ),
            "that is a normal interval; take the quantile of the drawn means": _normal,
            "the difference is the other way round": (lambda x, y, index: _paired(y, x, index)),
        },
        right="what all methods find hard cancels out, patient by patient.",
    )


def _smallest(gap: float, deviation: float) -> int:
    """Smallest n with ``NORMAL * deviation / sqrt(n) < gap``."""
    return math.floor((NORMAL * deviation / gap) ** 2) + 1


def check_smallest_n(function: Callable[..., Any] | None) -> None:
    """Patients that are needed for a paired interval that leaves 0 out."""
    check_function(
        function,
        _smallest,
        [(0.5, 2.0), (0.1, 1.0), (0.02, 0.3)],
        takes="a function of the mean difference and its deviation that returns one number",
        hints={
            "n stands under a root: square it": (
                lambda gap, deviation: math.floor(NORMAL * deviation / gap) + 1
            ),
            "a 95 % interval has 1.96 deviations on each side": (
                lambda gap, deviation: math.floor((deviation / gap) ** 2) + 1
            ),
            "that is for two groups of different patients; here they are the same": (
                lambda gap, deviation: math.floor(2 * (NORMAL * deviation / gap) ** 2) + 1
            ),
            "patients are whole: round up": (
                lambda gap, deviation: (NORMAL * deviation / gap) ** 2
            ),
            "with that many 0 is still inside: one more is needed": (
                lambda gap, deviation: math.floor((NORMAL * deviation / gap) ** 2)
            ),
        },
        right="half the difference costs four times the patients.",
    )


def check_claims(names: Sequence[str] | None) -> None:
    """The claims of `CLAIMS` that their rows carry."""
    if unanswered(names) or names is None:
        return None
    wrong = wrong_names("the answer", names, CLAIMS)
    if wrong:
        return say(False, wrong)
    for name, (carried, why) in CLAIMS.items():
        if carried and name not in names:
            return say(False, f"{name!r} is missing: {why}")
        if not carried and name in names:
            return say(False, f"not {name!r}: {why}")
    return say(True, "an interval speaks of these studies, this metric and these rivals alone.")
