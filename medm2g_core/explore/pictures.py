"""Pictures for a browser: grey values through a window, differences in colour, a gallery that
wraps on a narrow screen, and the film of a draw."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw

from medm2g_core.data.export import SYNTHETIC_MARK
from medm2g_core.explore.drawing import Drawn, expected
from medm2g_core.explore.verdict import difference
from medm2g_core.model import MedM2G
from medm2g_core.streams import CT_WINDOW_HU, stream, unit_to_hu

__all__ = [
    "STYLE",
    "WINDOWS",
    "Shown",
    "Window",
    "difference_rgb",
    "film_gif",
    "gallery",
    "grey",
    "png",
]


@dataclass(frozen=True)
class Window:
    """The part of the scale of Hounsfield units that goes from black to white."""

    centre: float
    width: float


WINDOWS: Mapping[str, Window] = MappingProxyType(
    {
        "whole scale": Window(sum(CT_WINDOW_HU) / 2, CT_WINDOW_HU[1] - CT_WINDOW_HU[0]),
        "lung": Window(-600, 1200),
        "soft tissue": Window(40, 400),
        "bone": Window(300, 600),
    }
)
"""Usual windows, as far as they lie in the stream's own."""

DIFFERENCE_HU = 500.0
"""A CT's difference that has full colour: between lung and soft tissue it is about 900 HU."""

DIFFERENCE_UNIT = 1.0
"""The same for the other streams: half of their range."""

FRAME_MS = 220
LAST_MS = 1500
"""The film rests on its last frame, which is the result."""

SCALE = 2  # of a frame's pixels; at 1 a picture is a stamp
FOOT_PX = 18  # room for the mark under a frame

STYLE = """<style>
.m2g-gallery{display:flex;flex-wrap:wrap;gap:10px;align-items:flex-start}
.m2g-gallery figure{margin:0;width:min(168px,44vw)}
.m2g-gallery figure.m2g-words{width:min(340px,92vw)}
.m2g-gallery .m2g-frame{position:relative;background:#000;line-height:0}
.m2g-gallery img{width:100%;display:block}
.m2g-gallery .m2g-side{position:absolute;top:2px;font:bold 12px sans-serif;line-height:1.2;
 color:#fff;text-shadow:0 0 2px #000,0 0 2px #000}
.m2g-gallery figcaption{font:12px/1.35 sans-serif;margin-top:3px}
.m2g-report{font:13px/1.45 sans-serif;margin:0;padding:6px;border:1px solid #d0d0d0;
 background:#fff;color:#1f1f1f}
.m2g-explorer .m2g-code{font:12px/1.4 monospace;white-space:pre-wrap;user-select:all;margin:4px 0}
.m2g-explorer .m2g-link{color:#1565c0;text-decoration:underline}
.m2g-explorer .widget-checkbox label{display:flex;align-items:center}
.m2g-explorer .widget-checkbox input{margin-top:0;margin-bottom:0}
.m2g-head{font:bold 13px sans-serif;margin:10px 0 4px}
</style>"""
"""Of what `gallery` writes. Two pictures stand side by side on a telephone."""


def grey(image: torch.Tensor, name: str, window: Window | None = None) -> np.ndarray:
    """Grey values (H, W), uint8, of an image (1, H, W) in -1..1.

    Args:
        window: of a CT; the stream's own where there is none, and always for the other streams.

    Raises:
        ValueError: a window without width.
    """
    if name == "ct" and window is not None:
        if window.width <= 0:
            raise ValueError(f"a window {window.width:g} HU wide; needed more than 0")
        low = window.centre - window.width / 2
        unit = (unit_to_hu(image[0]) - low) / window.width
    else:
        unit = (image[0].float() + 1) / 2
    return (unit.clamp(0, 1) * 255).round().numpy().astype(np.uint8)


def difference_rgb(name: str, drawn: torch.Tensor, true: torch.Tensor) -> np.ndarray:
    """Drawn minus true as colours (H, W, 3), uint8: red where the draw is brighter, blue where it
    is darker, white where they are equal."""
    full = DIFFERENCE_HU if name == "ct" else DIFFERENCE_UNIT
    part = (difference(name, drawn, true)[0] / full).clamp(-1, 1)
    return matplotlib.colormaps["RdBu_r"](((part + 1) / 2).numpy(), bytes=True)[..., :3]


def png(array: np.ndarray) -> bytes:
    """A PNG of grey values (H, W) or colours (H, W, 3)."""
    out = io.BytesIO()
    Image.fromarray(array).save(out, format="PNG")
    return out.getvalue()


@dataclass(frozen=True)
class Shown:
    """One cell of a gallery.

    Attributes:
        what: grey values or colours of a picture, or HTML of a report.
        caption: under it, plain words.
        sides: write R and L on a picture.
    """

    what: np.ndarray | str
    caption: str
    sides: bool = True


def gallery(title: str, cells: Sequence[Shown]) -> str:
    """HTML of pictures and reports under a heading, as many in a row as there is room for."""
    figures = []
    for cell in cells:
        caption = html.escape(cell.caption)
        if isinstance(cell.what, str):
            figures.append(
                f'<figure class="m2g-words">{cell.what}<figcaption>{caption}</figcaption></figure>'
            )
            continue
        data = base64.b64encode(png(cell.what)).decode()
        sides = (
            '<span class="m2g-side" style="left:4px">R</span>'
            '<span class="m2g-side" style="right:4px">L</span>'
        )
        figures.append(
            f'<figure><div class="m2g-frame"><img alt="{caption}"'
            f' src="data:image/png;base64,{data}">{sides if cell.sides else ""}</div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    head = f'<div class="m2g-head">{html.escape(title)}</div>' if title else ""
    return f'{head}<div class="m2g-gallery">{"".join(figures)}</div>' if figures else ""


def film_frames(model: MedM2G, drawn: Drawn, number: int = 0) -> list[Image.Image]:
    """One frame a step: the clean pictures that the step expected, side by side, with the mark.

    Args:
        number: of the draw.

    Raises:
        ValueError: no picture was drawn.
    """
    names = [n for n in drawn.film.denoised if stream(n).is_image]
    if not names:
        raise ValueError("no picture was drawn, so there is no film; want an image stream")
    size = model.profile.resolution * SCALE
    frames = []
    for step in range(max(len(drawn.film.denoised[n]) for n in names)):
        pictures = expected(model, drawn.film, step)
        frame = Image.new("L", (size * len(names), size + FOOT_PX))
        for i, name in enumerate(names):
            picture = Image.fromarray(grey(pictures[name][number], name))
            frame.paste(picture.resize((size, size), Image.Resampling.BICUBIC), (i * size, 0))
        ImageDraw.Draw(frame).text((4, size + 3), f"step {step + 1}: {SYNTHETIC_MARK}", fill=255)
        frames.append(frame)
    return frames


def film_gif(model: MedM2G, drawn: Drawn, number: int = 0) -> bytes:
    """The film of a draw as an animated GIF.

    Raises:
        ValueError: no picture was drawn.
    """
    first, *others = film_frames(model, drawn, number)
    out = io.BytesIO()
    times = [FRAME_MS] * len(others) + [LAST_MS]
    comment = SYNTHETIC_MARK.encode()
    first.save(
        out, "GIF", save_all=True, append_images=others, duration=times, loop=0, comment=comment
    )
    return out.getvalue()
