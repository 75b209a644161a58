"""Figures of articles as they were cut out of a page: the picture without the paper around it."""

from __future__ import annotations

import numpy as np

from medm2g_core.data.volumes import FileError

__all__ = ["without_print"]

WHITE = 0.94
"""Of the brightest value: paper, also after a lossy compression."""
PAPER_ROW = 0.5
"""A row of a page is white to at least this part, where a line of print runs through it."""
BLANK_ROW = 0.98
"""Between picture and print there are rows that are white to this part."""
MIN_KEPT = 0.3
"""If less of the height or width would be left, the figure is no picture with print around it."""


def without_print(picture: np.ndarray, notes: list[str]) -> np.ndarray:
    """A picture (rows, columns) without white margins and lines of print above or below it.

    A band at an edge is cut off if all of its rows are mostly white and the one next to the picture
    is blank. What is printed into the picture stays.

    Raises:
        FileError: nearly nothing is left: a page of print, or a drawing on white.
    """
    white = picture >= WHITE * picture.max()
    top, bottom = _band(white), len(white) - _band(white[::-1])
    inside = white[top:bottom]
    left, right = _margin(inside.T), inside.shape[1] - _margin(inside.T[::-1])
    rows, columns = bottom - top, right - left
    if rows < MIN_KEPT * picture.shape[0] or columns < MIN_KEPT * picture.shape[1]:
        raise FileError(
            "the figure is mostly white paper: print or a drawing, no radiograph or scan"
        )
    if (rows, columns) != picture.shape:
        notes.append(
            f"white paper and print around the picture cut off: {rows} x {columns} of"
            f" {picture.shape[0]} x {picture.shape[1]} pixels left"
        )
    return picture[top:bottom, left:right]


def _margin(white: np.ndarray) -> int:
    """Rows that are white from the first one on."""
    return int(np.logical_and.accumulate(white.mean(axis=1) >= BLANK_ROW).sum())


def _band(white: np.ndarray) -> int:
    """Rows from the first one on that belong to the page: up to the last blank row of those that
    are mostly white."""
    share = white.mean(axis=1)
    paper = int(np.logical_and.accumulate(share >= PAPER_ROW).sum())
    blank = np.flatnonzero(share[:paper] >= BLANK_ROW)
    return int(blank[-1]) + 1 if blank.size else 0
