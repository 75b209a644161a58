"""Checks of the exercises in notebook 09, see `medm2g_core.show.answers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from medm2g_core.data.mri import FULL_SCALE, TISSUES, signal
from medm2g_core.show.answers import check_function, number, say, unanswered, wrong_names
from medm2g_core.streams import CT_WINDOW_HU

__all__ = ["TYPICAL_HU", "check_same_person", "check_tissue_error", "check_twins"]

TYPICAL_HU: Mapping[str, float] = MappingProxyType(
    {"air": -1000, "lung": -800, "fat": -100, "fluid": 5, "blood": 42, "muscle": 55, "bone": 900}
)
"""Tissues of the exercise on twins with the HU that textbooks give them, rounded."""

ALIKE = 0.05  # of the full scale of T1: greys that nobody tells apart beside the noise
APART_HU = 500  # a difference that changes the dose of a plan

NEEDED = 0.75
"""Share of patients that must be found: by chance one of a dozen would be."""


def _error(drawn: torch.Tensor, true: torch.Tensor, low: float, high: float, scale: float) -> float:
    hu = (true + 1) / 2 * (CT_WINDOW_HU[1] - CT_WINDOW_HU[0]) + CT_WINDOW_HU[0]
    inside = (hu >= low) & (hu < high)
    return scale * (drawn - true)[inside].abs().mean().item()


def _cases() -> list[tuple[Any, ...]]:
    draw = torch.Generator().manual_seed(0)
    cases = []
    for low, high in ((-1000.0, -300.0), (-20.0, 150.0), (150.0, 600.0)):
        true = 2 * torch.rand(2, 1, 16, 16, generator=draw) - 1
        noise = torch.randn(true.shape, generator=draw)
        cases.append(((true + (0.05 + 0.1 * (true > 0)) * noise).clamp(-1, 1), true, low, high))
    return cases


def check_tissue_error(function: Callable[..., Any] | None) -> None:
    """Mean absolute error in HU where the *true* CT lies within [low, high) HU."""
    half = (CT_WINDOW_HU[1] - CT_WINDOW_HU[0]) / 2

    def by_drawn(drawn: torch.Tensor, true: torch.Tensor, low: float, high: float) -> float:
        return _error(true, drawn, low, high, half)

    def over_all(drawn: torch.Tensor, true: torch.Tensor, low: float, high: float) -> float:
        inside = (true + 1) * half + CT_WINDOW_HU[0]
        mask = (inside >= low) & (inside < high)
        return half * ((drawn - true).abs() * mask).mean().item()

    check_function(
        function,
        lambda d, x, low, high: _error(d, x, low, high, half),
        _cases(),
        takes="a function of drawn, true, low and high that returns one number",
        hints={
            "the tissue is that of the true CT: a drawn one may have lost it": by_drawn,
            "divide by the number of pixels of the tissue, not of the picture": over_all,
            "that is the error in units of -1..1; the window has 1,600 HU": (
                lambda d, x, low, high: _error(d, x, low, high, 1.0)
            ),
            "the window's 1,600 HU are spread over 2 units, not over 1": (
                lambda d, x, low, high: _error(d, x, low, high, 2 * half)
            ),
        },
        right="a small mean over the picture can hide a large one in the bones.",
    )


def check_twins(pair: Sequence[str] | None) -> None:
    """Two tissues with one grey on T1 and very different HU, out of `TYPICAL_HU`."""
    if unanswered(pair) or pair is None:
        return None
    wrong = wrong_names("the pair", pair, TYPICAL_HU)
    if wrong:
        return say(False, wrong)
    if len(pair) != 2:
        return say(False, f"the pair holds {len(pair)} names; needed two")
    greys = []
    for name in pair:
        t = TISSUES[name]
        greys.append(float(signal(t.t1_ms, t.t2_ms, t.pd, "t1")) / FULL_SCALE["t1"])
    if abs(greys[0] - greys[1]) > ALIKE:
        return say(False, f"on T1 they are {greys[0]:.2f} and {greys[1]:.2f} of full scale")
    apart = abs(TYPICAL_HU[pair[0]] - TYPICAL_HU[pair[1]])
    if apart < APART_HU:
        return say(False, f"on CT they are only {apart:.0f} HU apart")
    say(True, f"one grey on T1, {apart:.0f} HU apart: only the place can tell them.")


def check_same_person(
    function: Callable[..., Any] | None,
    drawn: torch.Tensor,
    ct: torch.Tensor,
    order: Sequence[int],
) -> None:
    """Find the CT that each drawn T2 was guided by, from the pictures alone.

    Args:
        function: the answer: drawn (1, H, W) and CTs (N, 1, H, W) to the number of the CT.
        drawn: (N, 1, H, W), in an order that the function is not told.
        ct: (N, 1, H, W).
        order: row of ``ct`` that each drawn picture belongs to.
    """
    if unanswered(function):
        return None
    if not callable(function):
        return say(False, f"the answer is a {type(function).__name__}; needed a function")
    hits = 0
    for picture, own in zip(drawn, order, strict=True):
        try:
            answer = function(picture, ct)
        except Exception as error:  # whatever the student's function raises is the message
            return say(False, f"the function raised {type(error).__name__}: {error}")
        row = number(answer)
        if row is None:
            return say(False, f"the function returns a {type(answer).__name__}; needed a row of ct")
        hits += row == own
    share = hits / len(drawn)
    if share < NEEDED:
        return say(False, f"{hits} of {len(drawn)} found; needed {NEEDED:.0%}")
    say(True, "the body is in the picture: whoever has the CT can tell whose MR was drawn.")
