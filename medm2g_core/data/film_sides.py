"""On which side of a frontal chest film the heart lies, and whether two films lie in one picture.

Nothing in a PNG says left or right, so a mirrored film looks like a patient whose heart lies on the
right. The heart is looked for twice: by the middle between the two lungs, low down against high up,
and by drawings of a heart on either side. Only where both agree is it told; a white lung or a
rotated patient moves the mediastinum too. So about half of the mirrored films stay unnoted:
``benchmarks/doubtful_files.py`` counts.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
from PIL import Image
from scipy import ndimage

from medm2g_core.data.film_views import film_pose, without_frame

__all__ = ["films_beside", "heart_side", "lung_pair"]

SIDE, DRAWN = 96, 32
"""Pixels of a film when its lungs are looked for, and of a drawing."""

LEVELS = np.arange(0.16, 0.6, 0.04)
"""Parts of a film that may be dark as a lung; which of them parts the two lungs is tried."""

LEAST_LUNG, LEAST_RATIO = 0.04, 0.4
"""A lung takes at least this part of the film, and this part of the other lung."""

LEAST_HEIGHT = 0.25
"""Of what the two lungs have in common, in sides of the film."""

TOUCHING = 0.05
"""Part of the rows in which one lung may lie over the other."""

HIGH, LOW = (0.1, 0.5), (0.55, 0.95)
"""Parts of the lungs' height beside the great vessels, and beside the heart."""

MIDDLE_MOVES, DRAWING_FITS = 0.015, 0.01
"""The middle between the lungs must move to one side by that part of the chest's width, and the
drawings of that side must be so much more like the film (correlation)."""


def heart_side(film: np.ndarray) -> str:
    """``"left"``, ``"right"`` (of the patient, who faces us), or ``""`` where it cannot be told.

    Args:
        film: (H, W), -1..1, bone bright, upright.
    """
    whole = without_frame(film.astype(np.float32))
    if min(whole.shape) < DRAWN:
        return ""
    likelier = _likelier_left(whole)
    lungs = lung_pair(whole) if abs(likelier) > DRAWING_FITS else None
    if lungs is None:
        return ""
    moved = _middle_moves(*lungs) * np.sign(likelier)
    return "" if moved < MIDDLE_MOVES else "left" if likelier > 0 else "right"


def lung_pair(film: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Masks (`SIDE`, `SIDE`) of the two dark fields of a film without frame, the left one of the
    picture first; ``None`` if there are not two alike."""
    small = np.asarray(Image.fromarray(film).resize((SIDE, SIDE), Image.Resampling.BOX))
    smooth = ndimage.gaussian_filter(small, SIDE / 80)
    best, pair = 0, None
    for shaded in (smooth, smooth - 0.7 * ndimage.gaussian_filter(smooth, SIDE / 5)):
        for level in LEVELS:
            dark = ndimage.binary_opening(shaded < np.quantile(shaded, level), iterations=2)
            labels, count = ndimage.label(dark)
            sizes = np.bincount(labels.ravel())
            sizes[0] = 0
            sizes[np.unique(np.concatenate([labels[:, 0], labels[:, -1], labels[0]]))] = 0
            if count < 2:
                continue
            first, second = np.argsort(-sizes)[:2]
            less, more = sizes[second], sizes[first]
            if less <= best or less < LEAST_LUNG * SIDE**2 or less < LEAST_RATIO * more:
                continue
            masks = [ndimage.binary_fill_holes(labels == n) for n in (first, second)]
            masks.sort(key=lambda mask: float(np.nonzero(mask)[1].mean()))
            best, pair = less, (masks[0], masks[1])
    return pair


def _middle_moves(right: np.ndarray, left: np.ndarray) -> float:
    """How far the middle between two lungs (masks of the patient's right and left one) moves to the
    picture's right from high to low, in widths of the chest; 0 where they do not lie side by
    side."""
    both = np.flatnonzero(right.any(axis=1) & left.any(axis=1))
    if len(both) < LEAST_HEIGHT * SIDE:
        return 0.0
    inner = [np.array([np.flatnonzero(m[y])[k] for y in both]) for m, k in ((right, -1), (left, 0))]
    outer = [np.array([np.flatnonzero(m[y])[k] for y in both]) for m, k in ((right, 0), (left, -1))]
    if (inner[0] >= inner[1]).mean() > TOUCHING:
        return 0.0
    middle = (inner[0] + inner[1]) / 2
    high, low = (slice(*(round(p * len(both)) for p in part)) for part in (HIGH, LOW))
    width = float(np.median(outer[1] - outer[0]))
    return float(np.mean(middle[low]) - np.median(middle[high])) / max(width, 1.0)


def _likelier_left(film: np.ndarray) -> float:
    """Best correlation with a drawing whose heart lies left, minus that of one with it right."""
    small = np.asarray(Image.fromarray(film).resize((DRAWN, DRAWN), Image.Resampling.BOX))
    even = small - 0.7 * ndimage.gaussian_filter(small, DRAWN / 4)  # exposure, habitus
    best = []
    for picture in (even, even[:, ::-1]):
        flat = picture.ravel() - picture.mean()
        best.append(float((_drawings() @ flat).max()) / max(float(np.linalg.norm(flat)), 1e-6))
    return best[0] - best[1]


# What the drawings differ in, in halves of the side: the lungs' middles and widths, where they lie
# down and how high, the axis, and the heart's middle and width.
_ACROSS = ((0.33, 0.22), (0.42, 0.30))
_DOWN = ((-0.3, 0.45), (-0.1, 0.6), (-0.1, 0.8), (0.1, 0.6))
_AXIS = (-0.16, -0.08, 0.0, 0.08, 0.16)
_HEART = ((0.10, 0.2), (0.14, 0.26), (0.2, 0.34))


@lru_cache(maxsize=1)
def _drawings() -> np.ndarray:
    """All drawings (n, DRAWN * DRAWN) of a heart on the left, each of mean 0 and length 1."""
    places = (np.arange(DRAWN) + 0.5) / DRAWN * 2 - 1
    y, across = np.meshgrid(places, places, indexing="ij")
    rows = []
    for (centre, width), (middle, height), axis, heart in product(_ACROSS, _DOWN, _AXIS, _HEART):
        x = across - axis
        film = np.full_like(x, 0.4)
        film[np.abs(x) < 0.12] = 0.8  # the spine
        film[y > middle + 0.75 * height + 0.06 * np.sign(x)] = 0.75  # the right dome is higher
        film[((np.abs(x) - centre) / width) ** 2 + ((y - middle) / height) ** 2 < 1] = -0.4
        low = (y - middle - 0.5 * height) / (0.42 * height)
        film[((x - heart[0]) / heart[1]) ** 2 + low**2 < 1] = 0.65
        drawn = np.asarray(ndimage.gaussian_filter(film, 1.0)).ravel()
        rows.append((drawn - drawn.mean()) / np.linalg.norm(drawn - drawn.mean()))
    return np.stack(rows)


HALF_LIKER = (0.1, 0.15)
"""Both halves of a picture must be so much more like a frontal film (correlation) than the whole:
the left and right one, and the upper and lower one, which arms and bellies make less unlike."""


def films_beside(film: np.ndarray) -> bool:
    """Whether a picture (H, W; -1..1) shows two frontal films, side by side or one above the
    other."""
    whole = without_frame(film.astype(np.float32))
    upright = film_pose(whole).upright
    rows, columns = (n // 2 for n in whole.shape)
    beside, above = (
        min(film_pose(half).upright for half in halves)
        for halves in (
            (whole[:, :columns], whole[:, -columns:]),
            (whole[:rows], whole[-rows:]),
        )
    )
    return beside > upright + HALF_LIKER[0] or above > upright + HALF_LIKER[1]
