"""Do two sets of images, as sets, have one distribution? Distances of features, and of pixels.

The Fréchet and the kernel distance are torchmetrics' formulas for FID and KID in features of our
own: **not comparable** with published FID and KID, which use an Inception network. Read them
against the floor, real images against other real images at the same N.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from medm2g_core.metrics.bootstrap import Interval, bootstrap

__all__ = [
    "DISTANCE_DRAWS",
    "distance_interval",
    "frechet_distance",
    "kernel_distance",
    "nearest",
    "nearest_distance",
    "relative_diversity",
]

DISTANCE_DRAWS = 100
"""Bootstrap draws of a distance of two sets: each needs a matrix root or all pairs of images, so
fewer than elsewhere (what that costs in precision: `medm2g_core.metrics.bootstrap.DRAWS`)."""

_COMPARED_SIDE = 32
"""Pixels a side at which images are compared: fine noise is averaged away and hides no copy."""


class _Features(nn.Identity):
    """torchmetrics asks for a network; our features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _double(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.asarray(x, dtype=float))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the Gaussians fitted to two sets of features (Heusel et al. 2017):
    |μa - μb|² + tr(Σa + Σb - 2 (Σa Σb)^½), that is, squared, as usual.

    Biased upward at small N, so both sides of a comparison need one N, and that above D, or the
    covariance is singular.

    Args:
        a: (N, D).  b: (M, D).

    Returns:
        at least 0, in squared units of the features; 0 for equal sets.
    """
    metric = FrechetInceptionDistance(feature=_Features(a.shape[1]))
    metric.update(_double(a), real=True)
    metric.update(_double(b), real=False)
    return float(metric.compute())


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared maximum mean discrepancy of two sets of features with the kernel (x·y / D + 1)³
    (Bińkowski et al. 2018, KID).

    Unbiased, so it may be used at any N, and may be slightly negative.

    Args:
        a, b: (N, D), the same N.

    Returns:
        0 on average for sets of one distribution; no upper end.

    Raises:
        ValueError: sets of different size.
    """
    if len(a) != len(b):
        raise ValueError(f"the kernel distance needs sets of one size, got {len(a)} and {len(b)}")
    return float(poly_mmd(_double(a), _double(b)))


def distance_interval(
    distance: Callable[[np.ndarray, np.ndarray], float],
    a: np.ndarray,
    b: np.ndarray,
    *,
    draws: int = DISTANCE_DRAWS,
    seed: int = 0,
) -> Interval:
    """A distance of two sets with its 95 % bootstrap interval over the rows of both.

    A set with repeats is further from everything than one without, so the draws are all too large:
    their spread is laid around the value without that offset (``centred``).

    Args:
        distance: `frechet_distance` or `kernel_distance`.
        a: (N, D).  b: (M, D). The larger set is cut to the first rows, as many as the smaller has.
    """
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    return bootstrap(lambda i, j: distance(a[i], b[j]), n, n, draws=draws, centred=True, seed=seed)


def relative_diversity(
    features: np.ndarray, real: np.ndarray, *, draws: int = DISTANCE_DRAWS, seed: int = 0
) -> Interval:
    """Mean distance between two images of a set, relative to that of the real images of the same
    studies, with its interval.

    Args:
        features, real: (N, D); row i of both is one study.

    Returns:
        0 for N copies of one image, 1 for images as different from each other as real ones.
    """
    ours, theirs = (torch.cdist(_double(x), _double(x)).numpy() for x in (features, real))

    def ratio(i: np.ndarray) -> float:
        return float(ours[np.ix_(i, i)].sum() / theirs[np.ix_(i, i)].sum())

    return bootstrap(ratio, len(ours), draws=draws, seed=seed)


def nearest(
    images: torch.Tensor, pool: torch.Tensor, count: int = 3, side: int = _COMPARED_SIDE
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pictures of a pool that are most like each image: is a draw a copy?

    Read the distances beside those of held-out real images to the same pool: generated ones that
    are nearer to the training images than those are either copied or blurry.

    Args:
        images: (N, 1, H, W).  pool: (M, 1, H, W). Both in -1..1.
        count: how many of them.
        side: pixels a side that both are averaged down to.

    Returns:
        Indices into the pool (N, count), nearest first, and their root mean square differences
        (N, count) in image units (the range is 2); 0 is a copy.

    Raises:
        ValueError: fewer pictures in the pool than ``count``.
    """
    if not 1 <= count <= len(pool):
        raise ValueError(f"the nearest {count} of {len(pool)} pictures; needed 1 to {len(pool)}")
    a, b = (
        torch.nn.functional.adaptive_avg_pool2d(x.float().cpu(), side).flatten(1)  # (N, side²)
        for x in (images, pool)
    )
    found = torch.cdist(a, b).topk(count, largest=False)
    return found.indices, found.values / side


def nearest_distance(images: torch.Tensor, pool: torch.Tensor) -> np.ndarray:
    """Root mean square difference of each image to the most similar one of a pool, as `nearest`
    tells it: float64 (N,)."""
    return nearest(images, pool, 1)[1][:, 0].double().numpy()
