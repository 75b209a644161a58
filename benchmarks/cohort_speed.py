"""How fast virtual studies are made: studies a second, from nothing and from the cache.

python benchmarks/cohort_speed.py --region chest --size 64 --workers 2
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time

import torch
from record import record

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.study_cache import _warm


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--region", choices=("chest", "brain"), nargs="+", default=["chest", "brain"]
    )
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}")
    print("region  workers  studies  rendered/s  from cache/s  MB a study")
    for region in args.region:
        _warm(region, 128)  # building the atlas, once a machine, is not what is measured
        for workers in args.workers:
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                made = VirtualCohort(
                    region=region, size=args.size, cache_dir=folder, workers=workers
                )
                rendered = time.perf_counter() - begin
                begin = time.perf_counter()
                VirtualCohort(region=region, size=args.size, cache_dir=folder)
                read = time.perf_counter() - begin
                size = sum(image.numel() * 2 for image in made[0].images.values()) / 1e6
                row = (
                    f"{args.size:7d}  {args.size / rendered:10.2f}  {args.size / read:12.0f} "
                    f" {size:10.2f}"
                )
                print(f"{region:6s}  {workers:7d}  {row}", flush=True)
                if region == "chest" and workers == 2:
                    what = f"{args.size} virtual chest studies, 2 processes, their start included"
                    record(
                        "cohort", what, f"{args.size / rendered:.1f} studies/s", ">= 4 studies/s"
                    )


if __name__ == "__main__":
    main()
