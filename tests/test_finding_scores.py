"""Counts and F1 of findings, and agreement of two reports, worked out by hand."""

from __future__ import annotations

import pytest
from conftest import EFFUSION, NODULE

from medm2g_core.metrics.findings import (
    finding_agreement,
    finding_counts,
    finding_f1,
    finding_precision,
    finding_recall,
    partial_counts,
)
from medm2g_core.streams import Finding


def test_strict_counts_need_side_and_size_and_presence_does_not() -> None:
    true = [Finding("pleural_effusion", "left", "", "large")]
    said = [
        Finding("pleural_effusion", "right", "", "large"),
        Finding("cardiomegaly", size="small"),
    ]
    assert finding_counts(said, true, strict=False) == (1, 1, 0)
    assert finding_counts(said, true, strict=True) == (0, 2, 1)
    assert finding_f1([(1, 1, 0)]) == pytest.approx(2 / 3)
    assert finding_f1([(0, 0, 0)]) == 0.0


def test_precision_and_recall_are_micro_averages_and_nothing_of_nothing() -> None:
    counts = [(3, 1, 0), (0, 0, 2)]
    assert finding_precision(counts) == 3 / 4 and finding_recall(counts) == 3 / 5
    assert finding_f1(counts) == pytest.approx(2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert finding_precision([(0, 0, 4)]) == 0.0 == finding_recall([(0, 4, 0)])


def test_partial_counts_leave_out_findings_without_the_attribute() -> None:
    heart = Finding("cardiomegaly", size="small")
    assert partial_counts([heart, EFFUSION], [heart, EFFUSION], "side") == (1, 0, 0)
    assert partial_counts([heart, EFFUSION], [heart, EFFUSION], "size") == (2, 0, 0)
    assert partial_counts(
        [NODULE], [Finding("nodule", "left", "upper", "small", 14)], "location"
    ) == (1, 0, 0)
    assert partial_counts([NODULE], [Finding("nodule", "left", "upper", "small", 14)], "side") == (
        0,
        1,
        1,
    )
    with pytest.raises(ValueError, match="no attribute 'lobe'"):
        partial_counts([NODULE], [NODULE], "lobe")


def test_agreement_is_whole_for_equal_findings_and_half_for_a_wrong_side() -> None:
    half = Finding("pleural_effusion", "right", "", "small")
    assert (
        finding_agreement([EFFUSION], [EFFUSION])
        == 1
        > finding_agreement([EFFUSION], [half])
        == 0.5
        > finding_agreement([EFFUSION], [])
    )
    assert finding_agreement([], []) == 1
