"""Whether a chest CT lies as its header says, spine behind, narrow tips of the lungs above, heart
on the left; and whether there is one body in it.

A NIfTI that was written with the wrong matrix looks right to every reader. Anatomy tells. How often
it does: ``benchmarks/doubtful_files.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

__all__ = ["ChestFacts", "chest_facts"]

GRID_MM = 5.0
"""The volume is looked at so coarsely."""

AIR_HU, TISSUE_HU, BONE_HU = -500.0, -300.0, 200.0

LEAST_SLICES, LEAST_LUNG_MM = 12, 120.0
"""Of that grid, and the lungs' height, from which directions are told: else they are cut."""

ONE_LUNG = 0.1
"""Parts of the air in the body this small beside the largest are no lungs."""

TIP = 0.12
"""Part of the lungs' height at either end that is compared."""

MIDDLE, HEART = 0.12, 0.3
"""Half widths of the zone of the spine, and of the heart, in widths of the lungs."""

LOW = (0.45, 0.85)
"""Part of the lungs' height in which the heart is looked for."""

GAP = (0.4, 0.6)
"""Part of the lungs' extent in which the gap between them is looked for."""

SPINE_SAMPLE = 20
"""Voxels of bone that a spine has at least."""

BODY_OPENING = 2
"""Bodies joined by less than some voxels are two."""


@dataclass(frozen=True)
class ChestFacts:
    """Where things lie in a chest CT, in parts of the lungs' extent; NaN where not to be told.

    Attributes:
        spine_behind: the bone of the middle behind the lungs' middle. Of right ones 0.13 and more.
        base_wider: by how much the lungs' lower ends lie further out than the upper ones. Of right
            ones 0.03 and more but for one with -0.10.
        heart_left: the heart to the left of the spine. Of right ones -0.01 and more.
        gap: how much lung there is in the middle along each axis of the volume, in parts of the
            most. Of right ones 0.13 and less across, where one lung ends and the other begins, and
            0.43 and more along the other two.
        second_body: size of the second largest body, the largest being 1. Arms are below 0.2.
    """

    spine_behind: float
    base_wider: float
    heart_left: float
    gap: tuple[float, float, float]
    second_body: float


def chest_facts(hu: np.ndarray, spacing_mm: tuple[float, ...]) -> ChestFacts:
    """Look at a volume.

    Args:
        hu: (S, A, R): from head to feet, front to back, the patient's right to left; HU.
        spacing_mm: along each axis.
    """
    nan = float("nan")
    steps = [max(1, round(GRID_MM / s)) if s > 0 else 1 for s in spacing_mm]
    volume = hu[tuple(slice(None, None, n) for n in steps)]
    if min(volume.shape) < LEAST_SLICES:
        return ChestFacts(nan, nan, nan, (nan, nan, nan), 0.0)
    solid = ndimage.binary_opening(volume > AIR_HU, iterations=BODY_OPENING)
    labels, _ = ndimage.label(solid)
    sizes = np.sort(np.bincount(labels.ravel())[1:])[::-1]
    second = float(sizes[1] / sizes[0]) if len(sizes) > 1 else 0.0
    lungs = _lungs(volume)
    slices = np.flatnonzero(lungs.any(axis=(1, 2)))
    height = len(slices) * steps[0] * spacing_mm[0]
    if not len(slices) or height < LEAST_LUNG_MM:
        return ChestFacts(nan, nan, nan, (nan, nan, nan), second)
    gap = (_gap(lungs, 0), _gap(lungs, 1), _gap(lungs, 2))
    top, count = int(slices[0]), int(slices[-1] - slices[0] + 1)
    behind, sides = (np.flatnonzero(lungs.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    depth, width = max(1, int(np.ptp(behind))), max(1, int(np.ptp(sides)))
    middle = float(sides[0] + sides[-1]) / 2
    bone = volume[top : top + count] > BONE_HU
    spine = bone[:, :, _zone(middle, MIDDLE * width, volume.shape[2])]
    if spine.sum() < SPINE_SAMPLE:
        return ChestFacts(nan, nan, nan, gap, second)
    spine_behind = (_mean_at(spine.sum(axis=(0, 2))) - _mean_at(lungs.sum(axis=(0, 2)))) / depth
    tip = max(1, round(TIP * count))
    outward = np.abs(np.arange(volume.shape[2]) - middle) / width
    upper, lower = (lungs[s].sum(axis=(0, 1)) for s in (slice(top, top + tip), _end(slices, tip)))
    base_wider = float(
        (lower * outward).sum() / lower.sum() - (upper * outward).sum() / upper.sum()
    )
    back = round(_mean_at(lungs.sum(axis=(0, 2))))
    column = spine[:, back:] if spine_behind > 0 else spine[:, :back]
    zone = _zone(middle, HEART * width, volume.shape[2])
    rows = slice(top + int(LOW[0] * count), top + int(LOW[1] * count))
    front = slice(behind[0], (behind[0] + behind[-1]) // 2)
    if spine_behind < 0:
        front = slice((behind[0] + behind[-1]) // 2, behind[-1])
    if base_wider < 0:  # upside down
        rows = slice(top + int((1 - LOW[1]) * count), top + int((1 - LOW[0]) * count))
    tissue = (volume[rows, front, zone] > TISSUE_HU).sum(axis=(0, 1))
    heart = nan
    if column.any() and tissue.any():
        at_spine = _zone(middle, MIDDLE * width, volume.shape[2]).start
        heart = zone.start + _mean_at(tissue) - at_spine - _mean_at(column.sum(axis=(0, 1)))
    return ChestFacts(spine_behind, base_wider, heart / width, gap, second)


def _lungs(volume: np.ndarray) -> np.ndarray:
    """Air between tissue on all four sides of an axial slice, without the bowel's."""
    solid = ndimage.binary_opening(volume > AIR_HU)
    inside = np.ones_like(solid)
    for axis in (1, 2):
        inside &= np.logical_or.accumulate(solid, axis=axis)
        inside &= np.flip(np.logical_or.accumulate(np.flip(solid, axis), axis=axis), axis)
    labels, count = ndimage.label(ndimage.binary_opening(inside & (volume < AIR_HU)))
    if not count:
        return np.zeros_like(solid)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.isin(labels, np.flatnonzero(sizes > ONE_LUNG * sizes.max()))


def _gap(lungs: np.ndarray, axis: int) -> float:
    """Least lung about the middle along an axis, in parts of the most."""
    profile = lungs.sum(axis=tuple(a for a in range(3) if a != axis)).astype(float)
    filled = np.flatnonzero(profile)
    profile = profile[filled[0] : filled[-1] + 1]
    first, last = (int(part * len(profile)) for part in GAP)
    return float(profile[first : last + 1].min() / profile.max())


def _zone(middle: float, half: float, count: int) -> slice:
    return slice(max(0, int(middle - half)), min(count, int(middle + half) + 1))


def _end(slices: np.ndarray, count: int) -> slice:
    return slice(int(slices[-1]) - count + 1, int(slices[-1]) + 1)


def _mean_at(weights: np.ndarray) -> float:
    """Mean index of a profile."""
    return float((weights * np.arange(len(weights))).sum() / weights.sum())
