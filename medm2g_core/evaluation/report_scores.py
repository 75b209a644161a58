"""Scores of generated reports: word overlap, and the findings that a rule-based labeller reads from
them.

Word overlap says little about reports (two wordings of the same findings share about a third of
their 4-grams), so the finding scores lead. Everything is on a scale of 0..1.

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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from sacrebleu.metrics.bleu import BLEU

from medm2g_core.data.findings import FINDINGS
from medm2g_core.data.labeller import ReportLabels, label_report
from medm2g_core.evaluation.table import Row, make_row
from medm2g_core.metrics.findings import Counts, finding_counts, finding_f1
from medm2g_core.streams import Finding

__all__ = [
    "METEOR_MISSING",
    "Truth",
    "bleu",
    "bleu_counts",
    "distinct_share",
    "finding_agreement",
    "finding_summary",
    "medoid",
    "meteor",
    "overlap_rows",
    "partial_counts",
    "report_rows",
    "rouge_l",
    "tokenization",
]

_BLEU = BLEU(lowercase=True, effective_order=True)

METEOR_MISSING = (
    "left out: METEOR needs a java runtime, and its jar: pip install 'medm2g-core[meteor]'"
)
"""What the facts of a outcome say where one of them is missing."""

_ROUGE_BETA = 1.2
_METEOR_SECONDS = 300


# ---- word overlap


def tokenization() -> str:
    """How BLEU, ROUGE-L and METEOR tokenise, with sacrebleu's own signature; published with the
    results."""
    metric = BLEU(lowercase=True)
    metric.corpus_score(
        ["one two three four"], [["one two three four"]]
    )  # it knows its signature only afterwards
    return (
        f"BLEU: {metric.get_signature()}; ROUGE-L: the same tokens, beta 1.2 as in COCO; METEOR"
        " 1.5: -l en -norm"
    )


def bleu_counts(generated: Sequence[str], reference: Sequence[str]) -> np.ndarray:
    """Sufficient statistics (N, 10) of each pair: matched and possible n-grams (n = 1..4 each), and
    both lengths.

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
    """BLEU-``order`` (Papineni et al. 2002), 0..1, from `bleu_counts` (10,): summed over a corpus,
    or of one report.

    Args:
        sentence: leave out orders for which the report is too short (sacrebleu's
            ``effective_order``).
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
    return min(
        1.0, out.score / 100
    )  # the exponential of a sum of logarithms can exceed 100 by a rounding error


def rouge_l(generated: str, reference: str) -> float:
    """ROUGE-L of one report (Lin 2004): F of the longest common subsequence of tokens with beta
    1.2, as COCO has it."""
    a, b = (_BLEU.tokenizer(text.lower().strip()).split() for text in (generated, reference))
    if not a or not b:
        return 0.0
    row = [0] * (
        len(b) + 1
    )  # row[j]: longest common subsequence of what was read of a, and of b[:j]
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if word == other else max(row[j], row[j - 1])
    precision, recall = row[-1] / len(a), row[-1] / len(b)
    if not row[-1]:
        return 0.0
    return (1 + _ROUGE_BETA**2) * precision * recall / (recall + _ROUGE_BETA**2 * precision)


def meteor(generated: Sequence[str], reference: Sequence[str]) -> list[float] | None:
    """METEOR 1.5 (Denkowski and Lavie 2014) of each pair, or ``None`` where java or the jar is
    missing or fails.

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


# ---- findings


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


def partial_counts(predicted: Sequence[Finding], true: Sequence[Finding], attribute: str) -> Counts:
    """Counts of one report by name and one attribute, over the kinds of finding that have that
    attribute.

    Args:
        attribute: ``"side"``, ``"location"`` or ``"size"``.
    """
    plural = {"side": "sides", "location": "locations", "size": "sizes"}[attribute]

    def keys(findings: Sequence[Finding]) -> set[tuple[str, str]]:
        return {
            (f.name, getattr(f, attribute))
            for f in findings
            if getattr(FINDINGS[f.name], plural) != ("",)
        }

    p, t = keys(predicted), keys(true)
    return len(p & t), len(p - t), len(t - p)


def finding_summary(texts: Sequence[str], truth: Truth) -> dict[str, float]:
    """Strict and presence F1 of reports, without intervals: for tuning."""
    said = [label_report(t, truth.region).findings for t in texts]
    return {
        name: finding_f1(
            [finding_counts(s, f, strict=strict) for s, f in zip(said, truth.findings, strict=True)]
        )
        for name, strict in (("strict", True), ("presence", False))
    }


def finding_agreement(a: Sequence[Finding], b: Sequence[Finding]) -> float:
    """How far two reports say the same, 0..1: the mean of their strict and presence F1; 1 for two
    normal ones."""
    if not a and not b:
        return 1.0
    return sum(finding_f1([finding_counts(a, b, strict=strict)]) for strict in (True, False)) / 2


def medoid(texts: Sequence[str], region: str) -> int:
    """Index of the report that agrees most with the others (`finding_agreement`); the first of
    several."""
    said = [label_report(t, region).findings for t in texts]
    votes = [
        sum(finding_agreement(a, b) for j, b in enumerate(said) if j != i)
        for i, a in enumerate(said)
    ]
    return int(np.argmax(np.round(votes, 9)))


def distinct_share(texts: Sequence[object]) -> list[float]:
    """For every report one over the number of its copies, itself included: the mean is distinct
    reports / reports."""
    copies = Counter(texts)
    return [1 / copies[t] for t in texts]


# ---- rows


def _ratio_row(
    task: str,
    metric: str,
    who: str,
    samples: np.ndarray,
    score: Callable[[np.ndarray], float],
    note: str = "",
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Row:
    """A row whose value is a function of the sum over studies of ``samples`` (N, k); bootstrap over
    studies."""
    rng = np.random.default_rng(seed)
    n = len(samples)
    # A draw is how often each study is in it: one matrix product instead of a thousand sums.
    weights = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    values = [score(s) for s in weights @ samples]
    low, high = (round(float(v), 4) for v in np.percentile(values, [2.5, 97.5]))
    return Row(task, metric, who, round(score(samples.sum(0)), 4), low, high, n, note)


def _precision(counts: np.ndarray) -> float:
    return float(counts[0] / max(1.0, counts[0] + counts[1]))


def _recall(counts: np.ndarray) -> float:
    return float(counts[0] / max(1.0, counts[0] + counts[2]))


def _f1(counts: np.ndarray) -> float:
    return finding_f1([(counts[0], counts[1], counts[2])])


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
    notes = notes or {}
    for who, texts in rivals.items():
        if len(texts) != len(truth):
            raise ValueError(f"{who}: {len(texts)} reports for {len(truth)} studies")
    table: dict[str, list[Row]] = {}

    def add(metric: str, who: str, samples: Sequence[Any]) -> None:
        table.setdefault(metric, []).append(
            make_row(task, metric, who, samples, notes.get(who, ""))
        )

    def add_ratio(
        metric: str, who: str, samples: np.ndarray, score: Callable[[np.ndarray], float]
    ) -> None:
        table.setdefault(metric, []).append(
            _ratio_row(task, metric, who, samples, score, notes.get(who, ""))
        )

    real_texts = len(set(truth.texts))
    real_findings = len({_said(f) for f in truth.findings})
    for who, texts in rivals.items():
        labels = [label_report(t, truth.region) for t in texts]
        for kind, strict in (("strict", True), ("presence", False)):
            counts = np.array(
                [
                    finding_counts(s.findings, f, strict=strict)
                    for s, f in zip(labels, truth.findings, strict=True)
                ],
                dtype=float,
            )
            for name, score in (("F1", _f1), ("precision", _precision), ("recall", _recall)):
                add_ratio(f"finding {name}, {kind}", who, counts, score)
        for name, attribute in (("side", "side"), ("lobe", "location"), ("size", "size")):
            parts = np.array(
                [
                    partial_counts(s.findings, f, attribute)
                    for s, f in zip(labels, truth.findings, strict=True)
                ],
                dtype=float,
            )
            add_ratio(f"finding F1, name and {name}", who, parts, _f1)
        pairs = list(zip(labels, truth.labels, strict=True))
        for years, name in ((0, "age right"), (10, "age within 10 years")):
            add(f"{name}, share", who, [float(_near(a.age, b.age, years)) for a, b in pairs])
        add("sex right, share", who, [float(a.sex == b.sex) for a, b in pairs])
        add(
            "exact match, share",
            who,
            [float(a.split() == b.split()) for a, b in zip(texts, truth.texts, strict=True)],
        )
        share = np.array(distinct_share(list(texts)))
        add("distinct reports / real ones", who, (share * len(truth) / real_texts).tolist())
        share = np.array(distinct_share([_said(s.findings) for s in labels]))
        add("distinct finding sets / real ones", who, (share * len(truth) / real_findings).tolist())
    rows = [r for group in table.values() for r in group]
    if only is None or any(m.startswith(("BLEU", "ROUGE", "METEOR")) for m in only):
        rows += overlap_rows(task, rivals, truth.texts, notes=notes)
    return [r for r in rows if only is None or r.metric in only]


def overlap_rows(
    task: str,
    rivals: Mapping[str, Sequence[str]],
    reference: Sequence[str],
    *,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """BLEU-1..4, ROUGE-L and METEOR (where it can run) of several predictors against N real
    reports."""
    notes = notes or {}
    rows: dict[str, list[Row]] = {}

    def add(row: Row) -> None:
        rows.setdefault(row.metric, []).append(row)

    for who, texts in rivals.items():
        note, stats = notes.get(who, ""), bleu_counts(texts, reference)
        for n in (1, 2, 3, 4):
            add(_ratio_row(task, f"BLEU-{n}, corpus", who, stats, partial(bleu, order=n), note))
        for n in (1, 2, 3, 4):
            each = [bleu(s, n, sentence=True) for s in stats]
            add(make_row(task, f"BLEU-{n}, mean of studies", who, each, note))
        overlap = [rouge_l(a, b) for a, b in zip(texts, reference, strict=True)]
        add(make_row(task, "ROUGE-L", who, overlap, note))
    return [r for group in rows.values() for r in group] + _meteor_rows(
        task, rivals, reference, notes
    )


def _said(findings: Sequence[Finding]) -> frozenset[tuple[str, str, str, str]]:
    return frozenset(f.key for f in findings)


def _near(a: int | None, b: int | None, years: int) -> bool:
    return a is not None and b is not None and abs(a - b) <= years


def _meteor_rows(
    task: str,
    rivals: Mapping[str, Sequence[str]],
    reference: Sequence[str],
    notes: Mapping[str, str],
) -> list[Row]:
    flat = [t for texts in rivals.values() for t in texts]
    scores = meteor(flat, [t for _ in rivals for t in reference])
    if scores is None:
        return []
    n = len(reference)
    return [
        make_row(task, "METEOR", who, scores[i * n : (i + 1) * n], notes.get(who, ""))
        for i, who in enumerate(rivals)
    ]
