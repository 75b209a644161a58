"""IU X-Ray: its three forms on small replicas, and its texts as they really are."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from replicas.films import frontal, lateral, save, save_dicom
from replicas.iu_xray import STUDIES, kaggle, r2gen, raw, write_headers, write_projections

from medm2g_core.data.files import read_volume, square_picture
from medm2g_core.data.iu_reports import REMOVED
from medm2g_core.data.sources.base import SourceDataset, SourceError, SourceStudy
from medm2g_core.data.sources.iu_xray import IUXRay, image_key, r2gen_report, symmetry
from medm2g_core.data.wheels import DataUnavailableError, data_file


def load(root: Path, source: IUXRay | None = None) -> tuple[SourceDataset, dict[str, SourceStudy]]:
    data = SourceDataset(source or IUXRay(), root, size=64)
    return data, {s.id: s for s in data.studies()}


def shows_frontal(study: SourceStudy) -> bool:
    """The replica's frontal films have their brightest spot at the upper right of the picture."""
    row, column = np.unravel_index(int(study.images["xray"][0].argmax()), (64, 64))
    return bool(row < 12 and column > 40)


@pytest.fixture
def raw_root(tmp_path: Path) -> Path:
    raw(tmp_path)
    write_projections(tmp_path / "indiana_projections.csv")
    return tmp_path


def test_raw_and_kaggle_form_give_the_same_studies(
    raw_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, a = load(raw_root)
    _, b = load(kaggle(tmp_path_factory.mktemp("kaggle")))
    assert a.keys() == b.keys() == {f"CXR{n}" for n in STUDIES} - {"CXR77"}
    for name in a:
        assert a[name].text == b[name].text and a[name].images.keys() == b[name].images.keys()
        assert all(torch.equal(a[name].images[s], b[name].images[s]) for s in a[name].images)


def test_the_frontal_view_is_taken_and_the_patients_left_is_on_the_right(raw_root: Path) -> None:
    _, studies = load(raw_root)
    with_image = [s for s in studies.values() if s.images]
    assert {s.id for s in with_image} == {"CXR1", "CXR2", "CXR10", "CXR33", "CXR55", "CXR99"}
    for study in with_image:
        image = study.images["xray"]
        assert shows_frontal(study), study.id
        assert image.shape == (1, 64, 64) and image.min() >= -1 and image.max() <= 1
        assert (
            image[0, 32, 20] < image[0, 32, 32]
        )  # bone bright: the lung is darker than the middle


def test_first_image_that_is_lateral_is_not_taken(raw_root: Path) -> None:
    entry = next(e for e in IUXRay().scan(raw_root).entries if e.id == "CXR1")
    assert (
        entry.files["xray"].name == "CXR1_IM-0001-4001.png"
    )  # fault 14, and 16: the XML says CXR1_1_IM


def test_one_image_has_one_name_in_all_spellings() -> None:
    spellings = (
        "CXR1_1_IM-0001-3001",
        "CXR1_IM-0001-3001.png",
        "1_IM-0001-3001.dcm.png",
        "1_IM-0001-3001.dcm",
    )
    assert {image_key(s) for s in spellings} == {"1_IM-0001-3001"}
    assert image_key("CXR11_IM-0067-1001") != image_key("CXR1_IM-0067-1001")


def test_reports_without_image_are_text_alone_and_reports_without_text_image_alone(
    raw_root: Path,
) -> None:
    data, studies = load(raw_root)
    assert studies["CXR44"].streams == ("text",) and studies["CXR33"].streams == ("xray",)
    assert "CXR77" not in studies and data.found.counts()["empty report"] == 1
    assert (
        studies["CXR10"].text == "Impression: No acute disease."
    )  # the empty FINDINGS label is not a section


def test_a_study_with_a_lateral_view_alone_has_no_xray_and_is_counted(raw_root: Path) -> None:
    data, studies = load(raw_root)
    assert studies["CXR66"].streams == ("text",) and data.found.counts()["no frontal view"] == 1


def test_header_table_is_believed_for_laterals_only(tmp_path: Path) -> None:
    raw(tmp_path)
    write_headers(tmp_path / "nlmcxr_dicom_metadata.csv")
    data, studies = load(tmp_path)
    by_name = {e.id: e for e in data.entries}
    assert not by_name["CXR1"].extra["candidates"] and shows_frontal(studies["CXR1"])
    assert len(by_name["CXR2"].extra["candidates"]) == 2  # both views are called PA: fault 15
    assert data.found.counts()["view unknown"] == 1  # one PA image alone proves nothing
    assert studies["CXR55"].streams == ("text",)


def test_unrecorded_view_is_judged_by_the_film_and_said(tmp_path: Path) -> None:
    raw(tmp_path)
    data, studies = load(tmp_path)
    assert shows_frontal(studies["CXR1"]) and shows_frontal(studies["CXR2"])
    assert any("view not recorded" in n for n in studies["CXR1"].notes)
    assert any(e.state == "surprising" and "judged" in e.what for e in data.found.table)
    _, strict = load(tmp_path, IUXRay(guess_view=False))
    assert not any(s.images for s in strict.values())


def test_symmetry_tells_the_views_of_a_real_chest_apart() -> None:
    try:
        path = data_file("pyradiomics", "data/lung2_image.nrrd")
    except DataUnavailableError as error:
        pytest.skip(f"the embedded CT cannot be had: {error}")
    volume = read_volume(path, "ct")
    array = np.maximum(volume.array[:, ::2, ::2], -1000) + 1000
    scores = []
    for axis in (1, 2):  # front to back, right to left
        film = array.sum(axis)
        film = np.clip(film / np.quantile(film, 0.995) * 2 - 1, -1, 1).astype(np.float32)
        spacing = (volume.spacing_mm[0], 2 * volume.spacing_mm[1])
        side = max(film.shape[0] * spacing[0], film.shape[1] * spacing[1])
        square = square_picture(film, spacing, (film.shape[0] / 2, film.shape[1] / 2), side, 128)
        scores.append(symmetry(torch.from_numpy(square)[None]))
    assert scores[0] > scores[1] + 0.1


def test_removed_personal_data_is_one_token(raw_root: Path) -> None:
    _, studies = load(raw_root)
    text = studies["CXR1"].text
    assert (
        text == f"Findings: The heart is normal. No {REMOVED} or {REMOVED} of effusion. Impression:"
        f" Normal chest x-{REMOVED}."
    )


def test_labels_are_the_manual_annotation_and_nan_without_one(raw_root: Path) -> None:
    _, studies = load(raw_root)
    assert studies["CXR2"].labels["pleural_effusion"] == studies["CXR2"].labels["cardiomegaly"] == 1
    assert studies["CXR1"].labels["pleural_effusion"] == 0
    assert all(math.isnan(v) for v in studies["CXR66"].labels.values())


@pytest.mark.parametrize(
    ("mesh", "known"),
    [
        ("No Indexing", False),
        ("Technical Quality of Image Unsatisfactory", False),
        ("Technical Quality of Image Unsatisfactory/Cardiomegaly", False),
        ("No Indexing</major><major>Cardiomegaly", True),
    ],
)
@pytest.mark.parametrize("form", [raw, kaggle])
def test_a_report_that_nobody_indexed_has_no_label(
    tmp_path: Path, form: Callable[[Path], Path], mesh: str, known: bool
) -> None:
    form(tmp_path)
    write_projections(tmp_path / "indiana_projections.csv")
    for path in (*tmp_path.rglob("2.xml"), *tmp_path.glob("indiana_reports.csv")):
        text = path.read_text().replace(
            "Pleural Effusion/left</major><major>Cardiomegaly/mild", mesh
        )
        text = text.replace(
            "Pleural Effusion/left;Cardiomegaly/mild", mesh.replace("</major><major>", ";")
        )
        path.write_text(text)
    labels = load(tmp_path)[1]["CXR2"].labels
    if known:
        assert labels["cardiomegaly"] == 1 and labels["pleural_effusion"] == 0
    else:
        assert all(math.isnan(v) for v in labels.values())


def test_a_section_that_was_removed_whole_is_no_text(tmp_path: Path) -> None:
    raw(tmp_path)
    path = next(tmp_path.rglob("10.xml"))
    path.write_text(path.read_text().replace("No acute disease.", "XXXX. XXXX"))
    write_projections(tmp_path / "indiana_projections.csv")
    assert load(tmp_path)[1]["CXR10"].streams == ("xray",)


def test_r2gens_filter_wants_two_images_and_findings(raw_root: Path) -> None:
    data, studies = load(raw_root, IUXRay(r2gen_filter=True))
    assert set(studies) == {"CXR1", "CXR2", "CXR99"}
    assert data.found.counts()["not in R2Gen's subset"] == len(STUDIES) - 3


def test_a_film_that_is_listed_twice_is_no_pair(tmp_path: Path) -> None:
    path = kaggle(tmp_path) / "indiana_projections.csv"
    line = next(line for line in path.read_text().splitlines() if line.startswith("55,"))
    path.write_text(path.read_text() + line + "\n")
    assert "CXR55" not in load(tmp_path, IUXRay(r2gen_filter=True))[1]
    assert "CXR55" in load(tmp_path)[1]


def test_r2gen_form_keeps_its_splits_and_takes_the_frontal_film(tmp_path: Path) -> None:
    data, studies = load(r2gen(tmp_path))
    assert {s: len(v) for s, v in data.subjects().items()} == {"train": 2, "val": 1, "test": 1}
    assert all(shows_frontal(s) for s in studies.values())  # one study's 0.png is the lateral view
    assert (
        studies["CXR7_IM-1"].text
        == f"Findings: The heart is normal in size. The {REMOVED} are clear."
    )


def test_published_r2gen_numbers_count_studies_and_not_images(tmp_path: Path) -> None:
    table = {e.what: (e.expected, e.found) for e in IUXRay().scan(r2gen(tmp_path)).table}
    assert table["train studies"] == ("2,069", "2") and table["test studies"] == ("590", "1")


def test_a_subject_in_two_r2gen_splits_is_refused(tmp_path: Path) -> None:
    path = r2gen(tmp_path) / "iu_xray" / "annotation.json"
    rows = json.loads(path.read_text())
    rows["test"].append({**rows["train"][0], "id": "CXR2384_IM-0943"})
    path.write_text(json.dumps(rows))
    with pytest.raises(SourceError, match="CXR2384 is in train and in test"):
        SourceDataset(IUXRay(), tmp_path)


def test_r2gen_paths_cannot_leave_the_folder(tmp_path: Path) -> None:
    path = r2gen(tmp_path) / "iu_xray" / "annotation.json"
    path.write_text(path.read_text().replace("CXR7_IM-1/0.png", "../../secret.png"))
    with pytest.raises(SourceError, match="outside"):
        IUXRay().scan(tmp_path)


def test_r2gens_cleaner_loses_the_decimal_point_and_ours_does_not(raw_root: Path) -> None:
    assert r2gen_report("Nodule of 3.5 cm, < 9 mm. Clear.") == "nodule of 35 cm  9 mm . clear ."
    _, studies = load(raw_root)
    assert "3.5 cm, < 1 liter" in (studies["CXR2"].text or "")


def test_monochrome1_without_rescale_slope_reads_like_the_upright_film(tmp_path: Path) -> None:
    raw(tmp_path, images=False)
    write_projections(tmp_path / "indiana_projections.csv")
    save_dicom(tmp_path / "NLMCXR_dcm" / "55" / "55_IM-0055-1001.dcm", frontal(), inverted=True)
    save_dicom(tmp_path / "NLMCXR_dcm" / "2" / "2_IM-0652-1001.dcm", frontal())
    _, studies = load(tmp_path)
    upright, inverted = studies["CXR2"], studies["CXR55"]
    assert shows_frontal(upright) and shows_frontal(inverted)
    assert torch.allclose(upright.images["xray"], inverted.images["xray"], atol=0.02)
    assert any("MONOCHROME1" in n for n in inverted.notes) and any(
        "no rescale slope" in n for n in upright.notes
    )
    assert upright.spacing_mm[0] == pytest.approx(0.15 * 60 / 64)


def test_ids_are_the_attribute_of_uid_and_not_the_file_name(raw_root: Path) -> None:
    folder = raw_root / "NLMCXR_reports" / "ecgen-radiology"
    (folder / "2.xml").rename(folder / "3000.xml")
    assert "CXR2" in {e.id for e in IUXRay().scan(raw_root).entries}


def test_corrupt_files_are_counted_and_the_rest_loads(raw_root: Path) -> None:
    (raw_root / "NLMCXR_reports" / "ecgen-radiology" / "44.xml").write_text("<eCitation><uId id=")
    (raw_root / "NLMCXR_png" / "CXR2_IM-0652-1001.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    save(raw_root / "NLMCXR_png" / "CXR10_IM-0002-1001.png", np.zeros((50, 50), np.uint8))
    data, studies = load(raw_root)
    kinds = Counter(s.kind for s in data.skipped)
    assert (
        kinds["unreadable report"] == 1 and kinds["unreadable file"] == 2
    )  # a blank film is never a study
    assert "CXR1" in studies and not {"CXR2", "CXR10", "CXR44"} & set(studies)


def test_png_bytes_under_a_jpg_name_are_read(raw_root: Path) -> None:
    path = raw_root / "NLMCXR_png" / "CXR55_IM-0055-1001.png"
    path.rename(path.with_suffix(".jpg"))
    assert shows_frontal(load(raw_root)[1]["CXR55"])


def test_a_wrong_folder_shows_the_layout(tmp_path: Path) -> None:
    save(tmp_path / "a.png", lateral())
    for write in (lambda: None, lambda: (tmp_path / "x.xml").write_text("<a/>")):
        write()
        with pytest.raises(SourceError, match="ecgen-radiology"):
            IUXRay().scan(tmp_path)


def test_seeded_splits_share_no_subject(raw_root: Path) -> None:
    subjects = SourceDataset(IUXRay(), raw_root, size=64).subjects()
    everyone = [s for names in subjects.values() for s in names]
    assert len(everyone) == len(set(everyone)) and set(subjects) == {"train", "val", "test"}


def test_counts_of_the_real_reports_are_the_published_ones() -> None:
    try:
        archive = data_file("torchxrayvision", "torchxrayvision/data/NLMCXR_reports.tgz")
        headers = data_file("torchxrayvision", "torchxrayvision/data/nlmcxr_dicom_metadata.csv.gz")
    except DataUnavailableError as error:
        pytest.skip(f"the real reports cannot be had: {error}")
    assert headers.parent == archive.parent
    found = IUXRay().scan(archive.parent)
    table = {e.what: e for e in found.table}
    assert [
        table[w].state for w in ("reports", "reports with findings", "reports with an impression")
    ] == ["ok"] * 3
    assert table["studies that pass R2Gen's filter"].found == "2,955"
    assert table["images"].state == "missing"  # texts alone
    assert len(found.entries) == 3955 - 28 and found.counts()["empty report"] == 28


def test_names_and_numbers_that_no_file_can_have_are_counted_and_left_out(tmp_path: Path) -> None:
    root = r2gen(tmp_path)
    table = root / "iu_xray" / "annotation.json"
    table.write_text(table.read_text().replace("CXR7_IM-1/0.png", "x" * 5000))
    data = SourceDataset(IUXRay(), root)
    assert [s.kind for s in data.skipped].count("image missing") == 1
    table.write_text("[" * 100_000)
    with pytest.raises(SourceError, match=r"not R2Gen's form.*RecursionError") as caught:
        SourceDataset(IUXRay(), root)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (b"<a>" * 20_000, "nested more than 64 deep"),
        (b"<?xml version='1.0' encoding='u'?><a/>", "not readable as XML .*unknown encoding"),
        (b'<e><uId id="CXR5"/><MeSH><major>/mild</major></MeSH></e>', "has no heading"),
        (b'<e><uId id="CXR' + b"9" * 5000 + b'"/></e>', ""),
    ],
)
def test_a_broken_report_is_left_out_and_says_why(tmp_path: Path, broken: bytes, why: str) -> None:
    root = raw(tmp_path, images=False)
    (root / "NLMCXR_reports" / "ecgen-radiology" / "9999.xml").write_bytes(broken)
    data = SourceDataset(IUXRay(), root)
    skipped = [s.why for s in data.skipped if s.kind == "unreadable report"]
    assert len(skipped) == bool(why) and all(re.search(why, said) for said in skipped)
    assert len(data) >= 5
