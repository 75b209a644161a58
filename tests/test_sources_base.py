"""What all real data sets share: seeded splits, the report, limits, refusals, on a made-up data
set."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from medm2g_core.data.sources import SOURCES, open_source
from medm2g_core.data.sources.base import (
    SPLITS,
    DataCard,
    Entry,
    Expectation,
    Found,
    Skip,
    Source,
    SourceDataset,
    SourceError,
    SourceStudy,
    seeded_split,
)
from medm2g_core.data.volumes import FileError

NAMES = [f"subject{i:03d}" for i in range(50)]


class Paper(Source):
    """Text files ``<subject>_<study>.txt``: ``broken`` cannot be read, ``empty`` is left out, ``N``
    is N slices."""

    name: ClassVar[str] = "paper"
    region: ClassVar[str] = "any"
    streams: ClassVar[tuple[str, ...]] = ("text", "ct")
    card: ClassVar[DataCard] = DataCard(
        "Paper", "", "none", "none", "none", (), (), "  <subject>_<study>.txt"
    )

    def scan(self, root: Path) -> Found:
        entries, skips = [], []
        for path in sorted(root.glob("*.txt")):
            words = path.read_text()
            subject = path.stem.split("_")[0]
            split = words.removeprefix("split ") if words.startswith("split ") else ""
            if words == "empty":
                skips.append(Skip("empty report", path.name, "no word in it"))
            else:
                entries.append(
                    Entry(path.stem, subject, split, {"ct": path}, text=words if split else None)
                )
        return Found(
            tuple(entries),
            tuple(skips),
            (Expectation.count("studies", 4, len(entries), "of paper"),),
        )

    def slices(self, entry: Entry) -> Sequence[Entry]:
        words = entry.files["ct"].read_text()
        if words == "torn":
            raise FileError(f"{entry.id}: torn")
        if not words.isdigit():
            return [entry]
        return [replace(entry, id=f"{entry.id}_{k}", index=k) for k in range(int(words))]

    def read(self, entry: Entry, size: int) -> SourceStudy:
        if entry.files["ct"].read_text() == "broken":
            raise FileError(f"{entry.id}: broken")
        image = torch.zeros(1, size, size)
        return SourceStudy(
            entry.id,
            entry.subject,
            entry.subject,
            "any",
            entry.text,
            {"ct": image},
            source="paper",
            split=entry.split,
        )


def folder(root: Path, **files: str) -> Path:
    """A `Paper` data set: name of the file without ending -> its words."""
    for name, words in files.items():
        (root / f"{name}.txt").write_text(words)
    return root


def test_a_seeded_split_depends_on_names_and_seed_alone() -> None:
    first = seeded_split(NAMES)
    shuffled = NAMES * 3  # order and repetition say nothing: a subject has many studies
    random.Random(1).shuffle(shuffled)
    assert seeded_split(shuffled) == first == seeded_split(iter(NAMES))
    assert seeded_split(NAMES, seed=1) != first
    assert set(first) == set(NAMES)
    assert Counter(first.values()) == {"train": 40, "val": 5, "test": 5}


@pytest.mark.parametrize("count", range(3, 30))
@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (0.98, 0.01, 0.01), (0.4, 0.3, 0.3)])
def test_with_three_subjects_every_split_gets_one(
    count: int, shares: tuple[float, float, float]
) -> None:
    counts = Counter(seeded_split(NAMES[:count], shares=shares).values())
    assert all(counts[s] >= 1 for s in SPLITS) and counts.total() == count


def test_a_share_of_nothing_gets_nothing_and_few_subjects_are_no_error() -> None:
    assert set(seeded_split(NAMES, shares=(0.5, 0.5, 0.0)).values()) == {"train", "val"}
    assert set(seeded_split(NAMES[:4], shares=(0.0, 0.5, 0.5)).values()) == {"val", "test"}
    assert seeded_split([]) == {} and seeded_split(["a"]) == {"a": "train"}
    assert len(seeded_split(["a", "b"])) == 2


@pytest.mark.parametrize(
    "shares", [(0.8, 0.1, 0.2), (1.2, -0.1, -0.1), (0.0, 0.0, 0.0), (float("nan"), 0.5, 0.5)]
)
def test_shares_that_make_no_whole_are_refused(shares: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        seeded_split(NAMES, shares=shares)


def test_all_studies_and_slices_of_a_subject_are_in_one_split(tmp_path: Path) -> None:
    folder(tmp_path, **{f"{n}_{k}": "3" for n in NAMES[:12] for k in "ab"})
    whole = SourceDataset(Paper(), tmp_path)
    subjects = whole.subjects()
    assert set(subjects) == set(SPLITS) and len(whole) == 12 * 2 * 3
    assert (
        sum(len(s) for s in subjects.values())
        == len({n for s in subjects.values() for n in s})
        == 12
    )
    parts = [SourceDataset(Paper(), tmp_path, split=s) for s in SPLITS]
    assert sum(len(p) for p in parts) == len(whole)
    for part, split in zip(parts, SPLITS, strict=True):
        assert part.subjects() == {split: subjects[split]} and part[0].split == split


def test_a_published_split_wins_over_the_seed(tmp_path: Path) -> None:
    folder(
        tmp_path,
        **{f"{n}_a": "split test" for n in NAMES[:5]},
        **{f"{n}_a": "1" for n in NAMES[5:10]},
    )
    data = SourceDataset(Paper(), tmp_path, shares=(1.0, 0.0, 0.0))
    assert data.subjects() == {"test": tuple(NAMES[:5]), "train": tuple(NAMES[5:10])}
    assert all(s.split == ("test" if s.subject in NAMES[:5] else "train") for s in data.studies())


def test_the_report_counts_what_is_there_and_what_is_not(tmp_path: Path) -> None:
    folder(tmp_path, a_1="split train", b_1="2", c_1="empty", d_1="empty", e_1="torn", f_1="broken")
    data = SourceDataset(Paper(), tmp_path)
    assert [s.id for s in data.studies()] == ["a_1", "b_1_0", "b_1_1"]
    lines = data.report().splitlines()
    assert lines[0] == "Paper: 4 studies of 3 subjects"
    assert "  ok          studies: found 4, published 4 (of paper)" in lines
    assert "  4 studies have ct" in lines and "  1 studies have text" in lines
    assert "  left out, empty report: 2 (first: c_1.txt: no word in it)" in lines
    assert "  left out, unreadable volume: 1 (first: e_1: e_1: torn)" in lines
    assert "  left out, unreadable file: 1 (first: f_1: f_1: broken)" in lines
    assert sum(e.split in SPLITS for e in data.entries) == 4
    with pytest.raises(
        FileError, match="broken"
    ):  # asked for by number it is an error, never an empty picture
        data[3]


def test_found_counts_its_skips_by_kind() -> None:
    found = Found((), (Skip("x", "a", ""), Skip("y", "b", ""), Skip("x", "c", "")))
    assert found.counts() == {"x": 2, "y": 1}


@pytest.mark.parametrize(
    ("found", "state"), [(5, "ok"), (4, "surprising"), (6, "surprising"), (0, "missing")]
)
def test_a_count_is_ok_surprising_or_missing(found: int, state: str) -> None:
    assert Expectation.count("studies", 5, found).state == state


def test_limit_counts_subjects_and_keeps_all_of_each(tmp_path: Path) -> None:
    folder(tmp_path, **{f"{n}_{k}": "2" for n in NAMES[:6] for k in "ab"})
    whole = SourceDataset(Paper(), tmp_path)
    split_of = {e.subject: e.split for e in whole.entries}
    data = SourceDataset(Paper(), tmp_path, limit=2)
    first = [n for n in NAMES[:6] if split_of[n] == "train"][:2]
    assert len(data) == 2 * 2 * 2 and {e.subject: e.split for e in data.entries} == dict.fromkeys(
        first, "train"
    )
    three = SourceDataset(Paper(), tmp_path, limit=3)
    assert {e.split for e in three.entries} == {"train", "val", "test"} and len(
        {e.subject for e in three.entries}
    ) == 3
    assert {e.subject: e.split for e in three.entries}.items() <= split_of.items()
    train = SourceDataset(Paper(), tmp_path, split="train", limit=1)
    assert len({e.subject for e in train.entries}) == 1 and {e.split for e in train.entries} == {
        "train"
    }
    assert len(SourceDataset(Paper(), tmp_path, limit=100)) == len(whole)


def test_a_study_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    class Twice(Paper):
        def scan(self, root: Path) -> Found:
            found = super().scan(root)
            return replace(found, entries=(*found.entries, found.entries[0]))

    folder(tmp_path, a_1="1", b_1="1")
    with pytest.raises(SourceError, match="1 studies occur twice, first a_1; is the tree there"):
        SourceDataset(Twice(), tmp_path)
    with pytest.raises(SourceError, match="occur twice"):
        SourceDataset(Twice(), tmp_path, split="train")


def test_an_unknown_split_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="'validate' is not one of train, val, test"):
        SourceDataset(Paper(), folder(tmp_path, a_1="1"), split="validate")


def test_a_missing_or_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such folder"):
        SourceDataset(Paper(), tmp_path / "none")
    folder(tmp_path, a_1="empty", b_1="empty")
    with pytest.raises(
        SourceError, match=r"no usable study \(2 x empty report\)[\s\S]*<subject>_<study>\.txt"
    ):
        SourceDataset(Paper(), tmp_path)
    (tmp_path / "x").mkdir()
    with pytest.raises(SourceError, match=r"no usable study \(no files\)"):
        SourceDataset(Paper(), tmp_path / "x")


def test_an_unknown_data_set_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"unknown data set 'nothing'; known: .*synthrad2023"):
        open_source("nothing", tmp_path)


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_every_registered_data_set_tells_what_it_is_and_refuses_a_wrong_folder(
    source: Source, tmp_path: Path
) -> None:
    card = source.card
    assert (
        card.title
        and card.licence
        and card.access
        and card.paper_use
        and card.layout
        and card.faults
    )
    assert set(source.streams) <= {"text", "xray", "ct", "mri_t1", "mri_t2", "mri_pd", "mri_flair"}
    assert "[P]" in card.paper_use or "[S]" in card.paper_use
    for name in ("", "holiday.png"):  # an empty folder, and one of other things
        if name:
            (tmp_path / name).write_bytes(b"x")
        with pytest.raises(SourceError) as caught:
            SourceDataset(source, tmp_path)
        assert card.layout.splitlines()[0] in str(caught.value) and card.title in str(caught.value)


def test_images_and_sizes_are_as_asked_for(tmp_path: Path) -> None:
    data = SourceDataset(Paper(), folder(tmp_path, a_1="1"), size=24)
    assert data[0].images["ct"].shape == (1, 24, 24) and np.isnan(data[0].spacing_mm[0])


def test_the_page_of_cards_is_what_the_cards_say() -> None:
    from medm2g_core.show.data_cards import FILE, page

    assert FILE.read_text(encoding="utf-8") == page(), "run python -m medm2g_core.show.data_cards"
    assert all(f'open_source("{name}", folder)' in page() for name in SOURCES)
