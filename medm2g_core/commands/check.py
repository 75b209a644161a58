"""``check``: what a file is, which slice and series of it would be used, what speaks against it,
and the picture that the model would see; nothing is drawn."""

from __future__ import annotations

import argparse
import io
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from medm2g_core.data.files import LoadedImage, read_stream, read_text
from medm2g_core.data.labeller import label_report
from medm2g_core.inputs import notes_on, notes_on_report
from medm2g_core.model import MedM2G, load_tokenizer
from medm2g_core.pipeline import SHIPPED_WEIGHTS
from medm2g_core.storage import atomic_write
from medm2g_core.streams import stream

__all__ = ["print_table", "run_check"]

MAX_LINES = 20
"""Of the table of series."""

USUAL_SIZE = 128
"""Side of the picture where there is no model to ask."""


def run_check(args: argparse.Namespace) -> int:
    """The command; prints what was found and writes the picture.

    Raises:
        FileError: the file cannot be that stream; the sentence says why.
    """
    folder = args.model or (SHIPPED_WEIGHTS if SHIPPED_WEIGHTS.is_dir() else None)
    if not stream(args.stream).is_image:
        return _check_text(args.file, folder)
    model = None if folder is None else MedM2G.from_pretrained(folder, parts=("image_codec",))
    size = USUAL_SIZE if model is None else model.profile.resolution
    loaded = read_stream(args.file, args.stream, size=size, plane=args.plane, index=args.slice)
    notes = list(loaded.notes)
    if model is not None:
        found = notes_on(model, {args.stream: loaded.image[None]})[args.stream]
        notes += [note for note in found if note not in notes]
    print(f"{args.file}: {loaded.what}")
    print_table(loaded.table)
    print(f"as {args.stream}: {loaded.plane} picture, {size} x {size} pixels{_scale(loaded)}")
    for note in notes:
        print(f"  - {note}")
    out = args.out or Path(f"check-{args.stream}.png")
    atomic_write(out, lambda p: p.write_bytes(_png(loaded.image)))
    print(f"the picture that the model would see: {out}")
    return 0


def print_table(table: tuple[str, ...]) -> None:
    """The series of a folder with their points, if there were several."""
    if len(table) > 1:
        print("image stacks, best first (points by their headers):")
        for line in table[:MAX_LINES]:
            print(f"  {line}")
        if len(table) > MAX_LINES:
            print(f"     and {len(table) - MAX_LINES} more")


def _check_text(source: str, folder: Path | None) -> int:
    text = read_text(source)
    print(f"as text: {len(text.split())} words")
    if folder is not None:
        for note in notes_on_report(load_tokenizer(folder), text):
            print(f"  - {note}")
    labels = label_report(text)
    found = [
        " ".join(w for w in (f.size, f.side, f.location, f.name) if w) for f in labels.findings
    ]
    print(f"findings read in it: {', '.join(found) or 'none'}")
    if labels.negated:
        print(f"denied in it: {', '.join(sorted(labels.negated))}")
    return 0


def _scale(loaded: LoadedImage) -> str:
    spacing = loaded.spacing_mm[0]
    return f" of {spacing:.3g} mm" if math.isfinite(spacing) else ", of unknown size"


def _png(image: torch.Tensor) -> bytes:
    pixels = ((image[0].float().numpy() + 1) / 2 * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
