"""From nothing to a model folder: all stages in order, each resumable and each on its own."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

import medm2g_core
from medm2g_core.codecs.tokenizer import train_tokenizer
from medm2g_core.data.cohort import VirtualCohort
from medm2g_core.model import CheckpointError, MedM2G
from medm2g_core.profiles import STAGES, Profile
from medm2g_core.storage import atomic_write
from medm2g_core.training.corpus import Corpus, LatentCorpus, random_reports, wordings
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

__all__ = ["corpus_of", "load_corpora", "new_model", "train"]


def load_corpora(
    profile: Profile, *, split: str = "train", persons: Sequence[str] | None = None, workers: int | None = None
) -> list[Corpus]:
    """Chest and brain studies of the embedded cohort in the profile's size and resolution."""
    d = profile.data
    sizes = {"chest": d.chest_train, "brain": d.brain_train}
    if split != "train":
        sizes = {"chest": d.chest_val, "brain": d.brain_val}
    out = []
    for region, size in sizes.items():
        cohort = VirtualCohort(
            split, region, size, seed=d.seed, resolution=profile.resolution,
            persons=persons if region == "chest" else None, workers=workers,
        )  # fmt: skip
        out.append(corpus_of(cohort))
    return out


def corpus_of(cohort: VirtualCohort, index: Sequence[int] | None = None) -> Corpus:
    """Studies of one region (those of ``index``, or all) in memory; training studies get several wordings each."""
    index = range(len(cohort)) if index is None else index
    images = {n: cohort.stack(n, index).half() for n in cohort[0].images}
    reports = []
    for i in index:
        s = cohort[i]
        assert s.findings is not None and s.text is not None
        more = wordings(s.findings, s.region, s.age, s.sex, seed=i) if cohort.split == "train" else []
        reports.append([s.text, *more[1:]])
    return Corpus(cohort.region, images, reports)


def new_model(profile: Profile, seed: int = 0, *, like: MedM2G | None = None, parts: Sequence[str] = ()) -> MedM2G:
    """An untrained model with a tokenizer fitted to the report grammar; the seed fixes every weight.

    Args:
        like: a trained model, whose tokenizer and ``parts`` (`medm2g_core.model.PARTS`) are taken over.
    """
    tokenizer = like.tokenizer if like else train_tokenizer(random_reports(4000, seed), profile.text_codec.vocab_size)
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
        raise CheckpointError(f"{file} is damaged ({error}); delete it, its stages are trained again") from error


def train(
    profile: Profile,
    folder: str | Path,
    *,
    stages: Sequence[str] = STAGES,
    again: bool = False,
    seed: int = 0,
    device: str = "cpu",
    precision: str = "auto",
    persons: Sequence[str] | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> MedM2G:
    """Train ``stages`` and leave a model in ``folder``.

    A stage that ``folder/training.json`` lists as finished is loaded, not trained again, unless ``again``; one that was
    interrupted goes on. ``folder/work`` holds caches and unfinished states.

    Args:
        persons: restrict the chest studies to these people's anatomy (leave-one-person-out).

    Raises:
        ValueError: an unknown stage, or one whose predecessors are not finished.
        StageInterrupted: Ctrl-C; the same call goes on.
    """
    folder = Path(folder)
    unknown = set(stages) - {*STAGES, "all_pairs"}
    if unknown:
        raise ValueError(f"unknown stage {sorted(unknown)[0]!r}; known: {', '.join(STAGES)}")
    summary = _summary(folder)
    done: dict[str, Any] = summary["stages"]
    summary |= {
        "profile": profile.name, "seed": seed, "version": medm2g_core.__version__, "torch": torch.__version__,
        "machine": f"{platform.machine()}, {platform.system()}", "persons": list(persons) if persons else "all",
    }  # fmt: skip
    if done:
        model = MedM2G.from_pretrained(folder)
        sizes = {"stages": 0, "data": 0}
        if model.profile.to_dict() | sizes != profile.to_dict() | sizes:
            raise CheckpointError(f"{folder} holds a model of another configuration than profile {profile.name!r}")
        model.profile = profile
    else:
        model = new_model(profile, seed)
    work = folder / "work"

    @cache  # the text codec needs no pictures: none are rendered before a stage asks for them
    def corpora(split: str) -> list[Corpus]:
        return load_corpora(profile, split=split, persons=persons, workers=workers)

    latent: list[LatentCorpus] | None = None
    for name in [s for s in (*STAGES, "all_pairs") if s in stages]:
        if name in done and not again:
            continue
        needed = [s for s in STAGES[: STAGES.index(name)] if s not in done] if name in STAGES else []
        if name in ("image_codec", "text_codec", "alignment"):
            needed = []
        if needed:
            raise ValueError(f"stage {name} needs {', '.join(needed)} first: train without --stage, or name them too")
        stage: Stage
        if name == "image_codec":
            stage = ImageCodecStage(model, corpora("train"))
        elif name == "text_codec":
            stage = TextCodecStage(model)
        elif name == "alignment":
            stage = AlignmentStage(model, corpora("train"))
        else:
            model.to(device)
            latent = latent or [LatentCorpus.build(model, c, work) for c in corpora("train")]
            inherit_weights(model, name)
            stage = RoundStage(model, latent, name)
        result = run_stage(
            stage, profile.stages[name if name in profile.stages else "round1"], work, seed=seed, device=device,
            precision=precision, progress=progress,
        )  # fmt: skip
        if name == "image_codec":
            model.fit_standardisation(_raw_latents(model, corpora("train")))
        # Flows of later stages build on these weights: a stage trained again makes them stale.
        for later in STAGES[STAGES.index(name) + 1 :] if name in STAGES else ():
            if name in ("image_codec", "text_codec", "alignment") and later.startswith("round"):
                done.pop(later, None)
        done[name] = result | {"validation": validate(model, name, lambda: corpora("val"))}
        if name != "text_codec":
            summary["cohort"] = {c.region: f"{len(c)} studies, {c.fingerprint()}" for c in corpora("train")}
        if PartialState().is_main_process:
            model.save_pretrained(folder)
            text = json.dumps(summary, indent=1)
            atomic_write(folder / "training.json", lambda p, t=text: p.write_text(t, encoding="utf-8"))
            state_file(work, name).unlink(missing_ok=True)
        PartialState().wait_for_everyone()
        if name in ("image_codec", "text_codec", "alignment"):
            latent = None
    return model


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
