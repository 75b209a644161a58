"""All tables of the results: sections in order, each measured once and kept; controls that must
hold."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.study_cache import cohort_version
from medm2g_core.data.wheels import cache_dir
from medm2g_core.evaluation.bench import Bench
from medm2g_core.evaluation.codec import image_codec_section
from medm2g_core.evaluation.fidelity import auc_scorer
from medm2g_core.evaluation.image_to_image import (
    GROUPS,
    PIX2PIX_ROW,
    REGRESSION_ROW,
    guidance_used,
    retrained,
    translation,
)
from medm2g_core.evaluation.judges import SHIPPED_JUDGES, Judges, load_judges
from medm2g_core.evaluation.report_generation import report_generation, text_codec_section
from medm2g_core.evaluation.retrieval import alignment_section
from medm2g_core.evaluation.table import Check, ResultStore, Row, SectionResult, markdown
from medm2g_core.evaluation.text_to_image import text_to_image
from medm2g_core.evaluation.unified import unified
from medm2g_core.experiments.bars import bar_table, verdicts
from medm2g_core.experiments.unseen import unseen_person
from medm2g_core.model import PARTS
from medm2g_core.pipeline import SHIPPED_WEIGHTS, MedM2GPipeline
from medm2g_core.profiles import ROUND_STAGES, Profile
from medm2g_core.rivals.shares import (
    PIX2PIX,
    Shares,
    at_least,
    kinds_of,
    parse_shares,
)
from medm2g_core.storage import atomic_write
from medm2g_core.training.data import load_corpora

__all__ = [
    "EXTRA",
    "SECTIONS",
    "evaluate",
    "failed",
    "flow_device",
    "flow_seconds",
    "handicap",
    "load_results",
    "report",
    "split_equally",
    "summary_rows",
    "trained_long_enough",
    "weights_digest",
    "write_report",
]

SECTIONS: Mapping[str, tuple[str, int]] = {
    "image_codec": ("Image codec", 1),
    "text_codec": ("Text codec", 1),
    "alignment": ("Alignment", 1),
    "text_to_image": ("Text to image", 2),
    "report_xray": ("Report generation from an X-ray", 4),
    "report_ct": ("Report generation from a CT", 4),
    "translation": ("Image to image", 1),
    "guidance": ("Is the guidance used?", 1),
    "unified": ("Several streams at once, and pairs that never trained together", 1),
}
"""Name -> (title, version). A version is raised when its section measures something else than
before."""

EXTRA: Mapping[str, tuple[str, int]] = {
    "unseen": ("A person whom training never saw (short trainings, leave one out)", 1),
}
"""Sections that train models of their own, for most of an hour: measured only when they are
named."""

_ALL = {**SECTIONS, **EXTRA}

_CODECS = ("image_codec.", "latent_", "text_codec.")
_REPORTS = (*_CODECS, "alignment.", "flows.text.")
READS: Mapping[str, tuple[str, ...]] = {
    "image_codec": ("image_codec.", "latent_"),
    "text_codec": ("text_codec.",),
    "alignment": ("alignment.",),
    "report_xray": (*_REPORTS, "environments.xray."),
    "report_ct": (*_REPORTS, "environments.ct."),
    "unseen": _CODECS,
}
"""Section -> what the names of the weights that it reads begin with; every weight where nothing is
said. A flow that was trained further so leaves the scores valid that it has no part in (a test puts
NaN into all others)."""


def weights_digest(folder: Path, reads: tuple[str, ...] = ("",)) -> str:
    """Changes when a weight of the model in ``folder`` does whose name begins with one of
    ``reads``."""
    digest = hashlib.sha256()
    for part in PARTS:
        with safe_open(folder / f"{part}.safetensors", "pt") as f:
            names: list[str] = f.keys()
            for name in sorted(n for n in names if n.startswith(reads)):
                digest.update(name.encode())
                digest.update(f.get_tensor(name).float().numpy().tobytes())
    return digest.hexdigest()[:16]


def flow_seconds(folder: Path, share: float | Shares = 1.0) -> dict[str, float]:
    """How long a trained baseline gets: seconds a modality, from the model's own ``training.json``.

    The time of a round (seconds, on a CPU times threads) is shared equally by the flows that it
    trains; ``share`` shortens it (tests, small machines). Where the folder tells nothing the answer
    is ten minutes on one thread.
    """
    share = parse_shares(share)
    try:
        stages = json.loads((folder / "training.json").read_text(encoding="utf-8"))["stages"]
        on_cpu = {n: stages[n].get("device", "cpu") == "cpu" for n in ROUND_STAGES}
        rounds = {
            n: float(stages[n]["seconds"]) * (stages[n]["threads"] if on_cpu[n] else 1)
            for n in ROUND_STAGES
        }
    except (OSError, json.JSONDecodeError, KeyError, TypeError):
        rounds = dict.fromkeys(ROUND_STAGES, 600.0)
    return {m: round(s * share[m], 1) for m, s in split_equally(rounds).items()}


def split_equally(rounds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the three rounds to seconds a modality: those that train together share their
    round equally."""
    return {
        "text": rounds["round1"] / 2,
        "xray": rounds["round1"] / 2,
        "ct": rounds["round2"],
        "mri": rounds["round3"],
    }


def flow_device(folder: Path) -> str:
    """Kind of the device that the rounds were trained on: ``"cpu"``, ``"cuda"``; ``"cpu"`` where
    nothing is told."""
    try:
        stages = json.loads((folder / "training.json").read_text(encoding="utf-8"))["stages"]
        return str(stages[ROUND_STAGES[-1]].get("device", "cpu")).split()[0]
    except (OSError, json.JSONDecodeError, KeyError):
        return "cpu"


def evaluate(
    model: Path | None,
    folder: Path,
    *,
    sections: Sequence[str] = tuple(SECTIONS),
    n_chest: int = 128,
    n_brain: int = 96,
    reference: int = 128,
    steps: int = 10,
    guidance: float = 2.0,
    seed: int = 0,
    device: str = "cpu",
    fresh: bool = False,
    time_fraction: float | str | Shares = 0.1,
    seconds: Mapping[str, float] | None = None,
    train_studies: tuple[int, int] | None = None,
    judges: Path = SHIPPED_JUDGES,
) -> dict[str, SectionResult]:
    """Measure the sections that are not in ``folder`` yet and return all.

    Args:
        model: folder of weights; ``None`` for the shipped ones.
        folder: for ``<section>.json``; a stored section is taken over if weights, cohort and
            settings are the same and its baselines were trained at least as long.
        sections: names of `SECTIONS`.
        n_chest, n_brain, reference, steps, guidance, seed: see `Bench`.
        fresh: measure again what is stored.
        time_fraction: of the flows' training time, for the trained baselines (`parse_shares`); 1 is
            the fair comparison.
        seconds: modality -> time of a trained baseline, instead of that share of what
            `flow_seconds` says.
        train_studies: chest and brain studies of the baselines; by default those of the model's
            profile.

    Raises:
        ValueError: an unknown section, or no such time fraction.
        medm2g_core.model.CheckpointError: no such model.
    """
    unknown = set(sections) - set(_ALL)
    if unknown:
        raise ValueError(f"unknown section {sorted(unknown)[0]!r}; known: {', '.join(_ALL)}")
    shares = parse_shares(time_fraction)
    source = model or SHIPPED_WEIGHTS
    pipe = MedM2GPipeline.from_pretrained(model)
    profile = pipe.model.profile
    d = profile.data
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
        "judges": (
            hashlib.sha256(
                b"".join(p.read_bytes() for p in sorted(judges.glob("*.safetensors")))
            ).hexdigest()
        ),
    }
    store = ResultStore(folder)
    weights = {n: weights_digest(source, READS.get(n, ("",))) for n in sections}
    keys = {
        n: ResultStore.key(section=n, version=_ALL[n][1], weights=weights[n], **depends)
        for n in sections
    }
    stored: dict[str, SectionResult | None] = {
        n: None if fresh else store.get(n, keys[n]) for n in sections
    }
    known = {
        n: outcome if outcome and trained_long_enough(n, outcome, shares) else None
        for n, outcome in stored.items()
    }
    missing = [n for n in sections if known[n] is None]
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
        budgets = seconds or flow_seconds(source, shares)
        critics = {m: s * min(1.0, shares[PIX2PIX] / shares[m]) for m, s in budgets.items()}
        measure = _measures(
            bench, source, profile, train_studies, budgets, critics, judges, seed, stored, shares
        )
        for name in missing:
            begin = time.monotonic()
            outcome = measure[name]()  # not under no_grad: some sections train their baselines
            earlier = (
                old.seconds if (old := stored[name]) is not None else 0.0
            )  # only its baselines are new
            outcome.seconds = round(earlier + time.monotonic() - begin, 1)
            outcome.facts["settings"] = settings | {
                "time_fraction": _shares_now(name, stored[name], shares)
            }
            outcome.facts["devices"] = {
                "flows": flow_device(source),
                "baselines": pipe.model.device.type,
            }
            known[name] = outcome
            store.put(name, keys[name], outcome)
        bench.bar.close()
    return {n: done for n in _ALL if (done := known.get(n)) is not None}


def _had(section: str, outcome: SectionResult | None) -> dict[str, float]:
    """Kind -> the share that the trained baselines of a stored section had; 0 if nothing is
    stored."""
    share = outcome.facts["settings"]["time_fraction"] if outcome else 0.0
    return dict(share) if isinstance(share, Mapping) else dict.fromkeys(kinds_of(section), share)


def _shares_now(section: str, stored: SectionResult | None, asked: Shares) -> dict[str, float]:
    """The shares after measuring: what had more already is kept."""
    had = _had(section, stored)
    return {k: max(asked[k], had[k]) for k in kinds_of(section)}


def trained_long_enough(section: str, outcome: SectionResult, share: float | str | Shares) -> bool:
    """Whether the trained baselines of a stored section had at least that share of time; true where
    it has none."""
    return not kinds_of(section) or at_least(
        section, outcome.facts["settings"]["time_fraction"], parse_shares(share)
    )


def _measures(
    bench: Bench,
    source: Path,
    profile: Profile,
    train_studies: tuple[int, int],
    seconds: Mapping[str, float],
    critics: Mapping[str, float],
    folder: Path,
    seed: int,
    stored: Mapping[str, SectionResult | None],
    asked: Shares,
) -> dict[str, Callable[[], SectionResult]]:
    """Section -> what measures it; judges and training studies are loaded when first needed."""
    small = profile.replace(data={"chest_train": train_studies[0], "brain_train": train_studies[1]})
    kept: dict[str, Any] = {}
    threads = torch.get_num_threads()

    def judges() -> Judges:
        if "judges" not in kept:
            kept["judges"] = load_judges(folder)
        return kept["judges"]

    def cohorts() -> dict[str, VirtualCohort]:
        if "cohorts" not in kept:
            kept["cohorts"] = {
                r: VirtualCohort(
                    "train", r, n, resolution=profile.resolution, seed=profile.data.seed
                )
                for r, n in zip(("chest", "brain"), train_studies, strict=True)
            }
        return kept["cohorts"]

    def reports(given: Any) -> SectionResult:
        return report_generation(
            bench,
            given,
            decoder_seconds=seconds["text"],
            train=cohorts()["chest"],
            threads=threads,
            seed=seed,
            known=stored.get(f"report_{given}"),
        )

    def images() -> SectionResult:
        corpora = {c.region: c for c in load_corpora(small)}
        had, outcome = _had("translation", stored.get("translation")), stored.get("translation")
        if outcome is None:
            return translation(
                bench, judges(), corpora, seconds=seconds, critic_seconds=critics, threads=threads
            )
        renew = [(m, REGRESSION_ROW) for m in GROUPS if had[m] < asked[m]]
        renew += [(m, PIX2PIX_ROW) for m in GROUPS if had[PIX2PIX] < asked[PIX2PIX]]
        return retrained(
            bench,
            judges(),
            corpora,
            outcome,
            seconds=seconds,
            critic_seconds=critics,
            threads=threads,
            renew=renew,
        )

    return {
        "image_codec": lambda: image_codec_section(bench, auc_scorer(bench, judges())),
        "text_codec": lambda: text_codec_section(bench),
        "alignment": lambda: alignment_section(bench),
        "text_to_image": lambda: text_to_image(bench, judges(), cohorts()),
        "report_xray": lambda: reports("xray"),
        "report_ct": lambda: reports("ct"),
        "translation": images,
        "guidance": lambda: guidance_used(bench),
        "unified": lambda: unified(bench, judges()),
        "unseen": lambda: unseen_person(
            source,
            cache_dir() / "unseen" / weights_digest(source, READS["unseen"]),
            judges(),
            seed=seed,
        ),
    }


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


def handicap(outcomes: Mapping[str, SectionResult]) -> str:
    """A sentence on the training time of the trained baselines, as it was when the outcomes were
    measured."""
    measured = {
        n: p.facts["settings"] for n, p in outcomes.items() if kinds_of(n) and "settings" in p.facts
    }
    by_share: dict[float, list[str]] = {}
    for name, settings in measured.items():
        had, title = settings["time_fraction"], _ALL[name][0]
        shares = had if isinstance(had, Mapping) else dict.fromkeys(kinds_of(name), had)
        for share in sorted(set(shares.values())):
            kinds = [k for k in shares if shares[k] == share]
            part = (
                ""
                if len(kinds) == len(shares)
                else f": {', '.join(_KIND_TITLES[k] for k in kinds)}"
            )
            by_share.setdefault(share, []).append(title + part)
    each = "; ".join(f"{100 * f:g} % ({', '.join(names)})" for f, names in sorted(by_share.items()))
    weak = "" if set(by_share) <= {1.0} else ". With less than all of it, beating them shows little"
    places = {tuple(outcomes[n].facts.get("devices", {}).values()) for n in measured}
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


def report(outcomes: Mapping[str, SectionResult]) -> str:
    """All sections as one Markdown document."""
    lines = [
        "# Results",
        "",
        (
            "Held-out virtual patients; 95 % intervals in brackets, by bootstrap over studies."
            " Chest pictures come from three people's anatomy and brains from one template: nothing"
            " here measures generalisation to new people."
        ),
        "",
    ]
    lines += [handicap(outcomes), ""]
    if found := verdicts(outcomes):
        lines += ["## Bars", "", bar_table(found)]
    for name, outcome in outcomes.items():
        lines += [f"## {_ALL[name][0]}", "", markdown(outcome.rows)]
        bad = [c for c in outcome.checks if not c.passed]
        lines += [outcome.facts["left out"], ""] if "left out" in outcome.facts else []
        lines.append(f"{len(outcome.checks) - len(bad)} of {len(outcome.checks)} controls hold.")
        lines += [f"- **does not hold**: {c.name}: {c.detail}" for c in bad]
        lines += [f"\nMeasured in {outcome.seconds:.0f} s.", ""]
    return "\n".join(lines)


def write_report(outcomes: Mapping[str, SectionResult], folder: Path) -> Path:
    """``results.md`` in ``folder``."""
    file = folder / "results.md"
    text = report(outcomes)
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
"""(section, beginning of the metric, parts of the task) of the rows that the README shows."""


def summary_rows(outcomes: Mapping[str, SectionResult]) -> list[Row]:
    """The leading rows, in the README's order."""
    return [
        r
        for section, metric, tasks in SUMMARY
        if section in outcomes
        for r in outcomes[section].rows
        if r.metric.startswith(metric) and any(t in r.task for t in tasks)
    ]


def load_results(folder: Path) -> dict[str, SectionResult]:
    """The stored sections of a results folder, whatever weights they were measured with."""
    out = {}
    for name in _ALL:
        file = folder / f"{name}.json"
        if file.is_file():
            out[name] = SectionResult.from_dict(
                json.loads(file.read_text(encoding="utf-8"))["result"]
            )
    return out
