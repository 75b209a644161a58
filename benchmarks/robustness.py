"""Damaged files by the million: each is read, or refused in a sentence; none ends in a foreign
error, hangs, takes too much memory or ends the process.

The files and the damage are those of the tests (``tests/mutations.py``): DICOM, NIfTI, MetaImage,
NRRD, PNG and JPEG, a report as text, and the tables of data sets as XML, CSV and JSON. File n of a
seed is the same on every machine, whatever was tried before it. Each outcome goes into a log at
once a chunk is done, and the same command goes on where it was stopped.

    python benchmarks/robustness.py --count 1000000 --seed 0 --workers 8
    python benchmarks/robustness.py --seed 0 --only 4711 --keep damaged.nii  # one file again

Not on Windows, which has no limits for a process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
from record import peak_memory_mb
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from mutations import Case, attempt, mutated, whole_files

CHUNK = 500
CPU_SECONDS = 5.0
"""Of one file. Counted in the process's own time, so that a busy machine hangs nothing."""
WALL_SECONDS = 120.0
"""Of one file, for what waits without working and for loops within C, which no signal reaches."""
MEMORY_GB = 2.0
"""On top of what a process has when it starts."""
GROWTH_MB = 1024.0
"""By which one file may raise the peak."""
FINE = ("read", "refused")


class TimeUp(BaseException):
    """No `Exception`, so that no reader takes it for a broken file."""


def _time_up(number: int, frame: object) -> None:
    raise TimeUp


def damaged(names: list[str], cases: dict[str, Case], seed: int, number: int) -> tuple[str, bytes]:
    """File ``number`` of a seed: its kind and its bytes."""
    name = names[number % len(names)]
    return name, mutated(cases[name].whole, np.random.default_rng([seed, number]))


def work(seed: int, jobs: Connection, results: Connection) -> None:
    """Try the numbers that come in; send (number, kind, outcome, CPU seconds) for each."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # ITK's own complaints
    with tempfile.TemporaryDirectory() as folder:
        cases = whole_files(Path(folder))
        names = list(cases)
        status = Path("/proc/self/statm")
        if status.is_file():
            used = int(status.read_text().split()[0]) * resource.getpagesize()
            limit = used + int(MEMORY_GB * 1e9)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGPROF, _time_up)
        results.send(None)
        while (number := jobs.recv()) is not None:
            name, data = damaged(names, cases, seed, number)
            peak, begin = peak_memory_mb(), time.process_time()
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            try:
                outcome = attempt(cases[name], data)
            except TimeUp:
                outcome = f"more than {CPU_SECONDS:g} s"
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
            if (grown := peak_memory_mb() - peak) > GROWTH_MB:
                outcome = f"{grown:.0f} MB of memory"
            cases[name].path.write_bytes(cases[name].whole)
            results.send((number, name, outcome, time.process_time() - begin))


class Worker:
    """A process that tries one file after another, and is replaced when one of them ends it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        theirs_in, self.jobs = context.Pipe(duplex=False)
        self.results, theirs_out = context.Pipe(duplex=False)
        self.process = context.Process(
            target=work, args=(self.seed, theirs_in, theirs_out), daemon=True
        )
        self.process.start()
        theirs_in.close()
        theirs_out.close()
        self.results.recv()  # it is ready

    def give(self, number: int) -> None:
        self.number, self.since = number, time.monotonic()
        self.jobs.send(number)

    def outcome(self) -> tuple[int, str, str, float] | None:
        """The result of the file that it was given, or ``None`` if it is not there yet."""
        if self.results.poll():
            try:
                return self.results.recv()
            except EOFError:
                self.process.join()
                said = f"the process ended ({self.process.exitcode})"
        elif time.monotonic() - self.since > WALL_SECONDS:
            self.process.kill()
            self.process.join()
            said = f"more than {WALL_SECONDS:g} s by the clock"
        else:
            return None
        number = self.number
        self.start()
        return number, "", said, 0.0

    def stop(self) -> None:
        self.jobs.send(None)
        self.process.join(10)


def tried(log: Path) -> list[dict[str, Any]]:
    """Chunks of an earlier run, each once; a line that was cut off is left out."""
    found: dict[int, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        try:
            chunk = json.loads(line)
        except ValueError:
            continue
        found[chunk["first"]] = chunk
    return list(found.values())


def run(count: int, seed: int, workers: int, log: Path) -> None:
    """Try what the log lacks of files 0 to ``count``, chunk by chunk."""
    done = {chunk["first"]: chunk["count"] for chunk in tried(log)}
    sizes = {first: min(CHUNK, count - first) for first in range(0, count, CHUNK)}
    firsts = [first for first, size in sizes.items() if done.get(first, 0) < size]
    todo = sum(sizes[first] for first in firsts)
    bar = tqdm(total=count, initial=count - todo, unit="file", unit_scale=True, mininterval=1)
    pool = [Worker(seed) for _ in range(min(workers, max(1, len(firsts))))]
    with log.open("a", encoding="utf-8") as out:
        for first in firsts:
            rows = _chunk(pool, iter(range(first, first + sizes[first])), bar)
            out.write(json.dumps({"first": first, "count": len(rows), **_counts(rows)}) + "\n")
            out.flush()
    for worker in pool:
        worker.stop()
    bar.close()


def _chunk(pool: list[Worker], numbers: Iterator[int], bar: tqdm) -> list[tuple]:
    """The outcomes of some files, tried by all workers at once."""
    rows: list[tuple] = []
    busy = [w for w, number in zip(pool, numbers, strict=False) if w.give(number) is None]
    while busy:
        wait([w.results for w in busy], timeout=1.0)
        for worker in list(busy):
            row = worker.outcome()
            if row is None:
                continue
            rows.append(row)
            bar.update()
            number = next(numbers, None)
            if number is None:
                busy.remove(worker)
            else:
                worker.give(number)
    return rows


def _counts(rows: list[tuple]) -> dict[str, Any]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: dict[str, float] = defaultdict(float)
    failures = []
    for number, name, outcome, cpu in rows:
        counts[name][outcome if outcome in FINE else "wrong"] += 1
        seconds[name] += cpu
        if outcome not in FINE:
            failures.append([number, name, outcome])
    return {"counts": counts, "seconds": seconds, "failures": failures}


def table(log: Path) -> str:
    """What the log holds, a row a kind of file, and every failure."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    seconds: dict[str, float] = defaultdict(float)
    failures = []
    for chunk in tried(log):
        for name, found in chunk["counts"].items():
            counts[name].update(found)
            seconds[name] += chunk["seconds"][name]
        failures += chunk["failures"]
    lines = ["| file | tried | read | refused | wrong | ms each |", "|---|---|---|---|---|---|"]
    whole: Counter[str] = Counter()
    for name, found in counts.items():
        lines.append(_row(name or "(ended its process)", found, seconds[name]))
        whole.update(found)
    lines.append(_row("all", whole, sum(seconds.values())))
    lines += [f"file {number} ({name}): {said}" for number, name, said in failures]
    return "\n".join(lines)


def _row(name: str, found: Counter[str], seconds: float) -> str:
    tried_ = sum(found.values())
    numbers = " | ".join(f"{found[k]:,}" for k in (*FINE, "wrong"))
    return f"| {name} | {tried_:,} | {numbers} | {seconds / max(1, tried_) * 1000:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--log", type=Path, help="by default outputs/robustness-SEED.jsonl")
    parser.add_argument("--only", type=int, help="try this one file and say what came of it")
    parser.add_argument("--keep", type=Path, help="with --only: write the damaged file here")
    args = parser.parse_args()
    if args.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            cases = whole_files(Path(folder))
            name, data = damaged(list(cases), cases, args.seed, args.only)
            if args.keep:
                args.keep.write_bytes(data)
            print(f"{name}: {attempt(cases[name], data)}")
        return
    log = args.log or Path("outputs") / f"robustness-{args.seed}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    run(args.count, args.seed, args.workers, log)
    print(table(log))


if __name__ == "__main__":
    main()
