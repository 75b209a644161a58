"""Checks of the exercises in notebook 10, see `medm2g_core.show.answers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from medm2g_core.profiles import ROUND_STAGES
from medm2g_core.show.answers import check_function, say, unanswered, wrong_names
from medm2g_core.streams import MODALITIES
from medm2g_core.training.rounds import ROUNDS

__all__ = ["check_agreement", "check_follower_level", "check_order", "check_roads"]

_STUDIES, _FINDINGS = 24, 3
_VAIN = torch.tensor([0.5, 3.0, 10.0]), torch.tensor([5.0, -4.0, 0.0])
"""How loud a judge is on each finding, and where its answers lie."""

_GUIDE_ALONE = "ct to mri, prompt weight 0"
_CALLS = ("xray to ct", "ct to mri", "text to mri", "text to ct", "mri to xray", _GUIDE_ALONE)
_ROADS = ("prompt", "guide", "both")


def _met() -> set[frozenset[str]]:
    """Pairs of modalities that the paper's rounds train together."""
    return {
        frozenset(pair)
        for name in ROUND_STAGES
        for mix in ROUNDS[name].mixes
        for pair in mix.pairs()
        if len(set(pair)) > 1
    }


def _agreement(a: torch.Tensor, b: torch.Tensor) -> float:
    u, w = a - a.mean(0), b - b.mean(0)
    r = (u * w).sum(0) / (u.square().sum(0) * w.square().sum(0)).sqrt()
    return r.mean().item()


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a, b).mean().item()


def _covariance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - a.mean(0)) * (b - b.mean(0))).mean().item()


def _by_study(a: torch.Tensor, b: torch.Tensor) -> float:
    return _agreement(a.T, b.T)


def _all_at_once(a: torch.Tensor, b: torch.Tensor) -> float:
    return _agreement(a.reshape(-1, 1), b.reshape(-1, 1))


def check_agreement(function: Callable[..., Any] | None) -> None:
    """Mean over findings of the correlation over studies of two tensors (N, F)."""
    draw = torch.Generator().manual_seed(0)
    cases = []
    for shared in (0.3, 1.0, 3.0):
        patient = shared * torch.randn(_STUDIES, _FINDINGS, generator=draw)
        noise = torch.randn(2, _STUDIES, _FINDINGS, generator=draw)
        a, b = patient + noise
        cases.append((_VAIN[0] * a + _VAIN[1], b + 2))
    check_function(
        function,
        _agreement,
        cases,
        takes="a function of two tensors (N, F) that returns one number",
        hints={
            "a judge who always says 5 moves it: take the mean over studies out first": _cosine,
            "a louder judge moves it: divide by the lengths of both departures": _covariance,
            "the correlation runs over studies, a finding at a time; that is over findings": (
                _by_study
            ),
            "correlate each finding apart, then take the mean": _all_at_once,
        },
        right="neither where a judge's answers lie nor how loud they are moves it.",
    )


def _follower(k: int, steps: int, lead: int) -> float:
    return min(1.0, max(0.0, 1 - (k - lead) / steps))


def check_follower_level(function: Callable[..., Any] | None) -> None:
    """min(1, max(0, 1 - (k - lead) / steps))."""
    check_function(
        function,
        _follower,
        [(4, 10, 0), (2, 10, 5), (7, 10, 5), (15, 10, 10), (14, 10, 3), (20, 10, 10)],
        takes="a function of k, steps and lead that returns one number",
        hints={
            "it is above 1 while the follower waits: a level never leaves 0 to 1": (
                lambda k, steps, lead: max(0.0, 1 - (k - lead) / steps)
            ),
            "it goes on below 0 once the follower is finished": (
                lambda k, steps, lead: min(1.0, 1 - (k - lead) / steps)
            ),
            "it leaves 0 to 1 at both ends": lambda k, steps, lead: 1 - (k - lead) / steps,
            "that is the leader's level": lambda k, steps, lead: _follower(k, steps, 0),
            "there the follower is ahead of the leader": (
                lambda k, steps, lead: _follower(k, steps, -lead)
            ),
        },
        right="lead 0 is joint, lead = steps is cascade, and all between is open to try.",
    )


def check_order(order: Sequence[str] | None) -> None:
    """An order of all modalities, the report not first, in which each after the first was trained
    with one before it."""
    if unanswered(order) or order is None:
        return None
    wrong = wrong_names("the order", order, MODALITIES)
    if wrong:
        return say(False, wrong)
    if len(order) < len(MODALITIES):
        missing = sorted(set(MODALITIES) - set(order))
        return say(False, f"{', '.join(missing)} is missing: all four are drawn")
    if order[0] == "text":
        return say(False, "that begins with the report; find one that does not")
    met = _met()
    for i, name in enumerate(order[1:], 1):
        if not any(frozenset((name, before)) in met for before in order[:i]):
            done = " and ".join(order[:i])
            return say(False, f"{name} never trained with {done}, so it hears nobody")
    return say(True, "each hears one that is finished: the pairs of the rounds are a chain.")


def check_roads(roads: Mapping[str, Any] | None) -> None:
    """Call -> the road on which the given stream reaches the wanted one after the three rounds."""
    if unanswered(roads) or roads is None:
        return None
    if not isinstance(roads, Mapping) or set(roads) != set(_CALLS):
        return say(False, f"needed a dict with the keys {'; '.join(_CALLS)}")
    met = _met()
    for call in _CALLS:
        said = roads[call]
        if not isinstance(said, str) or said not in _ROADS:
            return say(False, f"{call}: needed one of {', '.join(_ROADS)}")
        given, want = call.split(",")[0].split(" to ")
        together = frozenset((given, want)) in met
        true = "guide" if call == _GUIDE_ALONE else "both" if together else "prompt"
        if said != true:
            why = (
                "its weight in the prompt is 0, and the pair trained together"
                if call == _GUIDE_ALONE
                else f"what is given always prompts, and this pair "
                f"{'trained together' if together else 'never trained together'}"
            )
            return say(False, f"{call} is not by {said}: {why}")
    return say(True, "everything given prompts; only what trained together guides as well.")
