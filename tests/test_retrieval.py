"""Retrieval: certain for equal embeddings, chance for random ones, and fair ties."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medm2g_core.metrics.retrieval import ceiling_hits, hits_at, same_findings_at_1
from medm2g_core.streams import Finding
from medm2g_core.training.validate import recall_at


def test_recall_is_perfect_for_equal_embeddings_and_chance_for_random_ones() -> None:
    a, b = torch.nn.functional.normalize(
        torch.randn(2, 200, 16, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    assert recall_at(a, a, 1) == 1.0
    assert recall_at(a, b, 5) < 0.1
    assert np.mean(hits_at(a, a, 1)) == 1.0
    assert np.mean(hits_at(a, b, 5)) == pytest.approx(recall_at(a, b, 5))


def test_equal_embeddings_are_a_draw_in_retrieval() -> None:
    """Four copies of one patient: a rank of 1 would be luck, so each counts a quarter, as the
    ceiling says."""
    same = torch.ones(4, 3) / 3**0.5
    assert hits_at(same, same, 1) == pytest.approx([0.25] * 4)
    assert hits_at(same, same, 4) == [1.0] * 4
    assert ceiling_hits(["a", "a", "a", "a"], 1) == [0.25] * 4
    assert ceiling_hits(["a", "b", "b"], 1) == [1.0, 0.5, 0.5]


def test_same_findings_counts_another_patient_with_equal_findings_and_no_other_side() -> None:
    left, right = (
        Finding("pneumothorax", "left", "", "small"),
        Finding("pneumothorax", "right", "", "small"),
    )
    swap = torch.eye(3)[[1, 0, 2]]  # patients 0 and 1 find each other, 2 itself
    assert same_findings_at_1(torch.eye(3), swap, [(left,), (left,), ()]) == [1.0, 1.0, 1.0]
    assert same_findings_at_1(torch.eye(3), swap, [(left,), (right,), ()]) == [0.0, 0.0, 1.0]
