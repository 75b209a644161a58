"""What was drawn as files, as a record from which it can be made again, and as code.

The files are those of the command line (`medm2g_core.data.export`), marked as synthetic; the record
is its ``generation.json``, and holds the given pictures of uploads too, whose files are gone.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medm2g_core.commands.generate import NO_WORDS, GivenStreams, geometry, remarks
from medm2g_core.commands.info import versions
from medm2g_core.data.export import FORMATS, SYNTHETIC_MARK, write_stream, write_text
from medm2g_core.explore.drawing import Drawn, Settings, draw
from medm2g_core.explore.given import Given, Patient, digest, from_file, from_patient, typed
from medm2g_core.explore.pictures import film_gif
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.storage import tensor_digest
from medm2g_core.streams import StreamError

__all__ = ["bundle", "code", "draw_again", "given_again", "record"]

ALL_FORMATS = (*FORMATS, "film")
"""What `bundle` can write besides the record, the code and the reports."""

PLACEHOLDER = "path/of/your/file"
"""Stands for an uploaded file in the code: its name was never kept."""


def record(drawn: Drawn, pipe: MedM2GPipeline) -> dict[str, Any]:
    """Everything needed to make the drawing again, as JSON takes it; see `draw_again`.

    No path and no name of a file is in it, but for files that the user named by path.
    """
    given = []
    for g in drawn.given:
        entry: dict[str, Any] = {"stream": g.stream, **g.origin, "notes": list(g.notes)}
        entry |= {"plane_shown": g.plane, "spacing_mm": list(g.spacing_mm or ())}
        if isinstance(g.value, str):
            entry["text"] = g.value
        else:
            entry["sha256"] = digest(g.value)
            if g.kind == "upload":  # the file is gone
                entry["image"] = _packed(g.value)
        given.append(entry)
    s = drawn.settings
    return {
        "mark": SYNTHETIC_MARK,
        "given": given,
        "settings": {
            "want": list(s.want),
            "seed": s.seed,
            "steps": s.steps,
            "guidance": s.guidance,
            "guide_guidance": s.guide_guidance,
            "draws": s.draws,
            "order": s.order,
        },
        "seeds": list(s.seeds),
        "steps_done": drawn.steps_done,
        "notes": [*_remarks(drawn), *(f"{n}: {x}" for n, v in drawn.notes.items() for x in v)],
        "generated": {n: [digest(x) for x in v] for n, v in drawn.images().items()},
        "generated_text": drawn.reports(),
        "model": {
            "profile": pipe.model.profile.name,
            "resolution": pipe.model.profile.resolution,
            "weights": _weights(pipe),
        },
        "device": str(pipe.device),
        "threads": torch.get_num_threads(),
        "seconds": round(drawn.seconds, 2),
        "versions": versions(),
    }


def _weights(pipe: MedM2GPipeline) -> str:
    """Changes when a weight does."""
    return tensor_digest(pipe.model.state_dict())


def _packed(image: torch.Tensor) -> dict[str, Any]:
    array = np.ascontiguousarray(image.detach().float().cpu().numpy().astype("<f4"))
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": "float32, little-endian", "shape": list(array.shape), "base64": data}


def _unpacked(packed: Mapping[str, Any]) -> torch.Tensor:
    array = np.frombuffer(base64.b64decode(packed["base64"]), "<f4").reshape(packed["shape"])
    return torch.from_numpy(array.astype(np.float32))


def given_again(written: Mapping[str, Any], size: int) -> Given:
    """One given stream from its entry in a `record`.

    Args:
        size: side of the model's pictures.

    Raises:
        StreamError: it is not what it was, such as a file that changed.
        FileError: a file that is not there any more.
    """
    name, kind = written["stream"], written["kind"]
    if kind == "typed":
        return typed(written["text"])
    if kind == "patient":
        patient = Patient(written["region"], written["number"], written["split"], written["seed"])
        again = from_patient(patient, name, size)
    elif kind == "file":
        again = from_file(
            written["path"], name, size, plane=written["plane"], index=written["slice"]
        )
    else:
        origin = {k: written[k] for k in ("kind", "plane", "slice", "sha256")}
        spacing = tuple(written["spacing_mm"]) or None
        again = Given(
            name,
            _unpacked(written["image"]),
            origin,
            tuple(written["notes"]),
            written["plane_shown"],
            spacing,
        )
    same = (
        again.value == written["text"]
        if isinstance(again.value, str)
        else digest(again.value) == written["sha256"]
    )
    if not same:
        raise StreamError(
            f"{name}: not what it was when the record was written: the {kind} has changed"
        )
    return again


def draw_again(pipe: MedM2GPipeline, written: Mapping[str, Any]) -> Drawn:
    """Make the drawing of a `record` again: bit for bit, with the same library versions, device and
    number of threads.

    Raises:
        StreamError: the model has other weights, or what was given has changed.
        FileError: a given file is not there any more.
    """
    size = pipe.model.profile.resolution
    if written["model"]["weights"] != _weights(pipe):
        raise StreamError(
            "the record was drawn by other weights than these: load those (profile"
            f" {written['model']['profile']!r}, {written['model']['resolution']} pixels)"
        )
    settings = Settings(**(written["settings"] | {"want": tuple(written["settings"]["want"])}))
    return draw(pipe, [given_again(g, size) for g in written["given"]], settings)


def code(drawn: Drawn, size: int) -> str:
    """Python that makes the drawing again with nothing but the pipeline; its result is ``out``.

    Args:
        size: side of the model's pictures.
    """
    imports = {"import torch", "from medm2g_core import MedM2GPipeline"}
    lines: list[str] = []
    entries: list[str] = []
    patients: dict[tuple[Any, ...], str] = {}
    for g in drawn.given:
        o = g.origin
        if g.kind == "typed":
            entries.append(f'    "{g.stream}": {g.value!r},')
        elif g.kind == "patient":
            imports.add("from medm2g_core.data.cohort import VirtualCohort")
            key = (o["split"], o["region"], o["number"], o["seed"])
            if key not in patients:
                patients[key] = "patient" if not patients else f"patient_{len(patients) + 1}"
                lines.append(
                    f"{patients[key]} = VirtualCohort({o['split']!r}, {o['region']!r},"
                    f" {o['number'] + 1}, {o['seed']}, {size})[{o['number']}]"
                )
            entries.append(f'    "{g.stream}": {patients[key]}["{g.stream}"],')
        elif isinstance(g.value, str):
            imports.add("from medm2g_core.data.files import read_text")
            entries.append(f'    "{g.stream}": read_text({o["path"]!r}),')
        else:
            imports.add("from medm2g_core.data.files import read_stream")
            path = o.get("path", PLACEHOLDER)
            more = "" if o["plane"] == "auto" else f", plane={o['plane']!r}"
            more += "" if o["slice"] is None else f", index={o['slice']}"
            entries.append(
                f'    "{g.stream}": read_stream({path!r}, "{g.stream}", size={size}{more}).image,'
            )
    options = "".join(f"    {k}={v!r},\n" for k, v in drawn.settings.options().items())
    s = drawn.settings
    return "\n".join(
        [
            f"# {SYNTHETIC_MARK}",
            *sorted(imports, key=lambda line: (line != "import torch", line)),
            "",
            "pipe = MedM2GPipeline.from_pretrained()  # or the folder of other weights",
            *lines,
            "given = {" + ("" if entries else "}"),
            *([*entries, "}"] if entries else []),
            "out = pipe(",
            "    given,",
            f"    {list(s.want)!r},",
            f"{options}    generator=[torch.Generator().manual_seed(seed) for seed in"
            f" range({s.seed}, {s.seed + s.draws})],",
            ")",
            "",
        ]
    )


def _as_read(drawn: Drawn) -> GivenStreams:
    """What was given, in the form of the command line."""
    records: dict[str, dict[str, Any]] = {
        g.stream: {"plane": g.plane, "spacing_mm": g.spacing_mm} for g in drawn.given
    }
    return GivenStreams({g.stream: g.value for g in drawn.given}, records)


def _samples(drawn: Drawn) -> list[dict[str, torch.Tensor | str]]:
    return [{n: v[i] for n, v in drawn.streams.items()} for i in range(drawn.settings.draws)]


def _remarks(drawn: Drawn) -> list[str]:
    samples = _samples(drawn)
    return remarks(_as_read(drawn), list(drawn.streams), samples) if drawn.streams else []


def bundle(
    drawn: Drawn, pipe: MedM2GPipeline, formats: Sequence[str] = ("png", "nifti", "dicom")
) -> bytes:
    """A ZIP of the drawn streams in every format, ``generation.json`` (the `record`) and
    ``again.py`` (the `code`).

    Args:
        formats: out of ``"png"``, ``"nifti"``, ``"dicom"`` and ``"film"`` (an animated GIF of each
            draw). Reports are always written.

    Raises:
        ValueError: an unknown format, or a drawing that was cancelled and cannot be made again.
    """
    if drawn.cancelled:
        raise ValueError("this drawing was cancelled half-way; draw it to the end to keep it")
    unknown = [f for f in formats if f not in ALL_FORMATS]
    if unknown:
        raise ValueError(f"unknown format {unknown[0]!r}; known: {', '.join(ALL_FORMATS)}")
    given, size = _as_read(drawn), pipe.model.profile.resolution
    pictures = [f for f in formats if f in FORMATS]
    names = ", ".join(g.stream for g in drawn.given) or "nothing"
    with tempfile.TemporaryDirectory(prefix="medm2g-export-") as scratch:
        folder = Path(scratch)
        for i, sample in enumerate(_samples(drawn)):
            ending = f"-{i + 1}" if drawn.settings.draws > 1 else ""
            meta = {
                "Given": names,
                "Seed": str(drawn.settings.seeds[i]),
                "Steps": f"{drawn.steps_done} of {drawn.settings.total_steps}",
                "Guidance": f"{drawn.settings.guidance:g}",
            }
            for name, value in sample.items():
                if isinstance(value, str):
                    write_text(value.strip() or NO_WORDS, folder / f"{name}{ending}.txt", meta)
                    continue
                spacing, plane = geometry(name, given, sample, size)
                write_stream(
                    value.clamp(-1, 1),
                    name,
                    folder / f"{name}{ending}",
                    spacing_mm=spacing,
                    plane=plane,
                    formats=pictures,
                    meta=meta,
                )
            if "film" in formats and drawn.images():
                (folder / f"film{ending}.gif").write_bytes(film_gif(pipe.model, drawn, i))
        written = json.dumps(record(drawn, pipe), indent=1, ensure_ascii=False) + "\n"
        (folder / "generation.json").write_text(written, encoding="utf-8")
        (folder / "again.py").write_text(code(drawn, size), encoding="utf-8")
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, path.name)
    return out.getvalue()
