"""Can this be that stream? One check for files, data sets and the pipeline, with three answers:
fine, a note, or a refusal that says what to do.

`evidence` weighs what a header says; `check_header` judges it. `check_values` judges the values of
a slice before they are scaled, `check_size` the millimetres of what it shows, and `check_picture`
the picture in -1..1 that a model would see, wherever it comes from.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medm2g_core.data.headers import number

__all__ = [
    "Evidence",
    "Verdict",
    "check_header",
    "check_picture",
    "check_size",
    "check_values",
    "evidence",
    "looks_like",
]

REFUSE = -5.0
"""Points below which a picture is not taken for the stream: its kind contradicts it, or its
sequence times and its name both do."""

REMARK = -1.0
"""Points of one piece of evidence from which it is told."""

FILE_NAME_WEIGHT = -3.0
"""The most that the name of a file says against a stream: a note, never a refusal."""

MR_STREAMS = ("mri_t1", "mri_t2", "mri_pd", "mri_flair")


@dataclass(frozen=True)
class Evidence:
    """One thing that speaks for (points above 0) or against (below) the stream."""

    points: float
    words: str


@dataclass
class Verdict:
    """What a check found.

    Attributes:
        notes: what a user should know, one phrase each.
        refusal: why the picture cannot be used and what to do; empty if it can.
    """

    notes: list[str] = field(default_factory=list)
    refusal: str = ""


# ---- what the header says


def evidence(facts: Mapping[str, Any], name: str) -> list[Evidence]:
    """What a header says for and against a stream.

    Args:
        facts: see `medm2g_core.data.headers.facts_of_frame`; may be empty.
        name: an image stream.
    """
    types = _types(facts)
    words = _description(facts)
    if name == "ct":
        out = _of_ct(facts, types, words) + _ct_words(words)
    elif name == "xray":
        out = _of_film(facts) + ([] if facts.get("ViewPosition") else _film_words(words))
    else:
        out = _of_mr(facts, types, words) + _mr_words(words, name)
        points, said = _sequence(facts, name)
        if points:
            out.append(Evidence(points, said))
    if not words and "FileName" in facts:  # a file's name is weaker than a header
        file = str(facts["FileName"]).lower()
        by_name = {"ct": _ct_words, "xray": _film_words}.get(name) or (lambda f: _mr_words(f, name))
        out += [
            Evidence(min(1.0, max(e.points, FILE_NAME_WEIGHT)), f"{e.words} (its file's name)")
            for e in by_name(file)
        ]
    if "MOSAIC" in types:
        out.append(
            Evidence(-10, "a Siemens mosaic, many slices tiled in one image; convert it (dcm2niix)")
        )
    if types & {"SCREEN SAVE", "SCREENSHOT"}:
        out.append(Evidence(-10, "a screen save, no image of a scanner"))
    return out


def _types(facts: Mapping[str, Any]) -> set[str]:
    value = facts.get("ImageType", ())
    parts = value if isinstance(value, tuple) else (value,)
    return {str(p).strip().upper() for p in parts}


def _description(facts: Mapping[str, Any]) -> str:
    tags = ("SeriesDescription", "ProtocolName", "SequenceName")
    return " ".join(str(facts[t]) for t in tags if t in facts).lower()


def _has(words: str, pattern: str) -> bool:
    """Whether a description holds one of these, as a word of its own (an underscore parts words
    too)."""
    return re.search(rf"(?<![a-z0-9])(?:{pattern})(?![a-z0-9])", words) is not None


_SCOUT = r"scouts?|topograms?|surview|scano(?:gram)?|localizers?|localisers?|loc|pilot|3.?plane.*"
_PROJECTION_TYPES = {"MIP", "MINIP", "MNIP", "PROJECTION IMAGE", "VRT", "VOLUME_RENDERED", "3D"}
_PROJECTION = r"mips?|minips?|vrt|3d.?vr|volume.?render\w*|thick.?mip"
_CT_SHORT = r"(?:pre)?monitoring|premonit\w*|smart.?prep|bolus|tracker|test.?bolus|dose.*"
_CHEST = r"chest|thorax|thoracic|lungs?|pulmo\w*|torso|ctpa|heart|cardiac|ribs?|mediastinum|tap|cap"
_CHEST += r"|t[o\u00f3]rax|pecho|poumons?|poitrine|brust\w*|lunge\w*|pulm\w*"
_NO_PART = {
    "",
    "UNKNOWN",
    "OTHER",
    "NONE",
    "ANY",
    "UNDEFINED",
    "WHOLEBODY",
    "WHOLE BODY",
    "DEFAULT",
}
_OTHER_PARTS = (
    r"hand|wrist|finger|thumb|elbow|shoulder|clavic|humerus|forearm|arm|hip|pelvi|femur|thigh|knee"
    r"|patella|leg|tibia|ankle|foot|feet|toe|heel|calcan|abdomen|abdo|kub|head|skull|neck|spine"
    r"|sacrum|coccyx|breast|jaw|mandib|teeth|tooth|dental|sinus|nasal|orbit|extremity|brain"
)
_SHARP = r"b[678]\d[a-z]?|br[67]\d\w*|bl[67]\d\w*|bone\w*|edge|lung|yc|yd|fc5\d|fc8\d"


def _body_part(facts: Mapping[str, Any]) -> str:
    part = str(facts.get("BodyPartExamined", "")).strip().upper()
    return "" if part in _NO_PART else part


def _ct_words(words: str) -> list[Evidence]:
    out = []
    if _has(words, _SCOUT):
        out.append(
            Evidence(-10, "a scout (localizer): a projection like a radiograph, not a slice")
        )
    if _has(words, _PROJECTION):
        out.append(
            Evidence(
                -10, "a projection or rendering (MIP, VRT), not a slice; give the source images"
            )
        )
    if _has(words, _CT_SHORT):
        out.append(Evidence(-3, "a bolus or dose series"))
    if _has(words, _CHEST):
        out.append(Evidence(1, "a chest by its description"))
    return out


def _of_ct(facts: Mapping[str, Any], types: set[str], words: str) -> list[Evidence]:
    out = []
    if types & {"LOCALIZER", "SCOUT"}:
        out += _ct_words("scout")
    if types & _PROJECTION_TYPES:
        out += _ct_words("mip")
    if "AXIAL" in types:
        out.append(Evidence(0.5, "axial images"))
    part = _body_part(facts)
    if part and re.search(rf"\b(?:{_CHEST})", part.lower()):
        if not _has(words, _CHEST):
            out.append(Evidence(1, f"body part {part}"))
    elif part:
        out.append(Evidence(-1, f"BodyPartExamined is {part}; the model was trained on chests"))
    if _has(str(facts.get("ConvolutionKernel", "")).lower(), _SHARP):
        out.append(Evidence(-0.3, "a sharp kernel"))
    kvp = number(facts.get("KVP"))
    if kvp:
        out.append(Evidence(-abs(kvp - USUAL_KVP) / 1000, f"{kvp:g} kVp"))
    return out


USUAL_KVP = 120.0
"""Of two tube voltages the one nearer to the usual one is taken: contrast depends on it."""

_POSTERIOR = r"pa|p\.a\.?|postero.?anterior\w*"
_FRONTAL = rf"{_POSTERIOR}|ap|a\.p\.?|frontal|antero.?posterior\w*"
_LATERAL = r"lat(?:eral)?|ll|rl|lld|rld|llat|rlat|left lateral|right lateral"


def _film_words(words: str) -> list[Evidence]:
    if _has(words, _LATERAL):
        return [Evidence(-10, "a lateral view by its description; give the PA or AP film")]
    return [Evidence(1, "frontal by its description")] if _has(words, _FRONTAL) else []


def _of_film(facts: Mapping[str, Any]) -> list[Evidence]:
    out = []
    view = str(facts.get("ViewPosition", "")).strip().lower()
    column = str((facts.get("PatientOrientation") or ("",))[0])[:1].upper()
    if view:
        if _has(view, _FRONTAL):
            out.append(Evidence(2 if _has(view, _POSTERIOR) else 1.5, f"view {view.upper()}"))
        else:
            out.append(
                Evidence(
                    -10,
                    f"ViewPosition is {view.upper()}, no frontal view; the model knows only PA and"
                    " AP films",
                )
            )
    elif column in ("A", "P"):
        out.append(Evidence(-10, "PatientOrientation says a lateral view; give the PA or AP film"))
    part = _body_part(facts)
    if part and re.search(rf"\b(?:{_CHEST})", part.lower()):
        out.append(Evidence(1, f"body part {part}"))
    elif part:
        known = re.search(_OTHER_PARTS, part.lower())
        words = f"BodyPartExamined is {part}; this stream is a chest film, give one"
        out.append(Evidence(-10 if known else -2, words))
    modality = facts.get("Modality")
    if modality == "PX":
        out.append(Evidence(-10, "a panoramic dental film"))
    elif modality in ("XA", "RF"):
        out.append(Evidence(-3, "from angiography or fluoroscopy, not a film"))
    if str(facts.get("PresentationIntentType", "")).upper() == "FOR PROCESSING":
        out.append(Evidence(-2, "raw detector values (FOR PROCESSING), not those for display"))
    return out


_MR_OTHER = (
    r"adc|dwi|dw|diff\w*|trace\w*|e?ep2d\w*|fa|dti|perf\w*|pwi|dsc|dce|bold|fmri|rsfmri|asl|pasl|pcasl"
    r"|swi|swan|qsm|tof|mra|mrv|angio\w*|field.?map\w*|b0map|screen.*|calib\w*"
    r"|spectro\w*|mrs|elasto\w*|cine|trufi\w*|ssfp|fiesta|t2.?star\w*|t2\*.*|t1map|t2map"
    rf"|{_SCOUT}|{_PROJECTION}"
)
_MAP_TYPES = {"ADC", "FA", "TRACEW", "DIFFUSION", "PHASE", "P", "PHASE MAP", "I", "IMAGINARY"}
_MAP_TYPES |= {"CBF", "CBV", "MTT", "TTP", "RCBF", "SUBTRACTION", "SUB", "VELOCITY"}
_T1_NAMES = (
    r"t1w?|t1.?(?:se|tse|fse|gre|mpr\w*|vibe|tfl|w.*)|mp.?rage|mp2rage|bravo|f?spgr|vibe|lava"
)
_T2_NAMES = r"t2w?|t2.?(?:se|tse|fse|blade|propeller|haste|space|w.*)|blade|haste"
_PD_NAMES = r"pdw?|dp|proton.?density|proton|pd.?(?:t?se|fse|w.*)|rho"
_FLAIR_NAMES = r"(?:t2.?)?flair\w*|tirm|dark.?fluid\w*|da.?fl\w*"
_BRAIN = r"brain|head|skull|neuro|iac|orbit\w*|pituitary|cranium"


def _mr_words(words: str, name: str) -> list[Evidence]:
    if _has(words, _MR_OTHER):
        return [Evidence(-4, "no plain T1, T2, PD or FLAIR by its description")]
    out = []
    called = _called(words)
    if called:
        kinds = " or ".join(sorted(c.removeprefix("mri_").upper() for c in called))
        out.append(Evidence(3 if name in called else -3, f"{kinds} by its name"))
    if _has(words, r"gd|gado\w*|post|ce|km|contrast"):
        out.append(Evidence(-0.5, "with contrast agent"))
    return out


def _of_mr(facts: Mapping[str, Any], types: set[str], words: str) -> list[Evidence]:
    out = []
    if types & _PROJECTION_TYPES - {"3D"}:
        out.append(Evidence(-10, "a projection (MIP), not a slice; give the source images"))
    if types & _MAP_TYPES:
        what = ", ".join(sorted(types & _MAP_TYPES))
        out.append(
            Evidence(-10, f"ImageType {what}: a map or a phase image, not an anatomical one")
        )
    b_value = number(facts.get("DiffusionBValue"))
    if b_value is not None and b_value > DIFFUSION_B:
        out.append(Evidence(-10, f"diffusion-weighted (b = {b_value:g})"))
    elif b_value is not None:
        out.append(Evidence(-1, "of a diffusion series (b = 0)"))
    if "LOCALIZER" in types and not _has(words, _MR_OTHER):
        out.append(Evidence(-4, "a localizer"))
    part = _body_part(facts)
    if part and not re.search(rf"\b(?:{_CHEST}|{_BRAIN})", part.lower()):
        out.append(Evidence(-1, f"BodyPartExamined is {part}; the model knows brains and chests"))
    if facts.get("ContrastBolusAgent"):
        out.append(Evidence(-0.5, "with contrast agent"))
    return out


DIFFUSION_B = 50.0
"""b-value in s/mm2 from which an image is weighted by diffusion."""


def _called(words: str) -> set[str]:
    """MR streams that a description names."""
    found = set()
    flair = _has(words, _FLAIR_NAMES)
    t1 = _has(words, _T1_NAMES)
    if flair and not t1:
        return {"mri_flair"}
    for stream_name, pattern in (("mri_t2", _T2_NAMES), ("mri_pd", _PD_NAMES)):
        if _has(words, pattern):
            found.add(stream_name)
    return found | ({"mri_t1"} if t1 else set())


# Times in ms. Usual clinical ranges, as in Bernstein, King, Zhou: Handbook of MRI Pulse Sequences
# (2004), ch. 14; wide, because what lies between says nothing.
_FLAIR_TI, _STIR_TI = 1500.0, 300.0
_LONG_TE, _SHORT_TE, _GRADIENT_TE = 60.0, 45.0, 8.0
_LONG_TR, _SHORT_TR = 1500.0, 1200.0


def _sequence(facts: Mapping[str, Any], name: str) -> tuple[float, str]:
    """What repetition, echo and inversion time say for a stream."""
    tr, te, ti = (number(facts.get(t)) for t in ("RepetitionTime", "EchoTime", "InversionTime"))
    tr, te, ti = (v if v is not None and v > 0 else None for v in (tr, te, ti))
    times = ", ".join(
        f"{n} {v:.4g} ms" for n, v in (("TR", tr), ("TE", te), ("TI", ti)) if v is not None
    )
    inverted = "IR" in str(facts.get("ScanningSequence", ""))
    table: dict[str, float] = {}
    if ti is not None and ti >= _FLAIR_TI and (te is None or te >= _SHORT_TE):
        table, kind = {"mri_flair": 3, "": -5}, "a FLAIR"
    elif ti is not None and _STIR_TI < ti < _FLAIR_TI and (te is None or te < _SHORT_TE):
        table, kind = {"mri_t1": 3, "": -3}, "T1-weighted with inversion"
    elif ti is not None and ti <= _STIR_TI and te is not None and te >= _SHORT_TE:
        table, kind = {"mri_t2": 1, "": -3}, "a STIR"
    elif te is not None and te >= _LONG_TE:
        if tr is not None and tr < _SHORT_TR:
            table, kind = {"": -1}, "neither T1 nor T2"
        else:
            maybe = {"mri_flair": 0.0 if inverted or tr is None or tr > 5000 else -1.0}
            table, kind = {"mri_t2": 3, "": -3} | maybe, "T2-weighted"
    elif tr is not None and tr < _SHORT_TR and (te is None or te < _SHORT_TE):
        table, kind = {"mri_t1": 2, "": -3}, "T1-weighted"
    elif tr is not None and te is not None and tr >= _LONG_TR and te < _GRADIENT_TE:
        table, kind = {"mri_t1": 1, "mri_pd": 0, "": -3}, "a prepared gradient echo (T1)"
    elif tr is not None and te is not None and tr >= _LONG_TR and te < _SHORT_TE:
        table, kind = {"mri_pd": 3, "": -3}, "proton density"
    elif te is not None and tr is None and te < _SHORT_TE:
        table, kind = {"mri_t1": 0.5, "mri_pd": 0.5, "": -3}, "T1 or proton density"
    else:
        return 0.0, ""
    return table.get(name, table[""]), f"{kind} by {times}"


def looks_like(facts: Mapping[str, Any]) -> str:
    """The MR stream that a header fits best, or ``""``."""
    points = {n: sum(e.points for e in evidence(facts, n)) for n in MR_STREAMS}
    best = max(points, key=lambda n: points[n])
    return best if points[best] > 0 else ""


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
        verdict.refusal = f"its header says {intent!r}: statistics or labels, not an image"
        return verdict
    distinct = np.unique(values[:: max(1, len(values) // 512)])
    whole = bool((distinct == np.rint(distinct)).all())
    if name == "ct":
        return verdict  # the check of Hounsfield units sees these
    if len(distinct) <= 2 and distinct[-1] in MASK_VALUES:
        verdict.refusal = (
            f"only {len(distinct)} different values ({distinct[0]:g}, {distinct[-1]:g}): a mask,"
            " not an image"
        )
    elif whole and distinct[0] >= 0:
        said = f"only {len(distinct)} different values, up to {distinct[-1]:g}"
        named = _has(str(facts.get("FileName", "")).lower(), _MASK_NAME)
        consecutive = len(distinct) <= FEW_VALUES and distinct[-1] < 2 * len(distinct)
        if consecutive or (named and len(distinct) <= MANY_LABELS):
            verdict.refusal = f"{said}: a label map, not an image"
        elif len(distinct) <= FEW_VALUES:
            verdict.notes.append(f"{said}: is it a label map?")
    if not name.startswith("mri_") or verdict.refusal:
        return verdict
    edge = _edge(values)
    low, high = np.quantile(values, (0.005, 0.995))
    level = (float(np.median(edge)) - low) / (high - low) if high > low else 0.0
    below = float((values < min(0.0, 0.05 * low)).mean()) if low < 0 else 0.0
    if below > NEGATIVE_SHARE and level > BACKGROUND_LEVEL:
        verdict.refusal = (
            "values on both sides of the background's: a statistical map, a phase or difference"
            " image, or a normalised one; give the magnitude image as the scanner made it"
        )
    return verdict


SMALLEST_MM = {"ct": 80.0, "mri": 40.0}
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
        verdict.refusal = (
            f"the {what} measures {largest:.3g} mm; check the pixel spacing in the header (cm"
            " or inches written as mm?)"
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


AIR_HU = -500.0


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

NEGATIVE_CONTRAST = -0.15
"""Mediastinum minus lungs below which a film is taken for a negative."""


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
    if _correlation(picture) < NOISE_CORRELATION:
        verdict.notes.append("neighbouring pixels have nothing in common: noise, not a picture?")
    if name == "xray" and _lung_contrast(picture) < NEGATIVE_CONTRAST:
        verdict.notes.append(
            "looks like a negative (the lungs are brighter than the middle): give it with bone"
            " bright"
        )
    return verdict


def _correlation(picture: np.ndarray) -> float:
    """Of pixels with those beside and below them."""
    x = picture - picture.mean()
    power = float((x * x).mean())
    if not power > 0:
        return 1.0
    beside = float((x[:, 1:] * x[:, :-1]).mean())
    below = float((x[1:] * x[:-1]).mean())
    value = min(beside, below) / power
    return value if math.isfinite(value) else 0.0


def _lung_contrast(picture: np.ndarray) -> float:
    """Middle of a frontal chest film minus its lung fields, in the picture's units."""
    rows, columns = picture.shape
    band = picture[round(0.25 * rows) : round(0.6 * rows)]
    middle = band[:, round(0.45 * columns) : round(0.55 * columns)]
    sides = [
        band[:, round(a * columns) : round(b * columns)] for a, b in ((0.2, 0.38), (0.62, 0.8))
    ]
    return float(np.median(middle)) - float(max(np.median(s) for s in sides))
