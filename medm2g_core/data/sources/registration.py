"""Affine registration of two MR contrasts of one head by mutual information (SimpleITK), the same
on every run.

Two acquisitions of one session lie in the scanner's coordinates, so their headers already agree but
for the movement between them. From there a rigid and then an affine transform are found by
maximising Mattes' mutual information in the head, from coarse to fine. Samples are drawn with a
fixed seed and one thread is used: sums of several threads differ in their last bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from medm2g_core.data.sources.grids import Grid
from medm2g_core.data.volumes import FileError

__all__ = ["Registration", "itk_image", "register_affine", "resample"]

BINS = (16, 64)
"""Fewest and most bins of the joint histogram. Mattes' smooth histogram lets a slightly shrunken
head win, and more bins lessen that; but with few samples a bin, the fewer samples overlap the
greater the information seems. Here: about five samples a bin of the joint histogram."""

RIM_MM = 8.0
"""The images are compared in the head of the fixed one and so far around it: else the background
rules the result."""

COARSE_MM, FINE_MM = 8.0, 2.0
"""Voxel sizes of the coarsest and the finest level; finer ones cost much and move nothing by a
visible amount."""

MIN_SIDE = 16
"""A level keeps at least so many voxels each way."""

SAMPLES = 20_000
"""At most so many points of the head and its rim are compared."""

MAX_SHIFT_MM, MAX_SCALE = 60.0, 1.25
"""What two scans of one head in one session cannot need; beyond it the registration has failed."""


@dataclass(frozen=True)
class Registration:
    """The outcome of `register_affine`.

    Attributes:
        transform: from a point of the fixed image to the point of the moving image that shows the
            same (mm, LPS).
        information: mutual information in nats after it.  before: as the headers have it, on the
            same samples.
    """

    transform: sitk.AffineTransform
    information: float
    before: float


def itk_image(array: np.ndarray, grid: Grid) -> sitk.Image:
    """An (S, A, R) array on its grid as a float32 SimpleITK image."""
    image = sitk.GetImageFromArray(
        np.ascontiguousarray(array, dtype=np.float32)
    )  # its x, y, z are our R, A, S
    to_lps = np.diag([-1.0, -1.0, 1.0])
    spacing = grid.spacing_mm[::-1]
    image.SetSpacing(spacing)
    image.SetDirection((to_lps @ grid.affine[:3, [2, 1, 0]] / np.array(spacing)).ravel())
    image.SetOrigin(to_lps @ grid.affine[:3, 3])
    return image


def register_affine(
    fixed: sitk.Image, moving: sitk.Image, *, seed: int = 0, iterations: int = 40
) -> Registration:
    """Find the affine transform that brings ``moving`` to ``fixed``.

    Args:
        fixed, moving: float32 volumes in one scanner's coordinates (`itk_image`).
        seed: of the sample points.  iterations: at most so many in each stage and level.

    Raises:
        FileError: the two do not overlap, or the result is not possible for two scans of one head.
    """
    with _one_thread():
        return _register(fixed, moving, seed, iterations)


def _register(fixed: sitk.Image, moving: sitk.Image, seed: int, iterations: int) -> Registration:
    head = _head(fixed)
    before = _information(fixed, moving, head, sitk.AffineTransform(3), seed)
    centre = fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()])
    rigid = sitk.Euler3DTransform()
    rigid.SetCenter(centre)
    affine = sitk.AffineTransform(3)
    affine.SetCenter(centre)
    try:
        _optimise(fixed, moving, head, rigid, _levels(fixed), seed, iterations)
        affine.SetMatrix(rigid.GetMatrix())
        affine.SetTranslation(rigid.GetTranslation())
        _optimise(
            fixed, moving, head, affine, _levels(fixed)[1:] or _levels(fixed), seed, iterations
        )
    except RuntimeError as error:
        raise FileError(
            f"the registration failed: {str(error).strip().splitlines()[-1][:160]}"
        ) from error
    stretch = np.linalg.svd(np.array(affine.GetMatrix()).reshape(3, 3), compute_uv=False)
    shift = float(np.linalg.norm(affine.GetTranslation()))
    if shift > MAX_SHIFT_MM or stretch.max() > MAX_SCALE or stretch.min() < 1 / MAX_SCALE:
        raise FileError(
            f"the registration failed: a shift of {shift:.0f} mm, scales"
            f" {stretch.min():.2f}..{stretch.max():.2f}"
        )
    return Registration(affine, _information(fixed, moving, head, affine, seed), before)


def resample(moving: sitk.Image, fixed: sitk.Image, transform: sitk.Transform) -> np.ndarray:
    """``moving`` on the grid of ``fixed``, (S, A, R) float32, trilinear; its minimum where it has
    nothing."""
    low = float(sitk.GetArrayViewFromImage(moving).min())
    return sitk.GetArrayFromImage(
        sitk.Resample(moving, fixed, transform, sitk.sitkLinear, low, sitk.sitkFloat32)
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """ITK's metrics obey only the number of threads of the whole process; it is put back
    afterwards."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _levels(fixed: sitk.Image) -> list[int]:
    """Shrink factors, coarse to fine."""
    step, side = min(fixed.GetSpacing()), min(fixed.GetSize())
    wanted = (round(mm / step) for mm in (COARSE_MM, (COARSE_MM * FINE_MM) ** 0.5, FINE_MM))
    return sorted({max(1, min(n, side // MIN_SIDE)) for n in wanted}, reverse=True)


def _head(fixed: sitk.Image) -> sitk.Image:
    """Mask of the head with a rim of `RIM_MM`, on voxels of about 4 mm."""
    small = sitk.Shrink(fixed, [max(1, round(4 / s)) for s in fixed.GetSpacing()])
    head = sitk.BinaryFillhole(sitk.OtsuThreshold(small, 0, 1))
    return sitk.BinaryDilate(head, [max(1, round(RIM_MM / s)) for s in small.GetSpacing()])


def _method(fixed: sitk.Image, head: sitk.Image, seed: int) -> sitk.ImageRegistrationMethod:
    method = sitk.ImageRegistrationMethod()
    voxels = fixed.GetNumberOfPixels()
    inside = float(sitk.GetArrayViewFromImage(head).mean()) * voxels
    samples = min(inside, SAMPLES)
    method.SetMetricAsMattesMutualInformation(int(np.clip(np.sqrt(samples / 5), *BINS)))
    method.SetMetricFixedMask(head)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(
        samples / max(1.0, inside), seed + 1
    )  # a seed of 0 would be the clock
    return method


def _information(
    fixed: sitk.Image, moving: sitk.Image, head: sitk.Image, transform: sitk.Transform, seed: int
) -> float:
    method = _method(fixed, head, seed)
    method.SetInitialTransform(transform, inPlace=False)
    try:
        return -method.MetricEvaluate(fixed, moving)
    except RuntimeError as error:
        raise FileError(
            "the two volumes do not overlap by their headers; they cannot be registered"
        ) from error


def _optimise(
    fixed: sitk.Image,
    moving: sitk.Image,
    head: sitk.Image,
    transform: sitk.Transform,
    levels: list[int],
    seed: int,
    iterations: int,
) -> None:
    """Improve ``transform`` in place, level after level."""
    for shrink in levels:
        small, smooth = fixed, moving
        if shrink > 1:
            sigma = 0.5 * shrink * min(fixed.GetSpacing())
            small = sitk.Shrink(sitk.SmoothingRecursiveGaussian(fixed, sigma), [shrink] * 3)
            smooth = sitk.SmoothingRecursiveGaussian(moving, sigma)
        method = _method(small, head, seed)
        method.SetOptimizerAsConjugateGradientLineSearch(
            learningRate=1.0,
            numberOfIterations=iterations,
            convergenceMinimumValue=1e-5,
            convergenceWindowSize=5,
            lineSearchUpperLimit=3.0,
            lineSearchEpsilon=0.05,
            lineSearchMaximumIterations=8,
            estimateLearningRate=method.EachIteration,
            maximumStepSizeInPhysicalUnits=0.5 * shrink * min(fixed.GetSpacing()),
        )
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetInitialTransform(transform, inPlace=True)
        method.Execute(small, smooth)
