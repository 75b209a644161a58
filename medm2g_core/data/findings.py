"""The findings that a study can have, and what each is described by.

One table for everything that speaks of findings: the pathology that is drawn into the anatomy, the
report grammar, the labeller, and the scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from medm2g_core.streams import Finding

__all__ = [
    "BRAIN",
    "CHEST",
    "FINDINGS",
    "FindingKind",
    "check_finding",
    "findings_of",
    "size_class",
]


@dataclass(frozen=True)
class FindingKind:
    """What a finding can be.

    Attributes:
        name: key, snake_case.
        title: how people write it.
        region: ``"chest"`` or ``"brain"``.
        sides: allowed values of `Finding.side`.
        locations: allowed values of `Finding.location`.
        sizes: allowed values of `Finding.size`.
        millimetres: inclusive range of `Finding.size_mm`, or ``None`` where no diameter is
            reported.
    """

    name: str
    title: str
    region: str
    sides: tuple[str, ...] = ("",)
    locations: tuple[str, ...] = ("",)
    sizes: tuple[str, ...] = ("",)
    millimetres: tuple[int, int] | None = None


_SIZES = ("small", "moderate", "large")
_LR = ("left", "right")
_LOBES = ("upper", "middle", "lower")  # "middle" exists on the right only
_BRAIN_LOBES = ("frontal", "parietal", "temporal", "occipital")

FINDINGS: Mapping[str, FindingKind] = MappingProxyType(
    {
        k.name: k
        for k in (
            FindingKind(
                "pleural_effusion", "pleural effusion", "chest", (*_LR, "both"), sizes=_SIZES
            ),
            FindingKind("pneumothorax", "pneumothorax", "chest", _LR, sizes=_SIZES),
            FindingKind("cardiomegaly", "cardiomegaly", "chest", sizes=_SIZES),
            FindingKind("pulmonary_edema", "pulmonary edema", "chest", sizes=_SIZES),
            FindingKind("consolidation", "consolidation", "chest", _LR, _LOBES),
            FindingKind("atelectasis", "atelectasis", "chest", _LR, _LOBES),
            FindingKind("nodule", "nodule", "chest", _LR, _LOBES, ("small", "moderate"), (8, 29)),
            FindingKind("mass", "mass", "chest", _LR, _LOBES, ("moderate", "large"), (30, 70)),
            FindingKind("tumor", "tumor", "brain", _LR, _BRAIN_LOBES, _SIZES, (12, 60)),
            FindingKind("vasogenic_edema", "vasogenic edema", "brain", _LR, _BRAIN_LOBES, _SIZES),
            FindingKind("white_matter_lesions", "white matter lesions", "brain", sizes=_SIZES),
            FindingKind("ventriculomegaly", "ventriculomegaly", "brain", sizes=_SIZES),
        )
    }
)
CHEST: tuple[str, ...] = tuple(n for n, k in FINDINGS.items() if k.region == "chest")
BRAIN: tuple[str, ...] = tuple(n for n, k in FINDINGS.items() if k.region == "brain")

_MM_CLASSES = {  # upper bounds (mm, exclusive) of the size classes
    "nodule": ((18, "small"), (30, "moderate")),
    "mass": ((48, "moderate"), (71, "large")),
    "tumor": ((24, "small"), (40, "moderate"), (61, "large")),
}


def size_class(name: str, size_mm: int) -> str:
    """Size class of a measured finding (nodule, mass, tumor) from its diameter in mm."""
    for bound, label in _MM_CLASSES[name]:
        if size_mm < bound:
            return label
    raise ValueError(f"{name} of {size_mm} mm is outside {FINDINGS[name].millimetres}")


def findings_of(region: str) -> tuple[str, ...]:
    """Names of the findings of a region, in a fixed order."""
    return tuple(n for n, k in FINDINGS.items() if k.region == region)


def check_finding(finding: Finding) -> Finding:
    """Refuse a finding whose side, location or size its kind does not have."""
    kind = FINDINGS.get(finding.name)
    if kind is None:
        raise ValueError(f"unknown finding {finding.name!r}; known: {', '.join(FINDINGS)}")
    for what, value, allowed in (
        ("side", finding.side, kind.sides),
        ("location", finding.location, kind.locations),
        ("size", finding.size, kind.sizes),
    ):
        if value not in allowed:
            raise ValueError(f"{finding.name}: {what} {value!r} is not one of {allowed}")
    if finding.location == "middle" and finding.side != "right":
        raise ValueError(
            f"{finding.name}: only the right lung has a middle lobe, got side {finding.side!r}"
        )
    if (finding.size_mm is None) != (kind.millimetres is None):
        raise ValueError(f"{finding.name}: size_mm {finding.size_mm!r}, range {kind.millimetres}")
    if finding.size_mm is not None and size_class(finding.name, finding.size_mm) != finding.size:
        raise ValueError(f"{finding.name}: {finding.size_mm} mm is not {finding.size!r}")
    return finding
