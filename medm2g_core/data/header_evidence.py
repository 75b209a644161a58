"""What a header says for and against a stream: modality, view, sequence times, image type and
words, each weighed in points."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medm2g_core.data.headers import number

__all__ = ["Evidence", "evidence", "has_word", "looks_like"]

FILE_NAME_WEIGHT = -3.0
"""The most that the name of a file says against a stream: a note, never a refusal."""

MR_STREAMS = ("mri_t1", "mri_t2", "mri_pd", "mri_flair")


@dataclass(frozen=True)
class Evidence:
    """One thing that speaks for (points above 0) or against (below) the stream."""

    points: float
    words: str


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
    return list(dict.fromkeys(out))  # what tag and description both say counts once


def _types(facts: Mapping[str, Any]) -> set[str]:
    value = facts.get("ImageType", ())
    parts = value if isinstance(value, tuple) else (value,)
    return {str(p).strip().upper() for p in parts}


def _description(facts: Mapping[str, Any]) -> str:
    tags = ("SeriesDescription", "ProtocolName", "SequenceName")
    return " ".join(str(facts[t]) for t in tags if t in facts).lower()


def has_word(words: str, pattern: str) -> bool:
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
    if has_word(words, _SCOUT):
        out.append(
            Evidence(-10, "a scout (localizer): a projection like a radiograph, not a slice")
        )
    if has_word(words, _PROJECTION):
        out.append(
            Evidence(
                -10, "a projection or rendering (MIP, VRT), not a slice; give the source images"
            )
        )
    if has_word(words, _CT_SHORT):
        out.append(Evidence(-3, "a bolus or dose series"))
    if has_word(words, _CHEST):
        out.append(Evidence(0.5, "a chest by its description"))
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
        if not has_word(words, _CHEST):
            out.append(Evidence(0.5, f"body part {part}"))
    elif part:
        out.append(Evidence(-1, f"BodyPartExamined is {part}; the model was trained on chests"))
    if has_word(str(facts.get("ConvolutionKernel", "")).lower(), _SHARP):
        out.append(Evidence(-0.9, "a sharp kernel"))
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
    if has_word(words, _LATERAL):
        return [Evidence(-10, "a lateral view by its description; give the PA or AP film")]
    return [Evidence(1, "frontal by its description")] if has_word(words, _FRONTAL) else []


def _of_film(facts: Mapping[str, Any]) -> list[Evidence]:
    out = []
    view = str(facts.get("ViewPosition", "")).strip().lower()
    column = str((facts.get("PatientOrientation") or ("",))[0])[:1].upper()
    if view:
        if has_word(view, _FRONTAL):
            out.append(Evidence(2 if has_word(view, _POSTERIOR) else 1.5, f"view {view.upper()}"))
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
    if has_word(words, _MR_OTHER):
        return [Evidence(-4, "no plain T1, T2, PD or FLAIR by its description")]
    out = []
    called = _called(words)
    if called:
        kinds = " or ".join(sorted(c.removeprefix("mri_").upper() for c in called))
        out.append(Evidence(3 if name in called else -3, f"{kinds} by its name"))
    if has_word(words, r"gd|gado\w*|post|ce|km|contrast"):
        out.append(Evidence(-0.5, "with contrast agent"))
    return out


_DIXON: tuple[tuple[set[str], float, str], ...] = (
    ({"IN_PHASE", "IP"}, 0.2, "Dixon, in phase"),
    ({"WATER", "W"}, -0.2, "Dixon, water alone"),
    ({"OUT_PHASE", "OPP_PHASE", "OP"}, -1.0, "Dixon, out of phase: dark edges"),
    ({"FAT", "F"}, -4.0, "Dixon, fat alone"),
)
"""Of one Dixon acquisition the image in phase is the ordinary one."""


def _of_mr(facts: Mapping[str, Any], types: set[str], words: str) -> list[Evidence]:
    out = []
    if types & _PROJECTION_TYPES - {"3D"}:
        out.append(Evidence(-10, "a projection (MIP), not a slice; give the source images"))
    if types & _MAP_TYPES:
        what = ", ".join(sorted(types & _MAP_TYPES))
        out.append(
            Evidence(-10, f"ImageType {what}: a map or a phase image, not an anatomical one")
        )
    for kinds, points, said in _DIXON:
        if types & kinds:
            out.append(Evidence(points, said))
    b_value = number(facts.get("DiffusionBValue"))
    if b_value is not None and b_value > DIFFUSION_B:
        out.append(Evidence(-10, f"diffusion-weighted (b = {b_value:g})"))
    elif b_value is not None:
        out.append(Evidence(-1, "of a diffusion series (b = 0)"))
    if "LOCALIZER" in types and not has_word(words, _MR_OTHER):
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
    flair = has_word(words, _FLAIR_NAMES)
    t1 = has_word(words, _T1_NAMES)
    if flair and not t1:
        return {"mri_flair"}
    for stream_name, pattern in (("mri_t2", _T2_NAMES), ("mri_pd", _PD_NAMES)):
        if has_word(words, pattern):
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
