"""How long the two commands take from an empty folder, and their peak memory. Needs git and a
network (or pip's cache).

python benchmarks/commands.py demo smoke test
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from record import record

AIMS = {"demo": "< 10 min, < 3 GB", "smoke": "< 60 s", "test": "< 40 min"}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="+", choices=list(AIMS))
    args = parser.parse_args()
    root = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        subprocess.run(["git", "clone", "--quiet", str(root), str(clone)], check=True)
        for command in args.commands:
            begin = time.perf_counter()
            made = subprocess.Popen(["make", command], cwd=clone)
            _, status, used = os.wait4(made.pid, 0)  # of this command alone, and what it started
            if status:
                raise SystemExit(f"make {command} failed; nothing is recorded of it")
            seconds, peak = time.perf_counter() - begin, used.ru_maxrss / 1e6
            first = command == args.commands[0]
            setup = (
                "with installation, embedded data cached or not as found"
                if first
                else "environment ready"
            )
            text = f"{seconds / 60:.1f} min" if seconds > 90 else f"{seconds:.0f} s"
            record(
                command,
                f"`make {command}` ({setup})",
                f"{text}, largest process {peak:.1f} GB",
                AIMS[command],
            )
        shutil.rmtree(clone, ignore_errors=True)


if __name__ == "__main__":
    main()
