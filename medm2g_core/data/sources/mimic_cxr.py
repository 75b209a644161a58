"""MIMIC-CXR and MIMIC-CXR-JPG (PhysioNet): chest radiographs with free-text reports, one study an
entry."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from medm2g_core.data.sources.base import (
    DataCard,
    Entry,
    Expectation,
    Found,
    Skip,
    Source,
    SourceError,
    SourceStudy,
)
from medm2g_core.data.sources.mimic_reports import report_text
from medm2g_core.data.sources.radiographs import read_film
from medm2g_core.data.sources.tables import NOT_THAT_FORM, find_file, read_table
from medm2g_core.data.sources.trees import files_below, is_file

__all__ = ["LABELS", "MimicCXR"]

LABELS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)
"""Of the CheXpert and NegBio labellers: 1 yes, 0 no, -1 uncertain, blank not mentioned."""

PUBLISHED = {"images": 377_110, "studies": 227_835}
FRONTAL = ("PA", "AP")  # in order of preference
_JPG, _DICOM = (".jpg", ".jpeg", ".png"), (".dcm",)  # in order of preference
_LABEL = re.compile(r"(?:-?1|0)(?:\.0*)?")


class MimicCXR(Source):
    """Frontal radiograph (``xray``) and report (``text``) of a study, from JPG or DICOM images.

    `scan` reads the report of every study whose frontal image is there, as only its text shows
    whether it is empty.

    Args:
        reports: folder of the reports, which belong to MIMIC-CXR and are absent from MIMIC-CXR-JPG;
            by default they are looked for beside the images, in the image folders and in
            ``mimic-cxr-reports``.
    """

    name = "mimic_cxr"
    region = "chest"
    streams = ("text", "xray")
    card = DataCard(
        title="MIMIC-CXR 2.0.0/2.1.0 and MIMIC-CXR-JPG 2.0.0/2.1.0",
        homepage="https://physionet.org/content/mimic-cxr-jpg/",
        licence="PhysioNet Credentialed Health Data License 1.5.0",
        access=(
            "credentialed: PhysioNet account, CITI training, signed data use agreement; no sharing,"
            " and no sending to online services"
        ),
        paper_use=(
            "named for it by secondary sources, which quote a BLEU-4 of reports and an FID of"
            " X-rays [S]"
        ),
        lost=(
            "lateral views, and all but one frontal view of a study",
            "sections other than findings and impression; addenda",
            "JPG: absolute grey values (they are histogram-equalised) and pixel spacing",
        ),
        faults=(
            (
                "reports absent from -JPG: separate folder, or .txt beside or inside the study's"
                " folder (1)"
            ),
            "about 15,800 null ViewPositions: unknown, never frontal (2)",
            "labels, reports and splits are joined by study and subject (3)",
            "headers are found before white space is stripped (4)",
            "the raw text is parsed, so studies missing from the sectioned table are there (5)",
            "header variants; last match; last paragraph as a fallback (6)",
            "about 10,000 empty reports: left out and counted (7)",
            "___ becomes one token, addenda above a ruler are left out (8)",
            (
                "JPG and DICOM are never mixed: where there is a JPG, DICOM files are left out and"
                " counted (9)"
            ),
            "one entry a study, however many views (10)",
            "labels keep four states: 1, 0, -1 and NaN (11)",
            "corrupt images are an error or counted (51); content decides the format (52)",
        ),
        layout="""mimic-cxr-2.0.0-metadata.csv[.gz], mimic-cxr-2.0.0-split.csv[.gz]
mimic-cxr-2.0.0-chexpert.csv[.gz] or mimic-cxr-2.0.0-negbio.csv[.gz] (labels, optional)
files/p10/p10000032/s50414267/<dicom_id>.jpg (or .dcm)
files/p10/p10000032/s50414267.txt (or in a folder of its own: mimic-cxr-reports/files/...)
(images may also lie flat or below images/ as R2Gen has them, and be PNG; of R2Gen's
annotation.json the splits and reports are taken where the tables and texts are not there)""",
        recalled=(
            "wording of the licence",
            "columns of the label tables",
            "folder in the archive of reports",
        ),
    )

    def __init__(self, *, reports: str | Path | None = None) -> None:
        self.reports = Path(reports) if reports is not None else None

    def scan(self, root: Path) -> Found:
        metadata = find_file(root, "mimic-cxr-*-metadata.csv")
        if metadata is None:
            raise self.not_here(
                root,
                f"no mimic-cxr-2.0.0-metadata.csv, which says the views of the images{_hint(root)}",
            )
        if self.reports is not None and not self.reports.is_dir():
            raise SourceError(f"{self.reports}: there is no such folder of reports")
        rows = read_table(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition"))
        studies: dict[str, list[dict[str, str]]] = defaultdict(list)
        images_listed: dict[str, dict[str, str]] = {}
        for row in rows:  # a row may be there twice
            if images_listed.setdefault(row["dicom_id"], row) != row:
                raise SourceError(f"{metadata}: two rows of {row['dicom_id']} say different things")
        for row in images_listed.values():
            studies[row["study_id"]].append(row)
        told = _r2gen(root)
        splits = _splits(root) or {k: split for k, (split, _) in told.items()}
        labels = _labels(root)
        files = _files(root, metadata)
        flat = {} if files is not None else _flat(root)
        files = root if files is None else files
        places = _report_places(root, files, metadata, self.reports)
        skips: list[Skip] = []
        entries: list[Entry] = []
        jpg = _holds_jpg(files, rows) or any(p.suffix.lower() != ".dcm" for p in flat.values())
        reports = images = 0
        for study, views in studies.items():
            subject = views[0]["subject_id"]
            folder = Path(f"p{subject[:2]}", f"p{subject}", f"s{study}")
            known = {s for v in views if (s := splits.get((v["subject_id"], v["study_id"])))}
            if splits and not known:
                skips.append(Skip("in no split", f"s{study}", "not in the split table"))
                continue
            there = {
                v["dicom_id"]: p
                for v in views
                if (p := flat.get(v["dicom_id"]) or _image(files / folder, v["dicom_id"], jpg))
            }
            images += len(there)
            report = _find_report(places, folder)
            reports += report is not None
            image = _frontal(views, there)
            if image is None:
                skips.append(_why_no_frontal(f"s{study}", views, files / folder, there, jpg))
                continue
            text = None
            if report is not None:
                text = report_text(report.read_text(encoding="utf-8", errors="replace"))
                if not text:
                    skips.append(
                        Skip(
                            "empty report",
                            f"s{study}",
                            "neither findings nor impression nor other text",
                        )
                    )
                    continue
            elif (subject, study) in told:
                text = told[subject, study][1] or None
            entries.append(
                Entry(
                    id=f"s{study}",
                    subject=f"p{subject}",
                    split=known.pop() if known else "",
                    files={"xray": image},
                    text=text,
                    labels=labels.get(study, dict.fromkeys(LABELS, math.nan)),
                )
            )
        table = (
            Expectation.count("images in the table", PUBLISHED["images"], len(images_listed)),
            Expectation.count("studies in the table", PUBLISHED["studies"], len(studies)),
            Expectation.count("image files", PUBLISHED["images"], images),
            Expectation.count("report files", PUBLISHED["studies"], reports),
            Expectation("form of the images", "", "JPG, histogram-equalised" if jpg else "DICOM"),
            Expectation(
                "split table", "", f"{len(splits):,} studies", "ok" if splits else "missing"
            ),
        )
        return Found(tuple(entries), tuple(skips), table)

    def read(self, entry: Entry, size: int) -> SourceStudy:
        film = read_film(entry.files["xray"], size)
        unit = (
            "display intensity"
            if film.kind == "dicom"
            else "display intensity, histogram-equalised"
        )
        return self.study(
            entry,
            {"xray": film.image},
            spacing_mm=film.spacing_mm,
            units={"xray": unit},
            orientation="as displayed",
            notes=film.notes,
        )


def _splits(root: Path) -> dict[tuple[str, str], str]:
    """(subject, study) -> split; empty where the table is not there."""
    path = find_file(root, "mimic-cxr-*-split.csv")
    if path is None:
        return {}
    names = {"train": "train", "validate": "val", "validation": "val", "val": "val", "test": "test"}
    of_subject: dict[str, str] = {}
    found: dict[tuple[str, str], str] = {}
    for row in read_table(path, ("study_id", "subject_id", "split")):
        split = names.get(row["split"])
        if split is None:
            raise SourceError(f"{path}: split {row['split']!r} is none of train, validate, test")
        subject = row["subject_id"]
        if of_subject.setdefault(subject, split) != split:
            raise SourceError(
                f"{path}: subject {subject} is in {of_subject[subject]} and in {split}; the"
                " official table parts people, so this is not it"
            )
        found[subject, row["study_id"]] = split
    return found


def _labels(root: Path) -> dict[str, dict[str, float]]:
    """Study -> label -> 1, 0, -1 or NaN, by CheXpert, or by NegBio where only that is there."""
    path = find_file(root, "mimic-cxr-*-chexpert.csv", "mimic-cxr-*-negbio.csv")
    if path is None:
        return {}
    said: dict[str, dict[str, str]] = {}
    for row in read_table(path, ("study_id",)):
        values = {n: row.get(n, "") for n in LABELS}
        if odd := [v for v in values.values() if v and not _LABEL.fullmatch(v)]:
            raise SourceError(
                f"{path}: a label is not 1, 0, -1 or blank ({odd[0]!r} of study {row['study_id']})"
            )
        if said.setdefault(row["study_id"], values) != values:
            raise SourceError(f"{path}: two rows of study {row['study_id']} say different things")
    return {
        study: {n: float(v or "nan") for n, v in values.items()} for study, values in said.items()
    }


def _hint(root: Path) -> str:
    """Where the tables are, or what else the folder is, for the message."""
    for above in root.absolute().parents[:3]:
        if any(above.glob("mimic-cxr-*-metadata.csv*")):
            return f"; it is in {above}, so give that folder"
    if (annotation := find_file(root, "*annotation*.json")) is not None:
        return (
            f"; {annotation.name} alone, R2Gen's form, does not say which image is frontal: put the"
            " table of MIMIC-CXR-JPG beside it"
        )
    return ""


def _r2gen(root: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(subject, study) -> split and text by R2Gen's ``annotation.json``, which lists a study once
    an image; empty where it is not there."""
    path = find_file(root, "*annotation*.json")
    if path is None:
        return {}
    found: dict[tuple[str, str], tuple[str, str]] = {}
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
        for split in ("train", "val", "test"):
            for row in splits.get(split, ()):
                text = report_text(f" FINDINGS: {row['report']}")
                key = str(row["subject_id"]), str(row["study_id"])
                if found.setdefault(key, (split, text))[0] != split:
                    raise SourceError(f"{path}: study {key[1]} is in two splits")
    except NOT_THAT_FORM as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(
            f"{path}: not R2Gen's form, {{train, val, test: [{{subject_id, study_id, report}}]}}"
            f" ({type(error).__name__}: {error})"
        ) from error
    return found


def _files(root: Path, metadata: Path) -> Path | None:
    """The folder that holds ``p10`` and so on, or ``None``: then the images lie flat."""
    places = (
        parent / name
        for parent in dict.fromkeys((root, metadata.parent))
        for name in ("files", "images", "")
    )
    return next((p for p in places if p.is_dir() and any(p.glob("p1[0-9]"))), None)


def _flat(root: Path) -> dict[str, Path]:
    """dicom_id -> image, wherever it lies."""
    found: dict[str, Path] = {}
    for endings in (_JPG, _DICOM):  # never both: their grey values differ
        for path in files_below(root, *(f"*{ending}" for ending in endings)):
            found.setdefault(path.name.rsplit(".", 1)[0], path)
        if found:
            break
    return found


def _report_places(root: Path, files: Path, metadata: Path, own: Path | None) -> tuple[Path, ...]:
    """Folders in which a report may lie, under its study's name or as in the tree of images."""
    if own is not None:
        tops = [own, own / "mimic-cxr-reports"]
    else:
        tops = [files, root, root / "mimic-cxr-reports", metadata.parent]
        # What `wget -r` makes of both data sets: mimic-cxr/2.0.0 beside mimic-cxr-jpg/2.0.0.
        tops += sorted(metadata.parent.parent.parent.glob("mimic-cxr/*"))
    return tuple(dict.fromkeys(p for top in tops for p in (top / "files", top) if p.is_dir()))


def _find_report(places: Sequence[Path], folder: Path) -> Path | None:
    name = f"{folder.name}.txt"
    for place in places:
        for path in (place / folder.parent / name, place / folder / name, place / name):
            if path.is_file():
                return path
    return None


def _holds_jpg(files: Path, rows: Sequence[Mapping[str, str]]) -> bool:
    """Whether any image is a JPG, or a PNG that was made of one."""
    for row in rows:
        folder = (
            files / f"p{row['subject_id'][:2]}" / f"p{row['subject_id']}" / f"s{row['study_id']}"
        )
        if _image(folder, row["dicom_id"], True) is not None:
            return True
    return False


def _image(folder: Path, dicom_id: str, jpg: bool) -> Path | None:
    for ending in _JPG if jpg else _DICOM:
        for spelling in (ending, ending.upper()):
            if is_file(path := folder / f"{dicom_id}{spelling}"):
                return path
    return None


def _frontal(views: Sequence[Mapping[str, str]], there: Mapping[str, Path]) -> Path | None:
    """The first PA image of a study that is there, else the first AP image."""
    for wanted in FRONTAL:
        for view in sorted(views, key=lambda v: v["dicom_id"]):
            if view["ViewPosition"].upper() == wanted and view["dicom_id"] in there:
                return there[view["dicom_id"]]
    return None


def _why_no_frontal(
    study: str,
    views: Sequence[Mapping[str, str]],
    folder: Path,
    there: Mapping[str, Path],
    jpg: bool,
) -> Skip:
    if not there and jpg and any(_image(folder, v["dicom_id"], False) for v in views):
        return Skip(
            "DICOM among JPGs",
            study,
            "its grey values are not histogram-equalised like those of the others",
        )
    if not there:
        return Skip("image missing", study, f"no image of it in {folder}")
    if any(v["ViewPosition"].upper() in FRONTAL for v in views):
        return Skip("image missing", study, f"its frontal image is not in {folder}")
    if any(not v["ViewPosition"] for v in views):
        return Skip(
            "view unknown", study, "ViewPosition is blank, so nothing says that it is frontal"
        )
    return Skip(
        "no frontal view", study, f"views: {', '.join(sorted({v['ViewPosition'] for v in views}))}"
    )
