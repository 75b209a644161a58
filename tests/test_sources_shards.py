"""Reading prepared shards: order, sharing among workers, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from replicas.dots import prepare, write_dots
from torch.utils.data import DataLoader

from medm2g_core.data.sources.base import SourceError
from medm2g_core.data.sources.shards import read_shards
from medm2g_core.data.volumes import FileError


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 studies of 12 subjects."""
    return write_dots(tmp_path_factory.mktemp("dots") / "tree")


@pytest.fixture(scope="module")
def straight(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree prepared in one go, in this process. Not to be changed by tests."""
    out = tmp_path_factory.mktemp("straight") / "out"
    prepare(tree, out)
    return out


@pytest.fixture
def out(tree: Path, tmp_path: Path) -> Path:
    """The same, to be damaged."""
    prepare(tree, tmp_path / "out")
    return tmp_path / "out"


def test_loader_workers_share_the_shards(straight: Path) -> None:
    loader = DataLoader(read_shards(straight, "train", 3), batch_size=None, num_workers=2)
    ids = Counter(study.id for study in loader)
    assert set(ids.values()) == {1} and len(ids) == len(read_shards(straight, "train"))


def test_shuffled_epochs_differ_and_repeat(straight: Path) -> None:
    data = read_shards(straight, "train", 7, buffer=4)
    first = [s.id for s in data]
    assert [s.id for s in data] == first
    assert first != [s.id for s in read_shards(straight, "train")]
    data.set_epoch(1)
    assert [s.id for s in data] != first and sorted(s.id for s in data) == sorted(first)


def repack(out: Path, change: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None]) -> None:
    """Change the first shard's members and make the manifest agree, as an attacker can."""
    path = out / "train-00000.tar"
    with tarfile.open(path) as tar:
        parts = [(m, tar.extractfile(m).read()) for m in tar]
    change(parts)
    with tarfile.open(path, "w") as tar:
        for member, data in parts:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data))
    sign(out)


def sign(out: Path) -> None:
    """Give the first shard's size and hash to the manifest."""
    path = out / "train-00000.tar"
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    record = next(r for r in manifest["shards"] if r["name"] == path.name)
    record |= {
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    (out / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["../../evil.meta.json", "/etc/x.meta.json", "..\\evil.ct.npy", "a/b.ct.npy", "x.py"]
)
def test_names_that_do_not_belong_are_refused(out: Path, name: str) -> None:
    repack(out, lambda parts: parts.append((tarfile.TarInfo(name), b"{}")))
    with pytest.raises(FileError, match="does not belong in a shard"):
        list(read_shards(out, "train"))


def test_links_are_refused(out: Path) -> None:
    link = tarfile.TarInfo("a.meta.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    repack(out, lambda parts: parts.append((link, b"")))
    with pytest.raises(FileError, match="does not belong in a shard"):
        list(read_shards(out, "train"))


def test_pickled_arrays_are_refused(out: Path) -> None:
    pickled = io.BytesIO()
    np.save(pickled, np.array([print], dtype=object), allow_pickle=True)

    def change(parts: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        at = next(i for i, (m, _) in enumerate(parts) if m.name.endswith(".npy"))
        parts[at] = (parts[at][0], pickled.getvalue())

    repack(out, change)
    with pytest.raises(FileError, match="damaged"):
        list(read_shards(out, "train"))


def test_a_claim_of_more_bytes_than_a_study_has_is_refused(out: Path) -> None:
    repack(out, lambda parts: parts.insert(0, (tarfile.TarInfo("big.ct.npy"), b"\0" * 5000)))
    with pytest.raises(FileError, match="claims 5000 bytes"):
        list(read_shards(out, "train"))


def test_a_manifest_that_points_elsewhere_is_refused(out: Path) -> None:
    text = (out / "manifest.json").read_text(encoding="utf-8")
    (out / "manifest.json").write_text(
        text.replace("train-00000.tar", "../train-00000.tar"), encoding="utf-8"
    )
    with pytest.raises(FileError, match="shard name"):
        read_shards(out, "train")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": 1}', '{"format": 1, "shards": [{}], "parameters": {}}']
)
def test_a_damaged_manifest_is_said_to_be_so(out: Path, text: str) -> None:
    (out / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises((FileError, SourceError), match=r"manifest\.json"):
        read_shards(out, "train")


def test_a_cut_shard_is_an_error_and_not_a_shorter_one(out: Path) -> None:
    path = out / "train-00000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="cut off"):
        list(read_shards(out, "train"))
    for cut in range(
        512, len(whole) - 10240, 512
    ):  # even where the manifest agrees, at every block
        path.write_bytes(whole[:cut])
        sign(out)
        with pytest.raises(FileError, match=r"damaged|studies, and"):
            list(read_shards(out, "train"))


def test_changed_bytes_are_noticed_before_the_first_study(out: Path) -> None:
    path = out / "train-00000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileError, match="SHA-256"):
        next(iter(read_shards(out, "train")))


def test_a_lacking_split_or_folder_is_named(tree: Path, tmp_path: Path) -> None:
    prepare(tree, tmp_path / "out", shares=(1.0, 0.0, 0.0))
    with pytest.raises(SourceError, match="no studies in split 'val'; it has train"):
        read_shards(tmp_path / "out", "val")
    with pytest.raises(SourceError, match=r"no manifest\.json"):
        read_shards(tmp_path, "train")
    with pytest.raises(SourceError, match="not one of train, val, test"):
        read_shards(tmp_path / "out", "validation")
