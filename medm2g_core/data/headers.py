"""What a DICOM header says of an image or of one frame: the facts by which series are parted and
chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

__all__ = ["XRAY_MODALITIES", "facts_of_frame", "functional", "number", "sidecar_facts"]

XRAY_MODALITIES = frozenset({"CR", "DX", "DR", "RG", "RF", "XA", "PX"})

_PLAIN = (
    "Modality",
    "PatientID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "ProtocolName",
    "SequenceName",
    "BodyPartExamined",
    "ViewPosition",
    "PatientOrientation",
    "ScanningSequence",
    "KVP",
    "ConvolutionKernel",
    "SliceThickness",
    "AcquisitionNumber",
    "InstanceNumber",
    "AcquisitionTime",
    "TriggerTime",
    "TemporalPositionIdentifier",
    "NominalPercentageOfCardiacPhase",
    "EchoNumbers",
    "ImageComments",
    "ContrastBolusAgent",
    "BurnedInAnnotation",
    "PresentationIntentType",
    "Rows",
    "Columns",
)
_OF_FRAMES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "ImageType": (
        ("MRImageFrameTypeSequence", "FrameType"),
        ("CTImageFrameTypeSequence", "FrameType"),
    ),
    "EchoTime": (("MREchoSequence", "EffectiveEchoTime"),),
    "RepetitionTime": (("MRTimingAndRelatedParametersSequence", "RepetitionTime"),),
    "FlipAngle": (("MRTimingAndRelatedParametersSequence", "FlipAngle"),),
    "InversionTime": (("MRModifierSequence", "InversionTimes"),),
    "DiffusionBValue": (("MRDiffusionSequence", "DiffusionBValue"),),
    "DiffusionGradientOrientation": (
        ("MRDiffusionSequence", "DiffusionGradientDirectionSequence"),
    ),
    "StackID": (("FrameContentSequence", "StackID"),),
    "TemporalPositionIndex": (("FrameContentSequence", "TemporalPositionIndex"),),
    "FrameAcquisitionNumber": (("FrameContentSequence", "FrameAcquisitionNumber"),),
    "FrameAcquisitionDateTime": (("FrameContentSequence", "FrameAcquisitionDateTime"),),
}
"""Keyword of a single-frame object -> where an enhanced multi-frame object has the same."""

_KVP_OF_FRAME = ("CTXRayDetailsSequence", "KVP")
_KERNEL_OF_FRAME = ("CTReconstructionSequence", "ConvolutionKernel")
_SIEMENS_B, _GE_B = (0x0019, 0x100C), (0x0043, 0x1039)
_GE_B_OFFSET = 1_000_000_000  # GE adds this to some of its b-values


def functional(ds: Dataset, frame: int, group: str, tag: str) -> Any:
    """A value of an enhanced multi-frame object's functional groups (own frame first, then shared),
    or ``None``."""
    per = ds.get("PerFrameFunctionalGroupsSequence") or []
    for item in ([per[frame]] if frame < len(per) else []) + list(
        ds.get("SharedFunctionalGroupsSequence") or []
    ):
        inner = item.get(group)
        if inner and tag in inner[0]:
            return inner[0][tag].value
    return None


def facts_of_frame(ds: Dataset, frame: int = 0) -> dict[str, Any]:
    """Keyword -> value of what is known of one frame; sequences of values are tuples, words are
    stripped."""
    found = {tag: ds.get(tag) for tag in _PLAIN}
    for tag, places in _OF_FRAMES.items():
        values = [functional(ds, frame, *place) for place in places]
        own = next((v for v in values if v is not None), None)
        found[tag] = own if own is not None else ds.get(tag)
    for tag, place in (("KVP", _KVP_OF_FRAME), ("ConvolutionKernel", _KERNEL_OF_FRAME)):
        if found[tag] is None:
            found[tag] = functional(ds, frame, *place)
    if found["DiffusionBValue"] is None:
        found["DiffusionBValue"] = _private_b_value(ds)
    view = ds.get("ViewCodeSequence")
    if view and not found["ViewPosition"]:
        found["ViewPosition"] = view[0].get("CodeMeaning")
    return {tag: v for tag, value in found.items() if (v := _plain(value)) not in (None, "", ())}


def _private_b_value(ds: Dataset) -> Any:
    maker = str(ds.get("Manufacturer", "")).upper()
    if "SIEMENS" in maker and _SIEMENS_B in ds:
        return number(ds[_SIEMENS_B].value)
    if maker.startswith("GE") and _GE_B in ds:
        value = ds[_GE_B].value
        first = number(value[0] if isinstance(value, pydicom.multival.MultiValue) else value)
        return None if first is None else first % _GE_B_OFFSET
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, pydicom.sequence.Sequence):
        return str(value[0]) if value else None
    if isinstance(value, pydicom.multival.MultiValue | list | tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, pydicom.valuerep.DSfloat | pydicom.valuerep.DSdecimal | float):
        return float(value)
    if isinstance(value, int | np.integer):
        return int(value)
    return None if value is None else str(value).strip()


def number(value: Any) -> float | None:
    """A fact as a finite number, the first of several; ``None`` if it is none."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    try:
        got = float(value)
    except (TypeError, ValueError):
        return None
    return got if np.isfinite(got) else None


_SECONDS = ("RepetitionTime", "EchoTime", "InversionTime")
_SIDECAR = (
    *_SECONDS,
    "Modality",
    "ImageType",
    "SeriesDescription",
    "ProtocolName",
    "SequenceName",
    "ScanningSequence",
    "BodyPartExamined",
    "ConvolutionKernel",
    "ViewPosition",
)


def sidecar_facts(path: Path) -> dict[str, Any]:
    """The facts of the JSON file that dcm2niix and BIDS put beside a NIfTI file (times there are in
    seconds); empty without one that can be read."""
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    beside = path.with_name(stem + ".json")
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    facts: dict[str, Any] = {}
    for tag in _SIDECAR:
        value = said.get(tag)
        if tag in _SECONDS:
            seconds = number(value)
            if seconds is not None:
                facts[tag] = seconds * 1000
        elif isinstance(value, list):
            facts[tag] = tuple(str(v) for v in value)
        elif value not in (None, ""):
            facts[tag] = str(value)
    return facts
