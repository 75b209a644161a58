"""How often each doubt about a given picture or volume is told, and how often a right one is
doubted: results/file_checks.json, from where docs/own_files.md is printed.

python benchmarks/doubtful_files.py
python benchmarks/doubtful_files.py --films FOLDER     real frontal films (PNG) beside virtual ones

Virtual pictures are those of the cohort's test split: the limits were chosen on the validation
split. Volumes are the three embedded chests, turned and stretched at random.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from tqdm import tqdm

from medm2g_core.data.acquisition import acquire
from medm2g_core.data.chest.atlas import PERSONS, load_atlases
from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.plausibility import Verdict, check_chest, check_picture
from medm2g_core.storage import atomic_write

FILE = Path(__file__).resolve().parent.parent / "results" / "file_checks.json"
SPACING_MM = 5.6
"""Of the volumes: every other voxel of the embedded chests."""
TURN_DEGREES, STRETCH = 6.0, 0.1
"""Largest turn about each axis, and change of size along it."""
PLATE = 0.2
"""Side of a plate, in sides of the picture."""

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def mirrored(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x[..., ::-1]


def plate(grey: float) -> Change:
    """A square of one grey somewhere in the picture."""

    def change(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        side = round(PLATE * len(x))
        row, column = rng.integers(2, len(x) - side - 2, 2)
        x = x.copy()
        x[row : row + side, column : column + side] = grey
        return x

    return change


def noisy(deviation: float) -> Change:
    def change(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (x + rng.normal(0, deviation, x.shape)).clip(-1, 1).astype(np.float32)

    return change


def two(axis: int) -> Change:
    """The picture and its like again, side by side (1) or above each other (0), in one square."""

    def change(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        both = Image.fromarray(np.concatenate([x, np.roll(x, 2, 1)], axis))
        return np.asarray(both.resize(x.shape[::-1], Image.Resampling.BOX))

    return change


FILMS: Mapping[str, tuple[str, Change]] = {
    "mirrored": ("mirrored", mirrored),
    "on its side": ("on its side|negative", lambda x, rng: np.rot90(x).copy()),
    "upside down": ("upside down|negative", lambda x, rng: x[::-1].copy()),
    "a negative": ("negative", lambda x, rng: -x),
    "two side by side": ("two films", two(1)),
    "two above each other": ("two films", two(0)),
    "a white label over it": ("one grey", plate(1.0)),
    "a black box over it": ("one grey", plate(-1.0)),
}
"""What is done to a film -> the words that tell it, and the change."""

NOISY = 0.2
"""Of the range of 2: what is added to a picture in the rows of noise."""

VOLUMES: Mapping[str, tuple[str, Change]] = {
    "head and feet exchanged": ("head and feet", lambda x, rng: x[::-1]),
    "front and back exchanged": ("in front", lambda x, rng: x[:, ::-1]),
    "left and right exchanged": ("left and right", lambda x, rng: x[:, :, ::-1]),
    "axes exchanged": ("axes", lambda x, rng: x.transpose(2, 1, 0)),
    "two patients": (
        "more than one body",
        lambda x, rng: np.concatenate([np.pad(x, ((0, 0), (0, 0), (3, 3)), "minimum")] * 2, 2),
    ),
}


def row(what: str, words: str, verdicts: Iterable[Verdict], of: int) -> dict[str, Any]:
    """Shares of pictures: told by the words that fit (a regular expression; ``""`` for a right
    picture), with a note or a refusal at all, and refused."""
    found = list(tqdm(verdicts, desc=what, total=of))
    said = [[*([v.refusal] if v.refusal else []), *v.notes] for v in found]
    told = [bool(words) and any(re.search(words, s) for s in each) for each in said]
    return {
        "what": what,
        "n": len(found),
        "told": float(np.mean(told)) if words else None,
        "doubted": float(np.mean([bool(each) for each in said])),
        "refused": float(np.mean([bool(v.refusal) for v in found])),
    }


def film_rows(name: str, films: np.ndarray, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of films (N, H, W), as they are and with each change."""
    right: Mapping[str, tuple[str, Change]] = {"right": ("", lambda x, rng: x)}
    noise = {"very noisy": ("very noisy", noisy(NOISY))}
    for change, (words, make) in {**right, **FILMS, **noise}.items():
        rngs = np.random.default_rng(seed).spawn(len(films))
        changed = (make(x, rng) for x, rng in zip(films, rngs, strict=True))
        found = (check_picture(np.ascontiguousarray(x), "xray") for x in changed)
        yield row(f"{name}: {change}", words, found, len(films))


def picture_rows(name: str, pictures: np.ndarray, stream: str, seed: int) -> Iterator[dict]:
    """Rows of slices (N, H, W): right, and with noise."""
    for change, words, make in (("right", "", None), ("very noisy", "very noisy", noisy(NOISY))):
        rngs = np.random.default_rng(seed).spawn(len(pictures))
        changed = (make(x, r) if make else x for x, r in zip(pictures, rngs, strict=True))
        found = (check_picture(x, stream) for x in changed)
        yield row(f"{name}: {change}", words, found, len(pictures))


def turned(hu: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A volume (S, A, R) in HU, turned and stretched a little."""
    matrix = np.diag(1 + rng.uniform(-STRETCH, STRETCH, 3))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        angle = np.radians(rng.uniform(-TURN_DEGREES, TURN_DEGREES))
        turn = np.eye(3)
        turn[[first, first, second, second], [first, second, first, second]] = (
            np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        )  # fmt: skip
        matrix = matrix @ turn
    middle = (np.array(hu.shape) - 1) / 2
    return np.asarray(
        ndimage.affine_transform(hu, matrix, middle - matrix @ middle, order=1, cval=-1000.0)
    )


def volume_rows(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of chest CT volumes."""
    atlases = load_atlases(detail=False)
    chests = [atlases[p].hu[::2, ::2, ::2].astype(np.float32) for p in PERSONS]
    rngs = np.random.default_rng(seed).spawn(count)
    volumes = [turned(chests[i % len(chests)], rng) for i, rng in enumerate(rngs)]
    right: Mapping[str, tuple[str, Change]] = {"right": ("", lambda x, rng: x)}
    for change, (words, make) in {**right, **VOLUMES}.items():
        found = (
            check_chest(make(v, r), (SPACING_MM,) * 3) for v, r in zip(volumes, rngs, strict=True)
        )
        yield row(f"chest CT volume: {change}", words, found, count)


def read_films(folder: Path) -> np.ndarray:
    """Square grey PNG of a folder, by name: (N, H, W), -1..1."""
    files = sorted(folder.glob("*.png"))
    if not files:
        raise SystemExit(f"{folder} holds no PNG: needed frontal chest films, bone bright")
    return np.stack([np.asarray(Image.open(f).convert("L"), np.float32) / 127.5 - 1 for f in files])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--chest", type=int, default=256, help="chest studies (default 256)")
    parser.add_argument("--volumes", type=int, default=60, help="default 60")
    parser.add_argument("--films", type=Path, help="folder of square PNG of real frontal films")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chest = VirtualCohort("test", "chest", args.chest)
    films = chest.stack("xray")
    generator = torch.Generator().manual_seed(args.seed)
    again = acquire(films, "xray", generator)
    rows = list(film_rows("virtual film", films[:, 0].numpy(), args.seed))
    found = (check_picture(x, "xray") for x in again[:, 0].numpy())
    rows.insert(1, row("virtual film: newly acquired", "", found, len(again)))
    if args.films:
        rows += film_rows("real film", read_films(args.films), args.seed)
    for stream, title in (("ct", "CT slice"), ("mri_t2", "chest T2 slice")):
        rows += picture_rows(title, chest.stack(stream)[:, 0].numpy(), stream, args.seed)
    rows += volume_rows(args.volumes, args.seed)
    text = json.dumps(rows, indent=1) + "\n"
    atomic_write(FILE, lambda p: p.write_text(text, encoding="utf-8"))
    for r in rows:
        told = "" if r["told"] is None else f"told {r['told']:.0%}, "
        shares = f"{told}doubted {r['doubted']:.1%}, refused {r['refused']:.1%}"
        print(f"{r['what']} (n {r['n']}): {shares}")


if __name__ == "__main__":
    main()
