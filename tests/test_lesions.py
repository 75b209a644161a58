"""Lesions on FLAIR by a threshold: found where the renderer drew them, on the side that the report
names."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.metrics.classification import auc
from medm2g_core.metrics.lesions import LESIONS, dice, lesion_mask
from medm2g_core.streams import StreamError


@pytest.fixture(scope="module")
def brains() -> VirtualCohort:
    return VirtualCohort("val", "brain", 48)


def test_lesions_are_found_in_the_studies_that_have_some(brains: VirtualCohort) -> None:
    area = lesion_mask(brains.stack("mri_flair")).sum((1, 2, 3)).numpy()
    has = np.array([any(f.name in LESIONS for f in fs) for fs in brains.findings])
    assert auc(area, has) > 0.95
    assert np.median(area[~has]) == 0
    assert (
        auc(area, np.random.default_rng(0).permutation(has)) < 0.7
    )  # the control: other patients' truths


def test_tumours_lie_on_the_side_that_the_report_names(brains: VirtualCohort) -> None:
    """The patient's left is on the right of the picture."""
    sides = []
    for mask, findings in zip(lesion_mask(brains.stack("mri_flair")), brains.findings, strict=True):
        if findings and {f.name for f in findings} <= {"tumor", "vasogenic_edema"} and mask.any():
            right_half = mask[0].nonzero()[:, 1].float().mean() > mask.shape[-1] / 2
            sides.append(bool(right_half) == (findings[0].side == "left"))
    assert len(sides) >= 3 and all(sides)


def test_dice_is_one_for_equal_masks_nothing_for_separate_ones_and_one_for_two_empty_ones() -> None:
    a = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    a[..., 2:4, 1:3] = True
    half = a.clone()
    half[..., 2, :] = False
    empty = torch.zeros_like(a)
    values = [
        dice(x, y).item()
        for x, y in ((a, a), (a, a.flip(-1)), (a, half), (empty, empty), (a, empty))
    ]
    assert values == pytest.approx([1.0, 0.0, 2 * 2 / (4 + 2), 1.0, 0.0])


def test_the_threshold_follows_the_brightness_of_the_picture_and_other_streams_are_refused(
    brains: VirtualCohort,
) -> None:
    x = brains.stack("mri_flair", range(8))
    assert dice(lesion_mask(x), lesion_mask((x + 1) * 0.85 - 1)).min() > 0.9
    assert not lesion_mask(torch.full((1, 1, 64, 64), -1.0)).any()
    with pytest.raises(StreamError, match="mri_t2"):
        lesion_mask(x, "mri_t2")
