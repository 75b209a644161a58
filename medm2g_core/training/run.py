"""From nothing to a model folder: all stages in order, each resumable and each on its own."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState

import medm2g_core
from medm2g_core.codecs.tokenizer import train_tokenizer
from medm2g_core.flows.image import ImageFlow
from medm2g_core.model import PARTS, CheckpointError, MedM2G
from medm2g_core.profiles import (
    BASE_STAGES,
    FLOW_STAGES,
    REPORT_STAGE,
    ROUND_STAGES,
    STAGES,
    Profile,
)
from medm2g_core.storage import atomic_write
from medm2g_core.streams import MODALITIES
from medm2g_core.training.corpus import Corpus, random_prompts, random_reports
from medm2g_core.training.data import EmbeddedData, TrainingData, codec_texts
from medm2g_core.training.latents import LatentCorpus, weights_key
from medm2g_core.training.loop import run_stage, state_file
from medm2g_core.training.rounds import ROUNDS, Round, begin_round, initialise_flows, trained_with
from medm2g_core.training.stages import (
    AlignmentStage,
    ImageCodecStage,
    ReportStage,
    RoundStage,
    Stage,
    TextCodecStage,
)
from medm2g_core.training.validate import validate

__all__ = ["near_device", "new_model", "train"]

Near = TypeVar("Near", Corpus, LatentCorpus)

ROUNDS_FOLDER = "rounds"
"""Below the model's folder: the model as the paper's rounds left it. ``joint`` goes on from there,
and what pairs that never trained together can do is measured with it."""
TEXT_POOL = 65536
"""Texts that a GPU draws from: its text codec sees each less than ten times."""

TOKENIZER_TEXTS = 2000
"""Reports, and as many prompts, that a tokenizer is fitted to: capitals, abbreviations and British
spelling, which only prompts have, else cost a token a letter."""


def new_model(
    profile: Profile,
    seed: int = 0,
    *,
    like: MedM2G | None = None,
    parts: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> MedM2G:
    """An untrained model with a tokenizer of its own; the seed fixes every weight.

    Args:
        like: a trained model, whose tokenizer and ``parts`` (`medm2g_core.model.PARTS`) are taken
            over.
        texts: what the tokenizer is fitted to; by default reports and prompts of the grammars, one
            half each.
    """
    texts = texts or [
        *random_reports(TOKENIZER_TEXTS, seed),
        *random_prompts(TOKENIZER_TEXTS, seed + 1),
    ]
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
    stable_diffusion: str | Path | None = None,
    progress: bool = True,
) -> MedM2G:
    """Train ``stages`` and leave a model in ``folder``.

    A stage that ``folder/training.json`` lists as finished is loaded, not trained again, unless
    ``again``; one that was interrupted goes on. ``folder/work`` holds caches and unfinished states.
    What a stage trains begins at the seed's weights, or at those of ``start``, whatever ``folder``
    held before; and once it is finished, stages that were built on it no longer are.

    Args:
        stages: those for which the data has no streams are left out, with a line that says so;
            those that this profile does not have (`Profile.trains`) without one.
        again: take these stages, and those that build on them, off the list of finished ones first.
            The same call goes on where it was interrupted.
        data: by default the embedded cohort.
        start: folder of a model of the same configuration that training starts from, instead of
            from nothing; every stage can then be trained on its own.
        stable_diffusion: folder with a ``unet`` and a ``vae`` of Stable Diffusion, whose weights
            the image flows and the image autoencoder start from; the rest starts from the seed.

    Raises:
        OSError: ``stable_diffusion`` holds no such weights.
        ValueError: an unknown stage, one whose predecessors are not finished, nothing that the data
            could train, weights of ``stable_diffusion`` that do not fit, or a start given to a
            folder that did not start from it, or left out.
        CheckpointError: ``folder`` or ``start`` holds a model of another configuration, or
            ``folder`` one that was trained on other data.
        StageInterrupted: Ctrl-C; the same call goes on.
    """
    folder = Path(folder)
    processes = PartialState(cpu=torch.device(device).type == "cpu")
    unknown = set(stages) - set(_ORDER)
    if unknown:
        raise ValueError(f"unknown stage {sorted(unknown)[0]!r}; known: {', '.join(STAGES)}")
    summary = _summary(folder)
    done: dict[str, Any] = summary["stages"]
    data = data or EmbeddedData(profile)
    stages = [s for s in stages if profile.trains(s)]
    if not stages:
        raise ValueError(f"nothing to train: profile {profile.name!r} has no such stage")
    lacking = {s: why for s in _ORDER if profile.trains(s) and (why := data.lacks(s))}
    if all(s in lacking for s in stages):
        raise ValueError(
            f"nothing to train: {'; '.join(f'{s}: {lacking[s]}' for s in stages)} in this data"
        )
    for s in (s for s in STAGES if s in stages and s in lacking):
        print(f"{s} is left out: {lacking[s]} in this data")
    chosen = [s for s in _ORDER if s in stages and s not in lacking]
    work = folder / "work"
    origin = _Origin(profile, seed, start, stable_diffusion)
    if done:
        origin.check(folder, summary, again)
    # Parts whose weights in the folder are no longer those that training began with.
    moved = set(summary.get("trained parts") or [p for s in done for p in _parts_of(s)])
    unfinished = set(summary.get("again", ())) & set(chosen)
    if again and not unfinished:
        unfinished = set(chosen) & set(done)
        for s in chosen:
            if s in unfinished and processes.is_main_process:
                state_file(work, s).unlink(missing_ok=True)
            _forget(s, done, work)
    if not done:
        moved.clear()

    facts = data.facts()
    before, now = (
        name_of.get("source", {}).get("name", "virtual patients") for name_of in (summary, facts)
    )
    if done and before != now:
        raise CheckpointError(
            f"{folder} was trained on {before}, and now it would be {now}: train into another"
            f" folder, with --start {folder} if it shall go on from there"
        )
    if done:
        model = MedM2G.from_pretrained(folder)
        _same_configuration(model, profile, folder)
        model.profile = profile
    else:
        summary.pop("start", None)
        summary.pop("stable diffusion", None)
        reports = data.reports(TOKENIZER_TEXTS, seed)
        model = origin.model(texts=[*reports, *data.prompts(TOKENIZER_TEXTS, seed + 1)])
        if start is None:  # no flow was trained with anything yet
            for m in MODALITIES:
                model.prompt_projection(m).trained_with.zero_()
    if origin.record:
        summary["start"] = origin.record
    if origin.ancestor:
        summary["stable diffusion"] = origin.ancestor
    summary |= {
        "profile": profile.name,
        "seed": seed,
        "version": medm2g_core.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {platform.system()}",
        "left out": lacking,
        **facts,
    }
    data.fit(model)

    def record() -> None:
        summary["trained parts"] = sorted(moved)
        summary["trained with"] = trained_with(model)
        summary.pop("again", None)
        if unfinished:
            summary["again"] = sorted(unfinished)
        if processes.is_main_process:
            text = json.dumps(summary, indent=1)
            atomic_write(folder / "training.json", lambda p: p.write_text(text, encoding="utf-8"))

    if unfinished:
        record()
    latent: list[LatentCorpus] | None = None
    for name in chosen:
        if name in done:
            continue
        without = {s for s in STAGES if not profile.trains(s)}
        _check_order(name, {*done, *lacking, *without}, started="start" in summary)
        # Between the rounds the studies stay: encoding them anew would take long.
        if (latent is None or name == "joint") and data.grow():
            latent = None
        stage: Stage
        if name == "image_codec":
            stage = ImageCodecStage(model, near_device(device, data.corpora("train")))
        elif name == "text_codec":
            source = codec_texts(data, profile.text_codec.prompt_share)
            pool = 0 if torch.device(device).type == "cpu" else TEXT_POOL
            stage = TextCodecStage(model.to(device), source, pool)
        elif name == "alignment":
            stage = AlignmentStage(model, near_device(device, data.corpora("train")))
        else:
            model.to(device)
            latent = latent or _encoded(model, data.corpora("train"), device, work)
            stage = (
                ReportStage(model, latent)
                if name == REPORT_STAGE
                else RoundStage(model, latent, name, data.round(name))
            )
        rounds_left = folder / ROUNDS_FOLDER
        left = name in FLOW_STAGES and bool(done.keys() & set(ROUND_STAGES))
        if left and not (rounds_left / "config.json").is_file():  # rounds of an earlier version
            model.save_pretrained(rounds_left)
        if left:  # what ``joint`` made of the flows since does not count
            _go_on_from(rounds_left, model)
        if moved & set(_parts_of(name)) and not (left and name == "joint"):
            origin.check(folder, summary, needed=True)
            earlier = ROUND_STAGES[: ROUND_STAGES.index(name)] if name in ROUND_STAGES else ()
            plans = [data.round(s) for s in earlier if "start" not in summary]
            _restore(stage, origin, plans)
        if isinstance(stage, RoundStage):
            # From a trained model the flows have learnt more than those that they would start from.
            begin_round(model, stage.round, continued="start" in summary)
        elif isinstance(stage, ReportStage):
            stage.begin(continued="start" in summary)
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
            model.fit_standardisation(_raw_latents(model, data.corpora("train")))
        _forget(name, done, work)
        done[name] = result | {"validation": validate(model, name, data)}
        moved |= set(_parts_of(name))
        unfinished.discard(name)
        if name != "text_codec":
            summary["cohort"] = {
                c.name: f"{len(c)} studies, {c.fingerprint()}" for c in data.corpora("train")
            }
        if processes.is_main_process:
            model.save_pretrained(folder)
            if name in ROUND_STAGES:
                model.save_pretrained(rounds_left)
            record()
            state_file(work, name).unlink(missing_ok=True)
        processes.wait_for_everyone()
        if name in BASE_STAGES:
            latent = None
    return model


_ORDER = (*STAGES, "all_pairs")


def _parts_of(stage: str) -> tuple[str, ...]:
    """Weight files that a stage trains as a whole."""
    if stage == REPORT_STAGE:
        return ("writer",)
    return (stage,) if stage in BASE_STAGES else ROUNDS[stage].trained


def _forget(stage: str, done: dict[str, Any], work: Path) -> None:
    """Take a stage, and what was built on it, off the finished and the interrupted ones.

    The rounds stand on the base and on earlier rounds, and ``joint`` on all of them; ``all_pairs``
    trains the same flows. The report writer stands on the base, and nothing on it.
    """
    rounds = [*FLOW_STAGES, "all_pairs"]
    later = rounds[rounds.index(stage) + 1 :] if stage in FLOW_STAGES else rounds
    if stage == REPORT_STAGE:
        later = []
    elif stage in BASE_STAGES:
        later = [REPORT_STAGE, *rounds]
    done.pop(stage, None)
    for each in later:
        done.pop(each, None)
        if each != stage and PartialState().is_main_process:
            state_file(work, each).unlink(missing_ok=True)


def _check_order(name: str, finished: set[str], *, started: bool) -> None:
    """Raise ``ValueError`` for a round, or the report writer, whose predecessors are not
    finished."""
    if name not in (REPORT_STAGE, *FLOW_STAGES) or started:
        return
    if needed := [s for s in STAGES[: STAGES.index(name)] if s not in finished]:
        raise ValueError(
            f"stage {name} needs {', '.join(needed)} first: train without --stage, or name them too"
        )


class _Origin:
    """The weights that training begins with: those of a seed, perhaps with parts of Stable
    Diffusion, or of a trained model.

    Attributes:
        record: what the folder notes of a trained model that it started from; ``""`` for a seed.
        ancestor: what it notes of Stable Diffusion's weights; ``""`` without them.
    """

    def __init__(
        self,
        profile: Profile,
        seed: int,
        start: str | Path | None,
        stable_diffusion: str | Path | None,
    ) -> None:
        if start is not None and stable_diffusion is not None:
            raise ValueError("start and stable_diffusion: all weights come from start, give one")
        self.profile, self.seed, self.start, self.record = profile, seed, start, ""
        self.stable_diffusion, self.ancestor = stable_diffusion, ""
        if start is not None:
            self._base = MedM2G.from_pretrained(start)
            _same_configuration(self._base, profile, start)
            self.record = f"{self._base.profile.name}, {weights_key(self._base, PARTS)}"
        if stable_diffusion is not None:
            self.ancestor = Path(stable_diffusion).resolve().name

    def check(self, folder: Path, summary: Mapping[str, Any], needed: bool) -> None:
        """Raise ``ValueError`` if the folder started from something else, or if it started from
        weights that are ``needed`` now and were not given.

        Args:
            summary: ``training.json`` of the folder.
        """
        recorded = summary.get("start", ""), summary.get("stable diffusion", "")
        given = self.record, self.ancestor
        began = f"from {' and '.join(filter(None, recorded)) or 'nothing'}"
        source = self.start or self.stable_diffusion
        if any(given) and given != recorded:
            raise ValueError(
                f"{folder} started {began}, not from {source}: train into another folder"
            )
        if needed and any(recorded) and not any(given):
            flag = "--start" if recorded[0] else "--start-from-stable-diffusion"
            raise ValueError(
                f"{folder} started {began}, and a stage is to start there again: name that folder"
                f" with {flag}"
            )

    def model(self, *, like: MedM2G | None = None, texts: Sequence[str] = ()) -> MedM2G:
        """A model with these weights, and the tokenizer of the start, of ``like``, or a new one."""
        if self.start is not None:
            return new_model(self.profile, self.seed, like=self._base, parts=PARTS)
        model = new_model(self.profile, self.seed, like=like, texts=texts)
        if self.stable_diffusion is not None:
            folder = str(self.stable_diffusion)
            model.image_codec.load_stable_diffusion(folder)
            for flow in model.flows.values():
                if isinstance(flow, ImageFlow):
                    flow.load_stable_diffusion(folder)
        return model


def _restore(stage: Stage, origin: _Origin, earlier: Sequence[Round]) -> None:
    """Give what a stage trains, and has trained before in this folder, the weights that it began
    with.

    Args:
        earlier: rounds before it. Flows that they initialise brought the entries of later sources
            from there.
    """
    model = stage.model
    begun = origin.model(like=model)
    for plan in earlier:
        initialise_flows(begun, plan)
    first = begun.state_dict()
    names = {key for part in stage.parts for key in model.part(part)}
    names |= {name for name, _ in stage.trainable()}
    model.load_state_dict({n: first[n] for n in names}, strict=False)


def _go_on_from(folder: Path, model: MedM2G) -> None:
    """Give the model the flows, environment encoders and notes of another one, of the same
    configuration."""
    before = MedM2G.from_pretrained(folder)
    for m in MODALITIES:
        model.load_state_dict(before.part(m), strict=False)


def near_device(device: str, corpora: Sequence[Near]) -> list[Near]:
    """The studies in the GPU's memory, if they take at most a quarter of what is free; else as they
    are."""
    return [c.to(device) for c in corpora] if fits(device, *corpora) else list(corpora)


def _encoded(
    model: MedM2G, corpora: Sequence[Corpus], device: str, work: Path
) -> list[LatentCorpus]:
    """The studies as the flows see them: in a GPU's memory where they fit, else in files."""
    batch = 64 if torch.device(device).type == "cpu" else 256
    acquisitions = model.profile.data.acquisitions
    latent = [
        LatentCorpus.build(model, c, None if fits(device, c) else work, batch, acquisitions)
        for c in corpora
    ]
    return near_device(device, latent)


def fits(device: str, *corpora: Corpus | LatentCorpus) -> bool:
    """Whether ``device`` is a GPU of whose free memory the studies take at most a quarter."""
    if torch.device(device).type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return sum(c.bytes() for c in corpora) <= free / 4


def _same_configuration(model: MedM2G, profile: Profile, folder: str | Path) -> None:
    """Raise `CheckpointError` unless only what training alone reads differs."""
    budgets = {"stages": 0, "data": 0, "conditioning": 0, "reports": 0}
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
