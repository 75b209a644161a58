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
from medm2g_core.alignment.objective import augmented_view, shared_studies
from medm2g_core.codecs.text import PAD_ID
from medm2g_core.flows.prompt import Prompt, mix
from medm2g_core.profiles import AlignmentConfig, ConditioningConfig
from medm2g_core.streams import stream
from medm2g_core.training.corpus import Corpus, LatentCorpus
from medm2g_core.training.rounds import Round

__all__ = [
    "TOKEN_MULTIPLE",
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
    "Tokens",
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


def normal(shape: Sequence[int], generator: torch.Generator, device: torch.device) -> torch.Tensor:
    """Normal numbers. On a GPU they are drawn there, from a seed that ``generator`` gives: millions
    of numbers from the CPU's generator would take as long as the rest of the step."""
    if device.type == "cpu":
        return torch.randn(*shape, generator=generator)
    there = torch.Generator(device).manual_seed(_integer(2**31, generator))
    return torch.randn(*shape, generator=there, device=device)


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
    """

    def __init__(self, corpora: Sequence[Corpus], latent_shape: Sequence[int]) -> None:
        self.pools = [images for c in corpora for images in c.images.values()]
        self.latent_shape = tuple(latent_shape)

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> ImageBatch:
        which = _integers(len(self.pools), n, generator).tolist()
        image = torch.stack(
            [self.pools[p][_integer(len(self.pools[p]), generator)].float() for p in which]
        )  # (B, 1, H, W)
        noise = normal((n, *self.latent_shape), generator, device)  # (B, C, h, w)
        return ImageBatch(image.to(device), noise)


Tokens = Callable[[Sequence[str], int], tuple[torch.Tensor, torch.Tensor]]
"""(B texts, multiple) -> ids and mask (B, L), L padded to that multiple, as `MedM2G.tokens`."""

TOKEN_MULTIPLE = 16
"""Texts are padded to a multiple of so many tokens: a handful of shapes for all batches, and few
places that hold nothing."""


@dataclass
class TextBatch:
    """B texts as tokens: ``ids`` (B, L) and ``mask`` (B, L), 1 where a token is; L a multiple of
    `TOKEN_MULTIPLE`, or the longest text that the model reads."""

    ids: torch.Tensor
    mask: torch.Tensor


class TextBatches:
    """Texts from ``source(n, seed)``: written anew for every batch, or drawn from a data set.

    Args:
        tokens: makes tokens of them.
    """

    def __init__(self, source: Callable[[int, int], list[str]], tokens: Tokens) -> None:
        self.source, self.tokens = source, tokens

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> TextBatch:
        texts = self.source(n, _integer(2**31, generator))
        ids, mask = self.tokens(texts, TOKEN_MULTIPLE)
        return TextBatch(ids.to(device), mask.to(device))


# ---- alignment


@dataclass
class AlignmentBatch:
    """Prompts and augmented pictures of the same patients, and contradictions.

    Attributes:
        ids, mask: (B + H, L) tokens of B prompts, those of one corpus after those of the other, and
            of H contradictions behind them.
        contradicted: (H,) whose prompt each contradicts.
        shared: (modality, modality) -> the rows of each that belong to the same studies, (B_ab,)
            and (B_ab,), as `shared_studies` gives them; text first.
        views: image modality -> (B_m, 1, H, W) in -1..1.
        contrasts: image modality -> (B_m,) index of the MR contrast.
        second: a modality and another view of its pictures, for the visual invariant; or ``None``.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    contradicted: torch.Tensor
    shared: dict[tuple[str, str], tuple[torch.Tensor, torch.Tensor]]
    views: dict[str, torch.Tensor]
    contrasts: dict[str, torch.Tensor]
    second: tuple[str, torch.Tensor] | None


def can_align(corpus: Corpus) -> bool:
    """Whether the corpus has reports, images, and a second study to tell each study from."""
    return corpus.has_text and bool(corpus.images) and len(corpus) > 1


class _TokenTable:
    """Tokens of some texts of every study.

    Attributes:
        ids: (N, P, L), padded; int32, as there may be many. Without texts (0, 0, 0).
    """

    def __init__(self, texts: Sequence[Sequence[str]], tokens: Tokens) -> None:
        self.ids = torch.zeros(0, 0, 0, dtype=torch.int32)
        if texts:
            flat = [text for own in texts for text in own]
            ids, _ = tokens(flat, TOKEN_MULTIPLE)
            self.ids = ids.cpu().to(torch.int32).unflatten(0, (len(texts), -1))

    def rows(self, index: torch.Tensor, which: torch.Tensor, length: int) -> torch.Tensor:
        """Text ``which`` (B,) of studies ``index`` (B,): ids (B, ``length``), int64."""
        ids = self.ids[index, which].long()
        return F.pad(ids, (0, length - ids.shape[1]), value=PAD_ID)


class AlignmentBatches:
    """Every batch mixes the corpora that have reports, by their weight.

    All texts become tokens once, padded alike: the shapes of a batch do not depend on the draw.

    Args:
        config: whether the visual invariant is trained, and how many studies get a contradiction.
        tokens: makes tokens of texts.

    Raises:
        ValueError: no corpus can be aligned.
    """

    def __init__(self, corpora: Sequence[Corpus], config: AlignmentConfig, tokens: Tokens) -> None:
        self.corpora = [c for c in corpora if can_align(c)]
        self.second_view = config.invariant != "off"
        self.contradicted = config.contradicted
        if not self.corpora:
            raise ValueError(
                "alignment needs two studies with a report and the same image streams; there are"
                " none"
            )
        self.prompts = [_TokenTable(c.prompts, tokens) for c in self.corpora]
        self.contradictions = [_TokenTable(c.contradictions, tokens) for c in self.corpora]
        tables = (*self.prompts, *self.contradictions)
        self.length = max(t.ids.shape[-1] for t in tables)

    def _studies(self, n: int, generator: torch.Generator) -> list[tuple[Corpus, torch.Tensor]]:
        """Which studies of which corpus make the batch."""
        whole = sum(c.weight for c in self.corpora)
        out = []
        for corpus in self.corpora:
            own = min(max(2, n * corpus.weight // whole), len(corpus))
            out.append((corpus, torch.randperm(len(corpus), generator=generator)[:own]))
        return out

    def draw(self, n: int, generator: torch.Generator, device: torch.device) -> AlignmentBatch:
        prompts: list[torch.Tensor] = []
        wrong: list[torch.Tensor] = []
        contradicted: list[torch.Tensor] = []
        first = 0
        images: dict[str, list[torch.Tensor]] = {}
        contrasts: dict[str, list[torch.Tensor]] = {}
        rows: dict[str, list[torch.Tensor]] = {}
        for k, (corpus, index) in enumerate(self._studies(n, generator)):
            which = _integers(len(corpus.prompts[0]), len(index), generator)
            prompts.append(self.prompts[k].rows(index, which, self.length))
            if corpus.contradictions:  # of the first studies: their order is random
                h = round(self.contradicted * len(index))
                wrong.append(self.contradictions[k].rows(index[:h], which[:h], self.length))
                contradicted.append(torch.arange(first, first + h))
            # One MR contrast of each region a step keeps the cost down; over the steps all come.
            mr = [s for s in corpus.images if stream(s).modality == "mri"]
            chosen = [s for s in corpus.images if s not in mr]
            chosen += [mr[_integer(len(mr), generator)]] if mr else []
            for s in chosen:
                m = stream(s).modality
                images.setdefault(m, []).append(corpus.images[s][index].float())
                contrasts.setdefault(m, []).append(torch.full((len(index),), stream(s).contrast))
                rows.setdefault(m, []).append(torch.arange(first, first + len(index)))
            first += len(index)
        modalities = list(images)
        looked = modalities[_integer(len(modalities), generator)] if self.second_view else None
        views, second = {}, None
        for m in modalities:
            image = torch.cat(images[m]).to(device)  # (B_m, 1, H, W)
            views[m] = augmented_view(image, generator)
            if m == looked:
                second = (m, augmented_view(image, generator))
        ids = torch.cat([*prompts, *wrong])  # (B + H, L)
        shared = shared_studies(
            {"text": torch.arange(first)} | {m: torch.cat(x) for m, x in rows.items()}
        )
        return AlignmentBatch(
            ids.to(device),
            (ids != PAD_ID).long().to(device),
            torch.cat([*contradicted, torch.zeros(0, dtype=torch.long)]).to(device),
            {pair: (a.to(device), b.to(device)) for pair, (a, b) in shared.items()},
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
        present: target -> guide -> (B,) 1 where the guide is there for this target, else 0.
        prompts: target -> its prompt.
        given: stream -> latents (B, ...) of it as it is *given*, where these are not those that are
            drawn: of text, those of a prompt. A guide without noise is made of them.
    """

    targets: tuple[str, ...]
    latents: dict[str, torch.Tensor]
    noise: dict[str, torch.Tensor]
    level: torch.Tensor
    guide_levels: dict[str, torch.Tensor]
    present: dict[str, dict[str, torch.Tensor]]
    prompts: dict[str, Prompt]
    given: dict[str, torch.Tensor]


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
        wording = _integers(corpus.wordings, batch, generator)  # of the report that is written
        prompt = _integers(corpus.prompts, batch, generator)  # of the text that is given
        targets = draw_targets(streams, chosen.targets, generator)
        latents = {s: corpus.latent(s, index, wording).to(device) for s in streams}
        given = {s: corpus.given_latent(s, index, prompt) for s in streams if s in corpus.given}
        embeddings = {s: corpus.embedding(s, index, prompt).to(device) for s in streams}
        level = self.levels(batch, generator)  # (B,)
        noise = {s: normal(z.shape, generator, device) for s, z in latents.items()}
        guide_levels = self.draw_guide_levels(streams, level, generator)
        present, prompts = {}, {}
        for m in targets:
            guides = [s for s in streams if s != m]
            sets, prompted = draw_guide_sets(len(guides), batch, self.config, generator)
            present[m] = {s: row.to(device) for s, row in zip(guides, sets, strict=True)}
            prompts[m] = self.draw_prompt(m, embeddings, prompted, generator)
        return RoundBatch(
            targets,
            latents,
            noise,
            level.to(device),
            {s: x.to(device) for s, x in guide_levels.items()},
            present,
            prompts,
            {s: z.to(device) for s, z in given.items()},
        )

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
        keep = prompted.to(device)
        details = torch.rand(batch, generator=generator) >= config.drop_details
        itself = torch.rand(batch, generator=generator) < config.self_prompt
        noise = normal(like.shape, generator, device) / like.shape[1] ** 0.5  # length about 1
        own = F.normalize(like + config.self_prompt_noise * noise, dim=-1)  # (B, D)
        if not others:
            return Prompt(own, torch.ones(batch, device=device)).drop(keep)
        weights = (torch.rand(len(others), batch, generator=generator) >= 0.5).float()
        weights[_integer(len(others), generator)] = 1.0  # at least one
        prompt = mix(others, {n: w.to(device) for n, w in zip(others, weights, strict=True)})
        itself, details = itself.to(device), details.to(device)
        pooled = torch.where(itself[:, None], own, prompt.pooled)  # (B, D)
        return Prompt(pooled, prompt.present, prompt.details).drop(
            keep, (details & ~itself).float()
        )


def draw_targets(
    streams: Sequence[str], wanted: Sequence[str], generator: torch.Generator
) -> tuple[str, ...]:
    """Streams with a loss this step: one a modality; a modality with several streams takes turns.

    Args:
        wanted: modalities or streams to choose from; all if empty.
    """
    able: dict[str, list[str]] = {}
    for s in streams:
        if not wanted or s in wanted or stream(s).modality in wanted:
            able.setdefault(stream(s).modality, []).append(s)
    return tuple(own[_integer(len(own), generator)] for own in able.values())
