"""Agreement of two series of answers: as the libraries have it, column by column."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from torchmetrics.functional.classification import binary_cohen_kappa

from medm2g_core.metrics.agreement import cohen_kappa, pearson


def test_kappa_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    for rate in (0.2, 0.5, 0.9):
        a = rng.random(100) < 0.4
        b = np.where(rng.random(100) < rate, a, rng.random(100) < 0.4)
        reference = binary_cohen_kappa(torch.tensor(a).long(), torch.tensor(b).long()).item()
        assert cohen_kappa(a, b) == pytest.approx(reference, abs=1e-6)
    assert np.isnan(cohen_kappa(np.ones(4), np.ones(4)))


def test_columns_are_independent_questions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 60, 3)) < 0.5
    for i in range(3):
        assert cohen_kappa(a, b)[i] == cohen_kappa(a[:, i], b[:, i])


def test_correlation_is_that_of_scipy_and_of_a_constant_column_nothing() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(50, 4))
    b = 0.5 * a + rng.normal(size=(50, 4))
    assert pearson(a, b) == pytest.approx(pearsonr(a, b, axis=0).statistic)
    a[:, 2] = 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(pearson(a, b)).tolist() == [False, False, True, False]
