"""Scores of pairs of images, one number a pair."""

from __future__ import annotations

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from medm2g_core.streams import CT_WINDOW_HU

__all__ = ["ct_mae_hu", "psnr", "ssim"]


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each pair (B,); images (B, 1, H, W) in -1..1, so the data
    range is 2."""
    mse = (a.float() - b.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / mse.clamp_min(1e-10))


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each pair (B,), data range 2, torchmetrics' 11 px Gaussian window
    (Wang et al. 2004)."""
    out = structural_similarity_index_measure(
        a.float(), b.float(), data_range=2.0, reduction="none"
    )
    assert isinstance(out, torch.Tensor)
    return out.reshape(-1)


def ct_mae_hu(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean absolute error in HU of each pair (B,) of ``ct`` images, inside the stream's window."""
    low, high = CT_WINDOW_HU
    return (a.float() - b.float()).abs().flatten(1).mean(1) * (high - low) / 2
