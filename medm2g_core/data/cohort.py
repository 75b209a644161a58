"""The virtual cohort: a seed becomes a study, split by subject, rendered once and cached.

Study ``index`` of a split is drawn from ``numpy.random.SeedSequence(seed, spawn_key=(split, region,
index))``. Two splits therefore never share a subject, and a larger cohort begins with the studies
of a smaller one. The wording of the report has a seed of its own below that one.

Cache: ``<cache>/cohort/<region>-<version>/<split>-seed<seed>[-<persons>]/00000.safetensors``, 64
studies a file. Images are stored as unsigned 16-bit integers over -1..1 at 128 px: the error is at
most 1.6e-5 (CT: 0.013 HU; 8 bits would be 3 HU, half precision 0.2 HU). ``<version>`` is a hash of
the source files that render (`SOURCES`), so studies of an older renderer are never read; their
folders may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import operator
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from joblib import Parallel, cpu_count, delayed
from joblib.externals.loky import get_reusable_executor
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from medm2g_core.data.findings import FINDINGS, findings_of
from medm2g_core.data.wheels import cache_dir as default_cache_dir
from medm2g_core.streams import Finding, StreamError, Study, stream

__all__ = [
    "REGIONS",
    "SPLITS",
    "CohortError",
    "VirtualCohort",
    "cohort_version",
    "collate",
    "study_seed",
]

SPLITS = ("train", "val", "test")
REGIONS = ("chest", "brain")
STORED_PX = 128
SHARD = 64
SOURCES = {
    "chest": (
        "streams.py",
        "data/findings.py",
        "data/mri.py",
        "data/xray.py",
        "data/reports.py",
        "data/chest/*.py",
    ),
    "brain": (
        "streams.py",
        "data/findings.py",
        "data/mri.py",
        "data/reports.py",
        "data/brain/*.py",
    ),
}
"""Files whose text is part of the cache's version, relative to the package."""

_FORMAT = "1"  # of the cache files
_SCALE = 65535 / 2
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
class _Task:
    """Everything that one study depends on; small, so that it travels to another process."""

    seed: int
    split: str
    region: str
    index: int
    persons: tuple[str, ...] | None


@dataclass(frozen=True)
class _Record:
    """One rendered study as it is stored: 16-bit images (1, `STORED_PX`, `STORED_PX`) and what JSON
    holds."""

    images: dict[str, np.ndarray]
    facts: dict[str, Any]


def _render(task: _Task) -> _Record:
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
        drawn = render_chest(seed, person=person)
    else:
        from medm2g_core.data.brain.render import render_brain

        drawn = render_brain(seed)
    return _record(task, drawn)


def _record(task: _Task, drawn: dict[str, Any]) -> _Record:
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
        if image.shape != (1, STORED_PX, STORED_PX):
            raise CohortError(
                f"{task}: {name} has shape {tuple(image.shape)}, needed (1, {STORED_PX},"
                f" {STORED_PX})"
            )
        images[stream(name).name] = _to_uint16(image)
    return _Record(images, facts)


def _to_uint16(image: torch.Tensor) -> np.ndarray:
    """-1..1 to 0..65535."""
    return np.rint((image.detach().clamp(-1, 1).double().numpy() + 1) * _SCALE).astype(np.uint16)


def _to_float(image: np.ndarray) -> torch.Tensor:
    """0..65535 to float32 -1..1, any shape."""
    return torch.from_numpy(image.astype(np.float32)).div_(_SCALE).sub_(1).clamp_(-1, 1)


def _warm(region: str) -> None:
    """Build the region's atlas, if it is not cached yet, before several processes would each build
    it."""
    with FileLock(default_cache_dir() / f"{region}_atlas.lock"):
        if region == "chest":
            from medm2g_core.data.chest.atlas import load_atlases

            load_atlases()
        else:
            from medm2g_core.data.brain.atlas import load_atlas

            load_atlas()


def cohort_version(region: str) -> str:
    """What the pictures and reports of a region were made by: the same text, the same studies."""
    return _version(region)


@lru_cache(maxsize=2)
def _version(region: str) -> str:
    """``v<VERSION of the renderer>-<hash of SOURCES>``; line ends do not count."""
    package = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256(_FORMAT.encode())
    for pattern in SOURCES[region]:
        for path in sorted(package.glob(pattern)):
            digest.update(path.name.encode())
            digest.update(path.read_bytes().replace(b"\r\n", b"\n"))
    renderer = importlib.import_module(f"medm2g_core.data.{region}.render")
    return f"v{getattr(renderer, 'VERSION', 0)}-{digest.hexdigest()[:12]}"


def _with_one_thread(render: Callable[[_Task], _Record], task: _Task) -> _Record:
    """Render with one torch thread: the same sums in the same order in this process and in
    others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return render(task)
    finally:
        torch.set_num_threads(before)


def _records(tasks: Sequence[_Task], workers: int) -> Iterator[_Record]:
    """Render in the order of the tasks, in this process (``workers=0``) or in others.

    joblib's processes need no ``if __name__ == "__main__":`` in the caller's script, unlike
    `multiprocessing`'s.
    """
    if workers == 0:
        yield from (_with_one_thread(_render, task) for task in tasks)
        return
    pool = Parallel(n_jobs=workers, backend="loky", return_as="generator")
    try:
        yield from pool(delayed(_with_one_thread)(_render, task) for task in tasks)
    finally:  # joblib would keep the processes, and some 600 MB in each, for the next five minutes
        get_reusable_executor().shutdown(wait=True, kill_workers=True)


def _save(path: Path, records: Sequence[_Record]) -> None:
    """Write a shard: one uint16 tensor (k, 1, `STORED_PX`, `STORED_PX`) a stream, facts as JSON in
    the header."""
    names = records[0].images.keys()
    for record in records:
        if record.images.keys() != names:
            raise CohortError(
                f"{path}: studies of one region have different streams: {names} and"
                f" {record.images.keys()}"
            )
    tensors = {name: np.stack([record.images[name] for record in records]) for name in names}
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    facts = json.dumps(
        [record.facts for record in records], default=operator.index
    )  # NumPy integers too
    try:
        save_file(tensors, temporary, metadata={"studies": facts})
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _load(path: Path, limit: int) -> list[_Record]:
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
        _Record({name: block[i] for name, block in tensors.items()}, f) for i, f in enumerate(facts)
    ]


def _fill(folder: Path, tasks: Sequence[_Task], workers: int | None) -> list[_Record]:
    """All records of the tasks (indices 0..n-1), read from the cache or rendered into it shard by
    shard.

    An interruption loses at most one shard. The lock makes a second process wait for, and then
    read, the first's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        shards = [tasks[i : i + SHARD] for i in range(0, len(tasks), SHARD)]
        paths = [folder / f"{number:05d}.safetensors" for number in range(len(shards))]
        known = [_load(path, len(shard)) for path, shard in zip(paths, shards, strict=True)]
        missing = [
            task for have, shard in zip(known, shards, strict=True) for task in shard[len(have) :]
        ]
        if not missing:
            return [record for shard in known for record in shard]
        region, split = missing[0].region, missing[0].split
        _warm(region)
        if workers is None:
            workers = 0 if len(missing) < _FEW or cpu_count() == 1 else cpu_count()
        fresh = _records(missing, min(workers, len(missing)))
        with tqdm(
            total=len(missing), desc=f"virtual {region} studies ({split})", unit="study"
        ) as bar:
            for path, shard, have in zip(paths, shards, known, strict=True):
                if len(have) == len(shard):
                    continue
                while len(have) < len(shard):
                    have.append(next(fresh))
                    bar.update()
                _save(path, have)
        return [record for shard in known for record in shard]


class VirtualCohort(Dataset[Study]):
    """Virtual patients drawn from real anatomy, as a map-style torch dataset of `Study`.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; no subject is in two of them.
        region: ``"chest"``, ``"brain"``, or ``"both"`` (alternating, beginning with a chest).
        size: number of studies. A larger cohort begins with the studies of a smaller one.
        seed: of the cohort; any integer from 0.
        resolution: pixels of a side, `STORED_PX` divided by a whole number; smaller ones are area
            means.
        persons: chests only: whose anatomy may be used (``medm2g_core.data.chest.atlas.PERSONS``);
            ``None`` for all. Leave-one-person-out trains with two of them and tests with the third.
        cache_dir: folder of the cache; by default ``wheels.cache_dir() / "cohort"``.
        workers: processes that render what is not cached; 0 for none, ``None`` for one a processor
            (none for a handful of studies). The result is the same.

    Raises:
        CohortError: an argument out of range, or a damaged cache file.
        medm2g_core.data.wheels.DataUnavailableError: the anatomy could not be fetched.
    """

    def __init__(
        self,
        split: str = "train",
        region: str = "chest",
        size: int = 64,
        seed: int = 0,
        resolution: int = STORED_PX,
        persons: Iterable[str] | None = None,
        cache_dir: Path | str | None = None,
        workers: int | None = None,
    ) -> None:
        if split not in SPLITS:
            raise CohortError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        if region not in (*REGIONS, "both"):
            raise CohortError(f"region {region!r} is not one of {', '.join(REGIONS)}, both")
        if size < 1 or seed < 0:
            raise CohortError(
                f"size {size} and seed {seed}: needed a size from 1 and a seed from 0"
            )
        if resolution < 8 or STORED_PX % resolution:
            raise CohortError(
                f"resolution {resolution} does not divide {STORED_PX}; use 128, 64, 32, 16 or 8"
            )
        self.split, self.region, self.size, self.seed, self.resolution = (
            split,
            region,
            size,
            seed,
            resolution,
        )
        self.persons = _check_persons(persons, region)
        self._root = Path(cache_dir) if cache_dir is not None else default_cache_dir() / "cohort"
        regions = REGIONS if region == "both" else (region,)
        self._studies: list[tuple[str, int]] = [
            (regions[i % len(regions)], i // len(regions)) for i in range(size)
        ]
        records = {
            r: self._records_of(r, sum(r == own for own, _ in self._studies), workers)
            for r in regions
        }
        self._records = [records[r][i] for r, i in self._studies]

    def _records_of(self, region: str, size: int, workers: int | None) -> list[_Record]:
        if size == 0:
            return []
        persons = self.persons if region == "chest" else None
        folder = (
            self._root
            / f"{region}-{_version(region)}"
            / "-".join([self.split, f"seed{self.seed}", *(persons or ())])
        )
        tasks = [_Task(self.seed, self.split, region, index, persons) for index in range(size)]
        records = _fill(folder, tasks, workers)
        return (
            records
            if self.resolution == STORED_PX
            else [self._shrunk(record) for record in records]
        )

    def _shrunk(self, record: _Record) -> _Record:
        n, k = self.resolution, STORED_PX // self.resolution
        images = {
            name: (
                np.rint(image.reshape(1, n, k, n, k).mean(axis=(2, 4), dtype=np.float64)).astype(
                    np.uint16
                )
            )
            for name, image in record.images.items()
        }
        facts = record.facts | {"spacing_mm": [mm * k for mm in record.facts["spacing_mm"]]}
        return _Record(images, facts)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Study:
        region, number = self._studies[index]
        record = self._records[index]
        name = f"{region}-{self.split}-{self.seed}-{number:06d}"
        persons = self.persons if region == "chest" else None
        subject = "-".join(
            [name, *(persons or ())]
        )  # the same seed on other anatomy is another patient
        row, column = record.facts["spacing_mm"]
        return Study(
            id=subject,
            subject=subject,
            person=record.facts["person"],
            region=region,
            text=record.facts["text"],
            images={key: _to_float(image) for key, image in record.images.items()},
            findings=_findings(record),
            age=record.facts["age"],
            sex=record.facts["sex"],
            spacing_mm=(row, column),
        )

    @property
    def texts(self) -> list[str]:
        """The reports, in order."""
        return [record.facts["text"] for record in self._records]

    @property
    def findings(self) -> list[tuple[Finding, ...]]:
        """What is true of each study, in order."""
        return [_findings(record) for record in self._records]

    @property
    def people(self) -> list[str]:
        """Whose anatomy each study is drawn from, in order."""
        return [record.facts["person"] for record in self._records]

    @property
    def finding_names(self) -> tuple[str, ...]:
        """Columns of `finding_matrix`."""
        return tuple(FINDINGS) if self.region == "both" else findings_of(self.region)

    def finding_matrix(self) -> torch.Tensor:
        """Float32 (N, len(finding_names)): 1 present, 0 absent, NaN unknown (a finding of the other
        region)."""
        rows = []
        for (region, _), findings in zip(self._studies, self.findings, strict=True):
            present = {finding.name for finding in findings}
            known = [FINDINGS[name].region == region for name in self.finding_names]
            rows.append(
                [
                    float(n in present) if k else float("nan")
                    for n, k in zip(self.finding_names, known, strict=True)
                ]
            )
        return torch.tensor(rows)

    def indices_with(self, *streams: str) -> list[int]:
        """Indices of the studies that have all of these streams."""
        images = {stream(name).name for name in streams if name != "text"}
        return [i for i, record in enumerate(self._records) if images <= record.images.keys()]

    def stack(self, name: str, indices: Sequence[int] | None = None) -> torch.Tensor:
        """One image stream of all studies, or of these: float32 (N, 1, H, W), values -1..1.

        Raises:
            StreamError: not an image stream, or one that some of the studies lack (see
                `indices_with`).
        """
        if not stream(name).is_image:
            raise StreamError(f"{name} is no image stream; the reports are in `texts`")
        chosen = range(self.size) if indices is None else indices
        lacking = [i for i in chosen if name not in self._records[i].images]
        if lacking:
            raise StreamError(
                f"{len(lacking)} of {len(chosen)} studies have no {name}; "
                f"choose those that do: cohort.stack({name!r}, cohort.indices_with({name!r}))"
            )
        if not len(chosen):
            return torch.empty(0, 1, self.resolution, self.resolution)
        return _to_float(np.stack([self._records[i].images[name] for i in chosen]))


def _findings(record: _Record) -> tuple[Finding, ...]:
    return tuple(Finding(**fields) for fields in record.facts["findings"])


def _check_persons(persons: Iterable[str] | None, region: str) -> tuple[str, ...] | None:
    if persons is None:
        return None
    if region == "brain":
        raise CohortError(
            "persons chooses among the chests; all brains are drawn from one template, leave"
            " persons=None"
        )
    from medm2g_core.data.chest.atlas import PERSONS

    chosen = tuple(sorted({persons} if isinstance(persons, str) else set(persons)))
    if not chosen or not set(chosen) <= set(PERSONS):
        raise CohortError(f"persons {chosen}: needed one or more of {', '.join(PERSONS)}")
    return chosen


def collate(studies: Sequence[Study]) -> dict[str, Any]:
    """For ``DataLoader(cohort, collate_fn=collate)``.

    Returns:
        ``id``, ``text``, ``findings``: lists of B; ``images``: stream -> float32 (B, 1, H, W), only
        the streams that all studies of the batch have.
    """
    common = set.intersection(*(set(study.images) for study in studies))
    return {
        "id": [study.id for study in studies],
        "text": [study.text for study in studies],
        "findings": [study.findings for study in studies],
        "images": {
            n: torch.stack([s.images[n] for s in studies]) for n in studies[0].images if n in common
        },
    }
