"""One sentence, several pictures, and pairs that never trained together: does everything speak of
one patient?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from medm2g_core.evaluation.bench import SHIFT, Bench, Split
from medm2g_core.evaluation.fidelity import (
    AUC,
    CODEC,
    REAL,
    Reading,
    auc_by_finding,
    chance_check,
    finding_scores,
    judge_check,
    judged_rows,
    macro_auc,
    rows_of,
    stream_agreement,
)
from medm2g_core.evaluation.table import Check, Row, SectionResult, choose_setting, make_row
from medm2g_core.evaluation.text_to_image import other_studies
from medm2g_core.judges.judge import Judges
from medm2g_core.metrics.retrieval import hits_at
from medm2g_core.rivals.reports import embed_images
from medm2g_core.sampling import Order
from medm2g_core.streams import STREAMS

__all__ = ["JOINT", "PAIRS", "unified"]

REGION = "chest"
JOINT = ("xray", "ct", "mri_t2")
"""Drawn from one report."""

PAIRS: tuple[tuple[str, str, str], ...] = (
    ("ct", "xray", "text"),
    ("xray", "ct", "text"),
    ("text", "mri_t2", "ct"),
    ("xray", "mri_t2", "ct"),
)
"""(given, wanted, third): given and wanted never trained together, third and wanted did."""

CONTROL = "control: another patient's input"
ANOTHER_PARTNER = "control: another patient's partner"
ORDERS: Mapping[Order, str] = {"joint": "model", "cascade": "model, cascade"}


def unified(bench: Bench, judges: Judges) -> SectionResult:
    """Pairs that never trained together, and joint generation from one report.

    *Pairs*: findings and looks of the wanted stream, beside the pair that was trained to draw the
    same stream.

    *Joint*: X-ray, CT and T2 drawn from one report together (``joint``), one after another
    (``cascade``), or apart, each from noise of its own. The report alone makes them agree; what the
    streams tell each other shows in draws from nothing at all, where streams drawn apart have
    nothing in common (a control).
    """
    outcome = SectionResult(
        facts={
            "guidance": bench.guidance,
            "steps": bench.steps,
            "auc": {},
            "relative to trained pair": {},
        }
    )
    for given, want, trained in PAIRS:
        _pair(bench, judges, given, want, trained, outcome)
    _together(bench, judges, ["text"], JOINT, outcome)
    _together(bench, judges, [], JOINT, outcome)
    return outcome


def _pair(
    bench: Bench, judges: Judges, given: str, want: str, trained: str, outcome: SectionResult
) -> None:
    data, judge = bench.data[REGION], judges[REGION, want]
    task = f"{STREAMS[given].title} → {STREAMS[want].title} ({REGION}), never trained together"
    trained_pair = f"ceiling: trained pair {STREAMS[trained].title} → {STREAMS[want].title}"
    scale = bench.guidance
    codec, others = bench.codec(REGION, want), other_studies(bench, REGION).stack(want)
    assert isinstance(codec, torch.Tensor)

    def draw(
        source: str, shift: int = 0, guidance: float = scale, split: Split = "test"
    ) -> torch.Tensor:
        options: dict[str, Any] = {"shift": shift, "guidance": guidance, "split": split}
        return bench.draw(REGION, [source], [want], **options)[want]

    settings = {"model": scale} | ({"model, guidance 1": 1.0} if scale != 1 else {})
    predictors = {
        **{who: draw(given, guidance=g) for who, g in settings.items()},
        "baseline: another patient's real image": data.stack(want).roll(-SHIFT, 0),
        CONTROL: draw(given, SHIFT),
        trained_pair: draw(trained),
        CODEC: codec,
        REAL: data.stack(want),
    }
    notes = {REAL: "Fréchet and kernel distance: real against other real images, the floor"}
    rows, readings = judged_rows(
        task, judge, predictors, data.findings, judge.features(others), notes=notes
    )
    outcome.rows += rows
    outcome.checks += [chance_check(task, readings, CONTROL), judge_check(task, readings)]
    outcome.facts["auc"][task] = {
        who: auc_by_finding(readings[who]) for who in ("model", trained_pair, REAL)
    }
    ratio = macro_auc(readings["model"]) / macro_auc(readings[trained_pair])
    outcome.facts["relative to trained pair"][task] = (
        round(ratio, 3) if np.isfinite(ratio) else None
    )
    val = bench.studies(REGION, "val")
    aucs = {
        who: macro_auc(Reading.of(judge, draw(given, guidance=g, split="val"), val.findings))
        for who, g in settings.items()
    }
    choose_setting(outcome, [task], aucs, by=AUC, n=len(val))


def _together(
    bench: Bench,
    judges: Judges,
    given: Sequence[str],
    streams: Sequence[str],
    outcome: SectionResult,
) -> None:
    """Streams of one patient drawn from a report, or from nothing: findings, agreement,
    matching."""
    data, n = bench.data[REGION], len(bench.data[REGION])
    apart = "baseline: drawn apart" if given else "control: drawn apart"
    drawn = {
        who: bench.draw(REGION, given, streams, order=o, guidance=bench.guidance)
        for o, who in ORDERS.items()
    }
    drawn[apart] = {
        s: bench.draw(REGION, given, [s], draw=i, guidance=bench.guidance)[s]
        for i, s in enumerate(streams)
    }
    drawn[REAL] = {s: data.stack(s) for s in streams}
    readings = {
        who: {s: Reading.of(judges[REGION, s], x[s], data.findings) for s in streams}
        for who, x in drawn.items()
    }
    task = f"{'Report' if given else 'nothing'} → {' + '.join(STREAMS[s].title for s in streams)}"
    if given:  # without a report there is nothing to be right about
        for s, who in itertools.product(streams, readings):
            outcome.rows += rows_of(
                f"{task}: {STREAMS[s].title}", who, finding_scores(readings[who][s]), n
            )
    for a, b in itertools.combinations(streams, 2):
        title = f"{task}: {STREAMS[a].title} and {STREAMS[b].title}"
        pairs = {who: (r[a], r[b]) for who, r in readings.items()}
        pairs[ANOTHER_PARTNER] = (readings["model"][a], _moved(readings["model"][b]))
        for who, (x, y) in pairs.items():
            rows = rows_of(title, who, stream_agreement(x, y), n)
            outcome.rows += rows
            if who.startswith("control: "):
                outcome.checks += [_disagree(r) for r in rows]
        outcome.rows += _matching(bench, title, (a, b), {w: (x[a], x[b]) for w, x in drawn.items()})
    n_val = len(bench.studies(REGION, "val"))
    tasks = {r.task for r in outcome.rows if r.task.startswith(f"{task}: ")}
    by_order = {who: _agreement(bench, judges, given, streams, o) for o, who in ORDERS.items()}
    choose_setting(outcome, tasks, by_order, by=f"{AGREEMENT}, mean of all pairs", n=n_val)


AGREEMENT = "agreement: correlation"


def _agreement(
    bench: Bench, judges: Judges, given: Sequence[str], streams: Sequence[str], order: Order
) -> float:
    """Mean agreement of all pairs of streams that are drawn in one order for validation studies."""
    drawn = bench.draw(REGION, given, streams, order=order, guidance=bench.guidance, split="val")
    findings = bench.studies(REGION, "val").findings
    readings = [Reading.of(judges[REGION, s], drawn[s], findings) for s in streams]
    scores = [
        stream_agreement(a, b, draws=1).get(AGREEMENT, (float("nan"),))[0]
        for a, b in itertools.combinations(readings, 2)
    ]
    return float(np.mean(scores))


def _moved(reading: Reading) -> Reading:
    """The same images, each taken for that of another study."""
    return replace(reading, logits=np.roll(reading.logits, -SHIFT, 0))


def _disagree(row: Row) -> Check:
    """A control agrees no more than by chance, which is 0."""
    return Check(
        f"{row.task}: {row.who.removeprefix('control: ')} does not agree",
        row.low <= 0 or row.value < 0.15,
        f"{row.metric} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}]",
    )


@torch.no_grad()
def _matching(
    bench: Bench,
    task: str,
    names: tuple[str, str],
    pairs: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
) -> list[Row]:
    """Does an image find its partner of the other stream among all, by the aligned encoders of the
    model under test?"""
    rows = []
    for who, images in pairs.items():
        query, gallery = (
            embed_images(bench.model, s, x) for s, x in zip(names, images, strict=True)
        )
        rows += [make_row(task, f"R@{k}", who, hits_at(query, gallery, k)) for k in (1, 5)]
    n = len(query)
    return rows + [
        make_row(task, f"R@{k}", "baseline: chance", [min(1.0, k / n)] * n) for k in (1, 5)
    ]
