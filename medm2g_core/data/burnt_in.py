"""What was put into a picture or lies over it: plates of one grey (labels, black boxes), and
noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

__all__ = ["noise_level", "plate_share"]

EVEN = 0.012
"""Largest difference within 3 x 3 pixels of a plate: one and a half levels of 8 bits. Noise and
anatomy have more but where they are clipped, and there they are no rectangles."""

RECTANGLE = 0.85
"""Part of its bounding box that a plate takes, once the words on it are filled in."""

LEAST_PLATE = 0.008
"""Part of the picture from which a plate is told: 11 x 11 of 128 x 128 pixels."""

LEAST_PIXELS = 100
"""The same for small pictures: a smooth part of anatomy is soon as large as fewer."""

DARK_PART = 0.15
"""A plate at the edge of the picture that is no brighter than its darkest pixels, so many of them,
is background, collimation or padding."""

NORMAL_MEDIAN = 0.6745
"""Median of the absolute value of a normal variable of deviation 1."""

SIGNAL = -0.97
"""Below it noise is clipped or was set to nothing: background."""


def plate_share(picture: np.ndarray) -> float:
    """Part of a picture (H, W; -1..1) that plates of one grey cover, 0..1: rectangles as of a
    label or of a box that hides a name, not the dark frame of the picture."""
    spread = ndimage.maximum_filter(picture, 3) - ndimage.minimum_filter(picture, 3)
    labels, _ = ndimage.label(spread < EVEN)
    rows, columns = picture.shape
    darkest = float(np.quantile(picture, DARK_PART))
    total = 0
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        height, width = (s.stop - s.start + 2 for s in place)  # its rim is not even
        if height * width < max(LEAST_PLATE * picture.size, LEAST_PIXELS):
            continue
        inside = ndimage.binary_fill_holes(labels[place] == number)
        at_edge = any(
            s.start == 0 or s.stop == n for s, n in zip(place, picture.shape, strict=True)
        )
        whole_side = height >= rows or width >= columns
        dark = float(np.median(picture[place][inside])) <= darkest
        if inside.mean() > RECTANGLE and not whole_side and not (dark and at_edge):
            total += height * width
    return min(1.0, total / picture.size)


def noise_level(picture: np.ndarray) -> float:
    """Standard deviation of the noise in a picture (H, W; -1..1), in its units: the median of mixed
    second differences, which smooth shading and most edges leave out (Donoho and Johnstone,
    Biometrika 81:425, 1994, take the median of the finest wavelets, and so does scikit-image's
    ``estimate_sigma``, which needs another package, PyWavelets)."""
    mixed = picture[1:, 1:] + picture[:-1, :-1] - picture[1:, :-1] - picture[:-1, 1:]
    shown = np.minimum(picture[1:, 1:], picture[:-1, :-1]) > SIGNAL
    if shown.mean() < LEAST_PLATE:
        return 0.0
    return float(np.median(np.abs(mixed[shown]))) / NORMAL_MEDIAN / 2
