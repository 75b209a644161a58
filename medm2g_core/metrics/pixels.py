"""Scores of pairs of images, one number a pair.

All take two batches of the same shape (B, 1, H, W), -1..1 as every image stream is stored (see
`medm2g_core.streams`), of any float type, and return float32 (B,) on the device of the images.
"""

from __future__ import annotations

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from medm2g_core.streams import CT_WINDOW_HU

__all__ = ["ct_mae_hu", "psnr", "ssim"]

_LEAST_MSE = 1e-10
"""Mean squared error of a perfect pair, so that its PSNR is a number (106 dB), not infinity."""


def _same_shape(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(
            f"images of shapes {tuple(a.shape)} and {tuple(b.shape)}; needed two batches of one"
            " shape (B, 1, H, W), the images of a pair at the same place"
        )


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each pair, 10 log10(range² / mean squared error).

    torchmetrics' function gives infinity for equal images, which no mean survives; this one ends
    at 106 dB and equals it otherwise.

    Args:
        a, b: (B, 1, H, W) in -1..1, so the range is 2.

    Returns:
        (B,) in dB; the order of the two does not matter.

    Raises:
        ValueError: batches of different shapes.
    """
    _same_shape(a, b)
    mse = (a.float() - b.float()).square().flatten(1).mean(1)  # (B,)
    return 10 * torch.log10(2**2 / mse.clamp_min(_LEAST_MSE))


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each pair (Wang et al. 2004), by torchmetrics.

    Computed on 0..1 with a data range of 1. The range matters: the luminance term
    (2 μx μy + C1) / (μx² + μy² + C1) compares means *with zero*, so adding a constant to both
    images changes it. On -1..1 zero is mid-grey: a small difference of brightness costs nearly
    everything there, nothing near black or white, and two means of opposite sign count as
    opposites.

    Window: Gaussian, 11 px, deviation 1.5 px; K1 = 0.01, K2 = 0.03; variances without Bessel's
    correction; the mean is over all pixels, the image being reflected at its edges. The map equals
    that of scikit-image's ``structural_similarity`` with ``gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=1``, whose mean leaves out a margin of 5 px (and whose
    default window is another one).

    Args:
        a, b: (B, 1, H, W) in -1..1, at least 6 px a side.

    Returns:
        (B,) in -1..1; 1 for equal images.

    Raises:
        ValueError: batches of different shapes.
    """
    _same_shape(a, b)
    x, y = ((image.float() + 1) / 2 for image in (a, b))  # 0..1
    out = structural_similarity_index_measure(x, y, data_range=1.0, reduction="none")
    assert isinstance(out, torch.Tensor)
    return out.reshape(-1)  # of one pair torchmetrics gives a scalar


def ct_mae_hu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of each pair of ``ct`` images, inside the stream's window of 1,600 HU.

    Args:
        a, b: (B, 1, H, W) in -1..1.

    Returns:
        (B,) in HU.

    Raises:
        ValueError: batches of different shapes.
    """
    _same_shape(a, b)
    low, high = CT_WINDOW_HU
    return (a.float() - b.float()).abs().flatten(1).mean(1) * (high - low) / 2
