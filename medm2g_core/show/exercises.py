"""Checks of the exercises in the first two notebooks: each prints what it thinks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from medm2g_core.data.findings import check_finding
from medm2g_core.data.mri import TISSUES, signal
from medm2g_core.data.mri import Sequence as PulseSequence
from medm2g_core.data.xray import MU_WATER
from medm2g_core.streams import STREAMS, Finding

__all__ = [
    "check_call",
    "check_hounsfield",
    "check_null_time",
    "check_psnr",
    "check_statement",
    "check_unseen_pair",
]

_TRAINED = ({"text", "xray"}, {"text", "ct"}, {"ct", "mri"})


def _say(good: bool, message: str) -> None:
    print(("Right: " if good else "Not yet: ") + message)


def _unanswered(*answers: Any) -> bool:
    if any(a is None for a in answers):
        print("No answer yet.")
        return True
    return False


def _names(value: Any) -> set[str] | None:
    known = (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and all(v in STREAMS for v in value)
    )
    return set(value) if known else None


def check_call(given: Sequence[str] | None, want: Sequence[str] | None) -> None:
    """T1 and proton density exist, T2 and FLAIR are missing: two lists of stream names."""
    if _unanswered(given, want):
        return None
    have, need = _names(given), _names(want)
    if have is None or need is None:
        return _say(False, f"two lists of names out of {', '.join(STREAMS)} are needed")
    if have & need:
        return _say(False, f"{', '.join(sorted(have & need))} cannot be given and wanted at once")
    if have != {"mri_t1", "mri_pd"} or need != {"mri_t2", "mri_flair"}:
        return _say(
            False, "given is what exists, want is what is missing, and no other stream takes part"
        )
    return _say(True, "both are drawn in one call, and guide each other while they take shape.")


def check_psnr(function: Callable[[torch.Tensor, torch.Tensor], Any] | None) -> None:
    """PSNR of two tensors with values -1..1."""
    if _unanswered(function):
        return None
    if not callable(function):
        return _say(False, "a function of two tensors is needed")
    truth = torch.zeros(1, 8, 8)
    for offset in (0.2, 0.02):
        try:
            value = float(function(truth + offset, truth))
        except Exception as error:  # whatever the student's function raises is the message
            return _say(False, f"the function raised {type(error).__name__}: {error}")
        wanted = 20 * math.log10(2 / offset)
        if math.isclose(value, wanted - 20 * math.log10(2), abs_tol=1e-2):
            return _say(False, "that is right for values 0..1; here the range of the data is 2")
        if not math.isclose(value, wanted, abs_tol=1e-2):
            return _say(
                False,
                f"an error of {offset} everywhere is {wanted:.2f} dB, the function says"
                f" {value:.2f}",
            )
    return _say(True, "a tenth of the error is 20 dB more.")


def check_unseen_pair(pair: Sequence[str] | None) -> None:
    """Two modalities that the three rounds never train together."""
    if _unanswered(pair) or pair is None:
        return None
    if (
        isinstance(pair, str)
        or len(set(pair)) != 2
        or not set(pair) <= {"text", "xray", "ct", "mri"}
    ):
        return _say(False, 'two of "text", "xray", "ct", "mri" are needed')
    if set(pair) in _TRAINED:
        return _say(False, f"{' and '.join(pair)} are trained together in one of the rounds")
    return _say(True, f"{' and '.join(pair)} meet only through the streams that they share.")


def check_hounsfield(function: Callable[[float], Any] | None) -> None:
    """Linear attenuation in 1/mm to Hounsfield units."""
    if _unanswered(function):
        return None
    if not callable(function):
        return _say(False, "a function of the attenuation in 1/mm is needed")
    for mu, hu in ((MU_WATER, 0.0), (0.0, -1000.0), (1.5 * MU_WATER, 500.0)):
        try:
            value = float(function(mu))
        except Exception as error:  # whatever the student's function raises is the message
            return _say(False, f"the function raised {type(error).__name__}: {error}")
        if not math.isclose(value, hu, abs_tol=0.5):
            return _say(False, f"mu = {mu:.4f} / mm is {hu:.0f} HU, the function says {value:.1f}")
    return _say(True, "water is 0 by definition, and a vacuum -1000.")


def check_null_time(ti_ms: float | None, tissue: str = "fat", tr_ms: float = 9000.0) -> None:
    """Inversion time in ms at which a tissue gives no signal (STIR for fat)."""
    if _unanswered(ti_ms):
        return None
    t = TISSUES[tissue]
    ti = float(ti_ms or 0)
    left = signal(
        t.t1_ms, t.t2_ms, t.pd, PulseSequence("inversion recovery", tr_ms, 15.0, ti)
    ).item()
    full = signal(t.t1_ms, t.t2_ms, t.pd, PulseSequence("spin echo", tr_ms, 15.0)).item()
    if left > 0.01 * full:
        return _say(
            False,
            f"at TI = {ti:.0f} ms {tissue} still gives {100 * left / full:.0f} % of its signal",
        )
    return _say(True, f"at TI = {ti:.0f} ms {tissue} is gone.")


def check_statement(findings: Sequence[Finding] | None) -> None:
    """A moderate nodule of the right middle lobe and a small effusion of the left, as `Finding`
    objects."""
    if _unanswered(findings):
        return None
    try:
        names = {check_finding(f).name: f for f in findings or ()}
    except (ValueError, AttributeError) as error:
        return _say(False, str(error))
    nodule, effusion = names.get("nodule"), names.get("pleural_effusion")
    if len(names) != 2 or nodule is None or effusion is None:
        return _say(False, "exactly a nodule and a pleural_effusion are needed")
    if (nodule.side, nodule.location, nodule.size) != ("right", "middle", "moderate"):
        return _say(
            False, f"the nodule is {nodule.size} in the {nodule.side} {nodule.location} lobe"
        )
    if (effusion.side, effusion.size) != ("left", "small"):
        return _say(False, f"the effusion is {effusion.size} on the {effusion.side}")
    return _say(True, f"a nodule of {nodule.size_mm} mm is moderate by definition.")
