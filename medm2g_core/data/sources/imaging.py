"""From the volumes and films of a data set to the square pictures of a study: one scale, one frame
for all streams."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from medm2g_core.data.files import square_picture
from medm2g_core.data.intensity import xray_to_unit
from medm2g_core.data.volumes import FileError, Volume
from medm2g_core.streams import hu_to_unit

__all__ = ["ct_to_unit", "film", "paired_slices"]


def ct_to_unit(hu: np.ndarray) -> np.ndarray:
    """`hu_to_unit` for arrays. Check with `medm2g_core.data.intensity.check_hu` first; padding of
    any depth becomes air."""
    return hu_to_unit(torch.from_numpy(np.ascontiguousarray(hu, dtype=np.float32))).numpy()


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
    picture = square_picture(
        unit, (1.0, 1.0), (rows / 2, columns / 2), float(max(rows, columns)), size
    )
    return torch.from_numpy(picture)[None]


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
    images = {
        n: torch.from_numpy(
            square_picture(np.ascontiguousarray(x[index]), spacing_mm, middle, side, size)
        )[None]
        for n, x in units.items()
    }
    return images, (side / size, side / size)
