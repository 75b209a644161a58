"""All sections of the results: each measured once and kept; controls that must hold; the tables."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from medm2g_core.data.study_cache import cohort_version
from medm2g_core.evaluation.bench import Bench
from medm2g_core.evaluation.sections import SECTIONS, Section, Setup
from medm2g_core.evaluation.store import load_section, save_section
from medm2g_core.evaluation.table import Check, Row, SectionResult, below_simple, markdown
from medm2g_core.evaluation.training_time import flow_device, flow_seconds
from medm2g_core.judges.files import SHIPPED_JUDGES
from medm2g_core.model import PARTS
from medm2g_core.pipeline import SHIPPED_WEIGHTS, MedM2GPipeline
from medm2g_core.rivals.shares import PIX2PIX, Shares, parse_shares
from medm2g_core.storage import atomic_write, digest, tensor_digest

__all__ = [
    "TIME_FRACTION",
    "evaluate",
    "failed",
    "handicap",
    "report",
    "summary_rows",
    "trained_long_enough",
    "weights_digest",
    "write_report",
]

TIME_FRACTION = 0.1
"""Of the flows' training time, for trained baselines, where nothing is asked: minutes, no hours."""


def weights_digest(folder: Path, reads: tuple[str, ...] = ("",)) -> str:
    """Changes when a weight of the model in ``folder`` does whose name begins with one of
    ``reads``."""
    tensors: dict[str, torch.Tensor] = {}
    for file in (folder / f"{part}.safetensors" for part in PARTS):
        if not file.is_file():  # not every model has a report writer
            continue
        with safe_open(file, "pt") as f:
            names: list[str] = f.keys()
            tensors |= {n: f.get_tensor(n) for n in names if n.startswith(reads)}
    return tensor_digest(tensors)


def evaluate(
    model: Path | None,
    folder: Path,
    *,
    sections: Sequence[str] = tuple(SECTIONS),
    known: Mapping[str, Section] = SECTIONS,
    n_chest: int = 128,
    n_brain: int = 96,
    reference: int = 128,
    steps: int = 10,
    guidance: float = 2.0,
    seed: int = 0,
    device: str = "cpu",
    fresh: bool = False,
    time_fraction: float | str | Shares | None = None,
    seconds: Mapping[str, float] | None = None,
    train_studies: tuple[int, int] | None = None,
    judges: Path = SHIPPED_JUDGES,
) -> dict[str, SectionResult]:
    """Measure the sections that are not in ``folder`` yet and return all.

    Args:
        model: folder of weights; ``None`` for the shipped ones.
        folder: for ``<section>.json``; a stored section is taken over if weights, cohort and
            settings are the same and its baselines were trained at least as long as is asked.
        sections: names of sections to measure.
        known: name -> section; those of the model itself by default.
        n_chest, n_brain, reference, steps, guidance, seed: see `Bench`.
        fresh: measure again what is stored.
        time_fraction: of the flows' training time, for the trained baselines (`parse_shares`); 1 is
            the fair comparison. ``None``: `TIME_FRACTION` for what is measured now, and whatever
            stored sections had.
        seconds: modality -> time of a trained baseline, instead of that share of what
            `flow_seconds` says.
        train_studies: chest and brain studies of the baselines; by default those of the model's
            profile.

    Raises:
        ValueError: an unknown section, or no such time fraction.
        medm2g_core.model.CheckpointError: no such model.
    """
    unknown = set(sections) - set(known)
    if unknown:
        raise ValueError(f"unknown section {sorted(unknown)[0]!r}; known: {', '.join(known)}")
    shares = parse_shares(TIME_FRACTION if time_fraction is None else time_fraction)
    source = model or SHIPPED_WEIGHTS
    pipe = MedM2GPipeline.from_pretrained(model)
    d = pipe.model.profile.data
    train_studies = train_studies or (d.chest_train, d.brain_train)
    settings: dict[str, Any] = {
        "n_chest": n_chest,
        "n_brain": n_brain,
        "reference": reference,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "train_studies": list(train_studies),
    }
    depends = {
        "settings": settings,
        "cohort": {r: cohort_version(r) for r in ("chest", "brain")},
        "judges": hashlib.sha256(
            b"".join(p.read_bytes() for p in sorted(judges.glob("*.safetensors")))
        ).hexdigest(),
    }
    keys = {
        n: digest(
            section=n,
            version=known[n].version,
            weights=weights_digest(source, known[n].reads),
            **depends,
        )
        for n in sections
    }
    done: dict[str, SectionResult] = {}
    for name in sections if not fresh else ():
        stored = load_section(folder, name, keys[name])
        asked = {} if time_fraction is None else {k: shares[k] for k in known[name].trained}
        if stored is not None and trained_long_enough(stored, asked):
            done[name] = stored
    missing = [n for n in sections if n not in done]
    if missing:
        bench = Bench(
            pipe.to(device),
            n_chest=n_chest,
            n_brain=n_brain,
            reference=reference,
            steps=steps,
            guidance=guidance,
            seed=seed,
        )
        time_of = seconds or flow_seconds(source, shares)
        setup = Setup(
            bench=bench,
            source=source,
            train_studies=train_studies,
            seconds=time_of,
            pix2pix_seconds={
                m: s * min(1.0, shares[PIX2PIX] / shares[m]) for m, s in time_of.items()
            },
            judges_folder=judges,
            seed=seed,
        )
        for name in missing:
            begin = time.monotonic()
            outcome = known[name].measure(setup)  # some sections train their baselines
            outcome.seconds = round(time.monotonic() - begin, 1)
            outcome.facts["settings"] = settings | {
                "time_fraction": {k: shares[k] for k in known[name].trained}
            }
            outcome.facts["devices"] = {
                "flows": flow_device(source),
                "baselines": pipe.model.device.type,
            }
            save_section(folder, name, keys[name], outcome)
            done[name] = outcome
        bench.bar.close()
    return {n: done[n] for n in known if n in done}


def trained_long_enough(outcome: SectionResult, asked: Mapping[str, float]) -> bool:
    """Whether the trained baselines of a stored section had at least these shares of time (kind ->
    share)."""
    had = outcome.facts["settings"]["time_fraction"]
    return all(had[kind] >= share for kind, share in asked.items())


def failed(outcomes: Mapping[str, SectionResult]) -> list[tuple[str, Check]]:
    """(section, check) of everything that should hold and does not."""
    return [(name, c) for name, outcome in outcomes.items() for c in outcome.checks if not c.passed]


_KIND_TITLES = {
    "text": "decoder",
    "xray": "to X-ray",
    "ct": "to CT",
    "mri": "to MR",
    PIX2PIX: "pix2pix",
}


def handicap(outcomes: Mapping[str, SectionResult], known: Mapping[str, Section] = SECTIONS) -> str:
    """A sentence on the training time of the trained baselines, as it was when the sections were
    measured.

    Args:
        known: name -> section, for the titles.
    """
    shares_of = {
        n: shares
        for n, outcome in outcomes.items()
        if (shares := outcome.facts.get("settings", {}).get("time_fraction"))
    }
    by_share: dict[float, list[str]] = {}
    for name, shares in shares_of.items():
        for share in sorted(set(shares.values())):
            kinds = [k for k in shares if shares[k] == share]
            whole = len(kinds) == len(shares)
            part = "" if whole else f": {', '.join(_KIND_TITLES[k] for k in kinds)}"
            by_share.setdefault(share, []).append(known[name].title + part)
    if not by_share:
        return "No baseline was trained."
    each = "; ".join(f"{100 * f:g} % ({', '.join(names)})" for f, names in sorted(by_share.items()))
    weak = "" if set(by_share) <= {1.0} else ". With less than all of it, beating them shows little"
    places = {tuple(outcomes[n].facts.get("devices", {}).values()) for n in shares_of}
    mixed = [f"flows on {p[0]}, baselines on {p[1]}" for p in sorted(places) if p and p[0] != p[1]]
    unlike = (
        f". Their seconds are of different machines ({'; '.join(mixed)}): not comparable"
        if mixed
        else ""
    )
    return (
        "Trained baselines had this share of the training time of the flow that they face:"
        f" {each}{weak}{unlike}."
    )


def report(
    outcomes: Mapping[str, SectionResult],
    *,
    known: Mapping[str, Section] = SECTIONS,
    first: str = "",
) -> str:
    """All sections as one Markdown document.

    Args:
        known: name -> section, for the titles.
        first: Markdown that stands before the sections, such as the bars of
            `medm2g_core.experiments`.
    """
    lines = [
        "# Results",
        "",
        (
            "Held-out virtual patients; 95 % intervals in brackets, by bootstrap over studies."
            " Chest pictures come from three people's anatomy and brains from one template: nothing"
            " here measures generalisation to new people."
        ),
        "",
        handicap(outcomes, known),
        "",
    ]
    if leading := summary_rows(outcomes):
        lines += ["## Simple baselines", "", below_simple(leading)]
    lines += [first] if first else []
    for name, outcome in outcomes.items():
        lines += [f"## {known[name].title}", "", markdown(outcome.rows)]
        bad = [c for c in outcome.checks if not c.passed]
        lines += [outcome.facts["left out"], ""] if "left out" in outcome.facts else []
        lines.append(f"{len(outcome.checks) - len(bad)} of {len(outcome.checks)} controls hold.")
        lines += [f"- **does not hold**: {c.name}: {c.detail}" for c in bad]
        lines.append("")
    return "\n".join(lines)


def write_report(text: str, folder: Path) -> Path:
    """``results.md`` in ``folder``; a file that says the same already is left alone."""
    file = folder / "results.md"
    if not file.is_file() or file.read_text(encoding="utf-8") != text:
        atomic_write(file, lambda p: p.write_text(text, encoding="utf-8"))
    return file


SUMMARY: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("image_codec", "PSNR, dB", ("Chest X-ray (chest)", "CT (chest)", "FLAIR (brain)")),
    ("text_codec", "finding F1, strict", ("(chest)",)),
    ("alignment", "same findings@1", ("Report → Chest X-ray", "Report → CT")),
    ("text_to_image", "finding AUC", ("",)),
    ("report_xray", "finding F1, strict", ("",)),
    ("report_xray", "finding F1, presence", ("",)),
    ("report_ct", "finding F1, strict", ("",)),
    ("translation", "PSNR, dB", ("",)),
    ("guidance", "right guide less none, dB", ("",)),
)
"""(section, beginning of the metric, parts of the task) of the leading rows."""


def summary_rows(outcomes: Mapping[str, SectionResult]) -> list[Row]:
    """The leading rows, in the order of `SUMMARY`."""
    return [
        r
        for section, metric, tasks in SUMMARY
        if section in outcomes
        for r in outcomes[section].rows
        if r.metric.startswith(metric) and any(t in r.task for t in tasks)
    ]
