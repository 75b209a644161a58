"""The one bootstrap: against scipy's, and what scipy's cannot do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medm2g_core.metrics.bootstrap import bootstrap, bootstrap_mean
from medm2g_core.metrics.findings import finding_f1


def test_intervals_are_those_of_scipy_with_the_same_seed() -> None:
    x = np.random.default_rng(1).exponential(size=30)
    for name, statistic in {"mean": np.mean, "median": np.median}.items():
        reference = stats.bootstrap(
            (x,),
            statistic,
            n_resamples=200,
            confidence_level=0.9,
            method="percentile",
            rng=np.random.default_rng(7),
        ).confidence_interval
        ours = bootstrap(lambda i, f=statistic: f(x[i]), len(x), draws=200, level=0.9, seed=7)
        assert ours.value == statistic(x)
        assert ours[1:] == pytest.approx(tuple(reference), abs=1e-12), name


def test_intervals_of_two_sets_are_those_of_scipy_with_the_same_seed() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=20), rng.normal(size=35) + 1
    reference = stats.bootstrap(
        (a, b),
        lambda x, y: np.mean(x) - np.mean(y),
        vectorized=False,
        n_resamples=150,
        batch=1,  # a draw of both sets at a time, as ours
        method="percentile",
        rng=np.random.default_rng(3),
    ).confidence_interval
    ours = bootstrap(lambda i, j: a[i].mean() - b[j].mean(), 20, 35, draws=150, seed=3)
    assert ours.value == pytest.approx(a.mean() - b.mean())
    assert ours[1:] == pytest.approx(tuple(reference), abs=1e-12)


def test_interval_of_a_mean_holds_it_and_shrinks_with_n() -> None:
    x = np.random.default_rng(0).normal(5, 1, 400)
    value, low, high = bootstrap_mean(x.tolist())
    assert low < value < high and abs(value - 5) < 0.2
    few = bootstrap_mean(x[:25].tolist())
    assert few.high - few.low > 2 * (high - low)


def test_interval_of_a_mean_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(200, 40))
    intervals = [bootstrap(lambda i, x=x: x[i].mean(), 40, draws=200) for x in samples]
    assert 0.88 < np.mean([low < 0 < high for _, low, high in intervals]) < 0.99


def test_interval_of_a_micro_score_draws_whole_reports() -> None:
    counts = np.array([(1, 0, 0)] * 10 + [(0, 0, 1)] * 10)
    value, low, high = bootstrap(lambda i: finding_f1(counts[i]), len(counts))
    assert value == pytest.approx(2 / 3) and low < value < high


def test_draws_without_a_value_are_left_out_and_a_score_without_one_has_no_interval() -> None:
    x = np.array([np.nan, 1.0, 2.0, 3.0])

    def mean_of_the_known(i: np.ndarray) -> float:
        known = x[i][np.isfinite(x[i])]
        return known.mean() if len(known) else float("nan")  # four times the first row: none

    assert np.isfinite(bootstrap(mean_of_the_known, 4, draws=2000)).all()
    assert np.isnan(bootstrap(lambda i: float("nan"), 4)).all()


def test_centred_draws_lie_around_the_value_and_others_where_the_repeats_put_them() -> None:
    """The number of different rows: every draw with repeats has fewer than the set."""
    n = 50

    def different(i: np.ndarray) -> float:
        return float(len(set(i.tolist())))

    plain, centred = (bootstrap(different, n, centred=c) for c in (False, True))
    assert plain.value == plain.high == centred.value == n and plain.low < 0.7 * n
    assert centred.low < n < centred.high
    assert (centred.high + centred.low) / 2 == pytest.approx(n, abs=1)


def test_one_study_has_no_spread_and_none_is_refused() -> None:
    assert bootstrap_mean([3.0]) == (3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match="one number a study"):
        bootstrap_mean(np.zeros((4, 3)))
