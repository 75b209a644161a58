"""Scores of single samples, and the interval of their mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from medm2g_core.streams import CT_WINDOW_HU, Finding

__all__ = ["bootstrap", "ct_mae_hu", "finding_counts", "finding_f1", "psnr", "ssim"]

Counts = tuple[int, int, int]
"""True positives, false positives, false negatives."""


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


def finding_counts(
    predicted: Iterable[Finding], true: Iterable[Finding], *, strict: bool
) -> Counts:
    """Counts of one report: by name (presence), or ``strict``: name, side, location and size class
    together."""
    p = {f.key if strict else f.name for f in predicted}
    t = {f.key if strict else f.name for f in true}
    return len(p & t), len(p - t), len(t - p)


def finding_f1(counts: Sequence[Counts]) -> float:
    """Micro F1 over reports: 2 TP / (2 TP + FP + FN); 0 when there is nothing to find and nothing
    found."""
    tp, fp, fn = np.asarray(counts, dtype=float).reshape(-1, 3).sum(0)
    return float(2 * tp / max(1.0, 2 * tp + fp + fn))


def bootstrap(
    samples: Sequence[float] | Sequence[Counts],
    *,
    seed: int = 0,
    draws: int = 1000,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """(value, low, high): the mean of numbers, or the micro F1 of counts, with a percentile
    bootstrap interval."""
    x = np.asarray(samples, dtype=float)
    if len(x) == 0:
        raise ValueError("nothing to average")

    def score(rows: np.ndarray) -> float:
        return float(rows.mean()) if rows.ndim == 1 else finding_f1([tuple(r) for r in rows])

    rng = np.random.default_rng(seed)
    values = [score(x[rng.integers(0, len(x), len(x))]) for _ in range(draws)]
    tail = (1 - level) / 2 * 100
    low, high = np.percentile(values, [tail, 100 - tail])
    return score(x), float(low), float(high)
