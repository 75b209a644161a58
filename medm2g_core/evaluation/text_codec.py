"""The text codec against the truth: what every generated report is bounded by."""

from __future__ import annotations

import numpy as np
import torch

from medm2g_core.codecs.tokenizer import encode_texts
from medm2g_core.data.iu_reports import clean_text, load_iu_reports
from medm2g_core.data.wheels import DataUnavailableError
from medm2g_core.evaluation.bench import BATCH, SHIFT, Bench
from medm2g_core.evaluation.report_rows import Truth, report_rows
from medm2g_core.evaluation.table import Check, SectionResult
from medm2g_core.metrics.report_scores import tokenization

__all__ = ["text_codec_section"]

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
