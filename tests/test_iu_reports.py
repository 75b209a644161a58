"""The real IU reports: the facts of the set, and how the labeller agrees with its manual
annotation."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from medm2g_core.data.findings import CHEST
from medm2g_core.data.iu_reports import (
    REMOVED,
    IUReport,
    IUReportError,
    MeshTerm,
    clean_text,
    load_iu_reports,
    mesh_presence,
    parse_mesh,
    r2gen_subset,
    read_iu_archive,
)
from medm2g_core.data.labeller import label_report, presence

XML = (
    '<?xml version="1.0"?><eCitation><uId'
    ' id="{uid}"/><MedlineCitation><Article><Abstract><AbstractText'
    ' Label="COMPARISON"/><AbstractText Label="INDICATION">Cough</AbstractText><AbstractText'
    ' Label="FINDINGS">Clear &lt;2 cm.</AbstractText><AbstractText Label="IMPRESSION">'
    " </AbstractText></Abstract></Article></MedlineCitation><MeSH><major>Nodule/lung/left</major>"
    "<automatic>x</automatic></MeSH><parentImage"
    ' id="{uid}_IM-1"><figureId>F1</figureId></parentImage></eCitation>'
)


def write_archive(path: Path, members: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.fixture(scope="module")
def reports() -> tuple[IUReport, ...]:
    return load_iu_reports(progress=False)


def test_counts_of_the_real_set(reports):
    assert len(reports) == 3955
    assert sum(bool(r.findings) for r in reports) == 3425
    assert sum(bool(r.impression) for r in reports) == 3921
    assert sum(not (r.findings or r.impression) for r in reports) == 28
    assert sum("XXXX" in r.findings for r in reports) == 1486
    assert sum(len(r.findings.split()) for r in reports) / 3425 == pytest.approx(31.7, abs=0.1)


def test_ids_are_attributes_between_1_and_3999_with_44_missing(reports):
    numbers = [int(r.uid.removeprefix("CXR")) for r in reports]
    assert numbers == sorted(set(numbers))
    assert numbers[0] == 1 and numbers[-1] == 3999 and 3999 - len(numbers) == 44


def test_images_a_report_are_none_to_five(reports):
    assert Counter(len(r.image_ids) for r in reports) == {
        0: 104,
        1: 446,
        2: 3208,
        3: 181,
        4: 15,
        5: 1,
    }


def test_r2gen_filter_gives_its_published_number(reports):
    assert len(r2gen_subset(reports)) == 2955 == 2069 + 296 + 590


def test_cleaned_text_has_one_token_for_removed_words(reports):
    texts = [r.text for r in reports]
    assert sum(not t for t in texts) == 28
    assert not any("XXX" in t or "  " in t or ".." in t for t in texts)
    assert sum(REMOVED in clean_text(r.findings) for r in reports) == 1486


def test_mesh_headings_of_the_real_set(reports):
    headings = Counter(h for r in reports for h in {parse_mesh(t).heading for t in r.mesh})
    assert len(headings) == 122
    assert (
        headings["normal"] == 1391
        and headings["Cardiomegaly"] == 375
        and headings["Calcified Granuloma"] == 274
    )
    assert sum(mesh_presence(r)["cardiomegaly"] for r in reports) == 375


# (precision, recall) floors, well below what was measured; mass and pneumothorax are rare (17 and
# 27 reports).
FLOORS = {
    "pleural_effusion": (0.90, 0.90),
    "pneumothorax": (0.75, 0.75),
    "cardiomegaly": (0.88, 0.88),
    "pulmonary_edema": (0.70, 0.85),
    "consolidation": (0.90, 0.90),
    "atelectasis": (0.85, 0.90),
    "nodule": (0.85, 0.85),
    "mass": (0.40, 0.50),
}


def agreement(
    pairs: list[tuple[dict[str, bool], dict[str, bool]]], name: str
) -> tuple[float, float]:
    both = sum(p[name] and m[name] for p, m in pairs)
    said, true = sum(p[name] for p, _ in pairs), sum(m[name] for _, m in pairs)
    return both / max(said, 1), both / max(true, 1)


def test_labeller_agrees_with_the_manual_annotation(reports):
    read = [r for r in reports if r.text]
    said = [presence(label_report(r.text, "chest").findings, "chest") for r in read]
    true = [mesh_presence(r) for r in read]
    scores = {name: agreement(list(zip(said, true, strict=True)), name) for name in CHEST}
    for name, (precision, recall) in scores.items():
        assert precision >= FLOORS[name][0] and recall >= FLOORS[name][1], scores
    # Control: reports paired with another report's annotation do not agree.
    shifted = [
        agreement(list(zip(said, true[1:] + true[:1], strict=True)), name)[1] for name in CHEST
    ]
    assert max(shifted) < 0.4


def test_normal_reports_have_no_finding(reports):
    normal = [r for r in reports if r.mesh == ("normal",) and r.text]
    wrong = [r.uid for r in normal if label_report(r.text, "chest").findings]
    assert len(wrong) < 0.02 * len(normal)


def test_clean_text_joins_removed_runs_and_white_space():
    assert clean_text("Seen by  XXXX XXXX,\n on XXXX..") == f"Seen by {REMOVED}, on {REMOVED}."
    assert clean_text(" 3.5 cm < 4 cm. ") == "3.5 cm < 4 cm."


def test_mesh_terms_are_split_at_slashes_only():
    assert parse_mesh("Catheters, Indwelling/right") == MeshTerm(
        "Catheters, Indwelling", ("right",)
    )
    assert parse_mesh("normal") == MeshTerm("normal")
    with pytest.raises(IUReportError, match="no heading"):
        parse_mesh("/left")


def test_mesh_presence_of_round_opacities_and_blunted_angles():
    mesh = ("Opacity/lung/left/round", "Costophrenic Angle/right/blunted", "Spine/degenerative")
    found = mesh_presence(IUReport("CXR1", "", "", "", "", mesh, ()))
    assert [n for n, there in found.items() if there] == ["pleural_effusion", "nodule"]


def test_archive_is_read_in_memory_and_ordered_by_number(tmp_path):
    members = {
        "../../evil/10.xml": XML.format(uid="CXR10"),
        "x/9.xml": XML.format(uid="CXR9"),
        "x/readme.txt": "no",
    }
    archive = write_archive(tmp_path / "a.tgz", members)
    first, second = read_iu_archive(archive, progress=False)
    assert (first.uid, second.uid) == ("CXR9", "CXR10")
    assert first.findings == "Clear <2 cm." and first.impression == "" and first.comparison == ""
    assert (
        first.indication == "Cough"
        and first.mesh == ("Nodule/lung/left",)
        and first.image_ids == ("CXR9_IM-1",)
    )
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.tgz"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "holds no report"),
        ({"1.xml": "<eCitation><uId/></eCitation>"}, "uId"),
        ({"1.xml": "<eCitation>"}, "not readable as XML"),
        ({"1.xml": '<!DOCTYPE x [<!ENTITY a "b">]><x/>'}, "document type"),
        ({"1.xml": XML.format(uid="CXR1"), "2.xml": XML.format(uid="CXR1")}, "twice"),
    ],
)
def test_a_wrong_archive_is_refused(tmp_path, members, message):
    with pytest.raises(IUReportError, match=message):
        read_iu_archive(write_archive(tmp_path / "a.tgz", members), progress=False)


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.tgz").write_bytes(b"not gzip")
    with pytest.raises(IUReportError, match="readable"):
        read_iu_archive(tmp_path / "a.tgz", progress=False)
