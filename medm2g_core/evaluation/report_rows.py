"""Rows of generated reports: the scores of every predictor on the same studies.

The findings that a rule-based labeller reads from the reports lead; word overlap stands beside
them. The scores themselves are `medm2g_core.metrics.findings` and
`medm2g_core.metrics.report_scores`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from medm2g_core.data.labeller import ReportLabels, label_report
from medm2g_core.evaluation.table import Row, interval_row, make_row
from medm2g_core.metrics.bootstrap import bootstrap
from medm2g_core.metrics.findings import (
    finding_counts,
    finding_f1,
    finding_precision,
    finding_recall,
    partial_counts,
)
from medm2g_core.metrics.report_scores import (
    bleu,
    bleu_counts,
    distinct_share,
    meteor,
    rouge_l,
    self_contradictions,
)
from medm2g_core.streams import Finding

__all__ = ["Truth", "finding_summary", "overlap_rows", "report_rows"]

NEAR_YEARS = 10
"""An age that is off by so much still tells young from old."""


@dataclass(frozen=True)
class Truth:
    """What reports are measured against.

    Attributes:
        region: ``"chest"`` or ``"brain"``.
        texts: N real reports.
        findings: N tuples of what is true.
    """

    region: str
    texts: Sequence[str]
    findings: Sequence[tuple[Finding, ...]]

    def __post_init__(self) -> None:
        if len(self.texts) != len(self.findings):
            raise ValueError(
                f"{len(self.texts)} reports and {len(self.findings)} sets of findings; needed one"
                " of each"
            )

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def labels(self) -> list[ReportLabels]:
        """What the labeller reads from the real reports: their age and sex."""
        return [label_report(t, self.region) for t in self.texts]


def finding_summary(texts: Sequence[str], truth: Truth) -> dict[str, float]:
    """Strict and presence F1 of reports, without intervals: for tuning."""
    said = [label_report(t, truth.region).findings for t in texts]
    return {
        name: finding_f1(
            [finding_counts(s, f, strict=strict) for s, f in zip(said, truth.findings, strict=True)]
        )
        for name, strict in (("strict", True), ("presence", False))
    }


# ---- rows


class _Table:
    """Rows of one task, metric by metric in the order in which the metrics first came.

    Args:
        notes: who -> note of its rows.
    """

    def __init__(self, task: str, notes: Mapping[str, str] | None) -> None:
        self.task, self.notes = task, notes or {}
        self.groups: dict[str, list[Row]] = {}

    def _add(self, row: Row) -> None:
        self.groups.setdefault(row.metric, []).append(row)

    def mean(self, metric: str, who: str, samples: Sequence[float]) -> None:
        """A score that is one number a study."""
        self._add(make_row(self.task, metric, who, samples, self.notes.get(who, "")))

    def pooled(
        self, metric: str, who: str, counts: np.ndarray, score: Callable[[np.ndarray], float]
    ) -> None:
        """A score of the sum over studies of ``counts`` (N, k), such as a micro F1; the studies are
        drawn, then summed."""
        scored = bootstrap(lambda i: score(counts[i].sum(0)), len(counts))
        self._add(
            interval_row(self.task, metric, who, scored, len(counts), self.notes.get(who, ""))
        )

    @property
    def rows(self) -> list[Row]:
        return [r for group in self.groups.values() for r in group]


def report_rows(
    task: str,
    rivals: Mapping[str, Sequence[str]],
    truth: Truth,
    *,
    notes: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
) -> list[Row]:
    """All scores of several predictors on the same studies, metric by metric.

    Args:
        rivals: who (see `Row`) -> N reports.
        notes: who -> note of its rows.
        only: metrics to keep; all by default.

    Returns:
        Rows; a precision is 0 where nothing is claimed. METEOR rows are left out where it cannot
        run (`METEOR_MISSING`).

    Raises:
        ValueError: a predictor with another number of reports than the truth.
    """
    for who, texts in rivals.items():
        if len(texts) != len(truth):
            raise ValueError(f"{who}: {len(texts)} reports for {len(truth)} studies")
    table = _Table(task, notes)
    for who, texts in rivals.items():
        labels = [label_report(t, truth.region) for t in texts]
        _add_findings(table, who, [s.findings for s in labels], truth)
        agreeing = [float(not self_contradictions(t, truth.region)) for t in texts]
        table.mean("no self-contradiction, share", who, agreeing)
        _add_person(table, who, labels, truth)
        same = [a.split() == b.split() for a, b in zip(texts, truth.texts, strict=True)]
        table.mean("exact match, share", who, [float(s) for s in same])
        _add_variety(table, who, list(texts), [s.findings for s in labels], truth)
    rows = table.rows
    if only is None or any(m.startswith(("BLEU", "ROUGE", "METEOR")) for m in only):
        rows += overlap_rows(task, rivals, truth.texts, notes=notes)
    return [r for r in rows if only is None or r.metric in only]


def _add_findings(table: _Table, who: str, said: Sequence[Sequence[Finding]], truth: Truth) -> None:
    """Micro scores of all findings, and of one attribute at a time."""
    pairs = list(zip(said, truth.findings, strict=True))
    scores = {"F1": finding_f1, "precision": finding_precision, "recall": finding_recall}
    for kind, strict in (("strict", True), ("presence", False)):
        counts = np.array([finding_counts(s, f, strict=strict) for s, f in pairs])
        for name, score in scores.items():
            table.pooled(f"finding {name}, {kind}", who, counts, score)
    for name, attribute in (("side", "side"), ("lobe", "location"), ("size", "size")):
        counts = np.array([partial_counts(s, f, attribute) for s, f in pairs])
        table.pooled(f"finding F1, name and {name}", who, counts, finding_f1)


def _add_person(table: _Table, who: str, labels: Sequence[ReportLabels], truth: Truth) -> None:
    """Age and sex, against what the labeller reads from the real reports."""
    pairs = list(zip(labels, truth.labels, strict=True))
    for years, name in ((0, "age right"), (NEAR_YEARS, f"age within {NEAR_YEARS} years")):
        near = [float(_near(a.age, b.age, years)) for a, b in pairs]
        table.mean(f"{name}, share", who, near)
    table.mean("sex right, share", who, [float(a.sex == b.sex) for a, b in pairs])


def _near(a: int | None, b: int | None, years: int) -> bool:
    return a is not None and b is not None and abs(a - b) <= years


def _add_variety(
    table: _Table,
    who: str,
    texts: Sequence[str],
    said: Sequence[Sequence[Finding]],
    truth: Truth,
) -> None:
    """Distinct reports, and distinct sets of findings, relative to those of the real reports."""

    def finding_set(findings: Sequence[Finding]) -> frozenset[tuple[str, str, str, str]]:
        return frozenset(f.key for f in findings)

    for name, ours, real in (
        ("reports", texts, truth.texts),
        ("finding sets", [finding_set(s) for s in said], [finding_set(f) for f in truth.findings]),
    ):
        share = np.array(distinct_share(ours)) * len(truth) / len(set(real))
        table.mean(f"distinct {name} / real ones", who, share.tolist())


def overlap_rows(
    task: str,
    rivals: Mapping[str, Sequence[str]],
    reference: Sequence[str],
    *,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """BLEU-1..4, ROUGE-L and METEOR (where it can run) of several predictors against N real
    reports.

    Args:
        rivals: who (see `Row`) -> N reports.
        notes: who -> note of its rows.
    """
    table = _Table(task, notes)
    for who, texts in rivals.items():
        counts = bleu_counts(texts, reference)
        for n in (1, 2, 3, 4):
            table.pooled(f"BLEU-{n}, corpus", who, counts, partial(bleu, order=n))
        for n in (1, 2, 3, 4):
            each = [bleu(c, n, sentence=True) for c in counts]
            table.mean(f"BLEU-{n}, mean of studies", who, each)
        overlap = [rouge_l(a, b) for a, b in zip(texts, reference, strict=True)]
        table.mean("ROUGE-L", who, overlap)
    # All in one call: java starts once.
    flat = [t for texts in rivals.values() for t in texts]
    scores = meteor(flat, [t for _ in rivals for t in reference])
    for i, who in enumerate(rivals if scores else ()):
        assert scores is not None
        n = len(reference)
        table.mean("METEOR", who, scores[i * n : (i + 1) * n])
    return table.rows
