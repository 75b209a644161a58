"""The grammar of what people ask for: right in every register; held-out phrasings outside it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from medm2g_core.data.brain.pathology import sample_findings as brain_findings
from medm2g_core.data.chest.pathology import sample_findings as chest_findings
from medm2g_core.data.held_out import HELD_OUT
from medm2g_core.data.labeller import label_report
from medm2g_core.data.phrasing import contradicting, phrase, phrase_pair
from medm2g_core.data.reports import write_report
from medm2g_core.streams import Finding

SAMPLE = {"chest": chest_findings, "brain": brain_findings}
LEFT = Finding("pleural_effusion", "left", "", "large")


def _texts(region: str, n: int) -> list[tuple[tuple[Finding, ...], str]]:
    out = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        findings = SAMPLE[region](rng)
        out.append((findings, phrase(findings, region, 60, "female", rng)))
    return out


@pytest.mark.parametrize("region", ["chest", "brain"])
def test_every_register_says_exactly_the_findings_with_their_places(region: str) -> None:
    for findings, text in _texts(region, 150):
        said = label_report(text, region).findings
        assert {(f.name, f.side, f.location) for f in said} == {
            (f.name, f.side, f.location) for f in findings
        }, text


def test_sizes_that_are_said_are_the_true_ones_and_some_are_left_out() -> None:
    left_out = 0
    for findings, text in _texts("chest", 150):
        size = {(f.name, f.side, f.location): f.size for f in findings}
        for said in label_report(text, "chest").findings:
            left_out += not said.size and bool(size[said.name, said.side, said.location])
            assert said.size in ("", size[said.name, said.side, said.location]), text
    assert left_out > 10


def test_registers_differ_in_case_spelling_and_abbreviation() -> None:
    texts = [t for region in SAMPLE for _, t in _texts(region, 300)]
    assert len(set(texts)) > 0.95 * len(texts)
    assert sum(t.isupper() for t in texts) > 10 and sum(t.islower() for t in texts) > 50
    for pattern in ("oedema", r"\bedema", "tumour", r"\btumor", r"\bRLL\b", r"\bw/o\b", "neither"):
        assert any(re.search(pattern, t, re.IGNORECASE) for t in texts), pattern


def test_the_same_state_writes_the_same_text() -> None:
    a, b = (phrase((LEFT,), "chest", 50, "male", np.random.default_rng(3)) for _ in range(2))
    assert a == b


def _pairs(region: str, n: int) -> list[tuple[tuple[Finding, ...], str, str]]:
    out = []
    for seed in range(n):
        rng = np.random.default_rng([seed, 1])
        findings = SAMPLE[region](rng)
        out.append((findings, *phrase_pair(findings, region, 60, "female", rng)))
    return out


def _read(text: str, region: str) -> set[tuple[str, str, str]]:
    return {(f.name, f.side, f.location) for f in label_report(text, region).findings}


@pytest.mark.parametrize("region", ["chest", "brain"])
def test_a_contradiction_says_something_else_of_one_finding_in_nearly_the_same_words(
    region: str,
) -> None:
    shared, kinds = [], {"denied": 0, "affirmed": 0, "side": 0, "size": 0}
    for findings, right, wrong in _pairs(region, 200):
        said, true = _read(wrong, region), _read(right, region)
        assert true == {(f.name, f.side, f.location) for f in findings}, right
        gone, new = true - said, said - true
        assert len(gone) <= 1 and len(new) <= 1, (right, wrong)
        if gone and new:
            (a,), (b,) = gone, new
            assert a[0] == b[0] and a[1] != b[1] and a[2] == b[2], (right, wrong)
            kinds["side"] += 1
        elif not gone and not new:  # another size
            sizes = [
                [(f.size, f.size_mm) for f in label_report(t, region).findings]
                for t in (right, wrong)
            ]
            assert sum(x != y for x, y in zip(*sizes, strict=True)) == 1, (right, wrong)
            kinds["size"] += 1
        else:
            kinds["denied" if gone else "affirmed"] += 1
        ours, theirs = (set(re.findall(r"\w+", t.lower())) for t in (right, wrong))
        shared.append(len(ours & theirs) / max(len(ours), len(theirs)))
    assert all(n >= 5 for n in kinds.values()), kinds
    assert np.mean(shared) > 0.75


@pytest.mark.parametrize("region", ["chest", "brain"])
def test_the_right_text_of_a_pair_is_what_phrase_writes(region: str) -> None:
    for seed in range(20):
        a, b = (np.random.default_rng(seed) for _ in range(2))
        findings = SAMPLE[region](np.random.default_rng([seed, 9]))
        pair = phrase_pair(findings, region, 60, "", a)
        assert pair[0] == phrase(findings, region, 60, "", b)


@pytest.mark.parametrize("region", ["chest", "brain"])
def test_contradicting_findings_differ_in_one_and_can_be_reported(region: str) -> None:
    changes = set()
    for seed in range(150):
        rng = np.random.default_rng(seed)
        findings = SAMPLE[region](rng)
        wrong = contradicting(findings, region, rng)
        true, said = set(findings), set(wrong)
        assert len(true - said) <= 1 and len(said - true) <= 1 and true != said
        changes.add((len(true - said), len(said - true)))
        assert _read(write_report(wrong, region, 60, "", rng), region) == {
            (f.name, f.side, f.location) for f in wrong
        }
    assert changes == {(1, 0), (0, 1), (1, 1)}


def test_no_held_out_phrasing_comes_from_the_grammar() -> None:
    made = {t.lower() for region in SAMPLE for _, t in _texts(region, 120)}
    for seed in range(400):
        finding = HELD_OUT[seed % len(HELD_OUT)].finding
        rng = np.random.default_rng(seed)
        made |= {t.lower() for t in phrase_pair((finding,), "chest", None, "", rng)}
    for held in HELD_OUT:
        for text in (held.affirmed, held.denied):
            assert not any(text.lower() in t for t in made), text


def test_control_a_denied_finding_read_as_affirmed_is_seen() -> None:
    assert label_report("There is no large left effusion.", "chest").findings == ()
    assert label_report("There is a large left effusion.", "chest").findings


def test_a_finding_of_another_region_is_refused() -> None:
    with pytest.raises(ValueError, match="no finding of the brain"):
        phrase((LEFT,), "brain", None, "", np.random.default_rng(0))
