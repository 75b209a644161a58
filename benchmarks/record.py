"""Measurements go into results/speed.json, from where the README's table is printed."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from pathlib import Path

import torch

from medm2g_core.storage import atomic_write

FILE = Path(__file__).resolve().parent.parent / "results" / "speed.json"


def where() -> str:
    """The machine in a few words."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} cores, no GPU"
    )
    return (
        f"{platform.system()} {platform.machine()}, {device}, torch"
        f" {torch.__version__.split('+')[0]}"
    )


def record(key: str, what: str, measured: str, aim: str) -> None:
    """Store one measurement under ``key`` and print it."""
    rows = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    rows[key] = {"what": what, "measured": measured, "aim": aim, "where": where()}
    text = json.dumps(dict(sorted(rows.items())), indent=1) + "\n"
    atomic_write(FILE, lambda p: p.write_text(text, encoding="utf-8"))
    print(f"{what}: {measured} (aim: {aim})")


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (not on Windows).

    On Linux from /proc: what getrusage says there begins with the peak of the process that started
    this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        assert found
        return int(found[1]) / 1e3
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1e6 if sys.platform == "darwin" else 1e3
    )
