"""Reading of PNG and JPEG: which grey a pixel stands for, and which way up the picture is."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from medm2g_core.data.volumes import SYNTHETIC_MARK, FileError, Volume, blame

__all__ = ["read_picture"]

MAX_PIXELS = 50_000_000
"""Of a picture: 43 x 35 cm at 0.1 mm are 15 million, and each takes some 20 bytes on the way."""

DEPTHS = (8, 10, 12, 14, 16)
"""Bits that detectors deliver; a 16-bit file often holds one of the smaller ones (PadChest: 12)."""

COLOUR_SPREAD = 12
"""Grey levels that the channels of a grey picture may differ by, in all but `COLOUR_SHARE` of its
pixels: JPEG, also one that was stored again as PNG, rounds each channel on its own."""
COLOUR_SHARE = 0.001

DEEP_COLOUR_MIN = 64
"""Pillow keeps the upper 8 bits of a 16-bit colour PNG. Where the brightest of these is below this,
the file held fewer bits and most of its grey levels are gone."""

ASPECT_LIMITS = (0.2, 5.0)


def read_picture(path: Path, kind: str) -> Volume:
    """A grey PNG or JPEG as displayed: turned as its EXIF orientation says, CMYK as Pillow converts
    it, transparent parts black, on the range of the bits that it uses.

    Args:
        kind: ``"png"`` or ``"jpeg"``.

    Raises:
        FileError: broken, too large, or a colour picture.
    """
    notes: list[str] = []
    with (
        blame(path, f"reading {kind.upper()}"),
        # In memory: of a file Pillow asks for the 4 GB that a broken length claims.
        Image.open(io.BytesIO(path.read_bytes()), formats=[kind.upper()]) as opened,
    ):
        if opened.width * opened.height > MAX_PIXELS:
            raise FileError(
                f"{path}: a picture of {opened.width} x {opened.height} pixels is too large"
            )
        opened.load()
        info = {str(k): str(v) for k, v in getattr(opened, "text", {}).items()}
        aspect = _aspect(opened.info)
        picture: Image.Image = ImageOps.exif_transpose(opened)
        if opened.getexif().get(0x0112, 1) not in (0, 1):  # Orientation
            notes.append("turned as its EXIF orientation says")
            if picture.size == opened.size[::-1] != opened.size:
                aspect = 1 / aspect
        mode = picture.mode
        if mode in ("RGBA", "LA", "PA") or (mode == "P" and "transparency" in picture.info):
            picture = _on_black(picture.convert("RGBA"), notes)
        elif mode not in ("1", "L", "I", "F") and not mode.startswith("I;16"):
            picture = picture.convert("RGB")  # P, CMYK, YCbCr, ...
        pixels = np.asarray(picture)
    if pixels.ndim == 3:
        pixels = pixels[..., :3].astype(np.float32)
        if np.quantile(np.ptp(pixels, axis=-1), 1 - COLOUR_SHARE) > COLOUR_SPREAD:
            raise FileError(
                f"{path}: a colour picture (a screenshot?); needed a grey image without annotations"
            )
        if kind == "png" and _png_depth(path) == 16 and pixels.max() < DEEP_COLOUR_MIN:
            raise FileError(
                f"{path}: a 16-bit colour PNG that uses few of its bits, which cannot be read"
                " without loss; save it as 16-bit grey"
            )
        notes.append(f"{mode} picture with equal channels taken as grey")
        pixels = pixels.mean(axis=-1)
        full = 255.0
    else:
        full = _full_scale(pixels, notes)
    volume = Volume(
        pixels.astype(np.float32),
        (float("nan"),) * 2,
        kind,
        notes,
        window=(0.0, full),
        aspect=aspect,
        facts={"FileName": path.name},
    )
    if info.get("Comment", "").startswith(SYNTHETIC_MARK):
        volume.tags = {key.lower(): info.get(key, "") for key in ("Stream", "Plane", "Window")}
        parts = info.get("Spacing", "").split()
        if len(parts) >= 2:
            with blame(path, "reading the spacing"):
                volume.spacing_mm = (float(parts[0]), float(parts[1]))
    return volume


def _full_scale(pixels: np.ndarray, notes: list[str]) -> float:
    """The largest value that the pixels of a grey picture can have: of 16 bits, those used."""
    if pixels.dtype == bool:
        return 1.0
    if pixels.dtype.itemsize == 1:
        return 255.0
    top = float(pixels.max())
    bits = next((b for b in DEPTHS if top < 2**b), 16)
    if bits < 16:
        notes.append(
            f"a 16-bit picture that holds {bits}-bit values: 0..{2**bits - 1} is its range"
        )
    return float(2**bits - 1)


def _on_black(picture: Image.Image, notes: list[str]) -> Image.Image:
    """An RGBA picture over black."""
    if picture.getchannel("A").getextrema()[0] < 255:  # type: ignore[operator]
        notes.append("transparent parts are shown black")
    ground = Image.new("RGBA", picture.size, (0, 0, 0, 255))
    return Image.alpha_composite(ground, picture).convert("RGB")


def _png_depth(path: Path) -> int:
    """Bits a channel, from the header of a PNG."""
    with path.open("rb") as stream:
        return stream.read(25)[24]


def _aspect(info: dict) -> float:
    """Height over width of one pixel, from the resolution that a picture states; 1 without one."""
    across, down = info.get("dpi") or info.get("aspect") or info.get("jfif_density") or (1, 1)
    try:
        ratio = float(across) / float(down)
    except ZeroDivisionError:
        return 1.0
    return ratio if ASPECT_LIMITS[0] <= ratio <= ASPECT_LIMITS[1] else 1.0
