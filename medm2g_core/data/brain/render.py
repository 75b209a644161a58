"""A virtual brain study: one axial slice of a deformed MNI152 brain in four MR contrasts.

Pictures are squares of 128 pixels (1.8 mm), 256 (0.9 mm) and so on over the same field of view.
They are made from one canvas of 0.9 mm, as fine as the template, on which all random choices are
made; for more than 256 pixels its smooth fields (coordinates, distances, noise) are carried on and
the tissues are found again at every pixel.

The slice's level, the person's shape, the findings and the noise have random streams of their own.
So the level tells nothing about the findings, and the same seed with other findings is the same
person in the same slice.

There is no ``ct`` stream: in the fixed window of -1000..600 HU grey matter (37 HU) and white matter
(30 HU) differ by 0.4 % of the range, and a skull made from distance shells is not real anatomy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from medm2g_core.data.brain.atlas import BrainAtlas, load_atlas, lobe_index
from medm2g_core.data.brain.pathology import (
    VENTRICLE_GROWTH_MM,
    Plane,
    draw_edema,
    draw_tumor,
    draw_white_matter_lesions,
    push,
    refined,
    sample_findings,
    smooth_noise,
    sort_findings,
)
from medm2g_core.data.fields import BASE_PX, scale_of
from medm2g_core.data.mri import SEQUENCES, TISSUES, Tissue, finish, signal
from medm2g_core.streams import Finding

__all__ = ["IMAGE_SIZE", "LEVEL_MM", "PERSON", "SPACING_MM", "render_brain", "slice_level"]

PERSON = "mni152"
IMAGE_SIZE = BASE_PX
SPACING_MM = 1.8
"""Pixel of a picture of `IMAGE_SIZE` pixels a side."""
LEVEL_MM = (15.0, 26.0)
"""MNI z of the slice at the brain's centre, mm: levels that cut the lateral ventricles and all four
lobes."""

_OVERSAMPLING = 2
"""Canvas pixels along one of a picture of `IMAGE_SIZE`, which averages the signal over them, so
that tissues mix inside a pixel."""
_CANVAS_PX = IMAGE_SIZE * _OVERSAMPLING
_CANVAS_MM = SPACING_MM / _OVERSAMPLING
_CENTRE_Y_MM = -17.0  # MNI y of the picture's centre
_STREAMS = ("level", "shape", "texture", "findings", "lesions", "noise")


def _rngs(seed: int) -> dict[str, np.random.Generator]:
    children = np.random.SeedSequence(seed).spawn(len(_STREAMS))
    return {n: np.random.default_rng(c) for n, c in zip(_STREAMS, children, strict=True)}


def slice_level(seed: int) -> float:
    """MNI z in mm of that seed's slice, uniform in `LEVEL_MM`; it does not depend on the
    findings."""
    return float(_rngs(seed)["level"].uniform(*LEVEL_MM))


def _coordinates(level: float, sex: str, rng: np.random.Generator) -> np.ndarray:
    """MNI coordinates (3, H, W) of the canvas in one person's head: pose, size and a smooth random
    warp."""
    n, mm = _CANVAS_PX, _CANVAS_MM
    offset = (np.arange(n) - (n - 1) / 2) * mm
    # Rows run from anterior to posterior, columns from the patient's right to the left: y and x
    # fall.
    y, x = np.meshgrid(-offset, -offset, indexing="ij")
    p = np.stack([x, y, np.zeros_like(x)])
    yaw, pitch, roll = np.deg2rad(rng.normal(0.0, (2.5, 3.0, 2.0)))
    cy, sy, cp, sp, cr, sr = (
        np.cos(yaw),
        np.sin(yaw),
        np.cos(pitch),
        np.sin(pitch),
        np.cos(roll),
        np.sin(roll),
    )
    turn = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1.0]])
    turn = (
        turn
        @ np.array([[1.0, 0, 0], [0, cp, -sp], [0, sp, cp]])
        @ np.array([[cr, 0, sr], [0, 1.0, 0], [-sr, 0, cr]])
    )
    scale = np.clip(rng.normal((1.01, 0.99, 1.0), 0.03), 0.92, 1.06) * (
        0.975 if sex == "female" else 1.0
    )
    q = np.einsum("ij,jhw->ihw", turn, p) / scale[:, None, None]
    q += np.array([rng.normal(0, 2.0), _CENTRE_Y_MM + rng.normal(0, 2.0), level])[:, None, None]
    # Head shape (60 mm), regional (30 mm) and gyral (12 mm) variation.
    for width_mm, amplitude in ((60.0, 1.9), (30.0, 1.5), (12.0, 1.0)):
        for axis in range(3):
            q[axis] += amplitude * smooth_noise((n, n), width_mm / mm, rng)
    return q


def _grow_ventricles(
    xyz: np.ndarray, atlas: BrainAtlas, growth_mm: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of tissue moved outwards by the ventricles, and the new signed distance to their
    wall.

    Tissue at distance ``d >= growth`` from the old wall has come from ``d - growth e^(-(d - growth)
    / 16 mm)``.
    """
    d = atlas.sample("ventricle_mm", xyz)
    if growth_mm <= 0:
        return xyz, d
    mm = _CANVAS_MM
    x = np.abs(xyz[0])
    # The callosal body and the septum between the ventricles give way least.
    growth = (
        growth_mm
        * (0.55 + 0.45 * np.clip(x / 16.0, 0.0, 1.0))
        * (1.0 + 0.12 * smooth_noise(d.shape, 25.0 / mm, rng))
    )
    smooth = ndimage.gaussian_filter(d, 3.0 / mm)
    slope = np.stack(np.gradient(smooth, mm))
    slope /= np.maximum(np.hypot(slope[0], slope[1]), 0.3)
    depth = atlas.sample("depth_mm", xyz)
    moved = growth * np.exp(-np.maximum(d - growth, 0.0) / 16.0) * np.clip(-depth / 12.0, 0.0, 1.0)
    rows, cols = np.indices(d.shape)
    at = np.stack([rows - slope[0] * moved / mm, cols - slope[1] * moved / mm])
    warped = np.stack([ndimage.map_coordinates(c, at, order=1, mode="nearest") for c in xyz])
    return warped, np.maximum(d - growth, np.minimum(d, 0.9 - x))


def _tissue_maps(
    xyz: np.ndarray, wall: np.ndarray, atlas: BrainAtlas, atrophy: float
) -> dict[str, np.ndarray]:
    """Grey matter, white matter and CSF fractions, template texture and distance to the hull, each
    (H, W).

    ``atrophy`` 0..1 opens the sulci and the space under the skull.
    """
    gm, wm, csf = (atlas.sample(n, xyz) for n in ("gm", "wm", "csf"))
    depth = atlas.sample("depth_mm", xyz)
    ventricle = 1.0 / (1.0 + np.exp(np.clip(wall / 0.35, -30, 30)))
    # An average of 152 people is blurred; powers make each voxel choose its tissue more sharply
    # again. The weight on CSF opens the sulci, but only towards the surface, where sulci are.
    outer = np.clip(1.0 + (depth + 8.0) / 14.0, 0.0, 1.0)
    weight = 1.0 + outer * (1.3 + 5.0 * atrophy)
    gm, wm, csf = gm**1.8, wm**1.8, weight * csf**1.8
    # Near the ventricles fluid is decided by the distance to their wall alone.
    csf = np.where((wall > -1.0) & (wall < 9.0) & (depth < -22), 0.0, csf)
    skin_of_csf = 1.0 / (1.0 + np.exp(-np.clip((depth + 0.2 + 1.7 * atrophy) / 0.5, -30, 30)))
    csf = csf + 2.0 * skin_of_csf
    total = gm + wm + csf
    inside = 1.0 / (1.0 + np.exp(np.clip((depth - 0.9) / 0.35, -30, 30)))
    keep = np.where(total > 1e-3, inside / np.maximum(total, 1e-3), 0.0) * (1.0 - ventricle)
    maps = {"gm": gm * keep, "wm": wm * keep, "csf": csf * keep + ventricle * inside}
    empty = inside - maps["gm"] - maps["wm"] - maps["csf"]
    deep_gap = (wall > -1.0) & (wall < 9.0) & (depth < -22)
    maps["wm"] += np.where(deep_gap, empty, 0.0)
    maps["csf"] += np.where(deep_gap, 0.0, empty)
    return maps | {"texture": atlas.sample("texture", xyz), "depth": depth}


def _head_shells(
    xyz: np.ndarray, depth: np.ndarray, scale: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Skull, marrow, muscle, fat and skin fractions (H, W) from the distance to the brain: a model,
    as the template is skull-stripped. Thicknesses vary around the head and between people (choice:
    anatomical textbook ranges in mm). ``scale``: pixels of these arrays along one of the canvas.
    """
    n = depth.shape
    canvas = (_CANVAS_PX, _CANVAS_PX)

    def wavy(mean: float, person: float, around: float, width_mm: float) -> np.ndarray:
        thickness = rng.normal(mean, person) + around * smooth_noise(
            canvas, width_mm / _CANVAS_MM, rng
        )
        return refined(np.clip(thickness, 0.3 * mean, 2.0 * mean), scale)

    x, y = np.abs(xyz[0]), xyz[1]
    temple = np.exp(-(((x - 66) / 16) ** 2) - (((y - 12) / 26) ** 2))
    midline_back = np.exp(-((x / 30) ** 2) - (((y + 104) / 25) ** 2))
    layers = (
        ("bone", wavy(1.9, 0.2, 0.25, 30) * (1 - 0.3 * temple) + 0.6),  # dura and inner table
        ("marrow", wavy(2.2, 0.5, 0.6, 25) * (1 - 0.85 * temple) + 1.2 * midline_back),
        ("bone", wavy(1.8, 0.2, 0.2, 30) * (1 - 0.25 * temple)),  # outer table
        ("muscle", 0.6 + wavy(5.5, 1.2, 0.5, 30) * temple + 2.0 * midline_back),
        ("scalp", wavy(3.6, 0.8, 0.5, 40) * (1 - 0.35 * temple)),
        ("skin", wavy(1.7, 0.2, 0.1, 40)),
    )
    out = {name: np.zeros(n) for name, _ in layers}
    edge = np.full(n, 0.9)

    def beyond(limit: np.ndarray) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-np.clip((depth - limit) / 0.3, -30, 30)))

    for name, thickness in layers:
        out[name] += beyond(edge) - beyond(edge + thickness)
        edge = edge + thickness
    return out


def _persons_tissue(name: str, rng: np.random.Generator) -> Tissue:
    t = TISSUES[name]
    a, b, c = np.exp(rng.normal(0.0, (0.03, 0.03, 0.015)))
    return Tissue(name, t.t1_ms * a, t.t2_ms * b, min(t.pd * c, 1.0))


@dataclass(frozen=True)
class _Anatomy:
    """What a slice shows before lesions are drawn; every array is (..., H, W).

    Attributes:
        mm: pixel size.
        maps: as from `_tissue_maps`.
        xyz: MNI coordinates, mm.
        wall: signed distance to the ventricle wall, mm.
    """

    mm: float
    maps: dict[str, np.ndarray]
    xyz: np.ndarray
    wall: np.ndarray

    def plane(self, coarser: Plane | None = None) -> Plane:
        m = self.maps
        lobe = lobe_index(self.xyz)
        return Plane(self.mm, self.xyz, m["wm"], m["depth"], self.wall, lobe, coarser)

    def moved(self, pull: np.ndarray) -> _Anatomy:
        """Every pixel shows what lies ``pull`` mm (2, H, W) further along rows and columns."""
        rows, cols = np.indices(self.wall.shape)
        at = np.stack([rows + pull[0] / self.mm, cols + pull[1] / self.mm])

        def there(field: np.ndarray) -> np.ndarray:
            return ndimage.map_coordinates(field, at, order=1, mode="nearest")

        maps = {name: there(field) for name, field in self.maps.items()}
        return _Anatomy(self.mm, maps, np.stack([there(c) for c in self.xyz]), there(self.wall))


def _planes(canvas: _Anatomy, fine: _Anatomy) -> Plane:
    """The plane that is drawn on, with the canvas below it where it is finer."""
    return canvas.plane() if fine is canvas else fine.plane(canvas.plane())


def render_brain(
    seed: int, *, findings: tuple[Finding, ...] | None = None, size: int = IMAGE_SIZE
) -> dict[str, Any]:
    """One virtual patient's axial brain slice in four MR contrasts.

    Args:
        seed: the patient; the same seed gives the same study.
        findings: what the patient has; drawn by `sample_findings` where ``None``. An empty tuple is
            a normal brain.
        size: side of the pictures in pixels: 128 times a power of two. Everything else of the study
            is the same at every size.

    Returns:
        ``images`` (``mri_t1``, ``mri_t2``, ``mri_pd``, ``mri_flair`` -> float32 (1, size, size),
        -1..1, rows anterior to posterior, columns patient's right to left), ``findings``,
        ``person`` (``"mni152"``), ``age`` in years, ``sex`` and ``spacing_mm``. Age and sex shape
        the brain but are drawn independently of the findings.

    Raises:
        ValueError: another size, or findings that the brain cannot have, see
            `medm2g_core.data.brain.pathology.sort_findings`.
        FileNotFoundError: nilearn's template is missing, see
            `medm2g_core.data.brain.atlas.load_atlas`.
    """
    scale = scale_of(size)
    finer = max(size // _CANVAS_PX, 1)  # pixels of the arrays below along one of the canvas
    rngs = _rngs(seed)
    level = float(rngs["level"].uniform(*LEVEL_MM))
    drawn = sample_findings(rngs["findings"])
    found = {f.name: f for f in (drawn if findings is None else sort_findings(findings))}
    shape = rngs["shape"]
    age, sex = int(shape.integers(20, 88)), str(shape.choice(["female", "male"]))
    atrophy = float(np.clip((age - 35) / 50 + shape.normal(0, 0.08), 0.0, 1.0))
    healthy_growth = float(np.clip(0.9 * atrophy + shape.normal(0.1, 0.25), 0.0, 1.3))
    atlas = load_atlas()
    lesion_rng = {
        n: np.random.default_rng(s)
        for n, s in zip(
            ("tumor", "vasogenic_edema", "white_matter_lesions", "ventriculomegaly"),
            rngs["lesions"].integers(0, 2**63, 4),
            strict=True,
        )
    }

    base = _coordinates(level, sex, shape)
    growth = healthy_growth
    if "ventriculomegaly" in found:
        most = VENTRICLE_GROWTH_MM[found["ventriculomegaly"].size]
        growth = 0.5 * healthy_growth + most * float(
            lesion_rng["ventriculomegaly"].uniform(0.9, 1.1)
        )
    xyz, wall = _grow_ventricles(base, atlas, growth, lesion_rng["ventriculomegaly"])
    canvas = _Anatomy(_CANVAS_MM, _tissue_maps(xyz, wall, atlas, atrophy), xyz, wall)
    fine, head = canvas, refined(base, finer)
    if finer > 1:
        xyz, wall = refined(xyz, finer), refined(wall, finer)
        maps = _tissue_maps(xyz, wall, atlas, atrophy)
        fine = _Anatomy(_CANVAS_MM / finer, maps, xyz, wall)
    shells = _head_shells(head, atlas.sample("depth_mm", head), finer, shape)

    now = _planes(canvas, fine)
    tumor = edema = lesions = None
    if "tumor" in found:
        rng = lesion_rng["tumor"]
        tumor = draw_tumor(now, found["tumor"], rng)
        size_mm, strength = float(found["tumor"].size_mm or 0), float(rng.uniform(0.35, 0.7))
        moved = canvas.moved(push(now.base, tumor, size_mm, strength))
        fine = moved if fine is canvas else fine.moved(push(now, tumor, size_mm, strength))
        canvas = moved
        now = _planes(canvas, fine)
        if "vasogenic_edema" in found:
            edema = draw_edema(now, tumor, found["vasogenic_edema"], lesion_rng["vasogenic_edema"])
    if "white_matter_lesions" in found:
        lesions = draw_white_matter_lesions(
            now, found["white_matter_lesions"], lesion_rng["white_matter_lesions"]
        )
    maps = fine.maps

    # Fractions: a lesion replaces its share of whatever healthy tissue is there.
    fractions: dict[str, np.ndarray] = {k: maps[k] for k in ("gm", "wm", "csf")}
    for name, lesion in (("wm_lesion", lesions), ("edema", edema)):
        if lesion is not None:
            fractions = {k: v * (1 - lesion) for k, v in fractions.items()} | {name: lesion}
    if tumor is not None:
        whole = np.clip(tumor.solid + tumor.core, 0.0, 1.0)
        fractions = {k: v * (1 - whole) for k, v in fractions.items()}
        fractions |= {"tumor": tumor.solid, "necrosis": tumor.core}
    fractions |= shells

    texture_rng = rngs["texture"]
    grain = 0.012 * now.noise(2.5 / _CANVAS_MM, texture_rng) + 0.012 * now.noise(
        8 / _CANVAS_MM, texture_rng
    )
    # Brighter on the T1 template means a shorter T1 and less free water.
    ratio = np.clip(maps["texture"], 0.8, 1.2) + grain
    t1_factor = {"gm": ratio**-1.4, "wm": ratio**-1.2}
    pd_factor = {"gm": ratio**-0.25, "wm": ratio**-0.25}
    t2_factor = {"gm": ratio**-0.5, "wm": ratio**-0.5}
    if tumor is not None:
        uneven = np.exp(0.2 * tumor.texture)
        t1_factor["tumor"] = t2_factor["tumor"] = uneven
    for name in ("edema", "wm_lesion"):
        t2_factor[name] = np.exp(4.0 * grain)
    for name in ("scalp", "muscle", "marrow"):
        pd_factor[name] = 1.0 + 5.0 * grain

    tissues = {n: _persons_tissue(n, texture_rng) for n in sorted(TISSUES)}
    noise = rngs["noise"]
    images: dict[str, Tensor] = {}
    for contrast in SEQUENCES:
        clean = torch.zeros(now.shape)
        for name, fraction in fractions.items():
            t = tissues[name]
            t1, t2, pd = (
                torch.from_numpy(np.asarray(value * factor.get(name, 1.0), np.float32))
                for value, factor in ((t.t1_ms, t1_factor), (t.t2_ms, t2_factor), (t.pd, pd_factor))
            )
            clean = clean + torch.from_numpy(fraction.astype(np.float32)) * signal(
                t1, t2, pd, contrast
            )
        shrink = clean.shape[0] // size
        if shrink > 1:
            clean = torch.nn.functional.avg_pool2d(clean[None, None], shrink)[0, 0]
        images[f"mri_{contrast}"] = finish(clean, contrast, noise, scale=scale)[None]
    return {
        "images": images,
        "findings": tuple(found.values()),
        "person": PERSON,
        "age": age,
        "sex": sex,
        "spacing_mm": (SPACING_MM / scale, SPACING_MM / scale),
    }
