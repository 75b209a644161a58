"""Alignment: does a report find its pictures, and a picture its report and the other pictures of
its patient?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from medm2g_core.evaluation.bench import SHIFT, Bench
from medm2g_core.evaluation.codec import REGION_STREAMS
from medm2g_core.evaluation.table import Check, SectionResult, make_row
from medm2g_core.rivals.reports import embed_images, embed_reports
from medm2g_core.streams import STREAMS, Finding

__all__ = ["alignment_section", "ceiling_hits", "hits_at", "same_findings_at_1"]


def hits_at(
    query: torch.Tensor, gallery: torch.Tensor, k: int, own: torch.Tensor | None = None
) -> list[float]:
    """For every query its chance of finding its own partner among the ``k`` most similar.

    Args:
        query, gallery: (N, D) embeddings; row i of one belongs to row i of the other.
        own: (N,) index of each query's partner in the gallery; by default its own row.

    Returns:
        N numbers of 0..1. Partners that tie with others (identical embeddings) count with the
        fraction of a random order, so copies are neither favoured nor punished.
    """
    score = query @ gallery.T
    partner = torch.arange(len(query), device=query.device) if own is None else own
    mine = score.gather(1, partner[:, None])
    above = (score > mine).sum(1)
    ties = (score == mine).sum(1)  # at least 1: itself
    return ((k - above).clamp(min=0).minimum(ties) / ties).tolist()


def ceiling_hits(keys: Sequence[object], k: int) -> list[float]:
    """`hits_at` of a reader who knows everything that ``keys`` say and nothing else: equal keys are
    a draw."""
    counts = [sum(a == b for b in keys) for a in keys]
    return [min(k, c) / c for c in counts]


def same_findings_at_1(
    query: torch.Tensor, gallery: torch.Tensor, findings: Sequence[tuple[Finding, ...]]
) -> list[float]:
    """1 where the most similar row of the gallery is of a patient with exactly the same findings,
    side, lobe, size."""
    keys = [frozenset(f.key for f in fs) for fs in findings]
    best = (query @ gallery.T).argmax(1).tolist()
    return [float(keys[i] == keys[j]) for i, j in enumerate(best)]


@torch.no_grad()
def alignment_section(bench: Bench) -> SectionResult:
    """R@1/5/10 and same-findings@1 of every pair of streams, both ways.

    Rivals: chance, and the raw pixels (cosine of 16 x 16 pictures; between pictures only).
    Ceilings: a reader who knows the findings but not the patient (``duplicate texts`` of equal
    findings are a draw); for same-findings@1 it is the chance that another study of the gallery
    shares the findings at all: 1, as the patient's own study is there.
    """
    outcome = SectionResult()
    for region, images in REGION_STREAMS.items():
        data = bench.data[region]
        findings = data.findings
        keys = [frozenset(f.key for f in fs) for fs in findings]
        embedded = {"text": embed_reports(bench.model, data.texts)}
        pixels = {}
        for name in images:
            x = data.stack(name)
            embedded[name] = embed_images(bench.model, name, x)
            small = torch.nn.functional.adaptive_avg_pool2d(x, 16).flatten(1)
            pixels[name] = torch.nn.functional.normalize(small - small.mean(0), dim=-1)
        n = len(data)
        for a, b in itertools.permutations(embedded, 2):
            task = f"alignment: {STREAMS[a].title} → {STREAMS[b].title} ({region})"
            for k in (1, 5, 10):
                metric = f"R@{k}"
                outcome.rows.append(
                    make_row(task, metric, "model", hits_at(embedded[a], embedded[b], k))
                )
                if a in pixels and b in pixels:
                    outcome.rows.append(
                        make_row(task, metric, "baseline: pixels", hits_at(pixels[a], pixels[b], k))
                    )
                outcome.rows.append(make_row(task, metric, "baseline: chance", [k / n] * n))
                outcome.rows.append(
                    make_row(task, metric, "ceiling: knows all findings", ceiling_hits(keys, k))
                )
            metric = "same findings@1"
            outcome.rows.append(
                make_row(
                    task, metric, "model", same_findings_at_1(embedded[a], embedded[b], findings)
                )
            )
            if a in pixels and b in pixels:
                outcome.rows.append(
                    make_row(
                        task,
                        metric,
                        "baseline: pixels",
                        same_findings_at_1(pixels[a], pixels[b], findings),
                    )
                )
            outcome.rows.append(
                make_row(
                    task, metric, "baseline: chance", [sum(p == q for q in keys) / n for p in keys]
                )
            )
            moved = [(i + SHIFT) % n for i in range(n)]
            control = hits_at(embedded[a], embedded[b], 5, torch.tensor(moved))
            row = make_row(task, "R@5", "control: another patient's partner", control)
            outcome.rows.append(row)
            chance = 5 / n
            outcome.checks.append(
                Check(
                    f"{task}: another patient's partner is found by chance",
                    row.value
                    <= chance + 4 * (chance / n) ** 0.5,  # four deviations of a binomial share
                    f"R@5 {row.value:.3f} [{row.low:.3f}, {row.high:.3f}], chance {chance:.3f}",
                )
            )
    return outcome
