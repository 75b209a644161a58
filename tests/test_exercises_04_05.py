"""The checks of notebooks 04 and 05: what they accept, the mistakes that they name, and that
nothing makes them raise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_exercises import JUNK

from medm2g_core.show import exercises_flows, exercises_invariant
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

_draw = torch.Generator().manual_seed(0)
TAG, OTHER = torch.randn(2, 512, 8, generator=_draw)
KEPT = ["shift by 3 %", "a little more contrast", "a little noise"]
GUIDES: dict[str, Any] = {"ct": (0, 1), "mri_t1": (0.7, 1), "xray": (0.3, 0)}
ANSWERS: list[tuple[Callable[..., None], Any, str]] = [
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


CHECKS: dict[str, Callable[..., None]] = {
    name: getattr(module, name)
    for module in (exercises_invariant, exercises_flows)
    for name in module.__all__
}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("junk", JUNK)
def test_nothing_makes_a_check_raise_or_say_right(
    name: str, junk: str, capsys: pytest.CaptureFixture[str]
) -> None:
    CHECKS[name](JUNK[junk])
    out = capsys.readouterr().out
    assert out.startswith("No answer yet." if junk == "None" else "Not yet: ")
    assert out.endswith("\n") and out.count("\n") == 1, "one sentence an answer"
