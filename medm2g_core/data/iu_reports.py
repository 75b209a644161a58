"""The real IU chest X-ray reports (OpenI), read in memory from the torchxrayvision wheel.

The texts are licensed CC BY-NC-ND 4.0: they are read at run time from the wheel and never stored by
this project. Known faults of the set that are handled here: the id is an attribute of ``uId``, all
four labels are always present even when their text is empty, ``XXXX`` stands for removed personal
data, and a report may have no image, or up to five.
"""

from __future__ import annotations

import re
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from tqdm.auto import tqdm

from medm2g_core.data.findings import CHEST
from medm2g_core.data.wheels import data_file

__all__ = [
    "REMOVED",
    "IUReport",
    "IUReportError",
    "MeshTerm",
    "by_number",
    "clean_text",
    "load_iu_reports",
    "mesh_presence",
    "parse_iu_report",
    "parse_mesh",
    "r2gen_subset",
    "read_iu_archive",
    "says_something",
]

REMOVED = "[removed]"
"""The one token that `clean_text` writes for any run of ``XXXX`` (personal data removed by the
publisher)."""

_NO_ANNOTATION = frozenset({"No Indexing", "Technical Quality of Image Unsatisfactory"})
"""MeSH terms that say nothing of the patient."""

_ARCHIVE = ("torchxrayvision", "torchxrayvision/data/NLMCXR_reports.tgz")
_LARGEST_MEMBER = 1_000_000  # bytes; the largest real report has some ten thousand


MAX_DEPTH = 64
"""Elements within elements; an IU report has eight levels."""


class IUReportError(ValueError):
    """The archive or a report in it is not what the IU collection holds."""


@dataclass(frozen=True)
class MeshTerm:
    """One MeSH annotation, for example heading ``"Calcinosis"``, qualifiers ``("lung", "hilum",
    "left")``."""

    heading: str
    qualifiers: tuple[str, ...] = ()


@dataclass(frozen=True)
class IUReport:
    """One report as published; texts are raw (see `clean_text`), empty where the report has none.

    Attributes:
        uid: ``"CXR<n>"``, n in 1..3999 with gaps.
        findings: FINDINGS section.
        impression: IMPRESSION section.
        indication: INDICATION section.
        comparison: COMPARISON section.
        mesh: manual MeSH annotation (``MeSH/major``), each ``Heading[/qualifier...]``;
            ``("normal",)`` for normal.
        image_ids: names of its images without suffix; the first is not always the frontal view.
    """

    uid: str
    findings: str
    impression: str
    indication: str
    comparison: str
    mesh: tuple[str, ...]
    image_ids: tuple[str, ...]

    @property
    def text(self) -> str:
        """Cleaned findings and impression in the project's report form; empty where the report has
        neither."""
        parts = (
            ("Findings", clean_text(self.findings)),
            ("Impression", clean_text(self.impression)),
        )
        return " ".join(f"{head}: {body}" for head, body in parts if says_something(body))

    @property
    def indexed(self) -> bool:
        """Whether people annotated its findings: 95 reports say ``No Indexing``, and some say
        nothing but that the picture is poor. Of these no finding is known, not even its absence."""
        return bool({t.split("/")[0] for t in self.mesh} - _NO_ANNOTATION)


def says_something(text: str) -> bool:
    """Whether a cleaned text holds a word or number besides `REMOVED`: a section that was removed
    whole says nothing."""
    return bool(re.search(r"\w", text.replace(REMOVED, "")))


def clean_text(text: str) -> str:
    """One line of text: every run of ``XXXX`` becomes one `REMOVED`, white space and doubled
    periods collapse."""
    text = re.sub(r"X{3,}(?:[\s,/-]*X{3,})*", REMOVED, text)
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r"\s*\.(?:\s*\.)+", ".", text)


def parse_mesh(term: str) -> MeshTerm:
    """Split ``Heading/qualifier/qualifier``; headings such as ``"Catheters, Indwelling"`` keep
    their comma.

    Raises:
        IUReportError: no heading.
    """
    parts = [p.strip() for p in term.split("/")]
    if not parts[0]:
        raise IUReportError(f"MeSH term {term!r} has no heading; needed Heading[/qualifier...]")
    return MeshTerm(parts[0], tuple(p for p in parts[1:] if p))


class _Shallow(ElementTree.TreeBuilder):
    """Builds a tree of a report's depth; one nested without end would overflow the stack of the
    parser, which ends the process."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.depth = name, 0

    def start(self, tag: str, attrs: dict[str, str], /) -> ElementTree.Element:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise IUReportError(f"{self.name}: nested more than {MAX_DEPTH} deep; no IU report is")
        return super().start(tag, attrs)

    def end(self, tag: str, /) -> ElementTree.Element:
        self.depth -= 1
        return super().end(tag)


def parse_iu_report(xml: bytes, name: str) -> IUReport:
    """One report from the bytes of its XML file; ``name`` is for messages.

    Raises:
        IUReportError: not XML, nested without end, a document type declaration, or no id.
    """
    # The collection has no document type; refusing one rules out entity expansion.
    if b"<!DOCTYPE" in xml or b"<!ENTITY" in xml:
        raise IUReportError(f"{name}: a document type declaration is not part of an IU report")
    try:
        root = ElementTree.fromstring(xml, ElementTree.XMLParser(target=_Shallow(name)))
    except IUReportError:
        raise
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the last two: its encoding
        raise IUReportError(f"{name}: not readable as XML ({error})") from error
    uid_node = root.find("uId")
    uid = uid_node.get("id", "") if uid_node is not None else ""
    if not uid:
        raise IUReportError(f'{name}: no <uId id="...">, which every IU report has')
    sections = {
        node.get("Label", "").upper(): "".join(node.itertext()).strip()
        for node in root.iter("AbstractText")
    }
    return IUReport(
        uid=uid,
        findings=sections.get("FINDINGS", ""),
        impression=sections.get("IMPRESSION", ""),
        indication=sections.get("INDICATION", ""),
        comparison=sections.get("COMPARISON", ""),
        mesh=tuple(
            t for node in root.findall("MeSH/major") if (t := "".join(node.itertext()).strip())
        ),
        image_ids=tuple(
            i for node in root.iter("parentImage") if (i := node.get("id", "").strip())
        ),
    )


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                if not member.isfile() or not member.name.endswith(".xml"):
                    continue
                if member.size > _LARGEST_MEMBER:
                    raise IUReportError(
                        f"{archive.name}: {member.name} has {member.size} bytes; a report has fewer"
                    )
                handle = tar.extractfile(member)
                if handle is not None:
                    yield member.name, handle.read()
    except (tarfile.TarError, EOFError) as error:
        raise IUReportError(f"{archive}: not a readable .tgz of reports ({error})") from error


def read_iu_archive(archive: Path, progress: bool = True) -> tuple[IUReport, ...]:
    """All reports of a ``NLMCXR_reports.tgz``, ordered by number. Members are read in memory,
    nothing is extracted.

    Raises:
        IUReportError: no archive, no report in it, a report without id, or the same id twice.
    """
    reports: dict[str, IUReport] = {}
    for name, xml in tqdm(
        _members(archive), desc="IU reports", unit="report", disable=not progress, leave=False
    ):
        report = parse_iu_report(xml, name)
        if report.uid in reports:
            raise IUReportError(f"{name}: {report.uid} occurs twice in {archive.name}")
        reports[report.uid] = report
    if not reports:
        raise IUReportError(f"{archive}: holds no report; needed ecgen-radiology/<n>.xml members")
    return tuple(sorted(reports.values(), key=by_number))


def by_number(report: IUReport) -> tuple[int, str, str]:
    """Key to sort reports with: by the number in the id, however long (a broken table may hold more
    digits than Python makes a number of)."""
    digits = re.sub(r"\D", "", report.uid).lstrip("0")
    return len(digits), digits, report.uid


def load_iu_reports(progress: bool = True) -> tuple[IUReport, ...]:
    """The 3,955 real reports inside the torchxrayvision wheel, fetched through `data_file` if not
    there yet."""
    return read_iu_archive(data_file(*_ARCHIVE), progress)


def r2gen_subset(reports: tuple[IUReport, ...]) -> tuple[IUReport, ...]:
    """R2Gen's filter (Chen et al. 2020): at least two images and a FINDINGS text; 2,955 of the real
    reports."""
    return tuple(r for r in reports if len(r.image_ids) >= 2 and r.findings)


# Which headings are which finding. The annotation is of the report, not of the image.
_HEADINGS: Mapping[str, str] = MappingProxyType(
    {
        "Pleural Effusion": "pleural_effusion",
        "Pneumothorax": "pneumothorax",
        "Hydropneumothorax": "pneumothorax",
        "Cardiomegaly": "cardiomegaly",
        "Pulmonary Edema": "pulmonary_edema",
        "Consolidation": "consolidation",
        "Airspace Disease": "consolidation",
        "Infiltrate": "consolidation",
        "Pneumonia": "consolidation",
        "Opacity": "consolidation",
        "Pulmonary Atelectasis": "atelectasis",
        "Nodule": "nodule",
        "Calcified Granuloma": "nodule",
        "Granuloma": "nodule",
        "Mass": "mass",
    }
)


def mesh_presence(report: IUReport) -> dict[str, bool]:
    """Chest finding -> whether the manual MeSH annotation has it, in the order of `CHEST`.

    Opacities count as consolidation (round ones as nodules) and granulomas as nodules, as in the
    labeller's lexicon; a blunted costophrenic angle counts as effusion. The annotators rarely coded
    what a report only considers.
    """
    found = set()
    for term in map(parse_mesh, report.mesh):
        if term.heading == "Opacity" and "round" in term.qualifiers:
            found.add("nodule")
        elif term.heading == "Costophrenic Angle" and "blunted" in term.qualifiers:
            found.add("pleural_effusion")
        elif term.heading in _HEADINGS:
            found.add(_HEADINGS[term.heading])
    return {name: name in found for name in CHEST}
