"""Findings of the chest, drawn into a deformed volume.

Every finding is drawn with soft masks. Opacities never *replace* lung by density times mask: they
raise what is less dense than themselves, over the lung dilated by one voxel, so that no ring of
half-lung voxels stays dark between an opacity and the chest wall.

Sizes are choices in the spirit of radiological usage: a small effusion blunts the costophrenic
angle, a moderate one takes about a third of the hemithorax, a large one more than half;
cardiothoracic ratio 0.55-0.59 / 0.59-0.64 / 0.64-0.70; pneumothorax retracts the lung to 0.87 /
0.74 / 0.55 of its length. Fluid lies as in an upright patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medm2g_core.data.chest.atlas import GRID, LOBES, SPACING_MM
from medm2g_core.data.chest.deform import Anatomy, Body, Warp, locate, normalised, points, sample
from medm2g_core.data.findings import CHEST, FINDINGS, check_finding, size_class
from medm2g_core.streams import Finding

__all__ = [
    "HEART_RATIO",
    "Scene",
    "change_body",
    "compatible",
    "draw",
    "heart_ratio",
    "sample_findings",
]

FLUID_HU, OPAQUE_HU, COLLAPSED_HU, LESION_HU = 8.0, 32.0, 38.0, 40.0
HEART_RATIO = {
    "": (0.41, 0.475),
    "small": (0.55, 0.59),
    "moderate": (0.59, 0.64),
    "large": (0.64, 0.70),
}
"""Range of the cardiothoracic ratio by size of cardiomegaly; ``""`` is a normal heart."""
_FLUID_SHARE = {"small": (0.05, 0.09), "moderate": (0.26, 0.38), "large": (0.58, 0.80)}
_RETRACT = {"small": (0.85, 0.89), "moderate": (0.70, 0.78), "large": (0.48, 0.60)}
_FOCAL = ("consolidation", "atelectasis", "nodule", "mass")
_SIZE_RANK = {"small": 0, "moderate": 1, "large": 2, "": 0}


@dataclass
class Scene:
    """A patient's volume while findings are drawn into it; tensors float32 `GRID`.

    Attributes:
        hu: Hounsfield units.
        lung: side -> soft mask of the lung (the whole pleural space of that side).
        lobes: (5, *COARSE) soft masks in the order of `LOBES`.
        slice_index: y index of the coronal slice that CT and MR show.
        warp: the patient's backward map; `anatomy` is what it maps to.
        fluid, opaque, lesion: soft masks of what was drawn: pleural fluid, airless lung, tumour
            tissue.
    """

    hu: Tensor
    lung: dict[str, Tensor]
    lobes: Tensor
    slice_index: int
    warp: Warp
    anatomy: Anatomy
    fluid: Tensor
    opaque: Tensor
    lesion: Tensor


# ---- which findings


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


# ---- drawing


def _box(mask: Tensor, margin: int = 2) -> tuple[slice, slice, slice]:
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


def _dilate(mask: Tensor) -> Tensor:
    """Grey dilation of (Z, Y, X) by one voxel."""
    out = mask[None, None]
    for kernel in ((3, 1, 1), (1, 3, 1), (1, 1, 3)):
        out = functional.max_pool3d(out, kernel, 1, tuple(k // 2 for k in kernel))
    return out[0, 0]


def _noise(shape: Sequence[int], cell: float, rng: np.random.Generator) -> Tensor:
    """Smooth noise (Z, Y, X), mean about 0, deviation about 1, with features of `cell` voxels."""
    small = [max(2, int(np.ceil(n / cell)) + 1) for n in shape]
    grid = torch.from_numpy(rng.standard_normal(small).astype(np.float32))[None, None]
    out = functional.interpolate(grid, size=tuple(shape), mode="trilinear", align_corners=True)[
        0, 0
    ]
    return out * 1.6


def _lobe(
    scene: Scene, side: str, location: str
) -> tuple[tuple[slice, slice, slice], Tensor, Tensor]:
    """Box, soft mask of a lobe in it, and the same grown by one voxel into its edge."""
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
    fine = functional.interpolate(
        share[None, None], size=GRID, mode="trilinear", align_corners=False
    )[0, 0][box]
    fine = fine.clamp(0, 1)
    lung = scene.lung[side][box]
    return box, fine * lung, fine * _dilate(lung)


def _raise(scene: Scene, box: tuple[slice, slice, slice], mask: Tensor, hu: Tensor | float) -> None:
    """Raise what is less dense than `hu` towards it."""
    here = scene.hu[box]
    scene.hu[box] = here + mask * (
        torch.maximum(here, torch.as_tensor(hu, dtype=torch.float32)) - here
    )


def _grain(shape: Sequence[int], rng: np.random.Generator, hu: float = 10.0) -> Tensor:
    return torch.from_numpy(rng.standard_normal(tuple(shape)).astype(np.float32)) * hu


def _coordinates(box: tuple[slice, slice, slice]) -> Tensor:
    """mm (Z, Y, X, 3) of a box, order x, y, z."""
    return points(GRID)[box]


def _effusion(scene: Scene, finding: Finding, rng: np.random.Generator) -> None:
    low, high = _FLUID_SHARE[finding.size]
    share = low + (high - low) * float(rng.random())
    for side in ("right", "left") if finding.side == "both" else (finding.side,):
        lung = scene.lung[side]
        box = _box(lung)
        inside = lung[box]
        at = _coordinates(box)
        x, y, z = at[..., 0], at[..., 1], at[..., 2]
        weight = inside.sum()
        cx, cy = float((x * inside).sum() / weight), float((y * inside).sum() / weight)
        out = -1.0 if side == "right" else 1.0
        lateral = ((x - cx) * out / 55.0).clamp(-1, 1.3)
        posterior = ((y - cy) / 80.0).clamp(-1, 1.3)
        # the meniscus climbs the lateral and the posterior wall
        outer, back, inner = lateral.clamp_min(0), posterior.clamp_min(0), (-lateral).clamp_min(0)
        climb = 16.0 * outer**2 + 9.0 * back**2 + 5.0 * inner**2
        depth = z + climb * (1.3 if finding.size == "small" else 1.9)
        some = inside > 0.5
        level = np.quantile(depth[some].numpy()[::7], 1 - share)
        wave = 1.5 * _noise(inside.shape, 14, rng)
        wet = torch.sigmoid((depth + wave - float(level)) / 1.6)
        mask = wet * _dilate(inside)
        _raise(scene, box, mask, FLUID_HU + _grain(inside.shape, rng, 7.0))
        # vessels of the lung that floats: nothing but fluid where fluid is
        here = scene.hu[box]
        core = wet * ((inside - 0.9) * 10).clamp(0, 1)
        scene.hu[box] = here + core * ((FLUID_HU + _grain(inside.shape, rng, 7.0)) - here)
        scene.fluid[box] = torch.maximum(scene.fluid[box], mask)


def _pneumothorax(scene: Scene, finding: Finding, rng: np.random.Generator) -> None:
    side = finding.side
    low, high = _RETRACT[finding.size]
    factor = low + (high - low) * float(rng.random())
    lung = scene.lung[side]
    box = _box(lung)
    at = _coordinates(box)
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


def _airways(box_at: Tensor, hilum: np.ndarray, mask: Tensor, rng: np.random.Generator) -> Tensor:
    """Air-filled bronchi in a lobe: soft mask of branching capsules from the hilum towards points
    of the lobe."""
    inside = torch.nonzero(mask > 0.6)
    out = torch.zeros_like(mask)
    if len(inside) < 50:
        return out
    start = torch.tensor(hilum, dtype=torch.float32)
    for _ in range(7):
        tip = box_at[tuple(inside[int(rng.integers(len(inside)))])]
        bend = (
            start + 0.5 * (tip - start) + torch.from_numpy(rng.normal(0, 6, 3).astype(np.float32))
        )
        end = bend + 0.75 * (tip - bend)
        for a, b, r0, r1 in ((start, bend, 3.4, 2.7), (bend, end, 2.7, 1.7)):
            axis = b - a
            t = (((box_at - a) * axis).sum(-1) / (axis.square().sum() + 1e-6)).clamp(0, 1)
            distance = (box_at - a - t[..., None] * axis).square().sum(-1).sqrt()
            out = torch.maximum(out, torch.sigmoid((r0 + (r1 - r0) * t - distance) / 0.6))
    return out


def _consolidation(scene: Scene, finding: Finding, rng: np.random.Generator) -> None:
    box, core, mask = _lobe(scene, finding.side, finding.location)
    at = _coordinates(box)
    hilum = locate(scene.warp, scene.anatomy.hila[finding.side])
    patchy = 0.80 + 0.22 * _noise(core.shape, 11, rng) + 0.10 * _noise(core.shape, 4, rng)
    density = torch.sigmoid((patchy - 0.46) / 0.13).clamp(0, 1) * 0.96
    air = _airways(at[..., :], hilum, core, rng)
    _raise(scene, box, mask * density * (1 - 0.85 * air), OPAQUE_HU + _grain(core.shape, rng))
    scene.opaque[box] = torch.maximum(scene.opaque[box], mask * density * (1 - air))


def _atelectasis(scene: Scene, finding: Finding, rng: np.random.Generator) -> None:
    box, core, mask = _lobe(scene, finding.side, finding.location)
    density = (0.95 + 0.05 * _noise(core.shape, 9, rng)).clamp(0.75, 1.0)
    _raise(scene, box, mask * density, COLLAPSED_HU + _grain(core.shape, rng))
    scene.opaque[box] = torch.maximum(scene.opaque[box], mask * density)


def _edema(scene: Scene, finding: Finding, rng: np.random.Generator) -> None:
    rank = _SIZE_RANK[finding.size]
    haze_hu = (150.0, 260.0, 430.0)[rank]
    for side in ("right", "left"):
        lung = scene.lung[side]
        box = _box(lung)
        inside = lung[box]
        at = _coordinates(box)
        hilum = torch.tensor(locate(scene.warp, scene.anatomy.hila[side]), dtype=torch.float32)
        d = (at - hilum - torch.tensor([0.0, 4.0, 14.0])) / torch.tensor([44.0, 60.0, 62.0])
        hilar = torch.exp(-0.5 * d.square().sum(-1))
        z = at[..., 2]
        top, base = float(z[0, 0, 0]), float(z[-1, 0, 0])
        dependent = ((z - top) / max(base - top, 1.0)).clamp(0, 1)
        cloud = (
            1 + 0.30 * _noise(inside.shape, 7, rng) + 0.22 * _noise(inside.shape, 3, rng)
        ).clamp(0.2, 2.0)
        here = scene.hu[box]
        # congested vessels: a grey dilation, more towards the apex than usual
        wide = _dilate(
            torch.where(inside > 0.97, here, -1000.0)
        )  # of vessels, not of the chest wall
        swell = (
            ((wide + 620) / 300).clamp(0, 1)
            * (0.45, 0.6, 0.7)[rank]
            * (inside - 0.5).clamp(0, 0.5)
            * 2
        )
        here = here + swell * (wide.clamp(max=40) - here).clamp_min(0)
        # septal lines: thin sheets in the outer lower lung
        ripple = (at[..., 2] + 0.25 * at[..., 0].abs() + 4.0 * _noise(inside.shape, 10, rng)) / 9.5
        sheet = torch.exp(-0.5 * ((ripple - ripple.round()) * 9.5 / 1.5) ** 2)
        patch = torch.sigmoid(6 * (_noise(inside.shape, 6, rng) - 0.5))
        outer = (1.7 * (1 - functional.avg_pool3d(inside[None, None], 13, 1, 6)[0, 0])).clamp(0, 1)
        septal = sheet * patch * outer * dependent
        add = (
            haze_hu * hilar * cloud
            + haze_hu * 0.30 * dependent * cloud
            + (300.0, 360.0, 400.0)[rank] * septal
        )
        add = (
            add * ((-here - 60) / 700).clamp(0, 1) * _dilate(inside)
        )  # full only where there is still air to lose
        scene.hu[box] = here + add
        scene.opaque[box] = torch.maximum(scene.opaque[box], (add / 900).clamp(0, 0.8))


def _lesion(scene: Scene, finding: Finding, rng: np.random.Generator) -> None:
    """A nodule or a mass whose centre lies near the slice that is shown."""
    if finding.size_mm is None:
        raise ValueError(f"{finding.name} needs size_mm to be drawn, got {finding}")
    radius = finding.size_mm / 2
    _, core, _ = box_core = _lobe(scene, finding.side, finding.location)
    box = box_core[0]
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
    at = _coordinates(box)
    centre = at[tuple(pick)].clone()
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
    sub = (ranges[0], ranges[1], ranges[2])
    d = _coordinates(sub) - centre
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
    mask = mask * _dilate(scene.lung[finding.side][sub])  # chest wall and mediastinum stay
    _raise(scene, sub, mask, LESION_HU + _grain(mask.shape, rng))
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
