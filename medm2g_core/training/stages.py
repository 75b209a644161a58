"""The stages of training: what each one trains, on what, with which loss.

Every stage is a module whose forward draws a batch from a seeded generator and returns the loss. A
step therefore depends on nothing but the weights and (seed, step): training that was interrupted
continues as if
    it had not been.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from medm2g_core.alignment.encoders import Embedding
from medm2g_core.alignment.objective import (
    augmented_view,
    central_alignment_loss,
    info_nce,
    visual_invariant_loss,
)
from medm2g_core.codecs.image import image_codec_loss
from medm2g_core.codecs.text import text_codec_loss
from medm2g_core.flows.guidance import Guide
from medm2g_core.flows.prompt import Prompt, mix, null_prompt
from medm2g_core.model import MedM2G
from medm2g_core.streams import MODALITIES, stream
from medm2g_core.training.corpus import Corpus, LatentCorpus, random_reports

__all__ = [
    "ROUNDS",
    "AlignmentStage",
    "ImageCodecStage",
    "Mix",
    "Round",
    "RoundStage",
    "Stage",
    "TextCodecStage",
    "can_align",
    "inherit_weights",
]

Logs = dict[str, torch.Tensor]


class Stage(nn.Module):
    """Base of the stages.

    Attributes:
        name: of the stage.  model: the whole model; only `trainable` parameters move.
        parts: weight files (`MedM2G.part`) that the stage changes.
    """

    name: str
    parts: tuple[str, ...]

    def __init__(self, model: MedM2G) -> None:
        super().__init__()
        self.model = model

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names (as in ``model.state_dict()``) and parameters that this stage trains."""
        raise NotImplementedError

    def forward(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, Logs]:
        """Draw a batch with ``generator`` (on the CPU) and return the loss and what to log."""
        raise NotImplementedError


def _under(model: nn.Module, *prefixes: str) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes):
            yield name, parameter


def _draw(n: int, k: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(n, (k,), generator=generator)


def _seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**31, (1,), generator=generator))


def _noise(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Normal numbers of the shape and device of ``like``. On a GPU they are drawn there, from a
    seed that ``generator`` gives: millions of numbers from the CPU's generator would take as long
    as the rest of the step.
    """
    if like.device.type == "cpu":
        return torch.randn(like.shape, generator=generator)
    there = torch.Generator(like.device).manual_seed(_seed(generator))
    return torch.randn(like.shape, generator=there, device=like.device)


class ImageCodecStage(Stage):
    """Trains the image codec on all image streams alike."""

    name, parts = "image_codec", ("image_codec",)

    def __init__(self, model: MedM2G, corpora: Sequence[Corpus]) -> None:
        super().__init__(model)
        self.pools = [images for c in corpora for images in c.images.values()]

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return _under(self.model, "image_codec.")

    def forward(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, Logs]:
        which = _draw(len(self.pools), batch, generator).tolist()
        image = torch.stack(
            [self.pools[p][int(_draw(len(self.pools[p]), 1, generator))].float() for p in which]
        )
        image = image.to(self.model.device)  # (B, 1, H, W)
        shape = (batch, *self.model.latent_shape("xray"))
        noise = _noise(image.new_empty(shape), generator)
        return image_codec_loss(self.model.image_codec, image, noise)


class TextCodecStage(Stage):
    """Trains the text codec on reports that are written anew for every batch."""

    name, parts = "text_codec", ("text_codec",)

    def __init__(
        self, model: MedM2G, source: Callable[[int, int], list[str]] = random_reports
    ) -> None:
        super().__init__(model)
        self.source = source

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return _under(self.model, "text_codec.")

    def forward(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, Logs]:
        texts = self.source(batch, _seed(generator))
        return text_codec_loss(self.model.text_codec, *self.model.tokens(texts))


def can_align(corpus: Corpus) -> bool:
    """Whether the corpus has reports, images, and a second study to tell each study from."""
    return corpus.has_text and bool(corpus.images) and len(corpus) > 1


class AlignmentStage(Stage):
    """Central alignment plus the visual invariant; every batch mixes the corpora that have reports,
    by their weight."""

    name, parts = "alignment", ("alignment",)

    def __init__(self, model: MedM2G, corpora: Sequence[Corpus]) -> None:
        super().__init__(model)
        self.corpora = [c for c in corpora if can_align(c)]
        if not self.corpora:
            raise ValueError(
                "alignment needs two studies with a report and the same image streams; there are"
                " none"
            )

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return _under(self.model, "alignment.")

    def _studies(self, batch: int, generator: torch.Generator) -> list[tuple[Corpus, torch.Tensor]]:
        """Which studies of which corpus make the batch."""
        whole = sum(c.weight for c in self.corpora)
        out = []
        for corpus in self.corpora:
            n = min(max(2, batch * corpus.weight // whole), len(corpus))
            out.append((corpus, torch.randperm(len(corpus), generator=generator)[:n]))
        return out

    def forward(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, Logs]:
        config, encoders, device = (
            self.model.profile.alignment,
            self.model.alignment,
            self.model.device,
        )
        studies = self._studies(batch, generator)
        texts: list[str] = []
        images: dict[str, list[torch.Tensor]] = {}
        contrasts: dict[str, list[torch.Tensor]] = {}
        rows: dict[str, list[torch.Tensor]] = {}
        for corpus, index in studies:
            first = len(texts)
            w = _draw(len(corpus.reports[0]), len(index), generator).tolist()
            texts += [corpus.reports[i][j] for i, j in zip(index.tolist(), w, strict=True)]
            # One MR contrast of each region a step keeps the cost down; over the steps all are met.
            mr = [n for n in corpus.images if stream(n).modality == "mri"]
            chosen = [n for n in corpus.images if n not in mr]
            chosen += [mr[int(_draw(len(mr), 1, generator))]] if mr else []
            for n in chosen:
                m = stream(n).modality
                images.setdefault(m, []).append(corpus.images[n][index].float())
                contrasts.setdefault(m, []).append(torch.full((len(index),), stream(n).contrast))
                rows.setdefault(m, []).append(torch.arange(first, len(texts)))
        text = encoders("text", self.model.tokens(texts)).pooled.float()  # (B, D)
        modalities = list(images)
        looked = (
            modalities[int(_draw(len(modalities), 1, generator))]
            if config.invariant != "off"
            else None
        )
        invariant = text.new_zeros(())
        pooled: dict[str, torch.Tensor] = {}
        losses: list[torch.Tensor] = []
        for m in modalities:
            image, contrast = torch.cat(images[m]).to(device), torch.cat(contrasts[m]).to(device)
            view = augmented_view(image, generator)  # alignment sees augmented views too
            pooled[m] = encoders.encoders[m](view, contrast).pooled.float()  # (B_m, D)
            if m == looked:
                other = encoders.encoders[m](
                    augmented_view(image, generator), contrast
                ).pooled.float()
                invariant = visual_invariant_loss(pooled[m], other, config)
            row = torch.cat(rows[m]).to(device)
            losses.append(
                central_alignment_loss({"text": text[row], m: pooled[m]}, encoders.logit_scale)
            )
        if (
            config.pairs == "all"
        ):  # the ablation: every pair of image modalities as well, on the studies that have both
            for a, b in itertools.combinations(modalities, 2):
                of_a, of_b = torch.cat(rows[a]), torch.cat(rows[b])  # ascending, so the pairs match
                own_a, own_b = torch.isin(of_a, of_b).to(device), torch.isin(of_b, of_a).to(device)
                if own_a.any():
                    losses.append(
                        info_nce(pooled[a][own_a], pooled[b][own_b], encoders.logit_scale)
                    )
        align = torch.stack(losses).mean()
        with torch.no_grad():
            first_image = modalities[0]
            score = text[torch.cat(rows[first_image])] @ pooled[first_image].T
            hit = (score.argmax(1) == torch.arange(len(score), device=score.device)).float().mean()
        return align + config.invariant_weight * invariant, {
            "align": align,
            "invariant": invariant,
            "r@1": hit,
        }


@dataclass(frozen=True)
class Mix:
    """What a step of a round can be made of.

    Attributes:
        corpus: name of the corpus of the studies.  streams: that take part.
        weight: how often, relative to the other mixes of the round.
        targets: modalities with a loss; all of the streams' if empty.
        batch: studies relative to the stage's batch.
    """

    corpus: str
    streams: tuple[str, ...]
    weight: float
    targets: tuple[str, ...] = ()
    batch: int = 1


@dataclass(frozen=True)
class Round:
    """One round of multi-flow training.

    Attributes:
        trained: modalities whose flow and environment encoder train.
        frozen: modalities that take part with a fixed flow; only what lets them hear the new one
            trains.
        mixes: what a step can be made of.
        inherits: modality -> the one whose flow and environment encoder it starts from
            (`inherit_weights`).
    """

    trained: tuple[str, ...]
    frozen: tuple[str, ...]
    mixes: tuple[Mix, ...]
    inherits: tuple[tuple[str, str], ...] = ()


_CHEST_MR = ("mri_t1", "mri_t2")
_BRAIN_MR = ("mri_t1", "mri_t2", "mri_pd", "mri_flair")
ROUNDS: Mapping[str, Round] = {
    # A report without pictures (brain) lets the text flow learn to write it from an aligned
    # embedding alone. The text flow costs a fraction of an image flow and needs more examples, so
    # some steps are its own, and larger.
    "round1": Round(
        ("text", "xray"),
        (),
        (
            Mix("chest", ("text", "xray"), 0.5),
            Mix("chest", ("text", "xray"), 0.4, targets=("text",), batch=3),
            Mix("brain", ("text",), 0.1),
        ),
    ),
    "round2": Round(("ct",), ("text",), (Mix("chest", ("text", "ct"), 1.0),), (("ct", "xray"),)),
    # The frozen flow has little to learn (its ears for the new one), and a step through it costs as
    # much as any other.
    "round3": Round(
        ("mri",),
        ("ct",),
        (
            Mix("chest", ("ct", *_CHEST_MR), 0.15),
            Mix("chest", ("ct", *_CHEST_MR), 0.35, targets=("mri",)),
            Mix("brain", _BRAIN_MR, 0.5),
        ),
        (("mri", "ct"),),
    ),
    # Ablation: everything with everything at once.
    "all_pairs": Round(
        ("text", "xray", "ct", "mri"),
        (),
        (
            Mix("chest", ("text", "xray", "ct", *_CHEST_MR), 0.7),
            Mix("brain", ("text", *_BRAIN_MR), 0.3),
        ),
    ),
}


@torch.no_grad()
def inherit_weights(model: MedM2G, plan: str | Round) -> None:
    """Start a round's new flows from trained ones: every tensor of the same name and shape is
    copied.

    The image flows work on latents of one codec, so what the X-ray flow knows of bodies, prompts
    and guides is a far better start than noise. (The public ancestors start all image flows from
    one Stable Diffusion.)
    """
    plan = ROUNDS[plan] if isinstance(plan, str) else plan
    own = model.state_dict()
    for heir, donor in plan.inherits:
        for kind in ("flows", "environments"):
            for key, tensor in model.part(donor).items():
                twin = own.get(key.replace(f"{kind}.{donor}.", f"{kind}.{heir}.", 1))
                if (
                    key.startswith(f"{kind}.{donor}.")
                    and twin is not None
                    and twin.shape == tensor.shape
                ):
                    twin.copy_(tensor)


DROP_PROMPT, DROP_DETAILS, SELF_PROMPT, DROP_GUIDE = 0.15, 0.3, 0.2, 0.15
ALIKE_CLEAN, ALIKE_NOISY = 0.5, 0.2
"""Share of studies whose guides are all clean, and all at the noise level of the flow that they
guide."""
SELF_PROMPT_NOISE = 0.6
"""Deviation of the noise on a self prompt relative to the embedding's length: about the gap between
modalities."""


class RoundStage(Stage):
    """One round: flows of a few streams, each predicting its noise with the others as guides."""

    def __init__(
        self, model: MedM2G, corpora: Sequence[LatentCorpus], name: str, plan: Round | None = None
    ) -> None:
        """``plan`` is `ROUNDS` [name] unless another is given."""
        super().__init__(model)
        self.name, self.round = name, plan or ROUNDS[name]
        self.corpora = {c.name: c for c in corpora}
        self.parts = (*self.round.trained, *self.round.frozen)
        for m in self.parts:
            trained_with = model.prompt_projection(m).trained_with
            if m in self.round.trained:
                trained_with.zero_()
            for each in self.round.mixes:
                modalities = [stream(s).modality for s in each.streams]
                for other in {o for o in modalities if o != m or modalities.count(m) > 1}:
                    if m in modalities:
                        trained_with[MODALITIES.index(other)] = 1

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        for m in self.round.trained:
            yield from _under(self.model, f"flows.{m}.", f"environments.{m}.")
        for m in self.round.frozen:
            for name, parameter in _under(self.model, f"flows.{m}."):
                ways = (
                    f".{way}.{n}"
                    for n in self.round.trained
                    for way in ("gate", "prompt.details", "maps")
                )
                if any(way in name for way in ways):
                    yield name, parameter

    def forward(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, Logs]:
        weights = torch.tensor([each.weight for each in self.round.mixes])
        chosen_mix = self.round.mixes[int(torch.multinomial(weights, 1, generator=generator))]
        streams, batch = chosen_mix.streams, batch * chosen_mix.batch
        corpus, device = self.corpora[chosen_mix.corpus], self.model.device
        index = _draw(len(corpus), batch, generator)
        wording = _draw(corpus.wordings, batch, generator)
        targets = self._targets(streams, chosen_mix.targets, generator)
        z0 = {n: corpus.latent(n, index, wording).to(device) for n in streams}
        hear = {n: corpus.embedding(n, index, wording) for n in streams}
        hear = {
            n: Embedding(e.pooled.to(device), e.tokens.to(device), e.mask.to(device))
            for n, e in hear.items()
        }

        # One level for all targets of a study, as in joint sampling (and in CoDi); guides also come
        # at other levels.
        t = self.model.schedule.sample_levels(batch, generator)  # (B,)
        eps = {n: _noise(z, generator) for n, z in z0.items()}
        guides, flat = self._guides(streams, t, z0, eps, generator)
        losses, logs = [], {}
        for m in targets:
            chosen = [g for n, g in guides.items() if n != m]
            prompt = self._prompt(m, hear, generator)
            level = t.to(device)
            zt = self.model.schedule.add_noise(z0[m], eps[m], level)
            prediction = self.model.flow(m, zt, level, prompt, chosen)
            error = (
                (prediction.float() - self.model.schedule.target(z0[m], eps[m], level))
                .square()
                .mean()
            )
            losses.append(error)
            logs[f"loss_{stream(m).modality}"] = error
        loss = torch.stack(losses).sum()
        config = self.model.profile.flow
        if config.env_contrast and len(flat) > 1:
            names = list(flat)
            pairs = [(flat[names[0]], flat[n]) for n in names[1:]]
            env = torch.stack(
                [info_nce(a, b, torch.tensor(2.3, device=device)) for a, b in pairs]
            ).mean()
            loss, logs["env"] = loss + config.env_contrast * env, env
        return loss, logs

    def _targets(
        self, streams: tuple[str, ...], wanted: tuple[str, ...], generator: torch.Generator
    ) -> tuple[str, ...]:
        """Streams with a loss this step: one a modality; a modality with several streams takes
        turns."""
        out = []
        for m in dict.fromkeys(
            stream(s).modality for s in streams if not wanted or stream(s).modality in wanted
        ):
            own = [s for s in streams if stream(s).modality == m]
            out.append(own[int(_draw(len(own), 1, generator))])
        return tuple(out)

    def _guides(
        self,
        streams: tuple[str, ...],
        t: torch.Tensor,
        z0: Mapping[str, torch.Tensor],
        eps: Mapping[str, torch.Tensor],
        generator: torch.Generator,
    ) -> tuple[dict[str, Guide], dict[str, torch.Tensor]]:
        """Every stream as a guide at a noise level s.

        In half of the studies all guides are clean (they are given), in a fifth all are as noisy as
        the flow that they guide (all are drawn together); in the rest each is either of these or at
        a level of its own.
        """
        device, batch = self.model.device, len(next(iter(z0.values())))
        guides: dict[str, Guide] = {}
        flat: dict[str, torch.Tensor] = {}
        if len(streams) < 2:
            return guides, flat
        alike = torch.rand(batch, generator=generator)
        for n in streams:
            kind = torch.where(
                alike < ALIKE_CLEAN + ALIKE_NOISY, alike, torch.rand(batch, generator=generator)
            )
            free = self.model.schedule.sample_levels(batch, generator)
            s = torch.where(
                kind < ALIKE_CLEAN, 0.0, torch.where(kind < ALIKE_CLEAN + ALIKE_NOISY, t, free)
            ).to(device)
            # With many possible guides each is absent more often, so that every subset is met.
            absent = DROP_GUIDE if len(streams) == 2 else 2 * DROP_GUIDE
            present = (torch.rand(batch, generator=generator) >= absent).float().to(device)
            zs = self.model.schedule.add_noise(z0[n], eps[n], s)
            guides[n] = self.model.environment(n, zs, s, present)
            flat[n] = F.normalize(guides[n].tokens.float().mean(1), dim=-1)
        return guides, flat

    def _prompt(self, m: str, hear: Mapping[str, Embedding], generator: torch.Generator) -> Prompt:
        """A prompt for stream m: a random mix of the other streams, or its own embedding with
        noise, or none.

        The self prompt is what lets pairs that never train together understand each other: the flow
        learns to follow a point of the aligned space, and text is aligned with every modality.
        """
        batch = len(hear[m].pooled)
        others = {n: e for n, e in hear.items() if n != m}
        device, like = hear[m].pooled.device, hear[m].pooled
        keep = (torch.rand(batch, generator=generator) >= DROP_PROMPT).float().to(device)
        details = (torch.rand(batch, generator=generator) >= DROP_DETAILS).float().to(device)
        alone = torch.rand(batch, generator=generator)
        noise = _noise(like, generator) / like.shape[1] ** 0.5
        own = F.normalize(like + SELF_PROMPT_NOISE * noise, dim=-1)
        if not others:
            return Prompt(own, torch.ones(batch, device=device)).drop(keep)
        pick = torch.rand(len(others), batch, generator=generator)
        weights = (pick >= 0.5).float()
        weights[int(_draw(len(others), 1, generator))] = 1.0  # at least one
        prompt = mix(others, {n: w.to(device) for n, w in zip(others, weights, strict=True)})
        use_self = (alone < SELF_PROMPT).float().to(device)
        details = details * (1 - use_self)
        pooled = torch.where(use_self[:, None] > 0, own, prompt.pooled)
        return Prompt(pooled, prompt.present, prompt.details).drop(keep, details)


def no_prompt(model: MedM2G, batch: int) -> Prompt:
    """No prompt for a batch on the model's device."""
    return null_prompt(batch, model.profile.alignment.embed_dim, model.latent_shift)
