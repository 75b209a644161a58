"""A whole chest study from a seed: X-ray, and CT and MR of one coronal slice of the same virtual
patient.

All images are squares of 128 pixels (2.8 mm), 256 (1.4 mm) and so on over the same field of view,
rows from superior to inferior, columns from the patient's right to the left, in one common frame. A
larger picture shows the same patient (`medm2g_core.data.fields`): down to 1.4 mm with the detail of
the real CT, findings as sharp as their shapes are.

Four independent random streams feed a study (findings, body, slice depth, noise), so a finding can
be added or left out of an otherwise unchanged patient, and the depth of the slice tells nothing
about the findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medm2g_core.data import mri, xray
from medm2g_core.data.chest.atlas import (
    GRID,
    PERSONS,
    SPACING_MM,
    ChestAtlas,
    load_atlases,
)
from medm2g_core.data.chest.deform import (
    Anatomy,
    anatomy_of,
    detailed_hu,
    finer_grid,
    sample,
    sample_body,
    warp,
)
from medm2g_core.data.chest.draw import Scene, draw
from medm2g_core.data.chest.pathology import change_body, heart_ratio, sample_findings
from medm2g_core.data.fields import BASE_PX, scale_of, white_noise
from medm2g_core.data.findings import CHEST, check_finding
from medm2g_core.streams import Finding, hu_to_unit

__all__ = ["SLICE_RANGE", "render_chest", "slice_depth", "tissue_weights"]

SLICE_RANGE = (43, 48)
"""Range (inclusive) of the y index of the coronal slice: 17 mm around the hila. All five lobes and
the heart are cut by every slice of it, so that the depth need not depend on where a lesion is."""

CHEST_TISSUES: Mapping[str, mri.Tissue] = MappingProxyType(
    dict(mri.TISSUES) | {"fat": replace(mri.TISSUES["fat"], t2_ms=95.0, pd=0.68)}
)
"""Chest MR is made with fast spin echo, where fat decays more slowly than its single-echo T2
(Henkelman et al., J Magn Reson Imaging 2:533, 1992); 95 ms and the proton density are choices."""

_ANATOMIES: dict[int, tuple[ChestAtlas, Anatomy]] = {}
_DETAILED: dict[int, tuple[ChestAtlas, Tensor]] = {}


def _anatomy(atlas: ChestAtlas) -> Anatomy:
    """`anatomy_of`, kept per atlas object."""
    known = _ANATOMIES.get(id(atlas))
    if known is None or known[0] is not atlas:
        known = _ANATOMIES[id(atlas)] = (atlas, anatomy_of(atlas))
    return known[1]


def _detailed(atlas: ChestAtlas) -> Tensor:
    """`detailed_hu`, kept per atlas object (25 MB a person)."""
    known = _DETAILED.get(id(atlas))
    if known is None or known[0] is not atlas:
        known = _DETAILED[id(atlas)] = (atlas, detailed_hu(atlas))
    return known[1]


def slice_depth(seed: int) -> int:
    """y index of the coronal slice of a study; depends on the seed alone."""
    low, high = SLICE_RANGE
    return int(np.random.default_rng([seed, 2]).integers(low, high + 1))


def _ramp(hu: Tensor, low: float, high: float) -> Tensor:
    """0 at `low`, 1 at `high`, linear between, clipped."""
    return ((hu - low) / (high - low)).clamp(0, 1)


def tissue_weights(
    hu: Tensor,
    lung: Tensor,
    masks: Mapping[str, Tensor],
    fluid: Tensor,
    opaque: Tensor,
    lesion: Tensor,
    scale: int = 1,
) -> dict[str, Tensor]:
    """Tissue fractions of one slice for `medm2g_core.data.mri.render`, driven by Hounsfield units.

    Masks say what a voxel may be, HU how much of it: fat from -100 to 30 HU, the rest muscle,
    liver, myocardium or blood; cortical bone above 200 HU, marrow below; lung by its density.

    Args:
        hu: (H, W) with the findings drawn.
        lung: (H, W), 0..1, of aerated lung.
        masks: ``"heart"``, ``"blood"``, ``"bone"``, ``"organ"``, ``"body"``, (H, W), 0..1.
        fluid, opaque, lesion: (H, W), 0..1, as in `Scene`.
        scale: how many pixels lie along one of the base picture; what counts as
            near is 2.8 mm.

    Returns:
        tissue name -> (H, W) fraction; they sum to 1 or less (the rest is air).
    """
    reach, window = scale, 2 * scale + 1
    drawn = torch.maximum(torch.maximum(fluid, opaque), lesion)
    lung = (lung * (1 - torch.maximum(fluid, lesion))).clamp(0, 1)
    # next to air or lung a low HU is partial volume, not fat: the tissue is that of the densest
    # neighbour
    densest = functional.max_pool2d(hu[None, None], window, 1, reach)[0, 0].clamp(-100, 90)
    lightest = -functional.max_pool2d(-hu[None, None], window, 1, reach)[0, 0]
    near = functional.max_pool2d(lung[None, None], window, 1, reach)[0, 0] > 0.5
    edge = ((lightest < -350) | near) & (lung < 0.97) & (hu < densest)
    wall = torch.where(edge, densest, hu)
    empty = torch.where(edge, ((densest - hu) / (densest + 880)).clamp(0, 1), lung)
    lung = torch.where(edge, empty * (lung > 0.02), lung)
    solid = 1 - empty
    bone = masks["bone"].clamp(0, 1)
    cortical = bone * _ramp(wall, 190, 420)
    marrow = bone * (1 - cortical / bone.clamp_min(1e-3)) * _ramp(wall, 20, 110)
    soft = (1 - cortical - marrow).clamp(0, 1) * _ramp(wall, -950, -150)
    lean = soft * _ramp(wall, -95, 25)
    fat = soft - lean
    heart, blood, organ = masks["heart"], masks["blood"], masks["organ"]
    chamber = lean * blood
    myocardium = lean * (heart - blood).clamp(0, 1)
    liver = lean * (organ * (1 - blood)).clamp(0, 1)
    muscle = (lean - chamber - myocardium - liver).clamp_min(0)
    # parenchyma up to -650 HU, above that more and more vessel
    vessel = lung * _ramp(hu, -650, 20) * ~edge
    parenchyma = lung * torch.where(edge, 1.0, _ramp(hu, -1000, -800) * (1 - _ramp(hu, -650, 20)))
    weights = {
        "fat": fat * solid,
        "muscle": muscle * solid,
        "soft_tissue": liver * solid,
        "myocardium": myocardium * solid,
        "blood": 0.45 * chamber * solid + 0.35 * vessel,
        "flowing_blood": 0.55 * chamber * solid + 0.65 * vessel,
        "bone": cortical * solid,
        "marrow": marrow * solid,
        "lung": parenchyma,
    }
    weights = {name: w * (1 - drawn) for name, w in weights.items()}
    lesion = lesion * (1 - fluid)
    opaque = (opaque - fluid - lesion).clamp_min(0) * _ramp(hu, -950, -50).clamp_min(0.35)
    return weights | {"fluid": fluid, "tumor": lesion, "consolidation": opaque}


def _texture(scale: int, rng: np.random.Generator) -> Tensor:
    """Reconstruction noise of the CT slice, HU: white noise with its lowest frequencies taken
    off."""
    noise = torch.from_numpy(white_noise((GRID[0], GRID[2]), rng, scale).astype(np.float32))
    smooth = functional.avg_pool2d(noise[None, None], 5, 1, 2)[0, 0]
    return 11.0 * (noise - 0.8 * smooth)


def render_chest(
    seed: int,
    *,
    atlases: Mapping[str, ChestAtlas] | None = None,
    person: str | None = None,
    findings: Sequence[Finding] | None = None,
    size: int = BASE_PX,
) -> dict[str, Any]:
    """One virtual chest study; the same seed gives the same study in any process of one machine.

    Args:
        seed: non-negative.
        atlases: as from `load_atlases`, which is called when none are given; with detail for sizes
            above 128.
        person: whose anatomy; by default one of `PERSONS`, evenly.
        findings: what the patient has; by default `sample_findings`. ``()`` is a normal chest.
        size: side of the pictures in pixels: 128 times a power of two. Everything else of the study
            is the same at every size.

    Returns:
        ``images``: ``"xray"``, ``"ct"``, ``"mri_t1"``, ``"mri_t2"`` -> float32 (1, size, size) in
        -1..1; ``findings``: tuple of `Finding`; ``person``; ``age`` in years; ``sex``;
        ``spacing_mm``; ``slice_index``: y index of the coronal slice.

    Raises:
        ValueError: an unknown person, a finding that its kind does not allow, or another size.
    """
    scale = scale_of(size)
    if atlases is None:
        atlases = load_atlases(detail=scale > 1)
    who = np.random.default_rng([seed, 0])
    drawn_person = PERSONS[int(who.integers(len(PERSONS)))]
    person = drawn_person if person is None else person
    if person not in atlases:
        raise ValueError(f"no chest of {person!r}; there are: {', '.join(atlases)}")
    female = bool(who.random() < 0.5)
    age = int(np.clip(who.normal(58, 16), 20, 90))
    findings = (
        sample_findings(np.random.default_rng([seed, 1])) if findings is None else tuple(findings)
    )
    for finding in findings:
        if check_finding(finding).name not in CHEST:
            raise ValueError(f"{finding.name} is not a finding of the chest")

    anatomy = _anatomy(atlases[person])
    shape = np.random.default_rng([seed, 3])
    ratio = heart_ratio(findings, shape)
    body = sample_body(shape, anatomy, ratio, female)
    body = change_body(body, findings, shape)
    map_ = warp(anatomy, body, scale)
    volume = sample(anatomy.volume, map_.full)[0]
    coarse = sample(anatomy.coarse, map_.coarse)[0]
    base_lung = {"right": volume[1], "left": volume[2]}
    hu, lung = volume[0], base_lung
    if scale > 1:
        hu = sample(_detailed(atlases[person]), map_.fine)[0, 0]
        fine = sample(anatomy.volume[:, 1:], map_.fine)[0]
        lung = {"right": fine[0], "left": fine[1]}
    y = slice_depth(seed)
    scene = Scene(
        hu=hu,
        lung=lung,
        base_lung=base_lung,
        lobes=coarse[:5],
        slice_index=y,
        warp=map_,
        anatomy=anatomy,
        scale=scale,
        fluid=torch.zeros(finer_grid(scale)),
        opaque=torch.zeros(finer_grid(scale)),
        lesion=torch.zeros(finer_grid(scale)),
    )
    draw(scene, findings, (seed, 4))

    noise = [np.random.default_rng([seed, 5, i]) for i in range(4)]
    rest = sample(anatomy.slice_channels, map_.fine[:, :, y : y + 1])[0, :, :, 0]
    masks = dict(zip(("heart", "blood", "bone", "organ", "body"), rest, strict=True))
    hu = scene.hu[:, y]
    weights = tissue_weights(
        hu,
        (scene.lung["right"] + scene.lung["left"])[:, y].clamp(0, 1),
        masks,
        scene.fluid[:, y],
        scene.opaque[:, y],
        scene.lesion[:, y],
        scale,
    )
    images = {
        "xray": xray.film(scene.hu, SPACING_MM, 1, noise[0], scale=scale),
        "ct": hu_to_unit(hu + _texture(scale, noise[1])),
        "mri_t1": mri.render(weights, "t1", noise[2], tissues=CHEST_TISSUES, scale=scale),
        "mri_t2": mri.render(weights, "t2", noise[3], tissues=CHEST_TISSUES, scale=scale),
    }
    return {
        "images": {n: i.float()[None].contiguous() for n, i in images.items()},
        "findings": findings,
        "person": person,
        "age": age,
        "sex": "female" if female else "male",
        "spacing_mm": (SPACING_MM / scale, SPACING_MM / scale),
        "slice_index": y,
    }
