"""Report generation from a chest image, beside retrieval, a trained decoder, control and ceilings.

The finding scores lead: strict F1 (finding, side, lobe and size class all right) and presence F1.
Word overlap stands beside the score of a text that says exactly the true findings in other words,
which is as high as it can be expected to get.

One draw of the model stands against one greedy decode of the decoder. Both also draw `DRAWS`
reports, from which one is chosen in the same three ways (`choices_of_many`). Two of these choose
the report that agrees most with the others in findings, as the labeller reads them: minimum Bayes
risk decoding (Kumar and Byrne 2004, "Minimum Bayes-risk decoding for statistical machine
translation") with the metric itself as the gain. The labeller and the score that judge such a
report have chosen it too, and part of what it gains is that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.reports import write_report
from medm2g_core.evaluation.bench import SHIFT, Bench, Split
from medm2g_core.evaluation.report_rows import Truth, finding_summary, report_rows
from medm2g_core.evaluation.table import (
    MINIMUM_RISK,
    Check,
    Row,
    SectionResult,
    choose_setting,
)
from medm2g_core.metrics.report_scores import METEOR_MISSING, medoid, tokenization
from medm2g_core.rivals.report_decoder import (
    DecoderSettings,
    Encoder,
    ReportDecoder,
    train_decoder,
)
from medm2g_core.rivals.reports import (
    constant_reports,
    embed_images,
    embed_reports,
    image_retrieval,
    pixel_retrieval,
    report_corpus,
    report_retrieval,
    reports_of_random_studies,
)
from medm2g_core.streams import STREAMS
from medm2g_core.training.corpus import Corpus

__all__ = [
    "DRAWS",
    "GRID",
    "choices_of_many",
    "likest_half",
    "minimum_risk",
    "report_generation",
    "reworded",
    "tune",
]

REGION = "chest"
DRAWS = 16
"""Reports that are drawn of one image where one of several is chosen: of the model and of the
decoder."""

LOW_NOISE = 0.6
GUIDANCE = (1.0, 2.0, 4.0, 6.0, 8.0)
GRID: tuple[tuple[float, float], ...] = tuple(
    (g, noise) for noise in (1.0, LOW_NOISE) for g in GUIDANCE
)
"""(guidance scale, noise scale) of the cells that `tune` tries."""

_DECODER_NAMES = {
    "frozen": "autoregressive decoder",
    "tuned": "autoregressive decoder, encoder trained on",
    "fresh": "autoregressive decoder, own encoder",
}
_LEADING = ("finding F1, strict", "finding F1, presence")
_CHOSEN_BY = "mean of strict and presence finding F1"


def tune(
    bench: Bench, given: str, grid: Sequence[tuple[float, float]] = GRID
) -> tuple[dict[float, float], list[dict[str, float]]]:
    """Choose the guidance scale for every noise scale, on validation studies.

    Args:
        given: image stream.  grid: (guidance scale, noise scale) of each cell.

    Returns:
        noise scale -> guidance scale with the highest mean of strict and presence F1 of a single
        draw, and all cells.
    """
    data = bench.studies(REGION, "val")
    truth = Truth(REGION, data.texts, data.findings)
    cells = []
    for guidance, noise in grid:
        texts = bench.draw(
            REGION, [given], ["text"], guidance=guidance, noise_scale=noise, split="val"
        )["text"]
        scores = finding_summary(texts, truth)
        cells.append(
            {"guidance": guidance, "noise": noise} | {k: round(v, 4) for k, v in scores.items()}
        )
    best = {}
    for noise in dict.fromkeys(c["noise"] for c in cells):
        own = [c for c in cells if c["noise"] == noise]
        best[noise] = max(own, key=lambda c: c["strict"] + c["presence"])["guidance"]
    return best, cells


# ---- one report out of several


def minimum_risk(draws: Sequence[Sequence[str]], region: str) -> list[str]:
    """For every study the draw that agrees most with the others (`medoid`): the least expected
    loss, if the draws stand for what may be true.

    The gain is the finding score that reports are judged by, read by the same labeller (see the
    module).

    Args:
        draws: one list of N reports a draw.
    """
    return [texts[medoid(texts, region)] for texts in zip(*draws, strict=True)]


def likest_half(draws: Sequence[Sequence[str]], likeness: torch.Tensor) -> list[list[str]]:
    """For every study those half of its draws that are most like what was given, likest first.

    Args:
        draws: one list of N reports a draw.
        likeness: (draws, N).

    Returns:
        one list of N reports a place: the likest of every study, then the next.
    """
    half = likeness.topk((len(draws) + 1) // 2, dim=0).indices.tolist()  # (half, N): which draws
    return [[draws[d][i] for i, d in enumerate(row)] for row in half]


def choices_of_many(
    draws: Sequence[Sequence[str]], likeness: torch.Tensor, region: str
) -> dict[str, list[str]]:
    """Three ways to give one report of several draws, for the model and for its rival alike.

    Args:
        draws: one list of N reports a draw.
        likeness: (draws, N), of each report to the image that it was drawn for, by the aligned
            encoders of the model: that choice knows nothing of the metric.

    Returns:
        name -> N reports.
    """
    n, half = len(draws), likest_half(draws, likeness)
    return {
        f"{MINIMUM_RISK} of {n}": minimum_risk(draws, region),
        f"best of {n} by the aligned encoders": half[0],
        f"{MINIMUM_RISK} of the better half of {n} by the aligned encoders": minimum_risk(
            half, region
        ),
    }


def _likeness(
    bench: Bench, images: torch.Tensor, draws: Sequence[Sequence[str]], given: str
) -> torch.Tensor:
    """Cosine (draws, N) of the aligned embeddings of each report and of its image (N, 1, H, W)."""
    query = embed_images(bench.model, given, images)  # (N, D)
    said = [embed_reports(bench.model, [bench.pipe.readable(t) for t in texts]) for texts in draws]
    return torch.stack([(query * e).sum(1) for e in said])


def _model_reports(
    bench: Bench, given: str, guidance: Mapping[float, float], split: Split
) -> dict[str, list[str]]:
    """Who -> reports of every setting of the model, one draw first.

    Args:
        guidance: noise scale -> guidance scale, as `tune` chose them.
    """

    def drawn(draw: int, noise: float) -> list[str]:
        return bench.draw(
            REGION,
            [given],
            ["text"],
            draw=draw,
            guidance=guidance[noise],
            noise_scale=noise,
            split=split,
        )["text"]

    many = [drawn(d, LOW_NOISE) for d in range(DRAWS)]
    likeness = _likeness(bench, bench.studies(REGION, split).stack(given), many, given)
    return {
        "model": drawn(0, 1.0),
        f"model, noise x {LOW_NOISE}": many[0],
        **{
            f"model, {how}, noise x {LOW_NOISE}": texts
            for how, texts in choices_of_many(many, likeness, REGION).items()
        },
    }


def _decoder_reports(
    bench: Bench, decoder: ReportDecoder, given: str, seed: int, split: Split
) -> dict[str, list[str]]:
    """Who -> reports of every setting of a trained decoder, the greedy one first."""
    images, who = bench.studies(REGION, split).stack(given), _decoder_name(decoder)
    many = decoder.write_samples(images, DRAWS, seed=seed)
    likeness = _likeness(bench, images, many, given)
    return {
        f"{who}, greedy": decoder.write(images),
        f"{who}, sampled": many[0],
        **{
            f"{who}, {how}": texts for how, texts in choices_of_many(many, likeness, REGION).items()
        },
    }


def _decoder_name(decoder: ReportDecoder) -> str:
    return f"baseline: {_DECODER_NAMES[decoder.settings.encoder]}"


def reworded(truth: Truth, seed: int = 0) -> list[str]:
    """Every real report written again from the true findings, age and sex, in other words."""
    rngs = np.random.default_rng([seed, 1]).spawn(len(truth))
    return [
        write_report(f, truth.region, s.age, s.sex, rng)
        for f, s, rng in zip(truth.findings, truth.labels, rngs, strict=True)
    ]


def report_generation(
    bench: Bench,
    given: Literal["xray", "ct"],
    *,
    decoder_seconds: float,
    train: VirtualCohort,
    decoders: Sequence[Encoder] = ("frozen",),
    threads: int = 1,
    cache: Path | None = None,
    seed: int = 0,
) -> SectionResult:
    """All scores of reports generated from one image, with baselines, control and ceilings.

    Guidance and settings, of the model and of the decoders, are chosen on validation studies
    (`tune`, `choose_setting`); the test studies are scored once.

    Args:
        given: image stream.
        decoder_seconds: time for training the autoregressive decoder: that of the text flow.
        train: training studies of the baselines: those that the model had.
        decoders: encoders of the decoder baselines, see
            `medm2g_core.rivals.report_decoder`.
        threads, cache: see `train_decoder`.

    Returns:
        Rows of every metric of `report_rows`, and the check that another patient's image scores no
        better than the report of a random patient.
    """
    data, val = bench.data[REGION], bench.studies(REGION, "val")
    truth = Truth(REGION, data.texts, data.findings)
    n, images = len(data), data.stack(given)
    corpus = report_corpus(train, given)
    task = f"{STREAMS[given].title} → Report ({REGION})"
    trained = _decoders(bench, given, corpus, decoders, decoder_seconds, threads, cache, seed)
    guidance, cells = tune(bench, given)

    query = embed_images(bench.model, given, images)
    seen = embed_images(bench.model, given, corpus.images[given])
    read = embed_reports(bench.model, [t for reports in corpus.reports for t in reports])
    shifted = bench.draw(REGION, [given], ["text"], shift=SHIFT, guidance=guidance[1.0])["text"]
    codec = bench.codec(REGION, "text")
    assert isinstance(codec, list)
    rivals: dict[str, Sequence[str]] = {
        **_model_reports(bench, given, guidance, "test"),
        "control: another patient's image": shifted,
        "baseline: constant normal report": constant_reports(REGION, n, seed),
        "baseline: random report": reports_of_random_studies(corpus, n, seed),
        "baseline: pixel nearest neighbour": pixel_retrieval(images, corpus, given),
        "baseline: nearest image by embedding": image_retrieval(query, seen, corpus),
        "baseline: nearest report by embedding": report_retrieval(query, read, corpus),
    }
    for decoder in trained:
        rivals |= _decoder_reports(bench, decoder, given, seed, "test")
    rivals["ceiling: text codec"] = codec
    rivals["ceiling: true findings in other words"] = reworded(truth, seed)

    trained_on = {t for reports in corpus.reports for t in reports}
    facts: dict[str, Any] = {
        "tokenization": tokenization(),
        "training studies": len(corpus),
        "validation studies": len(val),
        "guidance chosen for each noise scale": {str(k): v for k, v in guidance.items()},
        "grid on validation": cells,
        "steps": bench.steps,
        "decoders": [decoder.info for decoder in trained],
        "distinct reports": {
            "real": len(set(truth.texts)),
            **{who: len(set(texts)) for who, texts in rivals.items()},
        },
        "test reports that a training study has too": sum(t in trained_on for t in truth.texts),
    }
    notes = dict.fromkeys((who for who in rivals if MINIMUM_RISK in who), _RISK_NOTE)
    rows = report_rows(task, rivals, truth, notes=notes)
    if not any(r.metric == "METEOR" for r in rows):
        facts["left out"] = METEOR_MISSING
    outcome = SectionResult(rows, _falls_to_chance(rows, task), facts=facts)

    true_of_val = Truth(REGION, val.texts, val.findings)
    predictors = [_model_reports(bench, given, guidance, "val")]
    predictors += [_decoder_reports(bench, decoder, given, seed, "val") for decoder in trained]
    for settings in predictors:
        scores = {
            who: sum(finding_summary(texts, true_of_val).values()) / 2
            for who, texts in settings.items()
        }
        choose_setting(outcome, [task], scores, by=_CHOSEN_BY, n=len(val))
    return outcome


_RISK_NOTE = "chosen with the labeller and the finding score that judge it (Kumar and Byrne 2004)"


def _decoders(
    bench: Bench,
    given: str,
    corpus: Corpus,
    encoders: Sequence[Encoder],
    seconds: float,
    threads: int,
    cache: Path | None,
    seed: int,
) -> list[ReportDecoder]:
    """A trained decoder of each kind of encoder."""
    return [
        train_decoder(
            bench.model,
            corpus,
            DecoderSettings(stream=given, seconds=seconds, encoder=encoder, seed=seed),
            threads=threads,
            cache=cache,
            device=bench.model.device,
        )
        for encoder in encoders
    ]


def _falls_to_chance(rows: Sequence[Row], task: str) -> list[Check]:
    """Another patient's image must give no better report than a random one: their intervals
    overlap."""
    checks = []
    for metric in _LEADING:
        of = {r.who: r for r in rows if r.metric == metric}
        control, chance = of["control: another patient's image"], of["baseline: random report"]
        checks.append(
            Check(
                f"{task}: with another patient's image {metric} is that of a random report",
                control.low <= chance.high,
                f"{control.value:.3f} [{control.low:.3f}, {control.high:.3f}] against"
                f" {chance.value:.3f} [{chance.low:.3f}, {chance.high:.3f}]; with the right image"
                f" {of['model'].value:.3f}",
            )
        )
    return checks
