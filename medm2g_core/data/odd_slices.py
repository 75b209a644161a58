"""Slices of a volume that hold nothing, or what their neighbour holds: what a download that broke
off, a tool that fills gaps, or a stack made of one picture leaves."""

from __future__ import annotations

import numpy as np

__all__ = ["odd_slices"]

MUCH_BLANK = 1 / 3
"""Part of the slices along one axis that may be blank at the ends: room about a head or a body, and
what registering cuts off, take less."""

MANY_COPIES = 0.1
"""Part of the slices that may be like the one before. Padding that repeats an edge takes less, and
noise makes no two slices of a scanner alike."""

AXES = ("axial", "coronal", "sagittal")


def odd_slices(array: np.ndarray) -> list[str]:
    """Notes on the blank and the repeated slices of a volume (S, A, R)."""
    notes = []
    for axis, plane in enumerate(AXES):
        slices = np.moveaxis(array, axis, 0)
        count = len(slices)
        if count < 3:
            continue
        filled = np.flatnonzero([s.min() != s.max() for s in slices])
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
                f"{outside} of {count} {plane} slices are blank: is the file whole, or cut it"
            )
        copies = sum(
            bool(np.array_equal(slices[k], slices[k - 1]))
            for k in filled[1:]
            if slices[k - 1].min() != slices[k - 1].max()
        )
        if copies > MANY_COPIES * inside:
            notes.append(
                f"{copies} of {inside} {plane} slices are copies of their neighbours: a volume made"
                " of fewer slices"
            )
    return notes
