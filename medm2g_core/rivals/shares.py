"""How much of a flow's training time its trained rivals get: one number for all, or one a kind."""

from __future__ import annotations

import math
from collections.abc import Mapping

from medm2g_core.streams import MODALITIES

__all__ = ["KINDS", "PIX2PIX", "Shares", "parse_shares"]

Shares = Mapping[str, float]
"""Kind -> share of the time of the flow that it faces."""

PIX2PIX = "pix2pix"
KINDS = (*MODALITIES, PIX2PIX)
"""A modality stands for the report decoder or the regression network that writes it; `PIX2PIX` is
the most that those with a critic get, whatever they draw."""


def parse_shares(spec: float | str | Shares) -> dict[str, float]:
    """``0.1``, ``"0.1"`` or ``"0.1,mri=1,pix2pix=0.1"`` to a share for each of `KINDS`.

    Raises:
        ValueError: no number, one that is not positive, or an unknown kind.
    """
    if isinstance(spec, Mapping):
        return {k: _positive(spec[k], str(dict(spec))) for k in KINDS}
    first, *rest = str(spec).split(",")
    every, own = _positive(first, str(spec)), {}
    for word in rest:
        kind, _, value = word.partition("=")
        if kind.strip() not in KINDS:
            raise ValueError(
                f"time fraction {spec!r}: unknown kind {kind.strip()!r}; known: {', '.join(KINDS)}"
            )
        own[kind.strip()] = _positive(value, str(spec))
    out = dict.fromkeys(MODALITIES, every) | own
    return {PIX2PIX: max(out[m] for m in MODALITIES if m != "text"), **out}


def _positive(value: float | str, spec: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise ValueError(
            f"time fraction {spec!r}: needed numbers above 0, such as 0.1 or 0.1,mri=1"
        )
    return number
