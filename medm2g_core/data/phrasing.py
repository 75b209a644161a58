"""How people write what they ask for: a grammar for *input* text, wider than that of reports.

`medm2g_core.data.reports` writes what the model shall learn to *write*: one tidy register. What a
model is *given* comes in any register: telegraphic or chatty, British or American, in capitals,
with abbreviations, findings scattered over sentences that say nothing, and denied in every form
that a language has. `phrase` draws such a text for a set of findings; a text encoder that was
trained on it meets negation as a rule, not as a handful of sentences.

`phrase_pair` gives the same text twice, the second time with one statement turned into its opposite
in nearly the same words. Side by side in a batch they are the contrast that a bag of words cannot
solve. `medm2g_core.data.held_out` has phrasings that no rule below can make, for tests.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medm2g_core.data.findings import FINDINGS, check_finding, findings_of, size_class
from medm2g_core.data.phrasing_words import (
    ABBREVIATED,
    AFFIRMED,
    AFFIRMED_PLURAL,
    ALL_CLEAR,
    ASIDES,
    BRITISH,
    COUNTABLE,
    DENIED,
    DENIED_TOGETHER,
    LEADS,
    NOUNS,
    PICTURES,
    PLURAL,
    REQUESTS,
    SIZE_KIND,
    SIZE_WORDS,
)
from medm2g_core.data.reports import MAX_FINDINGS
from medm2g_core.streams import Finding

__all__ = ["contradicting", "phrase", "phrase_pair"]

SHARE_OF_OMISSION = 0.15
"""How often a size or a diameter is left unsaid: people rarely say everything."""
SHARE_OF_CAPITALS = 0.08
SHARE_OF_LOWER_CASE = 0.25
SHARE_OF_BRITISH = 0.4
SHARE_OF_ABBREVIATED = 0.25
SHARE_OF_HEADINGS = 0.3
SHARE_OF_AGE = 0.5
SHARE_OF_SIDE_BEHIND = 0.25
SHARE_OF_OTHER_PLACE = 0.4
"""How often a contradiction keeps the finding and changes its side or size, where it can."""
MOST_DENIALS = 3
MOST_ASIDES = 2
_OTHER_SIDE = {"left": "right", "right": "left"}
_OTHER_SIZE = {"small": "large", "large": "small"}


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _chance(share: float, rng: np.random.Generator) -> bool:
    return bool(rng.random() < share)


@dataclass(frozen=True)
class _Statement:
    """A finding as it is spoken of once.

    Attributes:
        finding: what is said to be there or not.
        true: which of the two.
        said: whether the size may be told.
        seed: of the words; the same seed gives the other finding, or the denial, the same ones.
    """

    finding: Finding
    true: bool
    said: bool
    seed: int

    def text(self) -> str:
        """One sentence."""
        f = self.finding
        # Streams of their own: whatever the frame, the noun, the size and their order stay.
        words, frames = (np.random.default_rng([self.seed, k]) for k in (0, 1))
        what, where = _words(f, words, self.said)
        if not self.true:
            return _denied(f, what, where, frames)
        plural = f.name in PLURAL or f.side == "both"
        frame = _pick(AFFIRMED_PLURAL if plural else AFFIRMED, frames)
        # "new", "known" and a bare noun phrase stand without an article
        bare = frame.startswith(("known", "new")) or (
            frame.startswith("{what}{where}.") and _chance(0.6, frames)
        )
        if not bare and not plural and f.name in COUNTABLE:
            what = ("an " if re.match(r"[aeiou]|8|11\b|18\b", what) else "a ") + what
        return frame.format(what=what, where=where)


def _words(finding: Finding, rng: np.random.Generator, said: bool) -> tuple[str, str]:
    """Size or diameter, side and noun of a finding in one of several orders, and its place as a
    phrase that follows: ``("small nodule", " in the left upper lobe")``."""
    noun = _pick(NOUNS[finding.name], rng)
    size = ""
    if finding.size and said:
        size = _pick(SIZE_WORDS[SIZE_KIND[finding.name]][finding.size], rng)
    if finding.size_mm is not None and said and _chance(0.6, rng):
        size = f"{finding.size_mm} mm"
    side, where = "", ""
    if finding.location:
        lobe = f"{finding.side} {finding.location} lobe"
        where = _pick((f" in the {lobe}", f" within the {lobe}", f" of the {lobe}"), rng)
    elif finding.side == "both":
        side = "bilateral"
        noun = {"pleural effusion": "pleural effusions", "effusion": "effusions"}.get(noun, noun)
    elif finding.side:
        side = finding.side
        if _chance(SHARE_OF_SIDE_BEHIND, rng):
            side, where = "", f" on the {side}"
        elif _chance(0.3, rng):
            side = f"{side}-sided"
    words = [w for w in (size, side, noun) if w]
    if len(words) == 3 and _chance(0.3, rng):
        words = [side, size, noun]
    return " ".join(words), where


def _denied(finding: Finding, what: str, where: str, rng: np.random.Generator) -> str:
    text = _pick(DENIED, rng).format(what=what, where=where)
    if finding.name in PLURAL or finding.side == "both":
        text = re.sub(r"\bis (?=not|seen|no longer|identified|absent)", "are ", text)
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
        for pattern, into in BRITISH:
            text = re.sub(pattern, into, text)
    if _chance(SHARE_OF_ABBREVIATED, rng):
        for pattern, into in ABBREVIATED:
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
    _check(findings, region)
    return _drawn(findings, region, age, sex, rng)[0]


def phrase_pair(
    findings: Sequence[Finding],
    region: str,
    age: int | None,
    sex: str,
    rng: np.random.Generator,
) -> tuple[str, str]:
    """What `phrase` writes for the same state of ``rng``, and a text that contradicts it.

    The second differs in one statement: what is there is denied, what is denied is there, or it is
    on the other side or of another size. All other words, their order, spelling and case are the
    same; only a sentence that calls everything normal goes where it would contradict itself.

    Raises:
        ValueError: as of `phrase`.
    """
    _check(findings, region)
    return _drawn(findings, region, age, sex, rng)


def _check(findings: Sequence[Finding], region: str) -> None:
    if region not in ALL_CLEAR:
        raise ValueError(f"region {region!r} has no grammar; known: {', '.join(ALL_CLEAR)}")
    for f in findings:
        if FINDINGS[check_finding(f).name].region != region:
            raise ValueError(f"{f.name} is no finding of the {region}")


def _drawn(
    findings: Sequence[Finding], region: str, age: int | None, sex: str, rng: np.random.Generator
) -> tuple[str, str]:
    """A text of these findings, and its contradiction."""
    true = {f.name for f in findings}
    said = not _chance(SHARE_OF_OMISSION, rng)
    statements = [_Statement(f, True, said, int(rng.integers(2**31))) for f in findings]
    absent = [n for n in findings_of(region) if n not in true and not _confused(n, true)]
    absent = [absent[i] for i in rng.permutation(len(absent))]
    for name in absent[: int(rng.integers(MOST_DENIALS + 1))]:
        denied = _any_of(name, rng)
        statements.append(_Statement(denied, False, _chance(0.4, rng), int(rng.integers(2**31))))
    filling = []
    rest = absent[MOST_DENIALS:]
    if len(rest) >= 2 and _chance(0.3, rng):
        two = [_pick(NOUNS[n], rng) for n in rest[:2]]
        filling.append(_pick(DENIED_TOGETHER, rng).format(*two))
    clear = ""
    if not findings and (not statements or _chance(0.6, rng)):
        clear = _pick(ALL_CLEAR[region], rng)
    filling += [_pick(ASIDES, rng) for _ in range(int(rng.integers(MOST_ASIDES + 1)))]
    lead = ""
    if who := _person(age, sex, rng):
        lead = _pick(LEADS, rng).format(who=who) + " "
    lead += _pick(REQUESTS, rng).format(picture=_pick(PICTURES[region], rng))
    if _chance(SHARE_OF_HEADINGS, rng):
        lead += "findings: "
    style, order, turn = (int(x) for x in rng.integers(2**31, size=3))

    def whole(made: Sequence[_Statement], clear: str) -> str:
        sentences = [*(s.text() for s in made), *filling, *([clear] if clear else [])]
        places = np.random.default_rng(order).random(len(made) + len(filling) + 1)
        inside = [sentences[i] for i in np.argsort(places[: len(sentences)])]
        text = re.sub(r"\s+", " ", lead + " ".join(inside)).strip()
        return _styled(text, np.random.default_rng(style))

    right = whole(statements, clear)
    spin = np.random.default_rng(turn)
    if not statements:  # "normal chest." says no more than a finding contradicts
        wrong = whole([_Statement(_any_of(absent[0], spin), True, True, order)], "")
        return right, wrong
    for i in spin.permutation(len(statements)):
        for turned in _turned(statements[i], findings, spin):
            wrong = whole([*statements[:i], turned, *statements[i + 1 :]], "")
            if wrong != right:
                return right, wrong
    raise AssertionError("a statement can always be denied or affirmed")


def _turned(
    statement: _Statement, findings: Sequence[Finding], rng: np.random.Generator
) -> list[_Statement]:
    """The statement as it is not true of these findings, the likeliest first; every one of its
    kind is on the list, some may read like the statement itself."""
    opposite = replace(statement, true=not statement.true)
    if not statement.true:
        return [opposite]
    others = [replace(statement, finding=f) for f in _neighbours(statement.finding, findings)]
    others = [others[i] for i in rng.permutation(len(others))]
    return [*others, opposite] if _chance(SHARE_OF_OTHER_PLACE, rng) else [opposite]


def _neighbours(finding: Finding, findings: Sequence[Finding]) -> list[Finding]:
    """The finding on the other side, and the smallest for the largest and the reverse; none where
    the study has another of its kind, of which it might be true."""
    if sum(f.name == finding.name for f in findings) > 1:
        return []
    out = []
    if finding.side in _OTHER_SIDE and finding.location != "middle":
        out.append(replace(finding, side=_OTHER_SIDE[finding.side]))
    kind = FINDINGS[finding.name]
    if finding.size in _OTHER_SIZE and _OTHER_SIZE[finding.size] in kind.sizes:
        mm = None
        if kind.millimetres is not None:
            mm = kind.millimetres[_OTHER_SIZE[finding.size] == "large"]
        out.append(replace(finding, size=_OTHER_SIZE[finding.size], size_mm=mm))
    return out


def contradicting(
    findings: Sequence[Finding], region: str, rng: np.random.Generator
) -> tuple[Finding, ...]:
    """Findings that are not those of the study and differ in one: it is missing, or another one is
    there, or it is on the other side or of another size. For the tidy register of reports.

    Raises:
        ValueError: as of `phrase`.
    """
    _check(findings, region)
    true = {f.name for f in findings}
    choices: list[tuple[Finding, ...]] = []
    for i, f in enumerate(findings):
        rest = (*findings[:i], *findings[i + 1 :])
        choices += [rest, *((*rest, g) for g in _neighbours(f, findings))]
    absent = [n for n in findings_of(region) if n not in true and not _confused(n, true)]
    if absent and len(findings) < MAX_FINDINGS:
        choices.append((*findings, _any_of(_pick(absent, rng), rng)))
    return choices[int(rng.integers(len(choices)))]


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
