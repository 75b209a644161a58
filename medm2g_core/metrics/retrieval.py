"""Retrieval by similarity: does a row of one set of embeddings find its partner in another?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import torch

from medm2g_core.streams import Finding

__all__ = ["ceiling_hits", "hits_at", "same_findings_at_1"]


def hits_at(
    query: torch.Tensor, gallery: torch.Tensor, k: int, own: torch.Tensor | None = None
) -> list[float]:
    """For every query its chance of finding its own partner among the ``k`` most similar; the mean
    is recall at ``k``.

    Args:
        query: (N, D), gallery: (M, D) embeddings, compared by their dot product. By default M is N
            and row i of one belongs to row i of the other.
        own: (N,) index of each query's partner in the gallery; by default its own row.

    Returns:
        N numbers of 0..1. Partners that tie with others (identical embeddings) count with the
        fraction of a random order, so copies are neither favoured nor punished.
    """
    score = query @ gallery.T  # (N, M)
    partner = torch.arange(len(query), device=query.device) if own is None else own
    mine = score.gather(1, partner[:, None])  # (N, 1)
    above = (score > mine).sum(1)
    ties = (score == mine).sum(1)  # at least 1: itself
    return ((k - above).clamp(min=0).minimum(ties) / ties).tolist()


def ceiling_hits(keys: Sequence[Hashable], k: int) -> list[float]:
    """`hits_at` of a reader who knows everything that ``keys`` say and nothing else: equal keys are
    a draw.

    Args:
        keys: N, one of each study.

    Returns:
        N numbers of 0..1.
    """
    copies = Counter(keys)
    return [min(k, copies[key]) / copies[key] for key in keys]


def same_findings_at_1(
    query: torch.Tensor, gallery: torch.Tensor, findings: Sequence[Sequence[Finding]]
) -> list[float]:
    """1 where the most similar row of the gallery is of a patient with exactly the same findings,
    side, location and size class, else 0.

    Args:
        query, gallery: (N, D) embeddings; row i of both is study i.
        findings: of the N studies.

    Returns:
        N numbers, 0 or 1.
    """
    keys = [frozenset(f.key for f in fs) for fs in findings]
    best = (query @ gallery.T).argmax(1).tolist()  # (N,)
    return [float(keys[i] == keys[j]) for i, j in enumerate(best)]
