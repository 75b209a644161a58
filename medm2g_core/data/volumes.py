"""Reading of medical image formats into one array with known directions: the lower half of
`medm2g_core.data.files`.

The format is told from the bytes, never from the file name. Every reader ends in a `Volume`, whose
axes always run from head to feet, from front to back, and from the patient's right to the patient's
left, so that a plain index gives a slice in radiological display convention.
"""

from __future__ import annotations

import gzip
import io
import logging
import re
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import (
    apply_orientation,
    axcodes2ornt,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

from medm2g_core.data.headers import sidecar_facts

__all__ = [
    "KNOWN_FORMATS",
    "MAX_VOXELS",
    "SYNTHETIC_MARK",
    "FileError",
    "Volume",
    "blame",
    "first_bytes",
    "named",
    "one_sentence",
    "oriented",
    "read_nifti",
    "sniff",
]

PLANES = ("axial", "coronal", "sagittal")
"""Of a slice along each axis of a volume (S, A, R)."""

SYNTHETIC_MARK = "SYNTHETIC - NOT FOR DIAGNOSIS"
"""Stands in every file that this project writes, and tells such a file when it is read again."""

MAX_VOXELS = 600_000_000
"""Larger arrays are refused before they are read (2.4 GB as float32)."""

LONGEST = 580
"""Letters of a message: what is quoted from a broken header may have no end."""

VOXEL_MM = (1e-3, 1e3)
"""Smaller or larger voxels are no patient's: the header is broken."""

_NIFTI_FATAL = 40
"""nibabel's severity from which a header is not used: unknown data type, no image."""

LONG_QUATERNION = 1.05
"""A NIfTI quaternion's vector part is at most 1 long but for rounding. Up to this length it is made
1; a longer one is broken."""

MM_OF_UNIT = {"meter": 1000.0, "micron": 0.001}
"""NIfTI's units of length other than mm."""

KNOWN_FORMATS = "DICOM, NIfTI (.nii, .nii.gz), MetaImage (.mhd, .mha), NRRD, PNG and JPEG"


class FileError(ValueError):
    """A file cannot be read as the stream that was asked for, or cannot be written; one sentence
    says why."""

    def __init__(self, message: str) -> None:
        super().__init__(one_sentence(message))


def one_sentence(message: str) -> str:
    """A message without the line breaks and control characters that a quoted value may hold, cut at
    `LONGEST` letters."""
    plain = re.sub(r"[\x00-\x1f\x7f]+", " ", message)
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 4] + " ..."


@dataclass
class Volume:
    """An image with known axes.

    Attributes:
        array: float32. A volume is (S, A, R): axis 0 from head to feet, axis 1 from front to back,
            axis 2 from the patient's right to the patient's left. A flat picture without directions
            (PNG, radiograph) is (rows, columns) as displayed. Values are as the format defines them
            (rescaled; HU for CT).
        spacing_mm: spacing along each axis of `array`; NaN where the file does not tell.
        kind: ``"dicom"``, ``"nifti"``, ``"metaimage"``, ``"nrrd"``, ``"png"`` or ``"jpeg"``.
        notes: what was done or found, in words.
        modality: DICOM Modality, or ``""``.
        acquired: plane of acquisition, ``"axial"``, ``"coronal"``, ``"sagittal"``, or ``""`` if
            flat or isotropic.
        tags: marks of this project's own files (``stream``, ``plane``, ``window``), else empty.
        window: (low, high) display window in the units of `array`, if the file has one.
        inverted: values stand for MONOCHROME1, so large is dark.
        aspect: height over width of a pixel of a flat picture whose spacing is not known.
        facts: what the header says of the picture: DICOM keyword -> value, see
            `medm2g_core.data.headers`; besides ``FileName``.
        table: of a folder: its series and how well each fits the stream, a line each.
    """

    array: np.ndarray
    spacing_mm: tuple[float, ...]
    kind: str
    notes: list[str] = field(default_factory=list)
    modality: str = ""
    acquired: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    window: tuple[float, float] | None = None
    inverted: bool = False
    aspect: float = 1.0
    facts: dict[str, Any] = field(default_factory=dict)
    table: list[str] = field(default_factory=list)


@contextmanager
def blame(path: Path, doing: str) -> Iterator[None]:
    """Turn whatever a parser raises on a bad file into a `FileError`, and silence its warnings."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except FileError:
        raise
    except (
        Exception
    ) as error:  # parsers raise nearly anything on bad bytes: zlib.error, KeyError, ...
        detail = (str(error).strip().splitlines() or [type(error).__name__])[-1][:160]
        raise FileError(
            f"{path}: {doing} failed; the file is probably corrupt or truncated: copy or export it"
            f" again ({detail})"
        ) from error


def sniff(path: Path) -> str:
    """Format of a file from its first bytes: a `Volume.kind`, or ``""`` if unknown."""
    head, packed = first_bytes(path)
    kind = _kind(head)
    if packed and kind not in ("nifti", ""):
        raise FileError(
            f"{path}: {kind} packed with gzip; unpack it first (only NIfTI is read packed)"
        )
    return kind


def first_bytes(path: Path) -> tuple[bytes, bool]:
    """The first bytes of a file, unpacked if it is packed with gzip, and whether it is.

    Raises:
        FileError: empty, or cannot be read.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
        packed = head[:2] == b"\x1f\x8b"
        if packed:
            with gzip.open(path) as unpacked:
                head = unpacked.read(4096)
    except (OSError, EOFError, zlib.error) as error:
        raise FileError(f"{path}: cannot be read ({error})") from error
    if not head:
        raise FileError(f"{path}: the file is empty")
    return head, packed


def _kind(head: bytes) -> str:
    if head[128:132] == b"DICM":
        return "dicom"
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if head[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if head[:4] == b"NRRD":
        return "nrrd"
    if b"ElementDataFile" in head and b"NDims" in head:
        return "metaimage"
    if head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0"):
        return "nifti"
    for order in (
        "little",
        "big",
    ):  # DICOM without the preamble begins with a tag of group 0002 or 0008
        group, element = (int.from_bytes(head[i : i + 2], order) for i in (0, 2))
        if (group == 2 and element <= 0x16) or (
            group == 8 and element in (0x00, 0x01, 0x05, 0x08, 0x16, 0x18)
        ):
            return "dicom"
    return ""


def oriented(array: np.ndarray, affine: np.ndarray, kind: str, notes: list[str]) -> Volume:
    """Turn an array (i, j, k) with its 4x4 affine to RAS+ millimetres into a `Volume`.

    Axes are permuted and flipped to the nearest patient axes, never interpolated.
    """
    shape = array.shape
    if not np.isfinite(affine).all():
        raise FileError("the orientation matrix holds NaN or infinite values")
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if not ((VOXEL_MM[0] <= steps) & (steps <= VOXEL_MM[1])).all():
        raise FileError(f"voxels of {_mm(steps)}; the header is broken")
    ornt = io_orientation(affine)
    if np.isnan(ornt).any():
        raise FileError("the orientation matrix is degenerate: an axis has no direction")
    transform = ornt_transform(ornt, axcodes2ornt(("L", "P", "I")))
    array = apply_orientation(array, transform)
    affine = affine @ inv_ornt_aff(transform, shape)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    tilt = np.degrees(np.arccos(np.clip(np.abs(np.diag(affine[:3, :3])) / spacing, 0, 1))).max()
    if tilt > 5:
        notes.append(
            f"acquired {tilt:.0f} degrees oblique: shown along the nearest axes, not resampled"
        )
    array = np.ascontiguousarray(array.transpose(2, 1, 0), dtype=np.float32)
    spacing = spacing[::-1]
    acquired, coarse = "", int(np.argmax(spacing))
    flat = [axis for axis in range(3) if array.shape[axis] == 1]
    if len(flat) == 1:
        coarse = flat[0]
    if len(flat) == 1 or spacing[coarse] > 1.5 * np.median(spacing):
        acquired = PLANES[coarse]
    return Volume(array, tuple(float(s) for s in spacing), kind, notes, acquired=acquired)


def read_nifti(path: Path) -> Volume:
    with blame(path, "reading NIfTI"):
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = _unpacked(data)
        if data[344:348] == b"ni1\0" or data[4:8] == b"ni2\0":
            raise FileError(
                f"{path}: this is half of a NIfTI pair (.hdr with .img); convert it to one .nii.gz"
                " file"
            )
        new = data[344:348] != b"n+1\0"
        header_class: Any = nib.nifti2.Nifti2Header if new else nib.nifti1.Nifti1Header
        header = header_class.from_fileobj(io.BytesIO(data), check=False)
        codes = int(header["sform_code"]), int(header["qform_code"])
        quiet = logging.Logger(__name__)  # what is broken is told below, in the reader's words
        quiet.addHandler(logging.NullHandler())  # without one, warnings go to the screen
        header.check_fix(logger=quiet, error_level=_NIFTI_FATAL)
        shape = tuple(int(n) for n in header.get_data_shape())
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) > 3:
            raise FileError(
                f"{path}: 4-D NIfTI of shape {shape}; give one 3-D volume, such as one time point"
            )
        if len(shape) < 2 or min(shape) < 1 or int(np.prod(shape, dtype=np.int64)) > MAX_VOXELS:
            raise FileError(
                f"{path}: NIfTI of shape {shape}; needed 2-D or 3-D, at most {MAX_VOXELS} voxels"
            )
        if header.get_data_dtype().fields or header.get_data_dtype().kind == "c":
            raise FileError(
                f"{path}: NIfTI of colours or complex numbers; needed one real number a voxel"
            )
        # nibabel applies scl_slope and scl_inter, and knows that a slope of 0 or NaN means none
        array = np.asarray(header.data_from_fileobj(io.BytesIO(data)), dtype=np.float32)
        array = array.reshape(shape)
        notes: list[str] = []
        affine = _nifti_affine(path, header, codes, notes)
        zooms = np.array([*header.get_zooms()[: len(shape)], 1.0][:3], dtype=float)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        np.allclose(sizes, 1, atol=1e-3)
        and np.all(zooms > 0)
        and not np.allclose(zooms, 1, atol=1e-2)
    ):
        affine[:3, :3] *= zooms / sizes
        notes.append(
            f"the sform claims 1 mm voxels, the header {_mm(zooms)}: the header's spacing is used"
        )
    unit = _length_unit(header)
    in_mm = sizes * MM_OF_UNIT.get(unit, 1.0)
    if unit in MM_OF_UNIT and ((VOXEL_MM[0] <= in_mm) & (in_mm <= VOXEL_MM[1] / 10)).all():
        affine[:3] *= MM_OF_UNIT[unit]
        notes.append(f"the header counts in {unit}s: turned to mm")
    if array.ndim == 2:
        array = array[:, :, None]
    volume = named(path, lambda: oriented(array, affine, "nifti", notes))
    volume.facts = {"FileName": path.name, "intent": _intent(header)} | sidecar_facts(path)
    description = bytes(header["descrip"]).rstrip(b"\0").decode("latin-1")
    if description.startswith(SYNTHETIC_MARK):
        volume.tags = {"stream": bytes(header["intent_name"]).rstrip(b"\0").decode("latin-1")}
    return volume


_PIECE = 1 << 24


def _unpacked(data: bytes) -> bytes:
    """What gzip packed, up to the largest size that is read; in pieces, for one read takes the
    memory that it asks for and not what it gets."""
    pieces: list[bytes] = []
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
        while len(pieces) * _PIECE < MAX_VOXELS * 4 and (piece := packed.read(_PIECE)):
            pieces.append(piece)
    return b"".join(pieces)


def _looks_elsewhere(header: Any, sform: np.ndarray) -> bool:
    """Whether the qform of a header has its axes along others than the sform."""
    turn = np.array([header[f"quatern_{axis}"] for axis in "bcd"], dtype=float)
    if not np.isfinite(turn).all() or np.linalg.norm(turn) > 1:
        return False
    qform = np.array(header.get_qform(), dtype=float)
    if not np.isfinite(qform).all() or not np.linalg.norm(qform[:3, :3], axis=0).all():
        return False
    return not np.array_equal(io_orientation(qform), io_orientation(sform))


def _length_unit(header: Any) -> str:
    """The unit of the voxels' sizes as nibabel names it, ``"unknown"`` for a code without one."""
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:
        return "unknown"


def _intent(header: Any) -> str:
    """What a NIfTI header says its values are, in words."""
    try:
        return str(header.get_intent("label")[0])
    except KeyError:  # a code that the standard does not have
        return ""


def _nifti_affine(path: Path, header: Any, codes: tuple[int, int], notes: list[str]) -> np.ndarray:
    """The sform, or else the qform, or else nibabel's assumption.

    Args:
        codes: of sform and qform as the file has them; nibabel sets those that it does not know
            to 0, which would throw a good matrix away.
    """
    complaints = []
    if codes[0] > 0:
        sform = np.array(header.get_sform(), dtype=float)
        if np.isfinite(sform).all() and abs(np.linalg.det(sform[:3, :3])) > 0:
            if codes[1] > 0 and _looks_elsewhere(header, sform):
                notes.append(
                    "sform and qform name different directions for the axes: the sform is used;"
                    " check left and right"
                )
            return sform
        complaints.append("its sform holds NaN or has no extent")
    if codes[1] > 0:
        turn = np.array([header[f"quatern_{axis}"] for axis in "bcd"], dtype=float)
        length = float(np.linalg.norm(turn))
        if length <= LONG_QUATERNION and np.isfinite(length):
            if length > 1:
                for axis, value in zip("bcd", turn / length * (1 - 1e-7), strict=True):
                    header[f"quatern_{axis}"] = value
                if length > 1 + 1e-5:
                    notes.append("the qform's quaternion is a little too long: shortened to 1")
            qform = np.array(header.get_qform(), dtype=float)
            if np.isfinite(qform).all():
                if complaints:
                    notes.append(f"{complaints[0]}: the qform is used")
                return qform
        complaints.append("its qform holds NaN or is no turn")
    if complaints:
        raise FileError(
            f"{path}: {' and '.join(complaints)}, so where left, front and head lie is not known;"
            " write the header again, for example with the tool that converted it from DICOM"
        )
    notes.append("no orientation in the header: left and right are nibabel's assumption")
    return np.array(header.get_base_affine(), dtype=float)


def named(path: Path, make: Callable[[], Volume]) -> Volume:
    """Call ``make`` and put the path in front of its complaint."""
    try:
        return make()
    except FileError as error:
        raise FileError(f"{path}: {error}") from error


def _mm(spacing: np.ndarray) -> str:
    return " x ".join(f"{s:.3g}" for s in spacing) + " mm"
