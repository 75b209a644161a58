"""Checks of the exercises in notebook 02, see `medm2g_core.show.answers`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.distributions import Normal, kl_divergence

from medm2g_core.show.answers import check_function, check_number, number, returned, say, unanswered

__all__ = ["check_kl_prior", "check_noise_level", "check_ratio"]

PICTURE = 3 * 512 * 512
"""Numbers of a colour picture as Stable Diffusion takes it (Rombach et al. 2022)."""
LATENT = 4 * 64 * 64
"""Numbers of its latent."""

COST_DB = 8.0
COST_TOLERANCE_DB = 0.75


def _kl(mean: torch.Tensor, logvar: torch.Tensor, tau: float) -> float:
    prior = Normal(torch.zeros_like(mean), torch.full_like(mean, tau))
    return kl_divergence(Normal(mean, (0.5 * logvar).exp()), prior).mean().item()


def check_kl_prior(function: Callable[[torch.Tensor, torch.Tensor, float], Any] | None) -> None:
    """Mean divergence of N(mean, exp(logvar)) from N(0, tau²)."""
    draw = torch.Generator().manual_seed(0)
    cases = [
        (torch.randn(2, 3, generator=draw), torch.randn(2, 3, generator=draw), tau)
        for tau in (0.5, 1.0, 2.0)
    ]
    check_function(
        function,
        _kl,
        cases,
        takes="a function of mean, log variance and tau that returns one number",
        hints={
            "that is the divergence from N(0, 1): tau takes no part": (
                lambda m, v, tau: _kl(m, v, 1.0)
            ),
            "the width of the prior costs something too: ln tau is missing": (
                lambda m, v, tau: _kl(m, v, tau) - math.log(tau)
            ),
            "that is the sum; here the mean over all numbers is wanted": (
                lambda m, v, tau: _kl(m, v, tau) * m.numel()
            ),
            "tau is a deviation, so the squares are divided by tau²": (
                lambda m, v, tau: _kl(m, v, math.sqrt(tau))
            ),
        },
        right="and at tau = 1 it is the term of the loss.",
    )


def check_ratio(ratio: float | None) -> None:
    """Numbers of a 512 x 512 colour picture for each number of its latent (4, 64, 64)."""
    check_number(
        ratio,
        PICTURE / LATENT,
        hints={
            "that is the ratio of places; count the channels on both sides too": 64.0,
            "a colour picture has three channels": 16.0,
            "the other way round: how many go in for one that comes out": LATENT / PICTURE,
        },
        ask="count the numbers of both tensors",
        right="a natural picture can spare more than a scan can.",
    )


def check_noise_level(level: float | None, cost: Callable[[float], Any]) -> None:
    """The deviation of noise on a latent that costs about 8 dB.

    Args:
        level: the answer.
        cost: level -> dB lost, measured with the reader's own model.
    """
    if unanswered(level):
        return None
    value = number(level)
    if value is None or not 0 < value < math.inf:
        return say(False, "the level is a number above 0: a deviation of noise")
    lost, wrong = returned(cost, value)
    if wrong:
        return say(False, wrong)
    if not abs(lost - COST_DB) <= COST_TOLERANCE_DB:
        return say(False, f"noise of {value:g} costs {lost:.1f} dB, not {COST_DB:.0f}")
    return say(True, f"noise of {value:.2f} costs {lost:.0f} dB.")
