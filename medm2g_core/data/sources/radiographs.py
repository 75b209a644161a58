"""One radiograph as a square picture, from DICOM, PNG or JPEG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from medm2g_core.data.files import read_volume
from medm2g_core.data.sources.imaging import film
from medm2g_core.data.volumes import FileError, blame

__all__ = ["Film", "read_film"]


@dataclass(frozen=True)
class Film:
    """A radiograph that was read.

    Attributes:
        image: (1, size, size), -1..1, bone bright, as displayed.
        spacing_mm: of `image`; NaN where the file does not tell.
        kind: ``"dicom"``, ``"png"`` or ``"jpeg"``.
        notes: what was done, in words.
    """

    image: torch.Tensor
    spacing_mm: tuple[float, float]
    kind: str
    notes: tuple[str, ...]


def read_film(
    path: Path, size: int, trim: Callable[[np.ndarray, list[str]], np.ndarray] | None = None
) -> Film:
    """A radiograph from DICOM, PNG or JPEG, told apart by content; MONOCHROME1 is inverted.

    Args:
        trim: cuts off what is not the picture; gets the values (rows, columns) and the notes.

    Raises:
        FileError: missing, broken, blank, a colour picture, or not one flat picture.
    """
    volume = read_volume(path, "xray")
    if volume.kind == "png":  # Pillow decodes pixels without a look at their checksums
        with blame(path, "comparing the PNG's checksums"), Image.open(path) as picture:
            picture.verify()
    if volume.kind not in ("dicom", "png", "jpeg"):
        raise FileError(f"{path}: a {volume.kind} file; radiographs come as DICOM, PNG or JPEG")
    notes = list(volume.notes)
    if trim is not None:
        volume.array = trim(np.squeeze(volume.array), notes)
    try:
        image = film(volume, size, notes)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
    # The film was padded to a square of its longer side. Unequal spacings would need a resampling
    # that no set needs.
    rows, columns = volume.array.shape[-2:]
    spacing = float(volume.spacing_mm[-1]) * max(rows, columns) / size
    return Film(image, (spacing, spacing), volume.kind, tuple(notes))
