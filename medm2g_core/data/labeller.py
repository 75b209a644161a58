"""A rule-based, negation-aware labeller: report text to findings.

In the manner of NegEx (Chapman et al. 2001) and CheXpert's labeller (Irvin et al. 2019): mentions
(`medm2g_core.data.lexicon`), cues of negation whose scope ends at a terminator, and attributes
(side, lobe, size, diameter) taken from the part of the sentence that belongs to the mention. It
inverts the grammar of `medm2g_core.data.reports` exactly and reads free text as well as its lexicon
allows. No input makes it raise.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

from medm2g_core.data.findings import FINDINGS, size_class
from medm2g_core.data.lexicon import (
    AFTER,
    AGE,
    BRAIN_LOBE,
    CLAUSE,
    CUE,
    DIAMETER,
    FINITE,
    FRESH,
    HEDGE,
    JOINTS,
    LOBE,
    MENTIONS,
    NEEDS_ZONE,
    NEUTRAL,
    NORMALITY,
    NUMBER,
    OTHER,
    SECTION,
    SENTENCE,
    SEX,
    SIDE,
    SIZE,
    STOP,
)
from medm2g_core.streams import Finding

__all__ = [
    "Mention",
    "ReportLabels",
    "canonical",
    "find_mentions",
    "guess_region",
    "label_report",
    "other_findings",
    "presence",
    "sentences",
]


@dataclass(frozen=True)
class Mention:
    """One mention of a finding in a text.

    Attributes:
        finding: name and the attributes stated beside this mention (empty where none is).
        negated: the text denies it.
        sentence: index of the sentence.
        uncertain: the text only considers it ("may represent"); neither asserted nor denied.
    """

    finding: Finding
    negated: bool
    sentence: int
    uncertain: bool = False


@dataclass(frozen=True)
class ReportLabels:
    """What a report says.

    Attributes:
        findings: asserted findings in `canonical` order; an attribute that the text does not give
            is empty.
        negated: names that are denied somewhere and asserted nowhere.
        age: years, or ``None``.
        sex: ``"female"``, ``"male"`` or ``""``.
    """

    findings: tuple[Finding, ...]
    negated: frozenset[str]
    age: int | None = None
    sex: str = ""


def _normalise(text: str) -> str:
    text = unicodedata.normalize("NFKD", str(text)).encode("ascii", "ignore").decode().lower()
    text = re.sub(r"[ \t\r\f\v]+", " ", text.replace("\n\n", ". "))
    text = text.replace("\n", " ")
    for pattern, into in NEUTRAL:
        text = pattern.sub(into, text)
    return SECTION.sub(". ", text)


def sentences(text: str) -> list[str]:
    """The sentences of a text as the labeller reads them, in lower case; `Mention.sentence` counts
    them."""
    return [s.strip(" ,-") for s in SENTENCE.split(_normalise(text))]


def guess_region(text: str) -> str:
    """``"brain"`` where a text speaks more of the brain than of the chest, else ``"chest"``."""
    text = text.lower()
    brain = (
        r"brain|ventric|white matter|grey|gray|intracranial|midline"
        r" shift|frontal|parietal|temporal|occipital|skull"
    )
    chest = r"lung|chest|heart|cardi|pleura|pulmon|mediastin|pneumo|thora|hila|rib"
    return "brain" if len(re.findall(brain, text)) > len(re.findall(chest, text)) else "chest"


def _hedged_parts(sentence: str) -> list[tuple[int, int]]:
    """Character ranges of a sentence that only consider something: after the cue, before it where
    it comes last."""
    parts = []
    for cue in HEDGE.finditer(sentence):
        stop = STOP.search(sentence, cue.end())
        end = stop.start() if stop else len(sentence)
        last = not re.search(r"\w", sentence[cue.end() : end])
        start = (
            max((m.end() for m in CLAUSE.finditer(sentence, 0, cue.start())), default=0)
            if last
            else cue.start()
        )
        parts.append((start, end))
    return parts


def _negated_parts(sentence: str) -> list[tuple[int, int]]:
    """Character ranges of a sentence that are under negation."""
    parts = []
    for cue in CUE.finditer(sentence):
        stops = [m.start() for p in (STOP, FRESH) if (m := p.search(sentence, cue.end()))]
        parts.append((cue.start(), min(stops, default=len(sentence))))
    for cue in AFTER.finditer(sentence):
        start = max((m.end() for m in CLAUSE.finditer(sentence, 0, cue.start())), default=0)
        comma = sentence.rfind(",", start, cue.start())
        if comma >= 0 and FINITE.search(sentence, start, comma):
            start = comma
        parts.append((start, cue.end()))
    return parts


def _segments(sentence: str, spans: list[tuple[int, int]]) -> list[str]:
    """The part of a sentence that belongs to each mention: cut between two mentions at the
    strongest joint."""
    cuts = [0]
    for (_, end), (start, _) in pairwise(spans):
        between = sentence[end:start] if start > end else ""
        for joint in JOINTS:
            found = list(joint.finditer(between))
            if found:
                cuts.append(end + found[-1].start())
                break
        else:
            cuts.append(max(end, cuts[-1]))
    cuts.append(len(sentence))
    return [sentence[a:b] for a, b in pairwise(cuts)]


# -- attributes


def _one(pattern: re.Pattern[str], text: str) -> str:
    """The single value that a pattern's groups find; empty where there is none or they
    contradict."""
    found = {m.lastgroup or "" for m in pattern.finditer(text)}
    return found.pop() if len(found) == 1 else ""


def _sides(text: str) -> str:
    found = {m.lastgroup for m in SIDE.finditer(text)}
    if "both" in found:
        return "both"
    if len(found) == 2:
        return (
            "both"
            if re.search(r"\b(?:left|right)\b(?: \w+)? (?:and|or|greater than|more than) ", text)
            else ""
        )
    return str(found.pop()) if found else ""


def _lobes(text: str, brain: bool) -> tuple[str, ...]:
    pattern = BRAIN_LOBE if brain else LOBE
    found: list[str] = []
    for m in pattern.finditer(text):
        name = m.lastgroup or ""
        if (
            m.group() in ("upper", "middle", "mid", "lower")
            and not brain
            and not NEEDS_ZONE.match(text, m.end())
        ):
            continue  # "upper limits", "lower thoracic spine"
        name = {"lingula": "upper", "midlung": "middle"}.get(name, name)
        if name not in found:
            found.append(name)
    listed = re.search(r"(?:upper|middle|mid|lower|al)(?: lobe)?(?:,| and|/| or)", text)
    return tuple(found) if len(found) == 1 or listed else ()


def _diameter(text: str, name: str) -> int | None:
    limits = FINDINGS[name].millimetres
    m = DIAMETER.search(text)
    if m is None or limits is None:
        return None
    mm = max(map(float, NUMBER.findall(m.group()))) * (10 if m.group(3).startswith("c") else 1)
    if not limits[0] - 1 <= mm <= limits[1] + 1:  # a number of 400 digits is infinite
        return None
    whole = round(mm)
    return whole if limits[0] <= whole <= limits[1] else None


def _describe(name: str, text: str) -> list[Finding]:
    """The finding(s) that one mention in `text` states: one for each side and lobe where its kind
    needs it."""
    kind = FINDINGS[name]
    text = re.sub(r"\b(?:xxxx|\d+[ -]year[ -]old)\b", " ", text)
    pair = [m.lastgroup or "" for m in SIDE.finditer(text) if m.lastgroup != "both"]
    degrees = [m.lastgroup or "" for m in SIZE.finditer(text)]
    sized_by_side = kind.locations == ("",) and "left" in kind.sides and "" not in kind.sizes
    if (
        sized_by_side
        and sorted(pair) == ["left", "right"]
        and len(degrees) == 2
        and degrees[0] != degrees[1]
    ):
        return [
            Finding(name, s, "", d) for s, d in zip(pair, degrees, strict=True)
        ]  # "small left and large right"
    side = _sides(text)
    lobes = _lobes(text, kind.region == "brain") if kind.locations != ("",) else ()
    if not side:
        side = {"rul": "right", "rml": "right", "rll": "right", "lul": "left", "lll": "left"}.get(
            next(
                (w for w in ("rul", "rml", "rll", "lul", "lll") if re.search(rf"\b{w}\b", text)), ""
            ),
            "",
        )
    if lobes == ("middle",) and not side and "middle" in text:
        side = "right"
    if "lingul" in text or "retrocardiac" in text:
        side = "left"
    size = _one(SIZE, text) if kind.sizes != ("",) else ""
    size_mm = _diameter(text, name)
    if size_mm is not None:
        size = size_class(name, size_mm)  # a stated diameter outweighs the adjective
    if size not in kind.sizes:
        size = ""
    if side not in kind.sides:
        sides = ("left", "right") if side == "both" and "left" in kind.sides else ("",)
    else:
        sides = (side,)
    out = []
    for s in sides:
        for lobe in lobes or ("",):
            place = "" if lobe == "middle" and s == "left" else lobe
            out.append(Finding(name, s, place if place in kind.locations else "", size, size_mm))
    return out


def _compatible(a: Finding, b: Finding) -> bool:
    return (
        a.name == b.name
        and (not a.side or not b.side or a.side == b.side or "both" in (a.side, b.side))
        and (not a.location or not b.location or a.location == b.location)
        and (not a.size or not b.size or a.size == b.size)
        and (a.size_mm is None or b.size_mm is None or a.size_mm == b.size_mm)
    )


def _merge(a: Finding, b: Finding) -> Finding:
    return replace(
        a,
        side="both" if "both" in (a.side, b.side) else a.side or b.side,
        location=a.location or b.location,
        size=a.size or b.size,
        size_mm=a.size_mm if a.size_mm is not None else b.size_mm,
    )


def _score(a: Finding, b: Finding) -> int:
    return sum(x == y and x not in ("", None) for x, y in zip(a.key[1:], b.key[1:], strict=True))


def canonical(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings in the order of `FINDINGS`, then side, location, size, diameter; duplicates
    removed."""
    order = {name: i for i, name in enumerate(FINDINGS)}
    return tuple(
        sorted(set(findings), key=lambda f: (order.get(f.name, 99), f.key, f.size_mm or 0))
    )


# -- the labeller


def _with_lexicon(region: str) -> str:
    if region not in MENTIONS:
        raise ValueError(f"region {region!r} has no lexicon; known: {', '.join(MENTIONS)}")
    return region


def find_mentions(text: str, region: str | None = None) -> tuple[Mention, ...]:
    """Every mention of a finding of a region, asserted or denied, in reading order.

    Args:
        text: any text.
        region: ``"chest"``, ``"brain"``, or ``None`` to guess it from the words.

    Raises:
        ValueError: a region without a lexicon.
    """
    region = _with_lexicon(region or guess_region(text))
    mentions: list[Mention] = []
    for index, sentence in enumerate(sentences(text)):
        denied = [
            n for pattern, names in NORMALITY[region] if pattern.search(sentence) for n in names
        ]
        mentions += [Mention(Finding(name), True, index) for name in denied]
        found = [
            (m.start(), m.end(), name) for name, p in MENTIONS[region] for m in p.finditer(sentence)
        ]
        found = sorted(
            f for f in found if not any(g != f and g[0] <= f[0] and f[1] <= g[1] for g in found)
        )
        found = [
            f
            for f in found
            if not (f[2] in denied and f[2] in ("cardiomegaly", "ventriculomegaly"))
        ]
        if not found:
            _continue(sentence, mentions, index)
            continue
        found = _coalesce(sentence, found)
        negated, hedged = _negated_parts(sentence), _hedged_parts(sentence)
        for (start, end, name), part in zip(
            found, _segments(sentence, [(a, b) for a, b, _ in found]), strict=True
        ):
            no = any(a < end and start < b for a, b in negated)
            maybe = not no and any(a < end and start < b for a, b in hedged)
            mentions += [Mention(f, no, index, maybe) for f in _describe(name, part)]
    return tuple(mentions)


def _coalesce(sentence: str, found: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Join neighbouring words for one thing ("atelectasis with volume loss") unless a list
    separates them."""
    out: list[tuple[int, int, str]] = []
    for start, end, name in found:
        if (
            out
            and out[-1][2] == name
            and not re.search(r"\b(?:and|or|nor|but)\b|[,/:]", sentence[out[-1][1] : start])
        ):
            out[-1] = (out[-1][0], max(end, out[-1][1]), name)
        else:
            out.append((start, end, name))
    return out


def _continue(sentence: str, mentions: list[Mention], index: int) -> None:
    """Add to the last mention what a following "It measures 24 mm" says of it."""
    if (
        not mentions
        or mentions[-1].negated
        or mentions[-1].uncertain
        or index - mentions[-1].sentence > 1
    ):
        return
    if not re.match(r"(?:it|this|the lesion)\b", sentence) or CUE.search(sentence):
        return
    last = mentions[-1].finding
    more = _describe(last.name, sentence)[0]
    if _compatible(replace(last, size=""), replace(more, size="")):
        merged = _merge(last, more)
        if merged.size_mm is not None:
            merged = replace(merged, size=size_class(merged.name, merged.size_mm))
        mentions[-1] = Mention(merged, False, index)


def label_report(text: str, region: str | None = None) -> ReportLabels:
    """Findings with attributes, denied findings, age and sex of a report.

    Mentions of one kind that do not contradict each other (findings and impression) become one
    finding. Two that do contradict each other become two. Hedged mentions ("may represent") are
    neither findings nor denied. A diameter in mm or cm sets the size class; one outside the kind's
    range is ignored. What cannot be read is left empty.

    Args:
        text: a report, or any other text, also broken.
        region: ``"chest"``, ``"brain"``, or ``None`` to guess it from the words.

    Raises:
        ValueError: a region without a lexicon.
    """
    mentions = find_mentions(text, region)
    found: list[Finding] = []
    for m in (m.finding for m in mentions if not m.negated and not m.uncertain):
        fits = [i for i, f in enumerate(found) if _compatible(f, m)]
        if fits:  # the closest, and of those the last spoken of
            best = max(fits, key=lambda i: (_score(found[i], m), i))
            found[best] = _merge(found[best], m)
        else:
            found.append(m)
    names = {f.name for f in found}
    lowered = str(text).lower()
    age = next((int(g) for m in [AGE.search(lowered)] if m for g in m.groups() if g), None)
    sex = next((m.lastgroup or "" for m in [SEX.search(lowered)] if m), "")
    return ReportLabels(
        findings=canonical(found),
        negated=frozenset(m.finding.name for m in mentions if m.negated) - names,
        age=age if age is not None and age <= 120 else None,
        sex=sex,
    )


def other_findings(text: str, region: str | None = None) -> tuple[str, ...]:
    """Words for what a report asserts and no name of a finding covers ("fracture", "pacemaker"),
    in reading order; what it denies or only considers is left out.

    Args:
        text: any text.
        region: ``"chest"``, ``"brain"``, or ``None`` to guess it from the words.

    Raises:
        ValueError: a region without a lexicon.
    """
    region = _with_lexicon(region or guess_region(text))
    words: list[str] = []
    for sentence in sentences(text):
        taken = _negated_parts(sentence) + _hedged_parts(sentence)
        taken += [m.span() for _, pattern in MENTIONS[region] for m in pattern.finditer(sentence)]
        for found in OTHER.finditer(sentence):
            if not any(a < found.end() and found.start() < b for a, b in taken):
                words.append(found[0])
    return tuple(dict.fromkeys(words))


def presence(findings: Iterable[Finding], region: str | None = None) -> dict[str, bool]:
    """Name -> whether it is among `findings`, for every finding (of a region, if given), in the
    order of `FINDINGS`."""
    names = {f.name for f in findings}
    return {name: name in names for name, kind in FINDINGS.items() if region in (None, kind.region)}
