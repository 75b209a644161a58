"""What a step of training sees: drawn from a seeded generator, data only, no network runs.

``draw(n, generator, device)`` of each class here returns a plain dataclass of tensors and texts,
and everything random that the objective needs is in it. So a step depends on nothing but the
weights and the generator's seed, and a batch could as well be drawn ahead, by a worker.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional as F

from medm2g_core.alignment.encoders import Embedding
from medm2g_core.alignment.objective import augmented_view, normal
from medm2g_core.data.acquisition import acquire
from medm2g_core.flows.prompt import Prompt, weighted_prompt
from medm2g_core.profiles import ConditioningConfig
from medm2g_core.streams import stream
from medm2g_core.training.corpus import Corpus, LatentCorpus
from medm2g_core.training.rounds import Mix, Round

__all__ = [
    "AlignmentBatch",
    "AlignmentBatches",
    "Batches",
    "ImageBatch",
    "ImageBatches",
    "Levels",
    "RoundBatch",
    "RoundBatches",
    "TextBatch",
    "TextBatches",
    "can_align",
    "draw_guide_sets",
    "normal",
]

Levels = Callable[[int, torch.Generator], torch.Tensor]
"""(n, generator) -> n training noise levels on the CPU, as `NoiseSchedule.sample_levels`."""


class Batches(Protocol):
    """Draws the batches of a stage."""

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> Any:
        """A batch of about ``n`` studies on ``device``; ``generator`` lies on the CPU."""
        ...


def _integers(high: int, n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(high, (n,), generator=generator)


def _integer(high: int, generator: torch.Generator) -> int:
    return int(_integers(high, 1, generator))


def _other_scanner(
    image: torch.Tensor, name: str, share: float, generator: torch.Generator
) -> torch.Tensor:
    """A share of the pictures (B, 1, H, W) of a stream as other scanners would show them."""
    k = int((torch.rand(len(image), generator=generator) < share).sum())
    if not k:
        return image
    draw = torch.Generator(image.device).manual_seed(_integer(2**31, generator))
    return torch.cat([acquire(image[:k], name, draw), image[k:]])


def _where(chosen: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """``a`` (B, ...) where ``chosen`` (B,), else ``b``."""
    return torch.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b)


def _there(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``x`` on the device. A GPU takes small tensors along with its commands: it is not waited
    for."""
    return x.to(device, non_blocking=True)


# ---- codecs


@dataclass
class ImageBatch:
    """``image`` (B, 1, H, W) in -1..1; ``noise`` (B, C, h, w) in the shape of their latents."""

    image: torch.Tensor
    noise: torch.Tensor


class ImageBatches:
    """Pictures of all image streams alike, whatever their number.

    Args:
        latent_shape: (C, h, w) of one latent.
        acquired: share of pictures that are shown as another scanner would show them.
    """

    def __init__(
        self, corpora: Sequence[Corpus], latent_shape: Sequence[int], acquired: float = 0.0
    ) -> None:
        self.pools = [item for c in corpora for item in c.images.items()]
        self.latent_shape, self.acquired = tuple(latent_shape), acquired

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> ImageBatch:
        # As many of each stream as of the others; where that does not divide, chance decides.
        share = torch.full((len(self.pools),), n // len(self.pools))
        share[torch.randperm(len(self.pools), generator=generator)[: n % len(self.pools)]] += 1
        images = []
        for (name, pool), k in zip(self.pools, share.tolist(), strict=True):
            index = _there(_integers(len(pool), k, generator), pool.device)
            image = pool[index].to(device).float()  # (k, 1, H, W)
            images.append(_other_scanner(image, name, self.acquired, generator))
        noise = normal((n, *self.latent_shape), generator, device)  # (B, C, h, w)
        return ImageBatch(torch.cat(images), noise)


@dataclass
class TextBatch:
    """B reports."""

    texts: list[str]


class TextBatches:
    """Reports from ``source(n, seed)``: written anew for every batch, or drawn from a data set."""

    def __init__(self, source: Callable[[int, int], list[str]]) -> None:
        self.source = source

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> TextBatch:
        return TextBatch(self.source(n, _integer(2**31, generator)))


# ---- alignment


@dataclass
class AlignmentBatch:
    """Reports and augmented pictures of the same patients.

    Attributes:
        texts: B reports, those of one corpus after those of the other.
        rows: image modality -> (B_m,) which reports its pictures belong to, ascending.
        views: image modality -> (B_m, 1, H, W) in -1..1.
        contrasts: image modality -> (B_m,) index of the MR contrast.
        second: a modality and another view of its pictures, for the visual invariant; or ``None``.
    """

    texts: list[str]
    rows: dict[str, torch.Tensor]
    views: dict[str, torch.Tensor]
    contrasts: dict[str, torch.Tensor]
    second: tuple[str, torch.Tensor] | None


def can_align(corpus: Corpus) -> bool:
    """Whether the corpus has reports, images, and a second study to tell each study from."""
    return corpus.has_text and bool(corpus.images) and len(corpus) > 1


class AlignmentBatches:
    """Every batch mixes the corpora that have reports, by their weight.

    Args:
        second_view: whether the visual invariant is trained.
        acquired: share of pictures that are shown as another scanner would show them.

    Raises:
        ValueError: no corpus can be aligned.
    """

    def __init__(self, corpora: Sequence[Corpus], second_view: bool, acquired: float = 0.0) -> None:
        self.corpora, self.acquired = [c for c in corpora if can_align(c)], acquired
        self.second_view = second_view
        if not self.corpora:
            raise ValueError(
                "alignment needs two studies with a report and the same image streams; there are"
                " none"
            )

    def _studies(self, n: int, generator: torch.Generator) -> list[tuple[Corpus, torch.Tensor]]:
        """Which studies of which corpus make the batch."""
        whole = sum(c.weight for c in self.corpora)
        out = []
        for corpus in self.corpora:
            own = min(max(2, n * corpus.weight // whole), len(corpus))
            out.append((corpus, torch.randperm(len(corpus), generator=generator)[:own]))
        return out

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> AlignmentBatch:
        texts: list[str] = []
        images: dict[str, list[torch.Tensor]] = {}
        contrasts: dict[str, list[torch.Tensor]] = {}
        rows: dict[str, list[torch.Tensor]] = {}
        for corpus, index in self._studies(n, generator):
            first = len(texts)
            w = _integers(len(corpus.reports[0]), len(index), generator).tolist()
            texts += [corpus.reports[i][j] for i, j in zip(index.tolist(), w, strict=True)]
            # One MR contrast of each region a step keeps the cost down; over the steps all come.
            mr = [s for s in corpus.images if stream(s).modality == "mri"]
            chosen = [s for s in corpus.images if s not in mr]
            chosen += [mr[_integer(len(mr), generator)]] if mr else []
            for s in chosen:
                m = stream(s).modality
                image = corpus.images[s][index].to(device).float()
                images.setdefault(m, []).append(_other_scanner(image, s, self.acquired, generator))
                contrasts.setdefault(m, []).append(torch.full((len(index),), stream(s).contrast))
                rows.setdefault(m, []).append(torch.arange(first, len(texts)))
        modalities = list(images)
        looked = modalities[_integer(len(modalities), generator)] if self.second_view else None
        views, second = {}, None
        for m in modalities:
            image = torch.cat(images[m])  # (B_m, 1, H, W)
            views[m] = augmented_view(image, generator)
            if m == looked:
                second = (m, augmented_view(image, generator))
        return AlignmentBatch(
            texts,
            {m: torch.cat(x).to(device) for m, x in rows.items()},
            views,
            {m: torch.cat(x).to(device) for m, x in contrasts.items()},
            second,
        )


# ---- rounds


@dataclass
class RoundBatch:
    """Studies of one mix of a round.

    Attributes:
        targets: streams with a loss.
        latents: stream -> z_0 (B, ...).  noise: stream -> eps in the same shape.
        level: (B,) noise level t of all targets of a study, as in joint sampling (and in CoDi).
        guide_levels: stream -> (B,) noise level s at which it guides; empty for a single stream.
        guide_latents: stream -> clean latent (B, ...) of what guides: z_0, or where the guide is
            given that of another acquisition.
        present: target -> guide -> (B,) 1 where the guide is there for this target, else 0.
        prompts: target -> its prompt.
    """

    targets: tuple[str, ...]
    latents: dict[str, torch.Tensor]
    noise: dict[str, torch.Tensor]
    level: torch.Tensor
    guide_levels: dict[str, torch.Tensor]
    guide_latents: dict[str, torch.Tensor]
    present: dict[str, dict[str, torch.Tensor]]
    prompts: dict[str, Prompt]


def draw_guide_sets(
    n_guides: int, batch: int, config: ConditioningConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which guides and whether the prompt is there, for each study of a batch.

    A guide that is dropped on its own is hardly ever dropped together with all others, yet every
    flow must draw without any. So the set is drawn as a set: how many guides, from none to all,
    then which. In a share ``drop_all`` there is neither prompt nor guide; in all other studies at
    least one of them stays.

    Returns:
        (n_guides, batch) and (batch,), 1 where the guide, or the prompt, is there, else 0.
    """
    nothing = torch.rand(batch, generator=generator) < config.drop_all  # (B,)
    none = torch.rand(batch, generator=generator) < config.drop_guides
    count = 1 + torch.randint(max(n_guides, 1), (batch,), generator=generator)  # 1 .. n_guides
    whole = torch.rand(batch, generator=generator) < config.all_guides
    count = torch.where(whole, n_guides, count)
    count = torch.where(nothing | none, 0, count)
    place = torch.rand(n_guides, batch, generator=generator).argsort(0).argsort(0)  # (S, B)
    guides = place < count
    alone = ~guides.any(0)
    no_prompt = torch.rand(batch, generator=generator) < config.drop_prompt
    prompt = ~nothing & (alone | ~no_prompt)
    return guides.float(), prompt.float()


class RoundBatches:
    """Studies of a round's mixes, their latents noised, with the guides and prompts they get.

    Args:
        levels: draws training noise levels.
    """

    def __init__(
        self,
        corpora: Sequence[LatentCorpus],
        plan: Round,
        config: ConditioningConfig,
        levels: Levels,
    ) -> None:
        self.corpora = {c.name: c for c in corpora}
        self.plan, self.config, self.levels = plan, config, levels

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> RoundBatch:
        weights = torch.tensor([each.weight for each in self.plan.mixes])
        chosen = self.plan.mixes[int(torch.multinomial(weights, 1, generator=generator))]
        streams, batch = chosen.streams, n * chosen.batch
        corpus = self.corpora[chosen.corpus]
        index = _integers(len(corpus), batch, generator)
        wording = _integers(corpus.wordings, batch, generator)
        targets = draw_targets(chosen, generator)
        latents = {s: corpus.latent(s, index, wording).to(device) for s in streams}
        embeddings = {s: corpus.embedding(s, index, wording).to(device) for s in streams}
        others = self.draw_acquisitions(corpus, streams, index, embeddings, generator)
        level = self.levels(batch, generator)  # (B,)
        noise = {s: normal(z.shape, generator, device) for s, z in latents.items()}
        guide_levels = {
            s: _there(x, device)
            for s, x in self.draw_guide_levels(streams, level, generator).items()
        }
        guide_latents = {
            s: _where(others[s][0] & (guide_levels[s] == 0), others[s][1], latents[s])
            if s in others
            else latents[s]
            for s in guide_levels
        }
        present, prompts = {}, {}
        for m in targets:
            guides = [s for s in streams if s != m]
            sets, prompted = draw_guide_sets(len(guides), batch, self.config, generator)
            present[m] = dict(zip(guides, _there(sets, device), strict=True))
            prompts[m] = self.draw_prompt(m, embeddings, prompted, generator)
        return RoundBatch(
            targets,
            latents,
            noise,
            _there(level, device),
            guide_levels,
            guide_latents,
            present,
            prompts,
        )

    def draw_acquisitions(
        self,
        corpus: LatentCorpus,
        streams: Sequence[str],
        index: torch.Tensor,
        embeddings: dict[str, Embedding],
        generator: torch.Generator,
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Pictures that were taken by another scanner, in a share ``acquired`` of the studies.

        ``embeddings`` get theirs in place.

        Returns:
            stream -> (B,) bool where, and latents (B, ...) of such a picture for every study.
        """
        out = {}
        for s in streams:
            chosen = torch.rand(len(index), generator=generator) < self.config.acquired
            which = _integers(2**15, len(index), generator)
            found = corpus.other_acquisition(s, index, which)
            if found is None:
                continue
            like = embeddings[s]
            z, e = found[0].to(like.pooled.device), found[1].to(like.pooled.device)
            chosen = _there(chosen, like.pooled.device)
            embeddings[s] = Embedding(
                _where(chosen, e.pooled, like.pooled),
                _where(chosen, e.tokens, like.tokens),
                like.mask,
            )
            out[s] = (chosen, z)
        return out

    def draw_guide_levels(
        self, streams: Sequence[str], level: torch.Tensor, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Every stream as a guide at a noise level s (B,).

        In a share ``guides_clean`` of the studies all guides are clean (they are given), in a
        share ``guides_alike`` all are as noisy as the target (all are drawn together); in the rest
        each is either of these or at a level of its own.
        """
        if len(streams) < 2:
            return {}
        clean, settled = (
            self.config.guides_clean,
            self.config.guides_clean + self.config.guides_alike,
        )
        batch, out = len(level), {}
        alike = torch.rand(batch, generator=generator)
        for s in streams:
            own = torch.rand(batch, generator=generator)
            kind = torch.where(alike < settled, alike, own)
            free = self.levels(batch, generator)
            out[s] = torch.where(kind < clean, 0.0, torch.where(kind < settled, level, free))
        return out

    def draw_prompt(
        self,
        target: str,
        embeddings: Mapping[str, Embedding],
        prompted: torch.Tensor,
        generator: torch.Generator,
    ) -> Prompt:
        """A prompt for one stream: a random mix of the other streams, or its own embedding with
        noise; only where ``prompted`` (B,) is 1.

        The self prompt is what lets pairs that never train together work: the flow learns to follow
        a point of the aligned space, and text is aligned with every modality.
        """
        config, like = self.config, embeddings[target].pooled  # (B, D)
        batch, device = len(like), like.device
        others = {n: e for n, e in embeddings.items() if n != target}
        keep = _there(prompted, device)
        details = torch.rand(batch, generator=generator) >= config.drop_details
        itself = torch.rand(batch, generator=generator) < config.self_prompt
        noise = normal(like.shape, generator, device) / like.shape[1] ** 0.5  # length about 1
        own = F.normalize(like + config.self_prompt_noise * noise, dim=-1)  # (B, D)
        if not others:
            return Prompt(own, torch.ones(batch, device=device)).drop(keep)
        weights = (torch.rand(len(others), batch, generator=generator) >= 0.5).float()
        weights[_integer(len(others), generator)] = 1.0  # at least one
        prompt = weighted_prompt(others, _there(weights / weights.sum(0), device))
        itself, details = _there(itself, device), _there(details, device)
        pooled = torch.where(itself[:, None], own, prompt.pooled)  # (B, D)
        return Prompt(pooled, prompt.present, prompt.details).drop(
            keep, (details & ~itself).float()
        )


def draw_targets(mix: Mix, generator: torch.Generator) -> tuple[str, ...]:
    """Streams with a loss this step, of those that the mix wants: all of them, or one a modality,
    when a modality with several streams takes turns."""
    wanted = mix.targets
    able: dict[str, list[str]] = {}
    for s in mix.streams:
        if not wanted or s in wanted or stream(s).modality in wanted:
            able.setdefault(s if mix.every else stream(s).modality, []).append(s)
    return tuple(own[_integer(len(own), generator)] for own in able.values())
