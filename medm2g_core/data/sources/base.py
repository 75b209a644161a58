"""What all real data sets share: find what is there, say what is missing, and read one study at a
time.

A data set is a `Source`. Its `scan` looks at names and tables only and is quick; it returns every
study that can be made, every file that was left out with the reason, and a table of what was
expected. Its `read` opens the files of one study. `SourceDataset` is the torch ``Dataset`` over
both. Nothing is filled in: a stream that a study lacks is absent, a label that nobody gave is NaN,
and a broken file is an error or a counted skip, never a black picture.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from medm2g_core.data.plausibility import check_picture
from medm2g_core.data.volumes import FileError, one_sentence
from medm2g_core.streams import Study

__all__ = [
    "SPLITS",
    "DataCard",
    "Entry",
    "Expectation",
    "Found",
    "Skip",
    "Source",
    "SourceDataset",
    "SourceError",
    "SourceStudy",
    "refuse_twice",
    "seeded_split",
]

SPLITS = ("train", "val", "test")
"""Every data set's own names (``validate``, ``validation``) are brought to these."""

State = Literal["ok", "missing", "surprising"]


class SourceError(ValueError):
    """A folder does not hold the data set, or not in a form that can be used; the message says what
    is needed: one sentence, and where it helps how the folders should lie."""

    def __init__(self, message: str) -> None:
        # What is quoted from a broken table may have no end and any character.
        said, line, layout = message.partition("\n")
        super().__init__(one_sentence(said) + line + layout)


@dataclass(frozen=True)
class DataCard:
    """What a reader must know of a data set.

    Attributes:
        title, homepage, licence: as the publisher gives them.
        access: how to get it.
        paper_use: what the paper used it for, with the mark of where that is known from ([P] the
            paper, [S] secondary sources, [C] our choice).
        lost: what preparation takes away.
        faults: known faults and what is done about each.
        layout: the tree that is expected, in a few lines.
        recalled: what is known from memory or descriptions only.
    """

    title: str
    homepage: str
    licence: str
    access: str
    paper_use: str
    lost: tuple[str, ...]
    faults: tuple[str, ...]
    layout: str
    recalled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Skip:
    """Something that was left out.

    Attributes:
        kind: a short name that counts are kept under, such as ``"empty report"``.
        where: file or study.  why: one sentence.
    """

    kind: str
    where: str
    why: str


@dataclass(frozen=True)
class Expectation:
    """A line of the table that is printed before anything is prepared.

    Attributes:
        what: such as ``"studies with images"``.
        expected: the published figure, or ``""`` where there is none.  found: what is there.
        state: ``"missing"`` where work cannot go on as published, ``"surprising"`` where it can but
            should be looked at.
        note: a word of explanation.
    """

    what: str
    expected: str
    found: str
    state: State = "ok"
    note: str = ""

    @classmethod
    def count(
        cls, what: str, expected: int, found: int, note: str = "", *, needed: bool = True
    ) -> Expectation:
        """As many as published: fine; none at all of what is ``needed``: missing; another number:
        surprising."""
        state: State = (
            "ok" if found == expected else "missing" if needed and not found else "surprising"
        )
        return cls(what, f"{expected:,}", f"{found:,}", state, note)


@dataclass(frozen=True)
class Entry:
    """A study before it is read: names and table values only.

    Attributes:
        id: unique in the data set; for a slice of a volume it ends in the slice's number.
        subject: all entries of one subject are in one split.
        split: one of `SPLITS`, or ``""`` where the publisher gives none (`SourceDataset` then draws
            one).
        files: stream -> file (or folder of a DICOM series).
        text: the report, or ``None``.
        labels: name -> 1 (yes), 0 (no), -1 (uncertain) or NaN (nobody said).
        index: number of the slice within its volume, where there is one.
        extra: anything that `Source.read` needs.
    """

    id: str
    subject: str
    split: str
    files: Mapping[str, Path] = field(default_factory=dict)
    text: str | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    index: int | None = None
    age: int | None = None
    sex: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slice_index(self) -> int:
        """`index`; `FileError` for an entry that stands for a whole volume."""
        if self.index is None:
            raise FileError(f"{self.id}: a slice number is needed; take the entries of slices()")
        return self.index


@dataclass(frozen=True)
class Found:
    """The outcome of `Source.scan`."""

    entries: tuple[Entry, ...]
    skips: tuple[Skip, ...] = ()
    table: tuple[Expectation, ...] = ()

    def counts(self) -> Counter[str]:
        """Kind of skip -> how often."""
        return Counter(s.kind for s in self.skips)


@dataclass(frozen=True)
class SourceStudy(Study):
    """A study of a real data set.

    Attributes:
        source, split: where it is from.
        labels: see `Entry`.
        units: stream -> what its values meant before they were brought to -1..1 (``"HU"``,
            ``"signal"``, ``"display intensity"``).
        orientation: of the images' rows and columns, always ``"radiological"`` once read, with the
            plane (``"radiological axial"``); radiographs are ``"as displayed"``.
        notes: what was done to the files, in words.
    """

    source: str = ""
    split: str = ""
    labels: Mapping[str, float] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    orientation: str = ""
    notes: tuple[str, ...] = ()


class Source(ABC):
    """A data set on disk. Subclasses say how its tree looks and how one study is read.

    Attributes:
        name: key of the registry.  region: of its studies.  streams: that it can have at all.
            card: see `DataCard`.
    """

    name: ClassVar[str]
    region: ClassVar[str]
    streams: ClassVar[tuple[str, ...]]
    card: ClassVar[DataCard]

    @abstractmethod
    def scan(self, root: Path) -> Found:
        """Everything that can be made from the tree at ``root``, from names, headers and tables
        alone.

        Raises:
            SourceError: this is not the data set's tree; the message shows the tree that is
                expected.
        """

    @abstractmethod
    def read(self, entry: Entry, size: int) -> SourceStudy:
        """One study with images (1, size, size) in -1..1.

        Raises:
            FileError: a file of it is broken, empty or not what it should be.
        """

    def slices(self, entry: Entry) -> Sequence[Entry]:
        """The entries that one volume becomes; by default the entry itself. Only headers are
        read."""
        return (entry,)

    def inputs(self, entry: Entry) -> tuple[Path, ...]:
        """What `read` opens for an entry: the files and folders of ``files`` and the files of
        ``extra``. Their content decides whether a prepared shard is still that of the tree."""
        more = (path for path in _paths(entry.extra) if path.is_file())
        return tuple(sorted({*entry.files.values(), *more}))

    def options(self) -> dict[str, Any]:
        """What decides on the pictures besides the tree: the fields of a dataclass. Options that
        only choose the entries need not be here."""
        return {f.name: getattr(self, f.name) for f in fields(self)} if is_dataclass(self) else {}

    def study(
        self,
        entry: Entry,
        images: Mapping[str, torch.Tensor],
        *,
        units: Mapping[str, str],
        orientation: str,
        notes: Sequence[str],
        spacing_mm: tuple[float, float] = (math.nan, math.nan),
        labels: Mapping[str, float] | None = None,
        region: str = "",
    ) -> SourceStudy:
        """A study of this data set: what `scan` found out about it, with the images that `read`
        made.

        Args:
            labels: those of the entry unless others are given.  region: that of the data set unless
                another is given.

        Raises:
            FileError: a picture cannot be one of its stream, as for a user's file and the pipeline
                (`medm2g_core.data.plausibility.check_picture`).
        """
        told = list(notes)
        for name, image in images.items():
            verdict = check_picture(image[0].numpy(), name)
            if verdict.refusal:
                raise FileError(f"{entry.id}, {name}: {verdict.refusal}")
            told += [f"{name}: {note}" for note in verdict.notes]
        return SourceStudy(
            id=entry.id,
            subject=entry.subject,
            person=entry.subject,
            region=region or self.region,
            text=entry.text,
            images=images,
            age=entry.age,
            sex=entry.sex,
            spacing_mm=spacing_mm,
            source=self.name,
            split=entry.split,
            labels=entry.labels if labels is None else labels,
            units=units,
            orientation=orientation,
            notes=tuple(told),
        )

    def not_here(self, root: Path, what: str) -> SourceError:
        """The error for a folder that does not hold this data set."""
        return SourceError(
            f"{root}: {what}. {self.card.title} is expected like this:\n{self.card.layout}"
        )


def _paths(value: Any) -> Iterator[Path]:
    """All paths within nested mappings and sequences."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        yield from _paths(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _paths(part)


def seeded_split(
    subjects: Iterable[str], *, shares: tuple[float, float, float] = (0.8, 0.1, 0.1), seed: int = 0
) -> dict[str, str]:
    """Subject -> split, for data sets without an official one. Depends on the subjects' names and
    the seed alone.

    With three subjects or more every split with a share gets at least one.
    """
    if min(shares) < 0 or not math.isclose(sum(shares), 1):
        raise ValueError(f"shares {shares}: needed three numbers that sum to 1")
    names = sorted(set(subjects))
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    counts = [round(s * len(order)) for s in shares]
    for k in (1, 2):
        if shares[k] > 0 and counts[k] == 0 and len(order) >= 3:
            counts[k] = 1
    counts[0] = len(order) - counts[1] - counts[2]
    ends = np.cumsum(counts)
    return {
        name: SPLITS[int(np.searchsorted(ends, i, side="right"))] for i, name in enumerate(order)
    }


def refuse_twice(root: Path, names: Iterable[str]) -> None:
    """Raise `SourceError` where a study would be there twice: it would count double in training and
    in every score."""
    if twice := [name for name, n in Counter(names).items() if n > 1]:
        raise SourceError(
            f"{root}: {len(twice)} studies occur twice, first {twice[0]}; is the tree there twice,"
            " or a row of a table?"
        )


def _some_subjects(entries: Sequence[Entry], limit: int) -> set[str]:
    """The first ``limit`` subjects: a tenth from val and from test (from three on at least one
    each), else train's."""
    of = {
        split: list(dict.fromkeys(e.subject for e in entries if e.split == split))
        for split in SPLITS
    }
    kept: list[str] = []
    for split in SPLITS[1:] if limit >= 3 else ():
        kept += of[split][: max(1, limit // 10)]
    for split in SPLITS:
        kept += [name for name in of[split] if name not in kept][: limit - len(kept)]
    return set(kept)


class SourceDataset(Dataset[SourceStudy]):
    """Studies of a data set, read when they are asked for.

    Args:
        source: the data set.  root: its folder.
        split: one of `SPLITS`, or ``None`` for all.
        size: side of the pictures in pixels.
        limit: at most so many subjects, for a quick look; with three or more every split keeps one.
        shares, seed: of `seeded_split`, where the publisher has no split.

    Raises:
        SourceError: no such folder or split, not that data set, nothing usable in it, a subject
            in two splits, or a study that is there twice.
    """

    def __init__(
        self,
        source: Source,
        root: str | Path,
        *,
        split: str | None = None,
        size: int = 128,
        limit: int | None = None,
        shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
        seed: int = 0,
    ) -> None:
        if split is not None and split not in SPLITS:
            raise SourceError(f"split {split!r} is not one of {', '.join(SPLITS)}")
        self.source, self.root, self.split, self.size = source, Path(root), split, size
        if not self.root.is_dir():
            raise SourceError(f"{self.root}: there is no such folder")
        self.found = source.scan(self.root)
        if not self.found.entries:
            reasons = (
                ", ".join(f"{n} x {kind}" for kind, n in self.found.counts().items()) or "no files"
            )
            raise source.not_here(self.root, f"no usable study ({reasons})")
        drawn = seeded_split(
            (e.subject for e in self.found.entries if not e.split), shares=shares, seed=seed
        )
        entries = [e if e.split else replace(e, split=drawn[e.subject]) for e in self.found.entries]
        split_of: dict[str, str] = {}
        for e in entries:
            if split_of.setdefault(e.subject, e.split) != e.split:
                raise SourceError(
                    f"{self.root}: subject {e.subject} is in {split_of[e.subject]} and in {e.split}"
                )
        refuse_twice(self.root, (e.id for e in entries))
        chosen = [e for e in entries if split in (None, e.split)]
        if limit is not None:
            kept = _some_subjects(chosen, limit)
            chosen = [e for e in chosen if e.subject in kept]
        self.skipped: list[Skip] = list(self.found.skips)
        self.entries: list[Entry] = []
        for entry in chosen:
            try:
                self.entries += source.slices(entry)
            except FileError as error:
                self._skip(Skip("unreadable volume", entry.id, str(error)))

    def _skip(self, skip: Skip) -> None:
        if skip not in self.skipped:  # the studies may be gone through several times
            self.skipped.append(skip)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> SourceStudy:
        """Raises `FileError` for a study whose files are broken; iterate with `studies` to skip and
        count them."""
        return self.source.read(self.entries[index], self.size)

    def studies(self) -> Iterable[SourceStudy]:
        """All readable studies in order; broken ones are added to `skipped`."""
        for entry in self.entries:
            try:
                yield self.source.read(entry, self.size)
            except FileError as error:
                self._skip(Skip("unreadable file", entry.id, str(error)))

    def subjects(self) -> dict[str, tuple[str, ...]]:
        """Split -> its subjects, sorted."""
        out: dict[str, set[str]] = {}
        for e in self.entries:
            out.setdefault(e.split, set()).add(e.subject)
        return {s: tuple(sorted(names)) for s, names in out.items()}

    def report(self) -> str:
        """What was expected and found, and what was left out and why, as text."""
        lines = [
            f"{self.source.card.title}: {len(self)} studies of"
            f" {len({e.subject for e in self.entries})} subjects"
        ]
        lines += [
            f"  {e.state:10}  {e.what}: found {e.found}"
            + (f", published {e.expected}" if e.expected else "")
            + (f" ({e.note})" if e.note else "")
            for e in self.found.table
        ]
        streams = Counter(
            s for e in self.entries for s in (*e.files, *(("text",) if e.text else ()))
        )
        lines += [f"  {n} studies have {s}" for s, n in streams.items()]
        by_split = Counter(e.split for e in self.entries)
        lines.append("  " + ", ".join(f"{s}: {by_split[s]}" for s in SPLITS if by_split[s]))
        for kind, n in Counter(s.kind for s in self.skipped).most_common():
            first = next(s for s in self.skipped if s.kind == kind)
            lines.append(f"  left out, {kind}: {n} (first: {first.where}: {first.why})")
        return "\n".join(lines)
