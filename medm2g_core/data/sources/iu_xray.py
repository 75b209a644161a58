"""IU X-Ray (Indiana University, OpenI): chest radiographs with reports, in the three forms that are
passed around."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medm2g_core.data.iu_reports import (
    IUReport,
    IUReportError,
    by_number,
    clean_text,
    mesh_presence,
    parse_iu_report,
    r2gen_subset,
    read_iu_archive,
)
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
from medm2g_core.data.sources.radiographs import Film, read_film
from medm2g_core.data.sources.tables import NOT_THAT_FORM, find_file, read_table
from medm2g_core.data.sources.trees import files_below, is_file
from medm2g_core.data.volumes import FileError

__all__ = ["IUXRay", "image_key", "r2gen_report"]

PUBLISHED = {"reports": 3955, "images": 7470, "findings": 3425, "impression": 3921, "r2gen": 2955}
R2GEN_STUDIES = {"train": 2069, "val": 296, "test": 590}

SYMMETRY_MARGIN = 0.1
"""Of correlation. Chosen on projections of real CTs, never on real lateral films: a heuristic."""

_SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm")
_LATERAL = {"LL", "RL", "LATERAL", "LARGE LATERAL", "LLD"}
UNKNOWN_VIEW = "nothing says which image is frontal (indiana_projections.csv would)"
_MAX_XML_BYTES = 1_000_000


def image_key(name: str) -> str:
    """One name for an image that the collection writes in several ways.

    ``CXR1_1_IM-0001-3001`` (XML), ``CXR1_IM-0001-3001.png`` (OpenI) and ``1_IM-0001-3001.dcm.png``
    (Kaggle) are all ``1_IM-0001-3001``.
    """
    name = re.sub(r"(?:\.(?:png|jpe?g|dcm))+$", "", name.strip(), flags=re.IGNORECASE)
    return re.sub(r"^(?:CXR)?(\d+)(?:_\1)?_IM", r"\1_IM", name)


def r2gen_report(text: str) -> str:
    """The report as R2Gen's published cleaner leaves it, for comparison of scores only.

    In its character class ``:-\\[`` is a range, so that ``<``, ``=`` and ``>`` vanish, and the full
    stop goes too: "3.5 cm" becomes "35 cm". `clean_text` does neither.
    """
    for _ in range(3):
        text = text.replace("..", ".")
    text = text.replace("1. ", "")
    for before in (". ", " "):
        for number in "2345":  # numbers of list items
            text = text.replace(f"{before}{number}. ", ". ")
    sentences = text.strip().lower().split(". ")
    clean = (
        re.sub(r"[.,?;*!%^&_+():-\[\]{}]", "", re.sub(r"[\"/\\']", "", s).strip())
        for s in sentences
    )
    return " . ".join(clean) + " ."


def symmetry(image: torch.Tensor) -> float:
    """How alike the middle of a film (1, H, W) and its mirror image are: best correlation over
    shifts of the axis.

    A frontal chest is nearly its own mirror image, a lateral one is not.
    """
    inside = image[0] > -1  # without the padding to a square, which is always symmetric
    film = image[:, inside.any(1)][:, :, inside.any(0)]
    edge = round(0.12 * film.shape[-1])  # and without the air beside the body
    picture = torch.nn.functional.adaptive_avg_pool2d(
        film[..., edge : film.shape[-1] - edge], (48, 48)
    )[0].numpy()
    best = -1.0
    for shift in range(-8, 9):
        a = picture[6:42, max(0, shift) : 48 + min(0, shift)]
        b = a[:, ::-1]
        if a.std() > 0:
            best = max(best, float(np.corrcoef(a.ravel(), b.ravel())[0, 1]))
    return best


def likely_frontal(films: Sequence[Film]) -> Film:
    """The first film, unless another is clearly more symmetric: most first images are frontal, one
    in eight is not."""
    scores = [symmetry(f.image) for f in films]
    best = int(np.argmax(scores))
    return films[best] if scores[best] > scores[0] + SYMMETRY_MARGIN else films[0]


@dataclass(frozen=True)
class _Views:
    """Which images are frontal and which lateral, by `image_key`; others are unknown."""

    frontal: frozenset[str] = frozenset()
    lateral: frozenset[str] = frozenset()

    def frontals(self, keys: Iterable[str]) -> tuple[tuple[str, ...], bool]:
        """Images of a study that may be the frontal one, and whether that is certain."""
        keys = tuple(keys)
        if sure := tuple(k for k in keys if k in self.frontal):
            return sure, True
        left = tuple(k for k in keys if k not in self.lateral)
        return left, len(left) == 1 < len(keys)


class IUXRay(Source):
    """Frontal chest radiograph (``xray``) and report (``text``).

    The form is told from what is in the folder: ``annotation.json`` (R2Gen),
    ``indiana_reports.csv`` (Kaggle, raddar) or XML reports (OpenI). Which image is frontal comes
    from ``indiana_projections.csv`` where that lies in the folder, else from lateral codes in a
    table of DICOM headers (``nlmcxr_dicom_metadata.csv``). Where neither tells, as always in
    R2Gen's form, the film itself is judged when it is read (`likely_frontal`), and the table and
    the study's notes say so; a single image of unknown view is left out.

    Args:
        guess_view: judge by the film where the view is not recorded; if not, such images are left
            out.
        r2gen_filter: keep only studies that R2Gen keeps: at least two images and a FINDINGS text
            (2,955 of them).
    """

    name = "iu_xray"
    region = "chest"
    streams = ("text", "xray")
    card = DataCard(
        title="IU X-Ray (Indiana University Chest X-ray Collection, OpenI)",
        homepage="https://openi.nlm.nih.gov/faq",
        licence="CC BY-NC-ND 4.0, stated in every report's XML",
        access=(
            "free download: OpenI (NLMCXR_png.tgz, NLMCXR_reports.tgz); mirrors: R2Gen's"
            " iu_xray.zip, Kaggle raddar/chest-xrays-indiana-university"
        ),
        paper_use="named for it by secondary sources, which quote a BLEU-1 of reports [S]",
        lost=(
            "lateral views: a study has one xray stream",
            "personal data: the publisher wrote XXXX, here one token [removed]",
            (
                "images are 8-bit PNG renderings unless the DICOM files are used; PNG has no pixel"
                " spacing"
            ),
        ),
        faults=(
            "0 to 5 images a report: no pair is assumed, reports without image are text alone (12)",
            "28 reports without any text: tested by text, not by section labels (13)",
            (
                "the first image is not always frontal: known views are used, else the film is"
                " judged and marked (14)"
            ),
            (
                "DICOM ViewPosition calls both views PA in about 1,088 pairs: only its lateral"
                " codes are believed (15)"
            ),
            "CXR1_1_IM in XML, CXR1_IM elsewhere: one name (16)",
            "MONOCHROME1 is inverted, a missing rescale slope is 1 and intercept 0 (17)",
            "XXXX becomes one token (18)",
            "the id is the attribute of uId, ids have gaps (19)",
            "R2Gen's 2,069/296/590 are studies, not images (20)",
            (
                "R2Gen's text cleaner is only in r2gen_report, its left-right flip is not"
                " reproduced (21)"
            ),
            "a corrupt XML or image is counted and left out (51), content decides the format (52)",
        ),
        layout="""raw:     ecgen-radiology/<n>.xml (or NLMCXR_reports.tgz)
         CXR<n>_IM-<...>.png or <n>_IM-<...>.dcm
         optional: indiana_projections.csv or nlmcxr_dicom_metadata.csv[.gz]
         (tells frontal from lateral)
R2Gen:   annotation.json, images/CXR<n>_IM-<...>/{0,1}.png
Kaggle:  indiana_reports.csv, indiana_projections.csv,
         images/images_normalized/<n>_IM-<...>.dcm.png""",
        recalled=("folders of the DICOM archive",),
    )

    def __init__(self, *, r2gen_filter: bool = False, guess_view: bool = True) -> None:
        self.r2gen_filter, self.guess_view = r2gen_filter, guess_view

    def scan(self, root: Path) -> Found:
        if (annotation := find_file(root, "annotation.json", "*annotation*.json")) is not None:
            return self._scan_r2gen(annotation)
        skips: list[Skip] = []
        if (table := find_file(root, "indiana_reports.csv")) is not None:
            projections = find_file(root, "indiana_projections.csv")
            if projections is None:
                raise self.not_here(
                    root, "indiana_reports.csv is there but not indiana_projections.csv"
                )
            reports = _kaggle_reports(table, projections)
        else:
            reports = self._raw_reports(root, skips)
        return self._found(root, reports, skips)

    def _raw_reports(self, root: Path, skips: list[Skip]) -> tuple[IUReport, ...]:
        files = files_below(root, "*.xml")
        if not files:
            archive = find_file(root, "NLMCXR_reports.tgz")
            if archive is None:
                raise self.not_here(
                    root, "neither annotation.json, indiana_reports.csv nor XML reports"
                )
            try:
                return read_iu_archive(archive, progress=False)
            except IUReportError as error:
                raise SourceError(str(error)) from error
        reports: dict[str, IUReport] = {}
        for path in files:
            try:
                if path.stat().st_size > _MAX_XML_BYTES:
                    raise IUReportError(f"{path}: {path.stat().st_size} bytes; a report has fewer")
                report = parse_iu_report(path.read_bytes(), str(path))
            except (IUReportError, OSError) as error:
                skips.append(Skip("unreadable report", str(path), str(error)))
                continue
            if report.uid in reports:
                skips.append(
                    Skip(
                        "repeated report",
                        str(path),
                        f"{report.uid} was read from another file already",
                    )
                )
                continue
            reports[report.uid] = report
        if not reports:
            raise self.not_here(root, f"none of {len(files)} XML files is an IU report")
        return tuple(sorted(reports.values(), key=by_number))

    def _found(self, root: Path, reports: tuple[IUReport, ...], skips: list[Skip]) -> Found:
        images = _images(root)
        views = _views(root, reports)
        passing = r2gen_subset(reports)
        kept = {r.uid for r in passing}
        entries = []
        missing = 0
        for report in reports:
            if self.r2gen_filter and report.uid not in kept:
                skips.append(
                    Skip(
                        "not in R2Gen's subset", report.uid, "fewer than two images, or no FINDINGS"
                    )
                )
                continue
            try:
                present = mesh_presence(report)
            except IUReportError as error:
                skips.append(Skip("unreadable report", report.uid, str(error)))
                continue
            labels = {n: float(v) if report.indexed else math.nan for n, v in present.items()}
            keys = [image_key(i) for i in report.image_ids]
            missing += sum(k not in images for k in keys)
            there = [k for k in keys if k in images]
            # The views of absent images count as well: the one left of a pair may be its lateral.
            likely, sure = views.frontals(keys)
            likely = tuple(k for k in likely if k in images)
            if there and not likely:
                skips.append(
                    Skip(
                        "no frontal view",
                        report.uid,
                        "its images are lateral, or the frontal is absent",
                    )
                )
            elif likely and not sure and (len(likely) < 2 or not self.guess_view):
                skips.append(Skip("view unknown", report.uid, UNKNOWN_VIEW))
                likely = ()
            if not report.text and not likely:
                skips.append(
                    Skip(
                        "empty report", report.uid, "neither findings nor impression, and no image"
                    )
                )
                continue
            entries.append(
                Entry(
                    id=report.uid,
                    subject=report.uid,
                    split="",
                    files={"xray": images[likely[0]]} if likely else {},
                    text=report.text or None,
                    labels=labels,
                    extra={"candidates": () if sure else tuple(images[k] for k in likely)},
                )
            )
        listed = {image_key(i) for r in reports for i in r.image_ids}
        note = f"{missing} listed images are not in the folder" if missing else ""
        table = (
            Expectation.count("reports", PUBLISHED["reports"], len(reports)),
            Expectation.count(
                "reports with findings",
                PUBLISHED["findings"],
                sum(bool(r.findings) for r in reports),
            ),
            Expectation.count(
                "reports with an impression",
                PUBLISHED["impression"],
                sum(bool(r.impression) for r in reports),
            ),
            Expectation.count("images", PUBLISHED["images"], len(listed & set(images)), note),
            Expectation.count("studies that pass R2Gen's filter", PUBLISHED["r2gen"], len(passing)),
            *_judged(entries),
        )
        return Found(tuple(entries), tuple(skips), table)

    def _scan_r2gen(self, annotation: Path) -> Found:
        try:
            splits = json.loads(annotation.read_text(encoding="utf-8"))
            studies = [(split, s) for split in R2GEN_STUDIES for s in splits.get(split, ())]
            rows = _joined(
                (split, str(s["id"]), str(s["report"]), _listed(s["image_path"]))
                for split, s in studies
            )
        except NOT_THAT_FORM as error:
            raise SourceError(
                f"{annotation}: not R2Gen's form, {{train, val, test: [{{id, report, image_path,"
                f" split}}]}} ({type(error).__name__}: {error})"
            ) from error
        if not rows:
            raise self.not_here(annotation.parent, f"{annotation.name} lists no study")
        near = (annotation.parent / "images", *sorted(annotation.parent.glob("*/images")))
        folder = next((d for d in near if d.is_dir()), annotation.parent)
        # R2Gen renamed the images to 0 and 1, so no table can tell the views any more.
        entries, skips = [], []
        for split, name, report, paths in rows:
            subject = re.sub(r"_.*", "", name)
            if any(Path(p).is_absolute() or ".." in Path(p).parts for p in paths):
                raise SourceError(
                    f"{annotation}: study {name} names an image outside its folder ({paths})"
                )
            text = clean_text(re.sub(r"x{3,}", lambda m: m[0].upper(), report))
            there = [folder / p for p in paths if is_file(folder / p)]
            if len(there) < len(paths):
                why = f"{len(paths) - len(there)} of {len(paths)} images are not under {folder}"
                skips.append(Skip("image missing", name, why))
            likely = there if len(there) > 1 and self.guess_view else []
            if there and not likely:
                skips.append(Skip("view unknown", name, UNKNOWN_VIEW))
            if not text and not likely:
                skips.append(Skip("empty report", name, "no report and no image"))
                continue
            entries.append(
                Entry(
                    id=name,
                    subject=subject,
                    split=split,
                    files={"xray": likely[0]} if likely else {},
                    text=f"Findings: {text}" if text else None,
                    extra={"candidates": tuple(likely)},
                )
            )
        table = tuple(
            Expectation.count(f"{split} studies", n, sum(r[0] == split for r in rows))
            for split, n in R2GEN_STUDIES.items()
        )
        return Found(tuple(entries), tuple(skips), (*table, *_judged(entries)))

    def read(self, entry: Entry, size: int) -> SourceStudy:
        notes: list[str] = []
        chosen: Film | None = None
        if candidates := entry.extra.get("candidates"):
            chosen = likely_frontal([read_film(p, size) for p in candidates])
            notes.append(
                f"view not recorded: which of {len(candidates)} images is frontal was judged by"
                " symmetry"
            )
        elif "xray" in entry.files:
            chosen = read_film(entry.files["xray"], size)
        if chosen is None and entry.text is None:
            raise FileError(f"study {entry.id} has neither image nor report")
        return self.study(
            entry,
            {"xray": chosen.image} if chosen else {},
            spacing_mm=chosen.spacing_mm if chosen else (math.nan, math.nan),
            units={"xray": "display intensity"} if chosen else {},
            orientation="as displayed",
            notes=(*notes, *(chosen.notes if chosen else ())),
        )


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(p) for p in value]


def _joined(
    rows: Iterable[tuple[str, str, str, list[str]]],
) -> list[tuple[str, str, str, list[str]]]:
    """One row a study, where a form has one an image (PromptMRG's): images of one folder are one
    study, called after the folder."""
    found: dict[tuple[str, str], tuple[str, str, str, list[str]]] = {}
    for split, name, report, paths in rows:
        folders = {Path(p).parent.name for p in paths}
        study = folders.pop() if len(folders) == 1 and "" not in folders else name
        first = found.setdefault((split, study), (split, study, report, []))
        if first[2] != report:
            raise ValueError(f"two reports of study {study}")
        first[3].extend(p for p in paths if p not in first[3])
    return list(found.values())


def _judged(entries: Sequence[Entry]) -> tuple[Expectation, ...]:
    n = sum(bool(e.extra["candidates"]) for e in entries)
    note = "put indiana_projections.csv into the folder; R2Gen's form has lost the names"
    return (
        (Expectation("studies whose view is judged by the film", "", f"{n:,}", "surprising", note),)
        if n
        else ()
    )


def _images(root: Path) -> Mapping[str, Path]:
    """`image_key` -> file, of all image files below a folder; PNG wins over DICOM where both are
    there."""
    found: dict[str, Path] = {}
    files = [p for p in files_below(root, "*_IM-*") if p.suffix.lower() in _SUFFIXES]
    for path in sorted(files, key=lambda p: (_SUFFIXES.index(p.suffix.lower()), p)):
        found.setdefault(image_key(path.name), path)
    return found


def _views(root: Path, reports: tuple[IUReport, ...]) -> _Views:
    if (projections := find_file(root, "indiana_projections.csv")) is not None:
        rows = read_table(projections, ("filename", "projection"))
        return _Views(
            frozenset(
                image_key(r["filename"]) for r in rows if r["projection"].lower() == "frontal"
            ),
            frozenset(
                image_key(r["filename"]) for r in rows if r["projection"].lower() == "lateral"
            ),
        )
    if (headers := find_file(root, "nlmcxr_dicom_metadata.csv")) is not None:
        rows = read_table(headers, ("imageid", "View Position"))
        return _Views(
            lateral=frozenset(
                image_key(r["imageid"]) for r in rows if r["View Position"] in _LATERAL
            )
        )
    return _Views()


def _kaggle_reports(table: Path, projections: Path) -> tuple[IUReport, ...]:
    images: dict[str, list[str]] = defaultdict(list)
    for row in read_table(projections, ("uid", "filename", "projection")):
        if row["filename"] not in images[row["uid"]]:  # a row may be there twice
            images[row["uid"]].append(row["filename"])
    needed = ("uid", "MeSH", "indication", "comparison", "findings", "impression")
    rows = read_table(table, needed)
    if len({r["uid"] for r in rows}) != len(rows):
        raise SourceError(f"{table}: a uid occurs twice; each report should be one row")
    return tuple(
        IUReport(
            uid=f"CXR{r['uid']}",
            findings=r["findings"],
            impression=r["impression"],
            indication=r["indication"],
            comparison=r["comparison"],
            mesh=tuple(t.strip() for t in r["MeSH"].split(";") if t.strip()),
            image_ids=tuple(images[r["uid"]]),
        )
        for r in rows
    )
