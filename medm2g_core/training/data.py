"""What a training reads its studies from: the embedded cohort, or a real data set.

A real data set seldom has all streams. Its studies are grouped by the streams that they have, each
group is a `Corpus`, and every stage trains on the groups that have something for it; a stage for
which there is nothing is left out, in words.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch
from tqdm.auto import tqdm

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.sources import SourceError
from medm2g_core.data.sources.prepare import prepare_source
from medm2g_core.data.sources.shards import MANIFEST, ShardDataset, read_manifest
from medm2g_core.model import MedM2G
from medm2g_core.profiles import REPORT_STAGE, Profile
from medm2g_core.storage import atomic_write
from medm2g_core.streams import STREAMS, stream
from medm2g_core.training.batches import can_align
from medm2g_core.training.corpus import (
    Corpus,
    descriptions,
    random_prompts,
    random_reports,
    wordings,
)
from medm2g_core.training.endless import studies_there
from medm2g_core.training.reader import Reader
from medm2g_core.training.rounds import ROUNDS, Mix, Round

__all__ = [
    "EmbeddedData",
    "SourceData",
    "TrainingData",
    "codec_texts",
    "corpus_of",
    "load_corpora",
    "round_for",
]


class TrainingData(Protocol):
    """Studies for all stages."""

    def corpora(self, split: str) -> list[Corpus]:
        """The studies of ``"train"`` or ``"val"``; of ``"val"`` there may be none."""
        ...

    def reports(self, n: int, seed: int, split: str = "train") -> list[str]:
        """``n`` reports, drawn with the seed; of ``"val"`` at most as many as there are; perhaps
        none."""
        ...

    def prompts(self, n: int, seed: int) -> list[str]:
        """``n`` texts of the train split as people may give them, drawn with the seed; the reports
        where there is no other register."""
        ...

    def fit(self, model: MedM2G) -> None:
        """Called once before training: the model says how long a report may be."""
        ...

    def grow(self) -> bool:
        """Called before a stage: whether there are more training studies now than before."""
        ...

    def lacks(self, stage: str) -> str:
        """What the data does not have and the stage needs, in words; ``""`` if the stage can be
        trained."""
        ...

    def round(self, name: str, split: str = "train") -> Round:
        """The round as this data allows it."""
        ...

    def facts(self) -> dict[str, Any]:
        """What is written into the model's record."""
        ...


def codec_texts(data: TrainingData, prompt_share: float) -> Callable[[int, int], list[str]]:
    """``(n, seed)`` -> n texts of the train split for the text codec: prompts in that share, the
    rest reports."""

    def draw(n: int, seed: int) -> list[str]:
        prompts = round(n * prompt_share)
        return [*data.reports(n - prompts, seed), *data.prompts(prompts, seed)]

    return draw


# ---- embedded cohort


def load_corpora(
    profile: Profile,
    *,
    split: str = "train",
    persons: Sequence[str] | None = None,
    workers: int | None = None,
) -> list[Corpus]:
    """Chest and brain studies of the embedded cohort in the profile's size and resolution."""
    d = profile.data
    sizes = {"chest": d.chest_train, "brain": d.brain_train}
    if split != "train":
        sizes = {"chest": d.chest_val, "brain": d.brain_val}
    out = []
    for region, size in sizes.items():
        cohort = VirtualCohort(
            split,
            region,
            size,
            seed=d.seed,
            resolution=profile.resolution,
            persons=persons if region == "chest" else None,
            workers=workers,
        )
        out.append(corpus_of(cohort))
    return out


def corpus_of(cohort: VirtualCohort, index: Sequence[int] | None = None) -> Corpus:
    """Studies of one region (those of ``index``, or all) in memory; training studies get several
    reports, prompts and contradictions each, others their report alone."""
    index = range(len(cohort)) if index is None else index
    images = {n: cohort.stack(n, index).half() for n in cohort[0].images}
    reports: list[list[str]] = []
    prompts: list[list[str]] = []
    contradictions: list[list[str]] = []
    for i in index:
        s = cohort[i]
        assert s.findings is not None and s.text is not None
        reports.append([s.text])
        if cohort.split == "train":
            patient = s.findings, s.region, s.age, s.sex
            reports[-1] += wordings(*patient, seed=i)[1:]
            own, wrong = descriptions(s.text, *patient, seed=i)
            prompts.append(own)
            contradictions.append(wrong)
    return Corpus(
        cohort.region,
        images,
        reports,
        weight=3 if cohort.region == "chest" else 1,
        prompts=prompts,
        contradictions=contradictions,
    )


class EmbeddedData:
    """The embedded cohort: every stage can be trained, and there are endless reports.

    Args:
        persons: restrict the chest studies to these people's anatomy (leave-one-person-out).
        workers: processes that draw the virtual patients.
        endless: take all training studies that are drawn when a stage begins, if these are more
            than the profile's; see `medm2g_core.training.endless`.
    """

    def __init__(
        self,
        profile: Profile,
        persons: Sequence[str] | None = None,
        workers: int | None = None,
        *,
        endless: bool = False,
    ) -> None:
        self.profile, self.persons, self.workers = profile, persons, workers
        self.endless = endless
        self._reader: Reader | None = None
        # nothing is drawn before a stage asks for pictures
        self.corpora: Callable[[str], list[Corpus]] = cache(self._corpora)

    def grow(self) -> bool:
        """Take up the studies that were drawn since; whether there are any."""
        if not self.endless:
            return False
        d = self.profile.data
        there = {
            region: max(
                size,
                studies_there(
                    region,
                    seed=d.seed,
                    resolution=self.profile.resolution,
                    persons=self.persons,
                ),
            )
            for region, size in (("chest", d.chest_train), ("brain", d.brain_train))
        }
        grown = replace(d, chest_train=there["chest"], brain_train=there["brain"])
        if grown == d:
            return False
        self.profile = self.profile.replace(data=grown)
        self.corpora = cache(self._corpora)
        return True

    def _corpora(self, split: str) -> list[Corpus]:
        whole = load_corpora(self.profile, split=split, persons=self.persons, workers=self.workers)
        return whole if self._reader is None else [self._reader.fitted_corpus(c) for c in whole]

    def reports(self, n: int, seed: int, split: str = "train") -> list[str]:
        texts = random_reports(n, seed if split == "train" else 2**31 + seed)
        return texts if self._reader is None else self._reader.fitted(texts)

    def prompts(self, n: int, seed: int) -> list[str]:
        texts = random_prompts(n, seed)
        return texts if self._reader is None else self._reader.fitted(texts)

    def fit(self, model: MedM2G) -> None:
        self._reader = Reader(model)
        self.corpora = cache(self._corpora)

    def lacks(self, stage: str) -> str:
        return ""

    def round(self, name: str, split: str = "train") -> Round:
        return ROUNDS[name]

    def facts(self) -> dict[str, Any]:
        return {"persons": list(self.persons) if self.persons else "all"}


# ---- real data sets


class SourceData:
    """A real data set: shards, or the download itself, which is then prepared first.

    The pictures of a split lie in plain files in ``work`` and are mapped into memory, so they may
    be larger than it.

    Args:
        name: in `medm2g_core.data.sources.SOURCES`.
        root: folder of the download, or of its shards (`prepare_source`).
        work: folder for shards (if needed) and mapped pictures.
        size: side of the pictures in pixels.
        limit, workers, allow_missing: of `prepare_source`, for a download.

    Raises:
        SourceError: unknown or missing data set, or shards of another one, of another size, or not
            finished.
        FileError: a damaged shard.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        work: str | Path,
        size: int,
        *,
        limit: int | None = None,
        workers: int | None = None,
        allow_missing: bool = False,
    ) -> None:
        self.name, self.work = name, Path(work)
        self.shards = Path(root)
        if not self.shards.is_dir():
            raise SourceError(f"{root}: there is no such folder")
        if not (self.shards / MANIFEST).is_file():
            self.shards = self.work / "shards"
            prepare_source(
                name,
                root,
                self.shards,
                size=size,
                limit=limit,
                workers=workers,
                allow_missing=allow_missing,
            )
        self.manifest = read_manifest(self.shards)
        if self.manifest["source"] != name:
            raise SourceError(
                f"{root} holds shards of {self.manifest['source']!r}, asked for was {name!r}"
            )
        if (found := int(self.manifest["parameters"]["size"])) != size:
            raise SourceError(
                f"{root} was prepared with {found} pixels and the profile has {size}: prepare it"
                f" again with --size {size} into another folder, or give the folder of the download"
            )
        if not self.manifest.get("complete"):
            raise SourceError(
                f"{root}: the preparation was interrupted; start it again, it goes on where it"
                " stopped"
            )
        self._reader: Reader | None = None
        self._whole: dict[str, str] = {}
        self.corpora: Callable[[str], list[Corpus]] = cache(self._corpora)
        self._raw: Callable[[str], list[Corpus]] = cache(
            lambda split: _mapped(self.shards, split, self.work)
        )

    def fit(self, model: MedM2G) -> None:
        self._reader = Reader(model)
        self.corpora = cache(self._corpora)

    def grow(self) -> bool:
        return False

    def _corpora(self, split: str) -> list[Corpus]:
        raw = self._raw(split)
        return raw if self._reader is None else [self._fitted(c, split) for c in raw]

    def _fitted(self, corpus: Corpus, split: str) -> Corpus:
        """The corpus with reports that the model can read; the pictures stay where they are."""
        if not corpus.has_text:
            return corpus
        assert self._reader is not None
        texts = [r[0] for r in corpus.reports]
        short = self._reader.fitted(texts)
        self._whole |= {new: old for new, old in zip(short, texts, strict=True) if new != old}
        if cut := sum(new != old for new, old in zip(short, texts, strict=True)):
            print(
                f"{self.name}, {split}: {cut} of {len(texts)} reports have more than"
                f" {self._reader.limit} tokens and end earlier, most after a whole sentence"
            )
        return replace(corpus, reports=[[t] for t in short], prompts=[[t] for t in short])

    def reports(self, n: int, seed: int, split: str = "train") -> list[str]:
        texts = [r[0] for c in self.corpora(split) for r in c.reports if r]
        rng = np.random.default_rng(seed)
        if (
            split != "train" or not texts
        ):  # held out: each once, or a few reports would pass for many
            return [texts[i] for i in rng.permutation(len(texts))[:n]]
        return [texts[i] for i in rng.integers(0, len(texts), n)]

    def prompts(self, n: int, seed: int) -> list[str]:
        return self.reports(n, seed)

    def original(self, report: str) -> str:
        """A report of `corpora` as it was before it was shortened: what scores compare with."""
        return self._whole.get(report, report)

    def lacks(self, stage: str) -> str:
        groups = [c.streams for c in self.corpora("train")]
        if not groups:
            return "no study in the train split"
        every = {n for g in groups for n in g}
        if stage == "image_codec":
            return "" if every - {"text"} else "no image"
        if stage == "text_codec":
            return "" if "text" in every else "no report"
        if stage == "alignment":
            able = any(can_align(c) for c in self.corpora("train"))
            return "" if able else "no two studies with a report and an image"
        if stage == REPORT_STAGE:
            able = any(c.has_text and c.images for c in self.corpora("train"))
            return "" if able else "no study with a report and an image"
        wanted = ROUNDS[stage].trained
        return (
            ""
            if any(stream(n).modality in wanted for n in every)
            else f"no stream of {' or '.join(wanted)}"
        )

    def round(self, name: str, split: str = "train") -> Round:
        return round_for(self.corpora(split), name)

    def facts(self) -> dict[str, Any]:
        return {
            "source": {
                "name": self.name,
                "studies": self.manifest["studies"],
                "streams": self.manifest["streams"],
                "parameters": self.manifest["parameters"],
                "shards": _digest(self.shards),
            },
        }


def round_for(corpora: Sequence[Corpus], name: str) -> Round:
    """A round of `ROUNDS` for studies of any streams: a mix for each corpus, as often as it has
    studies.

    The flows that the round trains are those of its modalities that occur; the frozen ones take
    part where a study has both. A flow starts from another one only if that was trained on this
    data too.
    """
    whole = ROUNDS[name]
    every = {stream(n).modality for c in corpora for n in c.streams}
    mixes = []
    for c in corpora:
        streams = tuple(
            n for n in c.streams if stream(n).modality in (*whole.trained, *whole.frozen)
        )
        if any(stream(n).modality in whole.trained for n in streams):
            mixes.append(Mix(c.name, streams, float(len(c))))
    present = {stream(n).modality for m in mixes for n in m.streams}
    return Round(
        tuple(m for m in whole.trained if m in present),
        tuple(m for m in whole.frozen if m in present),
        tuple(mixes),
        tuple((new, source) for new, source in whole.initialised_from if source in every),
        whole.continues,
    )


def _digest(shards: Path) -> str:
    records = read_manifest(shards)["shards"]
    return hashlib.sha256(
        json.dumps([[r["name"], r["sha256"]] for r in records]).encode()
    ).hexdigest()[:16]


def _mapped(shards: Path, split: str, work: Path) -> list[Corpus]:
    """The studies of a split, grouped by region and streams, their pictures mapped from files
    (written once)."""
    manifest = read_manifest(shards)
    if not manifest["studies"].get(split):
        return []
    size, folder = int(manifest["parameters"]["size"]), work / f"studies_{split}"
    index = folder / "index.json"
    key = f"1 {size} {_digest(shards)}"
    if not index.is_file() or json.loads(index.read_text(encoding="utf-8"))["key"] != key:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        groups = _write_groups(ShardDataset(shards, split), folder)
        text = json.dumps({"key": key, "groups": groups}, ensure_ascii=False)
        atomic_write(index, lambda p: p.write_text(text, encoding="utf-8"))
    out = []
    for group in json.loads(index.read_text(encoding="utf-8"))["groups"]:
        images, n = {}, group["studies"]
        for name, file in group["files"].items():
            # copy-on-write: torch wants memory that it may write, and the file stays as it is
            array = np.memmap(folder / file, np.float16, "c", shape=(n, 1, size, size))
            images[name] = torch.from_numpy(array)
        reports = [[t] for t in group["reports"]] if group["reports"] else [[] for _ in range(n)]
        out.append(Corpus(group["region"], images, reports, group["name"], n))
    return out


def _write_groups(studies: ShardDataset, folder: Path) -> list[dict[str, Any]]:
    groups: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {}
        for s in tqdm(studies, desc=f"{studies.split} studies", unit="study"):
            group = groups.setdefault(
                (s.region, s.streams), _empty(len(groups), s.region, s.streams)
            )
            group["studies"] += 1
            for name, file in group["files"].items():
                if file not in files:
                    files[file] = stack.enter_context((folder / file).open("wb"))
                files[file].write(s.images[name].numpy().astype(np.float16).tobytes())
            if s.text is not None:
                group["reports"].append(s.text)
    return list(groups.values())


def _empty(number: int, region: str, streams: Sequence[str]) -> dict[str, Any]:
    images: Mapping[str, str] = {n: f"{number:03d}_{n}.f16" for n in streams if STREAMS[n].is_image}
    name = f"{region}: {', '.join(streams)}"
    return {"name": name, "region": region, "studies": 0, "files": dict(images), "reports": []}
