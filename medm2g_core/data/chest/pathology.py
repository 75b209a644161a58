"""Which findings a virtual chest has, and what they do to the shape of its body.

How they look inside the deformed volume is in `medm2g_core.data.chest.draw`.

Cardiothoracic ratios 0.55-0.59 / 0.59-0.64 / 0.64-0.70 for a small, moderate and large heart are
choices in the spirit of radiological usage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from medm2g_core.data.chest.deform import Body
from medm2g_core.data.findings import CHEST, FINDINGS, check_finding, size_class
from medm2g_core.streams import Finding

__all__ = ["HEART_RATIO", "change_body", "compatible", "heart_ratio", "sample_findings"]

HEART_RATIO = {
    "": (0.41, 0.475),
    "small": (0.55, 0.59),
    "moderate": (0.59, 0.64),
    "large": (0.64, 0.70),
}
"""Range of the cardiothoracic ratio by size of cardiomegaly; ``""`` is a normal heart."""
_FOCAL = ("consolidation", "atelectasis", "nodule", "mass")


def compatible(findings: Sequence[Finding]) -> bool:
    """Whether findings can be seen side by side in one patient: none hides or contradicts
    another."""
    names = [f.name for f in findings]
    if len(set(names)) != len(names):
        return False
    if {"pneumothorax", "pulmonary_edema"} <= set(names):
        return False
    focal = [f for f in findings if f.name in _FOCAL]
    if len({(f.side, f.location) for f in focal}) != len(focal):
        return False
    if sum(f.name == "atelectasis" for f in focal) and any(
        f.name != "atelectasis" and g.name == "atelectasis" and f.side == g.side
        for f in focal
        for g in focal
    ):
        return False  # a collapsing lobe pulls its neighbours out of their usual place
    for f in findings:
        if f.name == "pneumothorax" and any(
            g.side in (f.side, "both") for g in findings if g is not f
        ):
            return False
        if f.name == "pleural_effusion":
            for g in focal:
                same = f.side in (g.side, "both")
                if same and (f.size == "large" or (f.size == "moderate" and g.location != "upper")):
                    return False
    return True


def _one(name: str, rng: np.random.Generator) -> Finding:
    kind = FINDINGS[name]
    side = str(rng.choice(kind.sides))
    lobes = [x for x in kind.locations if x != "middle" or side == "right"]
    location = str(rng.choice(lobes))
    size = str(rng.choice(kind.sizes))
    if kind.millimetres is None:
        return Finding(name, side, location, size)
    low, high = kind.millimetres
    fitting = [mm for mm in range(low, high + 1) if size_class(name, mm) == size]
    return Finding(name, side, location, size, int(rng.choice(fitting)))


def sample_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
    """Random findings of one patient: 30 % normal (an empty tuple), else one to three compatible
    ones.

    Kinds are drawn evenly, then the side, then the lobe among those of that side, then the size
    class. The order is that of `FINDINGS`.
    """
    if rng.random() < 0.3:
        return ()
    count = int(rng.choice([1, 2, 3], p=[0.5, 0.34, 0.16]))
    while True:
        names = sorted(rng.choice(CHEST, size=count, replace=False).tolist(), key=CHEST.index)
        for _ in range(12):
            findings = tuple(check_finding(_one(n, rng)) for n in names)
            if compatible(findings):
                return findings


def heart_ratio(findings: Sequence[Finding], rng: np.random.Generator) -> float:
    """Cardiothoracic ratio that the findings ask for; one number is drawn from `rng` whatever they
    are."""
    size = next((f.size for f in findings if f.name == "cardiomegaly"), "")
    low, high = HEART_RATIO[size]
    return low + (high - low) * float(rng.random())


def change_body(body: Body, findings: Sequence[Finding], rng: np.random.Generator) -> Body:
    """What findings do to the shape of the patient: volume loss, pushed diaphragm and
    mediastinum."""
    domes, shift, shrink = list(body.domes_mm), body.mediastinum_mm, dict(body.lobe_shrink)
    u = float(rng.random())
    for f in findings:
        out = -1.0 if f.side == "right" else 1.0
        index = 0 if f.side == "right" else 1
        if f.name == "atelectasis":
            shrink[f"{f.side}_{f.location}"] = (
                0.56 + 0.12 * u if f.location != "middle" else 0.62 + 0.1 * u
            )
            domes[index] += {"lower": 14.0, "middle": 4.0, "upper": 9.0}[f.location] * (
                0.8 + 0.4 * u
            )
            shift += out * {"lower": 9.0, "middle": 3.0, "upper": 7.0}[f.location]
        elif f.name == "pleural_effusion" and f.side != "both" and f.size == "large":
            shift -= out * 11.0
            domes[index] -= 8.0
        elif f.name == "pneumothorax":
            shift -= out * {"small": 0.0, "moderate": 3.0, "large": 8.0}[f.size]
            domes[index] -= {"small": 0.0, "moderate": 3.0, "large": 9.0}[f.size]
    return replace(body, domes_mm=(domes[0], domes[1]), mediastinum_mm=shift, lobe_shrink=shrink)
