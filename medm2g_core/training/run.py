"""From nothing to a model folder: all stages in order, each resumable and each on its own."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

import medm2g_core
from medm2g_core.codecs.tokenizer import train_tokenizer
from medm2g_core.model import PARTS, CheckpointError, MedM2G
from medm2g_core.profiles import BASE_STAGES, ROUND_STAGES, STAGES, Profile
from medm2g_core.storage import atomic_write
from medm2g_core.training.corpus import Corpus, LatentCorpus, random_reports, weights_key
from medm2g_core.training.data import EmbeddedData, TrainingData
from medm2g_core.training.loop import run_stage, state_file
from medm2g_core.training.stages import (
    AlignmentStage,
    ImageCodecStage,
    RoundStage,
    Stage,
    TextCodecStage,
    inherit_weights,
)
from medm2g_core.training.validate import validate

__all__ = ["near_device", "new_model", "train"]

TOKENIZER_REPORTS = 4000


def new_model(
    profile: Profile,
    seed: int = 0,
    *,
    like: MedM2G | None = None,
    parts: Sequence[str] = (),
    reports: Sequence[str] = (),
) -> MedM2G:
    """An untrained model with a tokenizer of its own; the seed fixes every weight.

    Args:
        like: a trained model, whose tokenizer and ``parts`` (`medm2g_core.model.PARTS`) are taken
            over.
        reports: what the tokenizer is fitted to; by default reports of the grammar.
    """
    texts = reports or random_reports(TOKENIZER_REPORTS, seed)
    tokenizer = like.tokenizer if like else train_tokenizer(texts, profile.text_codec.vocab_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MedM2G(profile, tokenizer).eval()
    if like is not None:
        for part in parts:
            model.load_state_dict(like.part(part), strict=False)
    return model


def _summary(folder: Path) -> dict[str, Any]:
    file = folder / "training.json"
    if not file.is_file():
        return {"stages": {}}
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{file} is damaged ({error}); delete it, its stages are trained again"
        ) from error


def train(
    profile: Profile,
    folder: str | Path,
    *,
    stages: Sequence[str] = STAGES,
    again: bool = False,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "auto",
    data: TrainingData | None = None,
    start: str | Path | None = None,
    progress: bool = True,
) -> MedM2G:
    """Train ``stages`` and leave a model in ``folder``.

    A stage that ``folder/training.json`` lists as finished is loaded, not trained again, unless
    ``again``; one that was interrupted goes on. ``folder/work`` holds caches and unfinished states.

    Args:
        stages: those for which the data has no streams are left out, with a line that says so.
        data: by default the embedded cohort.
        start: folder of a model of the same configuration that training starts from, instead of
            from nothing; every stage can then be trained on its own.

    Raises:
        ValueError: an unknown stage, one whose predecessors are not finished, or nothing that the
            data could train.
        CheckpointError: ``folder`` or ``start`` holds a model of another configuration, or
            ``folder`` one that was trained on other data.
        StageInterrupted: Ctrl-C; the same call goes on.
    """
    folder = Path(folder)
    unknown = set(stages) - {*STAGES, "all_pairs"}
    if unknown:
        raise ValueError(f"unknown stage {sorted(unknown)[0]!r}; known: {', '.join(STAGES)}")
    summary = _summary(folder)
    done: dict[str, Any] = summary["stages"]
    summary |= {
        "profile": profile.name,
        "seed": seed,
        "version": medm2g_core.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {platform.system()}",
    }
    data = data or EmbeddedData(profile)
    lacking = {s: why for s in (*STAGES, "all_pairs") if (why := data.lacks(s))}
    if all(s in lacking for s in stages):
        raise ValueError(
            f"nothing to train: {'; '.join(f'{s}: {lacking[s]}' for s in stages)} in this data"
        )
    for s in (s for s in STAGES if s in stages and s in lacking):
        print(f"{s} is left out: {lacking[s]} in this data")
    facts = data.facts()
    before, now = (
        name_of.get("source", {}).get("name", "virtual patients") for name_of in (summary, facts)
    )
    if done and before != now:
        raise CheckpointError(
            f"{folder} was trained on {before}, and now it would be {now}: train into another"
            f" folder, with --start {folder} if it shall go on from there"
        )
    summary |= facts | {"left out": lacking}
    if done:
        model = MedM2G.from_pretrained(folder)
        _same_configuration(model, profile, folder)
        model.profile = profile
    elif start is not None:
        base = MedM2G.from_pretrained(start)
        _same_configuration(base, profile, start)
        model = new_model(profile, seed, like=base, parts=PARTS)
        summary["start"] = f"{base.profile.name}, {weights_key(base, PARTS)}"
    else:
        model = new_model(profile, seed, reports=data.reports(TOKENIZER_REPORTS, seed))
    data.fit(model)
    corpora = data.corpora
    work = folder / "work"

    latent: list[LatentCorpus] | None = None
    for name in [s for s in (*STAGES, "all_pairs") if s in stages and s not in lacking]:
        if name in done and not again:
            continue
        needed = (
            [s for s in STAGES[: STAGES.index(name)] if s not in {*done, *lacking}]
            if name in STAGES
            else []
        )
        if name in BASE_STAGES or "start" in summary:
            needed = []
        if needed:
            raise ValueError(
                f"stage {name} needs {', '.join(needed)} first: train without --stage, or name"
                " them too"
            )
        stage: Stage
        if name == "image_codec":
            stage = ImageCodecStage(model, corpora("train"))
        elif name == "text_codec":
            stage = TextCodecStage(model, data.reports)
        elif name == "alignment":
            stage = AlignmentStage(model, corpora("train"))
        else:
            model.to(device)
            latent = latent or near_device(
                device, [LatentCorpus.build(model, c, work) for c in corpora("train")]
            )
            plan = data.round(name)
            if (
                "start" not in summary
            ):  # there the flow has learnt more than the one that it would inherit from
                inherit_weights(model, plan)
            stage = RoundStage(model, latent, name, plan)
        result = run_stage(
            stage,
            profile.stages[name if name in profile.stages else "round1"],
            work,
            seed=seed,
            device=device,
            precision=precision,
            progress=progress,
        )
        if name == "image_codec":
            model.fit_standardisation(_raw_latents(model, corpora("train")))
        # Flows of later stages build on these weights: a stage trained again makes them stale.
        for later in ROUND_STAGES if name in BASE_STAGES else ():
            done.pop(later, None)
        done[name] = result | {"validation": validate(model, name, data)}
        if name != "text_codec":
            summary["cohort"] = {
                c.name: f"{len(c)} studies, {c.fingerprint()}" for c in corpora("train")
            }
        if PartialState().is_main_process:
            model.save_pretrained(folder)
            text = json.dumps(summary, indent=1)
            atomic_write(
                folder / "training.json", lambda p, t=text: p.write_text(t, encoding="utf-8")
            )
            state_file(work, name).unlink(missing_ok=True)
        PartialState().wait_for_everyone()
        if name in BASE_STAGES:
            latent = None
    return model


def near_device(device: str, latent: Sequence[LatentCorpus]) -> list[LatentCorpus]:
    """The studies in the GPU's memory, if they take at most a quarter of what is free; else as they
    are."""
    if torch.device(device).type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if sum(c.bytes() for c in latent) <= free / 4:
            return [c.to(device) for c in latent]
    return list(latent)


def _same_configuration(model: MedM2G, profile: Profile, folder: str | Path) -> None:
    """Raise `CheckpointError` unless only budgets differ."""
    budgets = {"stages": 0, "data": 0}
    if model.profile.to_dict() | budgets != profile.to_dict() | budgets:
        raise CheckpointError(
            f"{folder} holds a model of another configuration than profile {profile.name!r}"
        )


@torch.no_grad()
def _raw_latents(model: MedM2G, corpora: Sequence[Corpus], n: int = 256) -> dict[str, torch.Tensor]:
    """Unstandardised latents of up to ``n`` images a stream and region."""
    out: dict[str, list[torch.Tensor]] = {}
    for corpus in corpora:
        for name, images in corpus.images.items():
            for i in range(0, min(n, len(images)), 32):
                x = images[i : i + 32].to(model.device, model.dtype)
                out.setdefault(name, []).append(model.image_codec.encode(x).cpu())
    return {name: torch.cat(z) for name, z in out.items()}
