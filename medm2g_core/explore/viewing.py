"""What a three-plane viewer is shown of the user's volume, and which slice a place in it is.

The viewer gets grey values and their spacing, made here from the array alone: nothing of a header,
no name and no identifier can be in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import nibabel as nib
import numpy as np

from medm2g_core.data.volumes import PLANES, Volume
from medm2g_core.streams import CT_WINDOW_HU

__all__ = ["MAX_KEPT_VOXELS", "MAX_SHOWN_VOXELS", "View", "fits_memory", "is_volume", "view_of"]

MAX_KEPT_VOXELS = 64 * 1024 * 1024
"""Of a volume that stays in memory while its slices are chosen: a CT of 512 by 512 by 256, a
quarter of a gigabyte."""

MAX_SHOWN_VOXELS = 4 * 1024 * 1024
"""Of what the viewer gets, a byte each: it travels to the browser, which sends a copy back."""

PERCENTILES = (0.5, 99.5)
"""Of an MR's values, which become black and white: single bright voxels must not darken all."""


def is_volume(volume: Volume) -> bool:
    """Whether there are three planes to choose in, and not one picture or one slice."""
    return volume.array.ndim == 3 and min(volume.array.shape) > 1


def fits_memory(volume: Volume) -> bool:
    """Whether a volume may be kept."""
    return volume.array.size <= MAX_KEPT_VOXELS


@dataclass(frozen=True)
class View:
    """A volume as a viewer is given it.

    Places are (axial, coronal, sagittal) slice numbers of the volume, counted from the head, from
    the front and from the patient's right, as `medm2g_core.data.files.read_stream` counts them.

    Attributes:
        nifti: a NIfTI file of uint8 grey values in RAS+ order; voxel 0, 0, 0 of the volume lies at
            0, 0, 0 mm.
        shape: of the volume.
        steps: every how many-th slice of the volume is in it.
        spacing_mm: of the volume; 1 where the file does not tell.
    """

    nifti: bytes = field(repr=False)
    shape: tuple[int, int, int]
    steps: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]

    def place(self, mm: Sequence[float]) -> tuple[int, int, int]:
        """The shown slices that meet nearest to a point.

        Args:
            mm: (x, y, z) in the viewer's millimetres, RAS+.
        """
        numbers = [-v / s for v, s in zip(reversed(mm[:3]), self.spacing_mm, strict=True)]
        return self._shown(numbers)

    def fraction(self, place: Sequence[int]) -> tuple[float, float, float]:
        """(x, y, z) of a place as fractions of the viewer's volume, RAS+; the nearest that is
        shown, and always the middle of a voxel."""
        out = []
        for number, step, count in zip(self._shown(place), self.steps, self.shape, strict=True):
            shown = math.ceil(count / step)
            out.append((shown - 1 - number // step + 0.5) / shown)
        return out[2], out[1], out[0]

    def has(self, place: Sequence[int]) -> bool:
        """Whether the volume has these slices."""
        return all(0 <= number < count for number, count in zip(place, self.shape, strict=True))

    def words(self, place: Sequence[int]) -> str:
        """A place in a sentence, and what the viewer leaves out."""
        parts = zip(PLANES, place, self.shape, strict=True)
        where = ", ".join(f"{plane} {number} of {count}" for plane, number, count in parts)
        said = f"Cross-hair at {where}; counted from head, front and the patient's right."
        if max(self.steps) > 1:
            steps = ", ".join(f"{plane} {n}" for plane, n in zip(PLANES, self.steps, strict=True))
            said += f" Large, so not every slice is shown; in steps of {steps}."
        return said

    def _shown(self, numbers: Sequence[float]) -> tuple[int, int, int]:
        out = []
        for number, step, count in zip(numbers, self.steps, self.shape, strict=True):
            last = math.ceil(count / step) - 1
            out.append(step * min(max(math.floor(number / step + 0.5), 0), last))
        return out[0], out[1], out[2]


def view_of(volume: Volume, stream: str) -> View:
    """Grey values of a volume for a viewer.

    Too large a volume is thinned by leaving slices out, most where they lie closest, so that every
    slice in the viewer is one that can be taken, pixel for pixel.

    Args:
        volume: with `is_volume`.
        stream: its name; a CT is shown on the stream's scale of Hounsfield units, all others from
            their darkest to their brightest.
    """
    spacing = tuple(s if math.isfinite(s) and s > 0 else 1.0 for s in volume.spacing_mm)
    steps = _steps(volume.array.shape, spacing)
    array = volume.array[tuple(slice(None, None, n) for n in steps)]
    low, high = CT_WINDOW_HU if stream == "ct" else np.percentile(array, PERCENTILES)
    grey = np.clip((array - low) / max(float(high - low), 1e-6), 0, 1)
    if volume.inverted:
        grey = 1 - grey
    ras = np.rint(grey[::-1, ::-1, ::-1].transpose(2, 1, 0) * 255).astype(np.uint8)
    size = [s * n for s, n in zip(spacing, steps, strict=True)][::-1]
    affine = np.diag([*size, 1.0])
    affine[:3, 3] = [-(n - 1) * s for n, s in zip(ras.shape, size, strict=True)]
    image = nib.Nifti1Image(ras, affine)
    image.header.set_xyzt_units("mm")
    s, a, r = volume.array.shape
    return View(image.to_bytes(), (s, a, r), steps, (spacing[0], spacing[1], spacing[2]))


def _steps(shape: Sequence[int], spacing: Sequence[float]) -> tuple[int, int, int]:
    steps = [1, 1, 1]
    while math.prod(math.ceil(n / k) for n, k in zip(shape, steps, strict=True)) > MAX_SHOWN_VOXELS:
        finest = min(range(3), key=lambda a: (spacing[a] * steps[a], -shape[a]))
        steps[finest] += 1
    return steps[0], steps[1], steps[2]
