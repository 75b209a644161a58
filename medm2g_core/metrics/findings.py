"""Findings said and findings true: counts and F1."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from medm2g_core.streams import Finding

__all__ = ["Counts", "finding_counts", "finding_f1"]

Counts = tuple[int, int, int]
"""True positives, false positives, false negatives."""


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
