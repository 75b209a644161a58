"""Distances of sets of images: closed forms, sums written out, and what their intervals hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medm2g_core.metrics.distributions import (
    distance_interval,
    frechet_distance,
    kernel_distance,
    nearest,
    nearest_distance,
    relative_diversity,
)
from tests.conftest import pictures


def test_frechet_of_equal_sets_is_zero_and_of_shifted_sets_the_squared_shift() -> None:
    x = np.random.default_rng(0).normal(size=(300, 16))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + np.array([3.0] + [0.0] * 15)) == pytest.approx(9, abs=1e-6)
    assert frechet_distance(x, 2 * x) == pytest.approx(
        np.trace(np.cov(x.T)) + (x.mean(0) ** 2).sum(), rel=1e-6
    )


def test_frechet_of_diagonal_gaussians_has_its_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = (
        rng.normal(size=(20000, 3)) * [1, 2, 3],
        rng.normal(size=(20000, 3)) * [2, 2, 1]
        + [
            0,
            1,
            0,
        ],
    )
    assert frechet_distance(a, b) == pytest.approx(1 + (2 - 1) ** 2 + (1 - 3) ** 2, rel=0.05)


def test_kernel_distance_is_the_unbiased_sum_over_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(12, 5)), rng.normal(size=(12, 5)) + 0.5

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 5 + 1) ** 3)

    within = sum(k(s[i], s[j]) for s in (a, b) for i in range(12) for j in range(12) if i != j) / (
        12 * 11
    )
    across = sum(k(x, y) for x in a for y in b) / 144
    assert kernel_distance(a, b) == pytest.approx(within - 2 * across)
    with pytest.raises(ValueError, match="one size"):
        kernel_distance(a, b[:5])


def test_kernel_distance_of_one_distribution_averages_zero() -> None:
    rng = np.random.default_rng(0)
    values = [
        kernel_distance(rng.normal(size=(40, 4)), rng.normal(size=(40, 4))) for _ in range(200)
    ]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    assert kernel_distance(rng.normal(size=(40, 4)), rng.normal(size=(40, 4)) + 1) > max(values)


def test_interval_of_a_distance_holds_its_value() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(150, 8)), rng.normal(size=(100, 8)) + 1
    value, low, high = distance_interval(frechet_distance, a, b)
    assert value == pytest.approx(frechet_distance(a[:100], b)) and low < value < high


def test_interval_of_a_distance_of_two_equal_sets_is_not_that_of_their_repeats() -> None:
    """Two draws of one set differ by their repeats alone; without the offset the interval would lie
    far above the distance."""
    a, b = np.random.default_rng(0).normal(size=(2, 100, 8))
    value, low, high = distance_interval(frechet_distance, a, b)
    rng = np.random.default_rng(1)
    drawn = [
        frechet_distance(a[rng.integers(0, 100, 100)], b[rng.integers(0, 100, 100)])
        for _ in range(20)
    ]
    assert np.mean(drawn) > 1.3 * value and low < value < high < np.mean(drawn) + high - low


def test_copies_of_one_image_have_no_diversity() -> None:
    real = np.random.default_rng(0).normal(size=(120, 64))
    assert relative_diversity(real, real).value == pytest.approx(1)
    assert relative_diversity(np.repeat(real[:1], 120, 0), real).value == 0


def test_a_copy_has_distance_zero_to_the_training_images() -> None:
    pool = pictures(20)
    d = nearest_distance(torch.cat([pool[3:4], pictures(1, seed=9)]), pool)
    assert d[0] == pytest.approx(0, abs=1e-4) and d[1] > 0.05
    assert nearest_distance(pool[:1] + 0.1, pool[:1])[0] == pytest.approx(0.1, abs=1e-4)


def test_a_copy_is_found_at_distance_zero() -> None:
    pool = pictures(6, seed=3)
    index, distance = nearest(pool[4:5], pool)
    assert index[0, 0] == 4 and distance[0, 0] < 1e-3 < distance[0, 1]
    assert nearest_distance(pool[4:5], pool)[0] == distance[0, 0].item()
    with pytest.raises(ValueError, match="1 to 6"):
        nearest(pool[:2], pool, 7)
