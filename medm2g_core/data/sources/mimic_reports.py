"""Reports of MIMIC-CXR as findings and impression: the rules of the data set's own section parser,
and what it leaves to hand-made lists."""

from __future__ import annotations

import re

from medm2g_core.data.iu_reports import REMOVED, says_something

__all__ = ["report_text", "split_sections"]

# The parser's rule: a new line, one space, capitals, a colon.
_CAPITALS = re.compile(r"\n ([A-Z ()/,-]+):\s")

# Spellings that occur; a header that holds one of these words is that section.
_IMPRESSION = (
    "impression",
    "conclusion",
    "mpression",
    "impresson",
    "impresion",
    "impession",
    "imperssion",
    "impressoin",
    "imprssion",
    "imprression",
    "imoression",
)
_FINDINGS = ("finding", "findins", "findindgs", "findgings", "findngs", "findnings", "finidngs")
# Some reports head their findings with the name of the examination.
_EXAMINATION = re.compile(
    r"chest|portable|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal|two views|"
    r"(?:pa|ap|one|lateral) view"
)
_OTHER = (
    "addendum",
    "comparison",
    "indication",
    "history",
    "technique",
    "reason",
    "recommendation",
    "notification",
    "wet read",
)
# Parts of the findings under a header of their own, as in structured reports, or an examination.
_PART = re.compile(
    r"\b(?:ribs?|lungs?|heart|cardiac|cardiomediastin\w+|mediastin\w+|hil(?:a|um|ar)|pleura\w*|"
    r"bon(?:es|y)|osseous|skelet\w+|soft tissues?|abdomen|upper abdomen|diaphragm|airways?|"
    r"trachea|vessels|aorta|spine|sternum|clavicles?|shoulders?|chest wall|lines|tubes?|"
    r"catheters?|devices?|hardware|support)\b"
)
# The names that a header in small letters, or without the leading space, may have: any word before
# a colon would else be one. "Impression" with all its misspellings is among them.
_NAMED = re.compile(
    rf"\n[ \t]*((?:(?:final|clinical|brief|significant|reason for|type of|findings and|and|the)"
    rf" )*(?:{'|'.join((*_IMPRESSION, *_FINDINGS, *_OTHER[:-1]))}|examination|exam|wet read)s?"
    r"(?: (?:information|and impression|for exam(?:ination)?))?)[ \t]*:",
    re.IGNORECASE,
)
_RULER = re.compile(r"^[ \t]*_{5,}[ \t]*$", re.MULTILINE)


def split_sections(report: str) -> tuple[tuple[str, str], ...]:
    """A report's sections in order, as (name, text): ``"impression"``, ``"findings"``, or the
    header in lower case.

    The rule is that of the data set's own parser: a header is a new line, one space, capitals and a
    colon, so the text must come with its white space. The known names of sections are headers in
    any case and behind any white space too. What stands before the first header is ``"preamble"``;
    the first line after a header in capitals cannot be a header in capitals. A ruler of underscores
    parts an addendum, above it, from the report, which alone is kept.
    """
    report = "\n" + report.replace("\r\n", "\n").replace("\r", "\n")
    parts = _RULER.split(report)
    report = "\n" + next((p for p in reversed(parts) if p.strip()), "")
    found: list[tuple[str, str]] = []
    name, start = "preamble", 0
    match = _next_header(report, 0, 0)
    while match:
        found.append((name, report[start : match.start()]))
        name, start = _section(match[1]), match.end()
        line_end = report.find("\n", start)
        match = _next_header(report, start - 1, line_end)
    found.append((name, report[start:]))
    return tuple(found)


def _next_header(report: str, named_from: int, capitals_from: int) -> re.Match[str] | None:
    """The first header of either kind; ``capitals_from`` of -1 means that no line is left."""
    named = _NAMED.search(report, named_from)
    capitals = _CAPITALS.search(report, capitals_from) if capitals_from >= 0 else None
    both = [m for m in (named, capitals) if m is not None]
    return min(both, key=lambda m: m.start(), default=None)


def _section(header: str) -> str:
    name = re.sub(r"\s+", " ", header).strip().lower()
    if any(w in name for w in _OTHER[:1]):  # "chest addendum" is no finding of this examination
        return name
    if any(w in name for w in _IMPRESSION):  # also "findings and impression"
        return "impression"
    if any(w in name for w in _OTHER):
        return name
    if any(w in name for w in _FINDINGS) or _EXAMINATION.search(name):
        return "findings"
    return name


def report_text(report: str) -> str:
    """Findings and impression of a raw report in the project's report form; ``""`` where it says
    nothing.

    The last section of a name that says something counts; sections of parts of the body
    (``LUNGS:``, ``RIBS:``) belong to the section before them, or are findings. Without findings and
    impression, the text of the last section behind its first paragraph is taken, as the data set's
    own parser does. ``___``, the publisher's mark for removed personal data, becomes one token.
    """
    sections = split_sections(report)
    last: dict[str, str] = {}
    current = "findings"
    for name, text in sections:
        clean = _clean(text)
        if name in ("findings", "impression"):
            current = name
            if clean:
                last[name] = clean
        elif _PART.search(name) and not any(w in name for w in _OTHER) and clean:
            last[current] = " ".join(
                (*filter(None, [last.get(current)]), f"{name.capitalize()}: {clean}")
            )
    parts = [
        f"{title}: {last[title.lower()]}"
        for title in ("Findings", "Impression")
        if title.lower() in last
    ]
    if parts:
        return " ".join(parts)
    # Reports without headers, and those for which the official parser keeps rules of their own.
    name, text = sections[-1]
    paragraphs = [clean for p in re.split(r"\n[ \t]*\n", text) if (clean := _clean(p))]
    if len(paragraphs) > 1:
        return f"Findings: {' '.join(paragraphs[1:])}"
    # A single paragraph: the whole report, or nothing but an INDICATION, say.
    whole = re.sub(r"^FINAL REPORT\b[ .]*", "", paragraphs[0]) if paragraphs else ""
    return f"Findings: {whole}" if whole and name == "preamble" else ""


def _clean(text: str) -> str:
    """In one line, with one token for removed personal data; ``""`` where nothing else is left."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"_{2,}(?:[\s,/-]*_{2,})*", REMOVED, text)
    return text if says_something(text) else ""
