"""Scores of a judge's readings on cases that can be worked out, and the sections that use them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import binary_auroc

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
    chance_check,
    distribution_scores,
    finding_scores,
    judge_check,
    lobe_hits,
    macro_auc,
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
from medm2g_core.metrics.distributions import frechet_distance
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


def test_streams_of_one_patient_agree_and_those_of_two_patients_do_not() -> None:
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
    assert {m: v.value for m, v in same.items()} == pytest.approx({m: 1.0 for m in own})


# ---- distributions


def test_blur_shows_in_the_distance_and_too_few_studies_have_none() -> None:
    real, other = np.random.default_rng(0).normal(size=(2, 120, 64))
    floor, far = (distribution_scores(x, other, real) for x in (real, real * 0.5))
    assert far[FRECHET].low > floor[FRECHET].high
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
    assert frechet_distance(judge.features(blurred), reference) > 2 * frechet_distance(
        judge.features(x), reference
    )


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
