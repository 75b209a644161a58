"""The brain atlas: soft tissue maps on a 1 mm grid, made from the MNI152 template that nilearn
carries.

Source: the ICBM 2009a nonlinear symmetric average of 152 adults (T1, grey and white matter), as
installed with nilearn. It is skull-stripped, so everything outside the brain is a model: shells at
a distance from the brain hull.

The derived maps are cached as one npz of a few MB under `medm2g_core.data.wheels.cache_dir`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.nifti1 import Nifti1Image
from scipy import ndimage

from medm2g_core.data.wheels import cache_dir

__all__ = ["LOBES", "BrainAtlas", "load_atlas", "lobe_index"]

LOBES: tuple[str, ...] = ("frontal", "parietal", "temporal", "occipital")

_VERSION = 1
_Z_RANGE_MM = (-8.0, 50.0)  # what slices around the lateral ventricles can reach after deformation
_FILES = {
    "t1": "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
    "gm": "mni_icbm152_gm_tal_nlin_sym_09a_converted.nii.gz",
    "wm": "mni_icbm152_wm_tal_nlin_sym_09a_converted.nii.gz",
}


@dataclass(frozen=True)
class BrainAtlas:
    """Maps with axes (x, y, z) = (left to right, posterior to anterior, inferior to superior), 1 mm
    voxels.

    Attributes:
        gm, wm, csf: uint8, 255 is a fraction of 1; they sum to at most 1 and to 1 inside the brain
            hull.
        texture: uint8, template T1 intensity over what the tissue fractions predict; 128 is a ratio
            of 1, 255 of 1.5.
        depth_mm: float32 signed distance to the brain hull, negative inside.
        ventricle_mm: float32 signed distance to the wall of the lateral and third ventricles,
            negative inside.
        origin_mm: MNI coordinates of voxel (0, 0, 0).
    """

    gm: np.ndarray
    wm: np.ndarray
    csf: np.ndarray
    texture: np.ndarray
    depth_mm: np.ndarray
    ventricle_mm: np.ndarray
    origin_mm: np.ndarray

    def sample(self, name: str, xyz_mm: np.ndarray) -> np.ndarray:
        """A map at MNI coordinates (3, ...), linearly interpolated: fraction, ratio or mm, float32
        (...)."""
        volume = getattr(self, name)
        index = xyz_mm - self.origin_mm.reshape(3, *([1] * (xyz_mm.ndim - 1)))
        outside = {"depth_mm": 99.0, "ventricle_mm": 99.0, "texture": 128.0}.get(name, 0.0)
        out = ndimage.map_coordinates(
            volume, index, output=np.float32, order=1, mode="constant", cval=outside
        )
        if name == "texture":
            return 1.0 + (out - 128.0) / 254.0
        return out / 255.0 if volume.dtype == np.uint8 else out


def lobe_index(xyz_mm: np.ndarray) -> np.ndarray:
    """Lobe of each MNI coordinate (3, ...): index into `LOBES`, int8 (...).

    An approximation by planes, meant for axial levels between z = 10 and 35 mm:

    * central sulcus: frontal is in front of ``y = -10 - 0.3 (z - 15)``;
    * parieto-occipital sulcus and its lateral continuation: occipital is behind ``y = -66 - 0.45 (z
      - 12)``;
    * Sylvian fissure, rising backwards: temporal is lateral (``|x| > 27``) and below ``z = 14 + 0.3
      (-15 - y)``, or ``z < 12`` in front of ``y = -15``;
    * parietal is the rest. Insula and deep nuclei fall to the lobe beside them.
    """
    x, y, z = xyz_mm
    lobe = np.full(y.shape, LOBES.index("parietal"), np.int8)
    lobe[y > -10.0 - 0.3 * (z - 15.0)] = LOBES.index("frontal")
    fissure = np.where(y > -15.0, 12.0, 14.0 + 0.3 * (-15.0 - y))
    lobe[(np.abs(x) > 27.0) & (z < fissure) & (y < 12.0)] = LOBES.index("temporal")
    lobe[y < -66.0 - 0.45 * (z - 12.0)] = LOBES.index("occipital")
    return lobe


def _template_folder() -> Path:
    spec = importlib.util.find_spec("nilearn")
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "nilearn is not installed; it carries the MNI152 template: pip install nilearn"
        )
    folder = Path(spec.origin).parent / "datasets" / "data"
    missing = [n for n in _FILES.values() if not (folder / n).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {', '.join(missing)}; needed the MNI152 maps of nilearn 0.8 or later"
        )
    return folder


def _ball(radius: int) -> np.ndarray:
    grid = np.arange(-radius, radius + 1)
    return (
        grid[:, None, None] ** 2 + grid[None, :, None] ** 2 + grid[None, None, :] ** 2
    ) <= radius**2


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance in voxels to the edge of a mask, negative inside."""
    return np.where(
        mask,
        0.5 - ndimage.distance_transform_edt(mask),
        ndimage.distance_transform_edt(~mask) - 0.5,
    )


def _ventricles(csf: np.ndarray, depth: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Mask of the lateral and third ventricles: the deep CSF that hangs together near the
    midline."""
    x = np.arange(csf.shape[0])[:, None, None] + origin[0]
    y = np.arange(csf.shape[1])[None, :, None] + origin[1]
    z = np.arange(csf.shape[2])[None, None, :] + origin[2]
    room = (np.abs(x) < 40) & (y > -62) & (y < 38) & (depth < -22) & (z > -12)
    # The cisterns behind the third ventricle and the fissure above the callosal body are CSF too,
    # but not ventricle.
    room &= ~((np.abs(x) < 12) & (y < -28) & (z < 14)) & ~((np.abs(x) < 3) & (z > 24))
    core = ndimage.binary_opening((csf > 0.5) & room, iterations=1)
    labels, count = ndimage.label(core)
    if count == 0:
        raise ValueError(
            "no ventricles found in the MNI152 maps; are the installed files the 09a tissue maps?"
        )
    # Both lateral ventricles and the third one hang together through the foramina, or are the two
    # largest parts; the cisterns of the corpus callosum's ends are smaller.
    sizes = ndimage.sum_labels(core, labels, np.arange(1, count + 1))
    return np.isin(labels, 1 + np.flatnonzero(sizes > 0.2 * sizes.max()))


def _build(folder: Path) -> BrainAtlas:
    images = {k: Nifti1Image.from_filename(folder / n) for k, n in _FILES.items()}
    affine = np.asarray(images["t1"].affine)
    if not np.allclose(affine[:3, :3], np.eye(3)):
        raise ValueError(
            f"MNI152 template has axes {affine[:3, :3].tolist()}; needed 1 mm,"
            " right-anterior-superior"
        )
    low, high = (round(z - affine[2, 3]) for z in _Z_RANGE_MM)
    t1, gm, wm = (
        np.asarray(images[k].dataobj)[:, :, low : high + 1].astype(np.float32)
        for k in ("t1", "gm", "wm")
    )
    origin = affine[:3, 3] + np.array([0.0, 0.0, low])
    gm, wm = gm / 255.0, wm / 255.0

    solid = (gm + wm > 0.4) | (t1 > 60)
    padded = np.pad(solid, ((0, 0), (0, 0), (12, 12)), mode="edge")
    # Closing by distance bridges the sulci and the fissure, which is what the arachnoid does.
    grown = ndimage.distance_transform_edt(~padded) <= 9
    hull = (ndimage.distance_transform_edt(grown) > 9)[:, :, 12:-12]
    hull = np.stack(
        [ndimage.binary_fill_holes(hull[:, :, k]) for k in range(hull.shape[2])], axis=2
    )
    depth = ndimage.gaussian_filter(_signed_distance(hull).astype(np.float32), 1.0)

    # The maps leave most sulci to grey matter; the template's darkness there says how much is
    # fluid.
    level_wm = float(np.median(t1[wm > 0.95]))
    level_gm = float(np.median(t1[gm > 0.95]))
    level_csf = float(np.percentile(t1[hull & (gm + wm < 0.2)], 20))
    dark = np.clip((level_gm * 0.93 - t1) / (level_gm * 0.93 - level_csf), 0.0, 1.0)
    csf = np.where(depth < 0, np.maximum(np.clip(1.0 - gm - wm, 0.0, 1.0), dark), 0.0)
    rest = np.where(depth < 0, (1.0 - csf) / np.maximum(gm + wm, 1e-3), 0.0)
    gm, wm = gm * np.minimum(rest, 8.0), wm * np.minimum(rest, 8.0)
    predicted = gm * level_gm + wm * level_wm + csf * level_csf
    ratio = np.where(csf < 0.3, t1 / np.maximum(predicted, 1.0), 1.0)
    ratio = np.where((gm + wm > 0.7) & (depth < -1), ratio, 1.0)
    ventricle = _signed_distance(_ventricles(csf, depth, origin)).astype(np.float32)

    # Where white matter meets ventricle, the maps show a film of grey matter that is only partial
    # volume; on FLAIR it would shine. The caudate nucleus is thick enough to survive an opening.
    film = np.where(
        ventricle < 5, gm - np.minimum(gm, ndimage.grey_opening(gm, footprint=_ball(2))), 0.0
    )
    gm, wm, csf = (v.astype(np.float32) for v in (gm - film, wm + 0.6 * film, csf + 0.4 * film))
    ratio = np.where(np.abs(ventricle) < 3, 1.0, ratio)

    def as_byte(fraction: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(fraction * 255.0), 0, 255).astype(np.uint8)

    return BrainAtlas(
        gm=as_byte(gm),
        wm=as_byte(wm),
        csf=as_byte(csf),
        texture=np.clip(np.rint((ratio - 1.0) * 254.0 + 128.0), 0, 255).astype(np.uint8),
        depth_mm=depth.astype(np.float32),
        ventricle_mm=ndimage.gaussian_filter(ventricle, 0.8),
        origin_mm=origin.astype(np.float64),
    )


def _save(atlas: BrainAtlas, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {k: getattr(atlas, k) for k in BrainAtlas.__dataclass_fields__}
    # Distances to 1/16 mm: exact in half precision in the range that matters, and they compress
    # well.
    small = {
        k: (np.rint(v * 16) / 16).astype(np.float16) if v.dtype == np.float32 else v
        for k, v in arrays.items()
    }
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as handle:
        temporary = Path(handle.name)
        try:
            np.savez_compressed(handle, **small)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    os.replace(temporary, path)


@functools.lru_cache(maxsize=1)
def load_atlas() -> BrainAtlas:
    """The atlas, from the cache or built once from nilearn's template (some seconds).

    Raises:
        FileNotFoundError: nilearn or its template files are missing.
    """
    path = cache_dir() / f"brain_atlas_v{_VERSION}.npz"
    if not path.is_file():
        _save(_build(_template_folder()), path)
    with np.load(path, allow_pickle=False) as stored:
        arrays = {k: stored[k] for k in BrainAtlas.__dataclass_fields__}
    arrays = {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in arrays.items()}
    return BrainAtlas(**arrays)
