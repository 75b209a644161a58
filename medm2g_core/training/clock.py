"""The clock of a training budget: a rival gets the time that the flow had, on the same kind of
device."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

__all__ = ["CPU_SECONDS", "GPU_SECONDS", "stopwatch", "unit"]

CPU_SECONDS, GPU_SECONDS = "CPU seconds", "GPU seconds"


def unit(device: torch.device | str) -> str:
    """What a second on this device is called in a record of a training."""
    return CPU_SECONDS if torch.device(device).type == "cpu" else GPU_SECONDS


def stopwatch(device: torch.device | str) -> Callable[[], float]:
    """A function that says how many seconds were spent since: of processor time, summed over
    threads, on a CPU; elsewhere of the wall, with the device's queue empty."""
    kind = torch.device(device)
    if kind.type == "cpu":
        begin = time.process_time()
        return lambda: time.process_time() - begin

    def now() -> float:
        if kind.type == "cuda":
            torch.cuda.synchronize(kind)
        return time.perf_counter()

    start = now()
    return lambda: now() - start
