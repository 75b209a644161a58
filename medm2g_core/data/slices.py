"""From a volume to the slice of it that a model sees: which slice, where the body is in it, and how
many millimetres to show."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy import ndimage

from medm2g_core.data.volumes import FileError, Volume

__all__ = [
    "CHEST_FOV_MM",
    "HEAD_FILL",
    "MIN_PIXELS",
    "SMALL_FOV_MM",
    "Plane",
    "body_box_mm",
    "body_mask",
    "cut_slice",
    "field_of_view",
]

CHEST_FOV_MM = 358.4
"""Side of a chest picture: 128 pixels of 2.8 mm, the grid of the virtual patients."""

HEAD_FILL = 0.92
"""Part of a brain picture's side that the longer side of the head takes."""

SMALL_FOV_MM = 200.0
"""A CT narrower than this may hold no air, and is fitted to the picture instead of shown on the
chest's scale."""

VERTEX_TO_SLICE_MM = 70.0
"""The middle slice of a head that was imaged with its neck: this far below the vertex (body of the
ventricles)."""

MIN_PIXELS = 16
Plane = Literal["auto", "axial", "coronal"]
_AXIS = {"axial": 0, "coronal": 1, "sagittal": 2}


def cut_slice(
    array: np.ndarray, volume: Volume, name: str, plane: Plane, index: int | None
) -> tuple[np.ndarray, tuple[float, float], str, int | None]:
    """One slice (rows, columns) of a volume with its spacing, plane and number; a flat picture as
    it is. The number is ``None`` where there was but one.

    Args:
        array: the values of ``volume``, checked.
        name, plane, index: as in `medm2g_core.data.files.read_stream`.

    Raises:
        FileError: no such slice, or one that is too small or has unknown proportions.
    """
    notes = volume.notes
    if array.ndim == 2:
        if plane != "auto" or index is not None:
            notes.append("a single flat picture: plane and index ignored")
        sizes = zip(volume.spacing_mm, volume.array.shape, strict=True)
        kept = [s for s, n in sizes if n > 1 or volume.array.ndim == 2]
        pair = (kept[0], kept[1]) if len(kept) == 2 else (float("nan"), float("nan"))
        return array, pair, volume.tags.get("plane") or "flat", None
    counts = dict(zip(_AXIS, array.shape, strict=True))
    spacing = dict(zip(_AXIS, volume.spacing_mm, strict=True))
    span = counts["axial"] * spacing["axial"]
    chosen: str = plane
    if plane == "auto":
        thick = volume.acquired and spacing[volume.acquired] > 3 * min(spacing.values())
        single = [p for p, n in counts.items() if n == 1]
        if single:
            chosen = single[0]
        elif name == "ct" and counts["axial"] >= 24 and span >= 150:
            chosen = "coronal"
        elif name != "ct" and thick:
            chosen = volume.acquired
        else:
            chosen = "axial"
        known = [p for p, s in spacing.items() if math.isfinite(s)]
        if len(known) < 3:  # slices across would have unknown proportions
            chosen = volume.acquired or "axial"
        if name == "ct" and chosen != "coronal" and not volume.tags:
            notes.append(f"{chosen} slice shown; the model was trained on coronal chest slices")
        if name != "ct" and chosen != "axial" and not volume.tags:
            notes.append(
                f"{chosen} slice shown, as acquired; the model was trained on axial brain slices"
            )
    axis, count = _AXIS[chosen], counts[chosen]
    across = [math.isfinite(spacing[p]) for p in _AXIS if p != chosen]
    if (any(across) and not all(across)) or (not any(across) and chosen != _as_made(volume)):
        raise FileError(
            f"no pixel spacing in the header, so the proportions of a {chosen} slice are not known;"
            f" ask for {_as_made(volume)} slices, as acquired"
        )
    rest = [n for p, n in counts.items() if p != chosen]
    if min(rest) < MIN_PIXELS:
        shape = " x ".join(str(n) for n in array.shape)
        hint = f"; the images are {volume.acquired}" if volume.acquired not in ("", chosen) else ""
        raise FileError(
            f"the {chosen} slice would be {rest[0]} x {rest[1]} pixels, too small (volume {shape}, "
            f"needed at least {MIN_PIXELS} each way){hint}"
        )
    if index is None:
        index = _middle(array, volume.spacing_mm, axis, name) if count > 1 else 0
    if not 0 <= index < count:
        raise FileError(f"{chosen} slice {index} does not exist; the volume has 0..{count - 1}")
    if count > 1:
        notes.append(f"{chosen} slice {index} of {count}")
    rows, columns = (spacing[p] for p in _AXIS if p != chosen)
    number = index if count > 1 else None
    return np.take(array, index, axis=axis), (rows, columns), chosen, number


def _middle(array: np.ndarray, spacing: tuple[float, ...], axis: int, name: str) -> int:
    """Slice through the middle of the body's mass; for a head with neck, `VERTEX_TO_SLICE_MM` below
    the vertex."""
    steps = tuple(max(1, int(4 / s)) if s > 0 else 1 for s in spacing)
    body = body_mask(array[tuple(slice(None, None, n) for n in steps)], name)
    profile = body.sum(axis=tuple(a for a in range(3) if a != axis)).astype(float)
    if not profile.any():
        return array.shape[axis] // 2
    filled = np.flatnonzero(profile)
    if name != "ct" and axis == 0:
        top, bottom = filled[0] * steps[0], filled[-1] * steps[0]
        if (bottom - top) * spacing[0] >= 2 * VERTEX_TO_SLICE_MM:
            return int(top + VERTEX_TO_SLICE_MM / spacing[0])
        return int((top + bottom) // 2)
    middle = float((profile * np.arange(len(profile))).sum() / profile.sum()) * steps[axis]
    return min(array.shape[axis] - 1, round(middle))


def body_mask(values: np.ndarray, name: str) -> np.ndarray:
    """Mask of the body: CT above -500 HU, MR above Otsu's threshold of the smoothed signal; largest
    connected part."""
    if name == "ct":
        mask = values > -500
    else:
        from skimage.filters import threshold_otsu

        smooth = ndimage.gaussian_filter(
            values.astype(np.float32), [1.0 if n > 8 else 0.0 for n in values.shape]
        )
        mask = smooth > 0.6 * threshold_otsu(smooth)
    opened = ndimage.binary_opening(mask)  # parts the table from the back
    labels, count = ndimage.label(opened if opened.any() else mask)
    if count == 0:
        return np.asarray(mask)
    return labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))


def field_of_view(
    shape: tuple[int, ...],
    spacing: tuple[float, float],
    body: np.ndarray | None,
    name: str,
    notes: list[str],
) -> tuple[tuple[float, float], float]:
    """Centre (row, column in pixels) and side in mm (pixels if the spacing is unknown) of the
    square to show."""
    extent = (shape[0] * spacing[0], shape[1] * spacing[1])
    centre, whole = (shape[0] / 2, shape[1] / 2), max(extent)
    if name == "xray":
        return centre, max(whole, CHEST_FOV_MM) if 200 < whole < 600 and body is not None else whole
    if body is None or not body.any():
        return centre, whole
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    middle = ((rows[0] + rows[-1] + 1) / 2, (columns[0] + columns[-1] + 1) / 2)
    box = body_box_mm(body, spacing)
    if name == "ct":
        if whole < SMALL_FOV_MM:
            notes.append(
                f"small field of view ({extent[0]:.0f} x {extent[1]:.0f} mm) enlarged to fill the"
                " picture"
            )
            return centre, whole
        if max(box) > CHEST_FOV_MM + 3:
            notes.append(
                f"the body is {max(box):.0f} mm, the picture {CHEST_FOV_MM:.0f} mm: the edges"
                " are cut"
            )
        return middle, CHEST_FOV_MM
    if min(box[0] / extent[0], box[1] / extent[1]) < 0.4:
        notes.append("no head found in the slice: the whole picture is shown")
        return centre, whole
    return middle, float(max(box)) / HEAD_FILL


def _as_made(volume: Volume) -> str:
    """The plane in which a volume without spacing is shown."""
    return volume.acquired or "axial"


def body_box_mm(body: np.ndarray, spacing: tuple[float, float]) -> tuple[float, float]:
    """Height and width in mm of the bounding box of a mask that is not empty."""
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    return (
        float((rows[-1] - rows[0] + 1) * spacing[0]),
        float((columns[-1] - columns[0] + 1) * spacing[1]),
    )
