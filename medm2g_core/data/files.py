"""The user's own files as streams: DICOM, NIfTI, MetaImage, NRRD, PNG, JPEG and text.

`read_stream` takes one file (or a folder with a DICOM series) and gives the picture that the model
expects: the right slice, in radiological display convention, in the value scale of
`medm2g_core.streams`, square, and on the scale in millimetres that the model was trained on. It
says in words what it did. What it cannot read as the stream that was asked for, it refuses with a
`FileError` of one sentence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from medm2g_core.data.dicom import read_dicom_file, read_dicom_folder
from medm2g_core.data.foreign_files import foreign_file, markup_in
from medm2g_core.data.intensity import check_hu, mr_to_unit, xray_to_unit
from medm2g_core.data.itk_files import read_itk
from medm2g_core.data.odd_slices import odd_slices
from medm2g_core.data.pictures import read_picture
from medm2g_core.data.plausibility import (
    check_chest,
    check_film_frame,
    check_header,
    check_picture,
    check_size,
    check_values,
    heed,
)
from medm2g_core.data.series import fits, instead
from medm2g_core.data.slices import (
    CHEST_FOV_MM,
    MIN_PIXELS,
    SMALL_FOV_MM,
    Plane,
    body_box_mm,
    body_mask,
    cut_slice,
    field_of_view,
)
from medm2g_core.data.volumes import (
    KNOWN_FORMATS,
    SYNTHETIC_MARK,
    FileError,
    Volume,
    first_bytes,
    read_nifti,
    sniff,
)
from medm2g_core.streams import check_image, hu_to_unit, stream

__all__ = [
    "CHEST_FOV_MM",
    "FileError",
    "LoadedImage",
    "picture_of",
    "read_stream",
    "read_text",
    "read_volume",
    "square_picture",
]

MAX_VALUE = 1e9
MAX_ASPECT = 12
SPACING_MM = (0.02, 50.0)
COARSE = 2.5
"""Pixels of the model in one of the file's from which it is told: 7 mm in a chest, which thick
slices have and films never."""
MAX_TEXT_BYTES = 1_000_000
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_TABLES = frozenset({".csv", ".tsv", ".jsonl"})


@dataclass(frozen=True)
class LoadedImage:
    """A picture read from a file.

    Attributes:
        image: float32 (1, size, size), -1..1 in the stream's convention; rows from superior
            (coronal) or anterior (axial) down, columns from the patient's right to the patient's
            left.
        notes: what was found and done, one short phrase each.
        spacing_mm: (row, column) spacing of `image`; NaN where the file does not tell.
        kind: ``"dicom"``, ``"nifti"``, ``"metaimage"``, ``"nrrd"``, ``"png"`` or ``"jpeg"``.
        plane: ``"axial"``, ``"coronal"``, ``"sagittal"``, or ``"flat"`` for a picture without a
            place in space.
        table: of a folder: its series and how well each fits the stream, a line each, best first.
        what: the file in a few words: format, size, modality and description.
        index: number of the slice in its volume, as `read_stream` takes it; ``None`` where there
            is but one picture.
    """

    image: Tensor
    notes: tuple[str, ...]
    spacing_mm: tuple[float, float]
    kind: str
    plane: str
    table: tuple[str, ...] = ()
    what: str = ""
    index: int | None = None


def read_stream(
    path: str | Path,
    stream_name: str,
    *,
    size: int = 128,
    plane: Plane = "auto",
    index: int | None = None,
) -> LoadedImage:
    """Read a file as an image stream.

    Args:
        path: a file of any known format (told from its bytes, not its name) or a folder with a
            DICOM series.
        stream_name: one of `medm2g_core.streams.IMAGE_STREAMS`.
        size: side of the square result in pixels.
        plane: slice plane of a volume. ``"auto"``: a CT that covers at least 150 mm from head to
            feet in at least 24 slices gives the coronal slice through the middle of the body's
            mass, a shorter one its middle axial slice; an MR gives its middle axial slice, or one
            in the plane of acquisition if its slices are too thick to be cut otherwise.
        index: slice number, counted from the head (axial) or from the front (coronal); the middle
            if ``None``.

    Geometry: with known spacing, ``ct`` shows `CHEST_FOV_MM` about the centre of the body's
    bounding box, ``xray`` shows the same or the whole film if that is larger, MR shows the head's
    bounding box at `HEAD_FILL` of the side. Without spacing the whole picture is fitted and padded
    to a square.

    Raises:
        FileError: nothing there, unknown or broken file, wrong kind of image for the stream, blank,
            NaN, too small.
        StreamError: unknown stream.
    """
    _check_request(stream_name, size, plane)
    path = Path(path)
    volume = read_volume(path, stream_name)
    try:
        return picture_of(volume, stream_name, size, plane, index)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error


def picture_of(
    volume: Volume, stream_name: str, size: int, plane: Plane = "auto", index: int | None = None
) -> LoadedImage:
    """The second half of `read_stream`: the picture of a volume that was read already.

    Args:
        volume: of `read_volume`; it is left as it is, so that other slices can be taken.
        stream_name, size, plane, index: as in `read_stream`.

    Raises:
        FileError, StreamError: as `read_stream`; the sentence names no file.
    """
    _check_request(stream_name, size, plane)
    return _as_stream(replace(volume, notes=list(volume.notes)), stream_name, size, plane, index)


def _check_request(stream_name: str, size: int, plane: str) -> None:
    if not stream(stream_name).is_image:
        raise FileError(f"{stream_name} is not an image stream; use read_text")
    if plane not in ("auto", "axial", "coronal"):
        raise FileError(f"plane {plane!r} is not one of auto, axial, coronal")
    if size < MIN_PIXELS:
        raise FileError(f"size {size} is less than {MIN_PIXELS} pixels")


def read_volume(path: Path, stream_name: str) -> Volume:
    """A file of any known format, or a folder with a DICOM series that suits the stream, as an
    array with known axes.

    Raises:
        FileError: nothing there, an unknown format, or a broken file.
    """
    try:
        there, folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:  # too long a name, no permission, a NUL in it
        raise FileError(f"{str(path)[:200]!r} cannot be opened ({error})") from error
    if not there:
        raise FileError(f"{path}: there is no such file or folder; check the path")
    if folder:
        return read_dicom_folder(path, stream_name)
    kind = sniff(path)
    if kind == "dicom":
        return read_dicom_file(path, stream_name)
    if kind == "nifti":
        return read_nifti(path)
    if kind in ("metaimage", "nrrd"):
        return read_itk(path, kind)
    if kind in ("png", "jpeg"):
        return read_picture(path, kind)
    if path.suffix.lower() == ".img" and path.with_suffix(".hdr").is_file():
        raise FileError(
            f"{path}: half of a NIfTI or Analyze pair (.hdr with .img); convert it to one .nii.gz"
            " file"
        )
    known = foreign_file(first_bytes(path)[0])
    if known:
        raise FileError(f"{path}: {known}; the formats read here are {KNOWN_FORMATS}")
    raise FileError(f"{path}: unknown format; the formats read here are {KNOWN_FORMATS}")


def _as_stream(
    volume: Volume, name: str, size: int, plane: Plane, index: int | None
) -> LoadedImage:
    finite = np.isfinite(volume.array)
    if not finite.all():
        raise FileError(
            f"{(~finite).sum()} of {finite.size} values are NaN or infinite; replace them first"
        )
    if np.abs(volume.array).max() > MAX_VALUE:
        raise FileError(
            f"values up to {np.abs(volume.array).max():.3g} are not those of an image; the file is"
            " broken"
        )
    if volume.tags.get("stream", name) != name:
        raise FileError(f"this is a generated {volume.tags['stream']} image, not {name}")
    if not fits(volume.modality, name):
        raise FileError(
            f"the DICOM Modality is {volume.modality}, which cannot be the stream {name};"
            f" {instead([volume.modality])}"
        )
    notes = volume.notes
    if not volume.tags:
        heed(check_header(volume.facts, name), notes)
    if volume.array.ndim == 3 and not volume.tags:
        notes += odd_slices(volume.array)
    array = _checked_hu(volume) if name == "ct" and not volume.tags.get("window") else volume.array
    if name == "ct" and array.ndim == 3 and not volume.tags:
        heed(check_chest(array, volume.spacing_mm), notes)
    if name == "xray":
        array = np.squeeze(array)
        if array.ndim != 2:
            raise FileError(
                f"a volume of shape {volume.array.shape} was given as a radiograph; needed one 2-D"
                " image, or the volume's own stream"
            )
    cut, flat_spacing, shown, number = cut_slice(array, volume, name, plane, index)
    if min(cut.shape) < MIN_PIXELS:
        raise FileError(
            f"the image is {cut.shape[0]} x {cut.shape[1]} pixels; needed at least {MIN_PIXELS}"
            " each way"
        )
    if max(cut.shape) > MAX_ASPECT * min(cut.shape):
        raise FileError(
            f"the image is {cut.shape[0]} x {cut.shape[1]} pixels, a strip; the file is broken or"
            " no image"
        )
    if np.ptp(cut) == 0:
        raise FileError(f"the image is blank: every value is {cut.flat[0]:g}")
    if not volume.tags:
        heed(check_values(cut, volume.facts, name), notes)
    unit, body = _unit(cut, array, volume, name)
    if name == "xray" and not volume.tags:
        heed(check_film_frame(unit), notes)
    spacing_known = all(math.isfinite(s) and s > 0 for s in flat_spacing)
    if spacing_known and not all(SPACING_MM[0] <= s <= SPACING_MM[1] for s in flat_spacing):
        raise FileError(
            f"a pixel spacing of {flat_spacing[0]:.3g} x {flat_spacing[1]:.3g} mm; the header is"
            " broken"
        )
    spacing = flat_spacing if spacing_known else (volume.aspect, 1.0)
    if spacing_known and body is not None and body.any() and not volume.tags:
        heed(check_size(cut, spacing, body_box_mm(body, spacing), name), notes)
    centre, fov = field_of_view(
        unit.shape, spacing, body if spacing_known and not volume.tags else None, name, notes
    )
    coarse = max(spacing) * size / fov
    if coarse > COARSE and not volume.tags:
        notes.append(
            f"coarse: one pixel of the file is {coarse:.1f} of the model's, so the picture is"
            " blurred"
        )
    picture = square_picture(unit, spacing, centre, fov, size)
    if not volume.tags:
        heed(check_picture(picture, name), notes)
    image = check_image(torch.from_numpy(picture)[None], name)
    if not spacing_known:
        notes.append("no pixel spacing: the whole picture fitted to a square")
    if volume.tags:
        notes.append("made by this project: synthetic, its value scale taken as written")
    pixel = fov / size if spacing_known else float("nan")
    return LoadedImage(
        image,
        tuple(notes),
        (pixel, pixel),
        volume.kind,
        shown,
        tuple(volume.table),
        _in_words(volume),
        number,
    )


def _in_words(volume: Volume) -> str:
    """What was read, before anything was chosen from it."""
    sizes = " x ".join(str(n) for n in volume.array.shape)
    unit = "pixels" if volume.array.ndim == 2 else "voxels (head to feet, front to back, across)"
    known = all(math.isfinite(s) for s in volume.spacing_mm)
    spacing = " x ".join(f"{s:.3g}" for s in volume.spacing_mm)
    facts = volume.facts
    more = [f"modality {volume.modality}"] if volume.modality else []
    if facts.get("SeriesDescription"):
        more.append(f"{facts['SeriesDescription']!r}")
    if facts.get("BodyPartExamined"):
        more.append(f"of {facts['BodyPartExamined']}")
    if volume.tags:
        more.append("generated by this project")
    scale = f" of {spacing} mm" if known else ", spacing not stated"
    return ", ".join([f"{volume.kind}, {sizes} {unit}{scale}", *more])


def _checked_hu(volume: Volume) -> np.ndarray:
    """Hounsfield units, clipped to at least -1024 (padding such as -2048 goes there); refuses what
    cannot be HU."""
    if volume.kind in ("png", "jpeg"):
        raise FileError(
            f"a {volume.kind.upper()} carries no Hounsfield units; give the CT as DICOM, NIfTI,"
            " MetaImage or NRRD"
        )
    array = volume.array
    if (array < -1024).any():
        volume.notes.append("values below -1024 HU (padding) set to -1024")
        array = np.maximum(array, -1024)
    width = max(n * s for n, s in zip(array.shape[-2:], volume.spacing_mm[-2:], strict=True))
    check_hu(array, narrow=width < SMALL_FOV_MM)  # False where the spacing is NaN
    return array


def _unit(
    cut: np.ndarray, array: np.ndarray, volume: Volume, name: str
) -> tuple[np.ndarray, np.ndarray | None]:
    """A slice in the stream's -1..1, and the mask of the body in it (``None`` for a radiograph)."""
    if volume.tags and volume.kind in ("png", "jpeg"):
        low, high = volume.window or (0.0, 255.0)
        return ((cut - low) / (high - low) * 2 - 1).astype(np.float32), None
    if name == "ct":
        return hu_to_unit(torch.from_numpy(np.ascontiguousarray(cut))).numpy(), body_mask(cut, name)
    if volume.tags:
        if cut.min() < -1.01 or cut.max() > 1.01:
            raise FileError(
                f"a generated image with values {cut.min():.3g}..{cut.max():.3g}; they should be"
                " -1..1"
            )
        return np.clip(cut, -1, 1).astype(np.float32), None
    if name == "xray":
        return xray_to_unit(cut, volume.window, volume.inverted, volume.notes), None
    volume.notes.append(
        "MR signal has no unit: scaled by percentiles, compare contrast and not brightness"
    )
    if volume.inverted:
        volume.notes.append("MONOCHROME1 inverted")
        cut, array = array.max() - cut, array.max() - array
    return mr_to_unit(cut, array, name), body_mask(cut, name)


def square_picture(
    unit: np.ndarray,
    spacing: tuple[float, float],
    centre: tuple[float, float],
    fov: float,
    size: int,
) -> np.ndarray:
    """The square of side ``fov`` about ``centre`` as (size, size), anti-aliased; -1 outside the
    picture.

    Args:
        unit: (rows, columns), values -1..1.  spacing: of its rows and columns.
        centre: (row, column) in pixels of ``unit``.  fov: in the unit of ``spacing``.
    """
    picture = Image.fromarray(unit.astype(np.float32))
    if (
        shrink := min(unit.shape) // 2048
    ) > 1:  # a huge scan: block averages first, so that padding stays small
        picture = picture.reduce(shrink)
        spacing, centre = (
            (spacing[0] * shrink, spacing[1] * shrink),
            (
                centre[0] / shrink,
                centre[1] / shrink,
            ),
        )
    half = (fov / 2 / spacing[0], fov / 2 / spacing[1])
    first = [math.floor(c - h) for c, h in zip(centre, half, strict=True)]
    canvas = Image.new("F", (math.ceil(2 * half[1]) + 2, math.ceil(2 * half[0]) + 2), -1.0)
    canvas.paste(picture, (-first[1], -first[0]))  # what lies outside the canvas is dropped
    top, left = centre[0] - half[0] - first[0], centre[1] - half[1] - first[1]
    box = (left, top, left + 2 * half[1], top + 2 * half[0])
    return np.clip(
        np.asarray(canvas.resize((size, size), Image.Resampling.BILINEAR, box=box)), -1, 1
    )


def read_text(path_or_text: str | Path) -> str:
    """A report: the content of the file of that name if there is one, else the text itself.

    The heading that this project writes above its own reports is taken off.

    Raises:
        FileError: empty, neither UTF-8 nor UTF-16 with its mark, a table or a document with markup,
            larger than 1 MB, or plainly the name of a file that does not exist.
    """
    text = str(path_or_text)
    source = "the text"
    if len(text) < 1024 and "\n" not in text and "\0" not in text and text.strip():
        path = Path(text)
        try:
            is_file, is_folder = path.is_file(), path.is_dir()
        except OSError:
            is_file = is_folder = False  # no possible name of a file, so a sentence
        if is_file:
            source = str(path)
            text = _file_text(path)
        elif isinstance(path_or_text, Path) or (
            " " not in text and path.suffix.lower() in (".txt", ".text", ".md")
        ):
            raise FileError(
                f"{path}: {'a folder, not a text file' if is_folder else 'there is no such file'};"
                " check the path, or give the words of the report"
            )
        elif is_folder and len(path.parts) > 1:
            raise FileError(f"{path}: a folder, not a text file")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FileError(
            f"{source} holds bytes that are no UTF-8 (letter {error.start}); give it as Unicode"
        ) from error
    if text.startswith(f"# {SYNTHETIC_MARK}"):
        lines = text.splitlines()
        start = next((i for i, line in enumerate(lines) if not line.startswith("# ")), len(lines))
        text = "\n".join(lines[start:])
    text = text.strip()
    if not text:
        raise FileError(f"{source} is empty; needed a report in words")
    return text


def _file_text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise FileError(
                f"{path}: {path.stat().st_size} bytes is too long for a report (at most"
                f" {MAX_TEXT_BYTES})"
            )
        raw = path.read_bytes()
        text = raw.decode("utf-16" if raw[:2] in _UTF16_MARKS else "utf-8-sig")
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error})") from error
    except UnicodeDecodeError as error:
        what = foreign_file(raw[:4096])
        raise FileError(
            f"{path}: {what}"
            if what
            else f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8, or give the"
            " words; if it is an image, name its own stream"
        ) from error
    if "\0" in text:
        raise FileError(f"{path}: a binary file, not a text")
    what = "a table" if path.suffix.lower() in _TABLES else markup_in(text)
    if what:
        raise FileError(
            f"{path}: {what}, not a plain report; copy the words of one report into a text file"
        )
    return text
