"""Lesions of a brain FLAIR picture by a threshold, the same for true and for drawn pictures.

On FLAIR fluid is dark, so nothing in a healthy brain is brighter than grey matter. With the
cohort's sequence and tissue values grey matter has 1.4 times the signal of white matter, and
tumour, oedema and white-matter lesions have 1.9 to 2.2 times: the threshold lies between, at
`RATIO`. White matter's level is taken around each place, because coil shading alone makes 15 %.
Necrotic cores are dark, so a cystic tumour gives a ring.

T2 has no such threshold: a mixture of fluid and cortex has the signal of a lesion (chosen on the
validation split, the best one told studies with white-matter lesions from others with an AUC of 0.7
only, also with fluid masked by FLAIR).
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage

from medm2g_core.streams import StreamError, check_image

__all__ = ["LESIONS", "RATIO", "SEGMENTED", "dice", "lesion_mask"]

LESIONS = ("tumor", "vasogenic_edema", "white_matter_lesions")
"""Findings that are bright on FLAIR."""

SEGMENTED = ("mri_flair",)
"""Streams that `lesion_mask` can read."""

RATIO = 1.7
"""A lesion is brighter than so many times the white matter around it: the geometric mean of 1.4 and
2.1."""

_HEAD, _NOISE = 0.1, 0.2  # of full signal: brighter than air; brighter than air, bone and fluid
_SCALP = 1 / 16  # of the side: scalp, skull and what lies between
_AROUND = 0.14  # of the side: width of the neighbourhood that white matter's level is taken from
_DARKEST, _BRIGHTEST = 0.75, 1.2  # of its level: shading moves white matter by 15 %, grey is at 1.4
_WHOLE = 0.02  # weight of the whole brain's level, for places without white matter around


def lesion_mask(images: torch.Tensor, name: str = "mri_flair") -> torch.Tensor:
    """Where a brain FLAIR is hyperintense.

    Args:
        images: (N, 1, H, W) in -1..1, -1 for no signal.  name: stream; one of `SEGMENTED`.

    Returns:
        bool (N, 1, H, W), on the CPU.

    Raises:
        StreamError: another stream, or images of a wrong shape or range.
    """
    if name not in SEGMENTED:
        raise StreamError(f"lesions are segmented on {', '.join(SEGMENTED)} only, got {name}")
    check_image(images, name)
    masks = [_segment((x[0].double().cpu().numpy() + 1) / 2) for x in images]
    return torch.from_numpy(np.stack(masks))[:, None]


def _segment(signal: np.ndarray) -> np.ndarray:
    """Signal (H, W), 0..1, to lesions (H, W)."""
    side = max(signal.shape)
    head = ndimage.binary_fill_holes(ndimage.binary_closing(signal > _HEAD, iterations=2))
    brain = ndimage.distance_transform_edt(head) > _SCALP * side
    tissue = brain & (signal > _NOISE)
    if not tissue.any():
        return np.zeros_like(brain)
    # About half of the tissue is white matter, and it is the darker half: its median.
    level = float(np.percentile(signal[tissue], 25))
    white = tissue & (signal > _DARKEST * level) & (signal < _BRIGHTEST * level)
    width = _AROUND * side
    around = ndimage.gaussian_filter(np.where(white, signal, 0.0), width) + _WHOLE * level
    around /= ndimage.gaussian_filter(white.astype(float), width) + _WHOLE
    return brain & (signal > RATIO * around)


def dice(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Dice overlap (Dice 1945) of each pair of masks, 2 |A and B| / (|A| + |B|).

    Args:
        a, b: (N, 1, H, W), bool or 0 and 1.

    Returns:
        float32 (N,) in 0..1; 1 where both masks are empty.
    """
    a, b = a.flatten(1).bool(), b.flatten(1).bool()
    both, sizes = (a & b).sum(1), a.sum(1) + b.sum(1)
    return torch.where(sizes > 0, 2 * both / sizes.clamp(min=1), 1.0).float()
