"""Central alignment and the medical visual invariant as losses."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch.nn import functional as F

from medm2g_core.profiles import AlignmentConfig

__all__ = [
    "augmented_view",
    "central_alignment_loss",
    "cross_correlation",
    "info_nce",
    "normal",
    "visual_invariant_loss",
]

MAX_LOGIT_SCALE = 100.0
"""Sharper similarities than 1/100 make training unstable (Radford et al. 2021)."""

# How far a second view may be from the first: about the differences between two positionings of one
# patient. The sides of a chest mean something, so there are no flips.
MAX_ROTATION = 0.12  # radians, 7 degrees
SCALES = (0.9, 1.1)
MAX_SHIFT = 0.08  # of half the picture
GAMMAS = (0.8, 1.25)
VIEW_NOISE = 0.04  # deviation, of the range -1..1


def normal(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Normal numbers. On a GPU they are drawn there, from a seed that ``generator`` gives: millions
    of numbers from the CPU's generator would take as long as the rest of the step."""
    if device.type == "cpu":
        return torch.randn(*shape, generator=generator)
    seed = int(torch.randint(2**31, (1,), generator=generator))
    there = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=there, device=device)


def info_nce(a: torch.Tensor, b: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE of two batches of unit vectors (B, D): row i of ``a`` belongs to row i of
    ``b``.

    ``logit_scale`` is log(1/tau); exp of it is clamped at 100 (Radford et al. 2021).
    """
    logits = logit_scale.exp().clamp(max=MAX_LOGIT_SCALE) * a @ b.T  # (B, B)
    target = torch.arange(len(a), device=a.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def central_alignment_loss(
    pooled: Mapping[str, torch.Tensor],
    logit_scale: torch.Tensor,
    pairs: str = "central",
    rows: Mapping[str, torch.Tensor] | None = None,
) -> torch.Tensor:
    """L_align: text against every image modality (``central``), or every pair of modalities
    (``all``, an ablation), each on the studies that have both.

    Args:
        pooled: modality -> (B_m, D) unit vectors; must hold ``"text"``.
        rows: modality -> (B_m,) number of the study of each vector, ascending; the same studies in
            all modalities if left out.
    """
    if "text" not in pooled:
        raise ValueError(f"central alignment needs the text stream; got {sorted(pooled)}")
    others = [n for n in pooled if n != "text"]
    chosen = (
        [("text", n) for n in others]
        if pairs == "central"
        else list(itertools.combinations(pooled, 2))
    )
    losses = []
    for a, b in chosen:
        of_a, of_b = pooled[a], pooled[b]  # (B_a, D), (B_b, D)
        if rows is not None:
            of_a = of_a[torch.isin(rows[a], rows[b])]  # (B_ab, D), ascending in both: they match
            of_b = of_b[torch.isin(rows[b], rows[a])]
        if len(of_a):
            losses.append(info_nce(of_a, of_b, logit_scale))
    return torch.stack(losses).mean()


def cross_correlation(view1: torch.Tensor, view2: torch.Tensor) -> torch.Tensor:
    """C (D, D) of two views' embeddings (B, D): C_ij is the correlation over the batch of dimension
    i of view 1 with dimension j of view 2.

    Raises:
        ValueError: a batch of 1.
    """
    if len(view1) < 2:
        raise ValueError(
            "the visual invariant needs a batch of at least 2: it correlates over the batch"
        )
    a = (view1 - view1.mean(0)) / (view1.std(0) + 1e-4)  # (B, D)
    b = (view2 - view2.mean(0)) / (view2.std(0) + 1e-4)  # (B, D)
    return a.T @ b / (len(a) - 1)  # (D, D)


def visual_invariant_loss(
    view1: torch.Tensor, view2: torch.Tensor, config: AlignmentConfig
) -> torch.Tensor:
    """L_inv on the `cross_correlation` matrix C of two views' embeddings (B, D).

    The paper minimises the off-diagonal elements: mean_{i != j} C_ij^2. ``full`` adds
    ``diagonal_weight`` * mean_i (1 - C_ii)^2 (Zbontar et al. 2021), because the off-diagonal term
    alone is also minimal for two views that have nothing to do with each other. The mean is scaled
    by D so that the weight does not depend on the width.
    """
    if config.invariant == "off":
        return view1.new_zeros(())
    c = cross_correlation(view1, view2)  # (D, D)
    d = len(c)
    diagonal = torch.diagonal(c)
    off = (c.square().sum() - diagonal.square().sum()) / (d * (d - 1))
    loss = d * off
    if config.invariant == "full":
        loss = loss + d * config.diagonal_weight * (1 - diagonal).square().mean()
    return loss


def augmented_view(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A second look at the same patient: (B, 1, H, W) in -1..1 to the same.

    Small rotation, shift, scale, contrast and noise. No flips: left and right mean something in a
    chest.
    """
    b = len(image)

    def uniform(low: float, high: float) -> torch.Tensor:
        return torch.rand(b, generator=generator) * (high - low) + low

    angle, scale = uniform(-MAX_ROTATION, MAX_ROTATION), uniform(*SCALES)
    theta = torch.stack(
        [
            torch.stack(
                [angle.cos() * scale, -angle.sin() * scale, uniform(-MAX_SHIFT, MAX_SHIFT)], -1
            ),
            torch.stack(
                [angle.sin() * scale, angle.cos() * scale, uniform(-MAX_SHIFT, MAX_SHIFT)], -1
            ),
        ],
        1,
    ).to(image)  # (B, 2, 3)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    x = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    gamma = uniform(*GAMMAS).to(image)[:, None, None, None]
    x = ((x + 1) / 2).clamp(1e-4, 1) ** gamma * 2 - 1
    noise = normal(image.shape, generator, image.device).to(image)
    return (x + VIEW_NOISE * noise).clamp(-1, 1)
