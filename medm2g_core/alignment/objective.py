"""Central alignment and the medical visual invariant as losses."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from medm2g_core.profiles import AlignmentConfig

__all__ = [
    "Contradictions",
    "Shared",
    "augmented_view",
    "central_alignment_loss",
    "cross_correlation",
    "info_nce",
    "normal",
    "shared_studies",
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


@dataclass(frozen=True)
class Contradictions:
    """Texts that say something else of a study than is true (hard negatives).

    Attributes:
        pooled: (H, D) unit vectors.
        of: (H,) number of the study that each contradicts.
    """

    pooled: torch.Tensor
    of: torch.Tensor


def info_nce(
    a: torch.Tensor,
    b: torch.Tensor,
    logit_scale: torch.Tensor,
    wrong: torch.Tensor | None = None,
    wrong_for: torch.Tensor | None = None,
) -> torch.Tensor:
    """Symmetric InfoNCE of two batches of unit vectors (B, D): row i of ``a`` belongs to row i of
    ``b``.

    ``logit_scale`` is log(1/tau); exp of it is clamped at 100 (Radford et al. 2021).

    Args:
        wrong: (H, D) further vectors of ``a``'s kind that belong to no row of ``b``: answers that
            are never right when ``b`` looks for its partner.
        wrong_for: (B, H) bool, for which rows of ``b`` they stand among the answers: what is wrong
            of one patient may be true of another.
    """
    scale = logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
    logits = scale * a @ b.T  # (B, B)
    back = logits.T
    if wrong is not None and wrong_for is not None:
        extra = scale * b @ wrong.T  # (B, H)
        back = torch.cat([back, extra.masked_fill(~wrong_for, -torch.inf)], 1)  # (B, B + H)
    target = torch.arange(len(a), device=a.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(back, target))


Shared = Mapping[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]
"""(modality, modality) -> the rows of each that belong to the same studies, (B_ab,) and (B_ab,)."""


def shared_studies(
    rows: Mapping[str, torch.Tensor],
) -> dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]:
    """Which rows of two modalities belong to the same studies, for every pair that shares any.

    It looks at values, so it belongs where a batch is drawn, not into a loss on a GPU.

    Args:
        rows: modality -> (B_m,) number of the study of each row, ascending, on the CPU.
    """
    out = {}
    for a, b in itertools.combinations(rows, 2):
        of_a = torch.isin(rows[a], rows[b]).nonzero()[:, 0]  # ascending in both: they match
        of_b = torch.isin(rows[b], rows[a]).nonzero()[:, 0]
        if len(of_a):
            out[a, b] = (of_a, of_b)
    return out


def central_alignment_loss(
    pooled: Mapping[str, torch.Tensor],
    logit_scale: torch.Tensor,
    pairs: str = "central",
    *,
    shared: Shared | None = None,
    contradictions: Contradictions | None = None,
) -> torch.Tensor:
    """L_align: text against every image modality (``central``), or every pair of modalities
    (``all``, an ablation), each on the studies that have both.

    Args:
        pooled: modality -> (B_m, D) unit vectors; must hold ``"text"``, first.
        shared: of `shared_studies`, the number of a study being its row of text; pairs that it does
            not name share no study. The same studies in all modalities if left out.
        contradictions: wrong answers for the pictures of their studies.
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
        study = torch.arange(len(of_a), device=of_a.device)
        if shared is not None:
            if (a, b) not in shared:
                continue
            study, partner = shared[a, b]
            of_a, of_b = of_a[study], of_b[partner]  # (B_ab, D)
        if a == "text" and contradictions is not None:
            wrong_for = study[:, None] == contradictions.of  # (B_ab, H)
            losses.append(info_nce(of_a, of_b, logit_scale, contradictions.pooled, wrong_for))
        else:
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
