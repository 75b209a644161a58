"""How fast a data set is prepared and read back, and how much memory preparation takes, on
generated volumes.

Two MR streams a patient as compressed NIfTI files. What is compared: reading the slices straight
from the files (in order, each volume opened once; and shuffled, as training wants them, a volume
opened for nearly every slice) against reading them from the shards. Memory is that of a process of
its own, for n patients and for 4n.

    python benchmarks/source_speed.py --patients 8 --workers 0 2
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from record import peak_memory_mb, record

from medm2g_core.data.intensity import mr_to_unit
from medm2g_core.data.sources.base import DataCard, Entry, Found, Source, SourceDataset, SourceStudy
from medm2g_core.data.sources.grids import axial_entries
from medm2g_core.data.sources.imaging import paired_slices
from medm2g_core.data.sources.prepare import prepare_source
from medm2g_core.data.sources.shards import read_shards
from medm2g_core.data.volumes import read_nifti

SHAPE = (32, 160, 160)  # slices, rows, columns
STREAMS = ("mri_t1", "mri_t2")
SIZE = 128


class Replica(Source):
    """``<patient>_<stream>.nii.gz``; keeps the last volumes open, as the real readers do."""

    name, region, streams = "replica", "brain", STREAMS
    card = DataCard(
        "Generated volumes", "", "none", "made here", "", (), (), "<patient>_<stream>.nii.gz"
    )

    def __init__(self) -> None:
        self.last: tuple[str, dict[str, np.ndarray]] = ("", {})

    def scan(self, root: Path) -> Found:
        names = sorted(p.name.removesuffix("_mri_t1.nii.gz") for p in root.glob("*_mri_t1.nii.gz"))
        return Found(
            tuple(
                Entry(n, n, "train", {s: root / f"{n}_{s}.nii.gz" for s in self.streams})
                for n in names
            )
        )

    def slices(self, entry: Entry) -> list[Entry]:
        depth = nib.load(entry.files[STREAMS[0]]).shape[2]
        return list(axial_entries(entry, range(depth)))

    def read(self, entry: Entry, size: int) -> SourceStudy:
        if self.last[0] != entry.subject:
            volumes = {
                s: mr_to_unit(read_nifti(path).array, stream_name=s)
                for s, path in entry.files.items()
            }
            self.last = (entry.subject, volumes)
        images, pixel = paired_slices(self.last[1], entry.slice_index, (1.0, 1.0), size)
        units = dict.fromkeys(images, "signal")
        return self.study(
            entry, images, units=units, orientation="as stored", notes=(), spacing_mm=pixel
        )


def write_replica(root: Path, patients: int) -> Path:
    """Heads of smooth noise: about as compressible as real signal."""
    root.mkdir()
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    head = (x / 0.7) ** 2 + (y / 0.85) ** 2 + (z / 1.2) ** 2 < 1
    rng = np.random.default_rng(0)
    for number in range(patients):
        for stream in STREAMS:
            signal = head * rng.normal(400, 60, SHAPE) + rng.rayleigh(8, SHAPE)
            image = nib.Nifti1Image(
                signal.transpose(2, 1, 0).astype(np.int16), np.diag([-1.0, -1.0, -5.0, 1.0])
            )
            nib.save(image, root / f"p{number:03d}_{stream}.nii.gz")
    return root


def peak_mb(root: Path, out: Path) -> float:
    """Largest resident memory of a process that prepares the tree."""
    done = subprocess.run(
        [sys.executable, __file__, "--prepare", str(root), str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    found = re.search(r"peak (\d+) MB", done.stdout)
    assert found, done.stdout
    return float(found[1])


def prepare_and_print_peak(root: str, out: str) -> None:
    prepare_source(Replica(), root, out, size=SIZE, workers=0, shard_size=64)
    print(f"peak {peak_memory_mb():.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--patients", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--prepare", nargs=2, metavar=("ROOT", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.prepare:
        return prepare_and_print_peak(*args.prepare)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args.patients, args.workers)


def measure(folder: Path, patients: int, workers: list[int]) -> None:
    tree = write_replica(folder / "tree", patients)
    slices = patients * SHAPE[0]
    speeds = []
    for n in workers:
        begin = time.perf_counter()
        prepare_source(Replica(), tree, folder / f"out{n}", size=SIZE, workers=n, shard_size=64)
        speeds.append(
            f"{n or 'no'} processes: {slices / (time.perf_counter() - begin):.0f} slices/s"
        )
    what = (
        f"{slices} slices of two compressed MR volumes to shards at {SIZE} px, start of the"
        " processes included"
    )
    record("sources_prepare", what, "; ".join(speeds), ">= 50 slices/s")

    data = SourceDataset(Replica(), tree, size=SIZE)
    begin = time.perf_counter()
    assert sum(1 for _ in data.studies()) == slices
    direct = slices / (time.perf_counter() - begin)
    some = np.random.default_rng(0).permutation(slices)[:32]
    begin = time.perf_counter()
    for i in some:
        data[int(i)]
    shuffled = len(some) / (time.perf_counter() - begin)
    shards = read_shards(folder / f"out{workers[0]}", "train", shuffle_seed=0)
    begin = time.perf_counter()
    assert sum(1 for _ in shards) == slices
    prepared = slices / (time.perf_counter() - begin)
    record(
        "sources_loader",
        "studies of two MR slices from shards, against the original files (one process)",
        f"{prepared:.0f} studies/s; {prepared / direct:.1f} times the files in order"
        f" ({direct:.0f}/s), {prepared / shuffled:.0f} times the files shuffled ({shuffled:.1f}/s)",
        ">= 10 times the files shuffled",
    )
    if sys.platform == "win32":
        print("peak memory is not measured on Windows")
        return
    four = write_replica(folder / "four", 4 * patients)
    one_peak, four_peak = peak_mb(tree, folder / "m1"), peak_mb(four, folder / "m4")
    record(
        "sources_memory",
        f"peak memory of preparing {patients * len(STREAMS)} and {4 * patients * len(STREAMS)}"
        " volumes",
        f"{one_peak:.0f} MB and {four_peak:.0f} MB",
        "no more than 5 % apart",
    )


if __name__ == "__main__":
    main()
