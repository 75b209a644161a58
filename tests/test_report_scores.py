"""Word overlap with the libraries, and the report of several that agrees most with the others."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import EDEMA, EFFUSION, reports
from sacrebleu.metrics.bleu import BLEU

from medm2g_core.data.reports import write_report
from medm2g_core.metrics import report_scores
from medm2g_core.metrics.report_scores import (
    METEOR_MISSING,
    bleu,
    bleu_counts,
    distinct_share,
    medoid,
    meteor,
    rouge_l,
    self_contradictions,
    tokenization,
)
from medm2g_core.training.corpus import random_reports


def test_bleu_equals_sacrebleu_on_the_corpus_and_on_a_report() -> None:
    real, other = reports(20), reports(20, seed=5)
    stats = bleu_counts(other, real)
    for n in (1, 2, 3, 4):
        metric = BLEU(lowercase=True, max_ngram_order=n)
        whole = metric.corpus_score(other, [real]).score
        assert 100 * bleu(stats.sum(0), n) == pytest.approx(whole)
        one = BLEU(lowercase=True, max_ngram_order=n, effective_order=True).sentence_score(
            other[0], [real[0]]
        )
        assert 100 * bleu(stats[0], n, sentence=True) == pytest.approx(one.score)
    assert "tok:13a" in tokenization() and "case:lc" in tokenization()
    with pytest.raises(ValueError, match="one of each"):
        bleu_counts(["a"], [])


def test_rouge_l_finds_the_longest_common_subsequence() -> None:
    """Against the recursion of its definition, on words without order or end."""

    def longest(a: list[str], b: list[str]) -> int:
        if not a or not b:
            return 0
        if a[-1] == b[-1]:
            return longest(a[:-1], b[:-1]) + 1
        return max(longest(a[:-1], b), longest(a, b[:-1]))

    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (list(rng.choice(list("xyz"), int(rng.integers(1, 8)))) for _ in range(2))
        p, r = longest(a, b) / len(a), longest(a, b) / len(b)
        expected = 2.44 * p * r / (r + 1.44 * p) if p else 0.0
        assert rouge_l(" ".join(a), " ".join(b)) == pytest.approx(expected, abs=1e-6)


def test_rouge_l_follows_its_formula_and_survives_empty_reports() -> None:
    # Longest common subsequence "the heart enlarged": 3 of 3 generated tokens, 3 of 4 of the
    # reference.
    p, r = 1.0, 0.75
    assert rouge_l("The heart enlarged", "the heart is enlarged") == pytest.approx(
        2.44 * p * r / (r + 1.44 * p)
    )
    assert rouge_l("", "the heart") == rouge_l("lungs", "the heart") == 0.0
    assert bleu(bleu_counts([""], ["the heart"])[0]) == 0.0


def test_java_meteor_is_one_for_equal_reports_and_low_for_others() -> None:
    real = reports(6)
    scores = meteor([*real, ""], [*real, real[0]])
    if scores is None:
        pytest.skip(METEOR_MISSING)
    assert scores[:6] == [pytest.approx(1.0)] * 6 and scores[6] < 0.1


def test_a_java_that_fails_leaves_meteor_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(report_scores.shutil, "which", lambda name: str(fake))
    assert meteor(["a"], ["a"]) is None


def test_distinct_share_is_the_number_of_different_reports() -> None:
    assert sum(distinct_share(["a", "a", "b", "c"])) == pytest.approx(3)


def test_medoid_is_the_report_of_the_majority_and_the_first_of_several() -> None:
    rng = np.random.default_rng(0)
    edema, effusion, again = (
        write_report((f,), "chest", 40, "male", rng) for f in (EDEMA, EFFUSION, EFFUSION)
    )
    assert medoid([edema, effusion, again], "chest") == 1
    assert medoid([edema, effusion], "chest") == 0


# ---- contradictions


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("No pleural effusion. There is a small left pleural effusion.", ("pleural_effusion",)),
        ("Heart size is normal. Impression: mild cardiomegaly.", ("cardiomegaly",)),
        ("The lungs are clear. Consolidation in the left lower lobe.", ("consolidation",)),
        ("No effusion on the right. Moderate bilateral effusions.", ("pleural_effusion",)),
        ("No edema. Mild pulmonary edema. No mass. A 40 mm mass in the right upper lobe.",
         ("pulmonary_edema", "mass")),
        ("Small left pneumothorax. Impression: large left pneumothorax.", ("pneumothorax",)),
        ("Mild cardiomegaly. The heart is severely enlarged.", ("cardiomegaly",)),
    ],
)  # fmt: skip
def test_a_report_that_contradicts_itself_is_found_out(text, wrong) -> None:
    assert self_contradictions(text, "chest") == wrong


@pytest.mark.parametrize(
    "text",
    [
        "No effusion. Small left pneumothorax.",
        "No right effusion. Small left pleural effusion.",
        "There is no large effusion. Small left pleural effusion.",
        "Consolidation in the left lower lobe. The lungs are otherwise clear.",
        "A 9 mm nodule in the left upper lobe. No other nodule.",
        "Small left and large right pleural effusions.",
        "Small left pleural effusion. Large right pleural effusion.",
        "A 9 mm nodule in the left upper lobe. A 20 mm nodule in the right lower lobe.",
        "Small left pleural effusion. Impression: left pleural effusion.",
        "Opacity that may represent pneumonia. No consolidation.",
        "",
    ],
)
def test_what_only_looks_like_a_contradiction_is_none(text) -> None:
    assert self_contradictions(text, "chest") == ()


def test_no_report_of_the_grammar_contradicts_itself_and_two_in_one_often_do() -> None:
    texts = random_reports(300, 5)
    assert [t for t in texts if self_contradictions(t)] == []
    pairs = [f"{a} {b}" for a, b in itertools.pairwise(texts)]
    assert np.mean([bool(self_contradictions(t, "chest")) for t in pairs]) > 0.2
