"""Slices of a volume that hold nothing, or what their neighbour holds: what a download that broke
off, a tool that fills gaps, or a stack made of one picture leaves."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from medm2g_core.data.volumes import PLANES

__all__ = ["odd_slices"]

MUCH_BLANK = 1 / 3
"""Part of the slices along one axis that may be blank at the ends: room about a head or a body, and
what registering cuts off, take less."""

MANY_COPIES = 0.1
"""Part of the slices that may be like the one before. Padding that repeats an edge takes less, and
noise makes no two slices of a scanner alike."""

THINNED = 8
"""Slices are compared at every eighth pixel first, for most differ there: a whole chest has a
hundred million voxels."""


def odd_slices(array: np.ndarray) -> list[str]:
    """Notes on the blank and the repeated slices of a volume (S, A, R)."""
    notes = []
    for axis, plane in enumerate(PLANES):
        slices = np.moveaxis(array, axis, 0)
        count = len(slices)
        if count < 3:
            continue
        filled = np.flatnonzero([not _blank(s) for s in slices])
        if not len(filled):
            continue
        inside = int(filled[-1] - filled[0] + 1)
        between, outside = inside - len(filled), count - inside
        if between:
            notes.append(
                f"{between} {plane} slices between others are blank: slices are missing in the file"
            )
        elif outside > MUCH_BLANK * count:
            notes.append(
                f"{outside} of {count} {plane} slices are blank: if the file is whole, cut them off"
            )
        copies = sum(
            _alike(slices[last], slices[k]) for last, k in pairwise(filled) if k == last + 1
        )
        if copies > MANY_COPIES * inside:
            notes.append(
                f"{copies} of {inside} {plane} slices are copies of their neighbours: a volume made"
                " of fewer slices"
            )
    return notes


def _blank(one: np.ndarray) -> bool:
    return np.ptp(one[::THINNED, ::THINNED]) == 0 and np.ptp(one) == 0


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    thin = (slice(None, None, THINNED),) * 2
    return np.array_equal(one[thin], other[thin]) and np.array_equal(one, other)
