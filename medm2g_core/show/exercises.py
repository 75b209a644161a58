"""Checks of the exercises in notebooks 00 and 01, see `medm2g_core.show.answers`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch

from medm2g_core.data.findings import check_finding
from medm2g_core.data.mri import TISSUES, signal
from medm2g_core.data.mri import Sequence as PulseSequence
from medm2g_core.data.xray import MU_WATER
from medm2g_core.show.answers import number, returned, say, unanswered, wrong_names
from medm2g_core.streams import STREAMS, Finding

__all__ = [
    "check_call",
    "check_hounsfield",
    "check_null_time",
    "check_psnr",
    "check_statement",
    "check_unseen_pair",
]

_MODALITIES = ("text", "xray", "ct", "mri")
_TRAINED = ({"text", "xray"}, {"text", "ct"}, {"ct", "mri"})
_ECHO_MS = 15.0  # of the sequences that are compared; both the same, so it cancels out
_GONE = 0.01  # of the full signal: what the eye no longer sees


def check_call(given: Sequence[str] | None, want: Sequence[str] | None) -> None:
    """T1 and proton density exist, T2 and FLAIR are missing: two lists of stream names."""
    if unanswered(given, want) or given is None or want is None:
        return None
    wrong = wrong_names("given", given, STREAMS) or wrong_names("want", want, STREAMS)
    if wrong:
        return say(False, wrong)
    have, need = set(given), set(want)
    if have & need:
        return say(False, f"{', '.join(sorted(have & need))} cannot be given and wanted at once")
    if have != {"mri_t1", "mri_pd"} or need != {"mri_t2", "mri_flair"}:
        return say(
            False, "given is what exists, want is what is missing, and no other stream takes part"
        )
    return say(True, "both are drawn in one call, and guide each other while they take shape.")


def check_psnr(function: Callable[[torch.Tensor, torch.Tensor], Any] | None) -> None:
    """PSNR of two tensors with values -1..1."""
    if unanswered(function):
        return None
    if not callable(function):
        return say(False, "a function of two tensors is needed")
    for offset in (0.2, 0.02):
        truth = torch.zeros(1, 8, 8)
        value, wrong = returned(function, truth + offset, truth)
        if wrong:
            return say(False, wrong)
        wanted = 20 * math.log10(2 / offset)
        if math.isclose(value, wanted - 20 * math.log10(2), abs_tol=1e-2):
            return say(False, "that is right for values 0..1; here the range of the data is 2")
        if not math.isclose(value, wanted, abs_tol=1e-2):
            return say(
                False,
                f"an error of {offset} everywhere is {wanted:.2f} dB, the function says"
                f" {value:.2f}",
            )
    return say(True, "a tenth of the error is 20 dB more.")


def check_unseen_pair(pair: Sequence[str] | None) -> None:
    """Two modalities that the three rounds never train together."""
    if unanswered(pair) or pair is None:
        return None
    wrong = wrong_names("the pair", pair, _MODALITIES)
    if wrong or len(pair) != 2:
        return say(False, wrong or f"two names are needed, got {len(pair)}")
    if set(pair) in _TRAINED:
        return say(False, f"{' and '.join(pair)} are trained together in one of the rounds")
    return say(True, f"{' and '.join(pair)} meet only through the streams that they share.")


def check_hounsfield(function: Callable[[float], Any] | None) -> None:
    """Linear attenuation in 1/mm to Hounsfield units."""
    if unanswered(function):
        return None
    if not callable(function):
        return say(False, "a function of the attenuation in 1/mm is needed")
    for mu, hu in ((MU_WATER, 0.0), (0.0, -1000.0), (1.5 * MU_WATER, 500.0)):
        value, wrong = returned(function, mu)
        if wrong:
            return say(False, wrong)
        if not math.isclose(value, hu, abs_tol=0.5):
            return say(False, f"mu = {mu:.4f} / mm is {hu:.0f} HU, the function says {value:.1f}")
    return say(True, "water is 0 by definition, and a vacuum -1000.")


def check_null_time(ti_ms: float | None, tissue: str = "fat", tr_ms: float = 9000.0) -> None:
    """Inversion time in ms at which a tissue gives no signal (STIR for fat)."""
    if unanswered(ti_ms):
        return None
    ti, tr = (math.nan if (n := number(a)) is None else n for a in (ti_ms, tr_ms))
    for what, answer, time in (("TI", ti_ms, ti), ("TR", tr_ms, tr)):
        if not 0 < time < math.inf:
            kind = type(answer).__name__
            return say(False, f"{what} is {time:g} (a {kind}); needed a time in ms, more than 0")
    if not isinstance(tissue, str) or tissue not in TISSUES:
        return say(False, f"no such tissue; there are: {', '.join(TISSUES)}")
    t = TISSUES[tissue]
    inverted = PulseSequence("inversion recovery", tr, _ECHO_MS, ti)
    left = signal(t.t1_ms, t.t2_ms, t.pd, inverted).item()
    full = signal(t.t1_ms, t.t2_ms, t.pd, PulseSequence("spin echo", tr, _ECHO_MS)).item()
    if full == 0:
        return say(False, f"{tissue} gives no signal at TR = {tr:g} ms, whatever the TI")
    if not left <= _GONE * full:
        return say(
            False,
            f"at TI = {ti:.0f} ms {tissue} still gives {100 * left / full:.0f} % of its signal",
        )
    return say(True, f"at TI = {ti:.0f} ms {tissue} is gone.")


def _wrong_finding(finding: Any) -> str:
    """What keeps an object from being a finding that can be; empty if nothing does."""
    if not isinstance(finding, Finding):
        return f"the list holds a {type(finding).__name__}; needed Finding objects"
    words = (finding.name, finding.side, finding.location, finding.size)
    if not all(isinstance(word, str) for word in words):
        return "name, side, location and size of a Finding are strings"
    if finding.size_mm is not None and not isinstance(finding.size_mm, Integral):
        return f"size_mm of a Finding is a whole number, not a {type(finding.size_mm).__name__}"
    try:
        check_finding(finding)
    except ValueError as error:
        return str(error)
    return ""


def check_statement(findings: Sequence[Finding] | None) -> None:
    """A moderate nodule of the right middle lobe and a small effusion of the left, as `Finding`
    objects."""
    if unanswered(findings) or findings is None:
        return None
    if not isinstance(findings, list | tuple):
        return say(
            False,
            f"the answer is a {type(findings).__name__}; needed a list of two Finding objects",
        )
    wrong = next(filter(None, map(_wrong_finding, findings)), "")
    if wrong:
        return say(False, wrong)
    by_name = {f.name: f for f in findings}
    nodule, effusion = by_name.get("nodule"), by_name.get("pleural_effusion")
    if len(findings) != 2 or nodule is None or effusion is None:
        return say(False, "exactly a nodule and a pleural_effusion are needed")
    if (nodule.side, nodule.location, nodule.size) != ("right", "middle", "moderate"):
        return say(
            False, f"the nodule is {nodule.size} in the {nodule.side} {nodule.location} lobe"
        )
    if (effusion.side, effusion.size) != ("left", "small"):
        return say(False, f"the effusion is {effusion.size} on the {effusion.side}")
    return say(True, f"a nodule of {nodule.size_mm} mm is moderate by definition.")
