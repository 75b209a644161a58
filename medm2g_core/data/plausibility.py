"""Can this be that stream? One check for files, data sets and the pipeline, with three answers:
fine, a note, or a refusal that says what to do.

`check_header` judges what a header says (`medm2g_core.data.header_evidence`), `check_values` the
values of a slice before they are scaled, `check_size` the millimetres of what it shows,
`check_chest` how a chest lies in a CT, and `check_picture` the picture in -1..1 that a model would
see, wherever it comes from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from medm2g_core.data.burnt_in import noise_level, plate_share
from medm2g_core.data.chest_directions import AIR_HU, chest_facts
from medm2g_core.data.film_sides import films_beside, heart_side
from medm2g_core.data.film_views import film_pose, lung_contrast, without_frame
from medm2g_core.data.header_evidence import evidence, has_word, looks_like
from medm2g_core.data.volumes import FileError
from medm2g_core.streams import stream, unit_to_hu

__all__ = [
    "Verdict",
    "check_chest",
    "check_film_frame",
    "check_header",
    "check_picture",
    "check_size",
    "check_values",
    "heed",
    "neighbour_correlation",
]

REFUSE = -5.0
"""Points below which a picture is not taken for the stream: its kind contradicts it, or its
sequence times and its name both do."""

REMARK = -1.0
"""Points of one piece of evidence from which it is told."""


@dataclass
class Verdict:
    """What a check found.

    Attributes:
        notes: what a user should know, one phrase each.
        refusal: why the picture cannot be used and what to do; empty if it can.
    """

    notes: list[str] = field(default_factory=list)
    refusal: str = ""


def heed(verdict: Verdict, notes: list[str]) -> None:
    """Take the notes of a check over.

    Raises:
        FileError: the check refuses.
    """
    if verdict.refusal:
        raise FileError(verdict.refusal)
    notes += [note for note in verdict.notes if note not in notes]


def check_header(facts: Mapping[str, Any], name: str) -> Verdict:
    """Whether a header contradicts the stream."""
    found = evidence(facts, name)
    against = sorted((e for e in found if e.points <= REMARK), key=lambda e: e.points)
    verdict = Verdict()
    total = sum(e.points for e in found)
    if total <= REFUSE or (against and against[0].points <= -10):
        why = "; ".join(e.words for e in against[:2])
        other = looks_like(facts) if name.startswith("mri_") else ""
        hint = f" (it fits {other}: give it as that)" if other and other != name else ""
        verdict.refusal = f"this cannot be the stream {name}: {why}{hint}"
        return verdict
    verdict.notes += [f"may not be {name}: {e.words}" for e in against]
    if str(facts.get("BurnedInAnnotation", "")).upper() == "YES":
        verdict.notes.append("words are burned into the picture, says its header")
    return verdict


# ---- what the values say

FEW_VALUES, MANY_LABELS = 16, 512
"""A slice of labels has few different values: up to 16 where they are counted through, some hundred
in an atlas. A slice of 8-bit signal has some 200."""

MASK_VALUES = (1.0, 255.0, 65535.0)
"""What stands for yes in a mask."""

BACKGROUND_LEVEL = 0.2
"""Level of a picture's edge between its darkest and brightest part above which the edge is not the
darkest thing there is, as it is where signal is a magnitude."""

BRIGHT_LEVEL = 0.85
"""Level that the edge of an MR slice lies above only in a negative: in none of 800 heads and 400
chests of the cohort, as they are and newly acquired; in the negative of every head, and of hardly a
chest, whose edge is body."""

NO_AIR_HU, WATER_HU, WATER_SHARE = (-1100.0, -900.0), (-200.0, 300.0), 0.05
"""Where a CT has its darkest values, where its soft tissue, and how much of a slice that takes at
least. The signal of an MR is no negative number of that size."""

NEGATIVE_SHARE = 0.02
"""Part of the pixels below 0 that rounding and filters do not make."""

_MAP_INTENTS = re.compile(r"test|score|correlation|label|p-value|p value|neuroname|beta|chi2", re.I)
_MASK_NAME = (
    r"seg|segmentation|dseg|labels?|labelmap|mask|aseg|aparc\w*|parc\w*|t.?map|z.?map|z.?stat\w*"
    r"|t.?stat\w*|p.?val\w*|tstat\w*|zstat\w*|spmt.*|con_.*"
)


def check_values(values: np.ndarray, facts: Mapping[str, Any], name: str) -> Verdict:
    """Whether the values of a slice are those of an image, not of a label map or of statistics.

    Args:
        values: (rows, columns) as the file defines them, not blank.
        facts: of the file; its ``FileName`` and NIfTI ``intent`` are asked.
    """
    verdict = Verdict()
    intent = str(facts.get("intent", ""))
    if _MAP_INTENTS.search(intent):
        verdict.refusal = (
            f"its header says {intent!r}: statistics or labels, not an image; give the image that"
            " they belong to"
        )
        return verdict
    distinct = np.unique(values[:: max(1, len(values) // 512)])
    whole = bool((distinct == np.rint(distinct)).all())
    if name == "ct":
        return verdict  # the check of Hounsfield units sees these
    if len(distinct) <= 2 and distinct[-1] in MASK_VALUES:
        verdict.refusal = (
            f"only {len(distinct)} different values ({distinct[0]:g}, {distinct[-1]:g}): a mask,"
            " not an image; give the image that it was drawn on"
        )
    elif whole and distinct[0] >= 0:
        said = f"only {len(distinct)} different values, up to {distinct[-1]:g}"
        named = has_word(str(facts.get("FileName", "")).lower(), _MASK_NAME)
        consecutive = len(distinct) <= FEW_VALUES and distinct[-1] < 2 * len(distinct)
        if consecutive or (named and len(distinct) <= MANY_LABELS):
            verdict.refusal = (
                f"{said}: a label map, not an image; give the image that it was drawn on"
            )
        elif len(distinct) <= FEW_VALUES:
            verdict.notes.append(f"{said}: is it a label map?")
    if not name.startswith("mri_") or verdict.refusal:
        return verdict
    edge = _edge(values)
    low, high = np.quantile(values, (0.005, 0.995))
    near_water = float(((values > WATER_HU[0]) & (values < WATER_HU[1])).mean())
    if NO_AIR_HU[0] <= low <= NO_AIR_HU[1] and near_water > WATER_SHARE:
        verdict.refusal = (
            f"values from {low:.0f} with much near 0: Hounsfield units, a CT and no MR; give it as"
            " ct"
        )
        return verdict
    if high > low and (np.quantile(edge, 1 - AIR_AROUND) - low) / (high - low) > BRIGHT_LEVEL:
        verdict.refusal = (
            "its background is as bright as anything in it: a negative; give it with air dark"
        )
        return verdict
    level = (float(np.median(edge)) - low) / (high - low) if high > low else 0.0
    below = float((values < min(0.0, 0.05 * low)).mean()) if low < 0 else 0.0
    if below > NEGATIVE_SHARE and level > BACKGROUND_LEVEL:
        verdict.refusal = (
            "values on both sides of the background's: a statistical map, a phase or difference"
            " image, or a normalised one; give the magnitude image as the scanner made it"
        )
    return verdict


SMALLEST_MM = {"ct": 40.0, "mri": 25.0}
LARGEST_MM = {"ct": 800.0, "mri": 600.0}
USUAL_MM = {"ct": (150.0, 560.0), "mri": (90.0, 480.0)}
"""Longer side of what a slice shows: chests and heads, from a newborn's to the largest bore."""

AIR_AROUND = 0.75
"""Part of a slice's edge that is background where the body is not cut by it (a neck may be)."""

MUCH_OF_SLICE = 0.3
"""A body that takes a smaller part of the slice's side may be the end of one."""


def check_size(
    cut: np.ndarray, spacing: tuple[float, float], body_mm: tuple[float, float], name: str
) -> Verdict:
    """Whether the body in a slice has the size of a patient.

    A small field of view cuts the body, whose size then says nothing.

    Args:
        cut: the slice (rows, columns); Hounsfield units of a CT.
        spacing: of its rows and columns in mm.
        body_mm: height and width of the bounding box of the body in it.
    """
    kind = "ct" if name == "ct" else "mri"
    what = "body" if kind == "ct" else "head or body"
    verdict = Verdict()
    largest = max(body_mm)
    low, high = USUAL_MM[kind]
    part = max(b / (n * s) for b, n, s in zip(body_mm, cut.shape, spacing, strict=True))
    alone = _air_around(cut, kind) >= AIR_AROUND
    small = largest < SMALLEST_MM[kind] and alone and part >= MUCH_OF_SLICE
    if small or largest > LARGEST_MM[kind]:
        whole = ", or cut a scan of the whole body to one part" if largest > high else ""
        verdict.refusal = (
            f"the {what} measures {largest:.0f} mm; check the pixel spacing in the header (cm"
            f" or inches written as mm?){whole}"
        )
    elif largest > high or (largest < low and alone):
        verdict.notes.append(
            f"the {what} measures {largest:.3g} mm: is the spacing right, and is this its middle?"
        )
    return verdict


def _edge(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _air_around(cut: np.ndarray, kind: str) -> float:
    """Part of the edge of a slice that is background."""
    if kind == "ct":
        return float((_edge(cut) < AIR_HU).mean())
    low, high = np.quantile(cut, (0.005, 0.995))
    return float((_edge(cut) <= low + BACKGROUND_LEVEL * (high - low)).mean())


SPINE_IN_FRONT, BASE_ABOVE, HEART_RIGHT = -0.08, -0.03, -0.02
"""Of `medm2g_core.data.chest_directions.ChestFacts`. The heart full of contrast medium counts as
bone and brings a right chest down to -0.06, but never below the first."""

NO_GAP, WIDE_GAP = 0.5, 0.3
"""Lung in the middle along an axis, in parts of the most: more than the first is one lung or two
behind each other, less than the second two side by side. So a patient with one lung, who has no gap
at all, is not refused."""

SECOND_BODY = 0.4
"""Of the largest one. Arms beside the body are below 0.2."""


def check_chest(hu: np.ndarray, spacing_mm: tuple[float, ...]) -> Verdict:
    """Whether the chest in a CT lies as the directions in its header say, and is alone.

    Args:
        hu: (S, A, R): from head to feet, front to back, the patient's right to left; HU.
        spacing_mm: along each axis.
    """
    verdict = Verdict()
    facts = chest_facts(hu, spacing_mm)
    if facts.gap[2] > NO_GAP and min(facts.gap[:2]) < WIDE_GAP:
        verdict.refusal = (
            "the lungs do not lie side by side: the axes are exchanged (an array written with a"
            " matrix that is not its own?); convert it from the DICOM files again (dcm2niix)"
        )
        return verdict
    upside_down = facts.base_wider < BASE_ABOVE
    if facts.spine_behind < SPINE_IN_FRONT:
        also = ", and head and feet," if upside_down else ""
        verdict.refusal = (
            f"the spine lies in front of the lungs: front and back{also} are exchanged in the"
            " header; convert it from the DICOM files again (dcm2niix)"
        )
        return verdict
    if upside_down:
        verdict.notes.append(
            "the lungs are wide above and narrow below: head and feet may be exchanged in the"
            " header; look at the picture"
        )
    if facts.heart_left < HEART_RIGHT:
        verdict.notes.append(
            "the heart lies on the patient's right: left and right may be exchanged in the header"
            " (or it is a dextrocardia)"
        )
    if facts.second_body > SECOND_BODY:
        verdict.notes.append("more than one body in it: the largest is shown; give one patient")
    return verdict


# ---- what the picture shows

FLOOR_REFUSED, FLOOR_TOLD = -0.25, -0.6
"""Darkest part of a picture (its 0.5th percentile). True pictures of every stream have air or
background: in 800 studies of the cohort the darkest pixel of none was above -0.87."""

DARK_REFUSED = -0.8
"""Bright end (99.5th percentile) below which a picture shows nothing."""

FLAT_REFUSED = 0.05
"""Range of values below which a picture is blank."""

NOISE_CORRELATION = 0.3
"""Of neighbouring pixels: anatomy at this resolution has 0.9 and more, noise none."""

NEGATIVE, NEGATIVE_CONTRAST = 0.1, 0.2
"""A film is refused as a negative where its negative is so much more like a frontal film than
itself (correlation), and its middle no more than this brighter than its lung fields. Of 2,048 right
films none is (300 of the cohort, these twice newly acquired, 574 real ones as they are and newly
acquired); of their negatives 97 % of the cohort's and 98 % of the real ones are."""

ON_SIDE, UPSIDE_DOWN = 0.08, 0.15
"""The same of the film turned by 90 and by 180 degrees, for a note. Of right films none of the
cohort's is noted, 0.5 % of the real ones, and 1.9 % of those newly acquired. Of films turned by 90
degrees 97 % and more are noted or refused (some are as good a negative); by 180 degrees 92 % of the
real ones, but few of the cohort's, whose bellies and shoulders are alike at this size."""

LATERAL_CONTRAST = -0.12
"""A middle so much darker than one lung field is noted: in a lateral view the lungs lie in the
middle. 29 of 30 lateral projections of the cohort's patients are noted, and 2 to 4 % of the right
films: those with a white lung."""


NOISY = {"xray": 0.08, "ct": 0.075, "mri": 0.11}
"""Standard deviation of noise, in units of the picture, from which it is told. In training none has
more than 0.07, 0.061 and 0.078 (300 studies each, newly acquired), nor has a real film."""

UNLIKE = 0.3
"""Correlation with a drawing of a frontal film below which a picture is hardly one. None of the
cohort's films is, 1 % of the real ones."""

LEAST_LUNG = 0.03
"""Air between the first and last tissue of a row of a CT slice, as a part of all that is between.
Of 256 slices of the cohort, as they are and newly acquired, none has less."""

LEAST_FILM, WIDEST_FILM = 0.6, 1.8
"""Part of a picture that its film takes, and its width over its height: of 575 real films none is
beyond."""

WHITE = 0.8
"""A film has no such brightness all along its edge."""


def check_picture(picture: np.ndarray, name: str) -> Verdict:
    """Whether a picture in the stream's -1..1 can be one of that stream.

    Args:
        picture: (H, W), -1..1.
        name: an image stream.
    """
    verdict = Verdict()
    picture = np.asarray(picture, dtype=np.float32)
    low, high = (float(v) for v in np.quantile(picture, (0.005, 0.995)))
    lowest, highest = float(picture.min()), float(picture.max())
    span = f"values {lowest:.3g}..{highest:.3g}"
    if highest - lowest < FLAT_REFUSED:
        verdict.refusal = f"it is blank: {span}"
    elif low > FLOOR_REFUSED:
        verdict.refusal = (
            f"it has {span}, as a picture in 0..1 has; needed -1..1, where every true picture has"
            " values near -1: multiply by 2 and subtract 1"
        )
    elif high < DARK_REFUSED:
        verdict.refusal = f"it is almost black: {span}, and 99.5 % below {high:.2f}"
    if verdict.refusal:
        return verdict
    if low > FLOOR_TOLD:
        verdict.notes.append(
            f"no air or background: {span}; is the picture scaled to -1..1 as the stream needs?"
        )
    if neighbour_correlation(picture) < NOISE_CORRELATION:
        verdict.notes.append("neighbouring pixels have nothing in common: noise, not a picture?")
    noise = noise_level(picture)
    if noise > NOISY[stream(name).modality]:
        verdict.notes.append(
            f"very noisy: neighbouring pixels differ by {_in_unit(noise, name)} by chance, more"
            " than in any picture of the training; what is small cannot be trusted"
        )
    plates = plate_share(picture)
    if plates:
        verdict.notes.append(
            f"a rectangle of one grey covers {max(plates, 0.01):.0%} of it (a label, a box over a"
            " name?): the model takes it for anatomy; give the picture without it"
        )
    if name == "xray" and float(np.quantile(_edge(picture), 1 - AIR_AROUND)) > WHITE:
        verdict.notes.append("a white border: cut it off, or the film is a negative")
    if name == "xray":
        _check_film(picture, verdict)
    if name == "ct" and _share_of_lung(picture) < LEAST_LUNG:
        verdict.notes.append(
            "no lungs in it: another part of the body, or another slice? the model knows chests"
        )
    return verdict


def _in_unit(noise: float, name: str) -> str:
    if name == "ct":
        low, high = unit_to_hu(torch.tensor([0.0, noise]))
        return f"{float(high - low):.0f} HU"
    return f"{noise / 2:.0%} of the range"


def _share_of_lung(picture: np.ndarray) -> float:
    """Part of the body in a CT slice (H, W; -1..1) that is air and not at its edge."""
    hu = unit_to_hu(torch.from_numpy(picture)).numpy()
    solid = ndimage.binary_opening(hu > AIR_HU)  # without the table
    if not solid.any():
        return 0.0
    # Between the first and the last tissue of a row: the lungs may be cut at top and bottom.
    right, left = (np.logical_or.accumulate(x, axis=1) for x in (solid, solid[:, ::-1]))
    inside = right & left[:, ::-1]
    return float((inside & (hu < AIR_HU)).sum() / inside.sum())


def neighbour_correlation(picture: np.ndarray) -> float:
    """Of the pixels (rows, columns) with those beside and below them; 1 where all are one value."""
    x = picture - picture.mean()
    power = float((x * x).mean())
    if not power > 0:
        return 1.0
    beside = float((x[:, 1:] * x[:, :-1]).mean())
    below = float((x[1:] * x[:-1]).mean())
    value = min(beside, below) / power
    return value if math.isfinite(value) else 0.0


def _check_film(picture: np.ndarray, verdict: Verdict) -> None:
    """Add to ``verdict`` how a chest film lies, if not upright and frontal."""
    pose, contrast = film_pose(picture), lung_contrast(picture)
    turned = pose.on_side - pose.upright > ON_SIDE
    if pose.negative - pose.upright > NEGATIVE and contrast < NEGATIVE_CONTRAST:
        verdict.refusal = (
            "it is a negative, or does not stand upright: give it with air and lungs dark, bones"
            " bright and the head at the top; of a DICOM file see whether the"
            " PhotometricInterpretation is right"
        )
    elif turned and pose.on_side >= pose.upside_down:
        verdict.notes.append("seems to lie on its side: turn it so that the head is at the top")
    elif pose.upside_down - pose.upright > UPSIDE_DOWN:
        verdict.notes.append("seems to be upside down: turn it so that the head is at the top")
    elif films_beside(picture):
        verdict.notes.append("two films in one picture? give one")
    elif contrast < LATERAL_CONTRAST:
        verdict.notes.append(
            "the middle is darker than a lung: a lateral view, or a white lung? the model knows"
            " frontal films only"
        )
    elif heart_side(picture) == "right":
        verdict.notes.append(
            "the heart seems to lie on the patient's right: a mirrored film (or a dextrocardia)?"
            " the patient's right must be on the picture's left"
        )
    elif pose.upright < UNLIKE:
        verdict.notes.append("hardly like a frontal chest film: is it one, and the whole picture?")


def check_film_frame(unit: np.ndarray) -> Verdict:
    """Whether a radiograph fills its picture.

    Args:
        unit: (rows, columns) of the whole file, -1..1, not yet padded to a square.
    """
    verdict = Verdict()
    rows, columns = unit.shape
    share = without_frame(unit).size / unit.size
    if columns > WIDEST_FILM * rows:
        verdict.notes.append(
            f"{columns / rows:.1f} times as wide as high: two films side by side? give one"
        )
    elif share < LEAST_FILM:
        verdict.notes.append(
            f"the film takes {share:.0%} of the picture (a screenshot?): cut it to the film"
        )
    return verdict
