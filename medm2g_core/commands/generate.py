"""``generate``: the user's own files in, any wanted streams out as files, each marked as
synthetic."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from medm2g_core.commands.check import print_table
from medm2g_core.commands.common import pick_device, writable_folder
from medm2g_core.commands.info import versions
from medm2g_core.commands.overview import overview_png
from medm2g_core.data.export import FORMATS, SYNTHETIC_MARK, write_stream, write_text
from medm2g_core.data.files import CHEST_FOV_MM, read_stream, read_text
from medm2g_core.data.labeller import guess_region
from medm2g_core.inputs import InputWarning
from medm2g_core.pipeline import SHIPPED_WEIGHTS, MedM2GPipeline
from medm2g_core.storage import atomic_write
from medm2g_core.streams import StreamError, stream

__all__ = ["GivenStreams", "geometry", "read_given", "remarks", "run_generation"]

ONLY = {"chest": ("xray", "ct"), "brain": ("mri_pd", "mri_flair")}
"""Streams that the model knows of one region alone; T1 and T2 exist of both."""

PLANES = {"chest": "coronal", "brain": "axial"}
"""Slice plane of the training's images (the radiograph is frontal, written as coronal)."""

AT_ONCE = 16
"""Samples drawn in one call of the pipeline; more of them take their turns, so that memory does not
grow with their number."""

NO_WORDS = "(the model wrote no words)"


@dataclass
class GivenStreams:
    """What was read from the user's files.

    Attributes:
        values: stream -> image (1, H, W) in -1..1, or a report.
        records: stream -> source, notes and, for images, kind, plane and spacing, for
            ``generation.json``.
    """

    values: dict[str, torch.Tensor | str] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)


def _no_twins(pairs: Iterable[tuple[str, Any]], option: str) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for name, value in pairs:
        stream(name)
        if name in out:
            raise StreamError(f"{option} {name}: named twice; a study has one of each stream")
        out[name] = value
    return out


def read_given(
    sources: Mapping[str, str], *, size: int, plane: Any = "auto", index: int | None = None
) -> GivenStreams:
    """Read files as streams.

    Args:
        sources: stream -> path; for ``text`` also the words themselves.
        size: side of the images in pixels.
        plane, index: as in `medm2g_core.data.files.read_stream`.

    Raises:
        FileError: a file that cannot be that stream.
    """
    out = GivenStreams()
    for name, source in sources.items():
        if not source.strip():
            raise StreamError(
                f"--given {name}: nothing after the equals sign; needed a file"
                + ("" if stream(name).is_image else " or a report in words")
            )
        if not stream(name).is_image:
            text = read_text(source)
            out.values[name], out.records[name] = (
                text,
                {
                    "source": source,
                    "text": text,
                    "notes": [],
                },
            )
            continue
        loaded = read_stream(source, name, size=size, plane=plane, index=index)
        spacing = list(loaded.spacing_mm) if math.isfinite(loaded.spacing_mm[0]) else None
        out.values[name] = loaded.image
        out.records[name] = {
            "source": source,
            "kind": loaded.kind,
            "plane": loaded.plane,
            "spacing_mm": spacing,
            "notes": list(loaded.notes),
            "series": list(loaded.table),
        }
    return out


def _check_weights(weights: Mapping[str, float], sources: Mapping[str, str]) -> None:
    not_given = [n for n in weights if n not in sources]
    if not_given:
        have = ", ".join(sources) or "none"
        raise StreamError(
            f"--prompt-weight {not_given[0]}: that stream is not given; given: {have}"
        )
    if any(w < 0 for w in weights.values()) or (
        weights and not any(weights.get(n, 1.0) for n in sources)
    ):
        raise StreamError(
            "--prompt-weight: weights must not be negative, and one of the given streams must keep"
            " some"
        )


def _region(name: str, given: GivenStreams, sample: Mapping[str, torch.Tensor | str]) -> str:
    """Which part of the body a generated image shows: ``"chest"``, ``"brain"``, or ``""`` where
    nothing tells.

    X-ray and CT are always chests, proton density and FLAIR always brains. T1 and T2 exist of both:
    they go with the other streams of the study, the given ones first, then with the plane of a
    given MR, then with the report.
    """
    for names in ((name,), given.values, sample):
        found = {region for n in names for region, only in ONLY.items() if n in only}
        if len(found) == 1:
            return found.pop()
    planes = {
        record["plane"] for other, record in given.records.items() if other.startswith("mri_")
    }
    for region, plane in PLANES.items():
        if plane in planes:
            return region
    text = given.values.get("text", sample.get("text", ""))
    return guess_region(text) if isinstance(text, str) and text.strip() else ""


def geometry(
    name: str, given: GivenStreams, sample: Mapping[str, torch.Tensor | str], size: int
) -> tuple[tuple[float, float], str]:
    """Spacing and plane of a generated image: those of a given image of the same plane, else the
    training's."""
    from medm2g_core.data.brain.render import IMAGE_SIZE, SPACING_MM

    chest = _region(name, given, sample) == "chest"
    spacing = CHEST_FOV_MM / size if chest else SPACING_MM * IMAGE_SIZE / size
    plane = PLANES["chest" if chest else "brain"]
    for other, record in given.records.items():
        if stream(other).is_image and record["plane"] == plane and record["spacing_mm"]:
            return (record["spacing_mm"][0], record["spacing_mm"][1]), plane
    return (spacing, spacing), plane


def remarks(
    given: GivenStreams, want: Sequence[str], samples: Sequence[Mapping[str, torch.Tensor | str]]
) -> list[str]:
    """What the user should know about the request and its result."""
    out = []
    images = {n for n in (*given.values, *want) if stream(n).is_image}
    if all(images & set(only) for only in ONLY.values()):
        out.append(
            "chest and brain streams in one call: training held no patient with both, so they can"
            " guide each other only loosely"
        )
    for name, record in given.records.items():
        if (
            name.startswith("mri_")
            and record["plane"] == PLANES["brain"]
            and images & set(ONLY["chest"])
        ):
            out.append(
                f"{name} is given as an axial slice beside chest streams; the model's chest MR is"
                " coronal"
            )
    unclear = [n for n in want if stream(n).is_image and not _region(n, given, samples[0])]
    if unclear:
        out.append(
            f"{', '.join(unclear)}: nothing tells whether this is a chest or a brain; written as a"
            " brain slice"
        )
    if "text" in want and "xray" not in given.values and images & set(ONLY["chest"]):
        out.append(
            "text: the model words every chest report as one of a radiograph, also from CT or MR;"
            " it never names the modality"
        )
    if any(isinstance(v, str) and not v.strip() for sample in samples for v in sample.values()):
        out.append("text: the model wrote no words")
    return out


def run_generation(args: argparse.Namespace) -> int:
    """The command: read, generate, write; prints the notes and every file written."""
    sources = _no_twins(args.given, "--given")
    weights = _no_twins(args.prompt_weight, "--prompt-weight")
    for name in args.want:
        stream(name)
        if name in sources:
            raise StreamError(
                f"{name}: given and wanted at once; a given stream is never generated"
            )
    if len(set(args.want)) < len(args.want):
        raise StreamError(
            f"a stream is wanted twice: {', '.join(args.want)}; --num-samples makes several of each"
        )
    _check_weights(weights, sources)
    unknown = [f for f in args.formats if f not in FORMATS]
    if unknown:
        raise ValueError(f"unknown format {unknown[0]!r}; known: {', '.join(FORMATS)}")
    device = pick_device(args.device)
    out = writable_folder(args.out)
    pipe = MedM2GPipeline.from_pretrained(args.model)
    size = pipe.model.profile.resolution
    given = read_given(sources, size=size, plane=args.plane, index=args.slice)
    for name, record in given.records.items():
        print(f"{name}: " + ("; ".join(record["notes"]) or "read as it is"))
        if args.explain:
            print_table(tuple(record.get("series", ())))
    if "text" in given.values:
        pipe.model.tokens(
            [str(given.values["text"])]
        )  # refuses a text that is too long, before the work begins

    pipe.to(device)
    began = time.monotonic()
    pipe.set_progress_bar_config(desc="generate", unit="step")
    samples: list[dict[str, torch.Tensor | str]] = []
    for first in range(args.seed, args.seed + args.num_samples, AT_ONCE):
        seeds = range(first, min(first + AT_ONCE, args.seed + args.num_samples))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)  # printed below, once
            drawn = pipe(
                given=given.values,
                want=args.want,
                num_inference_steps=args.steps,
                guidance_scale=args.guidance,
                cross_guidance_scale=args.cross_guidance,
                prompt_weights=weights or None,
                order=args.order,
                num_samples=len(seeds),
                best_of=args.best_of,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            )
        _tell(given, drawn.notes)
        samples += [
            {
                n: v.float().cpu() if isinstance(v := drawn[n][i], torch.Tensor) else v
                for n in args.want
            }
            for i in range(len(seeds))
        ]
    seconds = time.monotonic() - began
    broken = sorted(
        {
            n
            for sample in samples
            for n, v in sample.items()
            if isinstance(v, torch.Tensor) and not torch.isfinite(v).all()
        }
    )
    if broken:
        raise ValueError(
            f"{', '.join(broken)}: the model gave NaN; a smaller --guidance or another --device may"
            " help"
        )
    said = remarks(given, args.want, samples)
    for remark in said:
        print(f"note: {remark}")
    files = _write(args, out, given, samples, size)
    model = str(args.model or SHIPPED_WEIGHTS)
    record = {
        "mark": SYNTHETIC_MARK,
        "given": given.records,
        "want": args.want,
        "settings": _settings(args, weights),
        "seeds": [args.seed + i for i in range(args.num_samples)],
        "notes": said,
        "generated_text": [s["text"] for s in samples] if "text" in args.want else [],
        "files": [path.name for path in files],
        "model": {"folder": model, "profile": pipe.model.profile.name, "resolution": size},
        "device": device,
        "seconds": round(seconds, 2),
        "versions": versions(),
    }
    files.append(out / "generation.json")
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    # A path with bytes that are no UTF-8 becomes JSON's own escapes.
    atomic_write(
        files[-1], lambda p: p.write_text(text, encoding="utf-8", errors="backslashreplace")
    )
    for path in files:
        print(path)
    print(f"{SYNTHETIC_MARK} ({seconds:.1f} s on {device})")
    sys.stdout.flush()
    return 0


def _tell(given: GivenStreams, notes: Mapping[str, list[str]]) -> None:
    """Print and record what the pipeline has to say of what was given and reading it did not."""
    for name, found in notes.items():
        known = given.records[name]["notes"]
        for note in found:
            if note not in known:
                print(f"{name}: {note}")
                known.append(note)


def _settings(args: argparse.Namespace, weights: Mapping[str, float]) -> dict[str, Any]:
    return {
        "steps": args.steps,
        "guidance": args.guidance,
        "cross_guidance": args.cross_guidance,
        "order": args.order,
        "num_samples": args.num_samples,
        "best_of": args.best_of,
        "seed": args.seed,
        "prompt_weights": dict(weights),
        "plane": args.plane,
        "slice": args.slice,
    }


def _write(
    args: argparse.Namespace,
    out: Path,
    given: GivenStreams,
    samples: Sequence[Mapping[str, torch.Tensor | str]],
    size: int,
) -> list[Path]:
    """Write every wanted stream of every sample, and the overview; the paths."""
    names = ", ".join(given.values) or "nothing"
    files: list[Path] = []
    for i, sample in enumerate(samples):
        meta = {
            "Given": names,
            "Seed": str(args.seed + i),
            "Steps": str(args.steps),
            "Guidance": f"{args.guidance:g}",
        }
        ending = f"-{i + 1}" if len(samples) > 1 else ""
        for name, value in sample.items():
            if isinstance(value, str):
                files.append(
                    write_text(value.strip() or NO_WORDS, out / f"{name}{ending}.txt", meta)
                )
                continue
            spacing, plane = geometry(name, given, sample, size)
            files += write_stream(
                value,
                name,
                out / f"{name}{ending}",
                spacing_mm=spacing,
                plane=plane,
                formats=args.formats,
                meta=meta,
            )
    caption = (
        f"given: {names}; seed {args.seed}, {args.steps} steps, guidance {args.guidance:g},"
        f" {args.order}"
    )
    shown = [
        {n: (v.strip() or NO_WORDS) if isinstance(v, str) else v for n, v in s.items()}
        for s in samples
    ]
    picture = overview_png(given.values, shown, mark=SYNTHETIC_MARK, caption=caption, notes=caption)
    files.append(out / "overview.png")
    atomic_write(files[-1], lambda p: p.write_bytes(picture))
    return files
