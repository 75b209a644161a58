"""Preparation of a tree that was changed since: what depends on a changed file is made again, and
nothing else."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from replicas import acdc, brats2020, gold_atlas, sliver07
from replicas.dots import prepare, write_dots

from medm2g_core.data.sources import depends
from medm2g_core.data.sources.acdc import ACDC
from medm2g_core.data.sources.base import Source
from medm2g_core.data.sources.brats2020 import BraTS2020
from medm2g_core.data.sources.chestxray14 import ChestXray14
from medm2g_core.data.sources.gold_atlas import GoldAtlas
from medm2g_core.data.sources.prepare import prepare_source
from medm2g_core.data.sources.shards import read_shards
from medm2g_core.data.sources.sliver07 import SLIVER07


def made(out: Path, run: Callable[[], object]) -> set[str]:
    """The shards that a call makes again."""
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    time.sleep(0.02)
    run()
    return {p.name for p in out.glob("*.tar") if p.stat().st_mtime_ns != before.get(p.name)}


def keeping_size_and_date(path: Path, content: bytes) -> None:
    """Another content under the same name, size and date, as a copying program leaves it."""
    status = path.stat()
    assert len(content) == status.st_size and content != path.read_bytes()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_another_picture_of_the_same_size_and_date_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(depends, "_RACY_NS", 0)  # so that the times are trusted at once
    tree, out = write_dots(tmp_path / "tree"), tmp_path / "out"
    prepare(tree, out)
    assert made(out, lambda: prepare(tree, out)) == set()
    path = next((tree / "pictures").rglob("*.npy"))
    array = np.load(path)
    array[:] = 0.25
    content = path.read_bytes()[: -array.nbytes] + array.tobytes()
    keeping_size_and_date(path, content)
    assert len(made(out, lambda: prepare(tree, out))) == 1
    name = f"{path.parent.name}/a"
    study = next(s for p in ("train", "val", "test") for s in read_shards(out, p) if s.id == name)
    assert torch.equal(next(iter(study.images.values())), torch.full((1, 16, 16), 0.25))


def test_a_touched_tree_is_read_again_and_nothing_is_made(tmp_path: Path) -> None:
    tree, out = write_dots(tmp_path / "tree"), tmp_path / "out"
    prepare(tree, out)
    for path in (tree / "pictures").rglob("*.npy"):
        path.touch()
    assert made(out, lambda: prepare(tree, out)) == set()
    for path in out.glob(".*.inputs.json"):
        path.write_text("damaged")
    assert made(out, lambda: prepare(tree, out)) == set()


def test_unchanged_files_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, out = write_dots(tmp_path / "tree"), tmp_path / "out"
    monkeypatch.setattr(depends, "_RACY_NS", 0)
    prepare(tree, out)
    read: list[Path] = []

    def spy(path: Path) -> str:
        read.append(path)
        return "0"

    monkeypatch.setattr(depends, "file_sha256", spy)
    assert made(out, lambda: prepare(tree, out)) == set() and not read
    assert json.loads(next(out.glob(".train-*.inputs.json")).read_text())


def first_nifti(tree: Path, name: str) -> Path:
    return sorted(tree.rglob(name))[0]


@pytest.mark.parametrize(
    ("source", "write", "name"),
    [
        (BraTS2020(drop_lowest=120), brats2020.write_brats2020, "*_seg.nii.gz"),
        (BraTS2020(drop_lowest=120), brats2020.write_brats2020, "*_t2.nii.gz"),
        (ACDC(), acdc.write_acdc, "*_gt.nii.gz"),
        (SLIVER07(), sliver07.write_sliver07, "liver-seg001.raw"),
        (SLIVER07(), sliver07.write_sliver07, "liver-orig001.raw"),
        (GoldAtlas(), gold_atlas.build, "*.zip"),
    ],
    ids=["seg", "t2", "gt", "raw of a seg", "raw", "zip"],
)
def test_a_replaced_file_of_any_kind_makes_its_shard_again(
    tmp_path: Path, source: Source, write: Callable[[Path], Path], name: str
) -> None:
    write(tmp_path / "tree")
    tree, out = tmp_path / "tree", tmp_path / "out"

    def run() -> object:
        options = {"size": 24, "workers": 0, "shard_size": 5, "allow_missing": True}
        return prepare_source(source, tree, out, **options)

    run()
    assert made(out, run) == set()
    path = first_nifti(tree, name)
    data = path.read_bytes()
    # Neither the last bytes (a checksum) nor the first (a header): a change within the packed data
    # may damage it, which is another content as well.
    at = len(data) // 2
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    again = made(out, run)
    assert again and len(again) < len(list(out.glob("*.tar")))


def test_the_contrast_that_is_never_read_does_not_count(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for k in range(3):
        brats2020.case(tree / f"BraTS20_Training_00{k}")
    source, out = BraTS2020(drop_lowest=126), tmp_path / "out"

    def run() -> object:
        return prepare_source(source, tree, out, size=24, workers=0, shard_size=3)

    run()
    for path in tree.rglob("*_t1ce.nii.gz"):
        shutil.copy(path.with_name(path.name.replace("t1ce", "t1")), path)
    assert made(out, run) == set()


def test_the_code_of_a_shard_is_all_that_its_reader_imports(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: set[str] = set()

    def spy(path: Path) -> bytes:
        read.add(path.name)
        return path.open("rb").read()

    depends._imported.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", spy)
        films = depends.code_digest(ChestXray14())
    assert {"chestxray14.py", "shards.py", "base.py", "radiographs.py"} <= read
    assert {"pictures.py", "dicom_pixels.py", "volumes.py", "streams.py"} <= read  # further down
    assert not {"gold_atlas.py", "registration.py", "cohort.py"} & read
    assert films == depends.code_digest(ChestXray14()) != depends.code_digest(ACDC())


def test_another_option_of_the_data_set_makes_all_shards_again(tmp_path: Path) -> None:
    acdc.write_acdc(tmp_path / "tree")
    out = tmp_path / "out"

    def run(source: Source) -> object:
        return prepare_source(
            source, tmp_path / "tree", out, size=24, workers=0, shard_size=20, allow_missing=True
        )

    run(ACDC())
    assert made(out, lambda: run(ACDC())) == set()
    assert made(out, lambda: run(ACDC(fov_mm=150.0))) == {p.name for p in out.glob("*.tar")}
