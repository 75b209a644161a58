"""Is what was asked for in the picture, and do the pictures look like real ones? Scores of a
judge's readings.

Two kinds of score. Of the findings: does an independent classifier see in a generated image what is
true of the study that it was generated for. Of the distribution: are the generated images, as a
set, distributed as real ones in that classifier's features. Every score carries a bootstrap
interval over studies.

The Fréchet and the kernel distance are torchmetrics' formulas in our own features: **not
comparable** with published FID and KID, which use an Inception network. Read them against the
floor, real images against other real images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import poly_mmd

from medm2g_core.data.findings import findings_of
from medm2g_core.evaluation.bench import Bench
from medm2g_core.evaluation.table import Check, Row
from medm2g_core.judges.judge import Judge, Judges
from medm2g_core.judges.labels import label_matrix
from medm2g_core.metrics.classification import auc
from medm2g_core.streams import Finding

__all__ = [
    "AUC",
    "CODEC",
    "FRECHET",
    "MIN_CASES",
    "NEAREST",
    "REAL",
    "SIDE",
    "Reading",
    "Scored",
    "auc_by_finding",
    "auc_scorer",
    "balanced_accuracy",
    "between_sets",
    "chance_check",
    "distribution_scores",
    "diversity",
    "finding_scores",
    "frechet",
    "judge_check",
    "judged_rows",
    "kappa",
    "kid",
    "lobe_hits",
    "macro_auc",
    "nearest_distance",
    "over_studies",
    "rows_of",
    "side_hits",
    "stream_agreement",
]

MIN_CASES = 5
"""A finding counts in a macro mean if so many studies have it and so many have it not."""

AUC, BALANCED = "finding AUC", "finding balanced accuracy"
SIDE, LOBE = "side accuracy", "lobe accuracy"
FRECHET, KID, DIVERSITY = "Fréchet distance", "kernel distance", "diversity relative to real"
NEAREST = "distance to the nearest training image"
REAL, CODEC = "ceiling: real images", "ceiling: codec"

Scored = tuple[float, float, float]
"""Value, and the ends of its 95 % interval."""


# ---- intervals


def _interval(value: float, values: Sequence[float]) -> Scored:
    known = [v for v in values if np.isfinite(v)]
    if not known or not np.isfinite(value):
        return float("nan"), float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(value), float(min(low, value)), float(max(high, value))


def over_studies(
    score: Callable[[np.ndarray], float], n: int, *, draws: int = 300, seed: int = 0
) -> Scored:
    """A score of a set of studies with a 95 % percentile bootstrap interval.

    Args:
        score: from indices of studies (repeats allowed) to a number; draws that give NaN are left
            out.
    """
    rng = np.random.default_rng(seed)
    return _interval(score(np.arange(n)), [score(rng.integers(0, n, n)) for _ in range(draws)])


def between_sets(
    distance: Callable[[np.ndarray, np.ndarray], float],
    a: np.ndarray,
    b: np.ndarray,
    *,
    draws: int = 100,
    seed: int = 0,
) -> Scored:
    """A distance of two sets, cut to the smaller one, with a 95 % bootstrap interval over the rows
    of both.

    A set with repeats is further from everything than one without, so the draws are all too large:
    their spread is laid around the value without that offset.
    """
    n = min(len(a), len(b))
    a, b = a[:n], b[:n]
    rng = np.random.default_rng(seed)
    value = distance(a, b)
    values = np.array(
        [distance(a[rng.integers(0, n, n)], b[rng.integers(0, n, n)]) for _ in range(draws)]
    )
    return _interval(value, (values - values.mean() + value).tolist())


# ---- findings


@dataclass(frozen=True)
class Reading:
    """What a judge reads in images, beside what is true of their studies.

    Attributes:
        judge: whose.  findings: N tuples.
        logits: (N, L) answers to `Judge.labels`.  features: (N, D).  truth: (N, L) bool.
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


def _mean(values: Sequence[float] | np.ndarray) -> float:
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")


def macro_auc(reading: Reading, index: np.ndarray | None = None) -> float:
    """Mean over the counted findings of the area under the ROC curve of their presence; NaN if none
    counts."""
    i = np.arange(len(reading.logits)) if index is None else index
    return _mean([auc(reading.logits[i, c], reading.truth[i, c]) for c in reading.counted()])


def balanced_accuracy(reading: Reading, index: np.ndarray | None = None) -> float:
    """Mean over the counted findings of (sensitivity + specificity) / 2 at the judge's
    thresholds."""
    i = np.arange(len(reading.logits)) if index is None else index
    columns = reading.counted()
    yes, said = reading.truth[i][:, columns], reading.said[i][:, columns]
    with np.errstate(
        invalid="ignore"
    ):  # a resampled set may lack positives: NaN, which the mean leaves out
        sensitivity = (yes & said).sum(0) / yes.sum(0)
        specificity = (~yes & ~said).sum(0) / (~yes).sum(0)
    return _mean((sensitivity + specificity) / 2)


def _choices(reading: Reading, attribute: str) -> np.ndarray:
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


def finding_scores(reading: Reading, *, draws: int = 300) -> dict[str, Scored]:
    """AUC, balanced accuracy, side and lobe accuracy; those that cannot be had from so few studies
    are left out."""
    n = len(reading.logits)
    scores: dict[str, Callable[[np.ndarray], float]] = {
        AUC: lambda i: macro_auc(reading, i),
        BALANCED: lambda i: balanced_accuracy(reading, i),
    }
    for metric, hits in ((SIDE, side_hits(reading)), (LOBE, lobe_hits(reading))):
        if hits[:, 1].sum() >= MIN_CASES:
            scores[metric] = _share(hits)
    found = {m: over_studies(f, n, draws=draws) for m, f in scores.items()}
    return {m: s for m, s in found.items() if np.isfinite(s[0])}


def kappa(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cohen's kappa (1960) of yes-or-no answers (N, ...), for each column: agreement beyond that of
    independent answers; NaN where both always say the same one thing. Equals torchmetrics'
    ``binary_cohen_kappa``.
    """
    p, q = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    chance = p.mean(0) * q.mean(0) + (1 - p.mean(0)) * (1 - q.mean(0))
    with np.errstate(invalid="ignore", divide="ignore"):
        return ((p == q).mean(0) - chance) / (1 - chance)


def stream_agreement(a: Reading, b: Reading, *, draws: int = 300) -> dict[str, Scored]:
    """Do two streams of the same studies show the same findings, whatever is true? Row i of both is
    one study.

    Returns:
        ``"agreement: correlation"``: Pearson's r of the two judges' logits over studies, mean over
            findings;
        ``"agreement: kappa"``: `kappa` of their thresholded answers, mean over findings. Both are 1
        at best and 0 for streams that have nothing to do with each other. Findings that one of the
        judges never sees are left out.
    """
    presence = slice(0, len(findings_of(a.judge.region)))
    x, y, says_x, says_y = (v[:, presence] for v in (a.logits, b.logits, a.said, b.said))

    def correlation(i: np.ndarray) -> float:
        u, v = (z[i] - z[i].mean(0) for z in (x, y))
        with np.errstate(invalid="ignore"):  # a constant column has none: NaN, left out
            return _mean((u * v).sum(0) / np.sqrt((u**2).sum(0) * (v**2).sum(0)))

    def cohen(i: np.ndarray) -> float:
        return _mean(kappa(says_x[i], says_y[i]))

    found = {"agreement: correlation": correlation, "agreement: kappa": cohen}
    scored = {m: over_studies(f, len(a.logits), draws=draws) for m, f in found.items()}
    return {m: s for m, s in scored.items() if np.isfinite(s[0])}


# ---- distribution


class _Given(nn.Identity):
    """The features are there already: torchmetrics asks for a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance (squared, as usual) of the Gaussians fitted to features (N, D) and (M, D).

    Heusel et al. 2017, by torchmetrics. It is biased upward at small N, so both sides of a
    comparison need one N.
    """
    metric = FrechetInceptionDistance(feature=_Given(a.shape[1]))
    metric.update(torch.from_numpy(np.asarray(a, dtype=float)), real=True)
    metric.update(torch.from_numpy(np.asarray(b, dtype=float)), real=False)
    return float(metric.compute())


def kid(a: np.ndarray, b: np.ndarray) -> float:
    """Squared maximum mean discrepancy with the kernel (x·y / D + 1)^3 of features (N, D) and (N,
    D), unbiased: 0 on average for sets of one distribution, so it may be slightly negative.
        Bińkowski et al. 2018, by torchmetrics.
    """
    if len(a) != len(b):
        raise ValueError(f"the kernel distance needs sets of one size, got {len(a)} and {len(b)}")
    return float(
        poly_mmd(
            torch.from_numpy(np.asarray(a, dtype=float)),
            torch.from_numpy(np.asarray(b, dtype=float)),
        )
    )


def diversity(features: np.ndarray, real: np.ndarray, *, draws: int = 300) -> Scored:
    """Mean distance between two images of a set, relative to that of the real images of the same
    studies."""

    def distances(x: np.ndarray) -> np.ndarray:
        return torch.cdist(torch.from_numpy(x), torch.from_numpy(x)).numpy()

    ours, theirs = distances(features), distances(real)
    return over_studies(
        lambda i: float(ours[np.ix_(i, i)].sum() / theirs[np.ix_(i, i)].sum()),
        len(ours),
        draws=draws,
    )


def distribution_scores(
    features: np.ndarray, reference: np.ndarray, real: np.ndarray, *, draws: int = 100
) -> dict[str, Scored]:
    """Fréchet and kernel distance to ``reference``, and diversity.

    Args:
        features: (N, D) of the images to score.
        reference: features of *other* real studies; the distance of ``real`` to them at the same N
            is the floor.
        real: features of the real images of the same N studies.

    Returns:
        nothing of what needs more studies than there are: with N of D or fewer a covariance matrix
            is singular.
    """
    if min(len(features), len(reference)) <= features.shape[1]:
        return {}
    return {
        FRECHET: between_sets(frechet, features, reference, draws=draws),
        KID: between_sets(kid, features, reference, draws=draws),
        DIVERSITY: diversity(features, real, draws=draws),
    }


def nearest_distance(images: torch.Tensor, pool: torch.Tensor, side: int = 32) -> np.ndarray:
    """Root mean square difference of each image to the most similar one of a pool, both at ``side``
    pixels: (N,).

    In image units (the range is 2). 0 is a copy. Read it against held-out real images: generated
    ones that are nearer to the training images than those are either copied or blurry.
    """
    a, b = (
        torch.nn.functional.adaptive_avg_pool2d(x.float().cpu(), side).flatten(1)
        for x in (images, pool)
    )
    return (torch.cdist(a, b).amin(1) / side).double().numpy()


# ---- rows


def rows_of(task: str, who: str, scores: Mapping[str, Scored], n: int, note: str = "") -> list[Row]:
    """Scores of one predictor as rows."""
    return [
        Row(task, m, who, round(v, 4), round(low, 4), round(high, 4), n, note)
        for m, (v, low, high) in scores.items()
    ]


def judged_rows(
    task: str,
    judge: Judge,
    predictors: Mapping[str, torch.Tensor],
    findings: Sequence[Sequence[Finding]],
    reference: np.ndarray,
    *,
    notes: Mapping[str, str] | None = None,
    draws: int = 300,
) -> tuple[list[Row], dict[str, Reading]]:
    """Every score of every predictor of one stream.

    Args:
        predictors: who -> images (N, 1, H, W) of the N studies, among them `REAL`. Controls get no
            distance to real images (they are the model's own images, for others), and a model's
            further settings (``"model, guidance 4"``) get AUC and Fréchet distance only.
        findings: of the N studies.
        reference: features of other real studies, at best N of them.

    Returns:
        the rows, and what the judge read in each predictor's images.
    """
    readings = {who: Reading.of(judge, x, findings) for who, x in predictors.items()}
    rows = []
    for who, reading in readings.items():
        scores = finding_scores(reading, draws=draws)
        if not who.startswith("control: "):
            scores |= distribution_scores(
                reading.features, reference, readings[REAL].features, draws=draws // 3
            )
        if who.startswith("model, "):
            scores = {m: s for m, s in scores.items() if m in (AUC, FRECHET)}
        rows += rows_of(task, who, scores, len(findings), (notes or {}).get(who, ""))
    return rows, readings


def chance_check(task: str, readings: Mapping[str, Reading], control: str) -> Check:
    """A control's AUC is at chance: within 0.1 of a half, or a half inside its interval where
    studies are few."""
    value, low, high = over_studies(
        lambda i: macro_auc(readings[control], i), len(readings[control].logits)
    )
    passed = not np.isfinite(value) or abs(value - 0.5) <= 0.1 or low <= 0.5 <= high
    return Check(
        f"{task}: {control.removeprefix('control: ')} gives chance",
        passed,
        f"{AUC} {value:.3f} [{low:.3f}, {high:.3f}]",
    )


def judge_check(task: str, readings: Mapping[str, Reading]) -> Check:
    """The judge sees in today's real images what it saw when it was tested: it fits the cohort."""
    reading = readings[REAL]
    then, now = reading.judge.info.get("macro_auc"), macro_auc(reading)
    passed = then is None or not np.isfinite(now) or now >= then - 0.1
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
        scored = over_studies(lambda i: macro_auc(reading, i), len(images))
        if not np.isfinite(scored[0]):
            raise ValueError(
                f"{len(images)} {region} studies hold no finding {MIN_CASES} times: use more of"
                " them"
            )
        return rows_of("", "", {AUC: scored}, len(images))[0]

    return score
