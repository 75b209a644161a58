"""How a chest film lies: frontal and upright, on its side, upside down, lateral, or a negative.

The picture is compared with drawings of what every frontal film shows: two dark lungs beside a
bright middle, and a bright belly. It is turned by 90, 180 and 270 degrees and negated, and the best
correlation of each is told; the differences between these say how it lies.

Measured on the 300 films of the cohort's validation split, as they are and newly acquired
(`medm2g_core.data.acquisition`, strength 1), and on 574 real frontal films of public collections,
sick ones and portable ones among them. The limits are in `medm2g_core.data.plausibility`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image
from scipy import ndimage

__all__ = ["FilmPose", "film_pose", "lung_contrast", "without_frame"]

SIDE = 24
"""Pixels of a drawing: coarser than ribs, finer than lungs."""

PLAIN = 0.1
"""Spread of nine tenths of a row below which it shows nothing; noise of a frame is less."""

# What the drawings differ in, in halves of the picture's side (-1..1 from edge to edge): where the
# lungs' middles lie across and how wide they are, where they lie down and how high, what is beside
# the body (tissue, air above the shoulders, air above them and at the sides), and the axis.
_ACROSS = ((0.33, 0.22), (0.42, 0.30))
_DOWN = ((-0.4, 0.45), (-0.1, 0.6), (-0.1, 0.8), (0.1, 0.6))
_AIR = ("none", "shoulders", "sides")
_AXIS = (-0.12, 0.0, 0.12)

# Brightness of the parts.
_TISSUE, _SPINE, _BELLY, _HEART, _LUNG, _OUTSIDE = 0.4, 0.8, 0.75, 0.65, -0.4, -0.85


@dataclass(frozen=True)
class FilmPose:
    """Best correlation with a drawing of a frontal film, -1..1.

    Attributes:
        upright: of the picture as it is.
        on_side: of the better one of the two turned by 90 degrees.
        upside_down: turned by 180 degrees.
        negative: of its negative.
    """

    upright: float
    on_side: float
    upside_down: float
    negative: float


def film_pose(picture: np.ndarray) -> FilmPose:
    """How like a frontal film a picture is, turned and negated.

    Args:
        picture: (H, W), -1..1, bone bright.
    """
    film = without_frame(picture.astype(np.float32))
    if min(film.shape) < SIDE:
        return FilmPose(0.0, 0.0, 0.0, 0.0)
    small = np.asarray(Image.fromarray(film).resize((SIDE, SIDE), Image.Resampling.BOX))
    turned = np.stack([np.rot90(small, k) for k in range(4)]).reshape(4, -1)
    likeness = _unit_rows(turned) @ _drawings().T
    best = likeness.max(axis=1)
    return FilmPose(
        float(best[0]),
        float(max(best[1], best[3])),
        float(best[2]),
        float(-likeness[0].min()),
    )


def without_frame(picture: np.ndarray) -> np.ndarray:
    """A picture without the rows and columns along its edge that hold one grey: what pads it to a
    square, and what a collimator leaves black."""
    film = picture
    for _ in range(2):  # rows, then columns; and turned back
        low, high = np.quantile(film, (0.1, 0.9), axis=1)
        filled = np.flatnonzero(high - low > PLAIN)
        if not len(filled):
            return picture  # nothing tells a frame from a film
        film = film[filled[0] : filled[-1] + 1].T
    return film


def _unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows of mean 0 and length 1; of 0 where a row is flat."""
    centred = values - values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return centred / np.where(length > 0, length, 1.0)


@lru_cache(maxsize=1)
def _drawings() -> np.ndarray:
    """All drawings (n, SIDE * SIDE), each of mean 0 and length 1."""
    drawn = [
        _drawing(*across, *down, air, axis)
        for across in _ACROSS
        for down in _DOWN
        for air in _AIR
        for axis in _AXIS
    ]
    return _unit_rows(np.stack(drawn).reshape(len(drawn), -1))


def _drawing(
    centre: float, width: float, middle: float, height: float, air: str, axis: float
) -> np.ndarray:
    """A frontal film (SIDE, SIDE) in a few strokes, the patient's right on the left."""
    places = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    y, whole = np.meshgrid(places, places, indexing="ij")
    x = whole - axis
    film = np.full_like(x, _TISSUE)
    film[np.abs(x) < 0.12] = _SPINE
    film[y > middle + 0.75 * height] = _BELLY
    film[((np.abs(x) - centre) / width) ** 2 + ((y - middle) / height) ** 2 < 1] = _LUNG
    film[((x - 0.12) / 0.22) ** 2 + ((y - middle - 0.5 * height) / 0.32) ** 2 < 1] = _HEART
    if air != "none":
        film[(np.abs(x) > 0.45) & (y < -0.75)] = _OUTSIDE
    if air == "sides":
        film[np.abs(x) > 0.88] = _OUTSIDE
    return np.asarray(ndimage.gaussian_filter(film, 0.8))


def lung_contrast(picture: np.ndarray) -> float:
    """Middle of a frontal chest film (H, W) minus the brighter one of its lung fields, in the
    picture's units."""
    rows, columns = picture.shape
    band = picture[round(0.25 * rows) : round(0.6 * rows)]
    middle = band[:, round(0.45 * columns) : round(0.55 * columns)]
    sides = [
        band[:, round(a * columns) : round(b * columns)] for a, b in ((0.2, 0.38), (0.62, 0.8))
    ]
    return float(np.median(middle)) - float(max(np.median(s) for s in sides))
