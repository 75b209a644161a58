"""Preparation and loading beside MONAI's data sets, over the same generated volumes in the same
run.

Compared, for shuffled single slices of two MR streams at 128 px, in one process:
- ours: shards, written once, then read in shuffled order;
- MONAI ``PersistentDataset`` over slices: each slice's transforms once, kept on disk one file a
  slice;
- MONAI ``PersistentDataset`` over volumes: each volume once; a slice is cut from its stored volume;
- MONAI ``CacheDataset`` over volumes: all volumes in memory.
The transforms do the same work: read NIfTI, scale by percentiles to -1..1, resize to 128 px.
MONAI's give pictures alone, ours whole studies (report, labels, units), checked. Speeds are those
of a second pass, when files are in the system's cache and shards are verified. Memory is that of a
process of its own that goes through everything once, for n patients and for 4n.

    pip install --no-deps "monai>=1.6"          # or: pip install -e ".[bench]"
    python benchmarks/source_monai.py --patients 8
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import peak_memory_mb, record
from source_speed import SHAPE, SIZE, STREAMS, Replica, write_replica

from medm2g_core.data.sources.prepare import prepare_source
from medm2g_core.data.sources.shards import read_shards

KINDS = ("ours", "slices", "volumes", "memory")
TITLES = {
    "ours": "shards",
    "slices": "MONAI PersistentDataset of slices",
    "volumes": "MONAI PersistentDataset of volumes",
    "memory": "MONAI CacheDataset of volumes",
}


def _transforms(one_slice: bool) -> Any:
    from monai.transforms import (
        Compose,
        EnsureChannelFirstd,
        EnsureTyped,
        Lambda,
        LoadImaged,
        Resized,
        ScaleIntensityRangePercentilesd,
    )

    def cut(item: dict[str, Any]) -> dict[str, Any]:
        return {s: item[s][..., item["index"]] for s in STREAMS}

    keys = list(STREAMS)
    size = (SIZE, SIZE) if one_slice else (SIZE, SIZE, -1)
    return Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            ScaleIntensityRangePercentilesd(keys, 0.5, 99.5, -1, 1, clip=True),
            *([Lambda(cut)] if one_slice else []),
            Resized(keys, size, mode="bilinear" if one_slice else "trilinear"),
            EnsureTyped(keys, track_meta=False),
        ]
    )


def _items(root: Path, one_slice: bool) -> list[dict[str, Any]]:
    names = sorted(p.name.removesuffix("_mri_t1.nii.gz") for p in root.glob("*_mri_t1.nii.gz"))
    volumes = [{s: str(root / f"{n}_{s}.nii.gz") for s in STREAMS} for n in names]
    return [{**v, "index": k} for v in volumes for k in range(SHAPE[0])] if one_slice else volumes


def make(kind: str, root: Path, out: Path) -> Callable[[], int]:
    """Prepare; returns what goes once through all slices in shuffled order and says how many there
    were."""
    if kind == "ours":
        with contextlib.redirect_stdout(io.StringIO()):
            prepare_source(Replica(), root, out, size=SIZE, workers=0, shard_size=64)
        return lambda: sum(1 for _ in read_shards(out, "train", shuffle_seed=0))

    from monai.data import CacheDataset, PersistentDataset

    one_slice = kind == "slices"
    items, transforms = _items(root, one_slice), _transforms(one_slice)
    data = (
        CacheDataset(items, transforms, num_workers=0, progress=False)
        if kind == "memory"
        else PersistentDataset(items, transforms, out)
    )
    if kind != "memory":
        for i in range(len(data)):  # it is filled when it is first read
            data[i]
    order = np.random.default_rng(0).permutation(len(items) if one_slice else len(items) * SHAPE[0])

    def through() -> int:
        for k in order:
            item = data[int(k)] if one_slice else data[int(k) // SHAPE[0]]
            for s in STREAMS:
                (item[s] if one_slice else item[s][..., int(k) % SHAPE[0]]).sum()
        return len(order)

    return through


def peak_mb(kind: str, root: Path, out: Path) -> float:
    """Largest resident memory of a process that prepares and reads everything once."""
    words = [sys.executable, __file__, "--peak", kind, str(root), str(out)]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    found = re.search(r"peak (\d+) MB", done.stdout)
    assert found, done.stdout
    return float(found[1])


def print_peak(kind: str, root: str, out: str) -> None:
    make(kind, Path(root), Path(out))()
    print(f"peak {peak_memory_mb():.0f} MB")


def measure(folder: Path, patients: int) -> None:
    tree, four = (
        write_replica(folder / "tree", patients),
        write_replica(folder / "four", 4 * patients),
    )
    slices = patients * SHAPE[0]
    write, read = {}, {}
    for kind in KINDS:
        begin = time.perf_counter()
        through = make(kind, tree, folder / kind)
        write[kind] = slices / (time.perf_counter() - begin)
        assert through() == slices
        begin = time.perf_counter()
        through()
        read[kind] = slices / (time.perf_counter() - begin)
    rest = KINDS[1:]
    record(
        "sources_monai_prepare",
        f"{slices} slices of two compressed MR volumes made ready, one process",
        f"shards {write['ours']:.0f} slices/s; "
        + "; ".join(f"{TITLES[k]} {write[k]:.0f}/s" for k in rest),
        ">= each of MONAI's that keeps its work on disk",
    )
    record(
        "sources_monai_loader",
        "shuffled studies of two MR slices, one process, second pass",
        f"shards {read['ours']:.0f} studies/s; "
        + "; ".join(f"{TITLES[k]} {read[k]:.0f}/s" for k in rest),
        ">= each of MONAI's that keeps its work on disk",
    )
    if sys.platform == "win32":
        print("peak memory is not measured on Windows")
        return
    peaks = {
        k: (peak_mb(k, tree, folder / f"m{k}"), peak_mb(k, four, folder / f"f{k}"))
        for k in KINDS
        if k != "slices"
    }
    record(
        "sources_monai_memory",
        f"peak memory of preparing and reading {patients * len(STREAMS)} and"
        f" {4 * patients * len(STREAMS)} volumes",
        "; ".join(f"{TITLES[k]} {a:.0f} and {b:.0f} MB" for k, (a, b) in peaks.items()),
        "ours no more than 5 % apart, MONAI's CacheDataset grows",
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--peak", nargs=3, metavar=("KIND", "ROOT", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if importlib.util.find_spec("monai") is None:
        print(
            "MONAI is not installed, so there is nothing to compare with: pip install --no-deps"
            ' "monai>=1.6"'
        )
        return
    if args.peak:
        return print_peak(*args.peak)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args.patients)


if __name__ == "__main__":
    main()
