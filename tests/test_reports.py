"""The report grammar and its labeller: exact inversion, negation, free text, broken text."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from medm2g_core.data.findings import FINDINGS, check_finding, findings_of, size_class
from medm2g_core.data.labeller import find_mentions, guess_region
from medm2g_core.data.reports import canonical, label_report, presence, write_report
from medm2g_core.streams import Finding

EFFUSION = Finding("pleural_effusion", "left", "", "small")
NODULE = Finding("nodule", "right", "upper", "small", 14)


def draw_findings(region: str, rng: np.random.Generator, most: int = 3) -> tuple[Finding, ...]:
    """0..most valid findings, also several of one kind at different places."""
    out: dict[tuple[str, str, str], Finding] = {}
    for _ in range(int(rng.integers(0, most + 1))):
        kind = FINDINGS[str(rng.choice(findings_of(region)))]
        location = str(rng.choice(kind.locations))
        side = "right" if location == "middle" else str(rng.choice(kind.sides))
        if any(name == kind.name and "both" in (side, other) for name, other, _ in out):
            continue
        mm = (
            None
            if kind.millimetres is None
            else int(rng.integers(kind.millimetres[0], kind.millimetres[1] + 1))
        )
        size = str(rng.choice(kind.sizes)) if mm is None else size_class(kind.name, mm)
        out.setdefault(
            (kind.name, side, location), check_finding(Finding(kind.name, side, location, size, mm))
        )
    return tuple(out.values())


def draw_report(seed: int) -> tuple[str, str, tuple[Finding, ...], int | None, str]:
    rng = np.random.default_rng(seed)
    region = ("chest", "brain")[seed % 2]
    findings = draw_findings(region, rng)
    age = None if rng.random() < 0.1 else int(rng.integers(0, 100))
    sex = str(rng.choice(["female", "male", ""]))
    return write_report(findings, region, age, sex, rng), region, findings, age, sex


@pytest.fixture(scope="module")
def drawn() -> list[tuple[str, str, tuple[Finding, ...], int | None, str]]:
    return [draw_report(seed) for seed in range(4000)]


def test_labeller_inverts_the_grammar_exactly(drawn):
    for text, region, findings, age, sex in drawn:
        labels = label_report(text, region)
        assert labels.findings == canonical(findings), text
        assert (labels.age, labels.sex) == (age, sex), text
        assert not labels.negated & {f.name for f in findings}


def test_region_is_guessed_from_the_words(drawn):
    assert all(guess_region(text) == region for text, region, *_ in drawn)
    assert label_report(drawn[1][0]) == label_report(drawn[1][0], "brain")


def test_no_true_finding_is_ever_denied_or_hedged(drawn):
    for text, region, findings, _, _ in drawn:
        true = {f.name for f in findings}
        assert not [
            m
            for m in find_mentions(text, region)
            if (m.negated or m.uncertain) and m.finding.name in true
        ], text


def test_every_single_finding_is_recovered_from_every_wording():
    """Each (kind, side, location, size) many times: no wording of the grammar loses an
    attribute."""
    rng = np.random.default_rng(5)
    for kind in FINDINGS.values():
        for side in kind.sides:
            for location in kind.locations:
                if location == "middle" and side != "right":
                    continue
                for size in kind.sizes:
                    mm = None
                    if kind.millimetres is not None:
                        low, high = kind.millimetres
                        mm = int(
                            rng.choice(
                                [
                                    m
                                    for m in range(low, high + 1)
                                    if size_class(kind.name, m) == size
                                ]
                            )
                        )
                    finding = Finding(kind.name, side, location, size, mm)
                    for _ in range(8):
                        text = write_report((finding,), kind.region, 50, "male", rng)
                        assert label_report(text, kind.region).findings == (finding,), text


def test_a_changed_word_changes_the_label():
    """Control: the labeller reads the text, it does not guess."""
    text = "Findings: There is a small left pleural effusion. Impression: Left pleural effusion."
    assert label_report(text, "chest").findings == (EFFUSION,)
    assert label_report(text.replace("small", "large"), "chest").findings[0].size == "large"
    assert label_report(re.sub("[Ll]eft", "right", text), "chest").findings[0].side == "right"
    assert (
        label_report(
            text.replace("There is a small", "No").replace("Left", "No left"), "chest"
        ).findings
        == ()
    )


def test_text_is_plain_and_of_the_promised_form_and_length(drawn):
    lengths = []
    for text, _, findings, _, _ in drawn:
        assert text.isascii() and "  " not in text and "\n" not in text and "{" not in text
        assert text.count("Findings: ") == text.count(" Impression: ") == 1 or text.startswith(
            "Findings: "
        )
        assert text.endswith(".") and not re.search(
            r"\. [a-z]|: [a-z]|\b[Aa] (?:[aeiou8]|11\b|18\b)", text
        ), text
        lengths.append((len(findings), len(text.split())))
    words = np.array([n for _, n in lengths])
    assert 35 <= words.mean() <= 45
    assert words.max() <= 75 and words.min() >= 12


def test_wording_varies_and_the_vocabulary_stays_small(drawn):
    vocabulary = Counter(
        w for text, *_ in drawn for w in re.findall(r"[a-z]+(?:-[a-z]+)*|\d+", text.lower())
    )
    assert 200 <= len(vocabulary) <= 450
    rng = np.random.default_rng(0)
    same = {write_report((EFFUSION,), "chest", 63, "female", rng) for _ in range(200)}
    assert len(same) > 190
    assert len({text for text, *_ in drawn}) > 0.99 * len(drawn)


def test_the_same_seed_writes_the_same_report():
    a, b, c = (
        write_report((NODULE,), "chest", 63, "male", np.random.default_rng(s)) for s in (1, 1, 2)
    )
    assert a == b != c


@pytest.mark.parametrize(
    ("findings", "region", "age", "sex", "message"),
    [
        ((Finding("gout"),), "chest", 1, "", "unknown finding"),
        ((Finding("mass", "left", "middle", "large", 60),), "chest", 1, "", "middle lobe"),
        ((EFFUSION,), "brain", 1, "", "chest finding"),
        (
            (EFFUSION, Finding("pleural_effusion", "both", "", "large")),
            "chest",
            1,
            "",
            "tell them apart",
        ),
        ((), "pelvis", 1, "", "no grammar"),
        ((), "chest", 130, "", "age"),
        ((), "chest", 1, "F", "sex"),
    ],
)
def test_what_cannot_be_reported_is_refused(findings, region, age, sex, message):
    with pytest.raises(ValueError, match=message):
        write_report(findings, region, age, sex, np.random.default_rng(0))


POSITIVE = [
    ("No change in the moderate left effusion.", [("pleural_effusion", "left", "", "moderate")]),
    (
        "Without significant interval change in the large right pneumothorax.",
        [("pneumothorax", "right", "", "large")],
    ),
    (
        "The effusion has not resolved and is moderate on the right.",
        [("pleural_effusion", "right", "", "moderate")],
    ),
    ("Enlarged cardiac silhouette.", [("cardiomegaly", "", "", "")]),
    ("The heart is markedly enlarged.", [("cardiomegaly", "", "", "large")]),
    ("Blunting of the left costophrenic angle.", [("pleural_effusion", "left", "", "")]),
    ("No pneumothorax, small left pleural effusion.", [("pleural_effusion", "left", "", "small")]),
    ("No pneumothorax but a large right effusion.", [("pleural_effusion", "right", "", "large")]),
    (
        "No abnormality other than a small left effusion.",
        [("pleural_effusion", "left", "", "small")],
    ),
    ("Without pleural effusion, there is mild cardiomegaly.", [("cardiomegaly", "", "", "small")]),
    (
        "Moderate left pleural effusion with left lower lobe atelectasis and no pneumothorax.",
        [("pleural_effusion", "left", "", "moderate"), ("atelectasis", "left", "lower", "")],
    ),
    (
        "Large left pneumothorax, left lower lobe consolidation, mild cardiomegaly.",
        [
            ("pneumothorax", "left", "", "large"),
            ("cardiomegaly", "", "", "small"),
            ("consolidation", "left", "lower", ""),
        ],
    ),
    (
        "Consolidation in the right middle and lower lobes.",
        [("consolidation", "right", "lower", ""), ("consolidation", "right", "middle", "")],
    ),
    (
        "Bibasilar atelectasis.",
        [("atelectasis", "left", "lower", ""), ("atelectasis", "right", "lower", "")],
    ),
    ("Hazy opacity in the lingula.", [("consolidation", "left", "upper", "")]),
    ("2.4 cm nodule in the right upper lobe.", [("nodule", "right", "upper", "moderate")]),
    (
        "Pleural effusions, small on the left and large on the right.",
        [("pleural_effusion", "left", "", "small"), ("pleural_effusion", "right", "", "large")],
    ),
    ("RUL mass measuring 51 x 40 mm.", [("mass", "right", "upper", "large")]),
]


@pytest.mark.parametrize(("text", "keys"), POSITIVE)
def test_free_text_that_asserts(text, keys):
    assert [f.key for f in label_report(text, "chest").findings] == keys


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            "No focal consolidation, large pleural effusion or pneumothorax.",
            "consolidation pleural_effusion pneumothorax",
        ),
        (
            "No focal consolidation, pleural effusion, pneumothorax.",
            "consolidation pleural_effusion pneumothorax",
        ),
        ("Neither effusion nor pneumothorax is seen.", "pleural_effusion pneumothorax"),
        ("Negative for effusion. Absence of pneumothorax.", "pleural_effusion pneumothorax"),
        ("Lungs are free of consolidation and edema.", "consolidation pulmonary_edema"),
        ("Pneumonia was ruled out.", "consolidation"),
        ("The right pneumothorax has resolved.", "pneumothorax"),
        ("Effusion is no longer seen.", "pleural_effusion"),
        ("The nodule and mass are not identified.", "nodule mass"),
        ("The heart is not enlarged.", "cardiomegaly"),
        ("Heart size is within normal limits.", "cardiomegaly"),
        ("The lungs are clear.", "consolidation pulmonary_edema atelectasis"),
    ],
)
def test_free_text_that_denies(text, names):
    labels = label_report(text, "chest")
    assert labels.findings == () and labels.negated == frozenset(names.split())


@pytest.mark.parametrize(
    "text",
    [
        "This may represent pneumonia.",
        "Pneumonia cannot be ruled out.",
        "Possible small effusion.",
        "Pericardial effusion.",
    ],
)
def test_what_is_only_considered_is_neither(text):
    labels = label_report(text, "chest")
    assert labels.findings == () and labels.negated == frozenset()


def test_brain_words_are_read_as_brain():
    labels = label_report(
        "No mass effect. No hydrocephalus. 3 cm left frontal mass. Mild small vessel disease.",
        "brain",
    )
    assert labels.findings == (
        Finding("tumor", "left", "frontal", "moderate", 30),
        Finding("white_matter_lesions", size="small"),
    )
    assert labels.negated == frozenset({"ventriculomegaly"})


def test_findings_and_impression_are_one_finding_and_contradictions_are_two():
    text = (
        "Findings: A nodule lies in the left upper lobe. It measures 12 mm. Impression: Left upper"
        " lobe nodule."
    )
    assert label_report(text, "chest").findings == (
        Finding("nodule", "left", "upper", "small", 12),
    )
    assert len(label_report("Small left effusion. Right effusion, large.", "chest").findings) == 2


def test_garbled_attributes_are_left_empty():
    labels = label_report("Nodule in the upper lower left right lobe lobe of 990 mm mm.", "chest")
    assert labels.findings == (Finding("nodule"),)


def test_no_text_makes_the_labeller_raise(drawn):
    rng = np.random.default_rng(3)
    texts = [
        "",
        " ",
        "...:;,,",
        "no no no not without",
        "\x00\u00e9\u2028 mm cm",
        "5 x x 5 cm mass " * 50,
    ]
    for text, *_ in drawn[:400]:
        words = text.split()
        texts.append(" ".join(words[i] for i in rng.permutation(len(words))))
        texts.append(text[: int(rng.integers(len(text)))])
    for text in texts:
        for region in ("chest", "brain", None):
            labels = label_report(text, region)
            assert all(f.name in FINDINGS for f in labels.findings)


def test_a_number_without_end_is_no_diameter():
    (found,) = label_report(f"A {'9' * 5000} mm nodule in the left upper lobe.").findings
    assert (found.name, found.side, found.location, found.size_mm) == (
        "nodule",
        "left",
        "upper",
        None,
    )


def test_unknown_region_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="known: chest, brain"):
        label_report("Normal.", "pelvis")


def test_presence_lists_every_finding_of_the_region():
    assert presence((EFFUSION,), "chest") == {
        n: n == "pleural_effusion" for n in findings_of("chest")
    }
    assert set(presence(())) == set(FINDINGS) and not any(presence(()).values())
