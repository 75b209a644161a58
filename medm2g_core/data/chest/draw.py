"""How findings look: drawn into a deformed chest, at any picture size.

Every finding is drawn with soft masks. Opacities never *replace* lung by density times mask: they
raise what is less dense than themselves, over the lung dilated by one voxel, so that no ring of
half-lung voxels stays dark between an opacity and the chest wall.

What is random (where a lesion lies, how high fluid stands, the uneven density of a consolidation)
is drawn on `GRID`, whatever the size of the picture; shapes are in millimetres and evaluated at
every voxel of the finer grid. So a larger picture shows the same finding with a sharper edge.

Sizes are choices in the spirit of radiological usage: a small effusion blunts the costophrenic
angle, a moderate one takes about a third of the hemithorax, a large one more than half;
pneumothorax retracts the lung to 0.87 / 0.74 / 0.55 of its length. Fluid lies as in an upright
patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medm2g_core.data.chest.atlas import GRID, LOBES, SPACING_MM
from medm2g_core.data.chest.deform import (
    Anatomy,
    Warp,
    finer_grid,
    locate,
    normalised,
    points,
    sample,
)
from medm2g_core.data.fields import block_mean, refine, white_noise
from medm2g_core.data.findings import FINDINGS, check_finding
from medm2g_core.streams import Finding

__all__ = ["Scene", "draw"]

FLUID_HU, OPAQUE_HU, COLLAPSED_HU, LESION_HU = 8.0, 32.0, 38.0, 40.0
_FLUID_SHARE = {"small": (0.05, 0.09), "moderate": (0.26, 0.38), "large": (0.58, 0.80)}
_RETRACT = {"small": (0.85, 0.89), "moderate": (0.70, 0.78), "large": (0.48, 0.60)}
_SIZE_RANK = {"small": 0, "moderate": 1, "large": 2, "": 0}

Box = tuple[slice, slice, slice]


@dataclass
class Scene:
    """A patient's volume while findings are drawn into it; tensors float32 on `finer_grid(scale)`
    unless said otherwise.

    Attributes:
        hu: Hounsfield units.
        lung: side -> soft mask of the lung (the whole pleural space of that side).
        base_lung: the same on `GRID`, where places are chosen; the tensors of ``lung`` at scale 1.
        lobes: (5, *COARSE) soft masks in the order of `LOBES`.
        slice_index: y index of the coronal slice that CT and MR show.
        warp: the patient's backward map; `anatomy` is what it maps to.
        scale: how many times finer than `GRID` z and x are.
        fluid, opaque, lesion: soft masks of what was drawn: pleural fluid, airless lung, tumour
            tissue.
    """

    hu: Tensor
    lung: dict[str, Tensor]
    base_lung: dict[str, Tensor]
    lobes: Tensor
    slice_index: int
    warp: Warp
    anatomy: Anatomy
    scale: int
    fluid: Tensor
    opaque: Tensor
    lesion: Tensor

    def coordinates(self, box: Box) -> Tensor:
        """mm (Z, Y, X, 3) of a box of the fine grid, order x, y, z."""
        return points(finer_grid(self.scale), box)


def _box(mask: Tensor, margin: int = 2) -> Box:
    """Bounding box of a soft mask on `GRID`."""
    on = mask > 0.05
    out = []
    for axis in range(3):
        line = on.amax(tuple(a for a in range(3) if a != axis))
        at = torch.nonzero(line)[:, 0]
        if len(at) == 0:
            return (slice(0, 1),) * 3
        out.append(
            slice(max(int(at[0]) - margin, 0), min(int(at[-1]) + margin + 1, mask.shape[axis]))
        )
    return out[0], out[1], out[2]


def _finer(box: Box, scale: int) -> Box:
    """The same box on the fine grid."""
    z, y, x = box
    return (
        slice(z.start * scale, z.stop * scale),
        y,
        slice(x.start * scale, x.stop * scale),
    )


def _dilate(mask: Tensor, scale: int = 1) -> Tensor:
    """Grey dilation of (Z, Y, X) by one voxel of `GRID`."""
    out = mask[None, None]
    reach = 2 * scale + 1
    for kernel in ((reach, 1, 1), (1, 3, 1), (1, 1, reach)):
        out = functional.max_pool3d(out, kernel, 1, tuple(k // 2 for k in kernel))
    return out[0, 0]


def _noise(shape: Sequence[int], cell: float, rng: np.random.Generator, scale: int) -> Tensor:
    """Smooth noise, mean about 0, deviation about 1, with features of `cell` voxels of `GRID`; its
    shape there is (Z, Y, X), and the result is on the fine grid."""
    small = [max(2, int(np.ceil(n / cell)) + 1) for n in shape]
    grid = torch.from_numpy(rng.standard_normal(small).astype(np.float32))[None, None]
    out = functional.interpolate(grid, size=tuple(shape), mode="trilinear", align_corners=True)[
        0, 0
    ]
    return refine(out * 1.6, scale)


@dataclass
class _Lobe:
    """A lobe as findings fill it.

    Attributes:
        base_box: its box on `GRID`; ``box`` is the same on the fine grid.
        base: its soft mask on `GRID`.
        core: its soft mask.
        grown: the same grown by one voxel of `GRID` into its edge.
    """

    base_box: Box
    box: Box
    base: Tensor
    core: Tensor
    grown: Tensor


def _lobe(scene: Scene, side: str, location: str) -> _Lobe:
    index = LOBES.index(f"{side}_{location}")
    own = LOBES.index(f"{side}_upper")
    group = slice(0, 3) if own < 3 else slice(3, 5)
    share = scene.lobes[index] / (scene.lobes[group].sum(0) + 1e-3)
    rough = functional.interpolate(scene.lobes[index][None, None], size=GRID, mode="nearest")[0, 0]
    box = _box(rough, 4)
    # the share fades where there is no lung: carry it outwards before it meets the lung's own sharp
    # edge
    known = scene.lobes[group].sum(0)
    pooled = functional.avg_pool3d(torch.stack([share * known, known])[None], 3, 1, 1)[0]
    share = torch.where(known > 0.5, share, pooled[0] / (pooled[1] + 1e-4))
    here = functional.interpolate(
        share[None, None], size=GRID, mode="trilinear", align_corners=False
    )[0, 0][box].clamp(0, 1)
    fine_box = _finer(box, scene.scale)
    lung = scene.lung[side][fine_box]
    fine = refine(here, scene.scale)
    return _Lobe(
        box,
        fine_box,
        here * scene.base_lung[side][box],
        fine * lung,
        fine * _dilate(lung, scene.scale),
    )


def _raise(scene: Scene, box: Box, mask: Tensor, hu: Tensor | float) -> None:
    """Raise what is less dense than `hu` towards it."""
    here = scene.hu[box]
    scene.hu[box] = here + mask * (
        torch.maximum(here, torch.as_tensor(hu, dtype=torch.float32)) - here
    )


def _grain(shape: Sequence[int], rng: np.random.Generator, scale: int, hu: float = 10.0) -> Tensor:
    """Noise of every voxel for a box of that shape on `GRID`, HU."""
    return torch.from_numpy(white_noise(shape, rng, scale, (0, 2)).astype(np.float32)) * hu


def _effusion(scene: Scene, finding: Finding, rng: np.random.Generator) -> None:
    k = scene.scale
    low, high = _FLUID_SHARE[finding.size]
    share = low + (high - low) * float(rng.random())
    for side in ("right", "left") if finding.side == "both" else (finding.side,):
        base_box = _box(scene.base_lung[side])
        base = scene.base_lung[side][base_box]
        base_at = points(GRID, base_box)
        weight = base.sum()
        cx = float((base_at[..., 0] * base).sum() / weight)
        cy = float((base_at[..., 1] * base).sum() / weight)
        out = -1.0 if side == "right" else 1.0
        steep = 1.3 if finding.size == "small" else 1.9

        def depth(at: Tensor, cx: float = cx, cy: float = cy, out: float = out) -> Tensor:
            """Depth under the surface, mm: the meniscus climbs the lateral and the posterior
            wall."""
            x, y, z = at[..., 0], at[..., 1], at[..., 2]
            lateral = ((x - cx) * out / 55.0).clamp(-1, 1.3)
            posterior = ((y - cy) / 80.0).clamp(-1, 1.3)
            outer, back, inner = (
                lateral.clamp_min(0),
                posterior.clamp_min(0),
                (-lateral).clamp_min(0),
            )
            climb = 16.0 * outer**2 + 9.0 * back**2 + 5.0 * inner**2
            return z + climb * steep  # noqa: B023

        level = np.quantile(depth(base_at)[base > 0.5].numpy()[::7], 1 - share)
        box = _finer(base_box, k)
        inside = scene.lung[side][box]
        wave = 1.5 * _noise(base.shape, 14, rng, k)
        wet = torch.sigmoid((depth(scene.coordinates(box)) + wave - float(level)) / 1.6)
        mask = wet * _dilate(inside, k)
        _raise(scene, box, mask, FLUID_HU + _grain(base.shape, rng, k, 7.0))
        # vessels of the lung that floats: nothing but fluid where fluid is
        here = scene.hu[box]
        core = wet * ((inside - 0.9) * 10).clamp(0, 1)
        scene.hu[box] = here + core * ((FLUID_HU + _grain(base.shape, rng, k, 7.0)) - here)
        scene.fluid[box] = torch.maximum(scene.fluid[box], mask)


def _pneumothorax(scene: Scene, finding: Finding, rng: np.random.Generator) -> None:
    side = finding.side
    low, high = _RETRACT[finding.size]
    factor = low + (high - low) * float(rng.random())
    lung = scene.lung[side]
    box = _finer(_box(scene.base_lung[side]), scene.scale)
    at = scene.coordinates(box)
    hilum = torch.tensor(locate(scene.warp, scene.anatomy.hila[side]), dtype=torch.float32)
    d = at - hilum
    more = 1 / factor - 1
    gain = torch.ones_like(d)
    gain[..., 0] += more
    gain[..., 1] += 0.55 * more
    gain[..., 2] += torch.where(d[..., 2] < 0, 1.15, 0.55) * more  # air rises to the apex
    volume = torch.stack([scene.hu, lung])[None]
    moved = sample(volume, normalised(hilum + d * gain)[None])[0]
    dense = min(1 / factor**2.2, 2.6)
    left = moved[1].clamp(0, 1)
    line = 4 * left * (1 - left)  # the visceral pleura, seen edge-on
    inner = -1000 + (moved[0].clamp(-1000, 100) + 1000) * dense
    # where the source is outside of the lung, only air came in
    full = ((left - 0.5) * 2).clamp(
        0, 1
    )  # the outermost voxels hold some chest wall: not lung's own density
    inner = full * inner + (1 - full) * torch.minimum(inner, torch.tensor(-780.0))
    target = left * inner.clamp(max=60) + (1 - left) * -1000 + 260 * line
    cavity = lung[box]
    scene.hu[box] = scene.hu[box] * (1 - cavity) + target * cavity


def _airways(
    at: Tensor, base_at: Tensor, base: Tensor, hilum: np.ndarray, rng: np.random.Generator
) -> Tensor:
    """Air-filled bronchi in a lobe: soft mask of branching capsules from the hilum towards points
    of the lobe.

    Args:
        at: (Z, Y, X, 3) mm, where the mask is wanted; ``base_at`` the same on `GRID`.
        base: soft mask of the lobe on `GRID`, for the choice of the points.
        hilum: mm.
        rng: source of the points.
    """
    inside = torch.nonzero(base > 0.6)
    out = torch.zeros(at.shape[:-1])
    if len(inside) < 50:
        return out
    start = torch.tensor(hilum, dtype=torch.float32)
    for _ in range(7):
        tip = base_at[tuple(inside[int(rng.integers(len(inside)))])]
        bend = (
            start + 0.5 * (tip - start) + torch.from_numpy(rng.normal(0, 6, 3).astype(np.float32))
        )
        end = bend + 0.75 * (tip - bend)
        for a, b, r0, r1 in ((start, bend, 3.4, 2.7), (bend, end, 2.7, 1.7)):
            axis = b - a
            t = (((at - a) * axis).sum(-1) / (axis.square().sum() + 1e-6)).clamp(0, 1)
            distance = (at - a - t[..., None] * axis).square().sum(-1).sqrt()
            out = torch.maximum(out, torch.sigmoid((r0 + (r1 - r0) * t - distance) / 0.6))
    return out


def _consolidation(scene: Scene, finding: Finding, rng: np.random.Generator) -> None:
    lobe, k = _lobe(scene, finding.side, finding.location), scene.scale
    shape = lobe.base.shape
    hilum = locate(scene.warp, scene.anatomy.hila[finding.side])
    patchy = 0.80 + 0.22 * _noise(shape, 11, rng, k) + 0.10 * _noise(shape, 4, rng, k)
    density = torch.sigmoid((patchy - 0.46) / 0.13).clamp(0, 1) * 0.96
    at, base_at = scene.coordinates(lobe.box), points(GRID, lobe.base_box)
    air = _airways(at, base_at, lobe.base, hilum, rng)
    mask = lobe.grown * density
    _raise(scene, lobe.box, mask * (1 - 0.85 * air), OPAQUE_HU + _grain(shape, rng, k))
    scene.opaque[lobe.box] = torch.maximum(scene.opaque[lobe.box], mask * (1 - air))


def _atelectasis(scene: Scene, finding: Finding, rng: np.random.Generator) -> None:
    lobe, k = _lobe(scene, finding.side, finding.location), scene.scale
    shape = lobe.base.shape
    density = (0.95 + 0.05 * _noise(shape, 9, rng, k)).clamp(0.75, 1.0)
    _raise(scene, lobe.box, lobe.grown * density, COLLAPSED_HU + _grain(shape, rng, k))
    scene.opaque[lobe.box] = torch.maximum(scene.opaque[lobe.box], lobe.grown * density)


def _edema(scene: Scene, finding: Finding, rng: np.random.Generator) -> None:
    k = scene.scale
    rank = _SIZE_RANK[finding.size]
    haze_hu = (150.0, 260.0, 430.0)[rank]
    for side in ("right", "left"):
        base_box = _box(scene.base_lung[side])
        base = scene.base_lung[side][base_box]
        box = _finer(base_box, k)
        inside = scene.lung[side][box]
        at = scene.coordinates(box)
        hilum = torch.tensor(locate(scene.warp, scene.anatomy.hila[side]), dtype=torch.float32)
        d = (at - hilum - torch.tensor([0.0, 4.0, 14.0])) / torch.tensor([44.0, 60.0, 62.0])
        hilar = torch.exp(-0.5 * d.square().sum(-1))
        z, base_z = at[..., 2], points(GRID, base_box)[..., 2]
        top, bottom = float(base_z[0, 0, 0]), float(base_z[-1, 0, 0])
        dependent = ((z - top) / max(bottom - top, 1.0)).clamp(0, 1)
        cloud = (
            1 + 0.30 * _noise(base.shape, 7, rng, k) + 0.22 * _noise(base.shape, 3, rng, k)
        ).clamp(0.2, 2.0)
        here = scene.hu[box]
        # congested vessels: a grey dilation, more towards the apex than usual; of vessels, not of
        # the chest wall. Edema blurs them, so they swell alike at every scale.
        wide = _dilate(torch.where(base > 0.97, block_mean(here, k), -1000.0))
        wide = refine(wide, k)
        swell = (
            ((wide + 620) / 300).clamp(0, 1)
            * (0.45, 0.6, 0.7)[rank]
            * (inside - 0.5).clamp(0, 0.5)
            * 2
        )
        here = here + swell * (wide.clamp(max=40) - here).clamp_min(0)
        # septal lines: thin sheets in the outer lower lung
        ripple = (at[..., 2] + 0.25 * at[..., 0].abs() + 4.0 * _noise(base.shape, 10, rng, k)) / 9.5
        sheet = torch.exp(-0.5 * ((ripple - ripple.round()) * 9.5 / 1.5) ** 2)
        patch = torch.sigmoid(6 * (_noise(base.shape, 6, rng, k) - 0.5))
        near = functional.avg_pool3d(base[None, None], 13, 1, 6)[0, 0]
        outer = refine((1.7 * (1 - near)).clamp(0, 1), k)
        septal = sheet * patch * outer * dependent
        add = (
            haze_hu * hilar * cloud
            + haze_hu * 0.30 * dependent * cloud
            + (300.0, 360.0, 400.0)[rank] * septal
        )
        # full only where there is still air to lose
        add = add * ((-here - 60) / 700).clamp(0, 1) * _dilate(inside, k)
        scene.hu[box] = here + add
        scene.opaque[box] = torch.maximum(scene.opaque[box], (add / 900).clamp(0, 0.8))


def _lesion(scene: Scene, finding: Finding, rng: np.random.Generator) -> None:
    """A nodule or a mass whose centre lies near the slice that is shown."""
    if finding.size_mm is None:
        raise ValueError(f"{finding.name} needs size_mm to be drawn, got {finding}")
    radius = finding.size_mm / 2
    lobe = _lobe(scene, finding.side, finding.location)
    core, box = lobe.base, lobe.base_box
    y0 = scene.slice_index
    reach = max(0, int(0.35 * radius / SPACING_MM))
    weights = torch.zeros(core.shape)
    # rather deep in the lobe: its margin must lie in lung as far as the lobe allows
    deep = functional.avg_pool3d(core[None, None], 5, 1, 2)[0, 0]
    for y in range(y0 - reach, y0 + reach + 1):
        i = y - box[1].start
        if 0 <= i < core.shape[1]:
            weights[:, i] = deep[:, i]
    if (
        weights.max() < 0.3
    ):  # the lobe does not reach the slice: its nearest part, seen in the slice all the same
        i = min(max(y0 - box[1].start, 0), core.shape[1] - 1)
        have = torch.nonzero(core.amax((0, 2)) > 0.5)[:, 0]
        near = int(have[(have - i).abs().argmin()])
        weights[:, near] = deep[:, near]
    candidates = torch.nonzero(weights > 0.85 * weights.max())
    pick = candidates[int(rng.integers(len(candidates)))]
    centre = points(GRID, box)[tuple(pick)].clone()
    plane = float(points(GRID)[0, y0, 0, 1])
    centre[1] = plane + float(np.clip(float(centre[1]) - plane, -0.4 * radius, 0.4 * radius))
    centre = centre + torch.from_numpy(rng.uniform(-1.2, 1.2, 3).astype(np.float32))
    grow = int(np.ceil(1.4 * radius / SPACING_MM)) + 3
    middle = [
        int(v)
        for v in ((centre.flip(0) / SPACING_MM) + torch.tensor([n / 2 for n in GRID])).floor()
    ]
    ranges = [
        slice(max(m - grow, 0), min(m + grow + 1, n)) for m, n in zip(middle, GRID, strict=True)
    ]
    base_box = (ranges[0], ranges[1], ranges[2])
    sub = _finer(base_box, scene.scale)
    d = scene.coordinates(sub) - centre
    distance = d.square().sum(-1).sqrt()
    unit = d / (distance[..., None] + 1e-3)
    bumps = torch.zeros_like(distance)
    for _ in range(5):  # irregular margin: a few waves over the sphere
        k = torch.from_numpy(
            rng.normal(0, 2.2 if finding.name == "nodule" else 3.2, 3).astype(np.float32)
        )
        bumps = bumps + torch.sin(unit @ k + float(rng.uniform(0, 6.28)))
    edge = radius * (1 + (0.03 if finding.name == "nodule" else 0.05) * bumps)
    mask = torch.sigmoid((edge - distance) / 0.9)
    if finding.name == "mass":  # spicules: thin rays into the lung around
        rays = torch.zeros_like(distance)
        for _ in range(9):
            v = rng.normal(0, 1, 3)
            v /= np.linalg.norm(v)
            along = (d @ torch.tensor(v, dtype=torch.float32)).clamp_min(0)
            across = (distance.square() - along.square()).clamp_min(0).sqrt()
            tip = radius * (1.15 + 0.25 * float(rng.random()))
            rays = torch.maximum(
                rays, torch.sigmoid((1.6 - across) / 0.6) * torch.sigmoid((tip - along) / 1.5)
            )
        mask = torch.maximum(mask, 0.8 * rays)
    # chest wall and mediastinum stay
    mask = mask * _dilate(scene.lung[finding.side][sub], scene.scale)
    shape = [part.stop - part.start for part in base_box]
    _raise(scene, sub, mask, LESION_HU + _grain(shape, rng, scene.scale))
    scene.lesion[sub] = torch.maximum(scene.lesion[sub], mask)


_DRAW = {
    "pulmonary_edema": _edema,
    "consolidation": _consolidation,
    "atelectasis": _atelectasis,
    "nodule": _lesion,
    "mass": _lesion,
    "pneumothorax": _pneumothorax,
    "pleural_effusion": _effusion,
}
"""In the order in which they are drawn; cardiomegaly is a matter of the body's shape alone."""


def draw(scene: Scene, findings: Sequence[Finding], seed: Sequence[int]) -> None:
    """Draw findings into a scene, in place. Each has its own random numbers, so one does not change
    another."""
    for name, function in _DRAW.items():
        for finding in findings:
            if finding.name == name:
                function(
                    scene,
                    check_finding(finding),
                    np.random.default_rng([*seed, list(FINDINGS).index(name)]),
                )
