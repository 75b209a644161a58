"""The checks of notebooks 02 to 05: what they accept, and the mistakes that they name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from medm2g_core.show.exercises_alignment import (
    check_ceiling,
    check_shared_partners,
    check_start_loss,
)
from medm2g_core.show.exercises_flows import (
    check_clean_from_velocity,
    check_guides,
    check_two_scales,
)
from medm2g_core.show.exercises_invariant import (
    check_shortcut,
    check_transforms,
    check_variance_term,
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


_draw = torch.Generator().manual_seed(0)
TAG, OTHER = torch.randn(2, 512, 8, generator=_draw)
KEPT = ["shift by 3 %", "a little more contrast", "a little noise"]
GUIDES: dict[str, Any] = {"ct": (0, 1), "mri_t1": (0.7, 1), "xray": (0.3, 0)}
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
    (check_variance_term, lambda a: (1 - a.std(0)).clamp(min=0).mean(), "Right:"),
    (check_variance_term, lambda a: torch.relu(1 - a.double().std(dim=0)).mean(), "Right:"),
    (check_variance_term, lambda a: (1 - a.std(0)).mean(), "Not yet: a dimension that varies"),
    (check_variance_term, lambda a: (1 - a.var(0)).clamp(min=0).mean(), "Not yet: that is the var"),
    (check_variance_term, lambda a: (1 - a.std(1)).clamp(min=0).mean(), "Not yet: the deviation"),
    (check_variance_term, lambda a: (1 - a.std(0)).clamp(min=0).sum(), "Not yet: in case 1"),
    (check_shortcut, (TAG, TAG), "Right:"),
    (check_shortcut, (TAG, 3 * TAG + 1), "Right:"),
    (check_shortcut, (TAG, OTHER), "Not yet: the two views"),
    (check_shortcut, (TAG[:, :1].expand(-1, 8),) * 2, "Not yet: the dimensions"),
    (check_shortcut, (TAG, TAG[:, :4]), "Not yet: needed two tensors"),
    (check_shortcut, (TAG * torch.nan, TAG), "Not yet: a tensor holds NaN"),
    (check_transforms, KEPT, "Right:"),
    (check_transforms, KEPT[1:], "Not yet: 'shift by 3 %' is missing"),
    (check_transforms, [*KEPT, "mirror left and right"], "Not yet: not 'mirror left and right'"),
    (check_guides, GUIDES, "Right:"),
    (check_guides, GUIDES | {"ct": (0.7, 1)}, "Not yet: a given stream is clean"),
    (check_guides, GUIDES | {"mri_t1": (0, 1)}, "Not yet: streams that are drawn together"),
    (check_guides, GUIDES | {"mri_t1": (0.7, 0)}, "Not yet: a given stream guides"),
    (check_guides, GUIDES | {"xray": (0, 1)}, "Not yet: the X-ray does not exist"),
    (check_guides, GUIDES | {"xray": 0}, "Not yet: xray: needed two numbers"),
    (check_clean_from_velocity, lambda z, v, a, s: a * z - s * v, "Right:"),
    (check_clean_from_velocity, lambda z, v, a, s: z - s * v, "Not yet: that is the rule of"),
    (check_clean_from_velocity, lambda z, v, a, s: s * z + a * v, "Not yet: that is the noise"),
    (check_clean_from_velocity, lambda z, v, a, s: (z - s * v) / a, "Not yet: there v would be"),
    (check_two_scales, lambda e, p, g, w, u: e + w * (p - e) + u * (g - p), "Right:"),
    (check_two_scales, lambda e, p, g, w, u: e + w * (p - e) + u * (g - e), "Not yet: the guide's"),
    (check_two_scales, lambda e, p, g, w, u: w * (p - e) + u * (g - p), "Not yet: the base"),
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
