"""Scores of generated reports against real ones: word overlap, copies, and the report of several
that agrees most with the others.

Word overlap says little about reports (two wordings of the same findings share about a third of
their 4-grams), so the finding scores lead (`medm2g_core.metrics.findings`). Everything is on a
scale of 0..1.

Tokenisation of BLEU and ROUGE-L: sacrebleu's ``13a`` (mteval-v13a) on lower-cased text; the same
prediction moves by several points with another one, so `tokenization` belongs beside every number.
METEOR 1.5 normalises by itself.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np
from sacrebleu.metrics.bleu import BLEU
from torchmetrics.functional.text import rouge_score

from medm2g_core.data.findings import FINDINGS
from medm2g_core.data.labeller import find_mentions, label_report, sentences
from medm2g_core.metrics.findings import finding_agreement
from medm2g_core.streams import Finding

__all__ = [
    "METEOR_MISSING",
    "bleu",
    "bleu_counts",
    "distinct_share",
    "medoid",
    "meteor",
    "rouge_l",
    "self_contradictions",
    "tokenization",
]

_BLEU = BLEU(lowercase=True, effective_order=True)

METEOR_MISSING = (
    "left out: METEOR needs a java runtime, and its jar: pip install 'medm2g-core[meteor]'"
)
"""What the facts of a section say where one of them is missing."""

_ROUGE_BETA = 1.2
"""Weight of recall in ROUGE-L: that of COCO's captions, which papers on reports use."""

_METEOR_SECONDS = 300
"""A java that takes longer for the reports of one section hangs."""


def tokenization() -> str:
    """How BLEU, ROUGE-L and METEOR tokenise, with sacrebleu's own signature; published with the
    results."""
    metric = BLEU(lowercase=True)
    # It knows its signature only after a score.
    metric.corpus_score(["one two three four"], [["one two three four"]])
    return (
        f"BLEU: {metric.get_signature()}; ROUGE-L: the same tokens, beta {_ROUGE_BETA} as in COCO;"
        " METEOR 1.5: -l en -norm"
    )


def _tokens(text: str) -> list[str]:
    return _BLEU.tokenizer(text.lower().strip()).split()


# ---- word overlap


def bleu_counts(generated: Sequence[str], reference: Sequence[str]) -> np.ndarray:
    """What BLEU is computed from, by sacrebleu; the sum over reports is that of the corpus.

    Args:
        generated, reference: N reports each, one reference a report.

    Returns:
        (N, 10): matched n-grams (n = 1..4), possible n-grams (n = 1..4), length of the generated
        report and of the reference in tokens.

    Raises:
        ValueError: lists of different lengths.
    """
    if len(generated) != len(reference):
        raise ValueError(
            f"{len(generated)} generated reports and {len(reference)} references; needed one of"
            " each"
        )
    out = np.zeros((len(generated), 10))
    for i, (a, b) in enumerate(zip(generated, reference, strict=True)):
        s = _BLEU.sentence_score(a, [b])
        out[i] = [*s.counts, *s.totals, s.sys_len, s.ref_len]
    return out


def bleu(counts: np.ndarray, order: int = 4, *, sentence: bool = False) -> float:
    """BLEU-``order`` (Papineni et al. 2002), by sacrebleu: geometric mean of the n-gram precisions
    of 1..order times the brevity penalty.

    Args:
        counts: (10,) of `bleu_counts`, summed over a corpus, or of one report.
        sentence: leave out orders for which the report is too short (sacrebleu's
            ``effective_order``).

    Returns:
        0..1 (sacrebleu's own scale is 0..100).
    """
    out = BLEU.compute_bleu(
        [int(c) for c in counts[:order]],
        [int(c) for c in counts[4 : 4 + order]],
        int(counts[8]),
        int(counts[9]),
        smooth_method="exp",
        effective_order=sentence,
        max_ngram_order=order,
    )
    # The exponential of a sum of logarithms can exceed 100 by a rounding error.
    return min(1.0, out.score / 100)


def rouge_l(generated: str, reference: str) -> float:
    """ROUGE-L of one report (Lin 2004), 0..1: F of the longest common subsequence of tokens,
    (1 + β²) P R / (R + β² P) with β = 1.2 as COCO has it.

    Precision and recall are torchmetrics'; its own F has β = 1 and other tokens. 0 where one of the
    two is empty.
    """
    out = rouge_score(
        [generated],
        [[reference]],
        rouge_keys="rougeL",
        normalizer=str,  # the text as it is: the tokeniser lowers it
        tokenizer=_tokens,
    )
    precision, recall = (float(out[f"rougeL_{part}"]) for part in ("precision", "recall"))
    if not precision:
        return 0.0
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def meteor(generated: Sequence[str], reference: Sequence[str]) -> list[float] | None:
    """METEOR 1.5 (Denkowski and Lavie 2014) of each of N pairs, 0..1, or ``None`` where java or the
    jar is missing or fails.

    The jar and its paraphrase table come with pycocoevalcap. It is called with two files, not over
    the pipes of pycocoevalcap's wrapper, which wait for ever when java stops. One start costs some
    six seconds: score everything in one call.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    java = shutil.which("java")
    places = (
        [Path(p) / "meteor" / "meteor-1.5.jar" for p in spec.submodule_search_locations or ()]
        if spec
        else []
    )
    jar = next((p for p in places if p.is_file()), None)
    if java is None or jar is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("generated", "reference")]
        for file, texts in zip(files, (generated, reference), strict=True):
            # A line each; an empty one would be no segment of its own.
            lines = [re.sub(r"\s+", " ", t).strip() or "-" for t in texts]
            file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [java, "-Xmx2G", "-jar", str(jar), *map(str, files), "-l", "en", "-norm"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=_METEOR_SECONDS, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
    scores = [
        float(s)
        for s in re.findall(r"^Segment \d+ score:\s+(\S+)$", done.stdout, flags=re.MULTILINE)
    ]
    return scores if len(scores) == len(generated) else None


# ---- what a report says against itself

_OF_THE_REST = re.compile(r"\b(?:other|others|otherwise|elsewhere|remaining|remainder|rest|else)\b")
"""A sentence with one of these denies what has not been named yet."""


def self_contradictions(text: str, region: str | None = None) -> tuple[str, ...]:
    """Findings about which a report contradicts itself, as the labeller reads it.

    Either a finding is stated and denied: "no effusion" and an effusion, a heart of normal size and
    cardiomegaly, clear lungs and consolidation. A denial of one side, lobe or size leaves others
    ("no large effusion", and a small one), and "no other nodule" leaves the one that was named. Or
    what a patient has once a side is stated in two sizes there.

    Args:
        text: a report.  region: see `label_report`.

    Returns:
        names, each once, in the order of `FINDINGS`.
    """
    said, mentions = sentences(text), find_mentions(text, region)
    stated = [m.finding for m in mentions if not m.negated and not m.uncertain]
    denied = [
        m.finding for m in mentions if m.negated and not _OF_THE_REST.search(said[m.sentence])
    ]
    wrong = {s.name for s in stated for d in denied if _denies(d, s)}
    wrong |= {a.name for a in stated for b in stated if _two_sizes(a, b)}
    return tuple(name for name in FINDINGS if name in wrong)


def _denies(denied: Finding, stated: Finding) -> bool:
    """Whether the denial holds for all that the statement says is there."""
    return (
        denied.name == stated.name
        and denied.side in ("", stated.side, *(("left", "right") if stated.side == "both" else ()))
        and denied.location in ("", stated.location)
        and denied.size in ("", stated.size)
    )


def _two_sizes(a: Finding, b: Finding) -> bool:
    once_a_side = FINDINGS[a.name].locations == ("",)
    same_side = not a.side or not b.side or a.side == b.side or "both" in (a.side, b.side)
    return a.name == b.name and once_a_side and same_side and "" != a.size != b.size != ""


# ---- among several reports


def distinct_share(reports: Sequence[Hashable]) -> list[float]:
    """One over the number of its copies, itself included, of each of N reports (or sets of
    findings): the mean is distinct reports / reports."""
    copies = Counter(reports)
    return [1 / copies[report] for report in reports]


def medoid(texts: Sequence[str], region: str) -> int:
    """Index of the report that agrees most with the others, by what the labeller reads from them
    (`finding_agreement`); the first of several.

    Args:
        texts: at least one report.  region: ``"chest"`` or ``"brain"``.
    """
    said = [label_report(t, region).findings for t in texts]
    votes = [
        sum(finding_agreement(a, b) for j, b in enumerate(said) if j != i)
        for i, a in enumerate(said)
    ]
    return int(np.argmax(np.round(votes, 9)))  # sums in another order differ in the last digit
