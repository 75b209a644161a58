"""Preparation of a data set as shards: their content, again after an interruption, scripts."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from replicas.dots import Dots, prepare, write_dots

from medm2g_core.data.sources import SOURCES, script
from medm2g_core.data.sources import prepare as prepare_module
from medm2g_core.data.sources.base import SPLITS, Expectation, SourceDataset, SourceError
from medm2g_core.data.sources.prepare import prepare_source
from medm2g_core.data.sources.shards import members, read_manifest, read_shards, study_key

TESTS = Path(__file__).parent
BROKEN = "dot.003/a"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 studies of 12 subjects, one of them broken."""
    return write_dots(tmp_path_factory.mktemp("dots") / "tree", broken=(BROKEN,))


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


def content(out: Path) -> dict[str, bytes]:
    """All that a preparation gives; hidden files are its own."""
    return {p.name: p.read_bytes() for p in out.iterdir() if not p.name.startswith(".")}


def every(out: Path) -> list:
    return [study for split in SPLITS for study in read_shards(out, split)]


# ---- preparing ----


def test_study_to_shard_to_study(tree: Path, straight: Path) -> None:
    direct = {s.id: s for s in SourceDataset(Dots(), tree, size=16).studies()}
    back = {s.id: s for s in every(straight)}
    assert back.keys() == direct.keys()
    assert {s.streams for s in back.values()} == {
        ("text", "xray", "ct"),
        ("ct",),
        ("text",),
    }  # what lacks stays away
    for name, study in direct.items():
        other = back[name]
        assert other.streams == study.streams and other.text == study.text
        assert (other.subject, other.split, other.notes) == (
            study.subject,
            study.split,
            study.notes,
        )
        assert (other.units, other.orientation, other.age) == (
            study.units,
            study.orientation,
            study.age,
        )
        assert (
            other.labels["dot"] == 1
            and other.labels["unsure"] == -1
            and math.isnan(other.labels["nobody_said"])
        )
        assert other.spacing_mm[0] == 2.8 and math.isnan(other.spacing_mm[1])
        for stream, image in study.images.items():
            assert other.images[stream].dtype == torch.float32
            torch.testing.assert_close(other.images[stream], image, atol=2.5e-4, rtol=0)


def test_unknown_labels_are_null_and_never_zero(straight: Path) -> None:
    with tarfile.open(straight / "train-00000.tar") as tar:
        name = next(n for n in tar.getnames() if n.endswith(".meta.json"))
        text = tar.extractfile(name).read().decode()
    assert '"nobody_said": null' in text and "NaN" not in text


def test_members_are_what_webdataset_expects(straight: Path) -> None:
    """Its rule: the key ends at the first dot, the members of one key are neighbours, and no key
    comes twice."""
    for path in straight.glob("*.tar"):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            assert all(
                (m.mtime, m.uid, m.gid, m.uname, m.isreg()) == (0, 0, 0, "", True) for m in tar
            )
        keys = [n.split(".", 1)[0] for n in names]
        runs = [k for i, k in enumerate(keys) if i == 0 or keys[i - 1] != k]
        assert len(runs) == len(set(runs))
        assert {n.split(".", 1)[1] for n in names} <= {
            "ct.npy",
            "xray.npy",
            "report.txt",
            "meta.json",
        }


def test_the_webdataset_library_reads_the_same(straight: Path) -> None:
    webdataset = pytest.importorskip(
        "webdataset", reason="the webdataset library is not installed; nothing needs it"
    )
    urls = [path.as_posix() for path in sorted(straight.glob("train-*.tar"))]
    theirs = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    ours = list(read_shards(straight, "train"))
    assert [s.id for s in ours] == [s["meta.json"]["id"] for s in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert a.text == b.get("report.txt")
        assert all(
            np.array_equal(x.numpy(), b[f"{n}.npy"].astype(np.float32)) for n, x in a.images.items()
        )


def test_no_subject_in_two_splits(straight: Path) -> None:
    where: dict[str, set[str]] = {}
    for study in every(straight):
        where.setdefault(study.subject, set()).add(study.split)
    assert all(len(splits) == 1 for splits in where.values())
    listed = read_manifest(straight)["subjects"]
    assert {s: sorted(n for n, w in where.items() if w == {s}) for s in SPLITS} == listed


def test_a_publisher_s_split_with_a_subject_on_both_sides_is_refused(tmp_path: Path) -> None:
    tree = write_dots(tmp_path / "tree", 4, 2, splits=("train", "test"))
    with pytest.raises(SourceError, match="subject p00 is in train and in test"):
        prepare(tree, tmp_path / "out", source=Dots(official=True))
    assert not (tmp_path / "out").exists()


def test_a_broken_study_is_counted_and_the_rest_is_there(tree: Path, straight: Path) -> None:
    skips = read_manifest(straight)["skips"]
    assert skips["unreadable file"]["count"] == 1
    example = skips["unreadable file"]["examples"][0]
    assert example["where"] == BROKEN and f"pictures/{BROKEN}.npy" in example["why"].replace(
        "\\", "/"
    )
    assert str(tree) not in (straight / "manifest.json").read_text(
        encoding="utf-8"
    )  # another on every machine
    assert len(every(straight)) == 23


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    tree = write_dots(tmp_path / "tree", 2, 1, broken=("dot.000/a", "dot.001/a"))
    with pytest.raises(SourceError, match=r"not one study could be read.*dot\.000/a"):
        prepare(tree, tmp_path / "out")


def test_a_fault_of_the_program_stops_and_names_the_study(tree: Path, tmp_path: Path) -> None:
    class Faulty(Dots):
        def read(self, entry, size):  # type: ignore[no-untyped-def]
            raise ZeroDivisionError("division by zero")

    with pytest.raises(SourceError, match=r"study dot\.000/a: ZeroDivisionError"):
        prepare(tree, tmp_path / "out", source=Faulty())


def test_a_study_read_as_another_subject_s_is_refused(tree: Path, tmp_path: Path) -> None:
    class Mixed(Dots):
        def read(self, entry, size):  # type: ignore[no-untyped-def]
            return replace(super().read(entry, size), subject="p11")

    with pytest.raises(
        SourceError, match=r"study dot\.000/a: .* read as study dot\.000/a of subject p11"
    ):
        prepare(tree, tmp_path / "out", source=Mixed())


def test_a_picture_of_another_size_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"\(1, 20, 20\)\}, needed \(1, 32, 32\)"):
        prepare(tree, tmp_path / "out", size=32)


def test_missing_parts_stop_before_any_work_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Incomplete(Dots):
        def scan(self, root):  # type: ignore[no-untyped-def]
            return replace(super().scan(root), table=(Expectation.count("films", 7, 0),))

    tree = write_dots(tmp_path / "tree", 3, 1)
    with pytest.raises(SourceError, match="films: found 0, published 7"):
        prepare(tree, tmp_path / "out", source=Incomplete())
    assert "missing" in capsys.readouterr().out and not (tmp_path / "out").exists()
    assert prepare(tree, tmp_path / "out", source=Incomplete(), allow_missing=True)["complete"]


def test_another_number_than_published_is_surprising_and_goes_on(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tree, tmp_path / "out", source=Dots(expected=99))
    assert "surprising  studies: found 24, published 99" in capsys.readouterr().out


def test_dry_run_writes_nothing(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tree.rglob("*"))
    prepare(tree, tmp_path / "out", dry_run=True)
    assert "24 studies would make 6 shards" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [] and sorted(tree.rglob("*")) == before


# ---- again, and after an interruption ----


def test_a_second_run_changes_nothing(tree: Path, out: Path) -> None:
    def state() -> dict[str, tuple[bytes, int]]:
        shown = [p for p in out.iterdir() if not p.name.startswith(".")]
        return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in shown}

    before = state()
    again = prepare(tree, out)
    assert state() == before
    assert again == json.loads(before["manifest.json"][0])


def test_killed_in_the_middle_and_resumed_gives_the_bytes_of_one_go(
    tree: Path, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code = (
        "from replicas.dots import Dots\nfrom medm2g_core.data.sources.prepare import"
        f" prepare_source\nprepare_source(Dots(dies_at='dot.015/a'), {str(tree)!r}, {str(out)!r},"
        " size=16, workers=0, shard_size=5)\n"
    )
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    killed = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": paths}, capture_output=True
    )
    assert killed.returncode == 9, killed.stderr.decode()
    assert list(out.glob(".*.tmp"))  # the half shard, not under its own name
    with pytest.raises(SourceError, match="interrupted"):
        read_shards(out, "train")
    first = out / "train-00000.tar"
    kept = first.stat().st_mtime_ns
    prepare(tree, out)
    assert content(out) == content(straight)
    assert first.stat().st_mtime_ns == kept


def test_processes_give_the_bytes_of_this_process(
    tree: Path, straight: Path, tmp_path: Path
) -> None:
    prepare(tree, tmp_path / "out", workers=2)
    assert content(tmp_path / "out") == content(straight)


def test_a_killed_worker_is_an_error_that_says_what_to_do(
    tree: Path, straight: Path, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match="fewer --workers"):
        prepare(tree, tmp_path / "out", workers=2, source=Dots(dies_at="dot.015/a"))
    prepare(tree, tmp_path / "out")
    assert content(tmp_path / "out") == content(straight)


@pytest.mark.parametrize("damage", ["half", "other bytes", "gone"])
def test_a_damaged_shard_is_made_again(tree: Path, straight: Path, out: Path, damage: str) -> None:
    path = out / "train-00001.tar"
    whole = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "half" else whole[:-1] + b"x")
    prepare(tree, out)
    assert content(out) == content(straight)


def test_a_changed_file_makes_its_shard_again_and_no_other(tmp_path: Path) -> None:
    tree, out = write_dots(tmp_path / "tree", broken=(BROKEN,)), tmp_path / "out"
    prepare(tree, out)
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    np.save(tree / "pictures" / f"{BROKEN}.npy", np.zeros((20, 20), np.float32))  # downloaded again
    assert "unreadable file" not in prepare(tree, out)["skips"]
    changed = {p.name for p in out.glob("*.tar") if p.stat().st_mtime_ns != before[p.name]}
    assert len(changed) == 1 and len(every(out)) == 24


def test_fewer_studies_than_before_leave_no_old_shard(tmp_path: Path) -> None:
    tree, out = write_dots(tmp_path / "tree", 12, 2), tmp_path / "out"
    prepare(tree, out)
    table = (tree / "studies.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tree / "studies.csv").write_text("".join(table[:9]), encoding="utf-8")
    manifest = prepare(tree, out)
    assert {p.name for p in out.glob("*.tar")} == {r["name"] for r in manifest["shards"]}
    assert len(every(out)) == 8


def test_moving_the_tree_changes_nothing(tree: Path, straight: Path, tmp_path: Path) -> None:
    moved = write_dots(tmp_path / "elsewhere", broken=(BROKEN,))
    prepare(moved, tmp_path / "out")
    assert content(tmp_path / "out") == content(straight)


def test_retry_makes_shards_with_unreadable_files_again(tree: Path, out: Path) -> None:
    before = {p.name: p.stat().st_mtime_ns for p in out.glob("*.tar")}
    with_skips = {r["name"] for r in prepare(tree, out, retry=True)["shards"] if r["skipped"]}
    assert {
        p.name for p in out.glob("*.tar") if p.stat().st_mtime_ns != before[p.name]
    } == with_skips


@pytest.mark.parametrize("options", [{"size": 32}, {"seed": 1}, {"limit": 3}, {"shard_size": 6}])
def test_another_preparation_is_never_overwritten(
    tree: Path, straight: Path, options: dict[str, int]
) -> None:
    before = content(straight)
    with pytest.raises(SourceError, match="choose another folder"):
        prepare(tree, straight, **options)
    assert content(straight) == before


def test_unsuitable_folders_are_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="inside the data set's own folder"):
        prepare(tree, tree / "out")
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(SourceError, match="not empty"):
        prepare(tree, tmp_path)
    with pytest.raises(SourceError, match=r"expected like this:\ndots/"):
        prepare(tmp_path, tmp_path.parent / "out")
    with pytest.raises(SourceError, match="unknown data set 'dogs'"):
        prepare_source("dogs", tree, tmp_path / "out")


def test_limit_is_in_subjects(tree: Path, tmp_path: Path) -> None:
    manifest = prepare(tree, tmp_path / "out", limit=3)
    assert sum(len(names) for names in manifest["subjects"].values()) == 3


def test_keys_hold_no_dot_and_stay_apart() -> None:
    names = ["a", "a.b", "a/b", "a b", "ä", "x" * 200, "x" * 199 + "y", "../../a"]
    keys = [study_key(name) for name in names]
    assert len(set(keys)) == len(keys)
    assert all(len(k) < 80 and not set(k) & set("./\\ ") for k in keys)


# ---- the scripts ----


def test_script_prepares_and_reports_errors(
    tree: Path,
    straight: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(prepare_module, "SOURCES", {"dots": Dots()})
    out = tmp_path / "out"
    arguments = [
        str(tree),
        "--out",
        str(out),
        "--size",
        "16",
        "--workers",
        "0",
        "--shard-size",
        "5",
    ]
    assert script.main("dots", "Dots.", arguments) == 0
    assert content(out) == content(straight)
    assert script.main("dots", "Dots.", [str(tmp_path), "--out", str(tmp_path.parent / "no")]) == 2
    assert "error: " in capsys.readouterr().err


def test_scripts_name_their_data_set_and_say_how_to_get_it() -> None:
    scripts = {
        p.stem.removeprefix("prepare_"): p
        for p in (TESTS.parent / "data_scripts").glob("prepare_*.py")
    }
    del scripts["embedded"]  # fetches its data itself
    assert set(SOURCES) == set(scripts)
    for name, path in scripts.items():
        text = path.read_text(encoding="utf-8")
        assert f'main("{name}", __doc__)' in text and "http" in text


def test_a_study_gives_the_same_bytes_twice(tree: Path) -> None:
    study = SourceDataset(Dots(), tree, size=16)[0]
    assert members(study) == members(study)
