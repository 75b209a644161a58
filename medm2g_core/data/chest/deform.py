"""One atlas, many bodies: smooth deformations of a real chest into a virtual patient.

A patient is a backward map: for every point of the patient's grid, the point of the atlas that is
seen there. It is

    q = A p + t,    source = q + sum of smooth displacement fields at q

with an affine part (height, habitus, small rotations) and displacements for random shape (cubic
B-splines on 5^3 and 9^3 control points), heart size, the height of each hemidiaphragm, subcutaneous
fat, scoliosis, mediastinal shift and the shrinking of a lobe. All are small against their width, so
the map is nearly invertible: `jacobian` is positive but for a few voxels in a thousand where a lobe
collapses or an enlarged heart meets the chest wall.

Coordinates are millimetres from the centre of the grid, in the order x (to the patient's left), y
(to posterior), z (to inferior). Grids are (z, y, x) as in `medm2g_core.data.chest.atlas`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from medm2g_core.data.chest.atlas import (
    CHANNELS,
    DETAIL_HU,
    DETAIL_SCALE,
    GRID,
    LOBES,
    SPACING_MM,
    ChestAtlas,
)
from medm2g_core.data.fields import refine

__all__ = [
    "COARSE",
    "Anatomy",
    "Body",
    "Warp",
    "anatomy_of",
    "cardiothoracic_ratio",
    "detailed_hu",
    "finer_grid",
    "jacobian",
    "locate",
    "normalised",
    "points",
    "sample",
    "sample_body",
    "warp",
]

COARSE = (GRID[0] // 2, GRID[1] // 2, GRID[2] // 2)
"""Grid on which maps, lobes and the heart are computed: half of `GRID` in each direction, 5.6
mm."""
_HALF_MM = np.array([GRID[2], GRID[1], GRID[0]]) * SPACING_MM / 2
_CARDIAC_SCALES = (0.78, 0.88, 1.0, 1.15, 1.3, 1.5, 1.75, 2.05)


@dataclass(frozen=True)
class Anatomy:
    """What the deformations and the pathology need to know of one atlas. Positions in mm, tensors
    float32.

    Attributes:
        volume: (1, 3, *GRID): HU, right lung, left lung (masks 0..1).
        slice_channels: (1, 5, *GRID): heart, blood, bone, organ, body (masks 0..1).
        coarse: (1, 6, *COARSE): the five lobes and the heart (masks 0..1).
        outward: (1, 4, *COARSE): vector (x, y, z) from the nearest point of the rib cage's hull,
            mm, 0 inside it; and how far inside the thorax a point is (0 at the hull, 1 from 25 mm
            inwards).
        heart, heart_half: centre and half widths of the heart.
        domes: side -> top of the hemidiaphragm.
        hila: side -> hilum.
        lobe_centres: lobe -> centre.
        cardiac: (scales, ratios), the cardiothoracic ratio that each heart scale gives.
    """

    person: str
    volume: Tensor
    slice_channels: Tensor
    coarse: Tensor
    outward: Tensor
    heart: np.ndarray
    heart_half: np.ndarray
    domes: dict[str, np.ndarray]
    hila: dict[str, np.ndarray]
    lobe_centres: dict[str, np.ndarray]
    cardiac: tuple[np.ndarray, np.ndarray] = (np.ones(1), np.ones(1))


@dataclass(frozen=True)
class Body:
    """Parameters of one patient.

    Attributes:
        stretch: patient size relative to the atlas in x, y, z.
        turn: small rotations about x, y, z, radians.
        shift: translation, mm.
        heart_scale: in-plane size of the heart relative to the atlas.
        domes_mm: rise of the (right, left) hemidiaphragm; negative is deeper inspiration.
        fat: thickness of the subcutaneous layer relative to the atlas.
        scoliosis_mm: lateral amplitude, and its phase in radians.
        mediastinum_mm: shift of the mediastinum to the patient's left.
        lobe_shrink: lobe name -> linear factor of its collapse (1 = none, 0.6 = to 60 % of its
            length).
        wobble: two arrays of B-spline coefficients, (3, 5, 5, 5) and (3, 9, 9, 9), mm.
    """

    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    turn: tuple[float, float, float] = (0.0, 0.0, 0.0)
    shift: tuple[float, float, float] = (0.0, 0.0, 0.0)
    heart_scale: float = 1.0
    domes_mm: tuple[float, float] = (0.0, 0.0)
    fat: float = 1.0
    scoliosis_mm: tuple[float, float] = (0.0, 0.0)
    mediastinum_mm: float = 0.0
    lobe_shrink: dict[str, float] = field(default_factory=dict)
    wobble: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class Warp:
    """A patient's backward map: normalised `grid_sample` coordinates.

    Attributes:
        coarse: (1, *COARSE, 3).
        full: (1, *GRID, 3).
        fine: (1, *finer_grid(scale), 3); `full` itself at scale 1.
    """

    coarse: Tensor
    full: Tensor
    fine: Tensor


def finer_grid(scale: int) -> tuple[int, int, int]:
    """Voxels (z, y, x) of a patient who is drawn ``scale`` times as finely as on `GRID`.

    Only z and x, the axes of the pictures, are finer: a finer film has smaller pixels and a finer
    slice the same thickness, and the work grows with the pixels.
    """
    return (GRID[0] * scale, GRID[1], GRID[2] * scale)


def _axes(shape: tuple[int, int, int]) -> list[Tensor]:
    """mm coordinates of the voxel centres along z, y, x."""
    return [
        (torch.arange(n, dtype=torch.float32) + 0.5) / n * 2 * float(h) - float(h)
        for n, h in zip(shape, _HALF_MM[::-1], strict=True)
    ]


def points(shape: tuple[int, int, int], box: tuple[slice, ...] | None = None) -> Tensor:
    """Centres of the voxels of a grid of that shape, or of a box of it: (..., 3) mm, order x, y,
    z."""
    axes = _axes(shape)
    if box is not None:
        axes = [axis[part] for axis, part in zip(axes, box, strict=True)]
    z, y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y, z], -1)


def normalised(points: Tensor) -> Tensor:
    """mm (x, y, z) to the -1..1 that `sample` takes."""
    return points / torch.tensor(_HALF_MM, dtype=torch.float32)


def sample(volume: Tensor, grid: Tensor, padding: str = "border") -> Tensor:
    """Trilinear sampling of (1, C, ...) at normalised coordinates (1, ..., 3) in the order x, y,
    z."""
    return functional.grid_sample(
        volume, grid, mode="bilinear", padding_mode=padding, align_corners=False
    )


def _mm(index_zyx: np.ndarray, voxel: float = SPACING_MM) -> np.ndarray:
    """Voxel index (z, y, x) to mm (x, y, z)."""
    return ((np.asarray(index_zyx, dtype=float) + 0.5) * voxel)[::-1] - _HALF_MM


def _half(volume: np.ndarray) -> np.ndarray:
    z, y, x = volume.shape
    return volume.reshape(z // 2, 2, y // 2, 2, x // 2, 2).mean((1, 3, 5), dtype=np.float32)


def _outward(lungs: np.ndarray) -> np.ndarray:
    """The `Anatomy.outward` field from the soft lung mask on the coarse grid."""
    voxel = 2 * SPACING_MM
    solid = lungs > 0.3
    low = np.nonzero(solid.any((1, 2)))[0].max()
    hull = np.zeros_like(solid)
    # per slice: the convex span of both lungs; below the lungs the last broad span goes on
    span: tuple[slice, slice] | None = None
    yy, xx = np.arange(solid.shape[1])[:, None], np.arange(solid.shape[2])[None, :]
    for z in range(solid.shape[0]):
        rows, cols = np.nonzero(solid[z])
        if len(rows) > 60 and z < low - 10:
            span = slice(rows.min(), rows.max() + 1), slice(cols.min(), cols.max() + 1)
        if span is not None:
            cy, cx = (span[0].start + span[0].stop - 1) / 2, (span[1].start + span[1].stop - 1) / 2
            ry, rx = (
                (span[0].stop - span[0].start) / 2 + 3.5,
                (span[1].stop - span[1].start) / 2 + 2.5,
            )
            hull[z] = (np.abs((yy - cy) / ry) ** 2.5 + np.abs((xx - cx) / rx) ** 2.5) <= 1
    index = ndimage.distance_transform_edt(~hull, return_distances=False, return_indices=True)
    vector = (
        np.stack([np.indices(hull.shape)[a] - index[a] for a in (2, 1, 0)]).astype(np.float32)
        * voxel
    )
    vector[2] = 0  # fat lies around the trunk, not above the shoulders
    length = np.sqrt((vector**2).sum(0, keepdims=True)) + 1e-6
    vector *= np.minimum(1, 60.0 / length)
    vector = np.stack([ndimage.gaussian_filter(v, 1.5) for v in vector])
    depth = np.clip(ndimage.distance_transform_edt(hull) * voxel / 25.0, 0, 1)
    return np.concatenate([vector, ndimage.gaussian_filter(depth, 1.0)[None]]).astype(np.float32)


def anatomy_of(atlas: ChestAtlas) -> Anatomy:
    """Measure an atlas; half a second, so keep the result."""
    lobes = {n: atlas.mask(n) for n in LOBES}
    right, left = atlas.mask("right"), atlas.mask("left")
    heart = atlas.mask("heart")
    volume = torch.from_numpy(np.stack([atlas.hu.astype(np.float32), right, left])[None])
    rest = torch.from_numpy(np.stack([atlas.mask(n) for n in CHANNELS[len(LOBES) :]])[None])
    for faces, air in ((volume, -1024.0), (rest, 0.0)):
        # sampling repeats the outermost voxels: beside, before and behind the grid there is air,
        # not more body
        faces[..., (0, -1)] = 0.0
        faces[..., (0, -1), :] = 0.0
        faces[:, :1, :, :, (0, -1)] = air
        faces[:, :1, :, (0, -1), :] = air
    coarse = np.stack([_half(m) for m in (*lobes.values(), heart)])
    where = np.argwhere(heart > 0.5)
    low, high = _mm(where.min(0)), _mm(where.max(0))
    domes, hila = {}, {}
    for side, mask in (("right", right), ("left", left)):
        # the dome: in the middle half of the lung's width and depth, the highest point below which
        # no lung is left
        inside = np.argwhere(mask > 0.5)
        lo, hi = np.quantile(inside, 0.02, axis=0), np.quantile(inside, 0.98, axis=0)
        ys = slice(int(lo[1] + 0.3 * (hi[1] - lo[1])), int(lo[1] + 0.6 * (hi[1] - lo[1])))
        xs = slice(int(lo[2] + 0.35 * (hi[2] - lo[2])), int(lo[2] + 0.75 * (hi[2] - lo[2])))
        column = mask[:, ys, xs] > 0.5
        bottom = np.where(column.any(0), GRID[0] - 1 - np.argmax(column[::-1], 0), GRID[0])
        y, x = np.unravel_index(np.argmin(bottom), bottom.shape)
        domes[side] = _mm(np.array([bottom[y, x], y + ys.start, x + xs.start]))
        top, base = lo[0], float(bottom[y, x])
        medial = np.quantile(inside[:, 2], 0.9 if side == "right" else 0.1)
        hila[side] = _mm(
            np.array([top + 0.52 * (base - top), lo[1] + 0.52 * (hi[1] - lo[1]), medial])
        )
    centres = {n: _mm(np.argwhere(m > 0.5).mean(0)) for n, m in lobes.items()}
    base_anatomy = Anatomy(
        person=atlas.person,
        volume=volume,
        slice_channels=rest,
        coarse=torch.from_numpy(coarse[None]),
        outward=torch.from_numpy(_outward(coarse[:5].sum(0))[None]),
        heart=_mm(where.mean(0)),
        heart_half=(high - low) / 2,
        domes=domes,
        hila=hila,
        lobe_centres=centres,
    )
    ratios = []
    for scale in _CARDIAC_SCALES:
        grid = _map(base_anatomy, Body(heart_scale=scale))
        ratios.append(cardiothoracic_ratio(sample(base_anatomy.coarse, grid)[0]))
    return replace(
        base_anatomy, cardiac=(np.array(_CARDIAC_SCALES), np.maximum.accumulate(np.array(ratios)))
    )


def detailed_hu(atlas: ChestAtlas) -> Tensor:
    """HU of an atlas as finely as its detail goes: float32 (1, 1, Z, Y, X), on `GRID` where it has
    none; air around it as in `Anatomy.volume`."""
    volume = torch.from_numpy(atlas.hu.astype(np.float32))
    around = 1
    if atlas.detail is not None:
        detail = torch.from_numpy(atlas.detail.astype(np.float32)) * DETAIL_HU
        volume, around = refine(volume, DETAIL_SCALE) + detail, DETAIL_SCALE
    volume[:, (0, -1)] = -1024.0
    volume[..., :around] = -1024.0
    volume[..., -around:] = -1024.0
    return volume[None, None]


def cardiothoracic_ratio(coarse: Tensor) -> float:
    """Greatest width of the heart over the greatest width of the lungs in the frontal view.

    Args:
        coarse: (6, *COARSE), the five lobes and the heart, warped. Edges are found at half coverage
            by interpolation.
    """

    def width(mask: Tensor) -> float:
        profile = mask.amax(1).amax(0).numpy()  # over y, then over z: (x)
        on = np.nonzero(profile > 0.5)[0]
        if len(on) < 2:
            return 0.0
        first, last = on[0], on[-1]
        left = (
            (profile[first] - 0.5) / (profile[first] - profile[first - 1] + 1e-6) if first else 0.0
        )
        right = (
            (profile[last] - 0.5) / (profile[last] - profile[last + 1] + 1e-6)
            if last + 1 < len(profile)
            else 0.0
        )
        return float(last - first + left + right)

    return width(coarse[5]) / max(width(coarse[:5].sum(0)), 1e-6)


def sample_body(
    rng: np.random.Generator, anatomy: Anatomy, heart_ratio: float, female: bool
) -> Body:
    """A random patient.

    Args:
        rng: source of all the choices; how much is drawn from it does not depend on the arguments.
        anatomy: the person that is deformed.
        heart_ratio: wanted cardiothoracic ratio (reached to about 0.02; the random parts add a
            little).
        female: smaller on average, with somewhat more subcutaneous fat.
    """
    height = rng.normal(0.0, 0.035)
    width = rng.normal(0.0, 0.035)
    depth = rng.normal(0.0, 0.05)
    turn = rng.normal(0.0, 1.0, 3) * np.array([0.02, 0.025, 0.03])
    shift = rng.normal(0.0, 1.0, 3) * np.array([4.0, 3.0, 5.0])
    breath = rng.normal(0.0, 6.0)
    domes = (breath + rng.normal(0.0, 4.0), breath + rng.normal(0.0, 4.0))
    fat = float(np.clip(rng.lognormal(0.0, 0.30), 0.6, 1.7))
    bend = float(np.clip(rng.normal(0.0, 3.5), -10, 10)), float(rng.uniform(0, 2 * np.pi))
    wobble = (rng.normal(0.0, 4.5, (3, 5, 5, 5)), rng.normal(0.0, 2.2, (3, 9, 9, 9)))
    small = -0.025 if female else 0.01
    scales, ratios = anatomy.cardiac
    return Body(
        stretch=(1 + small + width + 0.3 * height, 1 + small + depth, 1 + small + height),
        turn=(float(turn[0]), float(turn[1]), float(turn[2])),
        shift=(float(shift[0]), float(shift[1]), float(shift[2])),
        heart_scale=float(np.interp(heart_ratio, ratios, scales)),
        domes_mm=domes,
        fat=fat * (1.08 if female else 0.96),
        scoliosis_mm=bend,
        wobble=wobble,
    )


def _spline_matrix(n_out: int, n_in: int) -> Tensor:
    """Cubic B-spline basis: (n_out, n_in), rows sum to about 1."""
    at = np.linspace(0.5, n_in - 1.5, n_out)[:, None] - np.arange(n_in)[None, :]
    a = np.abs(at)
    b = np.where(a < 1, 2 / 3 - a**2 + a**3 / 2, np.where(a < 2, (2 - a) ** 3 / 6, 0))
    return torch.from_numpy((b / b.sum(1, keepdims=True)).astype(np.float32))


def _wobble(control: np.ndarray) -> Tensor:
    """(3, n, n, n) spline coefficients to a displacement (*COARSE, 3) in mm."""
    n = control.shape[1]
    mz, my, mx = (_spline_matrix(c, n) for c in COARSE)
    return torch.einsum("cabd,za,yb,xd->zyxc", torch.from_numpy(control).float(), mz, my, mx)


def _bump(q: Tensor, centre: np.ndarray, widths: tuple[float, float, float]) -> Tensor:
    d = (q - torch.tensor(centre, dtype=torch.float32)) / torch.tensor(widths)
    return torch.exp(-0.5 * (d * d).sum(-1))


def _heart(q: Tensor, anatomy: Anatomy, scale: float) -> Tensor:
    """Backward displacement that scales the heart by `scale` and fades towards the chest wall."""
    # the right border moves least: an enlarged heart grows towards its apex
    fixed = anatomy.heart - np.array([0.45 * anatomy.heart_half[0], 0, 0])
    grown = fixed + max(scale, 1.0) * (anatomy.heart - fixed)
    d = q - torch.tensor(fixed, dtype=torch.float32)
    half = torch.tensor(anatomy.heart_half * np.array([1.0, 0.9, 0.95]), dtype=torch.float32)
    rho = (((q - torch.tensor(grown, dtype=torch.float32)) / half) ** 2).sum(-1).sqrt() / max(
        scale, 1.0
    )
    weight = 1 / (1 + torch.exp((rho - 1.35) / 0.16))
    posterior = torch.sigmoid(
        (anatomy.heart_half[1] * 0.75 - d[..., 1]) / 6.0
    )  # the spine stays where it is
    amount = torch.tensor([1 - 1 / scale, 0.7 * (1 - 1 / scale), 0.55 * (1 - 1 / scale)])
    return -(d * amount) * (weight * posterior)[..., None]


def _lobe_anchor(anatomy: Anatomy, lobe: str) -> np.ndarray:
    """The point that a collapsing lobe shrinks towards."""
    side, which = lobe.split("_")
    hilum, dome = anatomy.hila[side], anatomy.domes[side]
    out = -1.0 if side == "right" else 1.0
    if which == "lower":
        return np.array([hilum[0] + 14 * out, hilum[1] + 26, dome[2] + 4])
    if which == "middle":
        return np.array([hilum[0] + 8 * out, anatomy.heart[1] - 4, hilum[2] + 38])
    centre = anatomy.lobe_centres[lobe]
    return np.array([hilum[0] + 14 * out, centre[1], centre[2] - 42])


def _map(anatomy: Anatomy, body: Body) -> Tensor:
    """Normalised backward coordinates on the coarse grid, (1, *COARSE, 3)."""
    p = points(COARSE)
    cx, cy, cz = np.cos(body.turn)
    sx, sy, sz = np.sin(body.turn)
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    matrix = np.diag(1 / np.array(body.stretch)) @ rx @ ry @ rz
    q = (p - torch.tensor(body.shift)) @ torch.tensor(matrix, dtype=torch.float32).T

    u = torch.zeros_like(q)
    for control in body.wobble:
        u = u + _wobble(control)
    amplitude, phase = body.scoliosis_mm
    if amplitude:
        u[..., 0] += amplitude * torch.sin(q[..., 2] / 110.0 + phase)
    for rise, side in zip(body.domes_mm, ("right", "left"), strict=True):
        if rise:
            centre = anatomy.domes[side] + np.array([0, 8.0, 4.0])
            u[..., 2] += rise * _bump(q, centre, (42.0, 58.0, 42.0))
    field_ = sample(anatomy.outward, normalised(q)[None])[0]
    if body.fat != 1:
        u = u + torch.movedim(field_[:3], 0, -1) * (1 / body.fat - 1)
    inside = torch.zeros_like(q)
    if body.heart_scale != 1:
        inside = inside + _heart(q, anatomy, body.heart_scale)
    if body.mediastinum_mm:
        centre = anatomy.heart * np.array([1, 1, 0.5])
        posterior = torch.sigmoid((anatomy.heart[1] + 38 - q[..., 1]) / 8.0)
        inside[..., 0] -= body.mediastinum_mm * _bump(q, centre, (48.0, 60.0, 75.0)) * posterior
    for lobe, factor in body.lobe_shrink.items():
        anchor = _lobe_anchor(anatomy, lobe)
        d = q - torch.tensor(anchor, dtype=torch.float32)
        widths = {
            "upper": (62.0, 90.0, 62.0),
            "middle": (58.0, 66.0, 40.0),
            "lower": (62.0, 75.0, 70.0),
        }
        w = _bump(q, anchor, widths[lobe.split("_")[1]])
        inside = inside + d * (1 / factor - 1) * w[..., None]
    u = u + inside * field_[3][..., None]
    return normalised(q + u)[None]


def warp(anatomy: Anatomy, body: Body, scale: int = 1) -> Warp:
    """The backward map of a patient; ``scale`` is that of `finer_grid`."""
    coarse = _map(anatomy, body)
    full = _interpolated(coarse, GRID)
    return Warp(coarse, full, full if scale == 1 else _interpolated(coarse, finer_grid(scale)))


def _interpolated(coarse: Tensor, shape: tuple[int, int, int]) -> Tensor:
    full = functional.interpolate(
        torch.movedim(coarse, -1, 1), size=shape, mode="trilinear", align_corners=False
    )
    # above and below the grid the body goes on: reflect, or its last slice would be drawn out into
    # stripes
    z = full[:, 2]
    full[:, 2] = torch.where(z.abs() > 1, z.sign() * 2 - z, z)
    return torch.movedim(full, 1, -1)


def locate(warp_: Warp, place: np.ndarray) -> np.ndarray:
    """Where in the patient a place of the atlas (mm, x, y, z) went: mm, to the nearest coarse
    voxel."""
    target = torch.tensor(place / _HALF_MM, dtype=torch.float32)
    distance = (
        ((warp_.coarse[0] - target) * torch.tensor(_HALF_MM, dtype=torch.float32)).square().sum(-1)
    )
    index = np.unravel_index(int(distance.argmin()), COARSE)
    return _mm(np.array(index), 2 * SPACING_MM)


def jacobian(warp_: Warp) -> Tensor:
    """Determinant of the backward map, (*COARSE minus 1 a side); positive where the map does not
    fold."""
    at = warp_.coarse[0] * torch.tensor(_HALF_MM, dtype=torch.float32)
    step = 2 * SPACING_MM
    dz = (at[1:, :-1, :-1] - at[:-1, :-1, :-1]) / step
    dy = (at[:-1, 1:, :-1] - at[:-1, :-1, :-1]) / step
    dx = (at[:-1, :-1, 1:] - at[:-1, :-1, :-1]) / step
    return torch.linalg.det(torch.stack([dx, dy, dz], -1))
