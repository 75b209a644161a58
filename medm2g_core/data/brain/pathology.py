"""What is wrong with a virtual brain: which findings, and how they are drawn into one axial slice.

Everything here works on `Plane`, the anatomy that one slice cuts. Lesions come out as soft
fractions (H, W) that replace part of the tissue; mass effect and large ventricles come out as
displacements that the renderer applies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medm2g_core.data.brain.atlas import LOBES
from medm2g_core.data.findings import FINDINGS, check_finding, size_class
from medm2g_core.streams import Finding

__all__ = [
    "EDEMA_REACH_MM",
    "LESION_COUNT",
    "VENTRICLE_GROWTH_MM",
    "Plane",
    "Tumor",
    "draw_edema",
    "draw_tumor",
    "draw_white_matter_lesions",
    "push",
    "sample_findings",
    "smooth_noise",
    "sort_findings",
]

EDEMA_REACH_MM = {"small": 9.0, "moderate": 17.0, "large": 28.0}
"""How far from the tumour's edge vasogenic edema follows the white matter, by size class."""
LESION_COUNT = {"small": (4, 8), "moderate": (13, 20), "large": (30, 45)}
"""Number of white-matter lesions in the slice, inclusive, by size class (few, moderate, many)."""
VENTRICLE_GROWTH_MM = {"small": 2.8, "moderate": 4.8, "large": 7.5}
"""How far ventriculomegaly moves the ventricle's wall outwards, by size class. Healthy brains stay
below 1.3 mm."""

_NORMAL_SHARE = 0.3
_TUMOR_MM = FINDINGS["tumor"].millimetres or (12, 60)


@dataclass(frozen=True)
class Plane:
    """The healthy anatomy that a slice cuts; every array is (H, W), or (3, H, W) for coordinates.

    Attributes:
        mm: pixel size of these arrays in mm.
        xyz: MNI coordinates in mm; x is positive on the patient's right.
        wm: white-matter fraction.
        depth: signed distance to the brain hull in mm, negative inside.
        ventricle: signed distance to the ventricle wall in mm, negative inside.
        lobe: index into `LOBES`.
    """

    mm: float
    xyz: np.ndarray
    wm: np.ndarray
    depth: np.ndarray
    ventricle: np.ndarray
    lobe: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return (self.wm.shape[0], self.wm.shape[1])


@dataclass(frozen=True)
class Tumor:
    """A tumour in a slice: soft fractions of solid tissue and of necrotic or cystic core (H, W),
    heterogeneity of the solid part (H, W, mean 0), signed distance in mm to its edge (H, W), and
    its centre (row, column).
    """

    solid: np.ndarray
    core: np.ndarray
    texture: np.ndarray
    distance: np.ndarray
    centre: tuple[int, int]


def sort_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The findings in the table's order, each checked; edema must have a tumour of its side and
    lobe.

    Raises:
        ValueError: a finding of another region, twice the same kind, or edema without its tumour.
    """
    by_name = {f.name: check_finding(f) for f in findings}
    wrong = [n for n in by_name if FINDINGS[n].region != "brain"]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: not a finding of the brain")
    if len(by_name) != len(findings):
        raise ValueError("the same finding twice; a virtual brain holds at most one of each kind")
    edema, tumor = by_name.get("vasogenic_edema"), by_name.get("tumor")
    if edema and (tumor is None or (tumor.side, tumor.location) != (edema.side, edema.location)):
        where = f"{edema.side} {edema.location}"
        raise ValueError(
            f"vasogenic edema ({where}) needs a tumor of the same side and lobe, got {tumor}"
        )
    return tuple(by_name[n] for n in FINDINGS if n in by_name)


def sample_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
    """What one virtual patient has: nothing in 30 %, otherwise one to three findings that go
    together.

    Sides, lobes and size classes are uniform; diameters are uniform inside their class.
    """
    if rng.random() < _NORMAL_SHARE:
        return ()

    def size() -> str:
        return str(rng.choice(["small", "moderate", "large"]))

    found: list[Finding] = []
    has_tumor, has_lesions, has_ventricles = rng.random(3) < (0.55, 0.42, 0.38)
    if not (has_tumor or has_lesions or has_ventricles):
        has_tumor, has_lesions, has_ventricles = np.arange(3) == rng.integers(3)
    if has_tumor:
        side, lobe, wanted = str(rng.choice(["left", "right"])), str(rng.choice(LOBES)), size()
        fits = [
            mm for mm in range(_TUMOR_MM[0], _TUMOR_MM[1] + 1) if size_class("tumor", mm) == wanted
        ]
        found.append(Finding("tumor", side, lobe, wanted, int(rng.choice(fits))))
        if rng.random() < 0.6:
            found.append(Finding("vasogenic_edema", side, lobe, size()))
    if has_lesions and len(found) < 3:
        found.append(Finding("white_matter_lesions", size=size()))
    if has_ventricles and len(found) < 3:
        found.append(Finding("ventriculomegaly", size=size()))
    return sort_findings(found)


def smooth_noise(shape: tuple[int, int], scale_px: float, rng: np.random.Generator) -> np.ndarray:
    """Random field (H, W) of mean 0 and standard deviation 1 whose features are about ``scale_px``
    wide."""
    step = max(int(scale_px / 2), 1)
    coarse = rng.standard_normal((shape[0] // step + 3, shape[1] // step + 3))
    coarse = ndimage.gaussian_filter(coarse, scale_px / step, mode="wrap")
    rows = np.arange(shape[0]) / step
    cols = np.arange(shape[1]) / step
    field = ndimage.map_coordinates(
        coarse, np.stack(np.meshgrid(rows, cols, indexing="ij")), order=1
    )
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def _soft(level: np.ndarray, width: float) -> np.ndarray:
    """Logistic step: 0 far below zero, 1 far above, about 4 ``width`` wide."""
    return 1.0 / (1.0 + np.exp(-np.clip(level / width, -30, 30)))


def _side_sign(side: str) -> float:
    return 1.0 if side == "right" else -1.0


def _pick(weight: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """A pixel (row, column) drawn with probability proportional to ``weight``."""
    total = np.cumsum(weight.ravel())
    at = int(np.searchsorted(total, rng.random() * total[-1], side="right"))
    row, col = np.unravel_index(min(at, weight.size - 1), weight.shape)
    return int(row), int(col)


def _tumor_centre(plane: Plane, finding: Finding, rng: np.random.Generator) -> tuple[int, int]:
    """A pixel of the lobe with as much room around it as the lobe offers, up to what the tumour
    needs."""
    x = plane.xyz[0] * _side_sign(finding.side)
    lobe = (plane.lobe == LOBES.index(finding.location)) & (x > 0)
    # Gliomas and metastases of a lobe sit in its white matter or at its cortex, not in thalamus or
    # ventricle.
    deep = (x < 30) & (plane.xyz[1] > -40) & (plane.xyz[1] < 20) & (plane.xyz[2] < 24)
    inside = lobe & (plane.depth < -9) & ~deep & (plane.ventricle > 3)
    # A thin lobe beside large ventricles can leave no such place, once in a thousand slices: then
    # its cortex will do.
    for wider in (lobe & (plane.depth < -9), lobe & (plane.depth < -4), lobe):
        if not inside.any():
            inside = wider
    if not inside.any():
        raise ValueError(
            f"no {finding.side} {finding.location} lobe in a slice at z ="
            f" {plane.xyz[2].mean():.0f} mm"
        )
    to_border = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1] * plane.mm
    room = np.minimum(np.minimum(-plane.depth, x), np.minimum(plane.ventricle + 4, to_border + 6))
    wanted = min(0.5 * float(finding.size_mm or 0) + 1.0, 0.9 * float(room[inside].max()))
    good = inside & (room >= wanted)
    return _pick(np.where(good if good.any() else inside, 0.05 + plane.wm**2, 0.0), rng)


def draw_tumor(plane: Plane, finding: Finding, rng: np.random.Generator) -> Tumor:
    """A lobulated tumour whose largest diameter in the slice is ``finding.size_mm``; it does not
    cross the falx. Its centre lies in the finding's lobe, large ones reach into the next. Larger
    ones more often have a necrotic core.

    Raises:
        ValueError: the slice does not cut the finding's lobe.
    """
    size_mm = float(finding.size_mm or 0)
    row, col = _tumor_centre(plane, finding, rng)
    rows, cols = np.indices(plane.shape)
    dy, dx = (rows - row) * plane.mm, (cols - col) * plane.mm
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.3)
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    radius = np.hypot(along / stretch, across * stretch) / (size_mm / 2)
    px = size_mm / plane.mm
    lobulation = 0.10 * smooth_noise(plane.shape, max(px * 0.16, 2.0), rng)
    lobulation += 0.05 * smooth_noise(plane.shape, max(px * 0.07, 1.2), rng)
    level = radius + lobulation * np.clip(radius, 0.0, 1.0)

    sign = _side_sign(finding.side)
    allowed = _soft(-plane.depth - 1.5, 0.6) * _soft(sign * plane.xyz[0] - 0.5, 0.6)

    # The threshold that makes the largest diameter of what is left inside skull and falx what the
    # report says.
    probe = np.linspace(0, np.pi, 12, endpoint=False)
    low, high = 0.4, 2.4
    for _ in range(10):
        middle = (low + high) / 2
        here = (level < middle) & (allowed > 0.5)
        py, pxs = dy[here], dx[here]
        extent = (
            max((np.ptp(pxs * np.cos(a) + py * np.sin(a)) for a in probe), default=0.0)
            if py.size
            else 0.0
        )
        low, high = (middle, high) if extent + plane.mm < size_mm else (low, middle)
    level = level / ((low + high) / 2)

    edge_mm = (1.0 - level) * size_mm / 2
    body = _soft(edge_mm, rng.uniform(0.35, 0.8)) * allowed
    distance = ndimage.distance_transform_edt(body < 0.5) - ndimage.distance_transform_edt(
        body >= 0.5
    )
    core = np.zeros(plane.shape)
    if rng.random() < {"small": 0.15, "moderate": 0.5, "large": 0.8}[finding.size]:
        thickness = max(size_mm / 2 * rng.uniform(0.3, 0.55), 4.0)
        ragged = smooth_noise(plane.shape, max(px * 0.10, 1.5), rng) * size_mm * 0.045
        core = _soft(-distance * plane.mm - thickness + ragged, 0.6) * allowed
    texture = 0.7 * smooth_noise(plane.shape, 3.0 / plane.mm, rng) + 0.7 * smooth_noise(
        plane.shape, 8 / plane.mm, rng
    )
    return Tumor(np.clip(body - core, 0, 1), core, texture, distance * plane.mm, (row, col))


def draw_edema(
    plane: Plane, tumor: Tumor, finding: Finding, rng: np.random.Generator
) -> np.ndarray:
    """Vasogenic edema: fraction (H, W) of tissue that is edematous. It spreads through white matter
    around the tumour and spares cortex, which gives it its fingers; it stays on its side."""
    reach = EDEMA_REACH_MM[finding.size] * rng.uniform(0.92, 1.08)
    wm = ndimage.gaussian_filter(plane.wm, 0.6 / plane.mm)
    uneven = 0.16 * smooth_noise(plane.shape, 7.0 / plane.mm, rng) + 0.08 * smooth_noise(
        plane.shape, 3.0 / plane.mm, rng
    )
    front = reach * (1.0 + uneven) - np.maximum(tumor.distance, 0.0)
    sign = _side_sign(finding.side)
    allowed = (
        _soft(-plane.depth - 3.0, 0.6)
        * _soft(sign * plane.xyz[0] - 1.5, 0.8)
        * _soft(plane.ventricle - 0.5, 0.5)
    )
    spread = _soft(front, 1.1) * (0.08 + 0.92 * _soft(wm - 0.55, 0.07)) * allowed
    return spread * (1.0 - np.clip(tumor.solid + tumor.core, 0.0, 1.0))


def draw_white_matter_lesions(
    plane: Plane, finding: Finding, rng: np.random.Generator
) -> np.ndarray:
    """Fraction (H, W) of tissue inside small white-matter lesions: about half against the
    ventricles, drawn out along their wall, half scattered in deep white matter. Many lesions also
    run together into a rim around the ventricles.
    """
    inner = ndimage.gaussian_filter(plane.wm, 1.0 / plane.mm) * (plane.depth < -9)
    inner = np.where(inner > 0.8, inner, 0.0)
    near = inner * np.exp(-(((plane.ventricle - 4.0) / 3.0) ** 2)) * (plane.ventricle > 1.0)
    deep = inner * (plane.ventricle > 9.0)
    slope = np.stack(np.gradient(ndimage.gaussian_filter(plane.ventricle, 2.0)))
    rows, cols = np.indices(plane.shape)
    crumble = 0.45 * smooth_noise(plane.shape, 2.0 / plane.mm, rng) + 0.2 * smooth_noise(
        plane.shape, 4.5 / plane.mm, rng
    )
    out = np.zeros(plane.shape)
    low, high = LESION_COUNT[finding.size]
    grow = {"small": 0.85, "moderate": 1.0, "large": 1.1}[finding.size]
    for _ in range(int(rng.integers(low, high + 1))):
        periventricular = rng.random() < 0.45
        where = near if periventricular and near.any() else deep
        if not where.any():
            continue
        row, col = _pick(where, rng)
        radius = grow * (1.3 + rng.gamma(2.0, 0.55))
        stretch = rng.uniform(1.2, 1.9) if periventricular else rng.uniform(1.0, 1.5)
        # Along the ventricle's wall, or any way in deep white matter.
        angle = (
            np.arctan2(slope[1, row, col], slope[0, row, col])
            if periventricular
            else rng.uniform(0, np.pi)
        )
        dy, dx = (rows - row) * plane.mm, (cols - col) * plane.mm
        away, along = (
            dy * np.cos(angle) + dx * np.sin(angle),
            dx * np.cos(angle) - dy * np.sin(angle),
        )
        distance = np.hypot(away * np.sqrt(stretch), along / np.sqrt(stretch))
        strength = rng.uniform(0.65, 1.0)
        out = np.maximum(out, strength * _soft(radius - distance + crumble, 0.38))
        where[distance < radius + 1.5] = 0.0
    if finding.size != "small":
        width = {"moderate": 1.4, "large": 3.2}[finding.size] * rng.uniform(0.85, 1.15)
        rim = (
            _soft(width * (1 + 0.5 * crumble) - plane.ventricle, 0.6) * (plane.ventricle > 0) * 0.8
        )
        out = np.maximum(out, rim * (plane.depth < -15))
    return out * _soft(plane.wm - 0.6, 0.07)


def push(plane: Plane, tumor: Tumor, size_mm: float, strength: float) -> np.ndarray:
    """Mass effect: where in the undisturbed plane each pixel's tissue comes from, as (2, H, W)
    offsets (row, column) in mm. Tissue at distance r from the centre has come from ``(r^3 -
    (strength R)^3)^(1/3)``, fading towards the skull, which does not move."""
    rows, cols = np.indices(plane.shape)
    dy, dx = (rows - tumor.centre[0]) * plane.mm, (cols - tumor.centre[1]) * plane.mm
    r = np.hypot(dy, dx) + 1e-6
    radius = max(size_mm / 2 * strength, 1e-3)
    came_from = np.cbrt(np.maximum(r**3 - radius**3, (0.15 * r) ** 3))
    fade = np.clip(-plane.depth / 14.0, 0.0, 1.0)
    pull = (came_from - r) * fade / r
    return np.stack([dy * pull, dx * pull])
