"""Reading of MetaImage and NRRD by ITK, and of what ITK does not check itself."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from medm2g_core.data.volumes import MAX_VOXELS, FileError, Volume, blame, named, oriented

__all__ = ["read_itk"]


def read_itk(path: Path, kind: str) -> Volume:
    """A MetaImage or NRRD file as a volume.

    Args:
        kind: ``"metaimage"`` or ``"nrrd"``.

    Raises:
        FileError: broken, with less data than its header says, or no image of one real number a
            voxel.
    """
    import SimpleITK as sitk

    if kind == "nrrd":
        _check_nrrd_lines(path)
    with blame(path, f"reading {kind}"), _plain_name(path) as name:
        reader = sitk.ImageFileReader()
        reader.SetImageIO("MetaImageIO" if kind == "metaimage" else "NrrdImageIO")
        reader.SetFileName(name)
        reader.ReadImageInformation()
        size = [int(n) for n in reader.GetSize()]
        while len(size) > 3 and size[-1] == 1:
            size = size[:-1]
        if len(size) > 3:
            raise FileError(f"{path}: {len(size)}-D image of size {size}; give one 3-D volume")
        if reader.GetNumberOfComponents() != 1:
            raise FileError(
                f"{path}: {reader.GetNumberOfComponents()} values a voxel (colour or vector);"
                " needed one"
            )
        if not size or min(size) < 1:
            raise FileError(f"{path}: an image of size {size} holds nothing")
        if int(np.prod(size, dtype=np.int64)) > MAX_VOXELS:
            raise FileError(f"{path}: size {size} is more than {MAX_VOXELS} voxels")
        if kind == "metaimage":
            _check_meta_length(path, size)
        image = reader.Execute()
        dim = image.GetDimension()
        array = sitk.GetArrayFromImage(image).astype(np.float32)  # z, y, x
        direction = np.array(image.GetDirection()).reshape(dim, dim)
        spacing = np.array(image.GetSpacing())
    array = array.reshape(array.shape[-3:])
    axes = np.eye(3)
    n = min(dim, 3)
    axes[:n, :n] = direction[:n, :n] * spacing[:n]
    array = array.transpose()  # x, y, z; a flat image has none of the last
    if array.ndim == 2:
        array = array[:, :, None]
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ axes  # ITK's LPS to RAS
    volume = named(path, lambda: oriented(array, affine, kind, []))
    volume.facts = {"FileName": path.name}
    if not _states_spacing(path, kind):  # ITK then counts 1 mm
        volume.spacing_mm = (float("nan"),) * 3
        volume.acquired = ""
    return volume


NRRD_LINE = 900
"""Bytes of a field of an NRRD header. ITK writes its complaint about a longer one past the end of a
buffer (of some 1,000), which ends the process. Comments and keys of the user's may be longer."""


def _check_nrrd_lines(path: Path) -> None:
    """Refuse an NRRD header with a field that ITK cannot take."""
    with path.open("rb") as stream:
        for line in stream:
            line = line.strip(b"\r\n")
            if not line:
                return  # the data follow
            own = line.startswith((b"#", b"content:")) or b":=" in line
            if len(line) > NRRD_LINE and not own:
                raise FileError(
                    f"{path}: a line of {len(line)} bytes in the NRRD header"
                    f" ({line[:20].decode('latin-1')!r} ...); the file is broken"
                )


@contextmanager
def _plain_name(path: Path) -> Iterator[str]:
    """A name of the file that ITK can open: it takes no bytes that are no UTF-8, so such a folder
    is reached through a link."""
    if _is_utf8(str(path)):
        yield str(path)
        return
    if not _is_utf8(path.name):
        raise FileError(
            f"{path}: its name holds bytes that are no UTF-8, which ITK cannot open; rename it"
        )
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "data"
        link.symlink_to(path.parent.absolute(), target_is_directory=True)
        yield str(link / path.name)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _states_spacing(path: Path, kind: str) -> bool:
    """Whether a MetaImage or NRRD header says how large its voxels are."""
    with path.open("rb") as stream:
        head = stream.read(_HEADER_BYTES)
    if kind == "metaimage":
        head = head.partition(b"ElementDataFile")[0]
        return b"ElementSpacing" in head or b"ElementSize" in head
    head = head.partition(b"\n\n")[0].partition(b"\r\n\r\n")[0].lower()
    return b"space directions" in head or b"spacings" in head


_HEADER_BYTES = 1 << 16
_ELEMENT_BYTES = {
    "CHAR": 1,
    "SHORT": 2,
    "INT": 4,
    "LONG": 4,
    "LONG_LONG": 8,
    "FLOAT": 4,
    "DOUBLE": 8,
}


def _check_meta_length(path: Path, size: list[int]) -> None:
    """Refuse a MetaImage with less data than its header says: ITK would fill the rest with zeros
    and only print."""
    whole = path.read_bytes()
    head, _, rest = whole.partition(b"ElementDataFile")
    pairs = (line.split("=", 1) for line in head.decode("latin-1").splitlines() if "=" in line)
    found = {key.strip(): value.strip() for key, value in pairs}
    first_line, _, data = rest.partition(b"\n")
    name = first_line.decode("latin-1").strip(" =\r\t")
    if "%" in name or name.startswith("LIST"):
        return  # one file a slice: ITK itself complains of a missing one
    if name.upper() != "LOCAL":
        raw = path.parent / name
        if not raw.is_file():
            raise FileError(
                f"{path}: its data file {name!r} is missing; keep the .mhd and the .raw in one"
                " folder"
            )
        data = raw.read_bytes()
    width = _ELEMENT_BYTES.get(
        found.get("ElementType", "").removeprefix("MET_").removeprefix("U"), 1
    )
    need = width * int(np.prod(size, dtype=np.int64))
    have = len(data)
    if found.get("CompressedData", "False").lower() == "true":
        have = len(
            zlib.decompressobj(wbits=47).decompress(data, need)
        )  # 47: zlib or gzip, told by the header
    if have < need:
        raise FileError(
            f"{path}: the header promises {need} bytes of data and there are {have}: the file is"
            " truncated"
        )
