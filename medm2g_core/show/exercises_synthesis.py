"""Checks of the exercises in notebook 08, see `medm2g_core.show.answers`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import torch

from medm2g_core.metrics.agreement import pearson
from medm2g_core.show.answers import (
    check_function,
    check_number,
    returned,
    say,
    unanswered,
    wrong_names,
)

__all__ = [
    "check_best_pair",
    "check_least_warned",
    "check_narrow_sampler",
    "check_psnr_of_eight",
]

CONTRASTS = ("mri_t1", "mri_t2", "mri_pd")  # what FLAIR can be drawn from

HONEST = 2.0  # squared error of a draw with the spread of the truth, in variances of the truth
NARROW = 1.25  # with half of that deviation: 1 + 1/4


def _of_draws(psnr_1: float, psnr_2: float, share: float) -> float:
    """PSNR when ``share`` of one draw's variance is left, from those of one draw and of two."""
    one, two = (10 ** (-p / 10) for p in (psnr_1, psnr_2))
    variance = 2 * (one - two)
    return -10 * math.log10(one - variance + share * variance)


def check_psnr_of_eight(function: Callable[..., Any] | None) -> None:
    """PSNR of the mean of eight draws, from that of one draw and of the mean of two."""
    check_function(
        function,
        lambda p, q: _of_draws(p, q, 1 / 8),
        [(22.0, 23.0), (23.9, 24.8), (30.0, 30.4)],
        takes="a function of two PSNRs in dB that returns one",
        hints={
            "decibels do not add up, squared errors do: turn the PSNRs into errors first": (
                lambda p, q: p + 3 * (q - p)
            ),
            "that is the limit of very many draws": lambda p, q: _of_draws(p, q, 0.0),
            "that is the mean of four draws": lambda p, q: _of_draws(p, q, 1 / 4),
            "a deviation shrinks with the root of K, a variance with K": (
                lambda p, q: _of_draws(p, q, 8**-0.5)
            ),
        },
        right="two scores tell the rest of the curve.",
    )


def check_narrow_sampler(gain: float | None) -> None:
    """How many dB a draw scores above an honest one if the sampler's deviation is half of the
    truth's, and its mean is right."""
    check_number(
        gain,
        10 * math.log10(HONEST / NARROW),
        hints={
            "half of the deviation is a quarter of the variance": 10 * math.log10(2 / 1.5),
            "that is a sampler without any spread": 10 * math.log10(2),
            "the error gets smaller, so the PSNR gets larger": 10 * math.log10(NARROW / HONEST),
            "that is the ratio; decibels are ten times its logarithm": HONEST / NARROW,
        },
        ask="the error of a draw is the truth's variance plus its own",
        right="PSNR pays a sampler for being too sure.",
    )


def check_best_pair(pair: Sequence[str] | None, dice_of: Callable[..., Any]) -> None:
    """The two contrasts from which FLAIR is drawn with the best lesions.

    Args:
        pair: the answer, two stream names.
        dice_of: tuple of stream names -> mean Dice, measured with the reader's own model.
    """
    if unanswered(pair) or pair is None:
        return None
    wrong = wrong_names("the pair", pair, CONTRASTS)
    if wrong:
        return say(False, wrong)
    if len(pair) != 2:
        return say(False, f"the pair holds {len(pair)} names; needed two")
    scores = {}
    for names in itertools.combinations(CONTRASTS, 2):
        scores[names], wrong = returned(dice_of, names)
        if not wrong and not math.isfinite(scores[names]):
            wrong = "the function returns no finite Dice"
        if wrong:
            return say(False, f"{' and '.join(names)}: {wrong}")
    own = next(names for names in scores if set(names) == set(pair))
    if scores[own] < max(scores.values()):
        return say(
            False, f"{' and '.join(own)} have a Dice of {scores[own]:.2f}; one pair has more"
        )
    say(True, "the others leave more of the lesion to chance.")


def check_least_warned(patient: int | None, errors: torch.Tensor, spreads: torch.Tensor) -> None:
    """The patient whose map of errors is least like the map of spread.

    Args:
        patient: the answer, a row of the two tensors.
        errors, spreads: (N, ...) not negative, measured with the reader's own model.
    """
    if unanswered(patient):
        return None
    if not isinstance(patient, Integral) or isinstance(patient, bool):
        return say(False, f"the answer is a {type(patient).__name__}; needed a patient's number")
    if not 0 <= patient < len(errors):
        return say(False, f"there is no such patient; needed 0 to {len(errors) - 1}")
    maps = [np.asarray(x.flatten(1).T) for x in (errors, spreads)]  # (places, N) each
    likeness = pearson(*maps)  # (N,)
    if likeness[int(patient)] > likeness.min():
        return say(False, "another patient's maps are less alike: correlate them, one by one")
    say(True, f"the correlation there is {likeness.min():.1f}.")
