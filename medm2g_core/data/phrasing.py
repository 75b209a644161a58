"""How people write what they ask for: a grammar for *input* text, wider than that of reports.

`medm2g_core.data.reports` writes what the model shall learn to *write*: one tidy register. What a
model is *given* comes in any register: telegraphic or chatty, British or American, in capitals,
with abbreviations, findings scattered over sentences that say nothing, and denied in every form
that a language has. `phrase` draws such a text for a set of findings; a text encoder that was
trained on it meets negation as a rule, not as a handful of sentences.

Two things are kept apart on purpose:

* `hard_pair` gives the *same words* once affirmed and once denied. Side by side in a batch they are
  the contrast that a bag of words cannot solve.
* `HELD_OUT` are phrasings that no rule below can make. They are for tests only: a model that gets
  them right has learned more than the grammar. A test holds that `phrase` never writes one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from medm2g_core.data.findings import FINDINGS, check_finding, findings_of, size_class
from medm2g_core.streams import Finding

__all__ = ["HELD_OUT", "HeldOut", "hard_pair", "phrase"]

SHARE_OF_OMISSION = 0.15
"""How often a size or a diameter is left unsaid: people rarely say everything."""
SHARE_OF_CAPITALS = 0.08
SHARE_OF_LOWER_CASE = 0.25
SHARE_OF_BRITISH = 0.4
SHARE_OF_ABBREVIATED = 0.25
SHARE_OF_HEADINGS = 0.3
SHARE_OF_AGE = 0.5
MOST_DENIALS = 3
MOST_ASIDES = 2

# Nouns of a finding: each may stand in every frame below.
_NOUNS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "pleural_effusion": ("pleural effusion", "effusion", "pleural fluid collection"),
        "pneumothorax": ("pneumothorax",),
        "cardiomegaly": ("cardiomegaly", "cardiac enlargement", "enlargement of the heart"),
        "pulmonary_edema": ("pulmonary edema", "interstitial edema", "edema of the lungs"),
        "consolidation": ("consolidation", "airspace opacity", "pneumonia", "airspace disease"),
        "atelectasis": ("atelectasis", "volume loss"),
        "nodule": ("nodule", "round nodule", "pulmonary nodule"),
        "mass": ("mass", "lung mass", "pulmonary mass"),
        "tumor": ("tumor", "mass", "neoplasm", "space-occupying lesion"),
        "vasogenic_edema": ("edema", "vasogenic edema", "white matter edema"),
        "white_matter_lesions": ("white matter lesions", "white matter hyperintensities"),
        "ventriculomegaly": ("ventriculomegaly", "dilatation of the ventricles"),
    }
)
_PLURAL = frozenset({"white_matter_lesions"})
_COUNTABLE = frozenset({"pleural_effusion", "pneumothorax", "nodule", "mass", "tumor"})

_SIZE_WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "extent": {
            "small": ("small", "minimal", "tiny", "trace"),
            "moderate": ("moderate", "medium-sized", "moderate-sized"),
            "large": ("large", "massive", "big"),
        },
        "degree": {
            "small": ("mild", "slight", "minimal"),
            "moderate": ("moderate",),
            "large": ("severe", "marked", "gross"),
        },
        "bulk": {
            "small": ("small", "tiny"),
            "moderate": ("moderate", "medium-sized"),
            "large": ("large", "big"),
        },
        "spread": {
            "small": ("mild", "minimal", "slight"),
            "moderate": ("moderate",),
            "large": ("extensive", "marked", "severe"),
        },
    }
)
_SIZE_KIND: Mapping[str, str] = MappingProxyType(
    {
        "pleural_effusion": "extent",
        "pneumothorax": "extent",
        "cardiomegaly": "degree",
        "pulmonary_edema": "degree",
        "nodule": "bulk",
        "mass": "bulk",
        "tumor": "bulk",
        "vasogenic_edema": "spread",
        "white_matter_lesions": "spread",
        "ventriculomegaly": "degree",
    }
)

# {what}: article, size, side and noun as a phrase. {where}: "in the left upper lobe", "on the
# left".
_AFFIRMED = (
    "{what}{where}.",
    "there is {what}{where}.",
    "we see {what}{where}.",
    "{what}{where} is seen.",
    "{what}{where} is noted.",
    "{what}{where} is demonstrated.",
    "{what}{where} is again seen.",
    "{what} is present{where}.",
    "{what} can be seen{where}.",
    "the study shows {what}{where}.",
    "imaging demonstrates {what}{where}.",
    "the patient has {what}{where}.",
    "findings are those of {what}{where}.",
    "known {what}{where}, unchanged.",
    "new {what}{where}.",
)
_AFFIRMED_PLURAL = (
    "{what}{where}.",
    "there are {what}{where}.",
    "we see {what}{where}.",
    "{what}{where} are seen.",
    "{what}{where} are noted.",
    "the study shows {what}{where}.",
    "the patient has {what}{where}.",
    "new {what}{where}.",
)
_DENIED = (
    "no {what}{where}.",
    "there is no {what}{where}.",
    "there is no evidence of {what}{where}.",
    "no evidence of {what}{where}.",
    "no sign of {what}{where}.",
    "no {what} is seen{where}.",
    "no {what} is identified{where}.",
    "no {what} identified{where}.",
    "without {what}{where}.",
    "negative for {what}{where}.",
    "absence of {what}{where}.",
    "free of {what}{where}.",
    "we do not see {what}{where}.",
    "{what} is not seen{where}.",
    "{what} is not identified{where}.",
    "{what}{where} has been ruled out.",
    "{what}{where} has resolved.",
    "{what}{where} is no longer seen.",
    "the study is negative for {what}{where}.",
    "no definite {what}{where}.",
    "no convincing {what}{where}.",
    "lack of {what}{where}.",
)
_DENIED_TOGETHER = (
    "no {0} or {1}.",
    "neither {0} nor {1}.",
    "there is no {0} or {1}.",
    "no evidence of {0} or {1}.",
    "negative for {0} or {1}.",
    "free of {0} and {1}.",
    "without {0} or {1}.",
)

# Sentences that say nothing about a finding that pictures here can show.
_ASIDES = (
    "comparison: none available.",
    "no prior study for comparison.",
    "technically adequate study.",
    "image quality is good.",
    "clinical details: shortness of breath.",
    "clinical information: follow-up.",
    "history of smoking.",
    "referred by the general practitioner.",
    "the patient was cooperative.",
    "please correlate with laboratory results.",
    "follow-up in three months is advised.",
    "results were discussed with the referring team.",
    "dictated but not read.",
    "routine examination before surgery.",
    "the remainder of the study is unremarkable.",
)
_LEADS = (
    "{who}.",
    "patient: {who}.",
    "images of {who}.",
    "study of {who}.",
    "{who}, for review.",
)
_REQUESTS = (
    "draw a {picture} with the following: ",
    "please show a {picture}. ",
    "a {picture}. ",
    "{picture}: ",
    "",
    "",
    "",
)
_PICTURES = {
    "chest": ("chest", "chest study", "thorax", "chest image"),
    "brain": ("brain", "head", "brain study", "scan of the head"),
}
_ALL_CLEAR = {
    "chest": (
        "normal chest.",
        "nothing abnormal in the chest.",
        "healthy lungs and heart.",
        "normal study.",
        "no abnormality.",
        "the lungs are clear and the heart is of normal size.",
        "unremarkable.",
    ),
    "brain": (
        "normal brain.",
        "nothing abnormal in the head.",
        "normal study.",
        "no abnormality.",
        "the ventricles are of normal size and the white matter is normal.",
        "unremarkable.",
    ),
}

_BRITISH = (
    (r"\bedema", "oedema"),
    (r"\btumor", "tumour"),
    (r"\bgray\b", "grey"),
    (r"\bcenter", "centre"),
)
_ABBREVIATED = (
    (r"\bright upper lobe\b", "RUL"),
    (r"\bright middle lobe\b", "RML"),
    (r"\bright lower lobe\b", "RLL"),
    (r"\bleft upper lobe\b", "LUL"),
    (r"\bleft lower lobe\b", "LLL"),
    (r"\bwithout\b", "w/o"),
)


@dataclass(frozen=True)
class HeldOut:
    """A phrasing that `phrase` cannot make.

    Attributes:
        finding: what it speaks of.
        affirmed, denied: texts of the same kind that say that it is there, and that it is not.
    """

    finding: Finding
    affirmed: str
    denied: str


_EFFUSION = Finding("pleural_effusion", "left", "", "large")
_HEART = Finding("cardiomegaly", "", "", "large")
_COLLAPSE = Finding("pneumothorax", "right", "", "large")
HELD_OUT: tuple[HeldOut, ...] = (
    HeldOut(
        _EFFUSION,
        "A great deal of fluid has gathered in the left pleural space: a large effusion.",
        "No fluid whatsoever has gathered in the left pleural space: not a large effusion.",
    ),
    HeldOut(
        _EFFUSION,
        "Should one worry about a left effusion? Yes, it is large.",
        "Should one worry about a large left effusion? There isn't any.",
    ),
    HeldOut(
        _EFFUSION,
        "LARGE EFFUSION, LEFT.",
        "LARGE EFFUSION, LEFT: ABSENT.",
    ),
    HeldOut(
        _EFFUSION,
        "The large left pleural effusion that was feared did turn up.",
        "The large left pleural effusion that was feared did not turn up.",
    ),
    HeldOut(
        _HEART,
        "This heart is far too big: severe cardiomegaly.",
        "This heart is anything but too big: cardiomegaly is excluded.",
    ),
    HeldOut(
        _HEART,
        "Severe cardiomegaly: beyond doubt.",
        "Severe cardiomegaly: none.",
    ),
    HeldOut(
        _COLLAPSE,
        "Air surrounds the right lung, the picture of a large pneumothorax.",
        "No air surrounds the right lung, hardly the picture of a large pneumothorax.",
    ),
    HeldOut(
        _COLLAPSE,
        "Large pneumothorax on the right? Confirmed.",
        "Large pneumothorax on the right? Ruled out.",
    ),
)
"""For tests of a trained model; never trained on."""


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _chance(share: float, rng: np.random.Generator) -> bool:
    return bool(rng.random() < share)


def _what(finding: Finding, rng: np.random.Generator, *, article: bool, said: bool) -> str:
    """Article, size or diameter, side and noun of a finding, in one of several orders."""
    noun = _pick(_NOUNS[finding.name], rng)
    size = ""
    if finding.size and said:
        size = _pick(_SIZE_WORDS[_SIZE_KIND[finding.name]][finding.size], rng)
    if finding.size_mm is not None and said and _chance(0.6, rng):
        size = f"{finding.size_mm} mm"
    side = ""
    if finding.side and not finding.location:
        side = "bilateral" if finding.side == "both" else finding.side
        if side != "bilateral" and _chance(0.3, rng):
            side = f"{side}-sided"
    if finding.side == "both":
        noun = {"pleural effusion": "pleural effusions", "effusion": "effusions"}.get(noun, noun)
    words = [w for w in (size, side, noun) if w]
    if len(words) == 3 and size and side and _chance(0.3, rng):
        words = [side, size, noun]
    text = " ".join(words)
    if article and finding.name in _COUNTABLE and finding.side != "both":
        text = ("an " if re.match(r"[aeiou]|8|11\b|18\b", text) else "a ") + text
    return text


def _where(finding: Finding, rng: np.random.Generator) -> str:
    """The place of a finding that lies in a lobe; the side of all others is in `_what`."""
    if not finding.location:
        return ""
    lobe = f"{finding.side} {finding.location} lobe"
    return _pick((f" in the {lobe}", f" within the {lobe}", f" of the {lobe}"), rng)


def _affirmation(finding: Finding, rng: np.random.Generator, said: bool = True) -> str:
    frames = _AFFIRMED_PLURAL if finding.name in _PLURAL or finding.side == "both" else _AFFIRMED
    frame = _pick(frames, rng)
    # "new", "known" and a bare noun phrase stand without an article
    bare = frame.startswith(("known", "new")) or (
        frame.startswith("{what}{where}.") and _chance(0.6, rng)
    )
    return frame.format(
        what=_what(finding, rng, article=not bare, said=said), where=_where(finding, rng)
    )


def _denial(finding: Finding, rng: np.random.Generator, said: bool) -> str:
    return _denied(
        finding, _what(finding, rng, article=False, said=said), _where(finding, rng), rng
    )


def _denied(finding: Finding, what: str, where: str, rng: np.random.Generator) -> str:
    text = _pick(_DENIED, rng).format(what=what, where=where)
    if finding.name in _PLURAL or finding.side == "both":
        text = re.sub(r"\bis (?=not|seen|no longer|identified)", "are ", text)
        text = re.sub(r"\bhas (?=been|resolved)", "have ", text)
    return text


def _any_of(name: str, rng: np.random.Generator) -> Finding:
    """A valid finding of that kind, drawn evenly from what the kind allows."""
    kind = FINDINGS[name]
    side, size = _pick(kind.sides, rng), _pick(kind.sizes, rng)
    location = _pick(kind.locations, rng)
    if location == "middle":
        side = "right"
    mm = None
    if kind.millimetres is not None:
        mm = int(rng.integers(kind.millimetres[0], kind.millimetres[1] + 1))
        size = size_class(name, mm)
    return check_finding(Finding(name, side, location, size, mm))


def _styled(text: str, rng: np.random.Generator) -> str:
    """Spelling, abbreviations and letter case of one writer."""
    if _chance(SHARE_OF_BRITISH, rng):
        for pattern, into in _BRITISH:
            text = re.sub(pattern, into, text)
    if _chance(SHARE_OF_ABBREVIATED, rng):
        for pattern, into in _ABBREVIATED:
            text = re.sub(pattern, into, text)
    case = rng.random()
    if case < SHARE_OF_CAPITALS:
        return text.upper()
    if case < SHARE_OF_CAPITALS + SHARE_OF_LOWER_CASE:
        return text
    return re.sub(r"(^|[.:?] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def _person(age: int | None, sex: str, rng: np.random.Generator) -> str:
    if age is None or not _chance(SHARE_OF_AGE, rng):
        return ""
    noun = {"female": "woman", "male": "man"}.get(sex, "patient")
    short = {"female": "F", "male": "M"}.get(sex, "")
    options = [f"{age}-year-old {noun}", f"{noun}, {age} years old", f"{noun} aged {age}"]
    if short:
        options.append(f"{age} yo {sex}")
    return _pick(options, rng)


def phrase(
    findings: Sequence[Finding],
    region: str,
    age: int | None,
    sex: str,
    rng: np.random.Generator,
) -> str:
    """A text that asks for these findings and no others, in one of very many registers.

    Args:
        findings: what shall be true, each valid for `check_finding`, of that region.
        region: ``"chest"`` or ``"brain"``.
        age: years, or ``None``.
        sex: ``"female"``, ``"male"`` or ``""``.
        rng: source of the wording; the same state writes the same text.

    Returns:
        ASCII text of one line. It says every finding with side and lobe; sizes are left out now and
        then, age and sex often.

    Raises:
        ValueError: an invalid finding or one of another region.
    """
    if region not in _ALL_CLEAR:
        raise ValueError(f"region {region!r} has no grammar; known: {', '.join(_ALL_CLEAR)}")
    for f in findings:
        if FINDINGS[check_finding(f).name].region != region:
            raise ValueError(f"{f.name} is no finding of the {region}")
    true = {f.name for f in findings}
    said = not _chance(SHARE_OF_OMISSION, rng)
    sentences = [_affirmation(f, rng, said) for f in findings]
    absent = [n for n in findings_of(region) if n not in true and not _confused(n, true)]
    absent = [absent[i] for i in rng.permutation(len(absent))]
    for name in absent[: int(rng.integers(MOST_DENIALS + 1))]:
        sentences.append(_denial(_any_of(name, rng), rng, said=_chance(0.4, rng)))
    rest = absent[MOST_DENIALS:]
    if len(rest) >= 2 and _chance(0.3, rng):
        two = [_pick(_NOUNS[n], rng) for n in rest[:2]]
        sentences.append(_pick(_DENIED_TOGETHER, rng).format(*two))
    if not findings and (not sentences or _chance(0.6, rng)):
        sentences.append(_pick(_ALL_CLEAR[region], rng))
    sentences += [_pick(_ASIDES, rng) for _ in range(int(rng.integers(MOST_ASIDES + 1)))]
    sentences = [sentences[i] for i in rng.permutation(len(sentences))]
    lead = ""
    if who := _person(age, sex, rng):
        lead = _pick(_LEADS, rng).format(who=who) + " "
    lead += _pick(_REQUESTS, rng).format(picture=_pick(_PICTURES[region], rng))
    body = " ".join(sentences)
    if _chance(SHARE_OF_HEADINGS, rng):
        body = f"findings: {body}"
    return _styled(re.sub(r"\s+", " ", lead + body).strip(), rng)


def _confused(name: str, true: set[str]) -> bool:
    """Whether to deny a finding would contradict one that is there, in some reader's eyes.

    "No edema" beside a brain's tumour with oedema is safe, "no mass" beside a nodule is not: people
    call one the other. Consolidation and atelectasis share "opacity".
    """
    alike = (
        {"nodule", "mass"},
        {"consolidation", "atelectasis"},
        {"consolidation", "pulmonary_edema"},
    )
    return any(name in group and group & true for group in alike)


def hard_pair(finding: Finding, rng: np.random.Generator) -> tuple[str, str]:
    """The same words, once affirmed and once denied: ``("there is a large left effusion.", "there
    is no large left effusion.")``, in one style.

    Raises:
        ValueError: an invalid finding.
    """
    check_finding(finding)
    what, where = _what(finding, rng, article=False, said=True), _where(finding, rng)
    plural = finding.name in _PLURAL or finding.side == "both"
    yes = _pick(_AFFIRMED_PLURAL if plural else _AFFIRMED, rng).format(what=what, where=where)
    no = _denied(finding, what, where, rng)
    state = rng.bit_generator.state
    affirmed = _styled(yes, rng)
    rng.bit_generator.state = state  # the same spelling and letter case for both
    return affirmed, _styled(no, rng)
