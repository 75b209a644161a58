"""The checks of notebooks 02 and 03: what they accept, the mistakes that they name, and that
nothing makes them raise."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_exercises import JUNK
from torch.nn import functional as F

from medm2g_core.show import exercises_alignment, exercises_latents
from medm2g_core.show.exercises_alignment import (
    check_ceiling,
    check_shared_partners,
    check_start_loss,
)
from medm2g_core.show.exercises_latents import check_kl_prior, check_noise_level, check_ratio


def _kl(mean: torch.Tensor, logvar: torch.Tensor, tau: float) -> torch.Tensor:
    scaled = (mean.square() + logvar.exp()) / tau**2
    return 0.5 * (scaled - 1 - logvar + 2 * math.log(tau)).mean()


def _one_way(a: torch.Tensor, b: torch.Tensor, tau: float, keys: list[str]) -> torch.Tensor:
    same = torch.tensor([[x == y for y in keys] for x in keys])
    return -((a @ b.T / tau).log_softmax(1) * same).sum(1).div(same.sum(1)).mean()


def _shared(a: torch.Tensor, b: torch.Tensor, tau: float, keys: list[str]) -> torch.Tensor:
    return (_one_way(a, b, tau, keys) + _one_way(b, a, tau, keys)) / 2


def _plain(a: torch.Tensor, b: torch.Tensor, tau: float, keys: list[str]) -> torch.Tensor:
    scores, own = a @ b.T / tau, torch.arange(len(a))
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def _ceiling(keys: list[str], k: int) -> float:
    return sum(min(k, keys.count(x)) / keys.count(x) for x in keys) / len(keys)


ANSWERS: list[tuple[Callable[..., None], Any, str]] = [
    (check_ratio, 48, "Right:"),
    (check_ratio, 64, "Not yet: that is the ratio of places"),
    (check_ratio, 16.0, "Not yet: a colour picture"),
    (check_ratio, 1 / 48, "Not yet: the other way round"),
    (check_ratio, 5, "Not yet: 5 is not it"),
    (check_kl_prior, _kl, "Right:"),
    (check_kl_prior, lambda m, v, tau: _kl(m, v, 1.0), "Not yet: that is the divergence from N(0"),
    (check_kl_prior, lambda m, v, tau: _kl(m, v, tau) - math.log(tau), "Not yet: the width of"),
    (check_kl_prior, lambda m, v, tau: _kl(m, v, tau) * m.numel(), "Not yet: that is the sum"),
    (check_kl_prior, lambda m, v, tau: _kl(m, v, tau**0.5), "Not yet: tau is a deviation"),
    (check_kl_prior, lambda m, v, tau: _kl(m, v, tau) + 1, "Not yet: in case 1"),
    (check_kl_prior, lambda m, v: 0.0, "Not yet: the function raised TypeError"),
    (check_shared_partners, _shared, "Right:"),
    (check_shared_partners, _plain, "Not yet: that is plain InfoNCE"),
    (check_shared_partners, _one_way, "Not yet: that is one direction, rows"),
    (
        check_shared_partners,
        lambda a, b, tau, keys: _one_way(b, a, tau, keys),
        "Not yet: that is one direction, columns",
    ),
    (
        check_shared_partners,
        lambda a, b, tau, keys: _shared(a, b, 1.0, keys),
        "Not yet: the similarities are not divided",
    ),
    (
        check_shared_partners,
        lambda a, b, tau, keys: _shared(a, b, tau, keys) * len(a),
        "Not yet: that is the sum",
    ),
    (
        check_shared_partners,
        lambda a, b, tau, keys: 2 * _shared(a, b, tau, keys),
        "Not yet: both directions are added",
    ),
    (check_start_loss, math.log(64), "Right:"),
    (check_start_loss, 4.16, "Right:"),
    (check_start_loss, 6, "Not yet: that is the logarithm to base 2"),
    (check_start_loss, -4.1589, "Not yet: the loss is minus"),
    (check_start_loss, 1 / 64, "Not yet: that is the chance"),
    (check_start_loss, 3, "Not yet: 3 is not it"),
    (check_ceiling, _ceiling, "Right:"),
    (check_ceiling, lambda keys, k: _ceiling(keys, 1), "Not yet: that is right for k = 1"),
    (
        check_ceiling,
        lambda keys, k: sum(n == 1 for n in Counter(keys).values()) / len(keys),
        "Not yet: that counts only patients",
    ),
    (
        check_ceiling,
        lambda keys, k: sum(k / keys.count(x) for x in keys) / len(keys),
        "Not yet: of eight equals",
    ),
]


@pytest.mark.parametrize(("check", "answer", "says"), ANSWERS)
def test_right_answers_are_accepted_and_mistakes_are_named(
    check: Callable[..., None], answer: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(answer)
    assert capsys.readouterr().out.startswith(says)


@pytest.mark.parametrize(
    ("level", "says"),
    [
        (0.4, "Right: noise of 0.40 costs 8 dB"),
        (0.1, "Not yet: noise of 0.1 costs 2.0 dB"),
        (-1, "Not yet: the level"),
        ("much", "Not yet: the level"),
        (None, "No answer yet."),
    ],
)
def test_the_noise_level_is_judged_by_what_it_costs(
    level: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_noise_level(level, lambda r: 20 * r)
    assert capsys.readouterr().out.startswith(says)


CHECKS: dict[str, Callable[..., None]] = {
    name: getattr(module, name)
    for module in (exercises_latents, exercises_alignment)
    for name in module.__all__
}


def _try(name: str, answer: Any) -> None:
    if name == "check_noise_level":
        CHECKS[name](answer, lambda r: math.nan)
    else:
        CHECKS[name](answer)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("junk", JUNK)
def test_nothing_makes_a_check_raise_or_say_right(
    name: str, junk: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _try(name, JUNK[junk])
    out = capsys.readouterr().out
    assert out.startswith("No answer yet." if junk == "None" else "Not yet: ")
    assert out.endswith("\n") and out.count("\n") == 1, "one sentence an answer"


@pytest.mark.parametrize("junk", JUNK)
def test_whatever_a_function_returns_is_answered(
    junk: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for check in (check_kl_prior, check_shared_partners, check_ceiling):
        check(lambda *_: JUNK[junk])
        assert capsys.readouterr().out.startswith("Not yet: ")
    check_noise_level(0.3, lambda _: JUNK[junk])
    assert capsys.readouterr().out.startswith("Not yet: ")
