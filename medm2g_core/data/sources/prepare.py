"""From the download of a data set to shards that training can read: checked, parallel, resumable,
repeatable.

`prepare_source` prints what is there and what is missing, and then writes ``<split>-00000.tar`` ...
(their form: `medm2g_core.data.sources.shards`) and ``manifest.json``. The same tree and the same
parameters give the same bytes, however many processes work and however often they are interrupted:
a shard depends on its own studies alone, appears under its name only when it is whole, and is not
made again while its key, a hash of all it depends on, the hash of the files that it was made from,
and its own SHA-256 are right.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from medm2g_core.data.sources import SOURCES
from medm2g_core.data.sources.base import (
    SPLITS,
    Entry,
    Skip,
    Source,
    SourceDataset,
    SourceError,
    refuse_twice,
)
from medm2g_core.data.sources.depends import (
    code_digest,
    content_digest,
    entry_facts,
    option_facts,
    versions,
)
from medm2g_core.data.sources.pools import on_cluster, on_this_machine
from medm2g_core.data.sources.shards import (
    FORMAT,
    MANIFEST,
    file_sha256,
    members,
    read_manifest,
    study_key,
)
from medm2g_core.data.volumes import FileError
from medm2g_core.storage import atomic_write
from medm2g_core.streams import StreamError

__all__ = ["prepare_source"]

SHARD_SIZE = 256
EXAMPLES = 3
"""So many examples of each kind of skip are kept in the manifest."""

_LOCK = ".lock"


def prepare_source(
    source: str | Source,
    root: str | Path,
    out: str | Path,
    *,
    size: int = 128,
    limit: int | None = None,
    workers: int | None = None,
    shard_size: int = SHARD_SIZE,
    dry_run: bool = False,
    seed: int = 0,
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    allow_missing: bool = False,
    retry: bool = False,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Check a data set, print what was found, and write all its studies as shards.

    Broken files are left out and counted. What an earlier call finished is kept, what it did not is
    done now.

    Args:
        source: a name in `SOURCES`, or the data set itself.
        root: folder of the download.
        out: folder for the shards, outside ``root``; empty, or from an earlier call with the same
            parameters.
        size: side of the pictures in pixels.
        limit: at most so many subjects, for a trial (in a folder of its own).
        workers: processes; 0 works in this one, ``None`` takes one a processor.
        shard_size: studies a shard. A process works on one shard at a time and holds one study of
            it.
        dry_run: print the check and the plan, write nothing.
        seed, shares: of the split by subject, where the publisher has none.
        allow_missing: go on although something that the data set should have is not there.
        retry: make those shards again that left out unreadable files, as after a fault of the
            drive.
        scheduler: address of a Dask cluster that does the work instead, such as
            ``tcp://10.0.0.1:8786``; its workers must see ``root`` and ``out`` under the same paths.

    Returns:
        The manifest as a dict; after a dry run without shards.

    Raises:
        SourceError: not that data set, parts missing, an unsuitable ``out``, a subject in two
            splits, or a process that was killed; the message says what to do.
    """
    if isinstance(source, str):
        if source not in SOURCES:
            raise SourceError(f"unknown data set {source!r}; known: {', '.join(SOURCES)}")
        source = SOURCES[source]
    if (
        size < 16
        or shard_size < 1
        or (limit is not None and limit < 1)
        or (workers is not None and workers < 0)
    ):
        raise SourceError(
            f"size {size}, shard size {shard_size}, limit {limit}, workers {workers}: needed at"
            " least 16, 1, 1 and 0"
        )
    root, out = Path(root).absolute(), Path(out).absolute()
    if out.resolve().is_relative_to(root.resolve()):
        raise SourceError(
            f"{out} is inside the data set's own folder {root}; choose a folder outside of it"
        )
    dataset = SourceDataset(source, root, size=size, limit=limit, shares=shares, seed=seed)
    print(dataset.report())
    missing = [line for line in dataset.found.table if line.state == "missing"]
    if missing and not allow_missing:
        lines = "; ".join(
            f"{m.what}: found {m.found}, published {m.expected or '-'}" for m in missing
        )
        raise SourceError(
            f"{root}: parts of {source.card.title} are missing ({lines}); get or allow them"
        )
    tasks = _plan(dataset, root, out, shard_size)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "source": source.name,
        "complete": False,
        "parameters": {
            "size": size,
            "limit": limit,
            "shard_size": shard_size,
            "seed": seed,
            "shares": list(shares),
        },
        "found": [asdict(line) for line in dataset.found.table],
        "versions": [],
        "shards": [],
    }
    if dry_run:
        pictures = sum(len(entry.files) for entry in dataset.entries)
        about = (pictures * (2 * size * size + 1024) + len(dataset) * 3072) / 1e6
        print(
            f"dry run: {len(dataset)} studies would make {len(tasks)} shards, about {about:,.0f}"
            f" MB, in {out}"
        )
        return manifest
    out.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(out / _LOCK, timeout=0):
            return _prepare(dataset, tasks, manifest, root, out, workers, retry, scheduler)
    except Timeout as error:
        raise SourceError(
            f"{out}: another process is preparing a data set there; wait for it to end"
        ) from error


@dataclass(frozen=True)
class _Task:
    """One shard to be made; small, so that it travels to another process."""

    source: Source
    entries: tuple[Entry, ...]
    split: str
    root: Path
    path: Path
    size: int
    key: str


def _plan(dataset: SourceDataset, root: Path, out: Path, shard_size: int) -> list[_Task]:
    """Cut each split, in the order of the scan, into shards; refuse two studies of one key."""
    refuse_twice(root, (study_key(entry.id) for entry in dataset.entries))
    common = {
        "format": FORMAT,
        "source": dataset.source.name,
        "size": dataset.size,
        "options": option_facts(dataset.source, root),
        "code": code_digest(dataset.source),
    }
    tasks = []
    for split in SPLITS:
        own = [entry for entry in dataset.entries if entry.split == split]
        for number, start in enumerate(range(0, len(own), shard_size)):
            entries = tuple(own[start : start + shard_size])
            facts = json.dumps(
                [common, split, [entry_facts(entry, root) for entry in entries]], sort_keys=True
            )
            key = hashlib.sha256(facts.encode()).hexdigest()
            path = out / f"{split}-{number:05d}.tar"
            tasks.append(_Task(dataset.source, entries, split, root, path, dataset.size, key))
    return tasks


def _prepare(
    dataset: SourceDataset,
    tasks: Sequence[_Task],
    manifest: dict[str, Any],
    root: Path,
    out: Path,
    workers: int | None,
    retry: bool,
    scheduler: str | None,
) -> dict[str, Any]:
    before = _earlier(out, manifest)
    known = {r["name"]: r for r in before["shards"]} if before else {}
    for leftover in out.glob(".*.tmp"):  # of a process that was killed
        leftover.unlink()
    for old in {*out.glob("*-*.tar")} - {t.path for t in tasks}:  # of a tree that had more studies
        old.unlink()
        _cache(old).unlink(missing_ok=True)
    with ThreadPoolExecutor() as pool:  # hashing leaves Python's lock to others
        finished = pool.map(lambda t: _finished(t, known.get(t.path.name), retry), tasks)
        done = {
            t.path.name: known[t.path.name] for t, ok in zip(tasks, finished, strict=True) if ok
        }
    todo = [t for t in tasks if t.path.name not in done]
    manifest["versions"] = list(before["versions"]) if before else []
    if todo:
        print(f"{out}: {len(todo)} shards to make, {len(done)} finished before")
        now = versions()
        manifest["versions"] = [v for v in manifest["versions"] if v != now] + [now]
        _save(out, manifest, done)
        total, left = (sum(len(t.entries) for t in some) for some in (tasks, todo))
        with tqdm(
            total=total,
            initial=total - left,
            desc=dataset.source.name,
            unit="study",
            smoothing=0.05,
        ) as bar:
            for record in _records(todo, workers, scheduler, bar.update):
                done[record["name"]] = record
                _save(out, manifest, done)
    else:
        print(f"{out}: all {len(tasks)} shards are there and unchanged; nothing to make")
    if not any(r["studies"] for r in done.values()):
        first = next(skip for r in done.values() for skip in r["skips"])
        raise SourceError(
            f"{root}: not one study could be read; the first is {first['where']}: {first['why']}"
        )
    _complete(manifest, dataset.skipped, list(done.values()), root)
    _save(out, manifest, done)
    print("\n".join(_summary(manifest)))
    return manifest


def _earlier(out: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The manifest of an earlier call with the same parameters; shards of other parameters are
    never overwritten."""
    if not (out / MANIFEST).is_file():
        if others := [p.name for p in out.iterdir() if not p.name.startswith(".")]:
            raise SourceError(
                f"{out}: not empty ({others[0]} ...) and no prepared data set; choose another"
                " folder"
            )
        return None
    before = read_manifest(out)
    for what in ("source", "parameters"):
        if before[what] != manifest[what]:
            raise SourceError(
                f"{out} holds a preparation with {what} {before[what]}, asked for was"
                f" {manifest[what]}; choose another folder, or delete that one"
            )
    return before


def _finished(task: _Task, record: Mapping[str, Any] | None, retry: bool) -> bool:
    if (
        record is None
        or record["key"] != task.key
        or (retry and record["skips"])
        or not task.path.is_file()
    ):
        return False
    return (
        task.path.stat().st_size == record["bytes"]
        and file_sha256(task.path) == record["sha256"]
        and _inputs(task) == record.get("inputs")
    )


def _cache(shard: Path) -> Path:
    """Where the hashes of a shard's inputs are kept: a hidden file, no part of the result."""
    return shard.with_name(f".{shard.stem}.inputs.json")


def _inputs(task: _Task) -> str:
    return content_digest(task.source, task.entries, task.root, _cache(task.path))


def _records(
    tasks: Sequence[_Task],
    workers: int | None,
    scheduler: str | None,
    tick: Callable[[int], object],
) -> Iterator[dict[str, Any]]:
    """Make the shards and give their records as they are finished."""
    if scheduler is None and workers == 0:
        yield from (_make_shard(task, tick) for task in tasks)
        return
    records = (
        on_this_machine(_make_shard, tasks, workers)
        if scheduler is None
        else on_cluster(_make_shard, tasks, scheduler)
    )
    for record in records:
        tick(record["studies"] + record["skipped"])
        yield record


def _make_shard(task: _Task, tick: Callable[[int], object] | None = None) -> dict[str, Any]:
    """Write one shard and give its line of the manifest. One torch thread: the same sums in every
    process."""
    inputs = _inputs(task)  # before anything is read: what changes meanwhile is made again
    subjects: set[str] = set()
    streams: Counter[str] = Counter()
    skips: list[Skip] = []

    def write(path: Path) -> None:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for entry in task.entries:
                files = _files(task, entry)
                if isinstance(files, Skip):
                    skips.append(files)
                else:
                    subjects.add(entry.subject)
                    streams.update(_streams(files))
                    for name, content in files:
                        member = tarfile.TarInfo(
                            name
                        )  # no owner, and written in 1970: the same bytes at any time
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                if tick is not None:
                    tick(1)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        atomic_write(task.path, write)
    finally:
        torch.set_num_threads(threads)
    return {
        "name": task.path.name,
        "split": task.split,
        "key": task.key,
        "inputs": inputs,
        "sha256": file_sha256(task.path),
        "bytes": task.path.stat().st_size,
        "studies": len(task.entries) - len(skips),
        "streams": dict(sorted(streams.items())),
        "subjects": sorted(subjects),
        "skipped": len(skips),
        "skips": [_example(skip, task.root) for skip in skips[:EXAMPLES]],
    }


def _files(task: _Task, entry: Entry) -> list[tuple[str, bytes]] | Skip:
    """A study as the members of a shard, or why it has none."""
    try:
        study = task.source.read(entry, task.size)
        if (study.id, study.subject) != (entry.id, entry.subject):
            raise ValueError(f"it was read as study {study.id} of subject {study.subject}")
        if odd := {
            n: tuple(x.shape)
            for n, x in study.images.items()
            if x.shape != (1, task.size, task.size)
        }:
            raise ValueError(f"shapes {odd}, needed (1, {task.size}, {task.size})")
        return members(study)
    except (FileError, StreamError) as error:
        return Skip("unreadable file", entry.id, str(error))
    except (
        Exception
    ) as error:  # a fault in the program, not in a file: stop, and say at which study
        raise SourceError(
            f"{task.source.name}, study {entry.id}: {type(error).__name__}: {error}"
        ) from error


def _streams(files: Sequence[tuple[str, bytes]]) -> list[str]:
    endings = [name.split(".")[1] for name, _ in files if not name.endswith(".meta.json")]
    return ["text" if ending == "report" else ending for ending in endings]


def _example(skip: Skip, root: Path) -> dict[str, str]:
    """A skip without the path of the tree, which is another on every machine and may hold a
    person's name."""
    inside = f"{root}{os.sep}"
    return {"where": skip.where.replace(inside, ""), "why": skip.why.replace(inside, "")}


def _complete(
    manifest: dict[str, Any], skipped: Sequence[Skip], records: list[dict[str, Any]], root: Path
) -> None:
    """Add what is known only at the end: counts, subjects, and what was left out."""
    records = sorted(records, key=lambda r: (SPLITS.index(r["split"]), r["name"]))
    streams: Counter[str] = Counter()
    for record in records:
        streams.update(record["streams"])
    skips = {
        kind: {
            "count": n,
            "examples": [_example(s, root) for s in skipped if s.kind == kind][:EXAMPLES],
        }
        for kind, n in Counter(s.kind for s in skipped).items()
    }
    if unread := sum(r["skipped"] for r in records):
        examples = [example for r in records for example in r["skips"]][:EXAMPLES]
        skips["unreadable file"] = {"count": unread, "examples": examples}
    have = [split for split in SPLITS if any(r["split"] == split for r in records)]
    manifest["complete"] = True
    manifest["studies"] = {s: sum(r["studies"] for r in records if r["split"] == s) for s in have}
    manifest["streams"] = dict(sorted(streams.items()))
    manifest["subjects"] = {
        s: sorted({n for r in records if r["split"] == s for n in r["subjects"]}) for s in have
    }
    manifest["skips"] = skips


def _save(out: Path, manifest: dict[str, Any], records: Mapping[str, dict[str, Any]]) -> None:
    """Write the manifest in one step, if it says something new."""
    manifest["shards"] = sorted(
        records.values(), key=lambda r: (SPLITS.index(r["split"]), r["name"])
    )
    content = (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()
    path = out / MANIFEST
    if not path.is_file() or path.read_bytes() != content:
        atomic_write(path, lambda p: p.write_bytes(content))


def _summary(manifest: Mapping[str, Any]) -> Iterator[str]:
    """The outcome in a few lines."""
    megabytes = sum(r["bytes"] for r in manifest["shards"]) / 1e6
    counts = ", ".join(
        f"{s}: {n} of {len(manifest['subjects'][s])} subjects"
        for s, n in manifest["studies"].items()
    )
    yield f"prepared {len(manifest['shards'])} shards, {megabytes:,.1f} MB; studies {counts}"
    for kind, skip in manifest["skips"].items():
        first = skip["examples"][0]
        yield f"  left out, {kind}: {skip['count']} (first: {first['where']}: {first['why']})"
