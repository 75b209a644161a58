"""Component effects: short trainings that differ in one part, over several seeds, each kept when it
is done.

Three groups. ``alignment``: the visual invariant and the pairs that are aligned, from scratch.
``guidance``: how an MR flow listens to a CT, with the codecs and encoders of a trained model.
``rounds``: three rounds against all pairs at once, for the same time. Budgets are far below a full
training: only differences count, and only where they exceed the spread over seeds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.data.labeller import label_report
from medm2g_core.evaluation.bench import DRAW_STRIDE, draw_studies
from medm2g_core.metrics.findings import finding_counts, finding_f1
from medm2g_core.metrics.pixels import psnr
from medm2g_core.metrics.retrieval import hits_at, same_findings_at_1
from medm2g_core.model import MedM2G
from medm2g_core.pipeline import MedM2GPipeline
from medm2g_core.profiles import BASE_STAGES, ROUND_STAGES, Profile
from medm2g_core.storage import CacheFile, digest, tensor_digest
from medm2g_core.training.corpus import Corpus
from medm2g_core.training.data import load_corpora
from medm2g_core.training.latents import LatentCorpus
from medm2g_core.training.loop import bf16_pays, run_stage, training_attention
from medm2g_core.training.reader import Reader
from medm2g_core.training.rounds import ROUNDS, Mix, Round, begin_round
from medm2g_core.training.run import new_model
from medm2g_core.training.stages import AlignmentStage, RoundStage, Stage

__all__ = ["GROUPS", "LEADING", "Arm", "Budget", "ablate", "load_runs", "summary", "table"]


@dataclass(frozen=True)
class Arm:
    """One variant: a name and the fields of the profile that it changes."""

    name: str
    changes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rounds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Budget:
    """Steps of each training, studies for training and for the scores.

    Attributes:
        alignment, guidance, rounds: steps of a run of that group (of each of the three rounds).
        chest, brain: training studies.  held_out: studies of the validation split a region.
        draws: of the mean in image scores.
    """

    alignment: int = 160
    guidance: int = 160
    rounds: int = 120
    chest: int = 1408
    brain: int = 704
    held_out: int = 128
    draws: int = 2


_NO_MAP = {"aligned_map": False}
GROUPS: Mapping[str, tuple[Arm, ...]] = {
    "alignment": (
        Arm("no visual invariant", {"alignment": {"invariant": "off"}}),
        Arm("off-diagonal only", {"alignment": {"invariant": "off_diagonal"}}),
        Arm("full invariant", {"alignment": {"invariant": "full"}}),
        Arm(
            "full, ten times the weight",
            {"alignment": {"invariant": "full", "invariant_weight": 0.1}},
        ),
        Arm("all pairs aligned", {"alignment": {"invariant": "full", "pairs": "all"}}),
    ),
    "guidance": (
        Arm("off (prompt only)", {"flow": {"guidance": "off", **_NO_MAP}}),
        Arm("one pooled token", {"flow": {"guidance": "pooled", **_NO_MAP}}),
        Arm("grid tokens, no positions", {"flow": {"positions": "none", **_NO_MAP}}),
        Arm("grid tokens, untied positions", {"flow": {"positions": "untied", **_NO_MAP}}),
        Arm("grid tokens, tied positions", {"flow": _NO_MAP}),
        Arm("the same, gate starts at 0", {"flow": {"gate_start": 0.0, **_NO_MAP}}),
        Arm("adapter", {"flow": {"guidance": "adapter", **_NO_MAP}}),
        Arm("aligned map alone", {"flow": {"guidance": "off"}}),
        Arm("tied tokens and aligned map", {}),
        Arm("the same, not preconditioned", {"flow": {"precondition": False}}),
    ),
    "rounds": (
        Arm("three rounds", rounds=ROUND_STAGES),
        Arm("all pairs at once, same time", rounds=("all_pairs",)),
    ),
}

LEADING: Mapping[str, tuple[str, ...]] = {
    "alignment": ("text → xray, R@5", "xray → ct, R@5"),
    "guidance": ("ct → mri_t2, dB", "ct → mri_t2, mean of 2, dB"),
    "rounds": ("ct → mri_t2, mean of 2, dB", "xray → text, presence F1"),
}
"""The scores of each group that figures and the short table show."""

LISTEN = Round(("ct", "mri"), (), (Mix("chest", ("ct", "mri_t2"), 1.0, targets=("mri",)),))
"""Only the MR flow has a loss; CT's environment encoder learns through it."""


_READS = ("image_codec.", "latent_", "text_codec.", "alignment.")
"""How the names of the weights begin that runs take over from the trained model."""


def ablate(
    source: Path,
    folder: Path,
    *,
    groups: Sequence[str] = tuple(GROUPS),
    seeds: Sequence[int] = (0, 1, 2),
    budget: Budget | None = None,
    progress: bool = True,
) -> dict[str, list[dict[str, Any]]]:
    """Run what is not in ``folder`` yet and return every run.

    Args:
        source: folder of a trained model: profile, codecs and (for guidance and rounds) encoders.
        folder: one JSON a run, ``<group>/<arm>-seed<k>.json``, kept while weights, variant and
            budget are the same; trainings under way are resumed.

    Raises:
        ValueError: an unknown group.
    """
    unknown = set(groups) - set(GROUPS)
    if unknown:
        raise ValueError(f"unknown group {sorted(unknown)[0]!r}; known: {', '.join(GROUPS)}")
    budget = budget or Budget()
    base = MedM2G.from_pretrained(source)
    weights = tensor_digest({n: t for n, t in base.state_dict().items() if n.startswith(_READS)})
    kept: dict[str, Any] = {}
    out: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        out[group] = []
        for seed in seeds:
            for arm in GROUPS[group]:
                key = digest(
                    weights=weights,
                    profile=base.profile.to_dict(),
                    arm=asdict(arm),
                    seed=seed,
                    budget=asdict(budget),
                )
                file = CacheFile(folder / group / f"{_slug(arm.name)}-seed{seed}.json", key)
                if (done := file.load_json()) is not None:
                    out[group].append(done)
                    continue
                work = folder / "work" / group / f"{_slug(arm.name)}-seed{seed}"
                run = _RUNS[group](base, arm, seed, budget, work, kept, progress)
                run = {"group": group, "arm": arm.name, "seed": seed, **run}
                file.save_json(run)
                for left in work.glob("*.state.safetensors"):
                    left.unlink()
                out[group].append(run)
    return out


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def _profile(base: MedM2G, arm: Arm, budget: Budget) -> Profile:
    n = budget.held_out
    data = {
        "chest_train": budget.chest,
        "brain_train": budget.brain,
        "chest_val": n,
        "brain_val": n,
    }
    changes: dict[str, Any] = {k: dict(v) for k, v in arm.changes.items()}
    return base.profile.replace(data=data, **changes)


def _corpora(profile: Profile, kept: dict[str, Any], split: str = "train") -> list[Corpus]:
    if split not in kept:
        kept[split] = load_corpora(profile, split=split)
    return kept[split]


def _train(
    stage: Stage, name: str, steps: int, model: MedM2G, work: Path, seed: int, progress: bool
) -> float:
    """Train with the profile's own settings of stage ``name``, shortened; returns CPU seconds."""
    config = model.profile.stages[name if name in model.profile.stages else "round1"].shortened(
        steps
    )
    begin = time.process_time()
    run_stage(stage, config, work, seed=seed, precision="auto", progress=progress)
    return time.process_time() - begin


@torch.no_grad()
def _alignment_scores(model: MedM2G, profile: Profile, n: int) -> dict[str, float]:
    data = VirtualCohort("val", "chest", n, seed=profile.data.seed, resolution=profile.resolution)
    e = {"text": model.embed({"text": data.texts})["text"].pooled}
    for name in ("xray", "ct", "mri_t2"):
        e[name] = torch.cat(
            [model.embed({name: x})[name].pooled for x in data.stack(name).split(32)]
        )
    scores = {}
    pairs = (
        ("text", "xray"),
        ("text", "ct"),
        ("text", "mri_t2"),
        ("xray", "ct"),
        ("ct", "mri_t2"),
        ("xray", "mri_t2"),
    )
    for a, b in pairs:
        scores[f"{a} → {b}, R@5"] = float(np.mean(hits_at(e[a], e[b], 5)))
        scores[f"{a} → {b}, same findings@1"] = float(
            np.mean(same_findings_at_1(e[a], e[b], data.findings))
        )
    return scores


def _run_alignment(
    base: MedM2G,
    arm: Arm,
    seed: int,
    budget: Budget,
    work: Path,
    kept: dict[str, Any],
    progress: bool,
) -> dict[str, Any]:
    profile = _profile(base, arm, budget)
    model = new_model(profile, seed)
    read = Reader(model)
    stage = AlignmentStage(model, [read.fitted_corpus(c) for c in _corpora(profile, kept)])
    seconds = _train(stage, "alignment", budget.alignment, model, work, seed, progress)
    return {
        "seconds": seconds,
        "steps": budget.alignment,
        "n": budget.held_out,
        "scores": _alignment_scores(model.eval(), profile, budget.held_out),
    }


def _listener(base: MedM2G, profile: Profile, seed: int) -> MedM2G:
    """Fresh flows on the trained codecs and encoders of ``base``."""
    return new_model(profile, seed, like=base, parts=BASE_STAGES)


def _latent(model: MedM2G, profile: Profile, kept: dict[str, Any]) -> list[LatentCorpus]:
    if "latent" not in kept:
        corpora = [Reader(model).fitted_corpus(c) for c in _corpora(profile, kept)]
        kept["latent"] = [LatentCorpus.build(model.eval(), c) for c in corpora]
    return kept["latent"]


def _draw(
    model: MedM2G, region: str, given: Sequence[str], target: str, budget: Budget, draw: int = 0
) -> Any:
    pipe = MedM2GPipeline(model)
    pipe.set_progress_bar_config(disable=True)
    p = model.profile
    data = VirtualCohort("val", region, budget.held_out, seed=p.data.seed, resolution=p.resolution)
    scale = 2.0 if target == "text" else 1.0
    drawn = draw_studies(
        pipe, data, range(len(data)), given, [target], seed=DRAW_STRIDE * draw, guidance_scale=scale
    )
    return data, drawn[target]


def _image_scores(
    model: MedM2G, region: str, given: Sequence[str], target: str, budget: Budget
) -> dict[str, float]:
    draws = []
    for d in range(budget.draws):
        data, x = _draw(model, region, given, target, budget, d)
        draws.append(x)
    truth, title = data.stack(target), f"{'+'.join(given)} → {target}"
    return {
        f"{title}, dB": float(psnr(draws[0], truth).mean()),
        f"{title}, mean of {budget.draws}, dB": float(
            psnr(torch.stack(draws).mean(0), truth).mean()
        ),
    }


def _run_guidance(
    base: MedM2G,
    arm: Arm,
    seed: int,
    budget: Budget,
    work: Path,
    kept: dict[str, Any],
    progress: bool,
) -> dict[str, Any]:
    profile = _profile(base, arm, budget)
    model = _listener(base, profile, seed)
    begin_round(model, LISTEN)
    stage = RoundStage(model, _latent(model, profile, kept), "guidance", LISTEN)
    seconds = _train(stage, "round3", budget.guidance, model, work, seed, progress)
    gates = [p.item() for n, p in model.flows["mri"].named_parameters() if n.endswith("gate.ct")]
    scores = _image_scores(model.eval(), "chest", ["ct"], "mri_t2", budget)
    return {
        "seconds": seconds,
        "steps": budget.guidance,
        "n": budget.held_out,
        "gates": gates,
        "scores": scores,
    }


def _run_rounds(
    base: MedM2G,
    arm: Arm,
    seed: int,
    budget: Budget,
    work: Path,
    kept: dict[str, Any],
    progress: bool,
) -> dict[str, Any]:
    profile = _profile(base, arm, budget)
    model = _listener(base, profile, seed)
    latent = _latent(model, profile, kept)
    seconds, steps = 0.0, 0
    for name in arm.rounds:
        count = budget.rounds
        if name == "all_pairs":  # as long as the three rounds together
            three = sum(_cost(model, latent, n) for n in ROUND_STAGES)
            count = max(1, round(budget.rounds * three / _cost(model, latent, name)))
        begin_round(model, ROUNDS[name])
        seconds += _train(RoundStage(model, latent, name), name, count, model, work, seed, progress)
        steps += count
    model.eval()
    scores = _image_scores(model, "chest", ["ct"], "mri_t2", budget)
    scores |= _image_scores(model, "brain", ["mri_t1", "mri_t2"], "mri_flair", budget)
    data, texts = _draw(model, "chest", ["xray"], "text", budget)
    said = [label_report(t, "chest").findings for t in texts]
    for strict in (False, True):
        counts = [
            finding_counts(s, f, strict=strict) for s, f in zip(said, data.findings, strict=True)
        ]
        scores[f"xray → text, {'strict' if strict else 'presence'} F1"] = finding_f1(counts)
    return {"seconds": seconds, "steps": steps, "n": budget.held_out, "scores": scores}


def _cost(model: MedM2G, latent: Sequence[LatentCorpus], name: str, steps: int = 4) -> float:
    """CPU seconds of one step, forward and backward; a first step sets up and does not count."""
    stage = RoundStage(model, latent, name).train()
    half = bf16_pays(model.device)
    begin = 0.0
    for i in range(steps + 1):
        begin = begin if i > 1 else time.process_time()
        with (
            training_attention(model.device),
            torch.autocast(model.device.type, torch.bfloat16, enabled=half),
        ):
            stage(model.profile.stages["round1"].batch, torch.Generator().manual_seed(i))[
                0
            ].backward()
    model.zero_grad(set_to_none=True)
    return (time.process_time() - begin) / steps


_RUNS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "alignment": _run_alignment,
    "guidance": _run_guidance,
    "rounds": _run_rounds,
}


def table(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """A Markdown table a group: mean over seeds, and the lowest and highest seed."""
    lines = ["# Component effects", ""]
    lines += [
        "Mean over seeds [lowest, highest]; short trainings, compare within a table only.",
        "",
    ]
    for group, own in runs.items():
        if not own:
            continue
        arms = list(dict.fromkeys(r["arm"] for r in own))
        metrics = list(own[0]["scores"])
        seeds = sorted({r["seed"] for r in own})
        lines += [f"## {group}: {len(seeds)} seeds, n {own[0]['n']}", ""]
        lines += [
            "| | CPU seconds | " + " | ".join(metrics) + " |",
            "|---|--:|" + "--:|" * len(metrics),
        ]
        for arm in arms:
            mine = [r for r in own if r["arm"] == arm]
            cells = []
            for m in metrics:
                x = [r["scores"][m] for r in mine]
                digits = 1 if "dB" in m else 3
                cells.append(f"{np.mean(x):.{digits}f} [{min(x):.{digits}f}, {max(x):.{digits}f}]")
            lines.append(
                f"| {arm} | {np.mean([r['seconds'] for r in mine]):.0f} | "
                + " | ".join(cells)
                + " |"
            )
        lines.append("")
    return "\n".join(lines)


def load_runs(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Group -> its stored runs, in the order of `GROUPS`; those of arms that exist no more are left
    out."""
    out: dict[str, list[dict[str, Any]]] = {}
    for group, arms in GROUPS.items():
        found = [
            json.loads(p.read_text(encoding="utf-8"))["result"]
            for p in sorted((folder / group).glob("*.json"))
        ]
        names = [a.name for a in arms]
        known = [r for r in found if r["arm"] in names]
        out[group] = sorted(known, key=lambda r: (names.index(r["arm"]), r["seed"]))
    return out


def summary(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The leading scores alone: a line an arm, mean over seeds and the lowest and highest seed."""
    lines = ["| group | variant | seeds | score | another score |", "|---|---|--:|---|---|"]
    for group, own in runs.items():
        for arm in dict.fromkeys(r["arm"] for r in own):
            mine = [r for r in own if r["arm"] == arm]
            cells = []
            for metric in LEADING[group]:
                x = [r["scores"][metric] for r in mine]
                digits = 1 if "dB" in metric else 2
                cells.append(
                    f"{np.mean(x):.{digits}f} [{min(x):.{digits}f}, {max(x):.{digits}f}] {metric}"
                )
            lines.append(f"| {group} | {arm} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
