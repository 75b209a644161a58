"""Endless patients: other processes go on drawing new studies while a model trains.

A cohort of a few thousand patients is seen dozens of times, and what is seen often is learned by
heart. The studies go into the cohort's cache, so they are drawn once a machine; training takes what
is there at the beginning of each stage (`medm2g_core.training.data.EmbeddedData`) and notes how
many that were. With them a training depends on the machine's speed: the same seed gives the same
patients, in the same order, but not the same number.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from medm2g_core.data.cohort import cache_plan
from medm2g_core.data.fields import BASE_PX
from medm2g_core.data.study_cache import cached, extend_cache

__all__ = ["EndlessPatients", "studies_there"]

REGIONS = {"chest": 0.67, "brain": 0.33}
"""Share of the processes: a chest takes about as long as a brain, and there are two for each."""


def studies_there(
    region: str,
    *,
    seed: int = 0,
    resolution: int = BASE_PX,
    persons: Sequence[str] | None = None,
) -> int:
    """How many training studies of a region are drawn already."""
    persons = persons if region == "chest" else None
    folder, _ = cache_plan("train", region, 1, seed, max(resolution, BASE_PX), persons)
    return cached(folder)


class EndlessPatients:
    """Draws training studies in the background until it is closed, or there are enough.

    Args:
        most: training studies of each region after which it stops.
        workers: processes together, at least 2.
        val: validation studies of each region, which come first.
    """

    def __init__(
        self,
        most: dict[str, int],
        workers: int,
        *,
        val: dict[str, int],
        seed: int = 0,
        resolution: int = BASE_PX,
        persons: Sequence[str] | None = None,
    ) -> None:
        # Of its own session, so that Ctrl-C reaches the training alone, which then stops it. It
        # needs no GPU, and would take memory of one.
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self._processes = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    __name__,
                    str(os.getpid()),
                    region,
                    str(val[region]),
                    str(most[region]),
                    str(max(1, round(share * workers))),
                    str(seed),
                    str(max(resolution, BASE_PX)),
                    *(persons or () if region == "chest" else ()),
                ],
                env=environment,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
            for region, share in REGIONS.items()
        ]

    def close(self) -> None:
        """Stop drawing; what is begun is lost, at most a shard a region.

        A process that had ended by an error before is told of: training went on with fewer
        patients.
        """
        for region, process in zip(REGIONS, self._processes, strict=True):
            if process.poll() is None:
                process.terminate()
                process.wait()
            elif process.returncode:
                warnings.warn(
                    f"drawing {region} studies ended with code {process.returncode}, what it said"
                    " stands above: no new patients since",
                    stacklevel=2,
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _draw(arguments: Sequence[str]) -> None:
    parent, region, val, most, workers, seed, resolution, *persons = arguments
    if hasattr(os, "nice"):  # not on Windows
        os.nice(5)  # training comes first
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that its own processes end with it
    for split, size in (("val", int(val)), ("train", int(most))):
        plan = cache_plan(split, region, size, int(seed), int(resolution), persons or None)
        extend_cache(*plan, int(workers), lambda: os.getppid() == int(parent))


if __name__ == "__main__":
    _draw(sys.argv[1:])
