"""From the volumes and films of a data set to the square pictures of a study: one scale, one frame for all streams."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from medm2g_core.data.files import mr_to_unit, square_picture, xray_to_unit
from medm2g_core.data.volumes import FileError, Volume
from medm2g_core.streams import CT_WINDOW_HU

__all__ = ["check_hu", "ct_to_unit", "film", "mr_volume_to_unit", "paired_slices"]


def ct_to_unit(hu: np.ndarray, window: tuple[float, float] = CT_WINDOW_HU) -> np.ndarray:
    """Hounsfield units to -1..1 in a window; padding below -1024 counts as air. Check with `check_hu` first."""
    hu = np.maximum(np.asarray(hu, dtype=np.float32), -1024)
    low, high = window
    return np.clip((hu - low) / (high - low) * 2 - 1, -1, 1)


def check_hu(array: np.ndarray, where: str, *, air: bool = True) -> None:
    """Refuse a CT volume whose values cannot be Hounsfield units.

    Args:
        air: whether the picture must hold air (a whole cross-section does; a narrow field of view may not).

    Raises:
        FileError: no soft tissue near 0 or, with ``air``, nothing near -1000: a rescale slope or intercept was lost.
    """
    sample = np.asarray(array)[tuple(slice(None, None, max(1, n // 128)) for n in np.shape(array))]
    low, high = float(sample.min()), float(sample.max())
    tissue = float(((sample > -200) & (sample < 300)).mean())
    if tissue < 0.005 or high < -200 or (air and low > -500):
        raise FileError(
            f"{where}: no plausible HU range, values {low:.4g}..{high:.4g} (air should be near -1000, soft tissue near "
            "0..100); check the rescale slope and intercept"
        )


def film(volume: Volume, size: int, notes: list[str]) -> torch.Tensor:
    """A radiograph as (1, size, size) in -1..1, bone bright, the whole film padded to a square.

    Raises:
        FileError: not one flat picture, or a blank one.
    """
    array = np.squeeze(volume.array)
    if array.ndim != 2:
        raise FileError(f"a volume of shape {volume.array.shape} stands where a radiograph should")
    if np.ptp(array) == 0:
        raise FileError(f"the film is blank: every value is {array.flat[0]:g}")
    unit = xray_to_unit(array, volume.window, volume.inverted, notes)
    rows, columns = unit.shape
    picture = square_picture(unit, (1.0, 1.0), (rows / 2, columns / 2), float(max(rows, columns)), size)
    return torch.from_numpy(picture)[None]


def paired_slices(
    units: Mapping[str, np.ndarray],
    index: int,
    spacing_mm: tuple[float, float],
    size: int,
    *,
    centre: tuple[float, float] | None = None,
    fov_mm: float | None = None,
) -> dict[str, torch.Tensor]:
    """Axial slice ``index`` of volumes on one grid, cut out with one frame: stream -> (1, size, size).

    Args:
        units: stream -> (slices, rows, columns), already in -1..1, all of one shape.
        spacing_mm: of rows and columns.
        centre: (row, column) in pixels, by default the middle.  fov_mm: side of the square, by default the longer side.

    Raises:
        FileError: volumes of different shapes, or no such slice.
    """
    shapes = {n: x.shape for n, x in units.items()}
    if len(set(shapes.values())) != 1:
        raise FileError(f"the streams are not on one grid: {shapes}")
    depth, rows, columns = next(iter(shapes.values()))
    if not 0 <= index < depth:
        raise FileError(f"slice {index} does not exist; the volume has 0..{depth - 1}")
    middle = centre or (rows / 2, columns / 2)
    side = fov_mm or max(rows * spacing_mm[0], columns * spacing_mm[1])
    return {
        n: torch.from_numpy(square_picture(np.ascontiguousarray(x[index]), spacing_mm, middle, side, size))[None]
        for n, x in units.items()
    }


def mr_volume_to_unit(array: np.ndarray, stream_name: str) -> np.ndarray:
    """A whole MR volume to -1..1 by its own percentiles, so that all its slices share one scale (`mr_to_unit`)."""
    return mr_to_unit(array, array, stream_name)
