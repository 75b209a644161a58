"""Random fields that stay the same patient's at every picture size.

A study is defined at `BASE_PX` pixels a side. A larger picture of it shows the same patient: every
random choice is made on the base grid, in the same order, and what is random *and* as fine as a
pixel goes on in finer detail below that. So a picture of 256 pixels averaged over blocks of 2 x 2
agrees with the one of 128, and the numbers behind the small one never change.

Noise per pixel has the same strength at every size, as if a finer picture were taken with more dose
or a longer scan, which is how protocols hold the signal-to-noise ratio. The block means of the
finer noise are the coarser noise, scaled to the strength that a mean of that many pixels has.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor
from torch.nn import functional

__all__ = ["BASE_PX", "block_mean", "refine", "scale_of", "white_noise"]

BASE_PX = 128
"""Side in pixels of the picture that a study is defined at."""


def scale_of(size: int) -> int:
    """How many pixels of a picture of ``size`` pixels a side lie along one of the base picture.

    Raises:
        ValueError: not `BASE_PX` times a power of two.
    """
    scale = size // BASE_PX
    if scale < 1 or size % BASE_PX or scale & (scale - 1):
        raise ValueError(
            f"size {size}: pictures are drawn at {BASE_PX} pixels times a power of two (128, 256,"
            " 512, ...); for fewer pixels average a larger one"
        )
    return scale


def white_noise(
    shape: Sequence[int],
    rng: np.random.Generator,
    scale: int = 1,
    axes: tuple[int, int] = (-2, -1),
) -> np.ndarray:
    """Independent normal numbers of mean 0 and deviation 1, the same field at every scale.

    Args:
        shape: of the field on the base grid.
        rng: as much is drawn from it as the base grid takes, whatever the scale; finer detail comes
            from a child of it.
        scale: a power of two by which two of the axes are finer.
        axes: those two axes.

    Returns:
        float64, ``shape`` with the two axes ``scale`` times as long. The mean over a block of
        scale x scale, times ``scale``, is the field of scale 1.
    """
    field = rng.standard_normal(tuple(shape))
    if scale == 1:
        return field
    detail = rng.spawn(1)[0]
    a, b = (axis % field.ndim for axis in axes)
    for _ in range(scale.bit_length() - 1):
        longer = list(field.shape)
        longer[a], longer[b] = 2 * longer[a], 2 * longer[b]
        finer = detail.standard_normal(longer)
        means = (
            sum(finer[_every_second(field.ndim, {a: i, b: j})] for i in (0, 1) for j in (0, 1)) / 4
        )
        # four independent numbers have a mean of deviation 1/2: the coarser field takes its place
        change = field / 2 - means
        finer += change.repeat(2, a).repeat(2, b)
        field = finer
    return field


def _every_second(ndim: int, start: dict[int, int]) -> tuple[slice, ...]:
    return tuple(slice(start[i], None, 2) if i in start else slice(None) for i in range(ndim))


def refine(field: Tensor, scale: int) -> Tensor:
    """A smooth field between its samples, linearly: (H, W) or (Z, Y, X), the first and the last
    axis ``scale`` times as long. Pixels are areas, so samples lie at their centres."""
    if scale == 1:
        return field
    size = [n * scale for n in field.shape]
    if field.ndim == 3:
        size[1] = field.shape[1]
    mode = "bilinear" if field.ndim == 2 else "trilinear"
    return functional.interpolate(field[None, None], size=size, mode=mode, align_corners=False)[
        0, 0
    ]


def block_mean(field: Tensor, scale: int) -> Tensor:
    """Mean over blocks of ``scale`` along the first and the last axis of (H, W) or (Z, Y, X)."""
    if scale == 1:
        return field
    kernel = (scale, scale) if field.ndim == 2 else (scale, 1, scale)
    pool = functional.avg_pool2d if field.ndim == 2 else functional.avg_pool3d
    return pool(field[None, None], kernel)[0, 0]
