"""Report generation from a chest image, and the text codec that bounds it.

The finding scores lead: strict F1 (finding, side, lobe and size class all right) and presence F1.
Word overlap stands beside the score of a text that says exactly the true findings in other words,
which is as high as it can be expected to get.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from medm2g_core.codecs.tokenizer import encode_texts
from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.iu_reports import clean_text, load_iu_reports
from medm2g_core.data.reports import write_report
from medm2g_core.data.wheels import DataUnavailableError
from medm2g_core.evaluation.bench import BATCH, SHIFT, Bench
from medm2g_core.evaluation.report_rows import Truth, finding_summary, report_rows
from medm2g_core.evaluation.table import Check, Row, SectionResult
from medm2g_core.metrics.report_scores import METEOR_MISSING, medoid, tokenization
from medm2g_core.rivals.report_decoder import DecoderSettings, Encoder, train_decoder
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
    "best_half",
    "consensus",
    "report_generation",
    "reworded",
    "text_codec_section",
    "tune",
]

REGION = "chest"
DRAWS = 5
"""Draws of the consensus."""

BEST_OF = 8
"""Draws from which the aligned encoders choose one."""

MANY = 16
"""Draws of which the aligned encoders choose the better half, whose consensus is taken."""

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


def tune(
    bench: Bench, given: str, grid: Sequence[tuple[float, float]] = GRID
) -> tuple[dict[float, float], list[dict[str, float]]]:
    """Choose the guidance scale for every noise scale, on the validation split.

    Args:
        given: image stream.  grid: (guidance scale, noise scale) of each cell.

    Returns:
        noise scale -> guidance scale with the highest mean of strict and presence F1 of a single
        draw, and all cells.
    """
    data = bench.other[REGION]
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


def consensus(draws: Sequence[Sequence[str]], region: str) -> list[str]:
    """For every study the draw that agrees most with the others (`medoid`).

    Args:
        draws: one list of N reports a draw.
    """
    return [texts[medoid(texts, region)] for texts in zip(*draws, strict=True)]


def best_half(draws: Sequence[Sequence[str]], likeness: torch.Tensor, region: str) -> list[str]:
    """For every study the consensus of those half of its draws that are most like what was given.

    Args:
        draws: one list of N reports a draw.
        likeness: (draws, N).
    """
    half = likeness.topk((len(draws) + 1) // 2, dim=0).indices.tolist()  # (half, N): which draws
    return consensus([[draws[d][i] for i, d in enumerate(row)] for row in half], region)


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
    known: SectionResult | None = None,
) -> SectionResult:
    """All scores of reports generated from one image, with baselines, control and ceilings.

    The settings of the sampler are chosen on the validation split (`tune`); the test split is
    scored once.

    Args:
        given: image stream.
        decoder_seconds: time for training the autoregressive decoder: that of the text flow.
        train: training studies of the baselines: those that the model had.
        decoders: encoders of the decoder baselines, see
            `medm2g_core.rivals.report_decoder`.
        threads, cache: see `train_decoder`.
        known: what this function gave for the same model, studies and settings with another
            ``decoder_seconds``: then only the decoders are trained and scored, and nothing is
            drawn.

    Returns:
        Rows of every metric of `report_rows`, and the check that another patient's image scores no
        better than the report of a random patient.
    """
    data = bench.data[REGION]
    truth = Truth(REGION, data.texts, data.findings)
    n = len(data)
    corpus = report_corpus(train, given)
    task = f"{STREAMS[given].title} → Report ({REGION})"
    written, infos = _decoded(bench, given, corpus, decoders, decoder_seconds, threads, cache, seed)
    if known is not None:
        return _redecoded(known, report_rows(task, written, truth), written, infos)

    best, cells = tune(bench, given)

    def drawn(draw: int = 0, shift: int = 0, noise: float = 1.0, best_of: int = 1) -> list[str]:
        return bench.draw(
            REGION,
            [given],
            ["text"],
            draw=draw,
            shift=shift,
            guidance=best[noise],
            noise_scale=noise,
            best_of=best_of,
        )["text"]

    images = data.stack(given)
    query = embed_images(bench.model, given, images)
    seen = embed_images(bench.model, given, corpus.images[given])
    read = embed_reports(bench.model, [t for reports in corpus.reports for t in reports])
    codec = bench.codec(REGION, "text")
    assert isinstance(codec, list)
    many = [drawn(d, noise=LOW_NOISE) for d in range(MANY)]
    said = [embed_reports(bench.model, [bench.pipe.readable(t) for t in texts]) for texts in many]
    alike = torch.stack([(query * e).sum(1) for e in said])
    rivals: dict[str, Sequence[str]] = {
        "model": drawn(),
        f"model, noise x {LOW_NOISE}": many[0],
        f"model, consensus of {DRAWS}": consensus([drawn(d) for d in range(DRAWS)], REGION),
        f"model, consensus of {DRAWS}, noise x {LOW_NOISE}": consensus(many[:DRAWS], REGION),
        f"model, best of {BEST_OF} by the aligned encoders": drawn(best_of=BEST_OF),
        f"model, consensus of the better half of {MANY}, noise x {LOW_NOISE}": best_half(
            many, alike, REGION
        ),
        "control: another patient's image": drawn(shift=SHIFT),
        "baseline: constant normal report": constant_reports(REGION, n, seed),
        "baseline: random report": reports_of_random_studies(corpus, n, seed),
        "baseline: pixel nearest neighbour": pixel_retrieval(images, corpus, given),
        "baseline: nearest image by embedding": image_retrieval(query, seen, corpus),
        "baseline: nearest report by embedding": report_retrieval(query, read, corpus),
    }
    facts: dict[str, Any] = {
        "tokenization": tokenization(),
        "training studies": len(corpus),
        "validation studies": len(bench.other[REGION]),
        "guidance chosen for each noise scale": {str(k): v for k, v in best.items()},
        "grid on validation": cells,
        "steps": bench.steps,
        "decoders": infos,
    }
    rivals |= written
    rivals["ceiling: text codec"] = codec
    rivals["ceiling: true findings in other words"] = reworded(truth, seed)
    facts["distinct reports"] = {"real": len(set(truth.texts))} | {
        who: len(set(t)) for who, t in rivals.items()
    }
    trained_on = {t for reports in corpus.reports for t in reports}
    facts["test reports that a training study has too"] = sum(t in trained_on for t in truth.texts)
    rows = report_rows(task, rivals, truth)
    if not any(r.metric == "METEOR" for r in rows):
        facts["left out"] = METEOR_MISSING
    return SectionResult(rows, _falls_to_chance(rows, task), facts=facts)


def _redecoded(
    outcome: SectionResult,
    rows: Sequence[Row],
    written: Mapping[str, list[str]],
    infos: list[dict[str, Any]],
) -> SectionResult:
    """A outcome with the rows of newly trained decoders in the place of the old ones."""
    fresh = {(r.metric, r.who): r for r in rows}
    out = SectionResult.from_dict(outcome.to_dict())
    # A metric that cannot be computed here (METEOR needs Java) must not stand there with another
    # decoder's value.
    out.rows = [
        fresh.get((r.metric, r.who), r)
        for r in out.rows
        if r.who not in written or (r.metric, r.who) in fresh
    ]
    out.facts["decoders"] = infos
    out.facts["distinct reports"] |= {who: len(set(texts)) for who, texts in written.items()}
    return out


def _decoded(
    bench: Bench,
    given: str,
    corpus: Corpus,
    decoders: Sequence[Encoder],
    seconds: float,
    threads: int,
    cache: Path | None,
    seed: int,
) -> tuple[dict[str, list[str]], list[dict[str, Any]]]:
    """Who -> the reports of trained decoders on the test studies, and how each was trained."""
    images = bench.data[REGION].stack(given)
    written: dict[str, list[str]] = {}
    infos = []
    for encoder in decoders:
        settings = DecoderSettings(stream=given, seconds=seconds, encoder=encoder, seed=seed)
        decoder = train_decoder(
            bench.model, corpus, settings, threads=threads, cache=cache, device=bench.model.device
        )
        infos.append(decoder.info)
        written[f"baseline: {_DECODER_NAMES[encoder]}, greedy"] = decoder.write(images)
        written[f"baseline: {_DECODER_NAMES[encoder]}, sampled"] = decoder.write(
            images, sample=True, seed=seed
        )
    return written, infos


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


# ---- text codec

_CODEC_METRICS = (
    "exact match, share",
    "BLEU-4, corpus",
    "finding F1, strict",
    "finding F1, presence",
    "age right, share",
    "sex right, share",
)


def text_codec_section(bench: Bench, *, iu_reports: int = 128, seed: int = 0) -> SectionResult:
    """Round trip of held-out reports through the text codec, and of real ones that it was never
    trained for.

    Args:
        iu_reports: real IU findings to try; 0 for none. They are read from the pinned archive at
            run time, and no text of theirs is kept. Where it cannot be had, ``facts`` says so and
            the rows are left out.
    """
    outcome = SectionResult(facts={"tokenization": tokenization()})
    for region, data in bench.data.items():
        truth = Truth(region, data.texts, data.findings)
        back = bench.codec(region, "text")
        other = bench.other[region].texts
        assert isinstance(back, list)
        task = f"text codec: Report ({region})"
        rivals = {
            "model": back,
            "control: another patient's round trip": back[SHIFT:] + back[:SHIFT],
            "baseline: random report": [other[i % len(other)] for i in range(len(data))],
        }
        rows = report_rows(task, rivals, truth, only=_CODEC_METRICS)
        value = {r.who: r for r in rows if r.metric == "BLEU-4, corpus"}
        model, control, chance = (value[who] for who in rivals)
        outcome.rows += rows
        outcome.checks.append(
            Check(
                f"{task}: another patient's round trip is as far off as a random report",
                control.low <= chance.high and control.high < max(model.low, chance.high),
                f"BLEU-4 {control.value:.3f} against {chance.value:.3f} (random) and"
                f" {model.value:.3f} (own)",
            )
        )
    if iu_reports:
        _real_reports(bench, outcome, iu_reports, seed)
    return outcome


def _real_reports(bench: Bench, outcome: SectionResult, n: int, seed: int) -> None:
    name = "real IU findings"
    try:
        texts = [clean_text(r.findings) for r in load_iu_reports(progress=False) if r.findings]
    except DataUnavailableError:
        outcome.facts[name] = (
            "left out: the archive cannot be had here; run `medm2g prepare` with a network"
        )
        return
    longest = bench.model.profile.text_codec.max_length
    lengths = encode_texts(bench.model.tokenizer, texts, 2**31)[1].sum(1)
    fits = torch.nonzero(lengths <= longest).flatten().numpy()
    outcome.facts[name] = {
        "reports with findings": len(texts),
        "that fit": len(fits),
        "longest, tokens": longest,
        "median tokens": int(lengths.median()),
    }
    if not len(fits):
        return
    chosen = np.random.default_rng(seed).permutation(fits)[:n]
    real = [texts[int(i)] for i in chosen]
    back = []
    for i in range(0, len(real), BATCH):
        part = bench.model.decode("text", bench.model.encode("text", real[i : i + BATCH]))
        assert isinstance(part, list)
        back += part
    # Nobody knows what is true of these patients: word scores only.
    truth = Truth("chest", real, [()] * len(real))
    rivals = {"model": back, "control: another patient's round trip": back[SHIFT:] + back[:SHIFT]}
    notes = {
        "model": (
            f"no bar: texts of another kind than the codec was trained on; {len(fits)} of"
            f" {len(texts)} fit"
        )
    }
    outcome.rows += report_rows(
        f"text codec: {name}",
        rivals,
        truth,
        notes=notes,
        only=("exact match, share", "BLEU-4, corpus"),
    )
