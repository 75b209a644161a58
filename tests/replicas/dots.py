"""A made-up data set for the tests of preparation: a table, flat pictures with a dot, and every
fault on request."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medm2g_core.data.sources.base import (
    DataCard,
    Entry,
    Expectation,
    Found,
    Skip,
    Source,
    SourceStudy,
)
from medm2g_core.data.sources.prepare import prepare_source
from medm2g_core.data.volumes import FileError


class Dots(Source):
    """``studies.csv`` and ``pictures/<id>.npy``; a study may lack its picture or its report.

    Args:
        expected: number of studies that were "published".
        official: take the split from the table.
        dies_at: the process ends, as if killed, when this study is read.
        dies_once: only where this file is not there yet; it is made then.
    """

    name = "dots"
    region = "chest"
    streams = ("text", "xray", "ct")
    card = DataCard(
        "Dots", "", "none", "make it", "", (), (), "dots/\n  studies.csv\n  pictures/<id>.npy"
    )

    def __init__(
        self,
        expected: int = 0,
        official: bool = False,
        dies_at: str = "",
        dies_once: Path | None = None,
    ) -> None:
        self.expected, self.official, self.dies_at = expected, official, dies_at
        self.dies_once = dies_once

    def scan(self, root: Path) -> Found:
        if not (root / "studies.csv").is_file():
            raise self.not_here(root, "no studies.csv")
        entries, skips = [], []
        with (root / "studies.csv").open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if not row["streams"]:
                    skips.append(
                        Skip("empty study", str(root / row["id"]), "neither report nor picture")
                    )
                    continue
                files = {
                    s: root / "pictures" / f"{row['id']}.npy"
                    for s in row["streams"].split()
                    if s != "text"
                }
                text = (
                    f"A dot: \u201c{row['id']}\u201d.\r\nNothing else."
                    if "text" in row["streams"]
                    else None
                )
                labels = {"dot": 1.0, "unsure": -1.0, "nobody_said": math.nan}
                split = row["split"] if self.official else ""
                entries.append(
                    Entry(
                        row["id"], row["subject"], split, files, text, labels, extra={"root": root}
                    )
                )
        table = (
            (Expectation.count("studies", self.expected, len(entries)),) if self.expected else ()
        )
        return Found(tuple(entries), tuple(skips), table)

    def read(self, entry: Entry, size: int) -> SourceStudy:
        if entry.id == self.dies_at and not (self.dies_once and self.dies_once.exists()):
            if self.dies_once:
                self.dies_once.touch()
            os._exit(9)  # no clean-up, as after a power cut
        images = {}
        for name, path in entry.files.items():
            try:
                array = np.load(path, allow_pickle=False)
            except (OSError, ValueError) as error:
                raise FileError(f"{path}: not an array ({error})") from error
            images[name] = torch.from_numpy(array)[None, :size, :size]
        return SourceStudy(
            id=entry.id,
            subject=entry.subject,
            person=entry.subject,
            region=self.region,
            text=entry.text,
            images=images,
            age=40,
            sex="female",
            spacing_mm=(2.8, math.nan),
            source=self.name,
            split=entry.split,
            labels=entry.labels,
            units={"ct": "HU"} if "ct" in images else {},
            orientation="radiological axial",
            notes=("read from an array",),
        )


def write_dots(
    root: Path,
    subjects: int = 12,
    each: int = 2,
    *,
    broken: tuple[str, ...] = (),
    splits: tuple[str, ...] = ("",),
) -> Path:
    """``each`` studies of ``subjects`` subjects: all streams, one picture, or a report alone, in
    turn.

    Args:
        broken: ids of studies whose picture is cut off.
        splits: of the studies, in turn.
    """
    (root / "pictures").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (root / "studies.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "subject", "split", "streams"])
        for number in range(subjects * each):
            name, subject = f"dot.{number:03d}/a", f"p{number // each:02d}"
            path = root / "pictures" / f"{name}.npy"
            path.parent.mkdir(exist_ok=True)
            streams = ("text xray ct", "ct", "text")[number % 3]
            table.writerow([name, subject, splits[number % len(splits)], streams])
            if streams != "text":
                picture = rng.uniform(-1, 1, (20, 20)).astype(np.float32)
                np.save(path, picture)
                if name in broken:
                    path.write_bytes(path.read_bytes()[:200])
    return root


def prepare(tree: Path, out: Path, **options: object) -> dict[str, Any]:
    """The tree as shards of five small studies, made in this process, unless ``options`` differ."""
    source = options.pop("source", Dots())
    return prepare_source(
        source, tree, out, **{"size": 16, "workers": 0, "shard_size": 5} | options
    )
