"""Findings that were reported against findings that are true: counts, F1, agreement of two reports.

Everything here is about sets of `Finding`; where they come from (the labeller reading a text, a
person) does not matter. Counts of single reports are kept, not shares, so that scores of many
reports are micro averages and can be drawn again (`medm2g_core.metrics.bootstrap`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from medm2g_core.data.findings import FINDINGS
from medm2g_core.streams import Finding

__all__ = [
    "ATTRIBUTES",
    "Counts",
    "finding_agreement",
    "finding_counts",
    "finding_f1",
    "finding_precision",
    "finding_recall",
    "partial_counts",
]

Counts = tuple[int, int, int]
"""True positives, false positives, false negatives."""

ATTRIBUTES = {"side": "sides", "location": "locations", "size": "sizes"}
"""Attribute of a `Finding` -> the attribute of its kind that lists the values it can take."""


def _counts(predicted: set, true: set) -> Counts:
    return len(predicted & true), len(predicted - true), len(true - predicted)


def finding_counts(
    predicted: Iterable[Finding], true: Iterable[Finding], *, strict: bool
) -> Counts:
    """Counts of one report.

    Args:
        strict: compare name, side, location and size class together (`Finding.key`); otherwise the
            name alone (presence).
    """

    def keys(findings: Iterable[Finding]) -> set:
        return {f.key if strict else f.name for f in findings}

    return _counts(keys(predicted), keys(true))


def partial_counts(predicted: Iterable[Finding], true: Iterable[Finding], attribute: str) -> Counts:
    """Counts of one report by name and one attribute, over the kinds of finding that have that
    attribute.

    Args:
        attribute: ``"side"``, ``"location"`` or ``"size"``.

    Raises:
        ValueError: another attribute.
    """
    if attribute not in ATTRIBUTES:
        raise ValueError(f"no attribute {attribute!r}; needed one of {', '.join(ATTRIBUTES)}")

    def keys(findings: Iterable[Finding]) -> set:
        return {
            (f.name, getattr(f, attribute))
            for f in findings
            if getattr(FINDINGS[f.name], ATTRIBUTES[attribute]) != ("",)
        }

    return _counts(keys(predicted), keys(true))


def _total(counts: Sequence[Counts] | np.ndarray) -> np.ndarray:
    """Counts (N, 3), or of one report (3,), to their sum (3,)."""
    return np.asarray(counts, dtype=float).reshape(-1, 3).sum(0)


def finding_precision(counts: Sequence[Counts] | np.ndarray) -> float:
    """Micro precision over reports, TP / (TP + FP), 0..1; 0 where nothing was reported."""
    tp, fp, _ = _total(counts)
    return float(tp / max(1.0, tp + fp))


def finding_recall(counts: Sequence[Counts] | np.ndarray) -> float:
    """Micro recall over reports, TP / (TP + FN), 0..1; 0 where there is nothing to find."""
    tp, _, fn = _total(counts)
    return float(tp / max(1.0, tp + fn))


def finding_f1(counts: Sequence[Counts] | np.ndarray) -> float:
    """Micro F1 over reports, 2 TP / (2 TP + FP + FN), 0..1; 0 where there is nothing to find and
    nothing was reported.

    Args:
        counts: (N, 3) of `finding_counts` or `partial_counts`, a row a report.
    """
    tp, fp, fn = _total(counts)
    return float(2 * tp / max(1.0, 2 * tp + fp + fn))


def finding_agreement(a: Sequence[Finding], b: Sequence[Finding]) -> float:
    """How far two reports name the same findings, 0..1: the mean of their strict and presence F1;
    1 for two normal ones. The order of the two does not matter."""
    if not a and not b:
        return 1.0
    return sum(finding_f1([finding_counts(a, b, strict=strict)]) for strict in (True, False)) / 2
