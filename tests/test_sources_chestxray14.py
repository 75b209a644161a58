"""ChestX-ray14: a small replica with its faults, and its real table of labels."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from replicas.chestxray14 import ROWS, chestxray14
from replicas.films import frontal, save

from medm2g_core.data.sources import chestxray14 as module
from medm2g_core.data.sources.base import SourceDataset, SourceError, SourceStudy
from medm2g_core.data.sources.chestxray14 import LABELS, ChestXray14, label_text, parse_labels
from medm2g_core.data.sources.tables import read_table
from medm2g_core.data.wheels import DataUnavailableError, data_file


def load(root: Path) -> tuple[SourceDataset, dict[str, SourceStudy]]:
    data = SourceDataset(ChestXray14(), root, size=64)
    return data, {s.id: s for s in data.studies()}


def test_every_image_is_a_study_with_xray_and_text(tmp_path: Path) -> None:
    _, studies = load(chestxray14(tmp_path))
    assert len(studies) == len(ROWS)
    for study in studies.values():
        image = study.images["xray"]
        assert study.streams == ("text", "xray") and image.shape == (1, 64, 64)
        assert -1 <= image.min() < image.max() <= 1
        row, column = divmod(int(image.argmax()), 64)
        assert (
            row < 12 and column > 40
        )  # the marker at the patient's upper left stays on the picture's right
    assert studies["00000001_000"].age == 57 and studies["00000001_000"].sex == "male"
    assert studies["00000001_000"].spacing_mm == pytest.approx(
        (2749 * 0.143 / 64, 2682 * 0.143 / 64)
    )


def test_text_comes_from_the_labels_and_says_so(tmp_path: Path) -> None:
    _, studies = load(chestxray14(tmp_path))
    study = studies["00000001_001"]
    assert "ardiomegaly and emphysema" in (study.text or "")
    assert any("written from the labels" in n for n in study.notes)
    assert "No finding" in label_text(()) and "pleural effusion" in label_text(("Mass", "Effusion"))


def test_labels_are_split_at_bars_and_not_searched_as_substrings() -> None:
    assert parse_labels("Pneumothorax|Pleural_Thickening") == ("Pneumothorax", "Pleural_Thickening")
    assert parse_labels("No Finding") == ()
    for wrong in ("Pneumo", "No Finding|Mass", "", "|"):
        with pytest.raises(SourceError):
            parse_labels(wrong)


def test_labels_are_one_or_zero(tmp_path: Path) -> None:
    _, studies = load(chestxray14(tmp_path))
    labels = studies["00000003_000"].labels
    assert tuple(labels) == LABELS
    assert {n for n, v in labels.items() if v == 1} == {"Pneumothorax", "Pleural_Thickening"}
    assert sum(studies["00000002_000"].labels.values()) == 0


def test_rgba_picture_gives_the_image_of_its_grey_twin(tmp_path: Path) -> None:
    _, studies = load(chestxray14(tmp_path))
    save(tmp_path / "images" / "00000001_001.png", frontal(64, 64, seed=1))
    _, grey = load(tmp_path)
    assert torch.equal(studies["00000001_001"].images["xray"], grey["00000001_001"].images["xray"])


@pytest.mark.parametrize("old", [False, True], ids=["Sex", "Gender"])
def test_both_releases_of_the_table_read_alike(tmp_path: Path, old: bool) -> None:
    _, studies = load(chestxray14(tmp_path, old=old))
    assert [studies[n].sex for n in ("00000001_000", "00000002_000")] == ["male", "female"]
    assert studies["00000002_000"].age == 80
    assert studies["00000003_000"].age is None  # 412 years
    assert studies["00000002_000"].spacing_mm[0] == pytest.approx(
        2749 * 0.143 / 64
    )  # behind the header's commas


def test_boxes_survive_the_broken_header_and_the_other_spelling(tmp_path: Path) -> None:
    entry = next(
        e for e in ChestXray14().scan(chestxray14(tmp_path)).entries if e.id == "00000004_000"
    )
    ((label, box),) = entry.extra["boxes"]
    assert label == "Infiltration" and box == pytest.approx(
        (225.0847, 547.0192, 86.7797, 79.1864), abs=1e-3
    )


def test_kaggles_twelve_folders_give_the_same_entries(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    a, b = (ChestXray14().scan(chestxray14(tmp_path / n, kaggle=n == "b")).entries for n in "ab")
    assert [e.id for e in a] == [e.id for e in b]


def test_official_lists_decide_and_no_patient_is_in_two_splits(tmp_path: Path) -> None:
    data, _ = load(chestxray14(tmp_path))
    subjects = data.subjects()
    assert subjects["test"] == ("4",) and len(subjects["val"]) >= 1
    everyone = [s for names in subjects.values() for s in names]
    assert len(everyone) == len(set(everyone)) == 6


def test_lists_that_part_images_and_not_people_are_refused(tmp_path: Path) -> None:
    path = chestxray14(tmp_path) / "test_list.txt"
    path.write_text(path.read_text() + "\n00000001_001.png\n")
    with pytest.raises(SourceError, match="patient 1 is in"):
        ChestXray14().scan(tmp_path)


def test_without_lists_people_are_parted_by_seed(tmp_path: Path) -> None:
    chestxray14(tmp_path)
    (tmp_path / "test_list.txt").unlink()
    data, _ = load(tmp_path)
    assert next(e for e in data.found.table if e.what == "test_list.txt").state == "missing"
    everyone = [s for names in data.subjects().values() for s in names]
    assert len(everyone) == len(set(everyone)) == 6


def test_missing_and_corrupt_images_are_counted_and_the_rest_loads(tmp_path: Path) -> None:
    images = chestxray14(tmp_path) / "images"
    (images / "00000002_000.png").unlink()
    whole = (images / "00000005_000.png").read_bytes()
    (images / "00000005_000.png").write_bytes(whole[: len(whole) // 2])
    shutil.copy(
        save(tmp_path / "x.jpg", frontal(64, 64), kind="JPEG"), images / "00000006_000.png"
    )  # wrong extension
    data, studies = load(tmp_path)
    assert Counter(s.kind for s in data.skipped) == {"image missing": 1, "unreadable file": 1}
    assert len(studies) == len(ROWS) - 2 and "00000006_000" in studies
    assert next(e for e in data.found.table if e.what == "image files").found == "6"


def test_a_wrong_folder_shows_the_layout(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"train_val_list\.txt"):
        ChestXray14().scan(tmp_path)
    (tmp_path / "Data_Entry_2017.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match="no column Image Index"):
        ChestXray14().scan(tmp_path)


def test_counts_of_the_real_table_are_the_published_ones() -> None:
    try:
        path = data_file("torchxrayvision", "torchxrayvision/data/Data_Entry_2017_v2020.csv.gz")
        boxes = data_file("torchxrayvision", "torchxrayvision/data/BBox_List_2017.csv.gz")
    except DataUnavailableError as error:
        pytest.skip(f"the real table cannot be had: {error}")
    rows = read_table(path)
    assert len(rows) == 112_120 and len({r["Patient ID"] for r in rows}) == 30_805
    counts = Counter(n for r in rows for n in parse_labels(r["Finding Labels"]) or ("No Finding",))
    assert len(counts) == 15 and counts["No Finding"] == 60_361  # [V] counted in the file itself
    assert counts["Infiltration"] == 19_894 and counts["Hernia"] == 227
    assert all(module._age(r["Patient Age"]) is not None for r in rows[::97])
    drawn = [box for each in module._boxes(boxes.parent).values() for box in each]
    assert len(drawn) == 984 and {label for label, _ in drawn} <= set(LABELS)


def test_scan_of_the_real_table_without_images_says_what_is_missing() -> None:
    try:
        path = data_file("torchxrayvision", "torchxrayvision/data/Data_Entry_2017_v2020.csv.gz")
    except DataUnavailableError as error:
        pytest.skip(f"the real table cannot be had: {error}")
    found = ChestXray14().scan(path.parent)
    states = {e.what: e.state for e in found.table}
    assert (
        states["images in the table"] == states["patients"] == "ok"
        and states["image files"] == "missing"
    )
    assert not found.entries and found.counts() == {"image missing": 112_120}
