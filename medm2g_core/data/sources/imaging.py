"""From the volumes and films of a data set to the square pictures of a study: one scale, one frame
for all streams."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from medm2g_core.data.files import square_picture
from medm2g_core.data.intensity import xray_to_unit
from medm2g_core.data.plausibility import (
    NOISE_CORRELATION,
    check_film_frame,
    check_values,
    heed,
    neighbour_correlation,
)
from medm2g_core.data.volumes import FileError, Volume
from medm2g_core.streams import hu_to_unit

__all__ = [
    "check_shows_something",
    "check_whole",
    "ct_to_unit",
    "film",
    "paired_slices",
]

# What no picture of a patient is. Real films and slices are far from each of these limits.
FILLED_STEP = 0.02
"""A hundredth of the range -1..1: pixels closer than this to the median are the background."""
MIN_FILLED = 0.01
"""A picture of which less than this part differs from its background shows nothing."""
MIN_SPREAD = 0.2
"""A tenth of the range -1..1 lies at least between the 0.5th and 99.5th percentile of a film."""
MAX_CUT_ROWS = 1 / 3
"""A film may end in so many rows of one value (a collimator's edge); one cut off ends in more."""
MAX_BLANK_SLICES = 0.2
"""A volume may begin or end in so many slices of one value."""
ABRUPT = 0.5
"""Beside a slice of one value anatomy tapers off: a slice that is filled by more than this part of
the fullest one stands beside a hole in the file."""


def ct_to_unit(hu: np.ndarray) -> np.ndarray:
    """`hu_to_unit` for arrays. Check with `medm2g_core.data.intensity.check_hu` first; padding of
    any depth becomes air."""
    return hu_to_unit(torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32))).numpy()


def check_shows_something(unit: np.ndarray, where: str = "") -> None:
    """Refuse a picture (rows, columns) in -1..1 that is blank or nothing but noise.

    Raises:
        FileError: as said.
    """
    before = f"{where}: " if where else ""
    if float((np.abs(unit - np.median(unit)) > FILLED_STEP).mean()) < MIN_FILLED:
        raise FileError(f"{before}the picture is blank: it hardly differs from one grey value")
    if neighbour_correlation(unit) < NOISE_CORRELATION:
        raise FileError(f"{before}the picture is noise: neighbouring pixels have nothing in common")


def check_whole(array: np.ndarray, where: str) -> None:
    """Refuse a volume (S, A, R) with a block of slices of one value where anatomy should be, as an
    interrupted download or a damaged drive leaves it in files without checksums.

    Raises:
        FileError: more than `MAX_BLANK_SLICES` of the slices at an end, or any between two full
            ones, hold one value, and the anatomy beside them does not taper off.
    """
    for axis, name in enumerate(("axial", "coronal", "sagittal")):
        rest = tuple(a for a in range(3) if a != axis)
        low, high = array.min(axis=rest), array.max(axis=rest)
        blank = low == high
        if not blank.any() or blank.all():
            continue
        count = len(blank)
        edges = np.flatnonzero(np.diff(np.concatenate(([0], blank, [0]))))
        for start, stop in zip(edges[::2], edges[1::2], strict=True):
            filled = (np.moveaxis(array, axis, 0) != low[start]).mean(axis=(1, 2))
            # The slice next to the hole may have been written in part, so the one after it counts.
            beside = [filled[k] for k in (start - 2, stop + 1) if 0 <= k < count]
            abrupt = [f > ABRUPT * filled.max() for f in beside]
            between = start > 0 and stop < count and len(abrupt) == 2 and all(abrupt)
            if between or (any(abrupt) and stop - start > MAX_BLANK_SLICES * count):
                raise FileError(
                    f"{where}: {stop - start} of {count} {name} slices hold nothing but"
                    f" {low[start]:g} beside full ones; the file is damaged, download it again"
                )


def film(volume: Volume, size: int, notes: list[str]) -> torch.Tensor:
    """A radiograph as (1, size, size) in -1..1, bone bright, the whole film padded to a square.

    Raises:
        FileError: not one flat picture, a blank one, a mask or label map, noise, or one whose
            lower part is missing.
    """
    array = np.squeeze(volume.array)
    if array.ndim != 2:
        raise FileError(f"a volume of shape {volume.array.shape} stands where a radiograph should")
    if np.ptp(array) == 0:
        raise FileError(f"the film is blank: every value is {array.flat[0]:g}")
    heed(check_values(array, volume.facts, "xray"), notes)
    window = volume.window
    unit = xray_to_unit(array, window, volume.inverted, notes)
    check_shows_something(unit)
    # As it is stored: `xray_to_unit` stretches what spans little of its window.
    low, high = np.quantile(array, (0.005, 0.995))
    spread = (high - low) / (window[1] - window[0] if window else np.ptp(array))
    if spread < MIN_SPREAD / 2:
        raise FileError(f"the film is nearly blank: its values span {spread:.1%} of their range")
    above, below = _rows_of_one_value(unit), _rows_of_one_value(unit[::-1])
    if below > MAX_CUT_ROWS and below > 2 * above:
        raise FileError(
            f"the lowest {below:.0%} of the film is one grey value: it was cut off, download it"
            " again"
        )
    heed(check_film_frame(unit), notes)
    rows, columns = unit.shape
    picture = square_picture(
        unit, (1.0, 1.0), (rows / 2, columns / 2), float(max(rows, columns)), size
    )
    return torch.from_numpy(picture)[None]


def _rows_of_one_value(unit: np.ndarray) -> float:
    """Part of the rows, from the first one on, that hold one and the same value."""
    same = (unit == unit[0, 0]).all(axis=1)
    return float(np.logical_and.accumulate(same).mean())


def paired_slices(
    units: Mapping[str, np.ndarray],
    index: int,
    spacing_mm: tuple[float, float],
    size: int,
    *,
    centre: tuple[float, float] | None = None,
    fov_mm: float | None = None,
) -> tuple[dict[str, torch.Tensor], tuple[float, float]]:
    """Axial slice ``index`` of volumes on one grid, cut out with one frame.

    Args:
        units: stream -> (slices, rows, columns), already in -1..1, all of one shape.
        spacing_mm: of rows and columns.
        centre: (row, column) in pixels, by default the middle.  fov_mm: side of the square, by
            default the longer side.

    Returns:
        stream -> (1, size, size), and the spacing of these pictures in mm.

    Raises:
        FileError: volumes of different shapes, no such slice, or one that is blank or noise in any
            of them.
    """
    shapes = {n: x.shape for n, x in units.items()}
    if len(set(shapes.values())) != 1:
        raise FileError(f"the streams are not on one grid: {shapes}")
    depth, rows, columns = next(iter(shapes.values()))
    if not 0 <= index < depth:
        raise FileError(f"slice {index} does not exist; the volume has 0..{depth - 1}")
    for name, x in units.items():
        check_shows_something(x[index], f"slice {index} of {name}")
    middle = centre or (rows / 2, columns / 2)
    side = fov_mm or max(rows * spacing_mm[0], columns * spacing_mm[1])
    images = {
        n: torch.from_numpy(
            square_picture(np.ascontiguousarray(x[index]), spacing_mm, middle, side, size)
        )[None]
        for n, x in units.items()
    }
    return images, (side / size, side / size)
