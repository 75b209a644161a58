"""The virtual cohort: a seed becomes a study, split by subject, drawn once and cached.

Study ``index`` of a split is drawn from ``numpy.random.SeedSequence(seed, spawn_key=(split, region,
index))``. Two splits therefore never share a subject, and a larger cohort begins with the studies
of a smaller one. The wording of the report has a seed of its own below that one. How studies are
drawn and kept is in `medm2g_core.data.study_cache`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medm2g_core.data.fields import BASE_PX
from medm2g_core.data.findings import FINDINGS, findings_of
from medm2g_core.data.study_cache import (
    REGIONS,
    SPLITS,
    CohortError,
    StudyRecord,
    StudyTask,
    cohort_version,
    fill_cache,
    to_float,
)
from medm2g_core.data.wheels import cache_dir as default_cache_dir
from medm2g_core.streams import Finding, StreamError, Study, stream

__all__ = ["VirtualCohort", "cache_plan", "collate"]


class VirtualCohort(Dataset[Study]):
    """Virtual patients drawn from real anatomy, as a map-style torch dataset of `Study`.

    Args:
        split: ``"train"``, ``"val"`` or ``"test"``; no subject is in two of them.
        region: ``"chest"``, ``"brain"``, or ``"both"`` (alternating, beginning with a chest).
        size: number of studies. A larger cohort begins with the studies of a smaller one.
        seed: of the cohort; any integer from 0.
        resolution: pixels of a side. 128, 256, 512 and so on are drawn, each with as much detail as
            it can show, and cached on their own; 64, 32, 16 and 8 are area means of 128. The
            patients are the same at every resolution.
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
        resolution: int = BASE_PX,
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
        small = 8 <= resolution <= BASE_PX and BASE_PX % resolution == 0
        large = resolution in (BASE_PX << n for n in range(1, 6))
        if not (small or large):
            raise CohortError(
                f"resolution {resolution}: use 128, 256, 512 or so on (128 times a power of two),"
                " or 64, 32, 16 or 8"
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

    def _records_of(self, region: str, size: int, workers: int | None) -> list[StudyRecord]:
        if size == 0:
            return []
        persons = self.persons if region == "chest" else None
        drawn = max(self.resolution, BASE_PX)
        folder, tasks = cache_plan(self.split, region, size, self.seed, drawn, persons, self._root)
        records = fill_cache(folder, tasks, workers)
        return records if self.resolution == drawn else [self._shrunk(record) for record in records]

    def _shrunk(self, record: StudyRecord) -> StudyRecord:
        n, k = self.resolution, BASE_PX // self.resolution
        images = {
            name: (
                np.rint(image.reshape(1, n, k, n, k).mean(axis=(2, 4), dtype=np.float64)).astype(
                    np.uint16
                )
            )
            for name, image in record.images.items()
        }
        facts = record.facts | {"spacing_mm": [mm * k for mm in record.facts["spacing_mm"]]}
        return StudyRecord(images, facts)

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
            images={key: to_float(image) for key, image in record.images.items()},
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
        return to_float(np.stack([self._records[i].images[name] for i in chosen]))


def cache_plan(
    split: str,
    region: str,
    size: int,
    seed: int = 0,
    resolution: int = BASE_PX,
    persons: Iterable[str] | None = None,
    root: Path | None = None,
) -> tuple[Path, list[StudyTask]]:
    """Folder of a cohort's cache, and what is drawn into it; arguments as of `VirtualCohort`."""
    chosen = _check_persons(persons, region)
    folder = (
        (root or default_cache_dir() / "cohort")
        / f"{region}-{resolution}px-{cohort_version(region)}"
        / "-".join([split, f"seed{seed}", *(chosen or ())])
    )
    tasks = [StudyTask(seed, split, region, i, chosen, resolution) for i in range(size)]
    return folder, tasks


def _findings(record: StudyRecord) -> tuple[Finding, ...]:
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
