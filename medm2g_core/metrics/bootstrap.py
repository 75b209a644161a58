"""The interval of a mean, or of a micro F1, by bootstrap over studies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medm2g_core.metrics.findings import Counts, finding_f1

__all__ = ["bootstrap"]


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
