"""Scores of a judge's readings on cases that can be worked out, and the sections that use them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, binary_cohen_kappa

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.findings import findings_of
from medm2g_core.evaluation import fidelity
from medm2g_core.evaluation.bench import Bench
from medm2g_core.evaluation.fidelity import (
    AUC,
    FRECHET,
    NEAREST,
    REAL,
    SIDE,
    Reading,
    auc_scorer,
    balanced_accuracy,
    between_sets,
    chance_check,
    distribution_scores,
    diversity,
    finding_scores,
    frechet,
    judge_check,
    kappa,
    kid,
    lobe_hits,
    macro_auc,
    nearest_distance,
    side_hits,
    stream_agreement,
)
from medm2g_core.evaluation.table import SectionResult
from medm2g_core.evaluation.text_to_image import nearest_reports, text_to_image
from medm2g_core.evaluation.unified import unified
from medm2g_core.judges.files import SHIPPED_JUDGES as SHIPPED
from medm2g_core.judges.files import load_judge
from medm2g_core.judges.judge import Judge, Judges
from medm2g_core.judges.labels import label_matrix, labels_of
from medm2g_core.judges.network import JudgeNet
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.streams import Finding
from tests.conftest import pictures, reports

EFFUSION = Finding("pleural_effusion", "left", "", "small")
NODULE = Finding("nodule", "right", "upper", "small", 12)
NUMBER = len(findings_of("chest"))


def blank_judge(region: str = "chest", stream: str = "ct") -> Judge:
    """Untrained, with weights of its own."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Judge(region, stream, JudgeNet(len(labels_of(region))).eval(), {})


def reading(findings: list[tuple[Finding, ...]], certainty: float, seed: int = 0) -> Reading:
    """What a made-up judge reads: the truth times ``certainty``, plus noise of deviation 1."""
    truth = label_matrix(findings, "chest").numpy() > 0
    noise = np.random.default_rng(seed).normal(size=truth.shape)
    features = np.random.default_rng(seed).normal(size=(len(truth), 64))
    return Reading(blank_judge(), findings, certainty * (truth - 0.5) + noise, features, truth)


def some_findings(n: int = 60) -> list[tuple[Finding, ...]]:
    return [((EFFUSION,), (NODULE,), (), (EFFUSION, NODULE), (), ())[i % 6] for i in range(n)]


# ---- findings


def test_macro_auc_is_the_mean_of_torchmetrics_over_findings_with_enough_cases() -> None:
    findings = some_findings()
    findings[0] = (Finding("cardiomegaly", size="small"),)  # one case: not counted
    r = reading(findings, 2.0)
    columns = [findings_of("chest").index(n) for n in ("pleural_effusion", "nodule")]
    expected = [
        binary_auroc(
            torch.tensor(r.logits[:, c]).sigmoid(), torch.tensor(r.truth[:, c]).long()
        ).item()
        for c in columns
    ]
    assert sorted(r.counted()) == sorted(columns)
    assert macro_auc(r) == pytest.approx(np.mean(expected), abs=1e-6)


def test_certain_judge_scores_one_and_ignorant_judge_scores_chance() -> None:
    findings = some_findings(300)
    sure, blind = finding_scores(reading(findings, 50)), finding_scores(reading(findings, 0))
    for metric, chance in ((AUC, 0.5), ("finding balanced accuracy", 0.5), (SIDE, 0.5)):
        assert sure[metric] == (1.0, 1.0, 1.0)
        value, low, high = blind[metric]
        assert low <= value <= high and low - 0.05 < chance < high + 0.05
    assert sure["lobe accuracy"][0] == 1.0 and blind["lobe accuracy"][0] == pytest.approx(
        1 / 3, abs=0.12
    )


def test_balanced_accuracy_by_hand() -> None:
    r = reading([(EFFUSION,)] * 5 + [()] * 5, 0)
    column = r.judge.column("pleural_effusion")
    r.logits[:, column] = [
        1,
        1,
        1,
        1,
        -1,
        -1,
        -1,
        -1,
        1,
        1,
    ]  # sensitivity 4/5, specificity 3/5; thresholds are 0
    assert balanced_accuracy(r) == pytest.approx(0.7)


def test_side_is_asked_only_where_a_finding_has_exactly_one() -> None:
    both = Finding("pleural_effusion", "both", "", "small")
    right = replace(EFFUSION, side="right")
    r = reading(
        [
            (EFFUSION,),
            (both,),
            (EFFUSION, right),
            (),
            (NODULE, EFFUSION),
            (Finding("cardiomegaly"),),
        ],
        50,
    )
    assert side_hits(r).tolist() == [[1, 1], [0, 0], [0, 0], [0, 0], [2, 2], [0, 0]]
    assert lobe_hits(r).tolist() == [[0, 0], [0, 0], [0, 0], [0, 0], [1, 1], [0, 0]]
    assert side_hits(replace(r, logits=-r.logits))[:, 0].sum() == 0


def test_mirrored_images_show_the_other_side() -> None:
    judge = load_judge(SHIPPED, "chest", "ct")
    cohort = VirtualCohort("test", "chest", 128)
    x = cohort.stack("ct")
    right, mirrored = (
        side_hits(Reading.of(judge, y, cohort.findings)).sum(0) for y in (x, x.flip(-1))
    )
    assert right[0] / right[1] > 0.9 and mirrored[0] / mirrored[1] < 0.35


def test_readings_need_the_findings_of_every_image() -> None:
    with pytest.raises(ValueError, match="3 images for the findings of 2"):
        Reading.of(blank_judge(), pictures(3), [(), ()])


def test_kappa_is_that_of_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    for rate in (0.2, 0.5, 0.9):
        a = rng.random(100) < 0.4
        b = np.where(rng.random(100) < rate, a, rng.random(100) < 0.4)
        reference = binary_cohen_kappa(torch.tensor(a).long(), torch.tensor(b).long()).item()
        assert kappa(a, b) == pytest.approx(reference, abs=1e-6)
    assert np.isnan(kappa(np.ones(4), np.ones(4)))


def test_streams_of_one_patient_agree_and_those_of_strangers_do_not() -> None:
    pool, order = some_findings(240), np.random.default_rng(0).permutation(240)
    findings = [pool[i] for i in order]
    ct, xray = reading(findings, 6, seed=1), reading(findings, 6, seed=2)
    cut = [findings_of("chest").index(n) for n in ("pleural_effusion", "nodule")]
    shuffled = replace(xray, logits=np.roll(xray.logits, 7, 0))
    for r in (ct, xray):  # findings that nobody has are noise in this example
        r.logits[:, [c for c in range(NUMBER) if c not in cut]] = -9
    shuffled.logits[:, [c for c in range(NUMBER) if c not in cut]] = -9
    own, other = stream_agreement(ct, xray), stream_agreement(ct, shuffled)
    for metric in own:
        assert own[metric][0] > 0.8, metric
        assert abs(other[metric][0]) < 0.15 and other[metric][2] < own[metric][1], metric
    same = stream_agreement(ct, ct)
    assert {m: v[0] for m, v in same.items()} == pytest.approx({m: 1.0 for m in own})


# ---- distributions


def test_frechet_of_equal_sets_is_zero_and_of_shifted_sets_the_squared_shift() -> None:
    x = np.random.default_rng(0).normal(size=(300, 16))
    assert frechet(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet(x, x + np.array([3.0] + [0.0] * 15)) == pytest.approx(9, abs=1e-6)
    assert frechet(x, 2 * x) == pytest.approx(
        np.trace(np.cov(x.T)) + (x.mean(0) ** 2).sum(), rel=1e-6
    )


def test_frechet_of_diagonal_gaussians_has_its_closed_form() -> None:
    rng = np.random.default_rng(0)
    a, b = (
        rng.normal(size=(20000, 3)) * [1, 2, 3],
        rng.normal(size=(20000, 3)) * [2, 2, 1]
        + [
            0,
            1,
            0,
        ],
    )
    assert frechet(a, b) == pytest.approx(1 + (2 - 1) ** 2 + (1 - 3) ** 2, rel=0.05)


def test_kernel_distance_is_the_unbiased_sum_over_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(12, 5)), rng.normal(size=(12, 5)) + 0.5

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 5 + 1) ** 3)

    within = sum(k(s[i], s[j]) for s in (a, b) for i in range(12) for j in range(12) if i != j) / (
        12 * 11
    )
    across = sum(k(x, y) for x in a for y in b) / 144
    assert kid(a, b) == pytest.approx(within - 2 * across)
    with pytest.raises(ValueError, match="one size"):
        kid(a, b[:5])


def test_kernel_distance_of_one_distribution_averages_zero() -> None:
    rng = np.random.default_rng(0)
    values = [kid(rng.normal(size=(40, 4)), rng.normal(size=(40, 4))) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5
    assert kid(rng.normal(size=(40, 4)), rng.normal(size=(40, 4)) + 1) > max(values)


def test_interval_of_a_distance_holds_its_value() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(150, 8)), rng.normal(size=(100, 8)) + 1
    value, low, high = between_sets(frechet, a, b)
    assert value == pytest.approx(frechet(a[:100], b)) and low < value < high


def test_copies_of_one_image_have_no_diversity_and_blur_shows_in_the_distance() -> None:
    real, other = np.random.default_rng(0).normal(size=(2, 120, 64))
    assert diversity(real, real)[0] == pytest.approx(1)
    assert diversity(np.repeat(real[:1], 120, 0), real)[0] == 0
    floor, far = (
        distribution_scores(real, other, real),
        distribution_scores(real * 0.5, other, real),
    )
    assert far[FRECHET][1] > floor[FRECHET][2]
    assert distribution_scores(real[:64], other, real[:64]) == {}, (
        "a covariance of 64 numbers needs more than 64"
    )


def test_shipped_features_notice_blur() -> None:
    judge = load_judge(SHIPPED, "chest", "xray")
    x, other = (VirtualCohort(split, "chest", 128).stack("xray") for split in ("test", "val"))
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    blurred = torch.nn.functional.conv2d(
        x, (kernel[:, None] * kernel)[None, None], padding=2
    ).clamp(-1, 1)
    reference = judge.features(other)
    assert frechet(judge.features(blurred), reference) > 2 * frechet(judge.features(x), reference)


def test_a_copy_has_distance_zero_to_the_training_images() -> None:
    pool = pictures(20)
    d = nearest_distance(torch.cat([pool[3:4], pictures(1, seed=9)]), pool)
    assert d[0] == pytest.approx(0, abs=1e-4) and d[1] > 0.05
    assert nearest_distance(pool[:1] + 0.1, pool[:1])[0] == pytest.approx(0.1, abs=1e-4)


# ---- checks


def test_check_of_a_control_fails_when_the_control_still_knows() -> None:
    findings = some_findings(120)
    readings = {
        "control: x": reading(findings, 0),
        "control: leak": reading(findings, 3),
        REAL: reading(findings, 9),
    }
    assert chance_check("t", readings, "control: x").passed
    assert not chance_check("t", readings, "control: leak").passed


def test_check_of_a_judge_fails_when_it_no_longer_fits_the_cohort() -> None:
    sharp, blind = (reading(some_findings(120), c) for c in (9, 0))
    for r, fits in ((sharp, True), (blind, False)):
        r = replace(r, judge=replace(r.judge, info={"macro_auc": 0.95}))
        assert judge_check("t", {REAL: r}).passed == fits


def test_nearest_report_of_a_report_is_itself(model: MedM2G) -> None:
    texts = list(dict.fromkeys(reports(6)))
    assert nearest_reports(model, texts, texts) == list(range(len(texts)))


# ---- sections


@pytest.fixture(scope="module")
def blank_judges() -> Judges:
    regions = {"chest": ("xray", "ct", "mri_t2"), "brain": ("mri_flair",)}
    return {(r, s): blank_judge(r, s) for r, names in regions.items() for s in names}


def has_everything(outcome: SectionResult) -> None:
    who = {}
    for r in outcome.rows:
        assert r.low <= r.value <= r.high and r.n > 0, r
        who.setdefault((r.task, r.metric), []).append(r.who)
    assert len(who) > 5 and outcome.checks
    for key, names in who.items():
        assert "model" in names and REAL in names, key
        assert len(set(names)) == len(names), key
    assert SectionResult.from_dict(outcome.to_dict()) == outcome


def test_text_to_image_has_baselines_control_and_ceilings(
    model: MedM2G, blank_judges: Judges
) -> None:
    bench = Bench(
        MedM2GPipeline(model), n_chest=70, n_brain=2, reference=2, steps=1, progress=False
    )
    train = {"chest": VirtualCohort("train", "chest", 32, resolution=32)}
    outcome = text_to_image(bench, blank_judges, train, targets=[("chest", "xray")])
    has_everything(outcome)
    kinds = {
        m: {r.who.split(":")[0] for r in outcome.rows if r.metric == m}
        for m in (AUC, FRECHET, NEAREST)
    }
    settings = {
        "model",
        "model, guidance 1",
        "model, guidance 4",
        "model, best of 4 by the aligned encoders",
    }
    assert kinds[AUC] == settings | {"baseline", "control", "ceiling"}
    assert "control" not in kinds[FRECHET]
    copied = [r.value for r in outcome.rows if r.metric == NEAREST and r.who.startswith("baseline")]
    assert copied == pytest.approx([0], abs=1e-3), "training images are nearest to themselves"


def test_unified_measures_pairs_and_draws_with_and_without_a_report(
    model: MedM2G, blank_judges: Judges
) -> None:
    bench = Bench(
        MedM2GPipeline(model), n_chest=32, n_brain=2, reference=2, steps=1, progress=False
    )
    outcome = unified(bench, blank_judges)
    has_everything(outcome)
    assert sum("never trained together" in c.name for c in outcome.checks) == 8
    agreed = {r.task for r in outcome.rows if r.metric.startswith("agreement")}
    assert (
        sum(t.startswith("Report") for t in agreed)
        == 3
        == sum(t.startswith("nothing") for t in agreed)
    )
    assert any("drawn apart does not agree" in c.name for c in outcome.checks)


def test_scorer_for_other_sections_gives_a_row_and_refuses_too_few_studies(
    model: MedM2G, blank_judges: Judges, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(MedM2GPipeline(model), n_chest=40, n_brain=2, reference=2, progress=False)
    score = auc_scorer(bench, blank_judges)
    row = score("chest", "xray", bench.data["chest"].stack("xray"))
    assert row.metric == AUC and row.n == 40 and row.low <= row.value <= row.high
    monkeypatch.setattr(fidelity, "MIN_CASES", 41)
    with pytest.raises(ValueError, match="use more"):
        score("chest", "xray", bench.data["chest"].stack("xray"))
