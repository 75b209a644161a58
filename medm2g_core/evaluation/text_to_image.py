"""From a report to a picture: does it show what the report says, and does it look like a real
one?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.evaluation.bench import BATCH, SHIFT, Bench, Split
from medm2g_core.evaluation.fidelity import (
    AUC,
    CODEC,
    NEAREST,
    REAL,
    Reading,
    auc_by_finding,
    chance_check,
    judge_check,
    judged_rows,
    macro_auc,
)
from medm2g_core.evaluation.table import SectionResult, choose_setting, make_row
from medm2g_core.judges.judge import Judges
from medm2g_core.metrics.distributions import nearest_distance
from medm2g_core.model import MedM2G
from medm2g_core.streams import STREAMS

__all__ = ["TARGETS", "nearest_reports", "other_studies", "text_to_image"]

TARGETS: tuple[tuple[str, str], ...] = (
    ("chest", "xray"),
    ("chest", "ct"),
    ("chest", "mri_t2"),
    ("brain", "mri_flair"),
)
"""(region, stream) drawn from the report alone; text and MR never trained together."""

GUIDANCES = (1.0, 4.0)
BEST_OF = 4
"""Draws from which the aligned encoders choose one."""
CONTROL = "control: another patient's report"
NEAREST_REPORT = "baseline: image of the nearest report"


def other_studies(bench: Bench, region: str) -> VirtualCohort:
    """As many real studies of the validation split as the bench has test studies: the reference of
    all distances.

    Neither the model nor the test studies have to do with them, so the real test images' distance
    is the floor.
    """
    known = bench.other[region]
    return VirtualCohort(
        "val", region, len(bench.data[region]), resolution=known.resolution, persons=known.persons
    )


@torch.no_grad()
def nearest_reports(model: MedM2G, reports: Sequence[str], pool: Sequence[str]) -> list[int]:
    """For each report the index of the most similar one of a pool, by the aligned text
    embedding."""

    def embed(texts: Sequence[str]) -> torch.Tensor:
        parts = [list(texts[i : i + 2 * BATCH]) for i in range(0, len(texts), 2 * BATCH)]
        return torch.cat([model.embed({"text": p})["text"].pooled for p in parts])

    return (embed(reports) @ embed(pool).T).argmax(1).tolist()


def text_to_image(
    bench: Bench,
    judges: Judges,
    train_images: Mapping[str, VirtualCohort],
    targets: Sequence[tuple[str, str]] = TARGETS,
) -> SectionResult:
    """Report to X-ray, CT, T2 (chest) and FLAIR (brain), judged by classifiers that never saw a
    generated image.

    The model at the bench's guidance, and at `GUIDANCES` (AUC and Fréchet distance: the first rises
    with guidance, the second shows the price); rivals are the real training image of the most
    similar report, and a random one. Which of the model's settings is best, finding AUC on
    validation studies decides.

    Args:
        train_images: region -> studies of the train split, with their reports.
    """
    outcome = SectionResult(
        facts={"guidance": bench.guidance, "steps": bench.steps, "auc": {}, "training images": {}}
    )
    for region, name in targets:
        data, train, judge = bench.data[region], train_images[region], judges[region, name]
        task = f"Report → {STREAMS[name].title} ({region})"
        pool = train.stack(name)
        random = np.random.default_rng(bench.seed).integers(0, len(train), len(data))
        codec = bench.codec(region, name)
        assert isinstance(codec, torch.Tensor)
        predictors = {
            **_settings(bench, region, name),
            NEAREST_REPORT: pool[nearest_reports(bench.model, data.texts, train.texts)],
            "baseline: random real image": pool[random],
            CONTROL: bench.draw(region, ["text"], [name], shift=SHIFT)[name],
            CODEC: codec,
            REAL: data.stack(name),
        }
        reference = judge.features(other_studies(bench, region).stack(name))
        notes = {REAL: "Fréchet and kernel distance: real against other real images, the floor"}
        rows, readings = judged_rows(task, judge, predictors, data.findings, reference, notes=notes)
        outcome.rows += rows
        outcome.rows += [
            make_row(task, NEAREST, who, nearest_distance(predictors[who], pool).tolist())
            for who in ("model", NEAREST_REPORT, CODEC, REAL)
        ]
        outcome.checks += [chance_check(task, readings, CONTROL), judge_check(task, readings)]
        outcome.facts["auc"][task] = {
            who: auc_by_finding(readings[who]) for who in ("model", CODEC, REAL)
        }
        outcome.facts["training images"][region] = len(train)
        val = bench.studies(region, "val")
        aucs = {
            who: macro_auc(Reading.of(judge, x, val.findings))
            for who, x in _settings(bench, region, name, "val").items()
        }
        choose_setting(outcome, [task], aucs, by=AUC, n=len(val))
    return outcome


def _settings(
    bench: Bench, region: str, name: str, split: Split = "test"
) -> dict[str, torch.Tensor]:
    """Images (N, 1, H, W) of every setting of the model: one draw, other guidance, best of
    several."""

    def draw(**options: Any) -> torch.Tensor:
        return bench.draw(region, ["text"], [name], split=split, **options)[name]

    others = {f"model, guidance {g:g}": draw(guidance=g) for g in GUIDANCES if g != bench.guidance}
    best = {f"model, best of {BEST_OF} by the aligned encoders": draw(best_of=BEST_OF)}
    return {"model": draw()} | others | best
