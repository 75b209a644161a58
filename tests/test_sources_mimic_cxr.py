"""MIMIC-CXR: small replicas of its JPG and DICOM form, with the faults of its tables and
reports."""

from __future__ import annotations

import csv
import gzip
import math
from collections import Counter
from pathlib import Path

import pytest
from replicas.films import frontal, save, save_dicom
from replicas.mimic_cxr import EMPTY, FULL, PLAIN, folder_of, image_id, mimic_cxr

from medm2g_core.data.iu_reports import REMOVED
from medm2g_core.data.sources import script
from medm2g_core.data.sources.base import SourceDataset, SourceError, SourceStudy
from medm2g_core.data.sources.mimic_cxr import LABELS, MimicCXR
from medm2g_core.data.sources.mimic_reports import report_text, split_sections
from medm2g_core.data.sources.shards import read_shards

USABLE = {f"s{n}" for n in (50000001, 50000002, 50000003, 50000004, 50000008, 50000009)}


def load(
    root: Path, source: MimicCXR | None = None
) -> tuple[SourceDataset, dict[str, SourceStudy]]:
    data = SourceDataset(source or MimicCXR(), root, size=64)
    return data, {s.id: s for s in data.studies()}


@pytest.mark.parametrize("packed", [True, False], ids=["csv.gz", "csv"])
@pytest.mark.parametrize("dicom", [False, True], ids=["jpg", "dicom"])
def test_one_study_has_its_frontal_film_upright_and_its_report(
    tmp_path: Path, dicom: bool, packed: bool
) -> None:
    data, studies = load(mimic_cxr(tmp_path / "m", dicom=dicom, packed=packed))
    assert set(studies) == USABLE and len(data) == len(USABLE)
    for study in studies.values():
        image = study.images["xray"]
        assert image.shape == (1, 64, 64) and -1 <= image.min() < image.max() <= 1
        row, column = divmod(int(image.argmax()), 64)
        assert row < 12 and column > 40, (
            study.id
        )  # the marker of frontal films, at the patient's upper left
    assert ("equalised" in studies["s50000001"].units["xray"]) is not dicom
    assert any("MONOCHROME1" in n for n in studies["s50000001"].notes) is dicom


@pytest.mark.parametrize("place", ["beside", "inside", "own"])
def test_reports_are_found_beside_inside_and_in_a_folder_of_their_own(
    tmp_path: Path, place: str
) -> None:
    root = mimic_cxr(tmp_path / "jpg", reports=place)
    _, studies = load(root, MimicCXR(reports=tmp_path / "reports") if place == "own" else None)
    assert studies["s50000008"].text == "Impression: Mild edema."
    assert studies["s50000009"].streams == ("xray",)  # no report: no text stream


def test_without_any_report_the_studies_are_images_alone_and_the_table_says_so(
    tmp_path: Path,
) -> None:
    data, studies = load(mimic_cxr(tmp_path / "jpg", reports="none"))
    assert all(s.streams == ("xray",) for s in studies.values()) and "s50000005" in studies
    assert next(e for e in data.found.table if e.what == "report files").state == "missing"
    with pytest.raises(SourceError, match="no such folder of reports"):
        MimicCXR(reports=tmp_path / "nowhere").scan(tmp_path / "jpg")


def test_null_view_position_is_unknown_and_not_frontal(tmp_path: Path) -> None:
    data, studies = load(mimic_cxr(tmp_path / "m"))
    assert "s50000006" not in studies and data.found.counts()["view unknown"] == 1
    entry = next(e for e in data.entries if e.id == "s50000004")
    assert entry.files["xray"].stem == image_id(
        50000004, 1
    )  # the PA image, not the blank one before it


def test_lateral_views_alone_are_counted(tmp_path: Path) -> None:
    data, studies = load(mimic_cxr(tmp_path / "m"))
    assert "s50000007" not in studies and data.found.counts()["no frontal view"] == 1


def test_a_study_with_two_frontal_views_appears_once(tmp_path: Path) -> None:
    data, _ = load(mimic_cxr(tmp_path / "m"))
    assert Counter(e.id for e in data.entries)["s50000002"] == 1


def test_no_subject_is_in_two_splits(tmp_path: Path) -> None:
    data, _ = load(mimic_cxr(tmp_path / "m"))
    subjects = data.subjects()
    assert subjects["val"] == ("p11000011",) and subjects["test"] == ("p12000012",)
    everyone = [s for names in subjects.values() for s in names]
    assert len(everyone) == len(set(everyone))


def test_a_split_table_that_parts_images_is_refused(tmp_path: Path) -> None:
    root = mimic_cxr(tmp_path / "m", packed=False)
    path = root / "mimic-cxr-2.0.0-split.csv"
    rows = list(csv.reader(path.open(newline="")))
    rows[1][3] = "test"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(SourceError, match="subject 10000032 is in test and in train"):
        MimicCXR().scan(root)


def test_without_a_split_table_people_are_parted_by_seed(tmp_path: Path) -> None:
    root = mimic_cxr(tmp_path / "m")
    (root / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    data, _ = load(root)
    assert {e.split for e in data.entries} == {"train", "val", "test"}
    assert next(e for e in data.found.table if e.what == "split table").state == "missing"


def test_headers_are_found_by_newline_space_capitals_colon() -> None:
    names = [n for n, _ in split_sections(FULL)]
    assert names == [
        "preamble",
        "examination",
        "indication",
        "comparison",
        "findings",
        "impression",
    ]
    assert "Seen on" in dict(split_sections(FULL))["findings"]  # a colon in the text is no header
    stripped = "\n".join(line.strip() for line in FULL.splitlines())
    assert [n for n, _ in split_sections(stripped)] == names  # known names need no white space
    assert [n for n, _ in split_sections("\nDEVICE:  A.\n DEVICE:  B.")] == ["preamble", "device"]


@pytest.mark.parametrize(
    "header",
    ["CONCLUSION", "IMPRESSON", "FINDINGS AND IMPRESSION", "IMPRESSION", "FINAL IMPRESSION"],
)
def test_variants_of_impression_are_one_section(header: str) -> None:
    assert report_text(f" FINAL REPORT\n {header}:  Clear lungs.\n") == "Impression: Clear lungs."


@pytest.mark.parametrize(
    "text",
    [
        " Findings: Clear lungs.\n \n Impression: Normal.\n",
        "FINDINGS: Clear lungs.\nIMPRESSION: Normal.\n",
        "   findings :  Clear lungs.\n\timpression:\nNormal.\n",
        "FINAL REPORT\n Comparison: None.\n Findings: Clear lungs.\n Conclusion: Normal.\n",
    ],
)
def test_headers_in_small_letters_or_without_their_space_are_found(text: str) -> None:
    assert report_text(text) == "Findings: Clear lungs. Impression: Normal."


def test_a_sentence_with_a_colon_is_no_header() -> None:
    text = " FINDINGS:  Heart: normal.\n Devices seen: none.\n IMPRESSION:  Clear.\n"
    assert report_text(text) == "Findings: Heart: normal. Devices seen: none. Impression: Clear."


def test_an_addendum_never_replaces_the_findings() -> None:
    text = " FINDINGS:  No effusion.\n \n CHEST ADDENDUM:  Dictated again.\n"
    assert report_text(text) == "Findings: No effusion."


def test_parts_of_the_body_with_headers_of_their_own_are_kept() -> None:
    ribs = " CHEST:  Clear lungs.\n \n RIBS:  No fracture.\n \n IMPRESSION:  Normal.\n"
    kept = "Findings: Clear lungs. Ribs: No fracture. Impression: Normal."
    assert report_text(ribs) == kept
    parts = " FINDINGS:\n\n LUNGS:  Clear.\n HEART:  Normal.\n IMPRESSION:  Normal.\n"
    assert report_text(parts) == "Findings: Lungs: Clear. Heart: Normal. Impression: Normal."
    assert report_text(" LEFT RIBS:  No fracture.\n") == "Findings: Left ribs: No fracture."
    history = " HEART FAILURE HISTORY:  Yes.\n IMPRESSION:  Normal.\n"
    assert report_text(history) == "Impression: Normal."


@pytest.mark.parametrize("nothing", ["___", "___.", " ___ / ___ ", "\n \n"])
def test_a_section_that_was_removed_whole_says_nothing(nothing: str) -> None:
    assert report_text(f" IMPRESSION:  {nothing}\n") == ""
    text = f" FINDINGS:  Clear.\n IMPRESSION:  {nothing}\n"
    assert report_text(text) == "Findings: Clear."


@pytest.mark.parametrize(
    "header", ["FINDINGS", "FINDING", "FINDINS", "CHEST, TWO VIEWS", "PORTABLE AP CHEST"]
)
def test_variants_of_findings_are_one_section(header: str) -> None:
    assert report_text(f" FINAL REPORT\n {header}:  Clear lungs.\n") == "Findings: Clear lungs."


def test_the_last_section_of_a_name_counts(tmp_path: Path) -> None:
    _, studies = load(mimic_cxr(tmp_path / "m"))
    assert studies["s50000002"].text == "Impression: The lungs are clear."


def test_addenda_above_the_ruler_are_left_out(tmp_path: Path) -> None:
    _, studies = load(mimic_cxr(tmp_path / "m"))
    assert studies["s50000003"].text == "Impression: No pneumothorax."


def test_a_report_without_headers_gives_all_after_its_first_paragraph() -> None:
    whole = "Findings: The patient is rotated. Heart size is normal and lungs are clear."
    assert report_text(PLAIN) == whole
    one = " FINAL REPORT\n The lungs are clear.\n"
    assert report_text(one) == "Findings: The lungs are clear."
    discussed = PLAIN + "\n Findings were discussed with Dr. ___ by telephone.\n"
    told = f"Findings were discussed with Dr. {REMOVED} by telephone."
    assert report_text(discussed) == f"{whole} {told}"
    under_comparison = " COMPARISON:  None.\n \n The heart is normal.\n"
    assert report_text(" FINAL REPORT\n" + under_comparison) == "Findings: The heart is normal."


def test_removed_personal_data_is_one_token(tmp_path: Path) -> None:
    _, studies = load(mimic_cxr(tmp_path / "m"))
    assert (
        studies["s50000001"].text
        == f"Findings: There is a small left pleural effusion. Seen on {REMOVED}: no change of the"
        " heart. Impression: Small left effusion."
    )


def test_empty_reports_are_left_out_and_counted(tmp_path: Path) -> None:
    assert report_text(EMPTY) == report_text("") == report_text(" \n ") == ""
    data, studies = load(mimic_cxr(tmp_path / "m"))
    assert "s50000005" not in studies and data.found.counts()["empty report"] == 1


def test_labels_keep_four_states_and_belong_to_the_study(tmp_path: Path) -> None:
    _, studies = load(mimic_cxr(tmp_path / "m"))
    labels = studies["s50000001"].labels
    assert (labels["Pleural Effusion"], labels["Pneumothorax"], labels["Pneumonia"]) == (1, 0, -1)
    assert math.isnan(labels["Edema"]) and tuple(labels) == LABELS
    assert all(math.isnan(v) for v in studies["s50000009"].labels.values())  # absent from the table


@pytest.mark.parametrize("label", ["2", "-2.0", "inf", "yes"])
def test_a_label_beyond_the_four_states_is_refused(tmp_path: Path, label: str) -> None:
    root = mimic_cxr(tmp_path / "m", packed=False)
    path = root / "mimic-cxr-2.0.0-chexpert.csv"
    path.write_text(path.read_text().replace("-1.0", label))
    with pytest.raises(SourceError, match="a label is not 1, 0, -1 or blank"):
        MimicCXR().scan(root)


def test_a_row_that_is_there_twice_is_one_image(tmp_path: Path) -> None:
    root = mimic_cxr(tmp_path / "m", packed=False)
    for path in root.glob("*.csv"):
        path.write_text(path.read_text() + "".join(path.read_text().splitlines(True)[1:]))
    data, studies = load(root)
    assert set(studies) == USABLE
    assert next(e for e in data.found.table if e.what == "images in the table").found == "13"


@pytest.mark.parametrize(
    ("table", "was", "now"), [("metadata", ",PA,", ",LATERAL,"), ("chexpert", ",1.0,", ",0.0,")]
)
def test_two_rows_that_say_different_things_are_refused(
    tmp_path: Path, table: str, was: str, now: str
) -> None:
    path = mimic_cxr(tmp_path / "m", packed=False) / f"mimic-cxr-2.0.0-{table}.csv"
    line = next(line for line in path.read_text().splitlines() if was in line)
    path.write_text(path.read_text() + line.replace(was, now) + "\n")
    with pytest.raises(SourceError, match=r"two rows of .* say different things"):
        MimicCXR().scan(path.parent)


def test_the_script_takes_a_folder_of_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = mimic_cxr(tmp_path / "jpg", reports="own")
    common = [str(root), "--out", str(tmp_path / "out"), "--size", "32", "--workers", "0"]
    assert script.main("mimic_cxr", "", [*common, "--reports", str(tmp_path / "reports")]) == 0
    texts = {s.text for s in read_shards(tmp_path / "out", "train")}
    assert "Impression: Mild edema." in texts
    with pytest.raises(SystemExit):
        script.main("ixi", "", [*common, "--reports", str(tmp_path / "reports")])
    assert "unrecognized arguments: --reports" in capsys.readouterr().err


def test_jpg_and_dicom_are_not_mixed(tmp_path: Path) -> None:
    root = mimic_cxr(tmp_path / "m")
    jpg = root / "files" / folder_of(50000008) / f"{image_id(50000008, 0)}.jpg"
    jpg.unlink()
    save_dicom(jpg.with_suffix(".dcm"), frontal())
    data, studies = load(root)
    assert "s50000008" not in studies and data.found.counts()["DICOM among JPGs"] == 1


def test_missing_and_corrupt_images_are_counted_and_the_rest_loads(tmp_path: Path) -> None:
    root = mimic_cxr(tmp_path / "m")
    (root / "files" / folder_of(50000008) / f"{image_id(50000008, 0)}.jpg").unlink()
    broken = root / "files" / folder_of(50000003) / f"{image_id(50000003, 0)}.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    data, studies = load(root)
    kinds = Counter(s.kind for s in data.skipped)
    assert kinds["image missing"] == kinds["unreadable file"] == 1
    assert set(studies) == USABLE - {"s50000008", "s50000003"}


def test_png_bytes_under_the_jpg_name_are_read(tmp_path: Path) -> None:
    root = mimic_cxr(tmp_path / "m")
    path = root / "files" / folder_of(50000008) / f"{image_id(50000008, 0)}.jpg"
    save(path, frontal(), kind="PNG")
    assert "s50000008" in load(root)[1]


def test_a_wrong_folder_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="p10000032"):
        MimicCXR().scan(tmp_path)
    with gzip.open(tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz", "wt") as file:
        file.write("dicom_id,subject_id\n")
    with pytest.raises(SourceError, match="no column study_id, ViewPosition"):
        MimicCXR().scan(tmp_path)
    (tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(b"\x1f\x8bbroken")
    with pytest.raises(SourceError, match="cannot be read"):
        MimicCXR().scan(tmp_path)
