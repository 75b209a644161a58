"""Alignment: does a report find its pictures, and a picture its report and the other pictures of
its patient?"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from medm2g_core.evaluation.bench import SHIFT, Bench
from medm2g_core.evaluation.codec import REGION_STREAMS
from medm2g_core.evaluation.table import Check, SectionResult, make_row
from medm2g_core.metrics.retrieval import ceiling_hits, hits_at, same_findings_at_1
from medm2g_core.rivals.reports import embed_images, embed_reports
from medm2g_core.streams import STREAMS, Finding

__all__ = ["alignment_section"]

RANKS = (1, 5, 10)
"""Recall is given at these: as papers on retrieval have it."""

CONTROL_RANK = 5
"""Rank at which the control is looked at: recall at 1 of a few hundred studies is too rare."""

PIXEL_SIDE = 16
"""Pixels a side that the pixel baseline compares: about as many numbers as an embedding has."""

CHANCE_DEVIATIONS = 4
"""The control may exceed chance by so many deviations of a binomial share: there are some forty
controls, and none of them fails by luck."""


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
        embedded = {"text": embed_reports(bench.model, data.texts)}  # stream -> (N, D)
        pixels = {}
        for name in images:
            x = data.stack(name)  # (N, 1, H, W)
            embedded[name] = embed_images(bench.model, name, x)
            small = F.adaptive_avg_pool2d(x, PIXEL_SIDE).flatten(1)  # (N, PIXEL_SIDE²)
            pixels[name] = F.normalize(small - small.mean(0), dim=-1)
        for a, b in itertools.permutations(embedded, 2):
            task = f"alignment: {STREAMS[a].title} → {STREAMS[b].title} ({region})"
            sides = {"model": (embedded[a], embedded[b])}
            if a in pixels and b in pixels:
                sides["baseline: pixels"] = (pixels[a], pixels[b])
            _add_pair(outcome, task, sides, data.findings)
    return outcome


def _add_pair(
    outcome: SectionResult,
    task: str,
    sides: dict[str, tuple[torch.Tensor, torch.Tensor]],
    findings: Sequence[tuple[Finding, ...]],
) -> None:
    """Rows and control of one pair of streams.

    Args:
        sides: who -> embeddings (N, D) of the queries and of the gallery.
        findings: of the N studies.
    """
    n, keys = len(findings), [frozenset(f.key for f in fs) for fs in findings]

    def add(metric: str, who: str, samples: list[float]) -> None:
        outcome.rows.append(make_row(task, metric, who, samples))

    for k in RANKS:
        for who, (query, gallery) in sides.items():
            add(f"R@{k}", who, hits_at(query, gallery, k))
        add(f"R@{k}", "baseline: chance", [min(1.0, k / n)] * n)
        add(f"R@{k}", "ceiling: knows all findings", ceiling_hits(keys, k))
    for who, (query, gallery) in sides.items():
        add("same findings@1", who, same_findings_at_1(query, gallery, findings))
    add("same findings@1", "baseline: chance", [keys.count(key) / n for key in keys])

    partner = (torch.arange(n) + SHIFT) % n
    control = hits_at(*sides["model"], CONTROL_RANK, partner)
    row = make_row(task, f"R@{CONTROL_RANK}", "control: another patient's partner", control)
    chance = CONTROL_RANK / n
    outcome.rows.append(row)
    outcome.checks.append(
        Check(
            f"{task}: another patient's partner is found by chance",
            row.value <= chance + CHANCE_DEVIATIONS * (chance / n) ** 0.5,
            f"{row.metric} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}], chance {chance:.3f}",
        )
    )
