"""Phrasings that the grammar of `medm2g_core.data.phrasing` cannot make: to test a trained model.

A model that gets them right has learned more than the grammar. A test holds that the grammar never
writes one; whoever widens it, keeps away from these sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

from medm2g_core.streams import Finding

__all__ = ["HELD_OUT", "HeldOut"]


@dataclass(frozen=True)
class HeldOut:
    """A phrasing that no rule of the grammar makes.

    Attributes:
        finding: what it speaks of.
        affirmed, denied: texts of the same kind that say that it is there, and that it is not.
    """

    finding: Finding
    affirmed: str
    denied: str


_EFFUSION = Finding("pleural_effusion", "left", "", "large")
_HEART = Finding("cardiomegaly", "", "", "large")
_COLLAPSE = Finding("pneumothorax", "right", "", "large")
HELD_OUT: tuple[HeldOut, ...] = (
    HeldOut(
        _EFFUSION,
        "A great deal of fluid has gathered in the left pleural space: a large effusion.",
        "No fluid whatsoever has gathered in the left pleural space: not a large effusion.",
    ),
    HeldOut(
        _EFFUSION,
        "Should one worry about a left effusion? Yes, it is large.",
        "Should one worry about a large left effusion? There isn't any.",
    ),
    HeldOut(
        _EFFUSION,
        "LARGE EFFUSION, LEFT.",
        "LARGE EFFUSION, LEFT: ABSENT.",
    ),
    HeldOut(
        _EFFUSION,
        "The large left pleural effusion that was feared did turn up.",
        "The large left pleural effusion that was feared did not turn up.",
    ),
    HeldOut(
        _HEART,
        "This heart is far too big: severe cardiomegaly.",
        "This heart is anything but too big: cardiomegaly is excluded.",
    ),
    HeldOut(
        _HEART,
        "Severe cardiomegaly: beyond doubt.",
        "Severe cardiomegaly: none.",
    ),
    HeldOut(
        _COLLAPSE,
        "Air surrounds the right lung, the picture of a large pneumothorax.",
        "No air surrounds the right lung, hardly the picture of a large pneumothorax.",
    ),
    HeldOut(
        _COLLAPSE,
        "Large pneumothorax on the right? Confirmed.",
        "Large pneumothorax on the right? Ruled out.",
    ),
)
"""For tests of a trained model; never trained on."""
