"""Checks of the exercises in notebook 05, see `medm2g_core.show.answers`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from medm2g_core.show.answers import check_function, number, say, unanswered

__all__ = ["check_clean_from_velocity", "check_guides", "check_two_scales"]

LEVEL = 0.7  # of the streams that are drawn, in the exercise on guides
_GUIDES = ("ct", "mri_t1", "xray")


def check_guides(guides: Mapping[str, Any] | None) -> None:
    """Guides of T2 when T1 is drawn beside it at level 0.7, CT is given and the X-ray is missing:
    stream -> (level, present)."""
    if unanswered(guides) or guides is None:
        return None
    if not isinstance(guides, Mapping) or set(guides) != set(_GUIDES):
        return say(False, f"needed a dict with the keys {', '.join(_GUIDES)}")
    pairs = {}
    for name, pair in guides.items():
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return say(False, f"{name}: needed two numbers, (level, present)")
        level, present = number(pair[0]), number(pair[1])
        if level is None or present is None:
            return say(False, f"{name}: needed two numbers, (level, present)")
        pairs[name] = (level, present)
    if pairs["xray"][1] != 0:
        return say(False, "the X-ray does not exist: whatever its level, it must not be present")
    if pairs["ct"][1] != 1 or pairs["mri_t1"][1] != 1:
        return say(False, "a given stream guides, and so does one that is drawn beside")
    if pairs["ct"][0] != 0:
        return say(False, "a given stream is clean: what is its level?")
    if not math.isclose(pairs["mri_t1"][0], LEVEL):
        return say(False, "streams that are drawn together are equally noisy")
    return say(True, "no task of the paper needs more than these two numbers a stream.")


def check_clean_from_velocity(function: Callable[..., Any] | None) -> None:
    """z_0 from z_t = a z_0 + s eps and v = a eps - s z_0, with a^2 + s^2 = 1."""
    cases = []
    for z0, eps, angle in ((1.0, -0.5, 0.3), (-2.0, 0.7, 1.1), (0.4, 1.9, 1.5)):
        a, s = math.cos(angle), math.sin(angle)
        cases.append((a * z0 + s * eps, a * eps - s * z0, a, s))
    check_function(
        function,
        lambda z, v, a, s: a * z - s * v,
        cases,
        takes="a function of z_t, v, a and s that returns one number",
        hints={
            "that is the rule of the rectified flow; here v is another mixture": (
                lambda z, v, a, s: z - s * v
            ),
            "that is the noise, not the clean value": lambda z, v, a, s: s * z + a * v,
            "there v would be the noise itself": lambda z, v, a, s: (z - s * v) / a,
        },
        right="multiply z_t by a and v by s: what is left of the noise cancels.",
    )


def check_two_scales(function: Callable[..., Any] | None) -> None:
    """e_0 + w (e_p - e_0) + w_g (e_pg - e_p)."""
    check_function(
        function,
        lambda e0, ep, epg, w, wg: e0 + w * (ep - e0) + wg * (epg - ep),
        [(0.0, 1.0, 3.0, 2.0, 1.0), (0.5, -1.0, 2.0, 1.0, 3.0), (1.0, 1.5, 0.0, 4.0, 0.5)],
        takes="a function of e_0, e_p, e_pg, w and w_g that returns one number",
        hints={
            "the guide's push starts where the prompt's ends, not at e_0": (
                lambda e0, ep, epg, w, wg: e0 + w * (ep - e0) + wg * (epg - e0)
            ),
            "the base e_0 is missing": (lambda e0, ep, epg, w, wg: w * (ep - e0) + wg * (epg - ep)),
        },
        right="with w = w_g it is the rule with one scale.",
    )
