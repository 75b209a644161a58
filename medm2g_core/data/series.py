"""Which of a folder's image stacks is the stream that is wanted: every one is scored by what its
headers say, and the table of scores can be printed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medm2g_core.data.dicom_stacks import Stack, first_in_order
from medm2g_core.data.header_evidence import Evidence, evidence, looks_like
from medm2g_core.data.headers import XRAY_MODALITIES, number
from medm2g_core.data.plausibility import check_header
from medm2g_core.data.volumes import FileError
from medm2g_core.streams import IMAGE_STREAMS

__all__ = ["Choice", "choose", "fits", "instead"]

_OTHER = {"SEG", "RTDOSE", "RTIMAGE", "RTSTRUCT", "RTPLAN", "ECG", "PR", "KO", "SR", "PT", "NM"}
_OTHER |= {"US", "MG", "ES", "SM", "OP", "OPT", "OCT", "IVUS", "BI", "XC", "GM", "IO"}

FEW_IMAGES, FEW_POINTS = 10, -2.0
"""A CT stack of fewer images than this is a series for timing or a single slice more often than the
scan."""

AS_LARGE = 0.5
"""A stack with at least this part of the images of the best one may be the whole scan as well as
that; a smaller one is more often a scout or a repeat of a few slices."""

MAX_LISTED, MAX_NAME = 3, 40
"""Stacks that a refusal names, and letters of a description."""


def fits(modality: str, stream_name: str) -> bool:
    """Whether a DICOM Modality can hold the stream; unspecific ones (SC, OT, none) may."""
    if modality in _OTHER:
        return False
    kind = {"CT": "ct", "MR": "mri"}.get(modality, "xray" if modality in XRAY_MODALITIES else "")
    return not kind or stream_name.startswith(kind)


def instead(modalities: Iterable[str]) -> str:
    """What to do where images of these DICOM Modalities cannot be the stream that was named."""
    others = [n for n in IMAGE_STREAMS if any(fits(m, n) for m in modalities)]
    if others:
        return f"name the stream that fits: {' or '.join(others)}"
    return "no stream is of that kind: give a radiograph, CT or MR"


@dataclass(frozen=True)
class Choice:
    """The stack that was chosen.

    Attributes:
        stack: the one to show.
        notes: what was chosen among what.
        table: a line for each stack, best first.
    """

    stack: Stack
    notes: tuple[str, ...]
    table: tuple[str, ...]


@dataclass(frozen=True)
class _Scored:
    stack: Stack
    points: float
    reasons: tuple[Evidence, ...]
    refusal: str

    @property
    def key(self) -> tuple:
        """Best first."""
        return (
            bool(self.refusal),
            -self.points,
            -len(self.stack.frames),
            first_in_order(self.stack),
        )


def _score(stack: Stack, name: str) -> _Scored:
    modality = str(stack.facts.get("Modality", ""))
    if not fits(modality, name):
        reason = Evidence(-100, f"modality {modality}")
        return _Scored(stack, reason.points, (reason,), f"the DICOM Modality is {modality}")
    reasons = evidence(stack.facts, name)
    if name == "ct" and len(stack.frames) < FEW_IMAGES:
        reasons.append(Evidence(FEW_POINTS, "few images"))
    if not modality and name != "xray":
        reasons.append(Evidence(-0.5, "no Modality"))
    refusal = check_header(stack.facts, name).refusal
    return _Scored(stack, sum(e.points for e in reasons), tuple(reasons), refusal)


def describe(stack: Stack) -> str:
    """A stack in a few words: its description, size and what parts it from its like."""
    name = str(stack.facts.get("SeriesDescription", ""))[:MAX_NAME] or "no description"
    several = f", {stack.parted_by}" if stack.siblings > 1 and stack.parted_by else ""
    count = len(stack.frames)
    return f"{name}: {count} image{'s' if count > 1 else ''}{several}"


def choose(stacks: Sequence[Stack], name: str, where: str = "") -> Choice:
    """The stack that suits a stream best.

    Points come from the headers (`medm2g_core.data.header_evidence`); of equals the one with
    more images is taken, then the one that was acquired first.

    Args:
        where: folder, for messages.

    Raises:
        FileError: none can be the stream, or several could be and nothing tells which: of MR
            without a word on its weighting, or of several patients.
    """
    scored = sorted((_score(s, name) for s in stacks), key=lambda s: s.key)
    table = tuple(_line(i, s, name) for i, s in enumerate(scored, 1))
    best, prefix = scored[0], f"{where}: " if where else ""
    if all(s.points <= -100 for s in scored):
        kinds = sorted({str(s.stack.facts.get("Modality", "?")) for s in scored})
        raise FileError(
            f"{prefix}holds {', '.join(kinds)} images, none of which can be the stream {name};"
            f" {instead(kinds)}"
        )
    if best.refusal:
        if len(scored) == 1:
            raise FileError(f"{prefix}{best.refusal}")
        raise FileError(
            f"{prefix}none of the {len(scored)} image stacks can be {name}; give another folder, or"
            f" name the stream that it holds. {_listed(scored)}"
        )
    rivals = [s for s in scored[1:] if not s.refusal and _is_equal(s, best)]
    patients = {str(s.stack.facts.get("PatientID", "")) for s in (best, *rivals)}
    what = "their headers do not tell which"
    if len(patients) > 1:
        what = f"they are of {len(patients)} patients"
    if rivals and (len(patients) > 1 or (name.startswith("mri_") and best.points <= 0)):
        raise FileError(
            f"{prefix}{len(rivals) + 1} image stacks could be {name} and {what}; put the files of"
            f" one into a folder of its own and give that. {_listed([best, *rivals])}"
        )
    return Choice(best.stack, tuple(_notes(scored, name)), table)


def _is_equal(other: _Scored, best: _Scored) -> bool:
    """Whether another series fits as well; acquisitions of one series are chosen among by order."""
    series = [
        (s.stack.facts.get("PatientID"), s.stack.facts.get("SeriesInstanceUID"))
        for s in (other, best)
    ]
    return (
        abs(other.points - best.points) < 1e-6
        and len(other.stack.frames) >= AS_LARGE * len(best.stack.frames)
        and series[0] != series[1]
    )


def _notes(scored: Sequence[_Scored], name: str) -> list[str]:
    best, notes = scored[0], []
    stack = best.stack
    if len(scored) > 1:
        label = str(stack.facts.get("SeriesDescription", "")) or "no description"
        notes.append(
            f"{len(scored)} image stacks in the folder: took the one with {len(stack.frames)}"
            f" images ({label})"
        )
    patients = {str(s.stack.facts.get("PatientID", "")) for s in scored}
    if len(patients) > 1:
        notes.append(f"images of {len(patients)} patients in the folder: those of one are used")
    if stack.siblings > 1:
        what = f": took {stack.parted_by}" if stack.parted_by else ": took the first"
        others = [
            s.stack.parted_by
            for s in scored[1:]
            if s.stack.siblings > 1
            and s.stack.facts.get("SeriesInstanceUID") == stack.facts.get("SeriesInstanceUID")
        ]
        not_taken = f", not {'; '.join(others[:3])}" if any(others) else ""
        notes.append(
            f"the series holds {stack.siblings} acquisitions at the same positions{what}{not_taken}"
        )
    if stack.copies:
        notes.append(f"{stack.copies} files are copies of others and were left out")
    second = next((s for s in scored[1:] if not s.refusal), None)
    if second is not None and second.points == best.points and stack.siblings == 1:
        notes.append(
            f"{describe(second.stack)} would have fitted as well; to see it, give its files in a"
            " folder of their own"
        )
    if name.startswith("mri_") and best.points <= 0 and len(scored) > 1:
        notes.append(f"nothing in its header says that it is {name}")
    return notes


def _line(number_: int, scored: _Scored, name: str) -> str:
    reasons = "; ".join(e.words for e in scored.reasons if e.points) or "no hints"
    other = looks_like(scored.stack.facts) if name.startswith("mri_") else ""
    like = f" [like {other}]" if other and other != name else ""
    series = number(scored.stack.facts.get("SeriesNumber"))
    label = f"series {series:g}" if series is not None else "series"
    mark = "->" if number_ == 1 and not scored.refusal else "  "
    return f"{mark} {scored.points:+6.1f}  {label}, {describe(scored.stack)} ({reasons}){like}"


def _listed(scored: Sequence[_Scored]) -> str:
    """Stacks with the strongest thing against each, for a refusal."""
    parts = []
    for s in scored[:MAX_LISTED]:
        worst = min(s.reasons, key=lambda e: e.points, default=None)
        why = f" ({worst.words})" if worst is not None and worst.points < 0 else ""
        parts.append(describe(s.stack) + why)
    more = f"; and {len(scored) - MAX_LISTED} more" if len(scored) > MAX_LISTED else ""
    return "; ".join(parts) + more
