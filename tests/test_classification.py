"""Scores of two classes, against torchmetrics and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

from medm2g_core.metrics.classification import auc, best_threshold


def test_auc_is_that_of_torchmetrics_also_with_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        score, yes = rng.integers(0, 6, 40) / 5.0, rng.random(40) < 0.3
        if yes.any() and not yes.all():
            reference = binary_auroc(torch.tensor(score), torch.tensor(yes).long()).item()
            assert auc(score, yes) == pytest.approx(reference, abs=1e-6)
    assert np.isnan(auc(np.arange(4.0), np.ones(4)))


def test_threshold_separates_what_can_be_separated() -> None:
    score = np.array([0.1, 0.9, 0.2, 0.8, 0.3])
    assert best_threshold(score, np.array([0, 1, 0, 1, 0])) == pytest.approx(0.55)
    assert best_threshold(score, np.zeros(5)) == 0.0
