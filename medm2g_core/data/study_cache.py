"""Drawing virtual studies and keeping them: shards of a cache, safe for several processes at once.

Cache: ``<cache>/cohort/<region>-<size>px-<version>/<split>-seed<seed>[-<persons>]/`` with shards
``00000.safetensors`` of 64 studies each. Images are stored as unsigned 16-bit integers over -1..1:
the error is at most 1.6e-5 (CT: 0.013 HU; 8 bits would be 3 HU, half precision 0.2 HU).
``<version>`` is a hash of the code that renders (`SOURCES`), so studies of an older renderer are
never read; their folders may be deleted at any time.

Finished shards are read without a lock. A shard is locked while it is drawn; whoever needs it too
waits for that shard alone and says for whom.
"""

from __future__ import annotations

import ast
import hashlib
import json
import operator
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky import get_reusable_executor
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm

from medm2g_core.data.fields import BASE_PX
from medm2g_core.data.wheels import cache_dir as default_cache_dir
from medm2g_core.storage import atomic_write
from medm2g_core.streams import stream

__all__ = [
    "REGIONS",
    "SHARD",
    "SPLITS",
    "CohortError",
    "StudyRecord",
    "StudyTask",
    "cached",
    "cohort_version",
    "extend_cache",
    "fill_cache",
    "study_seed",
    "to_float",
]

SPLITS = ("train", "val", "test")
REGIONS = ("chest", "brain")
SHARD = 64
SOURCES = {
    "chest": (
        "streams.py",
        "data/fields.py",
        "data/findings.py",
        "data/mri.py",
        "data/xray.py",
        "data/reports.py",
        "data/chest/*.py",
    ),
    "brain": (
        "streams.py",
        "data/fields.py",
        "data/findings.py",
        "data/mri.py",
        "data/reports.py",
        "data/brain/*.py",
    ),
}
"""Files whose code is part of the cache's version, relative to the package."""

_FORMAT = "1"  # of the cache files
_SCALE = 65535 / 2
_PATIENCE_S = 3.0  # a shorter wait needs no word
_FEW = 16  # below this many studies, starting processes costs more than they save


class CohortError(ValueError):
    """A cohort cannot be made as asked, or its cache is damaged; the message says what to do."""


def study_seed(seed: int, split: str, region: str, index: int, purpose: int = 0) -> int:
    """Seed of one study: below 2^63, another for every combination of arguments.

    Args:
        purpose: 0 for the anatomy and its findings, 1 for the wording of the report, 2 for the
            choice of a person.
    """
    key = (SPLITS.index(split), REGIONS.index(region), index, purpose)
    return int(
        np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


@dataclass(frozen=True)
class StudyTask:
    """Everything that one study depends on; small, so that it travels to another process."""

    seed: int
    split: str
    region: str
    index: int
    persons: tuple[str, ...] | None
    size: int = BASE_PX


@dataclass(frozen=True)
class StudyRecord:
    """One rendered study as it is stored: stream -> 16-bit image (1, size, size), and what JSON
    holds."""

    images: dict[str, np.ndarray]
    facts: dict[str, Any]


def _render(task: StudyTask) -> StudyRecord:
    """Render one study. The renderers are imported here: they are heavy, and a cached cohort needs
    none of them."""
    seed = study_seed(task.seed, task.split, task.region, task.index)
    if task.region == "chest":
        from medm2g_core.data.chest.render import render_chest

        person = None
        if task.persons is not None:
            chosen = np.random.default_rng(
                study_seed(task.seed, task.split, task.region, task.index, 2)
            )
            person = task.persons[int(chosen.integers(len(task.persons)))]
        drawn = render_chest(seed, person=person, size=task.size)
    else:
        from medm2g_core.data.brain.render import render_brain

        drawn = render_brain(seed, size=task.size)
    return _record(task, drawn)


def _record(task: StudyTask, drawn: dict[str, Any]) -> StudyRecord:
    """Add the report to what a renderer drew, and quantise the images."""
    from medm2g_core.data.reports import write_report

    wording = np.random.default_rng(study_seed(task.seed, task.split, task.region, task.index, 1))
    findings = tuple(drawn["findings"])
    facts = {
        "person": drawn["person"],
        "age": drawn["age"],
        "sex": drawn["sex"],
        "spacing_mm": [float(mm) for mm in drawn["spacing_mm"]],
        "findings": [asdict(finding) for finding in findings],
        "text": write_report(findings, task.region, drawn["age"], drawn["sex"], wording),
    }
    images = {}
    for name, image in drawn["images"].items():
        if image.shape != (1, task.size, task.size):
            raise CohortError(
                f"{task}: {name} has shape {tuple(image.shape)}, needed (1, {task.size},"
                f" {task.size})"
            )
        images[stream(name).name] = _to_uint16(image)
    return StudyRecord(images, facts)


def _to_uint16(image: torch.Tensor) -> np.ndarray:
    """-1..1 to 0..65535."""
    return np.rint((image.detach().clamp(-1, 1).double().numpy() + 1) * _SCALE).astype(np.uint16)


def to_float(image: np.ndarray) -> torch.Tensor:
    """0..65535 to float32 -1..1, any shape."""
    return torch.from_numpy(image.astype(np.float32)).div_(_SCALE).sub_(1).clamp_(-1, 1)


def _warm(region: str, size: int) -> None:
    """Build the region's atlas, if it is not cached yet, before several processes would each build
    it."""
    with _locked(default_cache_dir() / f"{region}_atlas", f"builds the {region} atlas"):
        if region == "chest":
            from medm2g_core.data.chest.atlas import load_atlases

            load_atlases(detail=size > BASE_PX)
        else:
            from medm2g_core.data.brain.atlas import load_atlas

            load_atlas()


@contextmanager
def _locked(path: Path, does: str) -> Iterator[None]:
    """Hold ``<path>.lock``. Whoever waits for longer than `_PATIENCE_S` seconds says for whom.

    Args:
        path: what is being made.
        does: what the holder does, in words; others read it beside the lock.
    """
    lock, note = FileLock(f"{path}.lock"), path.with_name(f"{path.name}.maker")
    try:
        lock.acquire(timeout=_PATIENCE_S)
    except Timeout:
        holder = note.read_text(encoding="utf-8") if note.is_file() else "another process"
        tqdm.write(f"waiting for {holder} ({lock.lock_file})", file=sys.stderr)
        lock.acquire()
    try:
        text = f"process {os.getpid()}, which {does}"
        atomic_write(note, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def cohort_version(region: str) -> str:
    """What the pictures and reports of a region were made by: the same code, the same studies.

    Comments, docstrings and the layout of the code do not count.
    """
    return _version(region)


@lru_cache(maxsize=2)
def _version(region: str) -> str:
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(_FORMAT.encode())
    for pattern in SOURCES[region]:
        for path in sorted(package.glob(pattern)):
            digest.update(path.name.encode())
            digest.update(code_of(path.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:12]


def code_of(source: str) -> str:
    """What a Python file does, as text: its syntax tree without positions and without strings that
    stand alone (docstrings). The same for any Python that can read the file."""

    def told(node: object) -> str:
        if isinstance(node, ast.AST):
            fields = [(name, value) for name, value in ast.iter_fields(node)]
            # what is absent is left out: newer Pythons have more fields
            given = [f"{name}={told(value)}" for name, value in fields if value not in (None, [])]
            return f"{type(node).__name__}({','.join(given)})"
        if isinstance(node, list):
            kept = [item for item in node if not _stands_alone(item)]
            return f"[{','.join(told(item) for item in kept)}]"
        return repr(node)

    return told(ast.parse(source))


def _stands_alone(node: object) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _with_one_thread(render: Callable[[StudyTask], StudyRecord], task: StudyTask) -> StudyRecord:
    """Render with one torch thread: the same sums in the same order in this process and in
    others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return render(task)
    finally:
        torch.set_num_threads(before)


@contextmanager
def _drawing(
    workers: int,
) -> Iterator[Callable[[Sequence[StudyTask]], Iterator[StudyRecord]]]:
    """What renders tasks in their order, in this process (``workers=0``) or in others.

    joblib's processes need no ``if __name__ == "__main__":`` in the caller's script, unlike
    `multiprocessing`'s.
    """
    if workers == 0:
        yield lambda tasks: (_with_one_thread(_render, task) for task in tasks)
        return
    pool = Parallel(n_jobs=workers, backend="loky", return_as="generator")
    try:
        yield lambda tasks: pool(delayed(_with_one_thread)(_render, task) for task in tasks)
    finally:  # joblib would keep the processes, and some 600 MB in each, for the next five minutes
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _save(path: Path, records: Sequence[StudyRecord]) -> None:
    """Write a shard: one uint16 tensor (k, 1, size, size) a stream, facts as JSON in the header."""
    names = records[0].images.keys()
    for record in records:
        if record.images.keys() != names:
            raise CohortError(
                f"{path}: studies of one region have different streams: {names} and"
                f" {record.images.keys()}"
            )
    tensors = {name: np.stack([record.images[name] for record in records]) for name in names}
    facts = json.dumps(
        [record.facts for record in records], default=operator.index
    )  # NumPy integers too
    atomic_write(path, lambda part: save_file(tensors, part, metadata={"studies": facts}))


def _load(path: Path, limit: int) -> list[StudyRecord]:
    """The first ``limit`` studies of a shard; an empty list where there is none."""
    if not path.is_file():
        return []
    try:
        with safe_open(path, framework="numpy") as shard:
            facts = json.loads(shard.metadata()["studies"])[:limit]
            tensors = {name: shard.get_slice(name)[: len(facts)] for name in shard.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CohortError(
            f"{path} is damaged ({error}); delete it and it will be made again"
        ) from error
    return [
        StudyRecord({name: block[i] for name, block in tensors.items()}, f)
        for i, f in enumerate(facts)
    ]


def _shards(
    folder: Path, tasks: Sequence[StudyTask]
) -> tuple[list[Sequence[StudyTask]], list[Path]]:
    """The tasks of each shard, and its file."""
    shards = [tasks[i : i + SHARD] for i in range(0, len(tasks), SHARD)]
    return shards, [folder / f"{number:05d}.safetensors" for number in range(len(shards))]


def cached(folder: Path, most: int) -> int:
    """How many studies, from the first on and at most ``most``, lie there; a shard that is there
    counts as whole, since `fill_cache` draws what it lacks."""
    number = 0
    while number * SHARD < most and (folder / f"{number:05d}.safetensors").is_file():
        number += 1
    return min(number * SHARD, most)


def extend_cache(
    folder: Path, tasks: Sequence[StudyTask], workers: int, go_on: Callable[[], bool]
) -> None:
    """Draw what is not cached, shard by shard, as long as ``go_on`` says so; nothing is kept in
    memory."""
    if not tasks:
        return
    folder.mkdir(parents=True, exist_ok=True)
    _warm(tasks[0].region, tasks[0].size)
    with _drawing(workers) as draw:
        for shard, path in zip(*_shards(folder, tasks), strict=True):
            if not go_on():
                return
            if path.is_file():
                continue
            with _locked(path, f"draws {shard[0].region} studies from {shard[0].index + 1} on"):
                if not path.is_file():
                    _save(path, list(draw(shard)))


def fill_cache(folder: Path, tasks: Sequence[StudyTask], workers: int | None) -> list[StudyRecord]:
    """All records of the tasks, read from the cache or drawn into it shard by shard.

    An interruption loses at most one shard.

    Args:
        folder: of the shards; made if absent.
        tasks: indices 0..n-1 of one split, region and size.
        workers: processes that draw; 0 for this one, ``None`` for one a processor (this one for a
            handful of studies).

    Raises:
        CohortError: a damaged shard.
    """
    shards, paths = _shards(folder, tasks)
    known = [_load(path, len(shard)) for path, shard in zip(paths, shards, strict=True)]
    missing = len(tasks) - sum(len(have) for have in known)
    if missing == 0:
        return [record for have in known for record in have]
    folder.mkdir(parents=True, exist_ok=True)
    first = tasks[0]
    _warm(first.region, first.size)
    if workers is None:
        workers = 0 if missing < _FEW or cpu_count() == 1 else cpu_count()
    name = f"virtual {first.region} studies ({first.split}, {first.size} px)"
    with (
        _drawing(min(workers, missing)) as draw,
        tqdm(total=missing, desc=name, unit="study") as bar,
    ):
        for number, (path, shard) in enumerate(zip(paths, shards, strict=True)):
            if len(known[number]) == len(shard):
                continue
            does = f"draws {name} {shard[0].index + 1} to {shard[-1].index + 1}"
            with _locked(path, does):
                have = _load(path, len(shard))  # perhaps drawn by another process by now
                bar.update(len(have) - len(known[number]))
                if len(have) < len(shard):
                    for record in draw(shard[len(have) :]):
                        have.append(record)
                        bar.update()
                    _save(path, have)
            known[number] = have
    return [record for have in known for record in have]
