"""Which grey a file means: depth, colour space, look-up tables, padding, orientation."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from film_helpers import SIDE, dicom_film, film, likeness, shown
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medm2g_core.data.files import FileError, read_stream

RIGHT = 0.995


def notes(path: Path) -> str:
    return " | ".join(read_stream(path, "xray").notes)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_a_16_bit_png_is_shown_over_the_bits_that_it_uses(tmp_path: Path, bits: int) -> None:
    Image.fromarray((film() * (2**bits - 1)).astype(np.uint16)).save(tmp_path / "a.png")
    picture = shown(tmp_path / "a.png")
    assert float((picture - torch.from_numpy(film() * 2 - 1)).abs().max()) < 0.01
    assert (f"holds {bits}-bit values" in notes(tmp_path / "a.png")) == (bits < 16)


def test_a_dark_8_bit_film_is_stretched_and_told(tmp_path: Path) -> None:
    Image.fromarray((film() * 60).astype(np.uint8)).save(tmp_path / "a.png")
    picture = shown(tmp_path / "a.png")
    assert picture.max() > 0.9 and picture.min() < -0.9 and likeness(picture) > RIGHT
    assert "0.5th and 99.5th percentiles" in notes(tmp_path / "a.png")


def test_a_16_bit_colour_png_of_12_bits_is_refused(tmp_path: Path) -> None:
    deep = (film() * 4095).astype(">u2")
    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, 1).tobytes() for row in deep)

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    with pytest.raises(FileError, match=r"16-bit colour PNG .* save it as 16-bit grey"):
        shown(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("CMYK", "jpg"), ("YCbCr", "jpg"), ("RGBA", "png"), ("P", "png"), ("LA", "png")],
)
def test_every_colour_space_shows_the_film_and_not_its_negative(
    tmp_path: Path, mode: str, ending: str
) -> None:
    grey = Image.fromarray((film() * 255).astype(np.uint8))
    made = grey.convert(mode) if mode in ("LA", "P") else grey.convert("RGB").convert(mode)
    made.save(tmp_path / f"a.{ending}", **({"quality": 95} if ending == "jpg" else {}))
    assert likeness(shown(tmp_path / f"a.{ending}")) > RIGHT


def test_ink_in_one_channel_of_a_cmyk_jpeg_is_dark(tmp_path: Path) -> None:
    ink = np.zeros((SIDE, SIDE, 4), np.uint8)
    ink[..., 3] = 255 - (film() * 255).astype(np.uint8)  # black alone, as printers separate grey
    Image.fromarray(ink, "CMYK").save(tmp_path / "a.jpg", quality=95)
    assert likeness(shown(tmp_path / "a.jpg")) > RIGHT


def test_what_is_transparent_is_black(tmp_path: Path) -> None:
    pixels = np.repeat((film() * 255).astype(np.uint8)[..., None], 4, -1)
    pixels[..., 3] = 255
    pixels[:, :20] = (255, 255, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert float(shown(tmp_path / "a.png")[:, :18].max()) == -1
    assert "transparent parts are shown black" in notes(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_obeyed(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray((film() * 255).astype(np.uint8))
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", exif=exif, quality=95)
    assert likeness(shown(tmp_path / "a.jpg")) > RIGHT
    assert ("EXIF" in notes(tmp_path / "a.jpg")) == (orientation > 1)


def test_pixels_that_are_not_square_keep_their_proportions(tmp_path: Path) -> None:
    flat = (film()[::2] * 255).astype(np.uint8)  # every other row: pixels twice as high as wide
    for name, tags in (
        ("ratio.dcm", {"PixelAspectRatio": [2, 1]}),
        ("spacing.dcm", {"ImagerPixelSpacing": [2.8, 1.4]}),
    ):
        one_byte = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
        dicom_film(flat, **one_byte, **tags).save_as(tmp_path / name)
    Image.fromarray(flat).save(tmp_path / "density.png", dpi=(200, 100))
    Image.fromarray(flat).save(tmp_path / "density.jpg", dpi=(200, 100), quality=95)
    for path in tmp_path.iterdir():
        assert likeness(shown(path)) > 0.98, path.name
    assert np.isnan(read_stream(tmp_path / "ratio.dcm", "xray").spacing_mm[0])


def lut(entries: np.ndarray, bits: int, kind: str = "") -> Sequence:
    item = Dataset()
    item.LUTDescriptor = [len(entries), 0, bits]
    if kind:
        item.ModalityLUTType = kind
    item.LUTData = entries.astype(np.uint16).tolist()
    item["LUTDescriptor"].VR = "US"
    item["LUTData"].VR = "US"
    return Sequence([item])


STORED = (film() * 4095).astype(np.uint16)
DEPTH = {"BitsStored": 12, "HighBit": 11}


def test_an_inverting_modality_lut_is_applied(tmp_path: Path) -> None:
    table = lut(4095 - np.arange(4096), 12, "US")
    dicom_film(4095 - STORED, ModalityLUTSequence=table, **DEPTH).save_as(tmp_path / "a.dcm")
    assert likeness(shown(tmp_path / "a.dcm")) > RIGHT
    assert "modality look-up table is applied" in notes(tmp_path / "a.dcm")


def test_a_voi_lut_and_a_sigmoid_window_are_applied(tmp_path: Path) -> None:
    table = lut(4095 - np.arange(4096), 12)
    dicom_film(4095 - STORED, VOILUTSequence=table, **DEPTH).save_as(tmp_path / "lut.dcm")
    assert likeness(shown(tmp_path / "lut.dcm")) > RIGHT
    window = {"WindowCenter": 2000, "WindowWidth": 2000, "VOILUTFunction": "SIGMOID"}
    dicom_film(STORED, **window, **DEPTH).save_as(tmp_path / "sigmoid.dcm")
    expected = 2 / (1 + np.exp(-4 * (STORED - 2000.0) / 2000)) - 1
    picture = shown(tmp_path / "sigmoid.dcm")
    assert float((picture - torch.from_numpy(expected)).abs().max()) < 0.01


@pytest.mark.parametrize(
    ("shape", "stored"),
    [
        ({"PhotometricInterpretation": "MONOCHROME1"}, 4095 - STORED),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"},
            4095 - STORED,
        ),
        ({"PresentationLUTShape": "INVERSE"}, 4095 - STORED),
        ({"PresentationLUTShape": "IDENTITY"}, STORED),
    ],
)
def test_an_inverted_film_is_inverted_once(
    tmp_path: Path, shape: dict[str, str], stored: np.ndarray
) -> None:
    dicom_film(stored, **shape, **DEPTH).save_as(tmp_path / "a.dcm")
    assert likeness(shown(tmp_path / "a.dcm")) > RIGHT


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limit", [None, 20])
def test_padding_is_black_whatever_the_polarity(
    tmp_path: Path, photometric: str, limit: int | None
) -> None:
    stored = 100 + (film() * 3900).astype(np.uint16)
    if photometric == "MONOCHROME1":
        stored = 4100 - stored
    stored[:, :10] = 0 if limit is None else 7  # air, beside the body
    tags = {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": limit}
    ds = dicom_film(stored, PhotometricInterpretation=photometric, **tags, **DEPTH)
    ds.save_as(tmp_path / "a.dcm")
    picture = shown(tmp_path / "a.dcm")
    assert float(picture[:, :9].max()) == -1 and likeness(picture) > RIGHT


def test_signed_padding_written_as_unsigned_is_found(tmp_path: Path) -> None:
    stored = (film() * 2000).astype(np.int16)
    stored[:, :10] = -2000
    ds = dicom_film(stored, PhotometricInterpretation="MONOCHROME2")
    ds.add_new(0x00280120, "US", 65536 - 2000)
    ds.save_as(tmp_path / "a.dcm")
    assert likeness(shown(tmp_path / "a.dcm")) > RIGHT


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_what_a_shutter_hides_is_black(tmp_path: Path, photometric: str) -> None:
    stored = STORED if photometric == "MONOCHROME2" else 4095 - STORED
    shutter = {
        "ShutterShape": "RECTANGULAR",
        "ShutterLeftVerticalEdge": 31,
        "ShutterRightVerticalEdge": 130,
        "ShutterUpperHorizontalEdge": 1,
        "ShutterLowerHorizontalEdge": SIDE,
    }
    ds = dicom_film(stored, PhotometricInterpretation=photometric, **shutter, **DEPTH)
    ds.save_as(tmp_path / "a.dcm")
    picture = shown(tmp_path / "a.dcm")
    assert float(picture[:, :29].max()) == -1 and float(picture[:, 132:].max()) == -1
    assert likeness(picture[:, 31:130], film()[:, 31:130]) > RIGHT


def test_a_window_that_misses_the_values_is_not_used(tmp_path: Path) -> None:
    for name, window in (("off", (50, 40)), ("wide", (30000, 60000))):
        tags = {"WindowCenter": window[0], "WindowWidth": window[1]}
        dicom_film(STORED, **tags, **DEPTH).save_as(tmp_path / f"{name}.dcm")
        assert likeness(shown(tmp_path / f"{name}.dcm")) > RIGHT


def test_a_film_that_is_a_negative_is_refused(tmp_path: Path) -> None:
    for name, values in (("right", film()), ("negative", 1 - film())):
        Image.fromarray((values * 255).astype(np.uint8)).save(tmp_path / f"{name}.png")
    with pytest.raises(FileError, match="it is a negative"):
        read_stream(tmp_path / "negative.png", "xray")
    assert likeness(shown(tmp_path / "right.png")) > RIGHT


def test_a_photometric_interpretation_that_is_wrong_is_refused(tmp_path: Path) -> None:
    for photometric, stored in (("MONOCHROME1", STORED), ("MONOCHROME2", 4095 - STORED)):
        ds = dicom_film(stored, PhotometricInterpretation=photometric, **DEPTH)
        ds.save_as(tmp_path / "a.dcm")
        with pytest.raises(FileError, match="see whether the PhotometricInterpretation is right"):
            read_stream(tmp_path / "a.dcm", "xray")
