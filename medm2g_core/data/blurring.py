"""Blur and thick slices with parameters of their own for every picture of a batch, as matrices.

A blur along one axis is a product with an (n, n) matrix. So every sample may have another width, no
width needs a longer kernel than another, and no edge needs padding: rows of a matrix sum to 1. It
pays at the picture sizes here; for thousands of pixels a side a short kernel would be cheaper.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["blur_matrices", "blurred", "slice_matrices"]

SMALLEST = 1e-6
"""Keeps a divisor off 0."""


def blur_matrices(n: int, sigma: Tensor) -> Tensor:
    """Matrices (B, 1, n, n) that blur along an axis of n pixels, a sigma for each sample; rows sum
    to 1, so edges neither darken nor mirror. Sigma 0 is the identity."""
    at = torch.arange(n, device=sigma.device)
    weights = torch.exp(-0.5 * ((at[:, None] - at) / sigma.clamp_min(SMALLEST)).square())
    return weights / weights.sum(-1, keepdim=True)


def blurred(image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Gaussian blur with each sample's own sigma in pixels, down the rows and along the columns."""
    height, width = image.shape[-2:]
    return blur_matrices(height, rows) @ image @ blur_matrices(width, columns).mT


def slice_matrices(n: int, thickness: Tensor, start: Tensor) -> Tensor:
    """Matrices (B, 1, n, n): means over slices side by side along an axis of n pixels, and linear
    interpolation between their centres back to the pixels.

    Args:
        thickness: (B, 1, 1, 1) in pixels, from 1, which is the identity.
        start: (B, 1, 1, 1), 0..1: how much of the first slice that the rest allows lies outside.
    """
    at = torch.arange(n, device=thickness.device)
    centres = (at[:, None] + 0.5) * thickness - start * (thickness - 1)
    upper = torch.minimum(at + 1.0, centres + thickness / 2)
    lower = torch.maximum(at + 0.0, centres - thickness / 2)
    covered = (upper - lower).clamp_min(0)  # (B, 1, slice, pixel)
    whole = covered.sum(-1, keepdim=True)
    means = covered / whole.clamp_min(SMALLEST)
    near = (1 - (at + 0.5 - centres).abs() / thickness).clamp_min(0) * (whole > SMALLEST)
    back = (near / near.sum(-2, keepdim=True)).mT  # (B, 1, pixel, slice)
    return back @ means
