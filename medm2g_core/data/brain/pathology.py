"""What is wrong with a virtual brain: which findings, and how they are drawn into one axial slice.

Everything here works on `Plane`, the anatomy that one slice cuts. Lesions come out as soft
fractions (H, W) that replace part of the tissue; mass effect and large ventricles come out as
displacements that the renderer applies.

What is random (where a lesion lies, how lobulated it is) is drawn on `Plane.base`, whatever the
size of the picture; edges are evaluated at every pixel of the plane itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from medm2g_core.data.brain.atlas import LOBES
from medm2g_core.data.fields import refine
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
    "refined",
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
        coarser: the same slice with larger pixels, where the patient's random choices are made;
            ``None`` where it is this one.
    """

    mm: float
    xyz: np.ndarray
    wm: np.ndarray
    depth: np.ndarray
    ventricle: np.ndarray
    lobe: np.ndarray
    coarser: Plane | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (self.wm.shape[0], self.wm.shape[1])

    @property
    def base(self) -> Plane:
        """The plane that random choices are made on."""
        return self if self.coarser is None else self.coarser

    @property
    def scale(self) -> int:
        """How many pixels lie along one of `base`."""
        return self.shape[0] // self.base.shape[0]

    def offsets(self, centre: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Distance in mm of every pixel from a pixel of `base`, along rows and columns."""
        rows, cols = np.indices(self.shape)
        row, col = ((c + 0.5) * self.scale - 0.5 for c in centre)
        return (rows - row) * self.mm, (cols - col) * self.mm

    def noise(self, scale_px: float, rng: np.random.Generator) -> np.ndarray:
        """`smooth_noise` of the base plane, (H, W) here; ``scale_px`` in pixels of `base`."""
        return refined(smooth_noise(self.base.shape, scale_px, rng), self.scale)


@dataclass(frozen=True)
class Tumor:
    """A tumour in a slice: soft fractions of solid tissue and of necrotic or cystic core (H, W),
    heterogeneity of the solid part (H, W, mean 0), signed distance in mm to its edge (H, W), and
    its centre (row, column) in `Plane.base`.
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


def refined(field: np.ndarray, scale: int) -> np.ndarray:
    """A smooth field (..., H, W) between its pixels, linearly: (..., scale H, scale W)."""
    if scale == 1:
        return field
    planes = field.reshape(-1, *field.shape[-2:])
    finer = np.stack([refine(torch.from_numpy(p), scale).numpy() for p in planes])
    return finer.reshape(*field.shape[:-2], *finer.shape[-2:])


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
    base = plane.base
    centre = _tumor_centre(base, finding, rng)
    angle, stretch = rng.uniform(0, np.pi), rng.uniform(1.0, 1.3)
    px = size_mm / base.mm
    lobulation = 0.10 * smooth_noise(base.shape, max(px * 0.16, 2.0), rng)
    lobulation += 0.05 * smooth_noise(base.shape, max(px * 0.07, 1.2), rng)
    sign = _side_sign(finding.side)

    def form(p: Plane) -> tuple[np.ndarray, np.ndarray]:
        """Distance from the centre in radii, lobulated, and where a tumour may be."""
        dy, dx = p.offsets(centre)
        along = dx * np.cos(angle) + dy * np.sin(angle)
        across = dy * np.cos(angle) - dx * np.sin(angle)
        radius = np.hypot(along / stretch, across * stretch) / (size_mm / 2)
        level = radius + refined(lobulation, p.scale) * np.clip(radius, 0.0, 1.0)
        allowed = _soft(-p.depth - 1.5, 0.6) * _soft(sign * p.xyz[0] - 0.5, 0.6)
        return level, allowed

    base_level, base_allowed = form(base)
    level, allowed = (base_level, base_allowed) if plane is base else form(plane)

    # The threshold that makes the largest diameter of what is left inside skull and falx what the
    # report says.
    dy, dx = base.offsets(centre)
    probe = np.linspace(0, np.pi, 12, endpoint=False)
    low, high = 0.4, 2.4
    for _ in range(10):
        middle = (low + high) / 2
        here = (base_level < middle) & (base_allowed > 0.5)
        py, pxs = dy[here], dx[here]
        extent = (
            max((np.ptp(pxs * np.cos(a) + py * np.sin(a)) for a in probe), default=0.0)
            if py.size
            else 0.0
        )
        low, high = (middle, high) if extent + base.mm < size_mm else (low, middle)
    threshold = (low + high) / 2
    sharpness_mm = rng.uniform(0.35, 0.8)

    def body_of(level: np.ndarray, allowed: np.ndarray) -> np.ndarray:
        edge_mm = (1.0 - level / threshold) * size_mm / 2
        return _soft(edge_mm, sharpness_mm) * allowed

    base_body, body = body_of(base_level, base_allowed), body_of(level, allowed)
    distance = ndimage.distance_transform_edt(base_body < 0.5) - ndimage.distance_transform_edt(
        base_body >= 0.5
    )
    distance = refined(distance * base.mm, plane.scale)
    core = np.zeros(plane.shape)
    if rng.random() < {"small": 0.15, "moderate": 0.5, "large": 0.8}[finding.size]:
        thickness = max(size_mm / 2 * rng.uniform(0.3, 0.55), 4.0)
        ragged = plane.noise(max(px * 0.10, 1.5), rng) * size_mm * 0.045
        core = _soft(-distance - thickness + ragged, 0.6) * allowed
    texture = 0.7 * plane.noise(3.0 / base.mm, rng) + 0.7 * plane.noise(8 / base.mm, rng)
    return Tumor(np.clip(body - core, 0, 1), core, texture, distance, centre)


def draw_edema(
    plane: Plane, tumor: Tumor, finding: Finding, rng: np.random.Generator
) -> np.ndarray:
    """Vasogenic edema: fraction (H, W) of tissue that is edematous. It spreads through white matter
    around the tumour and spares cortex, which gives it its fingers; it stays on its side."""
    reach = EDEMA_REACH_MM[finding.size] * rng.uniform(0.92, 1.08)
    wm = ndimage.gaussian_filter(plane.wm, 0.6 / plane.mm)
    base_mm = plane.base.mm
    uneven = 0.16 * plane.noise(7.0 / base_mm, rng) + 0.08 * plane.noise(3.0 / base_mm, rng)
    front = reach * (1.0 + uneven) - np.maximum(tumor.distance, 0.0)
    sign = _side_sign(finding.side)
    allowed = (
        _soft(-plane.depth - 3.0, 0.6)
        * _soft(sign * plane.xyz[0] - 1.5, 0.8)
        * _soft(plane.ventricle - 0.5, 0.5)
    )
    spread = _soft(front, 1.1) * (0.08 + 0.92 * _soft(wm - 0.55, 0.07)) * allowed
    return spread * (1.0 - np.clip(tumor.solid + tumor.core, 0.0, 1.0))


def _oval(plane: Plane, centre: tuple[int, int], angle: float, stretch: float) -> np.ndarray:
    """Distance in mm from a pixel of `Plane.base`, longer along ``angle`` and shorter across."""
    dy, dx = plane.offsets(centre)
    away = dy * np.cos(angle) + dx * np.sin(angle)
    along = dx * np.cos(angle) - dy * np.sin(angle)
    return np.hypot(away * np.sqrt(stretch), along / np.sqrt(stretch))


def draw_white_matter_lesions(
    plane: Plane, finding: Finding, rng: np.random.Generator
) -> np.ndarray:
    """Fraction (H, W) of tissue inside small white-matter lesions: about half against the
    ventricles, drawn out along their wall, half scattered in deep white matter. Many lesions also
    run together into a rim around the ventricles.
    """
    base = plane.base
    inner = ndimage.gaussian_filter(base.wm, 1.0 / base.mm) * (base.depth < -9)
    inner = np.where(inner > 0.8, inner, 0.0)
    near = inner * np.exp(-(((base.ventricle - 4.0) / 3.0) ** 2)) * (base.ventricle > 1.0)
    deep = inner * (base.ventricle > 9.0)
    slope = np.stack(np.gradient(ndimage.gaussian_filter(base.ventricle, 2.0)))
    crumble = 0.45 * plane.noise(2.0 / base.mm, rng) + 0.2 * plane.noise(4.5 / base.mm, rng)
    out = np.zeros(plane.shape)
    low, high = LESION_COUNT[finding.size]
    grow = {"small": 0.85, "moderate": 1.0, "large": 1.1}[finding.size]
    for _ in range(int(rng.integers(low, high + 1))):
        periventricular = rng.random() < 0.45
        where = near if periventricular and near.any() else deep
        if not where.any():
            continue
        row, col = centre = _pick(where, rng)
        radius = grow * (1.3 + rng.gamma(2.0, 0.55))
        stretch = rng.uniform(1.2, 1.9) if periventricular else rng.uniform(1.0, 1.5)
        # Along the ventricle's wall, or any way in deep white matter.
        angle = (
            np.arctan2(slope[1, row, col], slope[0, row, col])
            if periventricular
            else rng.uniform(0, np.pi)
        )
        distance = _oval(plane, centre, angle, stretch)
        strength = rng.uniform(0.65, 1.0)
        out = np.maximum(out, strength * _soft(radius - distance + crumble, 0.38))
        taken = distance if plane is base else _oval(base, centre, angle, stretch)
        where[taken < radius + 1.5] = 0.0
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
    dy, dx = plane.offsets(tumor.centre)
    r = np.hypot(dy, dx) + 1e-6
    radius = max(size_mm / 2 * strength, 1e-3)
    came_from = np.cbrt(np.maximum(r**3 - radius**3, (0.15 * r) ** 3))
    fade = np.clip(-plane.depth / 14.0, 0.0, 1.0)
    pull = (came_from - r) * fade / r
    return np.stack([dy * pull, dx * pull])
