"""Trees as people keep them: a level deeper or flat, other endings, copies, and parts on another
disk behind links."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from replicas import acdc, brats2020, ixi, sliver07
from replicas.chestxray14 import ROWS, chestxray14
from replicas.films import frontal, save
from replicas.iu_xray import raw, write_projections
from replicas.mimic_cxr import STUDIES, folder_of, image_id, mimic_cxr

from medm2g_core.data.sources import open_source
from medm2g_core.data.sources.base import SourceDataset, SourceError
from medm2g_core.data.sources.chestxray14 import ChestXray14
from medm2g_core.data.sources.iu_xray import IUXRay
from medm2g_core.data.sources.mimic_cxr import MimicCXR
from medm2g_core.data.sources.tables import find_file, read_table
from medm2g_core.data.sources.trees import files_below, folders_below, words

NAMES = {r[0].removesuffix(".png") for r in ROWS}
FRONTAL = {f"s{n}" for n in (50000001, 50000002, 50000003, 50000004, 50000008, 50000009)}


# ---- links


def test_a_linked_folder_is_followed_and_every_file_is_there_once(tmp_path: Path) -> None:
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "root" / "here").mkdir(parents=True)
    for name in ("disk/a.txt", "disk/deep/b.txt", "root/here/c.txt", "root/here/._c.txt"):
        (tmp_path / name).write_text(name)
    root = tmp_path / "root"
    (root / "data").symlink_to(tmp_path / "disk")
    (root / "again").symlink_to(root / "here")  # a second way to a folder that is there
    (root / "here" / "up").symlink_to(root)  # a loop
    (tmp_path / "disk" / "loop").symlink_to(root / "data")
    (root / "broken").symlink_to(tmp_path / "nothing")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "d.txt").write_text("left behind")
    found = [p.relative_to(root).as_posix() for p in files_below(root, "*.TXT")]
    assert found == ["data/a.txt", "data/deep/b.txt", "here/c.txt"]
    assert len(list(folders_below(root))) == 4


def test_words_of_names() -> None:
    assert words("TestScans_2") == {"test", "scans"} and words("latest") == {"latest"}
    assert words("SLIVER07-test") == {"sliver", "test"}


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("acdc", acdc.write_acdc),
        ("sliver07", sliver07.write_sliver07),
        ("ixi", ixi.write_ixi),
        ("brats2020", brats2020.write_brats2020),
    ],
)
def test_parts_on_another_disk_are_read_like_those_that_are_here(
    tmp_path: Path, name: str, write: Callable[[Path], Path]
) -> None:
    write(tmp_path / "disk")
    root = tmp_path / "root"
    root.mkdir()
    for part in (tmp_path / "disk").iterdir():
        (root / part.name).symlink_to(part)
    here, there = (open_source(name, tmp_path / n) for n in ("disk", "root"))
    assert [e.id for e in here.entries] == [e.id for e in there.entries]
    assert here.subjects() == there.subjects()


# ---- ChestX-ray14


@pytest.mark.parametrize(
    "place", ["images/images", "images-224", "images/images_001", ".", "a/b/images", "data/sub/x"]
)
def test_films_of_chestxray14_are_found_wherever_they_lie(tmp_path: Path, place: str) -> None:
    chestxray14(tmp_path)
    (tmp_path / "images").rename(tmp_path / "moved")
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    for path in (tmp_path / "moved").iterdir():
        path.rename(tmp_path / place / path.name)
    assert {e.id for e in ChestXray14().scan(tmp_path).entries} == NAMES


@pytest.mark.parametrize("ending", [".jpg", ".JPG", ".jpeg", ".PNG"])
def test_films_of_chestxray14_under_other_endings_are_read(tmp_path: Path, ending: str) -> None:
    for path in (chestxray14(tmp_path) / "images").iterdir():
        if ending != ".PNG":
            Image.open(path).convert("L").save(path, format="JPEG")
        path.rename(path.with_suffix(ending))
    data = SourceDataset(ChestXray14(), tmp_path, size=32)
    assert {s.id for s in data.studies()} == NAMES


def test_the_folder_above_chestxray14_may_be_given(tmp_path: Path) -> None:
    chestxray14(tmp_path / "a" / "b")
    for root in (tmp_path, tmp_path / "a", tmp_path / "a" / "b"):
        data = SourceDataset(ChestXray14(), root)
        assert {e.id for e in data.entries} == NAMES and set(data.subjects()) >= {"train", "test"}


def test_the_small_copy_of_a_film_is_not_preferred(tmp_path: Path) -> None:
    chestxray14(tmp_path)
    shutil.copytree(tmp_path / "images", tmp_path / "images-224" / "images-224")
    entries = ChestXray14().scan(tmp_path).entries
    assert {e.files["xray"].parent.name for e in entries} == {"images"}


def test_a_row_of_chestxray14_that_is_there_twice_is_one_study(tmp_path: Path) -> None:
    table = chestxray14(tmp_path) / "Data_Entry_2017_v2020.csv"
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[1], lines[2], ""]))
    data = SourceDataset(ChestXray14(), tmp_path)
    assert len(data) == len(ROWS) and data.found.counts() == {"repeated row": 2}
    table.write_text("\n".join([*lines, lines[1].replace("Cardiomegaly", "Mass"), ""]))
    with pytest.raises(SourceError, match=r"two rows of 00000001_000\.png say different things"):
        ChestXray14().scan(tmp_path)


# ---- MIMIC-CXR


def test_mimic_as_wget_leaves_it_is_read_with_the_reports_beside_it(tmp_path: Path) -> None:
    base = tmp_path / "physionet.org" / "files"
    mimic_cxr(base / "mimic-cxr-jpg" / "2.0.0", reports="own")
    (base / "mimic-cxr").mkdir()
    (base / "mimic-cxr-jpg" / "reports").rename(base / "mimic-cxr" / "2.0.0")
    for root in (tmp_path, tmp_path / "physionet.org", base / "mimic-cxr-jpg" / "2.0.0"):
        data = SourceDataset(MimicCXR(), root, size=32)
        texts = {e.id: e.text for e in data.entries}
        assert set(texts) == FRONTAL and texts["s50000008"] == "Impression: Mild edema."
        assert set(data.subjects()) == {"train", "val", "test"}


@pytest.mark.parametrize("inside", ["files", "files/p10", "files/p10/p10000032"])
def test_a_folder_within_mimic_is_answered_with_the_one_to_give(
    tmp_path: Path, inside: str
) -> None:
    root = mimic_cxr(tmp_path / "m")
    with pytest.raises(SourceError, match=rf"it is in {root}, so give that folder"):
        MimicCXR().scan(root / inside)


@pytest.mark.parametrize("ending", [".png", ".JPG", ".jpeg"])
def test_mimic_films_under_other_endings_are_read(tmp_path: Path, ending: str) -> None:
    root = mimic_cxr(tmp_path / "m")
    for path in sorted((root / "files").rglob("*.jpg")):
        if ending == ".png":
            Image.open(path).save(path, format="PNG")
        path.rename(path.with_suffix(ending))
    data = SourceDataset(MimicCXR(), root, size=32)
    assert {s.id for s in data.studies()} == FRONTAL


@pytest.mark.parametrize("place", ["images", "."])
def test_flat_mimic_films_are_found_by_their_id(tmp_path: Path, place: str) -> None:
    root = mimic_cxr(tmp_path / "m", reports="own")
    (root / place).mkdir(exist_ok=True)
    for path in sorted((root / "files").rglob("*.jpg")):
        path.rename(root / place / path.name)
    shutil.rmtree(root / "files")
    for path in sorted((root / place).glob("*.jpg")):
        path.with_suffix(".dcm").write_bytes(b"never mixed with the JPG beside it")
    data = SourceDataset(MimicCXR(reports=tmp_path / "reports"), root, size=32)
    assert {e.files["xray"].suffix for e in data.entries} == {".jpg"}
    assert {e.id for e in data.entries} == FRONTAL
    for entry in data.entries:
        views = STUDIES[int(entry.id[1:])][-1]
        assert views[int(entry.files["xray"].stem[9:17], 16)] in ("PA", "AP")


def r2gen_mimic(root: Path) -> None:
    """``annotation.json`` of R2Gen: one row an image, pictures below ``images``, no tables."""
    rows: dict[str, list[dict[str, object]]] = {"train": [], "val": [], "test": []}
    for study, (subject, split, _, views) in STUDIES.items():
        name = {"validate": "val"}.get(split, split)
        for k in range(len(views)):
            path = f"{folder_of(study).as_posix()}/{image_id(study, k)}.jpg"
            report = f"The lungs of study {study} are clear."
            rows[name].append(
                {
                    "id": image_id(study, k),
                    "study_id": study,
                    "subject_id": subject,
                    "report": report,
                    "image_path": [path],
                    "split": name,
                }
            )
    (root / "annotation.json").write_text(json.dumps(rows))


def test_r2gens_mimic_is_read_with_the_table_of_views_and_says_so_without(tmp_path: Path) -> None:
    root = mimic_cxr(tmp_path / "m", packed=False, reports="none")
    (root / "files").rename(root / "images")
    for name in ("split", "chexpert"):
        (root / f"mimic-cxr-2.0.0-{name}.csv").unlink()
    r2gen_mimic(root)
    data = SourceDataset(MimicCXR(), root, size=32)
    texts = {e.id: e.text for e in data.entries}
    assert set(texts) == FRONTAL | {"s50000005"}  # whose own report is empty
    assert texts["s50000002"] == "Findings: The lungs of study 50000002 are clear."
    assert data.subjects()["val"] == ("p11000011",)
    (root / "mimic-cxr-2.0.0-metadata.csv").unlink()
    with pytest.raises(
        SourceError, match=r"R2Gen's form, does not say which image is frontal: put"
    ):
        MimicCXR().scan(root)


# ---- IU X-Ray


def test_iu_may_be_given_two_levels_above(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    raw(inner)
    write_projections(inner / "indiana_projections.csv")
    wanted = [(e.id, e.files) for e in IUXRay().scan(inner).entries]
    assert [(e.id, e.files) for e in IUXRay().scan(tmp_path).entries] == wanted


@pytest.mark.parametrize("rows", ["a study", "an image"])
def test_promptmrgs_list_of_iu_is_read(tmp_path: Path, rows: str) -> None:
    listed = []
    for k in range(3):
        name = f"CXR{k}_IM-000{k}"
        for i in range(2):
            save(tmp_path / "images" / name / f"{i}.png", frontal(seed=k + i))
        paths = [f"{name}/{i}.png" for i in range(2)]
        row = {"report": f"report {k}.", "labels": [0, 1], "clip_indices": [], "split": "test"}
        if rows == "a study":
            listed.append({**row, "id": name, "image_path": paths})
        else:
            listed += [{**row, "id": f"{name}_{i}", "image_path": p} for i, p in enumerate(paths)]
    path = tmp_path / "iu_annotation_promptmrg.json"
    path.write_text(json.dumps({"test": listed}))
    data = SourceDataset(IUXRay(), tmp_path, size=32)
    assert [(e.id, e.text, len(e.extra["candidates"])) for e in data.entries] == [
        (f"CXR{k}_IM-000{k}", f"Findings: report {k}.", 2) for k in range(3)
    ]
    assert set(data.subjects()) == {"test"}
    path.write_text(json.dumps({"test": []}))
    with pytest.raises(SourceError, match=r"promptmrg\.json lists no study"):
        IUXRay().scan(tmp_path)


# ---- tables


def test_a_table_is_looked_for_some_levels_deep_the_nearest_first(tmp_path: Path) -> None:
    for place in ("a/b/c/d", "a/b/c/d/e", "p10/x", "images"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "t.csv").write_text("a\n")
    assert find_file(tmp_path, "t.csv") == tmp_path / "a" / "b" / "c" / "d" / "t.csv"
    assert find_file(tmp_path / "a", "t.csv") == tmp_path / "a" / "b" / "c" / "d" / "t.csv"
    shutil.rmtree(tmp_path / "a" / "b" / "c")
    assert find_file(tmp_path, "t.csv") is None  # folders of patients and pictures hold none


def test_a_row_that_is_longer_than_its_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id,text,label\n1,no effusion,0\n2,effusion, small,1\n")
    with pytest.raises(SourceError, match="line 3 has 4 cells and the header 3"):
        read_table(path)
    path.write_text('id;text\n1;"a; b"\n2;c, d;;\n')
    assert [r["text"] for r in read_table(path)] == ["a; b", "c, d"]
