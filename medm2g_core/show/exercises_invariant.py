"""Checks of the exercises in notebook 04, see `medm2g_core.show.answers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from medm2g_core.alignment.objective import visual_invariant_loss
from medm2g_core.profiles import AlignmentConfig
from medm2g_core.show.answers import check_function, say, unanswered, wrong_names

__all__ = ["check_shortcut", "check_transforms", "check_variance_term"]

_TRANSFORMS = {  # name -> whether the report stays true, and why
    "shift by 3 %": (True, "the patient merely stands a little to the side"),
    "mirror left and right": (False, "it puts the heart and every finding on the other side"),
    "a little more contrast": (True, "it is the choice of a display"),
    "cut off the lower third": (False, "it removes the effusion that the report names"),
    "turn by 180 degrees": (False, "it swaps the sides, and the apex with the base"),
    "a little noise": (True, "a lower dose does the same"),
}
_STUDIES, _WIDTH = 512, 8  # of the pair that `check_shortcut` asks for
_SMALL = 0.2  # of a loss that starts near 8: nearly nothing is left to learn


def _missing_deviation(a: torch.Tensor) -> float:
    return (1 - a.std(0)).clamp(min=0).mean().item()


def check_variance_term(function: Callable[[torch.Tensor], Any] | None) -> None:
    """mean_j max(0, 1 - std_j) of an embedding (N, D), the deviation with N - 1."""
    noise = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    scales = torch.tensor([0.0, 0.3, 0.9, 1.5, 4.0])
    check_function(
        function,
        _missing_deviation,
        [(noise * scales,), (noise * 3,), (noise * 0.1,)],
        takes="a function of one embedding (N, D) that returns one number",
        hints={
            "a dimension that varies more than 1 must cost 0, not less": (
                lambda a: (1 - a.std(0)).mean().item()
            ),
            "that is the variance; the term takes the deviation, its root": (
                lambda a: (1 - a.var(0)).clamp(min=0).mean().item()
            ),
            "the deviation is taken over the batch, not over the dimensions": (
                lambda a: (1 - a.std(1)).clamp(min=0).mean().item()
            ),
        },
        right="a collapsed dimension costs 1, one that varies enough costs nothing.",
    )


def check_shortcut(pair: Sequence[torch.Tensor] | None) -> None:
    """Two embeddings (512, 8) of which the full loss is nearly 0."""
    if unanswered(pair) or pair is None:
        return None
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return say(False, "two tensors are needed, as a tuple")
    for x in pair:
        if not isinstance(x, torch.Tensor) or tuple(x.shape) != (_STUDIES, _WIDTH):
            kind = tuple(x.shape) if isinstance(x, torch.Tensor) else type(x).__name__
            return say(False, f"needed two tensors ({_STUDIES}, {_WIDTH}), got {kind}")
    a, b = (x.detach().float() for x in pair)
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return say(False, "a tensor holds NaN or infinite values")
    loss = visual_invariant_loss(a, b, AlignmentConfig(diagonal_weight=1.0)).item()
    if loss > _SMALL:
        c = torch.corrcoef(torch.cat([a, b], 1).T)[:_WIDTH, _WIDTH:]
        weak = c.diagonal().nan_to_num().mean().item() < 0.9
        hint = (
            "the two views of a study do not agree: the diagonal is low"
            if weak
            else "the dimensions repeat each other: the off-diagonal is high"
        )
        return say(False, f"{hint}; the loss is {loss:.2f}")
    return say(True, f"the loss is {loss:.2f}, and no picture was ever looked at.")


def check_transforms(names: Sequence[str] | None) -> None:
    """The transforms after which the report of a chest is still true."""
    if unanswered(names) or names is None:
        return None
    wrong = wrong_names("the answer", names, _TRANSFORMS)
    if wrong:
        return say(False, wrong)
    for name, (keeps, why) in _TRANSFORMS.items():
        if keeps and name not in names:
            return say(False, f"'{name}' is missing: {why}")
        if not keeps and name in names:
            return say(False, f"not '{name}': {why}")
    return say(True, "an encoder may forget whatever these three change, and nothing else.")
