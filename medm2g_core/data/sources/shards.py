"""Prepared studies on disk: tar shards in the form of the ``webdataset`` library, and a reader that
needs no library.

A shard ``train-00000.tar`` holds, one study after another, ``<key>.<stream>.npy`` (float16, (1,
size, size), -1..1), ``<key>.report.txt`` (UTF-8; only where there is a report) and
``<key>.meta.json`` (everything else; a label that nobody gave is null). ``manifest.json`` beside
the shards lists them with their SHA-256. Half precision costs at most 2.4e-4 of the range -1..1,
that is 0.2 HU of CT and a thirtieth of a grey level of 8 bits.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from medm2g_core.data.sources.base import SPLITS, SourceError, SourceStudy
from medm2g_core.data.volumes import FileError
from medm2g_core.streams import IMAGE_STREAMS, Finding, StreamError

__all__ = [
    "FORMAT",
    "MANIFEST",
    "ShardDataset",
    "file_sha256",
    "members",
    "read_manifest",
    "read_shards",
    "study_key",
]

FORMAT = 1
"""Of shards and manifest; another number, another form."""

MANIFEST = "manifest.json"

_MEMBER = re.compile(
    rf"([A-Za-z0-9_-]+)\.((?:{'|'.join(IMAGE_STREAMS)})\.npy|report\.txt|meta\.json)"
)
_SHARD = re.compile(rf"(?:{'|'.join(SPLITS)})-[0-9]{{5,}}\.tar")
_LARGEST_TEXT = 4_000_000  # bytes of a report or of its facts
_NPY_HEADER = 1024  # bytes; numpy writes 128


def study_key(name: str) -> str:
    """A study's id as a key: no dot, no slash (``webdataset`` cuts names at the first dot), at most
    69 characters."""
    safe = re.sub("[^A-Za-z0-9_-]", "_", name)[:60]
    return safe if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def members(study: SourceStudy) -> list[tuple[str, bytes]]:
    """A study as the files of a shard, name and content; the same study gives the same bytes."""
    key = study_key(study.id)
    out = []
    for name in (n for n in IMAGE_STREAMS if n in study.images):
        array = io.BytesIO()
        np.save(
            array, study.images[name].clamp(-1, 1).numpy().astype(np.float16), allow_pickle=False
        )
        out.append((f"{key}.{name}.npy", array.getvalue()))
    if study.text is not None:
        out.append((f"{key}.report.txt", study.text.encode()))
    meta = {
        "id": study.id,
        "subject": study.subject,
        "person": study.person,
        "region": study.region,
        "source": study.source,
        "split": study.split,
        "age": None if study.age is None else int(study.age),
        "sex": study.sex,
        "spacing_mm": [_or_null(mm) for mm in study.spacing_mm],
        "orientation": study.orientation,
        "units": dict(study.units),
        "labels": {name: _or_null(value) for name, value in study.labels.items()},
        "findings": None if study.findings is None else [asdict(f) for f in study.findings],
        "notes": list(study.notes),
    }
    out.append((f"{key}.meta.json", json.dumps(meta, ensure_ascii=False, allow_nan=False).encode()))
    return out


def _study(parts: Mapping[str, bytes], size: int) -> SourceStudy:
    """The inverse of `members`: the ending of the name (``ct.npy``) -> content, as a study."""
    if "meta.json" not in parts:
        raise ValueError("meta.json is missing")
    meta = json.loads(parts["meta.json"])
    images = {}
    for name in IMAGE_STREAMS:
        if (content := parts.get(f"{name}.npy")) is None:
            continue
        array = np.load(io.BytesIO(content), allow_pickle=False)
        if array.dtype != np.float16 or array.shape != (1, size, size):
            raise ValueError(
                f"{name} is {array.dtype} {array.shape}, needed float16 (1, {size}, {size})"
            )
        images[name] = torch.from_numpy(array.astype(np.float32))
    text = parts.get("report.txt")
    row, column = meta.pop("spacing_mm")
    labels, findings, notes = meta.pop("labels"), meta.pop("findings"), meta.pop("notes")
    return SourceStudy(
        **meta,
        text=None if text is None else text.decode(),
        images=images,
        spacing_mm=(_or_nan(row), _or_nan(column)),
        labels={name: _or_nan(value) for name, value in labels.items()},
        findings=None if findings is None else tuple(Finding(**f) for f in findings),
        notes=tuple(notes),
    )


def _largest(ending: str, size: int) -> int:
    return 2 * size * size + _NPY_HEADER if ending.endswith(".npy") else _LARGEST_TEXT


def _groups(tar: tarfile.TarFile, size: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Neighbours with one key, in the order of the file. Nothing is ever unpacked to disk, and
    still every name must be one that `members` writes: a shard with a path in it was not made by
    this project."""
    current, parts = "", dict[str, bytes]()
    for member in tar:
        known = _MEMBER.fullmatch(member.name)
        if known is None or not member.isreg():
            raise ValueError(f"a member {member.name[:120]!r} that does not belong in a shard")
        key, ending = known.groups()
        if member.size > _largest(ending, size):
            raise ValueError(
                f"{member.name} claims {member.size} bytes, more than a study of {size} pixels has"
            )
        if key != current:
            if parts:
                yield current, parts
            current, parts = key, {}
        file = tar.extractfile(member)
        content = b"" if file is None else file.read()
        if len(content) != member.size:
            raise ValueError(f"it ends within {member.name}")
        parts[ending] = content
    if parts:
        yield current, parts


def _read_shard(path: Path, size: int) -> Iterator[SourceStudy]:
    after = ""
    try:
        with tarfile.open(path, "r:") as tar:
            for key, parts in _groups(tar, size):
                yield _study(parts, size)
                after = f" after study {key}"
    except (tarfile.TarError, OSError, ValueError, TypeError, KeyError, StreamError) as error:
        raise FileError(
            f"{path}: the shard is damaged{after} ({error}); prepare the data set again"
        ) from error


def read_manifest(out: str | Path) -> dict[str, Any]:
    """The manifest of a folder of shards, complete or not.

    Raises:
        SourceError: no manifest there, or one of another format.
        FileError: a damaged manifest.
    """
    path = Path(out) / MANIFEST
    if not path.is_file():
        raise SourceError(
            f"{out}: no {MANIFEST}, so nothing prepared; run data_scripts/prepare_<name>.py"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise SourceError(
                f"{path}: not of format {FORMAT}; prepare the data set again in an empty folder"
            )
        for record in manifest["shards"]:
            if not _SHARD.fullmatch(record["name"]):
                raise ValueError(f"shard name {record['name']!r}")
            if not {"split", "key", "sha256", "bytes", "studies"} <= record.keys():
                raise ValueError(f"shard {record['name']} lacks an entry")
        int(manifest["parameters"]["size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, SourceError):
            raise
        raise FileError(
            f"{path}: the manifest is damaged ({error}); prepare the data set again"
        ) from error
    return manifest


class ShardDataset(IterableDataset[SourceStudy]):
    """The studies of one split, read from shards one after another.

    The workers of a ``DataLoader`` share the shards: with more workers than shards some have
    nothing to do. Studies are no tensors, so give the loader a ``collate_fn`` (``list`` will do).

    Args:
        out: folder that `medm2g_core.data.sources.prepare.prepare_source` filled.
        split: one of `SPLITS`.
        shuffle_seed: ``None`` keeps the order. A number shuffles the shards, and their studies
            within a buffer; call `set_epoch` before each pass for another order.
        buffer: number of studies that the buffer mixes (and holds in memory, one buffer a worker).
        verify: compare each shard's SHA-256 with the manifest before its first use; the size is
            always compared.

    Raises:
        SourceError: nothing prepared there, not to its end, or no such split.
        FileError: a damaged manifest; while reading, a shard that is missing, cut off, changed, or
            that holds names which do not belong there.
    """

    def __init__(
        self,
        out: str | Path,
        split: str,
        shuffle_seed: int | None = None,
        *,
        buffer: int = 256,
        verify: bool = True,
    ) -> None:
        if split not in SPLITS:
            raise SourceError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        if buffer < 1:
            raise ValueError(f"buffer {buffer}: needed 1 or more")
        self.out, self.split = Path(out), split
        self.shuffle_seed, self.buffer, self.verify = shuffle_seed, buffer, verify
        self.manifest = read_manifest(out)
        if not self.manifest.get("complete"):
            raise SourceError(
                f"{out}: the preparation was interrupted; start it again, it goes on where it"
                " stopped"
            )
        self.size = int(self.manifest["parameters"]["size"])
        self.shards: list[dict[str, Any]] = [
            r for r in self.manifest["shards"] if r["split"] == split
        ]
        if not self.shards:
            have = sorted({r["split"] for r in self.manifest["shards"]})
            raise SourceError(
                f"{out}: no studies in split {split!r}; it has {', '.join(have) or 'none'}"
            )
        self.epoch = 0
        self._verified: set[str] = set()

    def __len__(self) -> int:
        return sum(r["studies"] for r in self.shards)

    def set_epoch(self, epoch: int) -> None:
        """Another order for another pass. Persistent workers keep a copy and do not see this."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[SourceStudy]:
        info = get_worker_info()
        part, parts = (0, 1) if info is None else (info.id, info.num_workers)
        shards = self.shards
        if (
            self.shuffle_seed is not None
        ):  # the same order of shards in every worker, or two would read the same one
            order = np.random.default_rng((self.shuffle_seed, self.epoch)).permutation(len(shards))
            shards = [shards[i] for i in order]
        studies = chain.from_iterable(self._checked(record) for record in shards[part::parts])
        if self.shuffle_seed is None:
            yield from studies
        else:
            rng = np.random.default_rng((self.shuffle_seed, self.epoch, 1 + part))
            yield from _mixed(studies, self.buffer, rng)

    def _checked(self, record: Mapping[str, Any]) -> Iterator[SourceStudy]:
        """A shard's studies, after it was compared with the manifest."""
        path = self.out / record["name"]
        if not path.is_file():
            raise FileError(
                f"{path}: the manifest lists this shard, but it is not there; prepare the data set"
                " again"
            )
        if (found := path.stat().st_size) != record["bytes"]:
            raise FileError(
                f"{path}: {found} bytes, and {record['bytes']} in the manifest; the shard is cut"
                " off or was replaced, prepare the data set again"
            )
        if self.verify and record["name"] not in self._verified:
            if file_sha256(path) != record["sha256"]:
                raise FileError(
                    f"{path}: its SHA-256 is not that of the manifest; prepare the data set again"
                )
            self._verified.add(record["name"])
        count = 0
        for study in _read_shard(path, self.size):
            yield study
            count += 1
        if count != record["studies"]:
            raise FileError(
                f"{path}: {count} studies, and {record['studies']} in the manifest; prepare it"
                " again"
            )


def _mixed(
    studies: Iterator[SourceStudy], buffer: int, rng: np.random.Generator
) -> Iterator[SourceStudy]:
    """Each new study takes the place of a random one of the buffer, which goes out."""
    held: list[SourceStudy] = []
    for study in studies:
        if len(held) < buffer:
            held.append(study)
            continue
        place = int(rng.integers(buffer))
        yield held[place]
        held[place] = study
    for i in rng.permutation(len(held)):
        yield held[i]


def read_shards(
    out: str | Path,
    split: str,
    shuffle_seed: int | None = None,
    *,
    buffer: int = 256,
    verify: bool = True,
) -> ShardDataset:
    """The studies of one split of a prepared data set; see `ShardDataset`.

    Example: ``DataLoader(read_shards("prepared/ixi", "train", 0), batch_size=8, num_workers=2,
    collate_fn=list)``
    """
    return ShardDataset(out, split, shuffle_seed, buffer=buffer, verify=verify)
