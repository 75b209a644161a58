"""From DICOM files to image stacks: which frames together are one acquisition.

A series may hold several acquisitions at the same positions (phases of contrast, tube voltages,
b-values, echoes), and an enhanced multi-frame object several planes. They are parted here, by what
the headers say, so that no stack is patched together from two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medm2g_core.data.headers import XRAY_MODALITIES, facts_of_frame, functional, number

__all__ = ["Frame", "Stack", "depths", "first_in_order", "frames_of", "same_place", "stacks_of"]

ORIENTATION_TOLERANCE = 0.02
"""Direction cosines that differ by less are those of one stack (a degree)."""

SAME_PLACE, LEAST_STEP_MM = 0.1, 0.1
"""Frames nearer together than this part of the usual distance, or than this many mm, lie at one
position: scanners write positions with some rounding, and no slices so close."""

PARTING: tuple[tuple[str, str], ...] = (
    ("DiffusionBValue", "b-value"),
    ("EchoTime", "echo time"),
    ("EchoNumbers", "echo"),
    ("KVP", "kVp"),
    ("InversionTime", "inversion time"),
    ("FlipAngle", "flip angle"),
    ("RepetitionTime", "repetition time"),
    ("ImageType", "image type"),
    ("ConvolutionKernel", "kernel"),
    ("SliceThickness", "slice thickness"),
    ("ContrastBolusAgent", "contrast agent"),
    ("NominalPercentageOfCardiacPhase", "heart phase"),
    ("TemporalPositionIdentifier", "time point"),
    ("TemporalPositionIndex", "time point"),
    ("AcquisitionNumber", "acquisition"),
    ("FrameAcquisitionNumber", "acquisition"),
    ("TriggerTime", "trigger time"),
    ("AcquisitionTime", "acquisition time"),
    ("FrameAcquisitionDateTime", "acquisition time"),
    ("DiffusionGradientOrientation", "diffusion direction"),
    ("SeriesDescription", "description"),
    ("ImageComments", "comment"),
)
"""What parts frames at one position, tried in this order."""

_UNLIKE = ("LOCALIZER", "MOSAIC", "MIP", "PROJECTION IMAGE", "ADC", "PHASE", "P", "SCREEN SAVE")
"""Image types that never belong to the stack of the others."""

_TIME_TAGS = {0x00181063, 0x00181065}  # FrameTime, FrameTimeVector


@dataclass
class Frame:
    """One image of a file.

    Attributes:
        path: the file.  index: of the frame in it.
        facts: see `medm2g_core.data.headers.facts_of_frame`.
        position: ImagePositionPatient (3,), LPS mm, or ``None``.
        orientation: ImageOrientationPatient (6,), or ``None``.
        spacing: (row, column) spacing in mm, or ``None`` where the file does not tell.
        step: distance of the file's frames where their own positions are missing and the position
            is counted from the first, else ``None``.
    """

    path: Path
    index: int
    facts: dict[str, Any]
    position: np.ndarray | None = None
    orientation: np.ndarray | None = None
    spacing: tuple[float, float] | None = None
    step: float | None = None


@dataclass
class Stack:
    """Frames of one acquisition.

    Attributes:
        frames: in no order.
        siblings: acquisitions in the same series at the same positions, this one included.
        parted_by: what tells this one from its siblings, in words, for example ``"kVp 120"``.
        copies: files that were left out because they are the same image again.
    """

    frames: list[Frame]
    siblings: int = 1
    parted_by: str = ""
    copies: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.facts and self.frames:
            first = min(self.frames, key=_in_order)
            kinds = {k for f in self.frames for k in image_type(f.facts)}
            self.facts = dict(first.facts) | ({"ImageType": tuple(sorted(kinds))} if kinds else {})


def image_type(facts: dict[str, Any]) -> tuple[str, ...]:
    """ImageType in capitals, without empty values."""
    value = facts.get("ImageType", ())
    parts = value if isinstance(value, tuple) else (value,)
    return tuple(p for v in parts if (p := str(v).strip().upper()))


def frames_of(path: Path, ds: Dataset) -> list[Frame]:
    """Every frame of a file with its place in space."""
    count = max(1, int(ds.get("NumberOfFrames") or 1))
    own = facts_of_frame(ds)
    several = bool(ds.get("PerFrameFunctionalGroupsSequence"))
    frames = []
    for index in range(count):

        def get(tag: str, group: str, index: int = index) -> Any:
            value = functional(ds, index, group, tag)
            return ds.get(tag) if value is None else value

        facts = facts_of_frame(ds, index) if several and index else dict(own)
        facts.setdefault("InstanceNumber", index + 1)
        if count > 1:
            facts["InstanceNumber"] = index + 1
        position = _numbers(get("ImagePositionPatient", "PlanePositionSequence"), 3)
        orientation = _numbers(get("ImageOrientationPatient", "PlaneOrientationSequence"), 6)
        spacing = _numbers(get("PixelSpacing", "PixelMeasuresSequence"), 2)
        frames.append(Frame(path, index, facts, position, orientation, _spacing(ds, spacing)))
    if count > 1 and not several:
        _spread(frames, ds)
    return frames


def _numbers(value: Any, count: int) -> np.ndarray | None:
    if value is None or isinstance(value, str) or not hasattr(value, "__len__"):
        return None
    if len(value) != count:
        return None
    array = np.array([float(v) for v in value])
    return array if np.isfinite(array).all() else None


def _spacing(ds: Dataset, stated: np.ndarray | None) -> tuple[float, float] | None:
    """Of rows and columns; for a CT without it, from the diameter that was reconstructed."""
    if stated is not None and (stated > 0).all():
        return float(stated[0]), float(stated[1])
    for tag in ("ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        other = _numbers(ds.get(tag), 2)
        if other is not None and (other > 0).all():
            return float(other[0]), float(other[1])
    diameter = number(ds.get("ReconstructionDiameter"))
    if ds.get("Modality") == "CT" and diameter and diameter > 0 and ds.get("Rows"):
        side = diameter / max(int(ds.Rows), int(ds.Columns))
        return side, side
    return None


def _spread(frames: list[Frame], ds: Dataset) -> None:
    """Give the frames of a plain multi-frame object, which states one position for all, positions
    of their own along the normal; unless they follow each other in time."""
    first = frames[0]
    pointer = ds.get("FrameIncrementPointer")
    pointers = pointer if isinstance(pointer, Iterable) else [pointer]
    in_time = any(p is not None and int(p) in _TIME_TAGS for p in pointers)
    step = number(ds.get("SpacingBetweenSlices")) or number(ds.get("SliceThickness"))
    if first.position is None or first.orientation is None:
        return
    if in_time or not step or ds.get("Modality") in XRAY_MODALITIES:
        for frame in frames:  # time points of one place: not a volume
            frame.position = None
        return
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    offsets = _numbers(ds.get("GridFrameOffsetVector"), len(frames))
    for frame in frames:
        distance = frame.index * step if offsets is None else offsets[frame.index]
        frame.position = first.position + normal * distance
        frame.step = step


def depths(frames: Sequence[Frame]) -> np.ndarray | None:
    """Place of each frame along the normal of the first in mm, or ``None`` if one has no place."""
    if any(f.position is None or f.orientation is None for f in frames):
        return None
    orientation = frames[0].orientation
    assert orientation is not None
    normal = np.cross(orientation[:3], orientation[3:])
    return np.array([f.position @ normal for f in frames])


def same_place(depth: np.ndarray) -> np.ndarray:
    """Number of the position that each frame lies at, counted along the normal."""
    order = np.argsort(depth, kind="stable")
    gaps = np.diff(depth[order])
    apart = gaps[gaps > LEAST_STEP_MM]
    reach = SAME_PLACE * float(np.median(apart)) if len(apart) else LEAST_STEP_MM
    steps = gaps > min(reach, LEAST_STEP_MM)
    numbers = np.empty(len(depth), int)
    numbers[order] = np.concatenate([[0], np.cumsum(steps)])
    return numbers


def stacks_of(frames: Sequence[Frame]) -> list[Stack]:
    """Part frames into stacks, each of one series, size, plane and acquisition."""
    seen: set[tuple] = set()
    groups: dict[tuple, list[Frame]] = defaultdict(list)
    copies: dict[tuple, int] = defaultdict(int)
    planes: dict[tuple, list[np.ndarray]] = defaultdict(list)
    for frame in frames:
        facts = frame.facts
        kind = frozenset(image_type(facts)) & frozenset(_UNLIKE)
        key: tuple = (
            facts.get("PatientID", ""),
            facts.get("SeriesInstanceUID", ""),
            facts.get("Rows"),
            facts.get("Columns"),
            facts.get("StackID", ""),
            kind,
        )
        if facts.get("Modality") in XRAY_MODALITIES:
            key += (frame.path,)  # each film is a picture of its own
        elif frame.orientation is not None and frame.position is not None:
            key += (_plane(planes[key], frame.orientation),)
        uid = facts.get("SOPInstanceUID")
        if uid:
            # With its place: an anonymiser may give all images of a series one UID.
            place = None if frame.position is None else tuple(frame.position.round(3))
            name = (uid, frame.index, place, facts.get("InstanceNumber"))
            if name in seen:
                copies[key] += 1
                continue
            seen.add(name)
        groups[key].append(frame)
    return [s for key, group in groups.items() for s in _acquisitions(group, copies[key])]


def _plane(known: list[np.ndarray], orientation: np.ndarray) -> int:
    for index, other in enumerate(known):
        if np.abs(other - orientation).max() < ORIENTATION_TOLERANCE:
            return index
    known.append(orientation)
    return len(known) - 1


def _acquisitions(frames: list[Frame], copies: int) -> list[Stack]:
    """The acquisitions of one group: no two frames of a result lie at one position, unless nothing
    in their headers parts them."""
    depth = depths(frames)
    if depth is None or len(frames) < 2:
        return [Stack(frames, copies=copies)]
    place = dict(zip(map(id, frames), same_place(depth), strict=True))

    def most(part: list[Frame]) -> int:
        return int(np.bincount([place[id(f)] for f in part]).max())

    parts: list[tuple[list[Frame], str]] = [(frames, "")]
    for tag, words in PARTING:
        divided: list[tuple[list[Frame], str]] = []
        for part, label in parts:
            n = most(part)
            by: dict[Any, list[Frame]] = defaultdict(list)
            for frame in part:
                by[_value(frame, tag)].append(frame)
            # A fact that changes from slice to slice (a time, a counter) has more values than
            # there are images at a position, and parts nothing.
            if n == 1 or not 1 < len(by) <= n or max(map(most, by.values())) >= n:
                divided.append((part, label))
                continue
            for value, members in by.items():
                said = f"{words} {_words(value)}"
                divided.append((members, f"{label}, {said}" if label else said))
        parts = divided
    out: list[Stack] = []
    for part, label in parts:
        if most(part) == 1:
            out.append(Stack(part, parted_by=label))
            continue
        passes = _passes(part, place)
        if passes is None:
            out.append(Stack(part, parted_by=label))
            continue
        for turn, members in enumerate(passes, 1):
            said = f"pass {turn} by instance number"
            out.append(Stack(members, parted_by=f"{label}, {said}" if label else said))
    for stack in out:
        stack.siblings, stack.copies = len(out), copies
    return out


def _value(frame: Frame, tag: str) -> Any:
    value = frame.facts.get(tag, "")
    return round(value, 3) if isinstance(value, float) else value


def _words(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value or "not stated")


def _in_order(frame: Frame) -> tuple[float, str, float, int]:
    """Acquisition, time, and number in the series: what came first."""
    acquisition = number(frame.facts.get("AcquisitionNumber"))
    instance = number(frame.facts.get("InstanceNumber"))
    return (
        0.0 if acquisition is None else acquisition,
        str(frame.facts.get("AcquisitionTime", "")),
        0.0 if instance is None else instance,
        frame.index,
    )


def first_in_order(stack: Stack) -> tuple[float, str, float, int]:
    """When the first frame of a stack was made, to compare stacks with."""
    return min(_in_order(f) for f in stack.frames)


def _passes(part: list[Frame], place: dict[int, Any]) -> list[list[Frame]] | None:
    """The n-th image at each position, by instance number; ``None`` where these do not tell."""
    at: dict[Any, list[Frame]] = defaultdict(list)
    for frame in part:
        at[place[id(frame)]].append(frame)
    passes: dict[int, list[Frame]] = defaultdict(list)
    for members in at.values():
        numbers = [number(f.facts.get("InstanceNumber")) for f in members]
        if None in numbers or len(set(numbers)) < len(numbers):
            return None
        for turn, frame in enumerate(sorted(members, key=_instance)):
            passes[turn].append(frame)
    return list(passes.values())


def _instance(frame: Frame) -> float:
    return number(frame.facts.get("InstanceNumber")) or 0.0
