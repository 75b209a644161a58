"""Agreement of two series of answers beyond chance, for many questions at once.

Written out because both are taken hundreds of times (a bootstrap) over a dozen columns, and because
a column without any variation must give NaN, in silence: scikit-learn and torchmetrics have Cohen's
kappa for one column, and scipy's ``pearsonr`` warns. Tests hold both to those libraries.
"""

from __future__ import annotations

import numpy as np

__all__ = ["cohen_kappa", "pearson"]


def cohen_kappa(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cohen's kappa (1960) of yes-or-no answers, (p_o - p_e) / (1 - p_e): agreement beyond that of
    independent answers.

    Args:
        a, b: (N, ...), bool or 0 and 1; row i of both is one study.

    Returns:
        (...), at most 1; 0 for independent answers, NaN where both always say the same one thing.
    """
    p, q = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    chance = p.mean(0) * q.mean(0) + (1 - p.mean(0)) * (1 - q.mean(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((p == q).mean(0) - chance) / (1 - chance)


def pearson(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each column.

    Args:
        a, b: (N, ...); row i of both is one study.

    Returns:
        (...) in -1..1; NaN where a column is constant.
    """
    u, v = (np.asarray(x, dtype=float) - np.mean(x, axis=0) for x in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (u * v).sum(0) / np.sqrt((u**2).sum(0) * (v**2).sum(0))
