"""The checks of notebooks 08 and 09: what they accept, and which mistakes they name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from medm2g_core.show.exercises_synthesis import (
    check_best_pair,
    check_least_warned,
    check_narrow_sampler,
    check_psnr_of_eight,
)
from medm2g_core.show.exercises_translation import (
    check_same_person,
    check_tissue_error,
    check_twins,
)
from medm2g_core.streams import unit_to_hu

DICE = {
    frozenset({"mri_t1", "mri_t2"}): 0.2,
    frozenset({"mri_t1", "mri_pd"}): 0.1,
    frozenset({"mri_t2", "mri_pd"}): 0.3,
}
_draw = torch.Generator().manual_seed(0)
SPREADS = torch.rand(3, 1, 8, 8, generator=_draw)
ERRORS = SPREADS.clone()
ERRORS[1] = torch.rand(1, 8, 8, generator=_draw)  # the one that the spread does not warn of
CTS = torch.rand(4, 1, 8, 8, generator=_draw)
ORDER = [2, 0, 3, 1]


def _after(p: float, q: float, draws: float) -> float:
    one, two = 10 ** (-p / 10), 10 ** (-q / 10)
    return -10 * math.log10(2 * two - one + 2 * (one - two) / draws)


def _tissue(drawn: torch.Tensor, true: torch.Tensor, low: float, high: float) -> torch.Tensor:
    hu = unit_to_hu(true)
    return (unit_to_hu(drawn) - hu).abs()[(hu >= low) & (hu < high)].mean()


def _masked(drawn: torch.Tensor, true: torch.Tensor, low: float, high: float) -> torch.Tensor:
    hu = unit_to_hu(true)
    return ((unit_to_hu(drawn) - hu).abs() * ((hu >= low) & (hu < high))).mean()


def _find(picture: torch.Tensor, ct: torch.Tensor) -> torch.Tensor:
    return (ct - picture).abs().flatten(1).sum(1).argmin()


def check_pair(answer: Any) -> None:
    """`check_best_pair` with scores that are known."""
    check_best_pair(answer, lambda names: DICE[frozenset(names)])


def check_patient(answer: Any) -> None:
    """`check_least_warned` with maps that are known."""
    check_least_warned(answer, ERRORS, SPREADS)


def check_search(answer: Any) -> None:
    """`check_same_person` with pictures that are the CTs themselves."""
    check_same_person(answer, CTS[ORDER], CTS, ORDER)


ANSWERS: list[tuple[Callable[[Any], None], Any, str]] = [
    (check_psnr_of_eight, lambda p, q: _after(p, q, 8), "Right:"),
    (check_psnr_of_eight, lambda p, q: p + 3 * (q - p), "Not yet: decibels do not add up"),
    (check_psnr_of_eight, lambda p, q: _after(p, q, math.inf), "Not yet: that is the limit"),
    (check_psnr_of_eight, lambda p, q: _after(p, q, 4), "Not yet: that is the mean of four"),
    (check_psnr_of_eight, lambda p, q: _after(p, q, 8**0.5), "Not yet: a deviation shrinks"),
    (check_psnr_of_eight, lambda p, q: q, "Not yet: in case 1"),
    (check_psnr_of_eight, lambda p: p, "Not yet: the function raised TypeError"),
    (check_narrow_sampler, 10 * math.log10(1.6), "Right:"),
    (check_narrow_sampler, 2.041, "Right:"),
    (check_narrow_sampler, 10 * math.log10(4 / 3), "Not yet: half of the deviation"),
    (check_narrow_sampler, 3.0103, "Not yet: that is a sampler without any spread"),
    (check_narrow_sampler, -2.0412, "Not yet: the error gets smaller"),
    (check_narrow_sampler, 1.6, "Not yet: that is the ratio"),
    (check_narrow_sampler, 5, "Not yet: 5 is not it"),
    (check_pair, ["mri_t2", "mri_pd"], "Right:"),
    (check_pair, ("mri_pd", "mri_t2"), "Right:"),
    (check_pair, ["mri_t1", "mri_t2"], "Not yet: mri_t1 and mri_t2 have a Dice of 0.20"),
    (check_pair, ["mri_t1"], "Not yet: the pair holds 1 names"),
    (check_pair, ["mri_t1", "mri_flair"], "Not yet: the pair holds 'mri_flair'"),
    (check_patient, 1, "Right:"),
    (check_patient, 0, "Not yet: another patient's"),
    (check_patient, 7, "Not yet: there is no such patient"),
    (check_patient, -1, "Not yet: there is no such patient"),
    (check_tissue_error, _tissue, "Right:"),
    (check_tissue_error, lambda d, x, a, b: _tissue(x, d, a, b), "Not yet: the tissue is that"),
    (check_tissue_error, _masked, "Not yet: divide by the number of pixels of the tissue"),
    (check_tissue_error, lambda d, x, a, b: _tissue(d, x, a, b) / 800, "Not yet: that is the er"),
    (check_tissue_error, lambda d, x, a, b: 2 * _tissue(d, x, a, b), "Not yet: the window's"),
    (check_twins, ["air", "bone"], "Right:"),
    (check_twins, ("bone", "air"), "Right:"),
    (check_twins, ["fat", "bone"], "Not yet: on T1 they are"),
    (check_twins, ["blood", "muscle"], "Not yet: on CT they are only 13 HU apart"),
    (check_twins, ["air"], "Not yet: the pair holds 1 names"),
    (check_search, _find, "Right:"),
    (check_search, lambda picture, ct: _find(picture, ct).item(), "Right:"),
    (check_search, lambda picture, ct: 0, "Not yet: 1 of 4 found"),
    (check_search, lambda picture: 0, "Not yet: the function raised TypeError"),
]


@pytest.mark.parametrize(("check", "answer", "says"), ANSWERS)
def test_right_answers_are_accepted_and_mistakes_are_named(
    check: Callable[[Any], None], answer: Any, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check(answer)
    assert capsys.readouterr().out.startswith(says)
