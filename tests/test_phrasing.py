"""The grammar of what people ask for: right in every register; held-out phrasings outside it."""

from __future__ import annotations

import re

import numpy as np
import pytest

from medm2g_core.data.brain.pathology import sample_findings as brain_findings
from medm2g_core.data.chest.pathology import sample_findings as chest_findings
from medm2g_core.data.findings import FINDINGS
from medm2g_core.data.labeller import label_report
from medm2g_core.data.phrasing import HELD_OUT, hard_pair, phrase
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


@pytest.mark.parametrize("name", FINDINGS)
def test_a_hard_pair_has_the_same_words_and_the_opposite_meaning(name: str) -> None:
    region = FINDINGS[name].region
    for seed in range(12):
        rng = np.random.default_rng(seed)
        finding = next(
            f
            for f in (
                g for s in range(500) for g in SAMPLE[region](np.random.default_rng([seed, s]))
            )
            if f.name == name
        )
        yes, no = hard_pair(finding, rng)
        assert {f.name for f in label_report(yes, region).findings} == {name}, yes
        assert not label_report(no, region).findings, no
        shared = set(re.findall(r"\w+", yes.lower())) & set(re.findall(r"\w+", no.lower()))
        assert shared >= set(re.findall(r"\w+", FINDINGS[name].title.lower())) or len(shared) >= 1


def test_no_held_out_phrasing_comes_from_the_grammar() -> None:
    made = {t.lower() for region in SAMPLE for _, t in _texts(region, 120)}
    for seed in range(400):
        pair = hard_pair(HELD_OUT[seed % len(HELD_OUT)].finding, np.random.default_rng(seed))
        made |= {t.lower() for t in pair}
    for held in HELD_OUT:
        for text in (held.affirmed, held.denied):
            assert not any(text.lower() in t for t in made), text


def test_control_a_denied_finding_read_as_affirmed_is_seen() -> None:
    assert label_report("There is no large left effusion.", "chest").findings == ()
    assert label_report("There is a large left effusion.", "chest").findings


def test_a_finding_of_another_region_is_refused() -> None:
    with pytest.raises(ValueError, match="no finding of the brain"):
        phrase((LEFT,), "brain", None, "", np.random.default_rng(0))
