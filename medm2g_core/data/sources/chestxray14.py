"""ChestX-ray14 (NIH): frontal chest radiographs with labels mined from reports; the reports are not
public."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medm2g_core.data.sources.base import (
    DataCard,
    Entry,
    Expectation,
    Found,
    Skip,
    Source,
    SourceError,
    SourceStudy,
    seeded_split,
)
from medm2g_core.data.sources.radiographs import read_film
from medm2g_core.data.sources.tables import find_file, open_table, read_table
from medm2g_core.data.sources.trees import files_below

__all__ = ["LABELS", "ChestXray14", "label_text", "parse_labels"]

LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural_Thickening",
    "Pneumonia",
    "Pneumothorax",
)
"""The fourteen labels as the current release writes them."""

NO_FINDING = "No Finding"
PUBLISHED = {"images": 112_120, "patients": 30_805, "train_val": 86_524, "test": 25_596}
TEXT_NOTE = "the text was written from the labels; it is no radiologist's report"

_SPELLINGS = {"Infiltrate": "Infiltration", "Pleural Thickening": "Pleural_Thickening"}
_WORDS = {"Effusion": "pleural effusion", "Edema": "pulmonary edema"}
_VALIDATION_SHARE = 1 / 8  # of the patients of the official train_val list: about 70/10/20 over all


def parse_labels(value: str, where: str = "") -> tuple[str, ...]:
    """The labels of a ``Finding Labels`` cell, split at ``|``; empty for ``No Finding``.

    Raises:
        SourceError: an unknown label, or ``No Finding`` beside another one.
    """
    names = [_SPELLINGS.get(n.strip(), n.strip()) for n in value.split("|") if n.strip()]
    if names == [NO_FINDING]:
        return ()
    if unknown := [n for n in names if n not in LABELS]:
        raise SourceError(
            f"{where}: label {unknown[0]!r} of {value!r} is none of {NO_FINDING},"
            f" {', '.join(LABELS)}"
        )
    if not names:
        raise SourceError(f"{where}: no label; an image without findings says {NO_FINDING!r}")
    return tuple(dict.fromkeys(names))


def label_text(names: Iterable[str]) -> str:
    """A sentence or two made of labels, in the project's report form. Labels know neither side nor
    size."""
    words = [_WORDS.get(n, n.replace("_", " ").lower()) for n in names]
    if not words:
        return "Findings: None of the labelled findings. Impression: No finding."
    joined = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return (
        f"Findings: {joined[0].upper()}{joined[1:]}. Impression: {joined[0].upper()}{joined[1:]}."
    )


class ChestXray14(Source):
    """Frontal radiograph (``xray``), with labels and a text that is templated from them.

    Splits are the official lists by patient; the validation part is drawn by patient from
    ``train_val_list.txt``, as the publisher gives none.
    """

    name = "chestxray14"
    region = "chest"
    streams = ("text", "xray")
    card = DataCard(
        title="ChestX-ray14 (NIH Clinical Center)",
        homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        licence="no restriction on use; the NIH asks for attribution and a link to the download",
        access="free download (Box), mirror: Kaggle nih-chest-xrays/data",
        paper_use="named for it by secondary sources, which quote an FID of X-rays [S]",
        lost=(
            (
                "there are no reports: the text is written from the labels and says neither side"
                " nor size"
            ),
            (
                "labels were mined from reports by a program; 0 means not mentioned, and some are"
                " wrong"
            ),
            "images are 8-bit renderings at 1024 x 1024; the original spacing is in the table",
        ),
        faults=(
            "519 PNGs are RGBA: one grey channel (38)",
            (
                "commas in the headers cut columns in two; the box table has empty columns and"
                " Infiltrate (39)"
            ),
            "Patient Gender or Patient Sex; ages of 100 and more in the old table are unknown (40)",
            "labels are split at | and never searched as substrings (41)",
            "official lists, and an error if a patient is in both (42)",
            (
                "a corrupt image is an error or counted, never black (51); content decides the"
                " format (52)"
            ),
        ),
        layout="""Data_Entry_2017_v2020.csv (or Data_Entry_2017.csv), optionally .gz
train_val_list.txt, test_list.txt, BBox_List_2017.csv
images/00000001_000.png, or images_001/images/00000001_000.png ... images_012
(pictures and tables may lie deeper or flat, and be JPEG)""",
        recalled=("spellings of the first release's table",),
    )

    def scan(self, root: Path) -> Found:
        table = find_file(
            root, "Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv", "Data_Entry_2017*.csv"
        )
        if table is None:
            raise self.not_here(root, "no Data_Entry_2017_v2020.csv or Data_Entry_2017.csv")
        listed: dict[str, dict[str, str]] = {}
        entries: list[Entry] = []
        skips: list[Skip] = []
        for row in read_table(table, ("Image Index", "Finding Labels", "Patient ID")):
            name = row["Image Index"]
            if listed.setdefault(name, row) is row:
                continue
            if listed[name] != row:
                raise SourceError(f"{table}: two rows of {name} say different things")
            skips.append(Skip("repeated row", name, f"it is in {table.name} twice"))
        rows = list(listed.values())
        labels = {r["Image Index"]: parse_labels(r["Finding Labels"], table.name) for r in rows}
        patient = {r["Image Index"]: r["Patient ID"].lstrip("0") or "0" for r in rows}
        lists = {n: _names(root, f"{n}_list.txt") for n in ("train_val", "test")}
        splits = _splits(lists, patient)
        boxes = _boxes(root)
        images = _images(root)
        for row in rows:
            name = row["Image Index"]
            if _stem(name) not in images:
                skips.append(Skip("image missing", name, "in the table, not in the folder"))
                continue
            if splits and name not in splits:
                skips.append(
                    Skip("in no list", name, "neither in train_val_list.txt nor in test_list.txt")
                )
                continue
            mine = labels[name]
            entries.append(
                Entry(
                    id=name.removesuffix(".png"),
                    subject=patient[name],
                    split=splits.get(name, ""),
                    files={"xray": images[_stem(name)]},
                    text=label_text(mine),
                    labels={n: float(n in mine) for n in LABELS},
                    age=_age(row.get("Patient Age", "")),
                    sex={"F": "female", "M": "male"}.get(
                        row.get("Patient Sex") or row.get("Patient Gender") or "", ""
                    ),
                    extra={
                        "boxes": boxes.get(name, ()),
                        "extent_mm": _extent_mm(row),
                        "view": row.get("View Position", ""),
                    },
                )
            )
        counts = Counter(n for mine in labels.values() for n in mine or (NO_FINDING,))
        expected = [
            Expectation.count("images in the table", PUBLISHED["images"], len(labels)),
            Expectation.count("patients", PUBLISHED["patients"], len(set(patient.values()))),
            Expectation.count(
                "image files",
                PUBLISHED["images"],
                len(images.keys() & {_stem(name) for name in labels}),
            ),
            *(Expectation.count(f"{n}_list.txt", PUBLISHED[n], len(lists[n])) for n in lists),
            Expectation(
                "most frequent labels",
                "",
                ", ".join(f"{n} {c:,}" for n, c in counts.most_common(4)),
            ),
        ]
        return Found(tuple(entries), tuple(skips), tuple(expected))

    def read(self, entry: Entry, size: int) -> SourceStudy:
        film = read_film(entry.files["xray"], size)
        height_mm, width_mm = entry.extra["extent_mm"]
        return self.study(
            entry,
            {"xray": film.image},
            spacing_mm=(
                height_mm / size,
                width_mm / size,
            ),  # the publisher squeezed each film into a square
            units={"xray": "display intensity"},
            orientation="as displayed",
            notes=(TEXT_NOTE, *film.notes),
        )


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]


def _images(root: Path) -> Mapping[str, Path]:
    """Name without ending -> file, wherever below the root it lies. Of copies of a picture that of
    the folder that does not call itself small (``images-224``) is taken, then PNG."""
    found: dict[str, Path] = {}
    files = files_below(root, "*_*.png", "*_*.jpg", "*_*.jpeg")
    for path in sorted(
        files, key=lambda p: ("224" in p.parent.name, p.suffix.lower() != ".png", p)
    ):
        found.setdefault(_stem(path.name), path)
    return found


def _names(root: Path, name: str) -> tuple[str, ...]:
    path = find_file(root, name)
    if path is None:
        return ()
    with open_table(path) as text:
        return tuple(line.strip() for line in text if line.strip())


def _splits(lists: Mapping[str, tuple[str, ...]], patient: Mapping[str, str]) -> dict[str, str]:
    """Image -> split by the official lists; empty where they are not there."""
    if not lists["train_val"] or not lists["test"]:
        return {}
    people = {k: {patient[n] for n in names if n in patient} for k, names in lists.items()}
    if both := people["train_val"] & people["test"]:
        raise SourceError(
            f"patient {min(both)} is in train_val_list.txt and in test_list.txt; the official lists"
            " part people, so these are not they: download them again"
        )
    drawn = seeded_split(
        people["train_val"], shares=(1 - _VALIDATION_SHARE, _VALIDATION_SHARE, 0.0)
    )
    splits = {n: drawn[patient[n]] for n in lists["train_val"] if n in patient}
    return splits | {n: "test" for n in lists["test"]}


def _age(value: str) -> int | None:
    """Years; the first release has typing errors such as 412 and writes ``058Y``."""
    match = re.match(r"0*(\d{1,3})Y?$", value)
    return int(match[1]) if match and int(match[1]) < 100 else None


def _extent_mm(row: Mapping[str, str]) -> tuple[float, float]:
    """Height and width of the original film in mm; NaN where not said.

    The header ``OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]`` is four columns to a
    CSV reader.
    """
    names = ("OriginalImage[Width", "Height]", "OriginalImagePixelSpacing[x", "y]")
    try:
        width, height, x, y = (float(row.get(n) or "nan") for n in names)
    except ValueError:
        return float("nan"), float("nan")
    return height * y, width * x


def _boxes(root: Path) -> Mapping[str, tuple[tuple[str, tuple[float, ...]], ...]]:
    """Image -> (label, (x, y, width, height) in pixels of the 1024 x 1024 picture), of the few that
    have boxes."""
    path = find_file(root, "BBox_List_2017.csv")
    if path is None:
        return {}
    found: dict[str, Any] = defaultdict(list)
    numbers = ("Bbox [x", "y", "w", "h]")
    for row in read_table(path, ("Image Index", "Finding Label", *numbers)):
        label = _SPELLINGS.get(row["Finding Label"], row["Finding Label"])
        try:
            found[row["Image Index"]].append((label, tuple(float(row[n]) for n in numbers)))
        except ValueError as error:
            raise SourceError(
                f"{path}: box of {row['Image Index']} is not four numbers ({error})"
            ) from error
    return {name: tuple(each) for name, each in found.items()}
