"""The report grammar: findings to plain-English report text, and back through the labeller.

`write_report` states every attribute of every `Finding` at least once and never denies one that is
true, so `medm2g_core.data.labeller.label_report` recovers the exact set, the age and the sex. The
wording is this project's own; it shares only short stock phrases ("no pleural effusion") with real
reports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from medm2g_core.data.findings import FINDINGS, check_finding
from medm2g_core.data.labeller import ReportLabels, canonical, label_report, presence
from medm2g_core.streams import Finding

__all__ = ["MAX_FINDINGS", "ReportLabels", "canonical", "label_report", "presence", "write_report"]

MAX_FINDINGS = 6
"""More findings than this make a report that no text stream of the project holds."""

# Words of a size class: adjective and adverb. Every word belongs to one class only, whatever the
# finding.
_EXTENT = {"small": ("small", "minimal"), "moderate": ("moderate",), "large": ("large",)}
_DEGREE = {"small": ("mild", "slight"), "moderate": ("moderate",), "large": ("severe", "marked")}
_SPREAD = {
    "small": ("mild", "minimal"),
    "moderate": ("moderate",),
    "large": ("extensive", "marked"),
}
_BULK = {"small": ("small",), "moderate": ("moderate", "moderate-sized"), "large": ("large",)}
_ADJECTIVES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "pleural_effusion": _EXTENT,
    "pneumothorax": _EXTENT,
    "cardiomegaly": _DEGREE,
    "pulmonary_edema": _DEGREE,
    "nodule": _BULK,
    "mass": _BULK,
    "tumor": _BULK,
    "vasogenic_edema": _SPREAD,
    "white_matter_lesions": _SPREAD,
    "ventriculomegaly": _DEGREE,
}

# Slots: {size} adjective, {adv} adverb, {mm} diameter, {side}, {lobe} ("left upper lobe").
_STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "pleural_effusion": (
        "a {size} {side} pleural effusion is present.",
        "there is a {size} {side} pleural effusion.",
        "{size} pleural effusion on the {side}.",
        "{size} amount of pleural fluid on the {side} side.",
        "blunting of the {side} costophrenic angle by a {size} effusion.",
        "the {side} hemithorax holds a {size} pleural effusion.",
        "layering pleural fluid on the {side}, {size} in volume.",
    ),
    "pleural_effusion/both": (
        "{size} bilateral pleural effusions are present.",
        "there are {size} bilateral pleural effusions.",
        "{size} pleural effusions on both sides.",
        "{size} amount of pleural fluid on both sides.",
        "blunting of both costophrenic angles by {size} effusions.",
        "both pleural spaces hold {size} effusions.",
        "layering pleural fluid on both sides, {size} in volume.",
    ),
    "pneumothorax": (
        "a {size} {side} pneumothorax is present.",
        "there is a {size} {side} pneumothorax.",
        "{size} pneumothorax on the {side} with a visible pleural line.",
        "{size} {side} apical pneumothorax.",
        "the {side} hemithorax shows a {size} pneumothorax.",
        "the {side} lung is partly collapsed by a {size} pneumothorax.",
        "absent lung markings on the {side} from a {size} pneumothorax.",
    ),
    "cardiomegaly": (
        "the heart is {adv} enlarged.",
        "there is {size} cardiomegaly.",
        "{size} enlargement of the cardiac silhouette.",
        "the cardiac silhouette is {adv} enlarged.",
        "{size} cardiomegaly is seen.",
        "heart size is {adv} enlarged.",
        "the cardiothoracic ratio is raised by {size} cardiomegaly.",
    ),
    "pulmonary_edema": (
        "there is {size} pulmonary edema.",
        "{size} pulmonary edema with hazy perihilar markings.",
        "{size} interstitial edema with prominent vessels.",
        "signs of {size} pulmonary edema are present.",
        "both lungs show {size} edema.",
        "vessels are blurred by {size} pulmonary edema.",
    ),
    "consolidation": (
        "consolidation in the {lobe}.",
        "there is airspace opacity in the {lobe}.",
        "{lobe} consolidation with air bronchograms.",
        "focal consolidation involves the {lobe}.",
        "airspace disease is seen in the {lobe}.",
        "the {lobe} shows dense consolidation.",
        "patchy opacity in the {lobe} in keeping with pneumonia.",
    ),
    "atelectasis": (
        "atelectasis of the {lobe}.",
        "there is atelectasis in the {lobe}.",
        "{lobe} atelectasis with volume loss.",
        "the {lobe} shows linear atelectasis.",
        "volume loss in the {lobe} due to atelectasis.",
        "band of atelectasis in the {lobe}.",
        "crowded vessels in the {lobe} from atelectasis.",
    ),
    "nodule": (
        "a {mm} mm nodule is seen in the {lobe}.",
        "there is a {size} nodule in the {lobe} measuring {mm} mm.",
        "{size} {lobe} nodule, {mm} mm in diameter.",
        "the {lobe} contains a {size} round nodule of {mm} mm.",
        "a round nodule lies in the {lobe}. it measures {mm} mm.",
        "{mm} mm solid nodule in the {lobe}.",
        "well-defined {mm} mm nodule, {lobe}.",
    ),
    "mass": (
        "a {mm} mm mass is seen in the {lobe}.",
        "there is a {size} mass in the {lobe} measuring {mm} mm.",
        "{size} {lobe} mass, {mm} mm in diameter.",
        "the {lobe} contains a {size} irregular mass of {mm} mm.",
        "an irregular mass lies in the {lobe}. it measures {mm} mm.",
        "{mm} mm solid mass in the {lobe}.",
        "lobulated {mm} mm mass, {lobe}.",
    ),
    "tumor": (
        "a {mm} mm tumor is seen in the {lobe}.",
        "there is a {size} mass in the {lobe} measuring {mm} mm.",
        "{size} {lobe} tumor, {mm} mm in diameter.",
        "the {lobe} contains a {size} irregular mass of {mm} mm.",
        "a mass lies in the {lobe}. it measures {mm} mm.",
        "{mm} mm tumor centered in the {lobe}.",
        "infiltrating {mm} mm tumor, {lobe}.",
        "the {lobe} is expanded by a {size} tumor, {mm} mm across.",
    ),
    "vasogenic_edema": (
        "{size} vasogenic edema in the {lobe}.",
        "there is {size} vasogenic edema in the {lobe}.",
        "the {lobe} shows {size} vasogenic edema.",
        "{size} edema involves the {lobe}.",
        "{size} white matter edema is seen in the {lobe}.",
        "finger-like {size} edema tracks through the {lobe}.",
    ),
    "white_matter_lesions": (
        "{size} white matter lesions are present.",
        "there are {size} white matter lesions in both hemispheres.",
        "{size} periventricular white matter lesions.",
        "{size} white matter hyperintensities are seen.",
        "{size} burden of white matter lesions.",
        "bright spots in keeping with {size} white matter lesions.",
        "{size} chronic small vessel changes.",
    ),
    "ventriculomegaly": (
        "the ventricles are {adv} enlarged.",
        "there is {size} ventriculomegaly.",
        "{size} enlargement of the ventricles.",
        "{size} dilatation of the lateral ventricles.",
        "the ventricular system is {adv} dilated.",
        "the third and lateral ventricles are {adv} dilated.",
    ),
}

_CONCLUSIONS: Mapping[str, tuple[str, ...]] = {
    "pleural_effusion": ("{size} {side} pleural effusion", "{side} pleural effusion"),
    "pleural_effusion/both": ("{size} bilateral pleural effusions", "bilateral pleural effusions"),
    "pneumothorax": ("{size} {side} pneumothorax", "{side} pneumothorax"),
    "cardiomegaly": ("{size} cardiomegaly", "cardiomegaly", "enlarged heart"),
    "pulmonary_edema": ("{size} pulmonary edema", "pulmonary edema"),
    "consolidation": ("{lobe} consolidation", "{lobe} pneumonia"),
    "atelectasis": ("{lobe} atelectasis",),
    "nodule": ("{size} {lobe} nodule", "{lobe} nodule", "{mm} mm {lobe} nodule"),
    "mass": ("{size} {lobe} mass", "{lobe} mass", "{mm} mm {lobe} mass"),
    "tumor": ("{size} {lobe} tumor", "{lobe} tumor", "{mm} mm {lobe} mass"),
    "vasogenic_edema": ("{lobe} edema", "{size} {lobe} edema"),
    "white_matter_lesions": ("{size} white matter lesions", "white matter lesions"),
    "ventriculomegaly": ("{size} ventriculomegaly", "enlarged ventricles"),
}

_LUNG = frozenset({"consolidation", "atelectasis", "pulmonary_edema", "nodule", "mass"})
_FOCAL = frozenset({"tumor", "vasogenic_edema"})

# Normal statements: (findings that forbid them, wordings). One wording of an entry is used at most
# once a report.
_NORMAL: Mapping[str, tuple[tuple[frozenset[str], tuple[str, ...]], ...]] = {
    "chest": (
        (
            frozenset({"cardiomegaly"}),
            (
                "heart size is normal.",
                "the heart is normal in size.",
                "the cardiac silhouette is not enlarged.",
                "the cardiac silhouette is within normal limits.",
                "normal heart size.",
            ),
        ),
        (
            _LUNG,
            (
                "the lungs are clear.",
                "both lungs are clear.",
                "clear lungs.",
                "the lungs are clear and well aerated.",
            ),
        ),
        (
            frozenset(),
            (
                "the mediastinum is unremarkable.",
                "normal mediastinal contours.",
                "the hila and mediastinum are normal.",
            ),
        ),
        (
            frozenset(),
            (
                "the bones are intact.",
                "no acute bone abnormality.",
                "no rib fracture.",
                "the ribs and spine are unremarkable.",
            ),
        ),
        (
            frozenset(),
            (
                "the diaphragm is normal.",
                "soft tissues are unremarkable.",
                "the upper abdomen is normal.",
                "trachea central.",
            ),
        ),
    ),
    "brain": (
        (
            frozenset({"ventriculomegaly"}),
            (
                "the ventricles are normal in size.",
                "ventricular size is normal.",
                "the ventricles are not enlarged.",
                "normal ventricles and sulci.",
            ),
        ),
        (
            _FOCAL,
            (
                "grey-white differentiation is preserved.",
                "normal grey-white differentiation.",
                "grey-white differentiation is normal.",
            ),
        ),
        (
            _FOCAL,
            (
                "no midline shift.",
                "the midline is centered.",
                "there is no midline shift or mass effect.",
            ),
        ),
        (
            frozenset({"white_matter_lesions"}),
            (
                "white matter signal is normal.",
                "the white matter is normal.",
                "normal white matter.",
            ),
        ),
        (
            frozenset(),
            (
                "no acute hemorrhage.",
                "no hemorrhage or infarct.",
                "there is no acute infarct.",
                "negative for hemorrhage.",
            ),
        ),
        (
            frozenset(),
            (
                "the skull is intact.",
                "no skull fracture.",
                "cerebellum and brainstem are unremarkable.",
                "clear sinuses.",
            ),
        ),
    ),
}

# Groups of findings that are denied together, with the term used.
_DENIED: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "chest": (
        {"pleural_effusion": "pleural effusion", "pneumothorax": "pneumothorax"},
        {
            "consolidation": "focal consolidation",
            "pulmonary_edema": "pulmonary edema",
            "atelectasis": "atelectasis",
        },
        {"nodule": "nodule", "mass": "mass"},
    ),
    "brain": (
        {"tumor": "mass", "vasogenic_edema": "edema"},
        {"white_matter_lesions": "white matter lesions", "ventriculomegaly": "hydrocephalus"},
    ),
}
_DENIALS = (
    "no {0}.",
    "there is no {0}.",
    "no evidence of {0}.",
    "negative for {0}.",
    "no sign of {0}.",
    "{0} is absent.",
)

_NOTHING: Mapping[str, tuple[str, ...]] = {
    "chest": (
        "no acute cardiopulmonary abnormality.",
        "normal chest.",
        "no acute disease of the chest.",
        "unremarkable study of the chest.",
        "no active disease.",
    ),
    "brain": (
        "no acute intracranial abnormality.",
        "normal brain.",
        "no acute disease of the brain.",
        "unremarkable study of the brain.",
        "no intracranial abnormality.",
    ),
}
_REST = ("no other acute abnormality.", "otherwise unremarkable.", "no other abnormality.")


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _sentence(text: str) -> str:
    """Sentence case, one space, and "an" before a vowel sound."""
    text = re.sub(r"\ba (?=[aeiou]|8|11\b|18\b)", "an ", re.sub(r"\s+", " ", text).strip())
    return re.sub(r"(^|\. )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def _fill(
    options: Mapping[str, tuple[str, ...]], finding: Finding, rng: np.random.Generator
) -> str:
    key = finding.name + ("/both" if finding.side == "both" else "")
    size = _pick(_ADJECTIVES[finding.name][finding.size], rng) if finding.size else ""
    adverb = {"": "", "slight": "slightly", "moderate": "moderately", "marked": "markedly"}.get(
        size, size + "ly"
    )
    return _pick(options[key], rng).format(
        size=size,
        adv=adverb,
        mm=finding.size_mm,
        side=finding.side,
        lobe=f"{finding.side} {finding.location} lobe",
    )


def _demographics(age: int | None, sex: str, rng: np.random.Generator) -> str:
    adjective = sex or ""
    noun = (
        {"female": "woman", "male": "man"}.get(sex, "patient")
        if age is None or age >= 18
        else (sex or "patient")
    )
    if age is None:
        return _pick((f"{adjective} patient.", f"a {noun}."), rng) if sex else ""
    return _pick(
        (
            f"a {age}-year-old {noun}.",
            f"{age}-year-old {noun}.",
            f"a {age}-year-old {adjective} patient.",
            f"{noun}, {age} years old.",
            f"{noun} aged {age}.",
        ),
        rng,
    )


def _denial(group: Mapping[str, str], true: set[str], rng: np.random.Generator) -> str:
    """A sentence that denies up to three findings of a group that are not true; empty if all
    are."""
    terms = [term for name, term in group.items() if name not in true]
    if not terms:
        return ""
    terms = [terms[i] for i in rng.permutation(len(terms))][: int(rng.integers(1, len(terms) + 1))]
    wording = _pick(
        _DENIALS if len(terms) == 1 and not terms[0].endswith("s") else _DENIALS[:-1], rng
    )
    if len(terms) == 3:
        return wording.format(f"{terms[0]}, {terms[1]} or {terms[2]}")
    return wording.format(" or ".join(terms))


def _impression(findings: Sequence[Finding], region: str, rng: np.random.Generator) -> str:
    if not findings:
        return _pick(_NOTHING[region], rng)
    parts = [_fill(_CONCLUSIONS, f, rng) for f in findings]
    if len(parts) > 1 and rng.random() < 0.5:
        text = ", ".join(parts[:-1]) + f" and {parts[-1]}."
    else:
        text = " ".join(f"{p}." for p in parts)
    return text + (" " + _pick(_REST, rng) if len(findings) < 3 and rng.random() < 0.3 else "")


def write_report(
    findings: tuple[Finding, ...], region: str, age: int | None, sex: str, rng: np.random.Generator
) -> str:
    """Write a report that states exactly these findings.

    Args:
        findings: what is true, each valid for `check_finding`, in any order; the same kind may
            occur more than once at different places.
        region: ``"chest"`` or ``"brain"``; all findings must belong to it.
        age: years 0..120, or ``None`` to leave it out.
        sex: ``"female"``, ``"male"`` or ``""`` to leave it out.
        rng: source of the wording; the same state writes the same report.

    Returns:
        ASCII text of one line: who, ``Findings: ...``, ``Impression: ...``; for up to three
        findings some 15 to 70 words, about 39 on average.

    Raises:
        ValueError: an invalid finding, one of another region, two of one kind at the same place, or
            an age or sex out of range.
    """
    if region not in _NORMAL:
        raise ValueError(f"region {region!r} has no grammar; known: {', '.join(_NORMAL)}")
    if age is not None and not 0 <= age <= 120:
        raise ValueError(f"age {age} is outside 0..120 years")
    if sex not in ("female", "male", ""):
        raise ValueError(f"sex {sex!r} is not 'female', 'male' or ''")
    if len(findings) > MAX_FINDINGS:
        raise ValueError(f"{len(findings)} findings; a report states at most {MAX_FINDINGS}")
    places: set[tuple[str, str, str]] = set()
    for f in findings:
        check_finding(f)
        if FINDINGS[f.name].region != region:
            raise ValueError(
                f"{f.name} is a {FINDINGS[f.name].region} finding; the report is of the {region}"
            )
        sides = ("left", "right") if f.side == "both" else (f.side,)
        for side in sides:
            if (f.name, side, f.location) in places:
                raise ValueError(
                    f"two findings {f.name} at {side} {f.location}: a report could not tell them"
                    " apart"
                )
            places.add((f.name, side, f.location))

    true = {f.name for f in findings}
    order = rng.permutation(len(findings))
    findings = tuple(findings[i] for i in order)
    positive = [_fill(_STATEMENTS, f, rng) for f in findings]
    impression = _impression(findings, region, rng)
    optional = [_pick(words, rng) for forbidden, words in _NORMAL[region] if not forbidden & true]
    optional += [s for s in (_denial(g, true, rng) for g in _DENIED[region]) if s]
    optional = [optional[i] for i in rng.permutation(len(optional))]
    spent = sum(len(s.split()) for s in positive) + len(impression.split())
    wanted = int(rng.integers(22, 46))
    normal: list[str] = []
    for sentence in optional:
        if normal and spent + len(sentence.split()) > wanted:
            break
        normal.append(sentence)
        spent += len(sentence.split())
    body = positive + normal
    if rng.random() < 0.5:
        body = [body[i] for i in rng.permutation(len(body))]
    elif rng.random() < 0.4:
        body = normal[:1] + positive + normal[1:]
    lead = _sentence(_demographics(age, sex, rng))
    text = f"{lead} Findings: {' '.join(map(_sentence, body))} Impression: {_sentence(impression)}"
    return text.strip()
