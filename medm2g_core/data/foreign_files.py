"""What a file is that is not read here, and what to do with it: told from its first bytes."""

from __future__ import annotations

import json
import re

__all__ = ["foreign_file", "markup_in"]

_UNPACK = "unpack it and give the folder or the file in it"
_AS_PNG = "save it as PNG (8 or 16 bits, grey)"
_AS_NIFTI = "write it as NIfTI with its voxel size and orientation"
_WORDS = "copy the report's words into a text file"

_SIGNS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive or an Office document", f"{_UNPACK}, or {_WORDS}"),
    (0, b"PK\x05\x06", "an empty zip archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a", "a RAR archive", _UNPACK),
    (0, b"BZh", "packed with bzip2", _UNPACK),
    (0, b"\xfd7zXZ", "packed with xz", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "packed with zstd", _UNPACK),
    (0, b"\x1f\x8b", "packed with gzip twice", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"%PDF", "a PDF", f"{_WORDS}, or give the picture in it as PNG"),
    (0, b"\xd0\xcf\x11\xe0", "an Office document", _WORDS),
    (0, b"{\\rtf", "an RTF document", _WORDS),
    (0, b"II*\0", "a TIFF picture", _AS_PNG),
    (0, b"MM\0*", "a TIFF picture", _AS_PNG),
    (8, b"WEBP", "a WebP picture", _AS_PNG),
    (0, b"GIF8", "a GIF picture", _AS_PNG),
    (4, b"ftyphei", "a HEIC picture", _AS_PNG),
    (4, b"ftypmif1", "a HEIC picture", _AS_PNG),
    (4, b"ftypavif", "an AVIF picture", _AS_PNG),
    (4, b"jP  \r\n", "a JPEG 2000 picture", _AS_PNG),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture", _AS_PNG),
    (0, b"BM", "a BMP picture", _AS_PNG),
    (4, b"ftyp", "a film or a phone's picture", "save one picture of it as PNG (grey)"),
    (0, b"\x93NUMPY", "a NumPy array", _AS_NIFTI),
    (0, b"\x89HDF", "an HDF5 file (MINC, MATLAB 7.3)", _AS_NIFTI),
    (0, b"CDF\x01", "a MINC or NetCDF file", _AS_NIFTI),
    (0, b"MATLAB", "a MATLAB file", _AS_NIFTI),
    (0, b"\0\0\0\x01\0\0", "a FreeSurfer volume (.mgz, .mgh)", "turn it to NIfTI with mri_convert"),
    (
        0,
        b"\x5c\x01\0\0",
        "an Analyze header (.hdr with .img), which does not say left from right",
        "convert it to NIfTI with the tool that wrote it",
    ),
    (
        0,
        b"\0\0\x01\x5c",
        "an Analyze header (.hdr with .img), which does not say left from right",
        "convert it to NIfTI with the tool that wrote it",
    ),
)
"""Place and bytes of a signature, what it is, what to do. A more special one comes first."""


def foreign_file(head: bytes) -> str:
    """What a file is and what to do, as ``"a TIFF picture; save it as PNG"``; ``""`` if unknown.

    Args:
        head: its first bytes, some 300; of a packed file those that are packed.
    """
    for place, sign, what, advice in _SIGNS:
        if head[place : place + len(sign)] == sign:
            return f"{what}; {advice}"
    return ""


_MARKUP: tuple[tuple[str, str], ...] = (
    (r"%PDF", "a PDF"),
    (r"\{\\rtf", "an RTF document"),
    (r"<!doctype html|<html|<head|<body|<div|<p[ >]|<table", "an HTML page"),
    (r"<\?xml|<[a-z][\w.:-]*(?:\s[^<>]*)?>", "XML"),
    (r"(?:\x0b)?MSH\|", "an HL7 message"),
)


def markup_in(text: str) -> str:
    """What a text is that is more than words, for example ``"an HTML page"``; ``""`` if it is
    plain."""
    start = text.lstrip("\ufeff \t\r\n")
    for pattern, what in _MARKUP:
        if re.match(pattern, start, re.IGNORECASE):
            return what
    if start[:1] in ("{", "["):
        try:
            json.loads(start)
        except (ValueError, RecursionError):
            return ""
        return "JSON"
    return ""
