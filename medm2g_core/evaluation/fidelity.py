"""Is what was asked for in the picture, and do the pictures look like real ones? Scores of a
judge's readings.

Two kinds of score. Of the findings: does an independent classifier see in a generated image what is
true of the study that it was generated for. Of the distribution: are the generated images, as a
set, distributed as real ones in that classifier's features (`medm2g_core.metrics.distributions`,
which says what the numbers may be compared with). Every score carries a bootstrap interval over
studies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medm2g_core.data.findings import findings_of
from medm2g_core.evaluation.bench import Bench
from medm2g_core.evaluation.table import Check, Row, interval_row
from medm2g_core.judges.judge import Judge, Judges
from medm2g_core.judges.labels import label_matrix
from medm2g_core.metrics.agreement import cohen_kappa, pearson
from medm2g_core.metrics.bootstrap import Interval, bootstrap
from medm2g_core.metrics.classification import auc
from medm2g_core.metrics.distributions import (
    distance_interval,
    frechet_distance,
    kernel_distance,
    relative_diversity,
)
from medm2g_core.streams import Finding

__all__ = [
    "AUC",
    "CODEC",
    "FRECHET",
    "KID",
    "MIN_CASES",
    "NEAREST",
    "REAL",
    "SIDE",
    "Reading",
    "auc_by_finding",
    "auc_scorer",
    "balanced_accuracy",
    "chance_check",
    "distribution_scores",
    "finding_scores",
    "judge_check",
    "judged_rows",
    "lobe_hits",
    "macro_auc",
    "rows_of",
    "side_hits",
    "stream_agreement",
]

MIN_CASES = 5
"""A finding counts in a macro mean if so many studies have it and so many have it not: the AUC of
fewer moves by a fifth with one study."""

AUC, BALANCED = "finding AUC", "finding balanced accuracy"
SIDE, LOBE = "side accuracy", "lobe accuracy"
FRECHET, KID, DIVERSITY = "Fréchet distance", "kernel distance", "diversity relative to real"
NEAREST = "distance to the nearest training image"
REAL, CODEC = "ceiling: real images", "ceiling: codec"

DRAWS = 300
"""Bootstrap draws of a score of readings: each takes the AUC of a dozen findings, so fewer than of
a mean (`medm2g_core.metrics.bootstrap.DRAWS` says what that costs in precision)."""

CHANCE = 0.5
"""AUC of a judge who sees nothing of what is asked."""

AUC_MARGIN = 0.1
"""A macro AUC may be off by so much in a check: about three of its deviations over the studies of
the usual bench, so that only a leak, or a judge of another cohort, fails."""


# ---- findings


@dataclass(frozen=True)
class Reading:
    """What a judge reads in images, beside what is true of their studies.

    Attributes:
        judge: whose reading it is.
        findings: N tuples of what is true.
        logits: (N, L) answers to `Judge.labels`, the presence of each finding first; above 0 is
            more likely than not.
        features: (N, D) of the judge's last layer.
        truth: (N, L) bool, the same questions answered from ``findings``.
    """

    judge: Judge
    findings: Sequence[Sequence[Finding]]
    logits: np.ndarray
    features: np.ndarray
    truth: np.ndarray

    @classmethod
    def of(
        cls, judge: Judge, images: torch.Tensor, findings: Sequence[Sequence[Finding]]
    ) -> Reading:
        """Read images (N, 1, H, W) made for studies with these findings."""
        if len(images) != len(findings):
            raise ValueError(f"{len(images)} images for the findings of {len(findings)} studies")
        logits, features = judge.read(images)
        return cls(
            judge, findings, logits, features, label_matrix(findings, judge.region).numpy() > 0
        )

    @property
    def said(self) -> np.ndarray:
        """(N, L) bool: logits above the thresholds that were chosen on real images of the val
        split."""
        return self.logits > self.judge.net.thresholds.double().cpu().numpy()

    def counted(self) -> list[int]:
        """Columns of the findings that enter macro means (`MIN_CASES`)."""
        number = len(findings_of(self.judge.region))
        cases = self.truth[:, :number].sum(0)
        return [i for i in range(number) if MIN_CASES <= cases[i] <= len(self.truth) - MIN_CASES]


def _known_mean(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the values that are numbers; NaN if none is."""
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")


def macro_auc(reading: Reading, index: np.ndarray | None = None) -> float:
    """Mean over the counted findings of the area under the ROC curve of their presence.

    Args:
        index: rows of the studies to score, repeats allowed; all by default.

    Returns:
        0..1, chance is a half; NaN if no finding counts.
    """
    i = np.arange(len(reading.logits)) if index is None else index
    return _known_mean([auc(reading.logits[i, c], reading.truth[i, c]) for c in reading.counted()])


def balanced_accuracy(reading: Reading, index: np.ndarray | None = None) -> float:
    """Mean over the counted findings of (sensitivity + specificity) / 2 at the judge's thresholds;
    arguments and range as of `macro_auc`."""
    i = np.arange(len(reading.logits)) if index is None else index
    columns = reading.counted()
    yes, said = reading.truth[i][:, columns], reading.said[i][:, columns]  # (n, counted)
    # A resampled set may lack positives: NaN, which the mean leaves out.
    with np.errstate(invalid="ignore"):
        sensitivity = (yes & said).sum(0) / yes.sum(0)
        specificity = (~yes & ~said).sum(0) / (~yes).sum(0)
    return _known_mean((sensitivity + specificity) / 2)


def _choices(reading: Reading, attribute: str) -> np.ndarray:
    """(N, 2): hits and tries of each study; a try is a kind of finding with one value of the
    attribute, a hit that the judge believes this value most."""
    out = np.zeros((len(reading.logits), 2))
    labels = reading.judge.labels
    for i, findings in enumerate(reading.findings):
        for kind in {f.name for f in findings}:
            columns = [
                c for c, a in enumerate(labels) if a.finding == kind and getattr(a, attribute)
            ]
            true = {getattr(f, attribute) for f in findings if f.name == kind}
            if len(true) == 1 and true <= {getattr(labels[c], attribute) for c in columns}:
                best = columns[int(np.argmax(reading.logits[i, columns]))]
                out[i] += getattr(labels[best], attribute) in true, 1
    return out


def side_hits(reading: Reading) -> np.ndarray:
    """(N, 2): hits and tries of each study. A try is a finding on exactly one side; it is a hit if
    the judge believes that side more than the other. Chance is a half."""
    return _choices(reading, "side")


def lobe_hits(reading: Reading) -> np.ndarray:
    """As `side_hits`, for findings in exactly one lobe: is it the lobe that the judge believes
    most? A guess without the image reaches the share of the commonest lobe."""
    return _choices(reading, "location")


def _share(hits: np.ndarray) -> Callable[[np.ndarray], float]:
    return lambda i: (
        float(hits[i, 0].sum() / hits[i, 1].sum()) if hits[i, 1].sum() else float("nan")
    )


def _with_value(scores: Mapping[str, Interval]) -> dict[str, Interval]:
    return {metric: s for metric, s in scores.items() if np.isfinite(s.value)}


def finding_scores(reading: Reading, *, draws: int = DRAWS) -> dict[str, Interval]:
    """AUC, balanced accuracy, side and lobe accuracy, each 0..1.

    Returns:
        metric -> score; those that cannot be had from so few studies are left out.
    """
    scores: dict[str, Callable[[np.ndarray], float]] = {
        AUC: lambda i: macro_auc(reading, i),
        BALANCED: lambda i: balanced_accuracy(reading, i),
    }
    for metric, hits in ((SIDE, side_hits(reading)), (LOBE, lobe_hits(reading))):
        if hits[:, 1].sum() >= MIN_CASES:
            scores[metric] = _share(hits)
    n = len(reading.logits)
    return _with_value({m: bootstrap(f, n, draws=draws) for m, f in scores.items()})


def stream_agreement(a: Reading, b: Reading, *, draws: int = DRAWS) -> dict[str, Interval]:
    """Do two streams of the same studies show the same findings, whatever is true? Row i of both is
    one study.

    Returns:
        ``"agreement: correlation"``: `pearson` of the two judges' logits over studies, mean over
            findings;
        ``"agreement: kappa"``: `cohen_kappa` of their thresholded answers, mean over findings. Both
            are 1 at best and 0 for streams that have nothing to do with each other. Findings that
            one of the judges never sees are left out.
    """
    presence = slice(0, len(findings_of(a.judge.region)))
    x, y, says_x, says_y = (v[:, presence] for v in (a.logits, b.logits, a.said, b.said))
    scores: dict[str, Callable[[np.ndarray], float]] = {
        "agreement: correlation": lambda i: _known_mean(pearson(x[i], y[i])),
        "agreement: kappa": lambda i: _known_mean(cohen_kappa(says_x[i], says_y[i])),
    }
    n = len(a.logits)
    return _with_value({m: bootstrap(f, n, draws=draws) for m, f in scores.items()})


# ---- distribution


def distribution_scores(
    features: np.ndarray, reference: np.ndarray, real: np.ndarray
) -> dict[str, Interval]:
    """Fréchet and kernel distance to ``reference``, and diversity.

    Args:
        features: (N, D) of the images to score.
        reference: (M, D) of *other* real studies; the distance of ``real`` to them at the same N is
            the floor.
        real: (N, D) of the real images of the same studies.

    Returns:
        metric -> score; empty with D studies or fewer, whose covariance matrix is singular.
    """
    if min(len(features), len(reference)) <= features.shape[1]:
        return {}
    return {
        FRECHET: distance_interval(frechet_distance, features, reference),
        KID: distance_interval(kernel_distance, features, reference),
        DIVERSITY: relative_diversity(features, real),
    }


# ---- rows


def rows_of(
    task: str, who: str, scores: Mapping[str, Interval], n: int, note: str = ""
) -> list[Row]:
    """Scores of one predictor of ``n`` studies, metric -> score, as rows."""
    return [interval_row(task, metric, who, scored, n, note) for metric, scored in scores.items()]


def judged_rows(
    task: str,
    judge: Judge,
    predictors: Mapping[str, torch.Tensor],
    findings: Sequence[Sequence[Finding]],
    reference: np.ndarray,
    *,
    notes: Mapping[str, str] | None = None,
) -> tuple[list[Row], dict[str, Reading]]:
    """Every score of every predictor of one stream.

    Args:
        predictors: who -> images (N, 1, H, W) of the N studies, among them `REAL`. Controls get no
            distance to real images (they are the model's own images, for others), and a model's
            further settings (``"model, guidance 4"``) get AUC and Fréchet distance only.
        findings: of the N studies.
        reference: (M, D) features of other real studies, at best N of them.

    Returns:
        the rows, and what the judge read in each predictor's images.
    """
    readings = {who: Reading.of(judge, x, findings) for who, x in predictors.items()}
    rows = []
    for who, reading in readings.items():
        scores = finding_scores(reading)
        if not who.startswith("control: "):
            scores |= distribution_scores(reading.features, reference, readings[REAL].features)
        if who.startswith("model, "):
            scores = {m: s for m, s in scores.items() if m in (AUC, FRECHET)}
        rows += rows_of(task, who, scores, len(findings), (notes or {}).get(who, ""))
    return rows, readings


def chance_check(task: str, readings: Mapping[str, Reading], control: str) -> Check:
    """A control's AUC is at chance: within 0.1 of a half, or a half inside its interval where
    studies are few."""
    reading = readings[control]
    value, low, high = bootstrap(lambda i: macro_auc(reading, i), len(reading.logits), draws=DRAWS)
    near = abs(value - CHANCE) <= AUC_MARGIN
    passed = not np.isfinite(value) or near or low <= CHANCE <= high
    return Check(
        f"{task}: {control.removeprefix('control: ')} gives chance",
        passed,
        f"{AUC} {value:.3f} [{low:.3f}, {high:.3f}]",
    )


def judge_check(task: str, readings: Mapping[str, Reading]) -> Check:
    """The judge sees in today's real images what it saw when it was tested: it fits the cohort."""
    reading = readings[REAL]
    then, now = reading.judge.info.get("macro_auc"), macro_auc(reading)
    passed = then is None or not np.isfinite(now) or now >= then - AUC_MARGIN
    return Check(
        f"{task}: the judge fits the cohort",
        passed,
        f"{AUC} on real images {now:.3f}, when tested {then}",
    )


def auc_by_finding(reading: Reading) -> dict[str, float]:
    """AUC of every counted finding."""
    names = findings_of(reading.judge.region)
    return {
        names[c]: round(auc(reading.logits[:, c], reading.truth[:, c]), 3)
        for c in reading.counted()
    }


def auc_scorer(bench: Bench, judges: Judges) -> Callable[[str, str, torch.Tensor], Row]:
    """A function (region, stream, images of the bench's studies in order) -> row of their macro
    finding AUC.

    Raises:
        ValueError: (the function) too few studies for any AUC.
    """

    def score(region: str, name: str, images: torch.Tensor) -> Row:
        reading = Reading.of(judges[region, name], images, bench.data[region].findings)
        scored = bootstrap(lambda i: macro_auc(reading, i), len(images), draws=DRAWS)
        if not np.isfinite(scored.value):
            raise ValueError(
                f"{len(images)} {region} studies hold no finding {MIN_CASES} times: use more of"
                " them"
            )
        return interval_row("", AUC, "", scored, len(images))

    return score
